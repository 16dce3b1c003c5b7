"""A small effect: fills the selected segment where the source volume is bright."""

import qt
import slicer
import vtk.util.numpy_support
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect


class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect):
    def __init__(self, scriptedEffect):
        scriptedEffect.name = "Sample"
        scriptedEffect.title = "Sample"
        scriptedEffect.perSegment = True
        super().__init__(scriptedEffect)

    def clone(self):
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        clone = effects.qSlicerSegmentEditorScriptedEffect(None)
        clone.setPythonSource(__file__.replace("\\", "/"))
        return clone

    def helpText(self):
        return "Fills the selected segment where the source volume is bright."

    def setMRMLDefaults(self):
        self.scriptedEffect.setParameterDefault("Threshold", 100)

    def setupOptionsFrame(self):
        self.spin = qt.QSpinBox()
        self.spin.maximum = 1000
        self.spin.connect("valueChanged(int)", self.updateMRMLFromGUI)
        self.scriptedEffect.addLabeledOptionsWidget("Threshold:", self.spin)
        self.button = qt.QPushButton("Apply")
        self.button.connect("clicked()", self.onApply)
        self.scriptedEffect.addOptionsWidget(self.button)

    def updateGUIFromMRML(self):
        self.spin.value = self.scriptedEffect.integerParameter("Threshold")

    def updateMRMLFromGUI(self):
        self.scriptedEffect.setParameter("Threshold", self.spin.value)

    def onApply(self):
        effect = self.scriptedEffect
        volume = effect.sourceVolumeImageData()
        mask = effect.defaultModifierLabelmap()
        source = vtk.util.numpy_support.vtk_to_numpy(volume.GetPointData().GetScalars())
        target = vtk.util.numpy_support.vtk_to_numpy(mask.GetPointData().GetScalars())
        target[:] = source >= effect.integerParameter("Threshold")
        mask.Modified()
        effect.saveStateForUndo()
        effect.modifySelectedSegmentByLabelmap(
            mask, slicer.qSlicerSegmentEditorAbstractEffect.ModificationModeAdd
        )
