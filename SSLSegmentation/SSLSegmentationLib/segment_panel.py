"""The panel Segment: a model labels volumes of the scene, or whole folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.models import Model, coarseness
from SSLPretrainLogic.tasks import Bar, Task
from SSLSegmentationLib.batch import Batch
from SSLSegmentationLib.check_list import CheckList, Entry
from SSLSegmentationLib.job_monitor import Watched
from SSLSegmentationLib.panel import Panel, deliberate, guarded
from SSLSegmentationLib.result_table import ResultTable
from SSLSegmentationLib.segmenter import Choice, Outcome, Segmenter

_AIR_HU = -200
_COARSE = 2.0
_MINUTE_S = 60


class SegmentPanel(Panel):
    """Chooses volume, model and output, and shows what came of it."""

    UI = "Segment.ui"

    def setup(self) -> None:
        """Connect the widgets."""
        self._parameters: Any = None
        self._gui_tag: int | None = None
        self._models: tuple[Model, ...] = ()
        self._structures = CheckList(self.ui.segmentStructuresList)
        self._table = ResultTable(self.ui.segmentResultTable)
        self.segmenter = Segmenter(self.session, self.monitor)
        self._batch = Batch(self.ui, session=self.session, changed=self._update)
        for name, slot in {
            "segmentApplyButton": self.on_apply,
            "segmentBatchButton": self.on_batch,
            "segmentModelButton": self.on_model_file,
            "segmentAllButton": self.on_all,
            "segmentNoneButton": self.on_none,
            "segmentLoadButton": self.on_load,
            "segmentDiscardButton": self.on_discard,
            "segmentCopyButton": self.on_copy,
            "segmentCsvButton": self.on_csv,
            "segmentTableButton": self.on_table,
        }.items():
            getattr(self.ui, name).connect("clicked()", slot)
        node_changed = "currentNodeChanged(vtkMRMLNode*)"
        self.ui.segmentVolumeSelector.connect(node_changed, self._update)
        self.ui.segmentOutputSelector.connect(node_changed, self._update)
        self.ui.segmentModelCombo.connect("currentIndexChanged(int)", self.on_model)
        self.ui.segmentStructuresList.connect("itemChanged(QListWidgetItem*)", self._update)
        self.ui.segmentDeviceCombo.connect("activated(int)", self.on_device)
        self.ui.segmentBatchSection.connect("contentsCollapsed(bool)", self._update)
        self.session.project_changed.connect(self.refresh_models)
        self.session.model_changed.connect(self.refresh_models)
        self.session.environment_changed.connect(self._show_devices)
        self.monitor.ended.connect(self._on_ended)
        self.segmenter.changed.connect(self._update)
        self.segmenter.finished.connect(self._on_finished)
        self.refresh_models()
        self._show_devices()

    def use_parameters(self, parameters: Any) -> None:
        """Tie the widgets to the parameter node of the scene."""
        if self._parameters is not None and self._gui_tag is not None:
            self._parameters.disconnectGui(self._gui_tag)
        self._parameters = parameters
        self._gui_tag = parameters.connectGui(self.widget) if parameters is not None else None
        self._update()

    def cleanup(self) -> None:
        """Let go; what is being computed goes on."""
        self.session.project_changed.disconnect(self.refresh_models)
        self.session.model_changed.disconnect(self.refresh_models)
        self.session.environment_changed.disconnect(self._show_devices)
        self.monitor.ended.disconnect(self._on_ended)
        self._batch.cleanup()
        self.segmenter.cleanup()

    # The model

    @property
    def model(self) -> Model | None:
        """The chosen model, None if there is none."""
        row = int(self.ui.segmentModelCombo.currentIndex)
        return self._models[row] if 0 <= row < len(self._models) else None

    @guarded
    def refresh_models(self) -> None:
        """List the models of the project anew, and the file that was chosen."""
        found = self.session.models()
        self._show_models(found.models, wanted=self.session.model)
        if found.damaged:
            self.message.show("\n".join(found.damaged.values()), "warning")

    @guarded
    def on_model_file(self) -> None:
        """Ask for a model's file."""
        start = self.session.model_file or str(Path.home())
        title, kinds = _("Choose a model"), _("Models (*.safetensors)")
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, start, kinds)
        if not path:
            return
        self.session.use_model_file(Path(str(path)))
        self.session.use_model(Path(self.session.model_file))

    @guarded
    def on_model(self) -> None:
        """Another model is chosen."""
        if self.model is not None:
            self.session.remember("model", str(self.model.path))
        self._show_structures()
        self._update()

    def _show_models(self, models: tuple[Model, ...], *, wanted: str) -> None:
        combo = self.ui.segmentModelCombo
        self._models = models
        combo.blockSignals(True)
        combo.clear()
        for model in models:
            combo.addItem(model.name)
            combo.setItemData(combo.count - 1, str(model.path), qt.Qt.ToolTipRole)
        if not models:
            combo.addItem(_("No model yet"))
        paths = [str(model.path) for model in models]
        combo.currentIndex = paths.index(wanted) if wanted in paths else 0
        combo.enabled = bool(models)
        combo.blockSignals(False)
        self._show_structures()
        self._update()

    def _show_structures(self) -> None:
        structures = self.model.structures if self.model else ()
        entries = [Entry(key=s.name, text=s.name, color=s.color) for s in structures]
        self._structures.show(entries, chosen=[entry.key for entry in entries])

    @guarded
    def on_all(self) -> None:
        """Choose all structures."""
        self._structures.choose(self._structures.keys)

    @guarded
    def on_none(self) -> None:
        """Choose no structure."""
        self._structures.choose(())

    # The device

    @guarded
    def on_device(self) -> None:
        """Another device is chosen."""
        self.session.remember("segmentDevice", str(self.ui.segmentDeviceCombo.currentText))

    def _show_devices(self) -> None:
        combo = self.ui.segmentDeviceCombo
        report = self.session.report
        names = list(report.device_names if report else ("auto",))
        wanted = self.session.setting("segmentDevice", self.session.device)
        combo.clear()
        combo.addItems(names)
        combo.currentIndex = names.index(wanted) if wanted in names else 0
        self._update()

    # Start and end

    @deliberate
    def on_apply(self) -> None:
        """Segment the chosen volume, or cancel what goes on."""
        if self.segmenter.is_busy:
            self.segmenter.cancel()
            return
        volume = self.ui.segmentVolumeSelector.currentNode()
        output = self.ui.segmentOutputSelector.currentNode()
        show_3d = bool(self.ui.segmentShow3DBox.checked)
        self.segmenter.segment_volumes(self._choice(), [volume], output=output, show_3d=show_3d)

    @deliberate
    def on_batch(self) -> None:
        """Segment many scans, or cancel what goes on."""
        if self.segmenter.is_busy:
            self.segmenter.cancel()
            return
        show_3d = bool(self.ui.segmentShow3DBox.checked)
        self._batch.start(self.segmenter, self._choice(), show_3d=show_3d)

    @guarded
    def on_load(self) -> None:
        """Load the newest result that waits."""
        show_3d = bool(self.ui.segmentShow3DBox.checked)
        self.segmenter.load(self.segmenter.waiting[0], show_3d=show_3d)

    @guarded
    def on_discard(self) -> None:
        """Delete the newest result that waits."""
        self.segmenter.discard(self.segmenter.waiting[0])

    def _choice(self) -> Choice:
        if self.model is None:
            raise LogicError(_("No model is chosen."), _("Fine-tune one, or choose a file."))
        chosen = self._structures.chosen
        every = chosen == self._structures.keys
        return Choice(
            model=self.model,
            structures=() if every else chosen,
            device=str(self.ui.segmentDeviceCombo.currentText) or "auto",
        )

    def _on_finished(self, outcome: Outcome) -> None:
        self.ui.segmentResultGroup.visible = bool(outcome.rows)
        self._table.show(outcome.rows)
        if outcome.notes:
            self.message.show("\n".join(outcome.notes), outcome.level)

    def _on_ended(self, watched: Watched) -> None:
        if watched.job.what == "finetune":
            self.refresh_models()

    # The result

    @guarded
    def on_copy(self) -> None:
        """Copy the table."""
        self._table.copy()
        self.message.show(_("Copied. Paste it into a spreadsheet."))

    @guarded
    def on_csv(self) -> None:
        """Ask for a name and save the table."""
        start = str(Path(self.session.setting("segmentCsv") or Path.home()) / "volumes.csv")
        title, kinds = _("Save the volumes"), _("CSV (*.csv)")
        path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, start, kinds)
        if path:
            file = Path(str(path))
            self._table.save(file)
            self.session.remember("segmentCsv", str(file.parent))
            self.message.show(_("Saved as {path}.").format(path=file))

    @guarded
    def on_table(self) -> None:
        """Keep the table in the scene."""
        node = self._table.to_scene()
        self.message.show(_("Kept as the table {name}.").format(name=node.GetName()))

    # How things stand

    def _update(self, *_values: Any) -> None:
        """Show how things stand; called at every change."""
        if not hasattr(self, "_batch"):
            return
        self._show_notes()
        self._show_buttons()
        self._show_progress()
        self._show_waiting()

    def _show_notes(self) -> None:
        volume, model = self.ui.segmentVolumeSelector.currentNode(), self.model
        _note(self.ui.segmentVolumeNote, _concerns(volume, model))
        nothing = _("Fine-tune a model under 4, or choose the file of one.")
        _note(self.ui.segmentModelNote, _told(model) if model else nothing)
        output = self.ui.segmentOutputSelector.currentNode()
        kept = _("Segments of the same names are replaced, all others stay.")
        _note(self.ui.segmentOutputNote, kept if output else "")
        count = _("{chosen} of {all}").format(
            chosen=len(self._structures.chosen), all=len(self._structures.keys)
        )
        self.ui.segmentStructuresCount.text = count if model else ""
        for name in ("List", "Count"):
            getattr(self.ui, f"segmentStructures{name}").enabled = model is not None
        for name in ("segmentAllButton", "segmentNoneButton"):
            getattr(self.ui, name).enabled = model is not None

    def _missing(self) -> str:
        """What both buttons need, as a sentence; "" if nothing is missing."""
        if self.session.project is None:
            return _("Open or make a project first, at the top.")
        if self.session.interpreter is None:
            return _("Choose a Python under Setup first.")
        if self.model is None:
            return _("Choose a model first.")
        return "" if self._structures.chosen else _("Choose at least one structure.")

    def _show_buttons(self) -> None:
        apply, batch = self.ui.segmentApplyButton, self.ui.segmentBatchButton
        busy, stopping = self.segmenter.is_busy, self.segmenter.stopping
        no_volume = self.ui.segmentVolumeSelector.currentNode() is None
        missing = self._missing()
        several = _("Segment {n} volumes").format(n=self._batch.count)
        start = several if self._batch.is_of_scene else _("Segment the folder")
        one = _("Choose a volume first.") if no_volume else ""
        waits = _("A segmentation goes on: wait for it, or cancel it.") if busy else ""
        # One button cancels: that of the batch, unless it is folded away.
        by_batch = self.segmenter.is_batch and not self.ui.segmentBatchSection.collapsed
        for button, text, lacks, is_busy in (
            (apply, _("Apply"), missing or one, busy and not by_batch),
            (batch, start, missing or self._batch.missing(), by_batch),
        ):
            button.text = _("Cancel") if is_busy else text
            button.enabled = not stopping if is_busy else not (waits or lacks)
            stop = _("Stop it; nothing is loaded")
            button.toolTip = stop if is_busy else waits or lacks or _("Start")

    def _show_progress(self) -> None:
        segmenter = self.segmenter
        self.ui.segmentProgressGroup.visible = segmenter.is_busy
        if not segmenter.is_busy:
            return
        # The table of what was segmented before would be taken for this one's.
        self.ui.segmentResultGroup.visible = False
        bar = segmenter.bar
        progress = self.ui.segmentProgressBar
        # A bar without an end moves by itself.
        progress.maximum = bar.total if bar else 0
        progress.value = bar.done if bar else 0
        text = _("Stopping…") if segmenter.stopping else _progress(bar)
        self.ui.segmentProgressLabel.text = text

    def _show_waiting(self) -> None:
        waiting = () if self.segmenter.is_busy else self.segmenter.waiting
        self.ui.segmentWaitingGroup.visible = bool(waiting)
        if waiting:
            self.ui.segmentWaitingLabel.text = _waits(waiting[0], more=len(waiting) - 1)


def _note(label: Any, text: str) -> None:
    label.text = text
    label.visible = bool(text)


def _told(model: Model) -> str:
    z, y, x = model.spacing_mm
    low, high = (f"{value:g}" for value in model.hu_window)
    parts = [
        _("{x:g} × {y:g} × {z:g} mm").format(x=x, y=y, z=z),
        _("{low} to {high} HU").format(low=low, high=high),
    ]
    if model.training is not None:
        parts.append(_("learned from {n} scans").format(n=model.training))
    if model.validation is not None:
        parts.append(_("checked on {n}").format(n=model.validation))
    if model.method:
        parts.append(model.method)
    return " · ".join(parts)


def _concerns(volume: Any, model: Model | None) -> str:
    """What speaks against a volume, in sentences; "" if nothing does."""
    if volume is None:
        return ""
    image = volume.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        return _("This volume holds no voxels.")
    found = []
    low, high = image.GetScalarRange()
    if image.GetNumberOfScalarComponents() != 1:
        found.append(_("This volume has colours: it is no CT."))
    elif low > _AIR_HU:
        told = _("Its values go from {low:g} to {high:g}, without air: is it a CT in HU?")
        found.append(told.format(low=low, high=high))
    times = coarseness(model, volume.GetSpacing()) if model is not None else 1.0
    if times == math.inf:
        found.append(_("Its axes do not span space: load the series again."))
    elif times > _COARSE:
        told = _(
            "Its voxels ({own} mm) differ {times:.1f}-fold from those the model learned on: look "
            "at the result with care."
        )
        own = " × ".join(f"{length:.3g}" for length in volume.GetSpacing())
        found.append(told.format(own=own, times=times))
    return " ".join(found)


def _progress(bar: Bar | None) -> str:
    if bar is None:
        return _("Loading the model…")
    text = _("{what}: {done} of {total}").format(what=bar.what, done=bar.done, total=bar.total)
    if bar.left_s is None or bar.done == bar.total:
        return text
    if bar.left_s < _MINUTE_S:
        return _("{text}, about {n} s left").format(text=text, n=bar.left_s)
    return _("{text}, about {n} min left").format(text=text, n=round(bar.left_s / _MINUTE_S))


def _waits(task: Task, *, more: int) -> str:
    when = task.started.replace("T", " ")[:16]
    what = _("A segmentation with {model}, started {when} UTC, is done.")
    text = what.format(model=task.model, when=when)
    return text + (_(" {n} more wait.").format(n=more) if more else "")
