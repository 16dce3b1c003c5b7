"""The choices of a fine-tuning run: where it starts, how it is judged, how long it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from SSLPretrainLogic.commands import FinetuneRequest
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import surely
from SSLPretrainLogic.probes import BEST, ENCODER, best_encoder
from SSLPretrainLogic.project import find_runs
from SSLPretrainLogic.run_folder import RunStatus, read_config, read_status
from SSLSegmentationLib.catalogue import Catalogue, as_preset_says
from SSLSegmentationLib.session import Session
from SSLSegmentationLib.signals import Signal

FILE, NOTHING = "file", "nothing"
"""Values of the combo of starts that are no run."""

SPLIT, FOLDS, NONE = range(3)
"""Rows of the combo of validations."""

PRESET, STEPS, EPOCHS = range(3)
"""Rows of the combo of lengths."""

_STATES = {
    "done": _("done"),
    "cancelled": _("stopped"),
    "interrupted": _("interrupted"),
    "failed": _("failed"),
}


class FinetuneChoices:
    """The lower half of the panel, without the labels.

    Attributes:
        changed: emitted without values when anything is chosen.
    """

    def __init__(self, ui: Any, *, session: Session, catalogue: Catalogue) -> None:
        self.changed = Signal()
        self._ui = ui
        self._session = session
        self._catalogue = catalogue
        self._is_start_chosen = False
        self._connect()
        self.refresh_methods()
        self.refresh_devices()
        self.refresh_runs()

    def _connect(self) -> None:
        ui = self._ui
        for combo in (
            ui.finetuneStart,
            ui.finetuneMethod,
            ui.finetunePreset,
            ui.finetuneValidation,
            ui.finetuneLength,
            ui.finetuneDevice,
        ):
            combo.connect("currentIndexChanged(int)", self._on_changed)
        for spin in (ui.finetuneShare, ui.finetuneFolds):
            spin.connect("valueChanged(int)", self._on_changed)
        # The second also where what is proposed is chosen, and so is to stay.
        for signal in ("currentIndexChanged(int)", "activated(int)"):
            ui.finetuneStart.connect(signal, self._on_start_chosen)
        ui.finetuneMethod.connect("currentIndexChanged(int)", self._show_presets)
        ui.finetuneWeights.connect("currentPathChanged(QString)", self._on_changed)
        ui.finetuneOverrides.connect("textChanged()", self._on_changed)

    # What there is to choose

    def refresh_runs(self) -> None:
        """List the pretraining runs that one can start from, the newest first.

        Until the user chooses, the newest one that is done is proposed.
        """
        project = self._session.project
        runs = [run for run in find_runs(project) if _can_start(run)] if project else []
        starts = [start for run in runs for start in _starts(run)]
        texts = [*(text for text, _value in starts), _("A weights file")]
        texts.append(_("Nothing: random weights"))
        values = [*(value for _text, value in starts), FILE, NOTHING]
        self._is_start_chosen = self._is_start_chosen and self.start in values
        best = next((run for run in runs if run.state == "done"), runs[0] if runs else None)
        proposed = str(best.folder) if best else NOTHING
        kept = self.start if self._is_start_chosen else proposed
        _fill(self._ui.finetuneStart, texts, values, kept=kept)
        self._on_changed()

    def refresh_methods(self) -> None:
        """List the methods, when they are known."""
        methods = self._catalogue.methods
        names = [method.name for method in methods]
        _fill(self._ui.finetuneMethod, names, names, kept=_chosen(self._ui.finetuneMethod))
        for row, method in enumerate(methods):
            self._ui.finetuneMethod.setItemData(row, method.clinician, qt.Qt.ToolTipRole)
        self._show_presets()
        self._on_changed()

    def refresh_devices(self) -> None:
        """List the devices of the chosen Python."""
        report = self._session.report
        names = list(report.device_names if report else ("auto",))
        texts = [_("auto (a GPU where there is one)") if n == "auto" else n for n in names]
        _fill(self._ui.finetuneDevice, texts, names, kept=self._session.device)
        self._on_changed()

    # What is chosen

    @property
    def start(self) -> str:
        """Folder of the chosen run, the best weights of one, `FILE` or `NOTHING`."""
        return _chosen(self._ui.finetuneStart)

    @property
    def name(self) -> str:
        """Of the run to come."""
        return str(self._ui.finetuneName.text).strip() or str(self._ui.finetuneName.placeholderText)

    def problem(self, cases: int | None) -> str:
        """Why one cannot begin so, "" if one can.

        Args:
            cases: how many there are, None if that is not known.
        """
        ui = self._ui
        weights = str(ui.finetuneWeights.currentPath)
        if self.start == FILE and not surely(Path(weights).is_file):
            told = _("{path}: there is no such file. Choose the weights to start from.")
            return told.format(path=weights) if weights else _("Choose the weights to start from.")
        if self.start == NOTHING and not _chosen(ui.finetunePreset):
            return self._catalogue.problem or _("The methods are being listed…")
        if ui.finetuneValidation.currentIndex == FOLDS and (cases or folds_of(ui)) < folds_of(ui):
            told = _("{folds} folds need as many cases, and there are {cases}: choose fewer.")
            return told.format(folds=folds_of(ui), cases=cases)
        wrong = next((line for line in self._overrides() if not _is_setting(line)), None)
        if wrong is not None:
            return _("“{line}” is no setting: write key=value.").format(line=wrong)
        return ""

    def request(self, *, data: Path, output: Path) -> FinetuneRequest:
        """The command.

        Args:
            data: the labelled set.
            output: the run folder.

        Raises:
            LogicError: if something does not fit.
        """
        problem = self.problem(None)
        if problem:
            raise LogicError(problem)
        ui = self._ui
        new = self.start == NOTHING
        length = {PRESET: None, STEPS: ui.finetuneSteps.value, EPOCHS: ui.finetuneEpochs.value}
        row = ui.finetuneLength.currentIndex
        return FinetuneRequest(
            output=output,
            data=data,
            init=self._init(),
            method=_chosen(ui.finetuneMethod) if new else None,
            preset=_chosen(ui.finetunePreset) if new else None,
            freeze_encoder=bool(ui.finetuneFreeze.checked) and not new,
            folds=folds_of(ui) if ui.finetuneValidation.currentIndex == FOLDS else None,
            max_steps=length[STEPS] if row == STEPS else None,
            epochs=length[EPOCHS] if row == EPOCHS else None,
            device=_chosen(ui.finetuneDevice) or "auto",
            overrides=tuple(self._settings()),
        )

    def split_told(self, cases: int | None) -> str:
        """How the cases are used, in a sentence; "" where that is not known."""
        if cases is None or not cases:
            return ""
        kind = self._ui.finetuneValidation.currentIndex
        if kind == FOLDS:
            told = _("{folds} runs, one after the other; each case validates once.")
            return told.format(folds=folds_of(self._ui))
        if cases == 1 and kind == SPLIT:
            return _(
                "One case only: none is left to validate, so Dice is not measured and the last "
                "model is kept."
            )
        held = held_out(cases, self._ui.finetuneShare.value) if kind == SPLIT else 0
        if not held:
            return _("All cases are learnt from; Dice is not measured, the last model is kept.")
        told = _("{training} to learn from, {held} to validate and to choose the best model.")
        return told.format(training=cases - held, held=held)

    def _init(self) -> Path | str:
        if self.start == NOTHING:
            return "none"
        return Path(str(self._ui.finetuneWeights.currentPath) if self.start == FILE else self.start)

    def _settings(self) -> list[str]:
        ui = self._ui
        found = []
        if ui.finetuneValidation.currentIndex != FOLDS:
            share = ui.finetuneShare.value / 100
            none = ui.finetuneValidation.currentIndex == NONE
            found.append(f"validation_fraction={0 if none else share:g}")
        found.append(f"train.seed={ui.finetuneSeed.value}")
        if ui.finetuneBatch.value:
            found.append(f"train.batch_size={ui.finetuneBatch.value}")
        return [*found, *self._overrides()]

    def _overrides(self) -> list[str]:
        lines = str(self._ui.finetuneOverrides.plainText).splitlines()
        return [line.strip() for line in lines if line.strip()]

    def _on_start_chosen(self) -> None:
        self._is_start_chosen = True

    # What is shown

    def _on_changed(self) -> None:
        ui = self._ui
        new, kind, length = (
            self.start == NOTHING,
            ui.finetuneValidation.currentIndex,
            ui.finetuneLength.currentIndex,
        )
        told = "" if self.start in (FILE, NOTHING, "") else _start_told(self.start)
        ui.finetuneStartText.text = told
        shown = {
            ui.finetuneWeights: self.start == FILE,
            ui.finetuneWeightsLabel: self.start == FILE,
            ui.finetuneMethod: new,
            ui.finetuneMethodLabel: new,
            ui.finetunePreset: new,
            ui.finetunePresetLabel: new,
            ui.finetuneMethodText: new and bool(ui.finetuneMethodText.text),
            ui.finetuneStartText: bool(told),
            ui.finetuneFreeze: not new,
            ui.finetuneShare: kind == SPLIT,
            ui.finetuneFolds: kind == FOLDS,
            ui.finetuneSteps: length == STEPS,
            ui.finetuneEpochs: length == EPOCHS,
        }
        for widget, visible in shown.items():
            widget.visible = visible
        name, preset = self._method_and_preset()
        method = self._catalogue.find(name)
        length = method.length_told("finetune", preset) if method else ""
        ui.finetuneLength.setItemText(PRESET, as_preset_says(length))
        self.changed.emit()

    def _method_and_preset(self) -> tuple[str, str]:
        """What the run takes its settings from; "" where only the weights know it."""
        if self.start == NOTHING:
            return _chosen(self._ui.finetuneMethod), _chosen(self._ui.finetunePreset)
        if self.start in (FILE, ""):
            return "", ""
        config = read_config(_run_of(self.start)).get("config")
        if not isinstance(config, dict) or not isinstance(config.get("method"), dict):
            return "", ""
        return str(config["method"].get("name")), str(config.get("preset"))

    def _show_presets(self) -> None:
        method = self._catalogue.find(_chosen(self._ui.finetuneMethod))
        presets = list(method.presets) if method else []
        kept = _chosen(self._ui.finetunePreset)
        _fill(self._ui.finetunePreset, presets, presets, kept=kept)
        self._ui.finetuneMethodText.text = method.clinician if method else ""


def held_out(cases: int, percent: int) -> int:
    """How many cases validate, as the backend divides them."""
    return min(max(round(percent / 100 * cases), 1), cases - 1) if cases > 1 and percent else 0


def folds_of(ui: Any) -> int:
    """How many parts of a cross-validation are asked for."""
    return int(ui.finetuneFolds.value)


def _can_start(run: RunStatus) -> bool:
    weights = run.folder / ENCODER
    return run.kind == "pretrain" and run.state in _STATES and weights.is_file()


def _starts(run: RunStatus) -> list[tuple[str, str]]:
    """Texts and values for the encoders of a run: the last, and the best where that is another."""
    name, best = run.folder.name, best_encoder(run)
    starts = [(f"{name} ({_STATES[run.state]})", str(run.folder))]
    if best is not None and not best.is_last:
        text = _("{name}, best in the probe (step {step:,})").format(name=name, step=best.step)
        starts.append((text, str(best.path)))
    return starts


def _run_of(start: str) -> Path:
    """The run folder, also where weights in it are chosen."""
    path = Path(start)
    return path.parent.parent if path.parts[-2:] == BEST.parts else path


def _start_told(start: str) -> str:
    """Which encoder of a run is taken, in a sentence."""
    best = best_encoder(read_status(_run_of(start)))
    if best is None:
        return _("Its last encoder is taken.")
    if best.is_last:
        return _("Its last encoder is taken, which also did best in the probe.")
    if start == str(best.path):
        told = _("Its encoder of step {step:,} is taken, which did best in the probe: {score:.3f}.")
    else:
        told = _(
            "Its last encoder is taken; in the probe that of step {step:,} did best: {score:.3f}."
        )
    return told.format(step=best.step, score=best.score)


def _is_setting(line: str) -> bool:
    key, equals, value = line.partition("=")
    return bool(key.strip() and equals and value.strip()) and not line.startswith("-")


def _chosen(combo: Any) -> str:
    return str(combo.itemData(combo.currentIndex) or "")


def _fill(combo: Any, texts: list[str], values: list[str], *, kept: str) -> None:
    """Fill a combo; it keeps a value where that is still there, else it takes the first."""
    combo.blockSignals(True)
    combo.clear()
    for text, value in zip(texts, values, strict=True):
        combo.addItem(text, value)
    combo.currentIndex = values.index(kept) if kept in values else min(0, len(values) - 1)
    combo.blockSignals(False)
