"""A small module that uses what modules use: for the tests of the host."""

import sys
from typing import Annotated

import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

TICK_MS = 5


class SampleModule(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Sample module")
        parent.categories = ["Testing"]
        parent.dependencies = []
        parent.contributors = ["The authors (SSLSegmentation)"]
        parent.helpText = _("Counts voxels above a threshold.")
        parent.acknowledgementText = _("Made for tests.")


@parameterNodeWrapper
class SampleParameters:
    inputVolume: vtkMRMLScalarVolumeNode
    threshold: Annotated[float, WithinRange(-1000, 1000)] = 100
    method: Annotated[str, Choice(["above", "below"])] = "above"
    invert: bool = False


class SampleModuleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.parameters = None
        self.guiTag = None
        self.ticks = 0
        self.output = ""

    def setup(self):
        super().setup()
        widget = slicer.util.loadUI(self.resourcePath("UI/SampleModule.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = SampleModuleLogic()
        self.timer = qt.QTimer()
        self.timer.interval = TICK_MS
        self.timer.connect("timeout()", self.onTick)
        self.process = None
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.startButton.clicked.connect(self.onStart)
        self.ui.failButton.connect("clicked()", self.onFail)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.useParameters(self.logic.getParameterNode())

    def cleanup(self):
        self.timer.stop()
        self.useParameters(None)
        self.removeObservers()

    def useParameters(self, parameters):
        if self.parameters is not None:
            self.parameters.disconnectGui(self.guiTag)
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.onModified)
        self.parameters = parameters
        if parameters is not None:
            self.guiTag = parameters.connectGui(self.ui)
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self.onModified)
            self.onModified()

    def onSceneStartClose(self, caller, event):
        self.useParameters(None)

    def onSceneEndClose(self, caller, event):
        self.useParameters(self.logic.getParameterNode())

    def onModified(self, caller=None, event=None):
        chosen = self.parameters.inputVolume is not None
        self.ui.applyButton.enabled = chosen
        self.ui.applyButton.toolTip = _("Count voxels") if chosen else _("Choose a volume first")

    def onApply(self):
        with slicer.util.tryWithErrorDisplay(_("Counting failed."), waitCursor=True):
            self.ui.resultLabel.text = str(self.logic.count(self.parameters))

    def onStart(self):
        self.timer.start()
        self.process = qt.QProcess()
        self.process.connect("finished(int,QProcess::ExitStatus)", self.onFinished)
        self.process.start(sys.executable, ["-c", "print('from another process')"])

    def onTick(self):
        self.ticks += 1
        self.ui.progressBar.value = min(self.ticks, 100)

    def onFinished(self, code, status):
        self.timer.stop()
        self.output = bytes(self.process.readAllStandardOutput().data()).decode().strip()
        self.ui.resultLabel.text = f"{self.output} ({code})"

    def onFail(self):
        raise RuntimeError("a mistake in a slot")


class SampleModuleLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return SampleParameters(super().getParameterNode())

    def count(self, parameters):
        voxels = slicer.util.arrayFromVolume(parameters.inputVolume)
        below = (parameters.method == "below") != parameters.invert
        hits = voxels < parameters.threshold if below else voxels >= parameters.threshold
        return int(hits.sum())
