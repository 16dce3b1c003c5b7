"""The phantoms in Slicer's Sample Data: registered in a moment, made on this computer, shown."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

WORDS = {
    *("category", "sampleName", "uris", "fileNames", "nodeNames", "customDownloader"),
    *("thumbnailFileName", "loadFileTypes", "loadFiles", "loadFileProperties", "checksums"),
}
"""Of Slicer's own SampleDataLogic.registerCustomSampleDataSource."""


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is registered in Slicer's module SampleData."""
    sources: list[dict[str, Any]] = []

    def register(**told: Any) -> None:
        assert set(told) <= WORDS
        sources.append(told)

    module = ModuleType("SampleData")
    module.SampleDataLogic = SimpleNamespace(registerCustomSampleDataSource=register)
    monkeypatch.setitem(sys.modules, "SampleData", module)
    return sources


@pytest.fixture
def sources(host: Any, window: Any, offered: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the module registers where Slicer has Sample Data."""
    assert window is not None
    module = sys.modules["SampleData"]
    monkeypatch.setattr(host.python("slicer").modules, "sampledata", module, raising=False)
    from SSLSegmentationLib import sample_data

    offered.clear()
    sample_data.register()
    return offered


@pytest.mark.usefixtures("window")
def test_without_sample_data_nothing_is_registered(host: Any, offered: Any) -> None:
    from SSLSegmentationLib import sample_data

    sample_data.register()
    assert offered == []
    assert not hasattr(host.python("slicer").modules, "sampledata")


def test_three_patients_are_offered_and_nothing_is_made_before_a_click(
    host: Any, sources: Any
) -> None:
    assert [source["sampleName"][-1] for source in sources] == ["1", "2", "3"]
    assert {source["category"] for source in sources} == {"SSL Segmentation"}
    cache = Path(host.python("slicer").app.cachePath)
    for source in sources:
        assert Path(source["thumbnailFileName"]).is_file()
        # Where Slicer looks before it would download.
        assert source["uris"] == (cache / source["fileNames"]).as_uri()
        assert not (cache / source["fileNames"]).exists()


def test_a_click_makes_the_patient_and_shows_it_with_its_organs(
    host: Any, window: Any, sources: Any
) -> None:
    slicer = host.python("slicer")
    window.session.remember("interpreter", sys.executable)
    source = sources[0]
    source["customDownloader"](source)
    source["customDownloader"](source)  # an impatient second click changes nothing
    nodes = slicer.mrmlScene.GetNodesByClass
    host.wait_until(lambda: nodes("vtkMRMLSegmentationNode").GetNumberOfItems() == 1, limit_s=120)
    volume = slicer.util.getNode(source["nodeNames"])
    assert nodes("vtkMRMLScalarVolumeNode").GetNumberOfItems() == 1
    segmentation = nodes("vtkMRMLSegmentationNode").GetItemAsObject(0)
    names = [
        segmentation.GetSegmentation().GetSegment(i).GetName()
        for i in segmentation.GetSegmentation().GetSegmentIDs()
    ]
    assert names[:3] == ["liver", "spleen", "kidney_right"]
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(
        segmentation, segmentation.GetSegmentation().GetSegmentIDs()[0], volume
    )
    hounsfield = slicer.util.arrayFromVolume(volume)[liver > 0]
    assert 60 < hounsfield.mean() < 160, "in the portal phase a liver is brighter than muscle"
    cache = Path(slicer.app.cachePath)
    assert [p.name for p in cache.iterdir()] == ["SSLSegmentation-phantom-1"]

    source["customDownloader"](source)  # it is there now: no process, shown at once
    assert nodes("vtkMRMLScalarVolumeNode").GetNumberOfItems() == 2


def test_without_a_usable_python_a_sentence_names_the_cure(
    host: Any, window: Any, sources: Any, tmp_path: Path
) -> None:
    window.session.remember("interpreter", str(tmp_path / "gone"))
    sources[1]["customDownloader"](sources[1])
    window.session.remember("interpreter", str(_python_without_packages(tmp_path)))
    sources[1]["customDownloader"](sources[1])
    host.wait_until(lambda: len(host.dialogs.texts("errorDisplay")) == 2)
    gone, bare = host.dialogs.texts("errorDisplay")
    assert "there is no Python" in gone
    assert "No module named" in bare
    assert "under Setup" in gone
    assert "under Setup" in bare


def _python_without_packages(folder: Path) -> Path:
    program = folder / "bare" / "python"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n', "utf-8")
    program.chmod(0o755)
    return program
