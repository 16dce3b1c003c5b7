"""The effect of the Segment Editor: on the real logic of the editor, with a real warm worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 120
SIZE, SPACING_XYZ, ORIGIN = (30, 36, 32), (4.0, 2.0, 3.0), (-40.0, 12.0, 99.5)
DIRECTION = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
MATERIAL = f"""
import sys
from pathlib import Path
import numpy as np
from worker_material import write_model
from backend.geometry import Geometry, Volume
from backend.inference.predictor import load_predictor

folder = Path(sys.argv[1])
model = write_model(folder / "model.safetensors", seed=1)
voxels = np.load(folder / "ct.npy")
grid = Geometry(
    size={SIZE}, spacing_mm={SPACING_XYZ[::-1]}, origin_mm={ORIGIN},
    direction={tuple(DIRECTION.ravel().tolist())},
)
np.save(folder / "labels.npy", load_predictor(model, device="cpu").segment(Volume(voxels, grid)).voxels)
"""

Voxels = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Material:
    """A model, a scan, and what the model finds there."""

    model: Path
    voxels: NDArray[np.int16]
    labels: NDArray[np.int16]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("Modell ä")
    voxels = np.random.default_rng(5).normal(40, 120, SIZE).astype(np.int16)
    voxels[:, :4] = -1000
    np.save(folder / "ct.npy", voxels)
    paths = (str(REPOSITORY), str(REPOSITORY / "Testing" / "backend"))
    subprocess.run(
        [sys.executable, "-c", MATERIAL, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        timeout=LIMIT_S,
    )
    labels = np.load(folder / "labels.npy")
    assert min(np.count_nonzero(labels == 1), np.count_nonzero(labels == 300)) > 500
    return Material(model=folder / "model.safetensors", voxels=voxels, labels=labels)


@pytest.fixture
def slicer(host: Any) -> Any:
    host.load(REPOSITORY / "SSLSegmentation" / "SSLSegmentation.py")
    return host.python("slicer")


class Stage:
    """A volume, a segmentation with some segments, and the effect on them."""

    def __init__(self, host: Any, voxels: NDArray[Any], segments: dict[str, Voxels]) -> None:
        from slicer_host.effects import Editor
        from SSLSegmentationLib.startup import EFFECT

        self.host, self.slicer = host, host.python("slicer")
        self.volume = self.slicer.util.addVolumeFromArray(voxels, ijkToRAS=ijk_to_ras(), name="CT")
        self.volume.CreateDefaultDisplayNodes()
        self.node = self.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Drawn")
        self.node.CreateDefaultDisplayNodes()
        self.node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        self.ids = {name: self.draw(name, where) for name, where in segments.items()}
        first = next(iter(self.ids.values()), "")
        self.editor = Editor(
            EFFECT, segmentation=self.node, volume=self.volume, segment=first
        )
        self.effect = self.editor.effect
        self.options = self.effect.self().options
        self.ui = self.options.ui
        self.editor.options.resize(330, 300)
        self.editor.options.show()
        host.settle()

    def draw(self, name: str, where: Voxels) -> str:
        """A new segment with these voxels."""
        identifier: str = self.node.GetSegmentation().AddEmptySegment("", name)
        if where.any():
            self.slicer.util.updateSegmentBinaryLabelmapFromArray(
                where.astype(np.uint8), self.node, identifier, self.volume
            )
        return identifier

    def held(self, name: str) -> Voxels:
        """The voxels of a segment."""
        identifier = self.node.GetSegmentation().GetSegmentIdBySegmentName(name)
        array = self.slicer.util.arrayFromSegmentBinaryLabelmap(self.node, identifier, self.volume)
        return np.zeros(self.volume_size, dtype=bool) if array is None else array > 0

    @property
    def volume_size(self) -> tuple[int, ...]:
        return tuple(self.volume.GetImageData().GetDimensions()[::-1])

    def names(self) -> list[str]:
        """Of all segments."""
        held = self.node.GetSegmentation()
        return [held.GetNthSegment(n).GetName() for n in range(held.GetNumberOfSegments())]

    def choose(self, combo: str, text: str) -> None:
        """Choose an entry by its text."""
        box = getattr(self.ui, combo)
        box.currentIndex = box.findText(text)
        assert box.currentText == text
        self.host.settle()

    def apply(self) -> None:
        """Click Apply and wait for the end."""
        self.host.click(self.ui.effectApply)
        self.wait()

    def wait(self) -> None:
        """Until nothing goes on."""
        self.host.wait_until(lambda: self.ui.effectApply.text == "Apply", limit_s=LIMIT_S)

    def roi(self, first: tuple[int, ...], last: tuple[int, ...]) -> Voxels:
        """Choose a ROI around voxels (z, y, x) and answer which they are."""
        node = self.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
        matrix = ijk_to_ras()
        low, high = np.array(first[::-1]), np.array(last[::-1])
        axes = np.eye(4)
        axes[:3, :3] = matrix[:3, :3] / SPACING_XYZ
        axes[:3, 3] = matrix[:3, :3] @ ((low + high) / 2) + matrix[:3, 3]
        to_node = self.host.python("vtk").vtkMatrix4x4() if False else vtk_matrix(axes)
        node.SetAndObserveObjectToNodeMatrix(to_node)
        node.SetSize(*((high - low + 0.5) * SPACING_XYZ))
        self.choose("effectWhere", "Inside a ROI")
        self.ui.effectRoi.setCurrentNode(node)
        inside = np.zeros(SIZE, dtype=bool)
        inside[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
        return inside


def vtk_matrix(array: NDArray[Any]) -> Any:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(array.ravel().tolist())
    return matrix


def ijk_to_ras() -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = DIRECTION * SPACING_XYZ
    matrix[:3, 3] = ORIGIN
    result: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    return result


def blob(seed: int, share: float = 0.5) -> Voxels:
    """Voxels here and there in the middle of the volume."""
    voxels = np.zeros(SIZE, dtype=bool)
    inner = voxels[6:22, 8:30, 5:25]
    inner[...] = np.random.default_rng(seed).random(inner.shape) < share
    return voxels


NOTHING = np.zeros(SIZE, dtype=bool)


# The maths, on the real logic of the editor


def structure(value: int, name: str) -> Any:
    from SSLPretrainLogic.scene.structures import Structure

    return Structure(value=value, name=name)


def run_of(stage: Stage, names: list[str], region: Any = None) -> Any:
    from SSLPretrainLogic.scene.volumes import world_grid
    from SSLPretrainLogic.scene.worker_scan import Scan, whole
    from SSLSegmentationLib.effect_options import Run

    grid, _ = world_grid(stage.volume)
    return Run(
        segmentation=stage.node.GetID(),
        volume=stage.volume.GetID(),
        scan=Scan(told={}, grid=grid, resampled=""),
        region=region or whole(grid),
        structures=tuple(structure(value, name) for value, name in enumerate(names, 1)),
        segments={name: stage.ids[name] for name in names if name in stage.ids},
    )


def write(stage: Stage, labels: NDArray[Any], names: list[str], folder: Path) -> tuple[str, ...]:
    file = folder / "labels.npy"
    np.save(file, labels)
    empty: tuple[str, ...] = stage.options.write(run_of(stage, names), file)
    assert not file.exists()
    return empty


def mask_inside(stage: Stage) -> None:
    stage.editor.node.SetMaskMode(stage.slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    stage.editor.node.SetMaskSegmentID(stage.ids["mask"])


def mask_intensity(stage: Stage) -> None:
    stage.editor.node.SetSourceVolumeIntensityMask(True)
    stage.editor.node.SetSourceVolumeIntensityMaskRange(0, 100)


RULES: dict[str, Any] = {"everywhere": None, "segment": mask_inside, "intensity": mask_intensity}


@pytest.mark.parametrize("overwrite", ["OverwriteAllSegments", "OverwriteNone", "OverwriteVisibleSegments"])
@pytest.mark.parametrize("rule", RULES)
def test_writing_keeps_to_masks_and_overwrite_rules_and_is_undone_in_one_step(
    host: Any, slicer: Any, tmp_path: Path, rule: str, overwrite: str
) -> None:
    voxels = np.random.default_rng(2).integers(-200, 300, SIZE).astype(np.int16)
    before = {"mine": blob(1), "other": blob(2), "hidden": blob(3), "mask": blob(4, 0.7)}
    stage = Stage(host, voxels, before)
    stage.node.GetDisplayNode().SetSegmentVisibility(stage.ids["hidden"], False)
    stage.editor.node.SetOverwriteMode(getattr(stage.editor.node, overwrite))
    if RULES[rule]:
        RULES[rule](stage)
    # Drawn one after the other, the segments have not pushed each other away.
    assert all(np.array_equal(stage.held(name), voxels) for name, voxels in before.items())
    wanted = blob(7) | (np.indices(SIZE).sum(axis=0) % 7 == 0)
    may = {
        "everywhere": ~NOTHING,
        "segment": before["mask"],
        "intensity": (voxels >= 0) & (voxels <= 100),
    }[rule]

    assert write(stage, wanted.astype(np.uint8), ["mine"], tmp_path) == ()

    gained = wanted & may
    assert np.array_equal(stage.held("mine"), np.where(may, wanted, before["mine"]))
    for name in ("other", "hidden", "mask"):
        keeps = overwrite == "OverwriteNone" or (
            overwrite == "OverwriteVisibleSegments" and name == "hidden"
        )
        expected = before[name] if keeps else before[name] & ~gained
        assert np.array_equal(stage.held(name), expected), name
    stage.editor.undo()
    assert all(np.array_equal(stage.held(name), voxels) for name, voxels in before.items())
    stage.editor.redo()
    assert np.array_equal(stage.held("mine"), np.where(may, wanted, before["mine"]))
    stage.editor.close()
