"""The panel Fine-tune: from a few labelled scans to a model that segments."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import read_json, surely
from SSLPretrainLogic.jobs import Job
from SSLPretrainLogic.project import find_runs, free_name, new_run_folder, to_text
from SSLPretrainLogic.run_folder import Update, find_checkpoints, read_config
from SSLSegmentationLib.dice_view import MEAN, DiceView
from SSLSegmentationLib.finetune_choices import FinetuneChoices
from SSLSegmentationLib.labelled_cases import CaseList
from SSLSegmentationLib.panel import Message, Panel, bring_into_view, deliberate, guarded
from SSLSegmentationLib.run_view import RunView
from SSLSegmentationLib.structure_table_view import StructureTableView, by_volume

if TYPE_CHECKING:
    from SSLPretrainLogic.scene.structures import Color, Structure
    from SSLSegmentationLib.job_monitor import Following, Watched

_FOLDER = "labelledFolder"
_FOLDS = "cross_validation.json"
_MODELS = ("best.safetensors", "model.safetensors")
"""The best one in validation, else the last one."""


class FinetunePanel(Panel):
    """Labels, their structures, the choices of a run, and the run itself."""

    UI = "Finetune.ui"

    def setup(self) -> None:
        """Make the parts and connect them."""
        ui = self.ui
        self._run: Path | None = None
        self._following: Following | None = None
        self._problem = ""
        self.structures = StructureTableView(ui.finetuneStructures)
        self.cases = CaseList(ui.finetuneCases)
        self.choices = FinetuneChoices(ui, session=self.session, catalogue=self.catalogue)
        self.dice = DiceView(ui.finetuneDice)
        self.run_view = RunView(self.folder, session=self.session, monitor=self.monitor)
        ui.finetuneRunLayout.insertWidget(0, self.run_view.widget)
        self.used = Message()
        ui.finetuneRunLayout.addWidget(self.used.widget)
        # Below the run a sentence on the start would not be seen.
        self.widget.layout().removeWidget(self.message.widget)
        place = self.widget.layout().indexOf(ui.finetuneNewSection)
        self.widget.layout().insertWidget(place + 1, self.message.widget)
        ui.finetuneFolder.currentPath = self.session.setting(_FOLDER)
        self._connect()
        self._show_labels()
        self._show_newest()

    def _connect(self) -> None:
        ui = self.ui
        ui.finetuneFromScene.connect("toggled(bool)", self._show_labels)
        ui.finetuneFolder.connect("currentPathChanged(QString)", self._show_labels)
        ui.finetuneStructures.connect("itemChanged(QTableWidgetItem*)", self.on_renamed)
        ui.finetuneStructures.connect("itemSelectionChanged()", self._show_ready)
        ui.finetuneMerge.connect("clicked()", self.on_merge)
        ui.finetuneLeaveOut.connect("clicked()", self.on_leave_out)
        ui.finetuneProposeAgain.connect("clicked()", self.on_propose_again)
        ui.finetuneStartButton.connect("clicked()", self.on_start)
        ui.finetuneUseModel.connect("clicked()", self.on_use_model)
        self.cases.changed.connect(self._show_labels)
        self.choices.changed.connect(self._show_ready)
        self.catalogue.changed.connect(self.choices.refresh_methods)
        self.session.project_changed.connect(self._on_project)
        self.session.environment_changed.connect(self.choices.refresh_devices)
        self.session.started.connect(self._on_started)
        self.monitor.ended.connect(self._on_ended)

    # Slots

    @guarded
    def on_renamed(self, item: Any) -> None:
        """A name was typed into the table."""
        try:
            self.structures.rename(item.row(), item.text())
        finally:
            self._show_ready()

    @guarded
    def on_merge(self) -> None:
        """Make the selected structures one."""
        self.structures.merge_selected()
        self._show_ready()

    @guarded
    def on_leave_out(self) -> None:
        """Do not learn the selected structures."""
        self.structures.leave_out_selected()
        self._show_ready()

    @guarded
    def on_propose_again(self) -> None:
        """Undo all changes of the table."""
        self.structures.propose_again()
        self._show_ready()

    @deliberate
    def on_start(self) -> None:
        """Write the labelled set if it comes from the scene, and start."""
        problem = self._why_not()
        if problem:
            raise LogicError(problem)
        project = self.session.needs_project()
        run = new_run_folder(project, self.choices.name)
        warnings: tuple[str, ...] = ()
        data = Path(str(self.ui.finetuneFolder.currentPath))
        if self._from_scene:
            data = free_name(project.labels, run.name)
            warnings = self._export(data)
        else:
            self.ui.finetuneFolder.addCurrentPathToHistory()
        request = self.choices.request(data=data, output=run)
        self.session.start(request, title=_("Fine-tune {name}").format(name=run.name))
        if warnings:
            self.message.show("\n".join(warnings), "warning")
        self.ui.finetuneNewSection.collapsed = True
        self.ui.finetuneRunSection.collapsed = False
        bring_into_view(self.ui.finetuneRunSection, self.run_view.ui.runStateLabel)

    @guarded
    def on_use_model(self) -> None:
        """Let the panel Segment take the model of this run."""
        model = self.model
        if model is None:
            raise LogicError(_("The model is gone."), _("Choose another run under Jobs."))
        self.session.use_model(model)
        self.used.show(_("Chosen. Go on with 5. Segment, which uses this model now."), "ok")
        self.session.go_on.emit("Segment")
        bring_into_view(self.ui.finetuneUseModel, self.used.widget)

    @property
    def model(self) -> Path | None:
        """The best model of the run that is shown, the last one where none was judged."""
        found = {} if self._following is None else find_checkpoints(self._following.run)
        return next((found[name].path for name in _MODELS if name in found), None)

    # The labelled set

    @property
    def _from_scene(self) -> bool:
        return bool(self.ui.finetuneFromScene.checked)

    def _export(self, folder: Path) -> tuple[str, ...]:
        """Write the cases of the scene; this alone touches voxels in Slicer's own process."""
        from SSLPretrainLogic.scene.segments import export_set

        cases, table = self.cases.cases(), self.structures.table
        volumes = self.cases.volumes()
        if table is None:
            raise LogicError(_("There are no structures."), _("Check a segmentation."))
        text = _("Writing {count} labelled scans into the project…")
        self.message.show(text.format(count=len(cases)))
        slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents)
        try:
            with slicer.util.WaitCursor():
                written = export_set(cases, table, folder)
            found = {name for counts in written.voxels.values() for name in counts if counts[name]}
            never = [s.name for s in table.structures if s.name not in found]
            if never:
                what = _("No case has a voxel of {names}: it cannot be learnt.")
                cure = _("Segment it, or leave it out of the structures.")
                raise LogicError(what.format(names=", ".join(never)), cure)
        except LogicError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise LogicError(by_volume(error.message, volumes), error.hint) from error
        finally:
            self.message.clear()
        return tuple(by_volume(text, volumes) for text in written.warnings)

    def _show_labels(self) -> None:
        """Show where labels come from, and which structures they have."""
        ui, scene = self.ui, self._from_scene
        ui.finetuneCases.visible = scene and not self.cases.is_empty
        ui.finetuneNoCases.visible = scene and self.cases.is_empty
        ui.finetuneFolder.visible = ui.finetuneFolderLabel.visible = not scene
        self._problem = ""
        try:
            self._propose() if scene else self._show_folder()
        except LogicError as error:
            self._problem = str(error)
        self._show_ready()

    def _propose(self) -> None:
        cases = self.cases.cases()
        if not cases:
            self.structures.propose((), {})
            return
        from SSLPretrainLogic.scene.segments import found_segments

        self.structures.propose(found_segments(cases), self.cases.volumes())

    def _show_folder(self) -> None:
        self.structures.show_known(())
        path = str(self.ui.finetuneFolder.currentPath)
        if not path:
            raise LogicError(_("Choose a labelled folder."))
        if not surely(Path(path).exists):
            raise LogicError(_("{path}: does not exist.").format(path=path))
        self.session.remember(_FOLDER, path)
        self.structures.show_known(known_structures(Path(path)))

    # Whether one can begin

    def _count(self) -> int | None:
        return len(self.cases.cases()) if self._from_scene else None

    def _why_not(self) -> str:
        """Why one cannot start now, "" if one can."""
        try:
            self.session.needs_project()
            self.session.needs_interpreter()
        except LogicError as error:
            return str(error)
        if self.monitor.active(what="finetune"):
            return _("A fine-tuning is running: wait, or stop it first.")
        labels = self.cases.problem() if self._from_scene else ""
        if labels or self._problem:
            return labels or self._problem
        if self._from_scene and not (self.structures.table and self.structures.table.structures):
            return _("No structure is left to learn.")
        return self.choices.problem(self._count())

    def _show_ready(self) -> None:
        """Enable what can be done now; the rest says why not."""
        ui, problem = self.ui, self._why_not()
        ui.finetuneStartButton.enabled = not problem
        ui.finetuneStartButton.toolTip = problem or _("Write the labels and start to learn")
        ui.finetuneReason.text = problem or self.choices.split_told(self._count())
        ui.finetuneReason.visible = bool(ui.finetuneReason.text)
        selected = len(self.structures.selected)
        several = _("Make the selected structures one; the first gives name, value and colour")
        _allow(ui.finetuneMerge, selected > 1, several, _("Select two or more rows to merge them"))
        out = _("Do not learn the selected structures")
        _allow(ui.finetuneLeaveOut, selected > 0, out, _("Select rows to leave them out"))
        again = _("Undo all merges, renames and omissions")
        _allow(ui.finetuneProposeAgain, self.structures.is_changed, again, _("Nothing is changed"))
        scene = self._from_scene
        ui.finetuneStructureButtons.visible = scene and self.structures.table is not None
        text = self._structures_told()
        ui.finetuneStructuresText.text = text
        ui.finetuneStructuresText.visible = bool(text)
        notes = self.structures.notes if scene else ()
        ui.finetuneNotes.text = "\n".join(notes)
        ui.finetuneNotes.visible = bool(notes)

    def _structures_told(self) -> str:
        """Where the structures come from, in a sentence; "" where that can be seen."""
        if self._from_scene:
            empty = self.structures.table is None or not self.structures.table.structures
            told = _("The structures of the checked segmentations are listed here.")
            return told if empty else ""
        if self._problem:
            return _("The structures of the labelled set are listed here.")
        if self.structures.is_empty:
            return _("There is no labels.json here: the set's own names are read at the start.")
        return _("Named in labels.json of the set: change them there.")

    # The run

    def _on_project(self) -> None:
        self.ui.finetuneNewSection.collapsed = self.monitor.active(what="finetune") is not None
        self.choices.refresh_runs()
        self._show_newest()
        self._show_ready()

    def _on_started(self, job: Job) -> None:
        if job.what == "finetune" and job.run is not None:
            self._show_run(job.run)
        self._show_ready()

    def _on_ended(self, watched: Watched) -> None:
        if watched.job.what in {"pretrain", "finetune"}:
            self.choices.refresh_runs()
        run = watched.job.run
        if watched.job.what == "finetune" and run == self._run and not (run and run.exists()):
            # What did not even begin is told beside the button that was to start it.
            self.ui.finetuneNewSection.collapsed = False
            self.message.show(watched.status.message, "error")

    def _show_newest(self) -> None:
        """Show the run that goes on, else the newest one, also of those copied into the project."""
        project = self.session.project
        found = [
            (watched.job.started, watched.job.run)
            for watched in self.monitor.jobs
            if watched.job.what == "finetune" and watched.job.run and watched.job.run.exists()
        ]
        runs = find_runs(project) if project else ()
        found += [(run.started, run.folder) for run in runs if run.kind == "finetune"]
        active = self.monitor.active(what="finetune")
        newest = max(found)[1] if found else None
        self._show_run(active.job.run if active else newest)

    def _show_run(self, run: Path | None) -> None:
        """Follow a run, or the newest fold of a cross-validation."""
        if self._following is not None:
            self._following.close()
            self._following = None
        self._run = run
        self.used.clear()
        title = _("Newest run: {name}").format(name=run.name) if run else _("Newest run")
        self.ui.finetuneRunSection.text = title.replace("&", "&&")
        part = None if run is None else part_of(run)
        self.run_view.show_run(part)
        self.dice.begin({} if part is None else colors_of(part))
        self._show_model(None)
        if part is not None:
            self._following = self.monitor.follow(part, self._on_update)

    def _on_update(self, update: Update) -> None:
        if self._run is not None and part_of(self._run) != update.status.folder:
            self._show_run(self._run)
            return
        if self.dice.is_empty and any(MEAN in record for record in update.records):
            self.dice.begin(colors_of(update.status.folder))
        self.dice.add(update)
        self._show_model(update)

    def _show_model(self, update: Update | None) -> None:
        ui = self.ui
        found = {} if update is None else update.checkpoints
        model = next((found[name].path for name in _MODELS if name in found), None)
        ui.finetuneModel.visible = ui.finetuneUseModel.visible = model is not None
        ui.finetuneDiceLabel.visible = not self.dice.is_empty
        project = self.session.project
        if update is None or model is None or project is None:
            return
        best = update.status.best or {}
        title = _("Last model; it was not validated")
        if model.name == _MODELS[0] and MEAN in best:
            title = _("Best model: mean Dice {dice:.2f}, step {step}")
            title = title.format(dice=best[MEAN], step=best["step"])
        where = to_text(project, model)
        # Paths have no blanks to break lines at.
        lines = [title, where.replace("/", "/\u200b"), *folds_told(self._run)]
        ui.finetuneModel.text = "\n".join(lines)
        ui.finetuneModel.toolTip = str(model)

    # The life of the panel

    def scene_closes(self) -> None:
        """Let go of all nodes."""
        self.structures.forget()
        self.cases.forget()

    def cleanup(self) -> None:
        """Let go of everything that outlives the panel; jobs go on."""
        self.cases.cleanup()
        self.run_view.cleanup()
        if self._following is not None:
            self._following.close()


def part_of(run: Path) -> Path:
    """The run folder to look at: of a cross-validation, that of its newest fold."""
    if (run / "status.json").exists():
        return run
    folds = [path.parent for path in run.glob("fold_*/status.json")]
    return max(folds, key=lambda fold: int(fold.name.removeprefix("fold_")), default=run)


def folds_told(run: Path | None) -> tuple[str, ...]:
    """What a cross-validation has found, in a sentence; () if it is none or not over yet."""
    if run is None or not (run / _FOLDS).is_file():
        return ()
    try:
        told = read_json(run / _FOLDS)
        mean, spread, folds = told["dice_mean"], told["dice_sd_over_folds"], len(told["folds"])
        if mean is None or spread is None:
            return ()
        text = _("All {folds} folds: mean Dice {mean:.2f}, standard deviation {spread:.2f}.")
        return (text.format(folds=folds, mean=mean, spread=spread),)
    except (LogicError, KeyError, TypeError, ValueError):
        return ()


def known_structures(folder: Path) -> tuple[Structure, ...]:
    """The structures that `labels.json` of a labelled set names, () where it has none.

    Raises:
        LogicError: if it is damaged.
    """
    from SSLPretrainLogic.scene.structures import read_labels

    beside = folder if surely(folder.is_dir) else folder.parent
    places = (beside / "labels.json", beside / "labels" / "labels.json")
    return next((read_labels(place) for place in places if surely(place.is_file)), ())


def colors_of(run: Path) -> dict[str, Color]:
    """Colours of the structures that a run learns, as far as its labelled set is there."""
    request = read_config(run).get("request")
    data = request.get("data") if isinstance(request, dict) else None
    try:
        found = known_structures(Path(data)) if isinstance(data, str) else ()
    except LogicError:
        return {}
    return {structure.name: structure.color for structure in found if structure.color}


def _allow(button: Any, allowed: bool, what: str, why_not: str) -> None:
    button.enabled = allowed
    button.toolTip = what if allowed else why_not
