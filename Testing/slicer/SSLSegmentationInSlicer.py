"""What holds inside a running Slicer, beside the story of SSLSegmentationTest.

Run by CTest through Slicer's own test runner, and by pytest in the test host.
"""

import sys
import unittest

import slicer


class SSLSegmentationInSlicer(unittest.TestCase):
    """The module is loaded by Slicer before."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def test_the_module_tells_what_slicer_shows_of_it(self):
        module = slicer.modules.sslsegmentation
        assert module.title == "SSL Segmentation"
        assert list(module.categories) == ["Segmentation"]
        assert module.contributors
        assert "href" in module.helpText
        assert "cite" in module.acknowledgementText

    def test_its_panel_opens_with_all_sections(self):
        window = slicer.modules.sslsegmentation.widgetRepresentation().self().window
        names = ["Setup", "Data", "Pretrain", "Finetune", "Segment", "Jobs"]
        assert list(window.panels) == names
        for name in names:
            section = getattr(window.ui, f"section{name}")
            assert section.text, name

    def test_closing_the_scene_keeps_one_parameter_node(self):
        slicer.modules.sslsegmentation.widgetRepresentation()
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        own = [n for n in nodes if n.GetAttribute("ModuleName") == "SSLSegmentation"]
        assert len(own) == 1

    def test_the_backend_is_not_on_slicers_own_path(self):
        from SSLPretrainLogic.environments import backend_root

        assert (backend_root() / "backend" / "__main__.py").is_file()
        assert "backend" not in sys.modules
