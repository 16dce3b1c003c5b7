"""The whole way in the module, with mouse and keyboard only: the story test and the pictures of
the README share its steps.

Scans are phantoms. The network is the smallest preset, on voxels that are coarser still.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PySide6 import QtCore, QtTest, QtWidgets

from backend.data.phantom import LABELS, make_phantom
from backend.data.phantom.dicom import Series, write_series
from backend.geometry import Index3, Vec3
from labelled_set import write_labelled_set

MODULE = Path(__file__).resolve().parents[2] / "SSLSegmentation" / "SSLSegmentation.py"
LIMIT_S = 900.0
"""A step that takes longer hangs; on two quiet cores none takes a minute."""

ORGANS = {"liver": (221, 130, 101), "spleen": (157, 108, 162), "aorta": (224, 97, 76)}
"""What is drawn, and in which colour."""

TRAINING = (1, 2, 3)
NEW_PATIENT = 9
FINETUNE_STEPS = 160

_SIZE: Index3 = (36, 60, 60)
_SPACING_MM: Vec3 = (6.0, 6.0, 6.0)
_COARSE = "preprocess.spacing_mm=[6, 6, 6]"
_PRETRAIN = (
    _COARSE,
    "views.region=40",
    "views.main.size=32",
    "train.preview_every_steps=10",
)
_FINETUNE = (_COARSE, "data.workers=0", "crop=32", "validate_every_epochs=100")
_CONTROL = QtCore.Qt.KeyboardModifier.ControlModifier
_PLAIN = QtCore.Qt.KeyboardModifier.NoModifier


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """An invented patient, as a series of DICOM files.

    Attributes:
        files: in the order of the slices.
        voxels: HU, (z, y, x).
        labels: values as `LABELS` names them, (z, y, x).
    """

    files: tuple[Path, ...]
    voxels: NDArray[np.int16]
    labels: NDArray[np.int16]

    def mask(self, organ: str) -> NDArray[np.bool_]:
        """Where an organ really is."""
        value = next(value for value, name in LABELS.items() if name == organ)
        return np.asarray(self.labels == value)


@dataclass(frozen=True, kw_only=True)
class Names:
    """How a person calls things; those of folders stand in every path."""

    project: str
    archive: str
    run: str
    model: str
    patient: str
    labelled: str = ""


class Story:
    """What a person does, step by step.

    Attributes:
        panel: the module as it is shown.
        window: of the module.

    Args:
        host: the stand-in for Slicer.
        folder: an empty one for project and scans.
        names: of what is made.
        python: that computes.
        pretrain_steps: how long it learns without labels.
        probed: seeds of the labelled scans that its features are asked of; none are not asked.
    """

    def __init__(
        self,
        host: Any,
        folder: Path,
        *,
        names: Names,
        python: Path,
        pretrain_steps: int = 40,
        probed: tuple[int, ...] = (),
    ) -> None:
        self.host, self.slicer = host, host.python("slicer")
        self.names, self.python, self.pretrain_steps = names, python, pretrain_steps
        self.project, self.archive = folder / names.project, folder / names.archive
        self.training = {
            f"P{seed}": _written(self.archive / f"P{seed}", seed=seed) for seed in TRAINING
        }
        self.new_patient = _written(
            folder / names.patient,
            seed=NEW_PATIENT,
            size=(44, 70, 64),
            spacing_mm=(5.0, 5.5, 5.5),
            turn_deg=(3.0, -3.0, 4.0),
        )
        self.labelled = (
            write_labelled_set(folder / names.labelled, seeds=probed) if probed else None
        )
        self.panel: Any = None
        self.window: Any = None

    def ui(self, name: str) -> Any:
        """The widgets of a panel."""
        return self.window.panels[name].ui

    # The module

    def open(self) -> None:
        """Open the module."""
        module = self.host.load(MODULE)
        self.host.startup_completed()
        # The host keeps it until it is cleared; a test may end before.
        self.panel = self.host.panel = self.host.show(module, size=(440, 900))
        self.window = module.widgetRepresentation().self().window

    def close(self) -> None:
        """Unload the module."""
        self.host.unload(self.slicer.modules.sslsegmentation)
        self.panel.close()

    def unfold(self, name: str) -> None:
        """Unfold a section, and fold all others."""
        for panel in self.window.panels:
            section = getattr(self.window.ui, f"section{panel}")
            if section.collapsed == (panel == name):
                self.host.click(section)

    # Setup and data

    def make_project(self) -> None:
        """A new project in an empty folder."""
        self.host.dialogs.answer("getExistingDirectory", str(self.project))
        self.host.click(self.window.ui.newProjectButton)

    def set_up(self) -> None:
        """Choose this Python, test it and compute on the processor."""
        ui = self.ui("Setup")
        self.host.dialogs.answer("getOpenFileName", str(self.python))
        self.host.click(ui.setupOtherButton)
        self.host.click(ui.setupTestButton)
        self.wait(lambda: ui.setupFindings.visible and ui.setupTestButton.enabled)
        choose(ui.setupDeviceCombo, "cpu")

    def scan(self) -> None:
        """Add the folder and scan it."""
        ui = self.ui("Data")
        self.host.dialogs.answer("getExistingDirectory", str(self.archive))
        self.host.click(ui.dataAddButton)
        self.host.click(ui.dataScanButton)
        self.wait(lambda: ui.dataResult.visible and " series: " in ui.dataFound.text)

    # Pretraining

    def choose_pretraining(self) -> None:
        """Choose the smallest one there is."""
        ui = self.ui("Pretrain")
        self.wait(lambda: ui.pretrainMethod.count)
        choose(ui.pretrainMethod, "smit")
        choose(ui.pretrainPreset, "tiny")
        choose(ui.pretrainLength, "Steps")
        enter(ui.pretrainLengthValue, str(self.pretrain_steps))
        enter(ui.pretrainName, self.names.run)
        self.host.click(ui.pretrainAdvanced)
        enter(ui.pretrainBatch, "2")
        enter(ui.pretrainWorkers, "0")
        enter(ui.pretrainFurther, *_PRETRAIN)
        if self.labelled is not None:
            choose(ui.pretrainProbe, "A labelled folder")
            enter(ui.pretrainProbePath.comboBox(), str(self.labelled))
        self.host.click(ui.pretrainAdvanced)

    def start_pretraining(self) -> None:
        """Press Start."""
        ui = self.ui("Pretrain")
        assert ui.pretrainStart.enabled, ui.pretrainStart.toolTip
        self.host.click(ui.pretrainStart)

    @property
    def run(self) -> Any:
        """The widgets that show the pretraining."""
        return self.window.panels["Pretrain"].view.ui

    def wait_for_step(self, step: int) -> int:
        """Wait until the bar has reached a step; answers where it is."""
        self.wait(lambda: self.run.runProgressBar.value >= step)
        return int(self.run.runProgressBar.value)

    def wait_for_state(self, state: str) -> None:
        """Wait until the run is said to be in a state."""
        self.wait(lambda: self.run.runStateLabel.text == f"Pretrain: {state}")

    # Fine-tuning

    def load_and_draw(self) -> None:
        """Open all series from the table, and draw the organs on them."""
        ui = self.ui("Data")
        for name, phantom in self.training.items():
            title = f"{self.archive.name}/{name}"
            (item,) = ui.dataTable.findItems(title, QtCore.Qt.MatchFlag.MatchExactly, 0)
            ui.dataTable.scrollToItem(item)
            _click_item(ui.dataTable, item)
            self.host.click(ui.dataOpenButton)
            volume = self.slicer.mrmlScene.GetFirstNodeByName(title.replace("/", " "))
            self._draw(volume, phantom)

    def _draw(self, volume: Any, phantom: Phantom) -> None:
        util, scene = self.slicer.util, self.slicer.mrmlScene
        assert np.array_equal(util.arrayFromVolume(volume), phantom.voxels)
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{volume.GetName()} organs")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for organ, color in ORGANS.items():
            fractions = [channel / 255 for channel in color]
            segment = node.GetSegmentation().AddEmptySegment("", organ, fractions)
            mask = phantom.mask(organ).astype(np.uint8)
            util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)

    def choose_finetuning(self) -> None:
        """Choose to learn the drawn organs, from the pretraining."""
        ui = self.ui("Finetune")
        self.wait(lambda: ui.finetuneStructures.rowCount == len(ORGANS))
        choose(ui.finetuneStart, self.names.run)
        choose(ui.finetuneLength, "Steps")
        enter(ui.finetuneSteps, str(FINETUNE_STEPS))
        enter(ui.finetuneName, self.names.model)
        self.host.click(ui.finetuneAdvancedBox)
        enter(ui.finetuneOverrides, *_FINETUNE)
        self.host.click(ui.finetuneAdvancedBox)

    def finetune(self) -> None:
        """Start, wait for the end, and take the model for segmenting."""
        self.host.click(self.ui("Finetune").finetuneStartButton)
        label = self.window.panels["Finetune"].run_view.ui.runStateLabel
        self.wait(lambda: label.text not in ("", *map("Fine-tune: {}".format, _GOING_ON)))
        assert label.text == "Fine-tune: Done", label.text
        self.host.click(self.ui("Finetune").finetuneUseModel)

    # Segmenting

    def load_new_patient(self) -> Any:
        """A patient comes into the scene, as by Slicer's module DICOM."""
        files = self.new_patient.files
        told = {"name": self.names.patient, "singleFile": False, "fileNames": list(map(str, files))}
        return self.slicer.util.loadVolume(str(files[0]), told)

    def segment(self) -> None:
        """Choose the patient and press Apply."""
        ui = self.ui("Segment")
        choose(ui.segmentVolumeSelector, self.names.patient)
        self.host.click(ui.segmentApplyButton)
        self.wait(lambda: ui.segmentApplyButton.text == "Apply")

    # Jobs

    def look_at_job(self, name: str) -> None:
        """Select a line of the list by its name."""
        table = self.ui("Jobs").jobsTable
        self.wait(lambda: table.findItems(name, QtCore.Qt.MatchFlag.MatchExactly))
        (item,) = table.findItems(name, QtCore.Qt.MatchFlag.MatchExactly)
        _click_item(table, item)
        self.host.settle()

    def wait(self, there: Any) -> None:
        """Let time pass until something is so."""
        # Looking more often would take time from what is waited for.
        self.host.wait_until(there, limit_s=LIMIT_S, every_s=0.05)


_GOING_ON = ("Starting", "Waiting", "Running", "Stopping", "Gone")


def choose(box: Any, text: str) -> None:
    """Choose an entry of a combo box, or of what holds one, with the arrow keys."""
    combo = box if isinstance(box, QtWidgets.QComboBox) else box.findChild(QtWidgets.QComboBox)
    _check_usable(combo)
    QtTest.QTest.keyClick(combo, QtCore.Qt.Key.Key_Home)
    for _ in range(QtWidgets.QComboBox.count(combo)):
        if str(combo.currentText).startswith(text):
            break
        QtTest.QTest.keyClick(combo, QtCore.Qt.Key.Key_Down)
    assert str(combo.currentText).startswith(text), f"{box.objectName}: has no {text}"


def enter(field: Any, *lines: str) -> None:
    """Type into a field in place of what stands there."""
    _check_usable(field)
    QtTest.QTest.keyClick(field, QtCore.Qt.Key.Key_A, _CONTROL)
    for number, line in enumerate(lines):
        if number:
            QtTest.QTest.keyClick(field, QtCore.Qt.Key.Key_Return)
        QtTest.QTest.keyClicks(field, line)
    QtTest.QTest.keyClick(field, QtCore.Qt.Key.Key_Tab)


def _check_usable(widget: Any) -> None:
    assert widget.isVisible(), f"{widget}: hidden"
    assert widget.isEnabled(), f"{widget}: disabled"


def _click_item(tree: Any, item: Any) -> None:
    where = tree.visualItemRect(item).topLeft() + QtCore.QPoint(20, 5)
    QtTest.QTest.mouseClick(tree.viewport(), QtCore.Qt.MouseButton.LeftButton, _PLAIN, where)


def _written(
    folder: Path,
    *,
    seed: int,
    size: Index3 = _SIZE,
    spacing_mm: Vec3 = _SPACING_MM,
    turn_deg: Vec3 = (0.0, 0.0, 0.0),
) -> Phantom:
    ct, labels = make_phantom(
        seed, size=size, spacing_mm=spacing_mm, turn_deg=turn_deg, phase="portal"
    )
    files = write_series(folder, ct, Series(patient=f"PHANTOM_{seed}"))
    return Phantom(files=tuple(files), voxels=ct.voxels, labels=labels.voxels)
