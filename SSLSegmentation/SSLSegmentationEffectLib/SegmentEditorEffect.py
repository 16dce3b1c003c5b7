"""The effect "SSL model" of the Segment Editor: only the shell that Slicer looks for.

Slicer reads this one file under the name of its folder, so all else is in SSLSegmentationLib.
"""

from pathlib import Path

import qt
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from slicer.i18n import tr as _

ICON = Path(__file__).with_suffix(".png")


class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect):
    """Fills segments from a fine-tuned model."""

    def __init__(self, scriptedEffect):
        scriptedEffect.name = "SSL model"  # Kept in scenes, so it is not translated.
        scriptedEffect.title = _("SSL model")
        scriptedEffect.perSegment = True
        # A model can also begin an empty segmentation.
        scriptedEffect.requireSegments = False
        super().__init__(scriptedEffect)
        self.options = None

    def clone(self):
        """The effect for another Segment Editor."""
        from qSlicerSegmentationsEditorEffectsPythonQt import qSlicerSegmentEditorScriptedEffect

        cloned = qSlicerSegmentEditorScriptedEffect(None)
        cloned.setPythonSource(__file__.replace("\\", "/"))
        return cloned

    def icon(self):
        """What its button shows."""
        return qt.QIcon(str(ICON)) if ICON.is_file() else qt.QIcon()

    def helpText(self):
        """What it does, in the box above its options."""
        return _(
            "Fills segments from a model that you fine-tuned in the module SSL Segmentation. "
            "Masking and overwrite rules below are respected; undo takes it back in one step."
        )

    def setMRMLDefaults(self):
        """The choices of a new scene."""
        from SSLSegmentationLib.effect_options import DEFAULTS

        for name, value in DEFAULTS.items():
            self.scriptedEffect.setParameterDefault(name, value)

    def setupOptionsFrame(self):
        """Make the options."""
        from SSLSegmentationLib.effect_options import EffectOptions

        self.options = EffectOptions(self.scriptedEffect)
        self.scriptedEffect.addOptionsWidget(self.options.widget)

    def activate(self):
        """The effect is chosen: look what models there are now."""
        self.options.activate()

    def deactivate(self):
        """Another effect is chosen; what was begun goes on and is written when it is there."""

    def updateGUIFromMRML(self):
        """Something in the scene has changed."""
        if self.options is not None:
            self.options.show()

    def updateMRMLFromGUI(self):
        """Nothing: every widget writes its own choice when it is made."""

    def sourceVolumeNodeChanged(self):
        """Another volume is to be segmented."""
        self.updateGUIFromMRML()

    def cleanup(self):
        """The editor goes."""
        if self.options is not None:
            self.options.cleanup()
            self.options = None
