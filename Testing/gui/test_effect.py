"""The effect of the Segment Editor: on the real logic of the editor, with a real warm worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 300
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
labels = load_predictor(model, device="cpu").segment(Volume(voxels, grid))
np.save(folder / "labels.npy", labels.voxels)
"""

Voxels = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Material:
    """A model, a scan, and what the model finds there."""

    model: Path
    voxels: NDArray[np.int16]
    labels: NDArray[np.int16]


@pytest.fixture(scope="module")
def material(running_host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    """Also a worker that is nobody else's, ended at last."""
    app = running_host.python("slicer").app
    app.setEnvironmentVariable("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
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
    yield Material(model=folder / "model.safetensors", voxels=voxels, labels=labels)
    from SSLSegmentationLib import worker

    worker.end_all()


@pytest.fixture(autouse=True)
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
        self.editor = Editor(EFFECT, segmentation=self.node, volume=self.volume, segment=first)
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
        # SetAndObserve… would forget the matrix with its last reference in Python.
        node.GetObjectToNodeMatrix().DeepCopy(vtk_matrix(axes))
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
    from SSLPretrainLogic.scene.worker_scan import whole
    from SSLSegmentationLib.effect_options import Run

    grid, resampled = world_grid(stage.volume)
    return Run(
        segmentation=stage.node.GetID(),
        volume=stage.volume.GetID(),
        grid=grid,
        resampled=resampled,
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
    stage.editor.node.SetMaskMode(
        stage.slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment
    )
    stage.editor.node.SetMaskSegmentID(stage.ids["mask"])


def mask_intensity(stage: Stage) -> None:
    stage.editor.node.SetSourceVolumeIntensityMask(True)
    stage.editor.node.SetSourceVolumeIntensityMaskRange(0, 100)


RULES: dict[str, Any] = {"everywhere": None, "segment": mask_inside, "intensity": mask_intensity}


@pytest.mark.parametrize(
    "overwrite", ["OverwriteAllSegments", "OverwriteNone", "OverwriteVisibleSegments"]
)
@pytest.mark.parametrize("rule", RULES)
def test_writing_keeps_to_masks_and_overwrite_rules_and_is_undone_in_one_step(
    host: Any, tmp_path: Path, rule: str, overwrite: str
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


def test_every_structure_goes_into_the_segment_of_its_name_and_absent_ones_are_told(
    host: Any, slicer: Any, tmp_path: Path
) -> None:
    before = {"liver": blob(1), "spleen": NOTHING}
    stage = Stage(host, np.zeros(SIZE, np.int16), before)
    labels = np.zeros(SIZE, np.uint8)
    labels[3:9], labels[9:12] = 1, 4
    empty = write(stage, labels, ["liver", "spleen", "heart", "aorta"], tmp_path)
    assert empty == ("spleen", "heart")
    assert stage.names() == ["liver", "spleen", "aorta"]
    assert np.array_equal(stage.held("liver"), labels == 1)
    assert np.array_equal(stage.held("aorta"), labels == 4)
    aorta = stage.node.GetSegmentation().GetSegment(
        stage.node.GetSegmentation().GetSegmentIdBySegmentName("aorta")
    )
    assert "SCT^15825003" in aorta.GetTerminology()
    status = slicer.vtkSlicerSegmentationsModuleLogic
    assert status.GetSegmentStatus(aorta) == status.InProgress
    stage.editor.undo()
    assert stage.names() == ["liver", "spleen"]
    assert np.array_equal(stage.held("liver"), before["liver"])
    stage.editor.close()


def test_a_finer_geometry_under_a_transform_gets_the_label_that_lies_nearest(
    host: Any, slicer: Any, tmp_path: Path
) -> None:
    stage = Stage(host, np.zeros(SIZE, np.int16), {"liver": NOTHING})
    shift = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved = np.eye(4)
    moved[:3, 3] = (7.0, -3.0, 11.0)
    shift.SetMatrixTransformToParent(vtk_matrix(moved))
    stage.node.SetAndObserveTransformNodeID(shift.GetID())
    finer = slicer.vtkSlicerSegmentationGeometryLogic()
    finer.SetInputSegmentationNode(stage.node)
    finer.SetSourceGeometryNode(stage.volume)
    finer.SetOversamplingFactor(2)
    assert not finer.CalculateOutputGeometry()
    assert finer.SetReferenceImageGeometryInSegmentationNode()
    labels = np.zeros(SIZE, np.uint8)
    labels[8:20, 9:22, 7:21] = 1

    write(stage, labels, ["liver"], tmp_path)

    image = slicer.vtkOrientedImageData()
    stage.node.GetBinaryLabelmapRepresentation(stage.ids["liver"], image)
    from SSLPretrainLogic.scene.volumes import oriented_grid, voxels_of

    grid, found = oriented_grid(image), voxels_of(image) > 0
    points = np.argwhere(found)[:, ::-1]
    world = (moved @ grid.ijk_to_ras @ np.c_[points, np.ones(len(points))].T).T
    nearest = np.linalg.inv(ijk_to_ras()) @ world.T
    k, j, i = (np.rint(nearest[axis] - 1e-9).astype(int) for axis in (2, 1, 0))
    assert labels[k, j, i].all()
    assert np.allclose(grid.spacing_mm, np.array(SPACING_XYZ) / 2)
    assert len(points) == pytest.approx(8 * np.count_nonzero(labels), rel=0.1)
    stage.editor.close()


def test_a_turned_roi_and_a_margin_are_the_voxels_that_lie_inside(host: Any, slicer: Any) -> None:
    from SSLPretrainLogic.errors import LogicError
    from SSLPretrainLogic.scene import worker_scan
    from SSLPretrainLogic.scene.volumes import world_grid

    seed = NOTHING.copy()
    seed[10, 12, 14] = seed[12, 15, 18] = True
    stage = Stage(host, np.zeros(SIZE, np.int16), {"seed": seed, "empty": NOTHING})
    grid, _ = world_grid(stage.volume)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    angle = np.radians(30)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned[:3, 3] = (ijk_to_ras() @ (15.0, 17.0, 14.0, 1.0))[:3]
    roi.GetObjectToNodeMatrix().DeepCopy(vtk_matrix(turned))
    roi.SetSize(30, 18, 24)
    region = worker_scan.inside_roi(roi, grid)
    indices = np.argwhere(~NOTHING)
    world = ijk_to_ras() @ np.c_[indices[:, ::-1], np.ones(len(indices))].T
    local = np.abs(np.linalg.inv(turned) @ world)[:3].T
    expected = (local <= (15, 9, 12)).all(axis=1).reshape(SIZE)
    found = NOTHING.copy()
    box = tuple(slice(a, a + n) for a, n in zip(*region.told.values(), strict=True))
    found[box] = region.inside(region.cropped(grid))
    assert np.array_equal(found, expected)
    assert expected.any()

    around = worker_scan.around_segment(stage.node, stage.ids["seed"], grid, margin_mm=6.0)
    assert around.told == {"start": [8, 9, 13], "size": [7, 10, 7]}
    with pytest.raises(LogicError, match="'empty' is empty"):
        worker_scan.around_segment(stage.node, stage.ids["empty"], grid, margin_mm=6.0)
    roi.SetCenter(9999, 0, 0)
    with pytest.raises(LogicError, match="'Box' holds no voxel"):
        worker_scan.inside_roi(roi, grid)
    stage.editor.close()


def test_segments_are_matched_by_name_then_by_code_and_never_by_a_guess() -> None:
    from dataclasses import replace

    from SSLPretrainLogic.scene.terminology import code_for, matching

    names = ("liver", "left kidney", "right kidney", "tumour 1")
    known = [
        replace(structure(n, name), terminology=code_for(name)) for n, name in enumerate(names, 1)
    ]

    def found(name: str, terminology: str = "") -> str | None:
        match = matching(name, terminology, known)
        return match.name if match else None

    assert found("Liver ") == "liver"
    assert found("kidney_right") == "right kidney"
    assert found("Leber", code_for("liver")) == "liver"
    assert found("Tumour_1") == "tumour 1"
    assert found("Segment_1") is None
    assert found("kidney") is None
    assert found("Niere", code_for("spleen")) is None


# The whole of it, with a real worker


@pytest.fixture
def project(material: Material, tmp_path: Path) -> Any:
    """A project with one fine-tuned run, remembered in the settings, as the module does."""
    from SSLPretrainLogic import environments
    from SSLPretrainLogic.project import create_project
    from SSLSegmentationLib.session import Session

    made = create_project(tmp_path / "Projekt ä")
    checkpoints = made.runs / "liver 2" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(material.model, checkpoints / "best.safetensors")
    status = {
        "schema": 1,
        "kind": "finetune",
        "state": "done",
        "step": 1,
        "host": "elsewhere",
        "started": "2026-01-01T00:00:00+00:00",
        "updated": "2026-01-01T00:00:00+00:00",
    }
    (made.runs / "liver 2" / "status.json").write_text(json.dumps(status))
    session = Session()
    session.use_project(made)
    session.use_interpreter(environments.chosen_interpreter(Path(sys.executable)))
    return made


def test_the_effect_fills_by_its_rules_what_the_backend_finds(
    host: Any, material: Material, project: Any
) -> None:
    before = {"Leber": blob(1, 0.1), "spleen": NOTHING}
    stage = Stage(host, material.voxels, before)
    ui, liver, spleen = stage.ui, material.labels == 1, material.labels == 300
    assert ui.effectModel.currentText == "liver 2"
    assert not ui.effectApply.enabled
    assert "Choose the structure" in ui.effectApply.toolTip
    stage.choose("effectStructure", "liver")
    told = []
    host.click(ui.effectApply)
    assert ui.effectApply.text == "Cancel"
    host.wait_until(
        lambda: told.append(ui.effectStatus.text) or ui.effectApply.text == "Apply",
        limit_s=LIMIT_S,
    )
    assert "Loading the model…" in told
    assert ui.effectStatus.text.startswith("Found in")
    assert not stage.options.message.text
    assert np.array_equal(stage.held("Leber"), liver)
    stage.editor.undo()
    assert np.array_equal(stage.held("Leber"), before["Leber"])

    inside = stage.roi((5, 6, 7), (19, 25, 20))
    stage.apply()
    assert np.array_equal(stage.held("Leber"), np.where(inside, liver, before["Leber"]))

    stage.choose("effectWhere", "Whole volume")
    stage.choose("effectFill", "All matching segments")
    stage.apply()
    assert stage.names() == ["Leber", "spleen"]
    assert np.array_equal(stage.held("spleen"), spleen)
    host.click(ui.effectAddMissing)
    stage.apply()
    assert stage.names() == ["Leber", "spleen", "liver"]
    assert np.array_equal(stage.held("liver"), liver)
    kept = " ".join(
        stage.editor.node.GetAttribute(name) or "" for name in stage.editor.node.GetAttributeNames()
    )
    assert "run:liver 2" in kept
    assert str(project.folder) not in kept
    stage.editor.close()


@contextmanager
def held_worker(options: Any) -> Iterator[None]:
    """The worker computes nothing meanwhile."""
    pid = options._worker._client._children[-1]._process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.usefixtures("project")
def test_a_run_goes_on_without_the_effect_and_is_given_up_where_it_no_longer_fits(
    host: Any, slicer: Any, material: Material
) -> None:
    stage = Stage(host, material.voxels, {"spleen": NOTHING})
    display, box = stage.node.GetDisplayNode(), host.python("qt").QMessageBox
    display.SetSegmentVisibility(stage.ids["spleen"], False)
    host.dialogs.answer("exec", box.Cancel, box.Yes)
    host.click(stage.ui.effectApply)
    assert stage.ui.effectApply.text == "Apply"
    assert not display.GetSegmentVisibility(stage.ids["spleen"])
    host.click(stage.ui.effectApply)
    assert stage.ui.effectApply.text == "Cancel"
    assert display.GetSegmentVisibility(stage.ids["spleen"])
    stage.effect.deactivate()
    stage.wait()
    spleen = stage.held("spleen")
    assert np.array_equal(spleen, material.labels == 300)
    stage.effect.activate()

    # Held, because it is quicker than a user who means a second click.
    with held_worker(stage.options):
        host.click(stage.ui.effectApply)
        host.wait_until(lambda: not stage.options.session.is_settling)
        host.click(stage.ui.effectApply)
    assert stage.ui.effectApply.text == "Apply"
    assert "Cancelled" in stage.options.message.text

    host.click(stage.ui.effectApply)
    matrix = ijk_to_ras()
    matrix[0, 3] += 5
    stage.volume.SetIJKToRASMatrix(vtk_matrix(matrix))
    stage.wait()
    assert "'CT' was moved or changed meanwhile" in stage.options.message.text

    host.click(stage.ui.effectApply)
    stage.node.GetSegmentation().RemoveSegment(stage.ids["spleen"])
    stage.wait()
    assert "'spleen' was removed meanwhile" in stage.options.message.text
    assert "Select a segment" in stage.ui.effectHint.text

    other = stage.draw("spleen", NOTHING)
    stage.editor.select(other)
    host.click(stage.ui.effectApply)
    slicer.mrmlScene.RemoveNode(stage.volume)
    stage.wait()
    assert "removed meanwhile" in stage.options.message.text
    stage.editor.close()


@pytest.mark.usefixtures("project")
def test_wrong_choices_are_told_with_their_cure(
    host: Any, material: Material, tmp_path: Path
) -> None:
    flat = NOTHING.astype(np.int16)
    stage = Stage(host, flat, {"liver": NOTHING})
    ui, message = stage.ui, stage.options.message
    stage.apply()
    assert "not HU" in message.text
    stage.choose("effectWhere", "Around the selected segment")
    host.click(ui.effectApply)
    assert "'liver' is empty" in message.text
    stage.choose("effectWhere", "Inside a ROI")
    assert not ui.effectApply.enabled
    assert "Choose a ROI" in ui.effectApply.toolTip
    stage.choose("effectWhere", "Whole volume")

    rubbish = tmp_path / "notes ä.safetensors"
    rubbish.write_bytes(b"no model at all")
    host.dialogs.answer("getOpenFileName", str(rubbish))
    host.click(ui.effectFile)
    assert "notes ä.safetensors: is no safetensors file" in message.text
    host.dialogs.answer("getOpenFileName", str(material.model))
    host.click(ui.effectFile)
    assert ui.effectModel.currentText == "model"
    assert not message.text
    chosen = stage.effect.parameter("Model")
    assert chosen.startswith("file:")
    assert str(material.model.parent) not in chosen

    stage.effect.setParameter("Model", "run:elsewhere")
    stage.effect.updateGUIFromMRML()
    assert "not in the open project" in ui.effectHint.text
    stage.editor.close()


def test_models_are_listed_anew_before_the_list_opens_and_when_the_project_changes(
    host: Any, material: Material, project: Any, tmp_path: Path
) -> None:
    from SSLPretrainLogic.project import create_project
    from SSLSegmentationLib.session import Session

    stage = Stage(host, NOTHING.astype(np.int16), {"liver": NOTHING})
    models = stage.ui.effectModel

    def names() -> list[str]:
        return [models.itemText(row) for row in range(models.count)]

    assert names() == ["liver 2"]
    shutil.copytree(project.runs / "liver 2", project.runs / "newer")
    host.click(models)
    models.hidePopup()
    assert names() == ["newer", "liver 2"]
    Session().use_model_file(material.model)
    assert names() == ["newer", "liver 2", "model"]
    Session().use_project(create_project(tmp_path / "other"))
    assert names() == ["model"]
    stage.editor.close()


def test_a_volume_is_written_a_little_at_a_time_and_only_as_it_is(
    host: Any, material: Material, tmp_path: Path
) -> None:
    from SSLPretrainLogic.errors import LogicError
    from SSLPretrainLogic.scene.worker_scan import Scan, Scans

    stage = Stage(host, material.voxels, {})
    folder = tmp_path / "scans"
    folder.mkdir()
    scans = Scans(folder)

    def written(steps: Generator[bool, None, Scan]) -> tuple[Scan, int]:
        pieces = 0
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value, pieces
            pieces += 1

    scan, pieces = written(scans.of(stage.volume))
    assert pieces > SIZE[0]
    assert np.array_equal(np.fromfile(scan.told["file"], np.int16), material.voxels.ravel())
    assert written(scans.of(stage.volume)) == (scan, 0)
    stage.volume.GetImageData().Modified()
    again = scans.of(stage.volume)
    next(again)
    stage.volume.GetImageData().Modified()
    with pytest.raises(LogicError, match="'CT' was moved or changed"):
        written(again)
    scans.forget()
    assert list(folder.iterdir()) == []
    stage.editor.close()


def test_without_a_project_or_python_the_effect_says_what_to_do(host: Any) -> None:
    stage = Stage(host, NOTHING.astype(np.int16), {})
    assert not stage.ui.effectApply.enabled
    assert "Choose a Python" in stage.ui.effectHint.text
    stage.editor.close()


def test_slicer_knows_the_effect_and_the_terms_once_it_has_started(host: Any, slicer: Any) -> None:
    host.startup_completed()
    effects = slicer.qSlicerSegmentEditorEffectFactory.instance().registeredEffects()
    assert "SSL model" in [effect.name for effect in effects]
    terms = slicer.modules.terminologies.logic()
    name = "Segmentation category and type - SSLSegmentation CT organs"
    assert terms.IsTerminologyContextLoaded(name)


@pytest.mark.usefixtures("project")
def test_replies_that_come_at_once_are_all_told_and_reading_the_module_anew_ends_the_worker(
    host: Any, slicer: Any
) -> None:
    from SSLSegmentationLib import worker
    from SSLSegmentationLib.session import Session

    session = Session()
    session.restore()
    held, heard = worker.shared(session), []
    held.ask("status", heard.append)
    host.wait_until(lambda: heard, limit_s=LIMIT_S)
    held.ask("unload", heard.append)
    # Nobody asks for replies meanwhile, so they wait together.
    time.sleep(0.5)
    host.wait_until(lambda: len(heard) == 3, limit_s=LIMIT_S)
    assert [reply["event"] for reply in heard] == ["result", "accepted", "result"]
    assert worker.unload()

    widget = slicer.modules.sslsegmentation.widgetRepresentation().self()
    before = dict(sys.modules)
    try:
        widget.onReload()
        assert not held.running
        assert sys.modules["SSLSegmentationLib.worker"] is not worker
        assert slicer.modules.SSLSegmentationWidget is not widget
        assert slicer.modules.SSLSegmentationWidget.window is not None
    finally:
        # Other tests go on with what they have imported.
        sys.modules.update(before)
