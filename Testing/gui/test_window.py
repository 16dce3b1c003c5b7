"""The module as a whole: it loads, opens projects, and lets go of everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_the_module_opens_with_setup_unfolded(window: Any) -> None:
    assert not window.ui.sectionSetup.collapsed
    assert window.ui.sectionData.collapsed
    assert window.ui.projectName.text == "none is open"
    assert list(window.panels) == ["Setup", "Data", "Pretrain", "Finetune", "Segment", "Jobs"]


def test_a_ready_module_knows_its_project_and_the_methods(ready: Any) -> None:
    assert ready.ui.projectName.text == "Köpfe"
    assert {method.name for method in ready.catalogue.methods} >= {"smit", "glmae", "pgl"}


def test_a_project_that_is_gone_is_told_and_forgotten(ready: Any, tmp_path: Path) -> None:
    (tmp_path / "Projekt ä").rename(tmp_path / "moved")
    ready.session.project = None
    ready._restore()
    assert "is no project" in ready.message.text
    assert ready.session.setting("project") == ""


@pytest.mark.usefixtures("window")
def test_closing_the_scene_gives_the_panels_a_new_parameter_node(host: Any) -> None:
    slicer = host.python("slicer")
    slicer.mrmlScene.Clear(0)
    host.settle()
    nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
    ours = [node for node in nodes if node.GetAttribute("ModuleName") == "SSLSegmentation"]
    assert len(ours) == 1
