"""The options of the effect "SSL model", and the one run that each of them can have going."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.models import FoundModels, Model
from SSLPretrainLogic.worker_client import Reply
from SSLSegmentationLib import session, worker
from SSLSegmentationLib.panel import Message, deliberate, guarded
from SSLSegmentationLib.session import Session
from SSLSegmentationLib.stepwise import Stepwise

if TYPE_CHECKING:
    from SSLPretrainLogic.scene.grids import Grid
    from SSLPretrainLogic.scene.structures import Structure
    from SSLPretrainLogic.scene.worker_scan import Region, Scan, Scans

UI = Path(__file__).resolve().parents[1] / "Resources" / "UI" / "Effect.ui"
DEFAULTS = {"Model": "", "Fill": "segment", "AddMissing": 0, "Where": "volume", "MarginMm": 20.0}
"""The parameters in the scene. Those of nodes and of single segments have no default."""

FILLS = ("segment", "all")
PLACES = ("volume", "roi", "around")
_ROI = "Roi"
_MM3_PER_ML = 1000


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was asked of the worker, and where its answer belongs.

    Attributes:
        segmentation: identifier of the node.
        volume: likewise.
        grid: of the scan in the world.
        resampled: why that is not the volume's own, "" if it is.
        region: the part of it that is labelled.
        structures: to be written.
        segments: identifiers of the segments that are there for them, by name of the structure.
        began: time of `time.monotonic`.
    """

    segmentation: str
    volume: str
    grid: Grid
    resampled: str
    region: Region
    structures: tuple[Structure, ...]
    segments: dict[str, str]
    began: float = field(default_factory=time.monotonic)


class _BeforePopup(qt.QObject):
    """Tells that a list is about to be opened or changed; installed on its widget.

    Args:
        told: is called then.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        qt.QObject.__init__(self)
        self._told = told

    def eventFilter(self, _watched: Any, event: Any) -> bool:
        """Qt asks whether an event ends here."""
        if event.type() in (qt.QEvent.MouseButtonPress, qt.QEvent.KeyPress, qt.QEvent.Wheel):
            self._told()
        return False


class EffectOptions:
    """What is chosen, the button, and what becomes of it.

    Choices are kept in the node of the Segment Editor, so that scenes and other editors have them;
    the path of a model never is.

    Args:
        effect: the `scriptedEffect`.

    Attributes:
        widget: to be put into the options frame.
    """

    def __init__(self, effect: Any) -> None:
        self.effect = effect
        self.session = Session()
        self.message = Message()
        self.widget = slicer.util.loadUI(str(UI))
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.widget.layout().addWidget(self.message.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self._found = FoundModels(models=(), damaged={})
        self._structures: tuple[Structure, ...] = ()
        self._worker: worker.Worker | None = None
        self._asked = ""
        self._run: Run | None = None
        self._scans: Scans | None = None
        self._steps = Stepwise(self._fail)
        self._before_popup = _BeforePopup(self._look_again)
        self._showing = False
        self._connect()

    def _connect(self) -> None:
        ui = self.ui
        chosen = "currentIndexChanged(int)"
        ui.effectModel.connect(chosen, self._on_model)
        ui.effectFile.connect("clicked()", self.on_file)
        ui.effectFill.connect(chosen, lambda index: self._keep("Fill", FILLS[index]))
        ui.effectStructure.connect(chosen, self._on_structure)
        ui.effectAddMissing.connect("toggled(bool)", lambda on: self._keep("AddMissing", int(on)))
        ui.effectWhere.connect(chosen, lambda index: self._keep("Where", PLACES[index]))
        ui.effectRoi.connect("currentNodeChanged(vtkMRMLNode*)", self._on_roi)
        ui.effectMargin.connect("valueChanged(double)", lambda mm: self._keep("MarginMm", mm))
        ui.effectApply.connect("clicked()", self.on_apply)
        ui.effectModel.installEventFilter(self._before_popup)
        session.chosen.connect(self.activate)
        # An editor may be deleted without being told so.
        self.widget.connect("destroyed()", self._on_destroyed)

    def _on_destroyed(self) -> None:
        session.chosen.disconnect(self.activate)
        self._give_up()

    # What the editor tells

    @guarded
    def activate(self) -> None:
        """The effect is chosen, or something else is in the module: look again what there is."""
        try:
            self.session.restore()
        finally:
            self._look_again()

    def cleanup(self) -> None:
        """The editor goes: the run is of no more use, the worker stays for others."""
        session.chosen.disconnect(self.activate)
        # The scene outlives the editor, and its ROIs go later.
        self.ui.effectRoi.disconnect("currentNodeChanged(vtkMRMLNode*)", self._on_roi)
        self.ui.effectModel.removeEventFilter(self._before_popup)
        self._forget_run()
        if self._scans is not None:
            self._scans.forget()

    @guarded
    def _look_again(self) -> None:
        """The models may be others than when they were listed."""
        before, self._found = self._found, self.session.models()
        if [model.name for model in before.models] != [model.name for model in self._models]:
            self._list_models()
        self.show()

    # What is chosen

    @property
    def _models(self) -> tuple[Model, ...]:
        return self._found.models

    def _node(self) -> Any:
        return self.effect.parameterSetNode()

    def _segmentation(self) -> Any:
        return self._node().GetSegmentationNode()

    def _selected(self) -> str:
        """Identifier of the selected segment, "" if there is none."""
        node, identifier = self._segmentation(), self._node().GetSelectedSegmentID() or ""
        there = node is not None and node.GetSegmentation().GetSegment(identifier) is not None
        return identifier if there else ""

    def _model(self) -> Model | None:
        """The model of the scene; the newest as long as none is chosen."""
        key = self.effect.parameter("Model")
        if not key:
            return self._models[0] if self._models else None
        return next((model for model in self._models if self._key(model) == key), None)

    def _key(self, model: Model) -> str:
        """Tells a model in a scene, which is given to others: a run's name or a hash, no path."""
        opened = self.session.project
        if opened is not None and model.path.is_relative_to(opened.runs):
            return f"run:{model.path.relative_to(opened.runs).as_posix()}"
        return f"file:{hashlib.sha256(str(model.path).encode()).hexdigest()[:16]}"

    def _structure(self) -> Structure | None:
        """What the selected segment is to hold: as chosen for it, else as its name or code says."""
        identifier = self._selected()
        if not identifier:
            return None
        chosen = self._parameter(f"Structure.{identifier}")
        for structure in self._structures:
            if structure.name == chosen:
                return structure
        return self._standing_for(identifier)

    def _standing_for(self, identifier: str) -> Structure | None:
        from SSLPretrainLogic.scene.terminology import matching

        segment = self._segmentation().GetSegmentation().GetSegment(identifier)
        return matching(segment.GetName(), segment.GetTerminology() or "", self._structures)

    def _parameter(self, name: str) -> str:
        return self.effect.parameter(name) if self.effect.parameterDefined(name) else ""

    def _targets(self) -> tuple[tuple[Structure, ...], dict[str, str]]:
        """Structures to write, and the segments that are there for them, by name."""
        if self.effect.parameter("Fill") == "segment":
            structure = self._structure()
            return (structure,), {structure.name: self._selected()} if structure else {}
        segments: dict[str, str] = {}
        for identifier in self._segmentation().GetSegmentation().GetSegmentIDs():
            if structure := self._standing_for(identifier):
                segments.setdefault(structure.name, identifier)
        adds = self.effect.integerParameter("AddMissing")
        wanted = tuple(s for s in self._structures if adds or s.name in segments)
        return wanted, segments

    def _obstacle(self) -> str:
        """Why there is nothing to apply, "" if there is."""
        node, model = self._node(), self._model()
        if node is None or node.GetSegmentationNode() is None:
            return _("Choose or make a segmentation above.")
        if node.GetSourceVolumeNode() is None:
            return _("Choose the source volume above.")
        if self.session.interpreter is None:
            return _("Choose a Python in the module SSL Segmentation, under Setup.")
        if model is None:
            return self._missing_model()
        return self._missing_segment() or self._missing_place()

    def _missing_model(self) -> str:
        if self.effect.parameter("Model"):
            return _("The model of this scene is not in the open project. Choose another.")
        if self._found.damaged:
            return next(iter(self._found.damaged.values()))
        if self.session.project is None:
            return _("Open a project in the module SSL Segmentation, or choose a model file.")
        return _("The project has no fine-tuned model yet. Make one, or choose a model file.")

    def _missing_segment(self) -> str:
        if self.effect.parameter("Fill") == "all":
            if not self._targets()[0]:
                return _("No segment is named like a structure of the model. Add the missing ones.")
            return ""
        if not self._selected():
            return _("Select a segment above, or add one.")
        return "" if self._structure() else _("Choose the structure that the segment is to hold.")

    def _missing_place(self) -> str:
        place = self.effect.parameter("Where")
        if place == "roi" and self.effect.nodeReference(_ROI) is None:
            return _("Choose a ROI. Draw one with the ROI button of the Markups toolbar.")
        if place == "around" and not self._selected():
            return _("Select the segment to go around.")
        return ""

    # What the user does

    def _keep(self, name: str, value: Any) -> None:
        if not self._showing and self._node() is not None:
            self.effect.setParameter(name, value)
            self.show()

    def _on_model(self, index: int) -> None:
        if index >= 0:
            self._keep("Model", self._key(self._models[index]))

    def _on_structure(self, index: int) -> None:
        if index >= 0:
            self._keep(f"Structure.{self._selected()}", self._structures[index].name)

    def _on_roi(self, node: Any) -> None:
        if not self._showing and self._node() is not None:
            self.effect.setNodeReference(_ROI, node)
            self.show()

    @guarded
    def on_file(self) -> None:
        """Ask for a model that lies anywhere."""
        start = self.session.model_file or self.session.setting("project")
        title, kinds = _("Choose the weights of a model"), _("Weights (*.safetensors)")
        asked = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, start, kinds)
        if not asked:
            return
        # All that list models look again.
        self.session.use_model_file(Path(str(asked)))
        self._keep("Model", self._key(self._models[-1]))

    @deliberate
    def on_apply(self) -> None:
        """Begin, or give up what was begun."""
        if self._is_running:
            self._forget_run()
            self.message.show(_("Cancelled. Nothing was changed."))
            self.show()
            return
        one = self.effect.parameter("Fill") == "segment"
        refused = slicer.qSlicerSegmentEditorAbstractEffect.NotConfirmed
        if one and self.effect.confirmCurrentSegmentVisible() == refused:
            return
        self._begin()

    def _begin(self) -> None:
        from SSLPretrainLogic.scene.volumes import world_grid
        from SSLPretrainLogic.scene.worker_scan import Scans

        volume, segmentation = self._node().GetSourceVolumeNode(), self._segmentation()
        if self._scans is None:
            self._scans = Scans(Path(slicer.app.temporaryPath))
        structures, segments = self._targets()
        grid, resampled = world_grid(volume)
        run = Run(
            segmentation=segmentation.GetID(),
            volume=volume.GetID(),
            grid=grid,
            resampled=resampled,
            region=self._region(grid),
            structures=structures,
            segments={s.name: segments[s.name] for s in structures if s.name in segments},
        )
        model = self._model()
        # A newer one does not take its place unasked.
        self.effect.setParameter("Model", self._key(model))
        self.ui.effectProgress.maximum = 0
        self._tell(_("Writing the volume…"))
        self._steps.start(self._scans.of(volume), partial(self._ask, run, model))
        self.show()

    @guarded
    def _ask(self, run: Run, model: Model, scan: Scan) -> None:
        self._tell("")
        try:
            self._worker = worker.shared(self.session)
            warm = self._worker.running
            self._asked = self._worker.ask(
                "segment",
                self._on_reply,
                model=str(model.path),
                array=scan.told,
                region=run.region.told,
                structures=[structure.name for structure in run.structures],
            )
            self._run = run
            self._tell(
                _("Starting…") if warm else _("Starting Python; only the first time is slow…")
            )
        finally:
            self.show()

    def _fail(self, error: LogicError) -> None:
        self._tell("")
        self.message.show_error(error)
        self.show()

    def _region(self, grid: Grid) -> Region:
        from SSLPretrainLogic.scene import worker_scan

        place = self.effect.parameter("Where")
        if place == "roi":
            return worker_scan.inside_roi(self.effect.nodeReference(_ROI), grid)
        if place == "around":
            return worker_scan.around_segment(
                self._segmentation(),
                self._selected(),
                grid,
                margin_mm=self.effect.doubleParameter("MarginMm"),
            )
        return worker_scan.whole(grid)

    # What the worker tells

    def _on_reply(self, reply: Reply) -> None:
        if reply["event"] == "progress":
            self._show_progress(reply)
        elif reply["event"] in ("result", "error"):
            self._end(reply)

    @guarded
    def _end(self, reply: Reply) -> None:
        run, self._run = self._run, None
        self._tell("")
        try:
            if reply["event"] == "error":
                raise LogicError(str(reply["message"]), str(reply.get("hint") or ""))
            empty = self.write(run, Path(reply["labels"]["file"]))
            self._tell(_told(reply, empty=empty, seconds=time.monotonic() - run.began))
            if run.resampled:
                why = _("The volume was resampled for the model: {reason}.")
                self.message.show(why.format(reason=run.resampled))
        finally:
            self.show()

    def write(self, run: Run, file: Path) -> tuple[str, ...]:
        """Write the labels of a file into the segmentation; answers what was not found."""
        import numpy as np

        from SSLPretrainLogic.scene import edits

        labels = np.load(file, allow_pickle=False)
        file.unlink(missing_ok=True)
        node = self._checked(run)
        grid = run.region.cropped(run.grid)
        codes = edits.in_editor(
            edits.coded(labels, run.structures, run.region.inside(grid)),
            grid,
            node,
            self.effect.referenceGeometryImage(),
        )
        self.effect.saveStateForUndo()
        source = self.effect.sourceVolumeImageData()
        plan = edits.planned(self._node(), codes, run.structures, run.segments, source=source)
        adds = slicer.qSlicerSegmentEditorAbstractEffect.ModificationModeAdd
        for edit in plan.edits:
            if edit.gain is not None:
                self.effect.modifySegmentByLabelmap(node, edit.segment, edit.gain, adds)
        for edit in plan.edits:
            if edit.loss is not None:
                edits.take(node, edit.segment, edit.loss)
            edits.mark_in_progress(node, edit.segment)
        return plan.empty

    def _checked(self, run: Run) -> Any:
        """The segmentation of a run, if its answer still belongs there.

        Raises:
            LogicError: if something has gone or was moved meanwhile.
        """
        from SSLPretrainLogic.scene.worker_scan import is_grid_of

        cure = _("Nothing was changed. Apply again.")
        volume = slicer.mrmlScene.GetNodeByID(run.volume)
        segmentation = slicer.mrmlScene.GetNodeByID(run.segmentation)
        editor = self._node()
        if volume is None or segmentation is None or editor is None:
            raise LogicError(_("The volume or the segmentation was removed meanwhile."), cure)
        if editor.GetSegmentationNode() is not segmentation:
            raise LogicError(_("The editor shows another segmentation meanwhile."), cure)
        if not is_grid_of(run.grid, volume):
            what = _("Volume {name!r} was moved or changed meanwhile.")
            raise LogicError(what.format(name=volume.GetName()), cure)
        held = segmentation.GetSegmentation()
        if gone := [n for n, i in run.segments.items() if held.GetSegment(i) is None]:
            what = _("The segment of {name!r} was removed meanwhile.")
            raise LogicError(what.format(name=gone[0]), cure)
        return segmentation

    @property
    def _is_running(self) -> bool:
        return self._run is not None or self._steps.is_busy

    def _forget_run(self) -> None:
        self._give_up()
        self._tell("")

    def _give_up(self) -> None:
        self._steps.stop()
        if self._run is not None and self._worker is not None:
            self._worker.drop(self._asked)
            self._run = None

    # What is shown

    def show(self) -> None:
        """Show what is chosen and what can be done."""
        if self._node() is None or self._showing:
            return
        self._showing = True
        try:
            self._show_choices()
            self._show_state()
        finally:
            self._showing = False

    def _list_models(self) -> None:
        before, self._showing = self._showing, True
        self.ui.effectModel.clear()
        for model in self._models:
            self.ui.effectModel.addItem(model.name)
        self._showing = before

    def _show_choices(self) -> None:
        ui, effect = self.ui, self.effect
        model = self._model()
        ui.effectModel.currentIndex = self._models.index(model) if model else -1
        self._list_structures(model.structures if model else ())
        fill, place = effect.parameter("Fill"), effect.parameter("Where")
        ui.effectFill.currentIndex = FILLS.index(fill) if fill in FILLS else 0
        ui.effectWhere.currentIndex = PLACES.index(place) if place in PLACES else 0
        ui.effectAddMissing.checked = bool(effect.integerParameter("AddMissing"))
        ui.effectMargin.value = effect.doubleParameter("MarginMm")
        ui.effectRoi.setCurrentNode(effect.nodeReference(_ROI))
        structure = self._structure() if self._segmentation() is not None else None
        ui.effectStructure.currentIndex = self._structures.index(structure) if structure else -1
        for widgets, wanted in (
            ((ui.effectStructureLabel, ui.effectStructure), fill == "segment"),
            ((ui.effectAddMissing,), fill == "all"),
            ((ui.effectRoiLabel, ui.effectRoi), place == "roi"),
            ((ui.effectMarginLabel, ui.effectMargin), place == "around"),
        ):
            for widget in widgets:
                widget.visible = wanted

    def _list_structures(self, structures: tuple[Structure, ...]) -> None:
        if structures != self._structures:
            self._structures = structures
            self.ui.effectStructure.clear()
            for structure in structures:
                self.ui.effectStructure.addItem(structure.name)

    def _show_state(self) -> None:
        ui, running = self.ui, self._is_running
        obstacle = "" if running else self._obstacle()
        ui.effectApply.text = _("Cancel") if running else _("Apply")
        ui.effectApply.enabled = not obstacle
        ui.effectApply.toolTip = obstacle or (
            _("Give up; nothing is changed") if running else _("Let the model segment")
        )
        ui.effectProgress.visible = running
        ui.effectChoices.enabled = not running
        if not running:
            ui.effectHint.text = obstacle
            ui.effectHint.visible = bool(obstacle)
            ui.effectStatus.visible = bool(ui.effectStatus.text) and not obstacle

    def _tell(self, text: str) -> None:
        self.ui.effectHint.visible = False
        self.ui.effectStatus.text = text
        self.ui.effectStatus.visible = bool(text)

    def _show_progress(self, reply: Reply) -> None:
        bar, done = self.ui.effectProgress, reply.get("done")
        # A bar from 0 to 0 moves to and fro.
        bar.maximum = reply["total"] if done is not None else 0
        bar.value = done or 0
        self._tell(_phase_text(reply))


def _phase_text(reply: Reply) -> str:
    left = reply.get("seconds_left")
    if left is not None:
        return _("Segmenting, about {seconds:.0f} s left…").format(seconds=max(1.0, left))
    texts = {
        "read": _("Reading the volume…"),
        "load": _("Loading the model…"),
        "prepare": _("Preparing the volume…"),
        "network": _("Segmenting…"),
        "write": _("Writing…"),
    }
    return texts.get(reply["phase"], _("Working…"))


def _told(reply: Reply, *, empty: tuple[str, ...], seconds: float) -> str:
    """What was found, for people."""
    found = [
        _("{name} {ml:.1f} ml").format(name=s["name"], ml=s["volume_mm3"] / _MM3_PER_ML)
        for s in reply["structures"]
        if s["voxels"]
    ]
    parts = [_("Found in {seconds:.1f} s:").format(seconds=seconds), ", ".join(found) + "."]
    if not found:
        parts = []
    if empty:
        parts.append(_("Nothing found of: {names}.").format(names=", ".join(empty)))
    return " ".join(parts)
