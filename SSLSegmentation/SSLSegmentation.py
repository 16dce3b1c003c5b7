"""The module SSLSegmentation: only the shells that 3D Slicer looks for.

What they do stands in SSLSegmentationLib (windows) and SSLPretrainLogic (all else). Nothing is
imported here that Slicer has not loaded itself, so that it starts as fast as without this module.
"""

import sys

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

OWN_PACKAGES = ("SSLSegmentationLib", "SSLPretrainLogic")


class SSLSegmentation(ScriptedLoadableModule):
    """What Slicer shows of the module in its lists."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("SSL Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Terminologies", "Volumes"]
        parent.contributors = ["SSLSegmentation contributors"]
        parent.helpText = _(
            "Turns a folder of unlabelled CT and a handful of your own segments into a model "
            "that segments them: it learns the anatomy from the unlabelled scans first "
            "(self-supervised pretraining: SMIT, GL-MAE, PGL), then your structures from few "
            "labels. Everything stays on this computer. "
            '<a href="https://github.com/SSLSegmentation/SSLSegmentation#readme">Tutorial</a>'
        )
        parent.acknowledgementText = _(
            "Implements SMIT (Jiang et al., MICCAI 2022), GL-MAE (Zhuang et al., IEEE TMI 2025) "
            "and PGL (Xie et al., arXiv:2011.12640). Please cite the paper of the method that you "
            "use."
        )
        slicer.app.connect("startupCompleted()", on_startup_completed)


def on_startup_completed():
    """Tell other modules of what this one brings, once they are all there."""
    from SSLSegmentationLib import startup

    startup.register()


class SSLSegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel of the module."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.window = None

    def setup(self):
        """Make the panels, when the module is opened for the first time."""
        super().setup()
        from SSLSegmentationLib.window import Window

        self.logic = SSLSegmentationLogic()
        self.window = Window(self.resourcePath("UI"), parameters=self.logic.getParameterNode)
        self.layout.addWidget(self.window.widget)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)

    def cleanup(self):
        """Let go of everything; jobs go on by themselves."""
        self.removeObservers()
        if self.window is not None:
            self.window.cleanup()
            self.window = None

    def enter(self):
        """The module is shown."""
        if self.window is not None:
            self.window.enter()

    def exit(self):
        """Another module is shown."""
        if self.window is not None:
            self.window.exit()

    def onSceneStartClose(self, caller=None, event=None):
        """All nodes are about to go."""
        if self.window is not None:
            self.window.scene_closes()

    def onSceneEndClose(self, caller=None, event=None):
        """The scene is empty."""
        if self.window is not None:
            self.window.scene_closed()

    def onReload(self):
        """Read our own packages again too; Slicer itself reads only this file."""
        from SSLSegmentationLib import worker

        # What is read again would know nothing of it, and could start none on its device.
        worker.end_all()
        for name in [name for name in sys.modules if name.split(".")[0] in OWN_PACKAGES]:
            del sys.modules[name]
        super().onReload()


class SSLSegmentationLogic(ScriptedLoadableModuleLogic):
    """Where the parameter node comes from; all else is in SSLPretrainLogic."""

    def getParameterNode(self):
        """The parameters of this module in the scene."""
        from SSLSegmentationLib.parameters import Parameters

        return Parameters(super().getParameterNode())


class SSLSegmentationTest(ScriptedLoadableModuleTest):
    """The test that Slicer's own test runner finds.

    It needs a Python that can run the backend: Slicer's own, or the one that the environment
    variable SSLSEGMENTATION_PYTHON names.
    """

    def setUp(self):
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """What the button "Reload and Test" runs."""
        self.setUp()
        self.test_story()

    def test_story(self):
        """From phantoms to a segmentation in the scene, with the smallest model."""
        from SSLSegmentationLib import self_test

        with self_test.begun() as story:
            report = story.set_up()
            assert report.ok, report.summary
            cohort = story.make_phantoms()
            pretrained = story.pretrain(story.scan(cohort))
            model = story.finetune(cohort, pretrained=pretrained)
            wanted = story.structures(cohort)
            scan = cohort / "test" / "images" / "test_01.nii.gz"
            volume = slicer.util.loadVolume(str(scan), {"name": "Phantom"})
            node = story.segment(volume, model=model)
        segmentation = node.GetSegmentation()
        names = [segmentation.GetSegment(i).GetName() for i in segmentation.GetSegmentIDs()]
        assert names == wanted
        role = node.GetReferenceImageGeometryReferenceRole()
        assert node.GetNodeReferenceID(role) == volume.GetID()
