"""The panel Pretrain: how to learn from unlabelled scans, what it costs, and how it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic import jobs
from SSLPretrainLogic.commands import PretrainRequest
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.jobs import Job
from SSLPretrainLogic.probes import ENCODER, best_encoder
from SSLPretrainLogic.project import find_runs, new_run_folder
from SSLPretrainLogic.run_folder import RunStatus, Update
from SSLSegmentationLib.catalogue import Method, as_preset_says
from SSLSegmentationLib.combo import fill_combo
from SSLSegmentationLib.job_monitor import Following, Watched
from SSLSegmentationLib.panel import Message, Panel, bring_into_view, deliberate, guarded
from SSLSegmentationLib.pretrain_estimate import LENGTHS, Estimate, Length, duration, parse, rows
from SSLSegmentationLib.probe_choice import ProbeChoice
from SSLSegmentationLib.run_view import RunView
from SSLSegmentationLib.settings_table import SettingsTable

_OUT_OF_RESOURCES = 4
"""Exit code of the backend when memory or disk did not suffice."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All that an estimate depends on: it holds for any length."""

    python: Path | None
    index_time: float
    method: str
    preset: str
    device: str
    init: Path | None
    probe_data: Path | None
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an estimate has told of a choice: numbers, or else why there are none."""

    choice: Choice
    estimate: Estimate | None
    problem: str


class PretrainPanel(Panel):
    """See the module."""

    UI = "Pretrain.ui"

    def setup(self) -> None:
        """Connect the widgets and show what there is."""
        ui = self.ui
        self._asked: tuple[Job, Choice] | None = None
        self._answer: Answer | None = None
        self._run: Path | None = None
        self._following: Following | None = None
        self._proposed = ""
        self.view = RunView(self.folder, session=self.session, monitor=self.monitor)
        ui.pretrainRunSection.layout().addWidget(self.view.widget)
        self.advice = Message()
        self.advice.widget.objectName = "pretrainAdvice"
        self.widget.layout().removeWidget(self.message.widget)
        for message in (self.message, self.advice):
            ui.pretrainNewSection.layout().addWidget(message.widget)
        self.settings = SettingsTable(
            {
                "train.seed": ui.pretrainSeed,
                "train.batch_size": ui.pretrainBatch,
                "data.workers": ui.pretrainWorkers,
                "train.precision": ui.pretrainPrecision,
                "train.checkpoint_every_steps": ui.pretrainCheckpoint,
            },
            further=ui.pretrainFurther,
            changed=self.refresh,
        )
        self.probe = ProbeChoice(ui, session=self.session, changed=self.refresh)
        ui.pretrainMethod.connect("currentIndexChanged(int)", self.on_method)
        for combo in (ui.pretrainPreset, ui.pretrainInit):
            combo.connect("currentIndexChanged(int)", self.refresh)
        ui.pretrainLength.connect("currentIndexChanged(int)", self.on_length)
        ui.pretrainLengthValue.connect("valueChanged(double)", self.refresh)
        ui.pretrainInitButton.connect("clicked()", self.on_choose_init)
        ui.pretrainEstimateButton.connect("clicked()", self.on_estimate)
        ui.pretrainStart.connect("clicked()", self.on_start)
        self.session.project_changed.connect(self.on_project)
        self.session.environment_changed.connect(self.on_methods)
        self.catalogue.changed.connect(self.on_methods)
        self.monitor.changed.connect(self.on_jobs)
        self.monitor.ended.connect(self.on_ended)
        self.on_methods()
        self.on_project()

    def cleanup(self) -> None:
        """Hear of nothing more; jobs go on."""
        self.session.project_changed.disconnect(self.on_project)
        self.session.environment_changed.disconnect(self.on_methods)
        self.catalogue.changed.disconnect(self.on_methods)
        self.monitor.changed.disconnect(self.on_jobs)
        self.monitor.ended.disconnect(self.on_ended)
        self._follow(None)
        self.view.cleanup()

    # What changes elsewhere

    def on_project(self) -> None:
        """Another project is open, or its scans are others."""
        self._asked = None
        self.message.clear()
        self.probe.recall()
        self.on_jobs()
        self.ui.pretrainNewSection.collapsed = self._running() is not None

    def on_methods(self) -> None:
        """Show the methods, once they are known; what was chosen stays so."""
        before = self._method_name()
        known = [(f"{m.name}: {m.paper}", m.name) for m in self.catalogue.methods]
        fill_combo(self.ui.pretrainMethod, known)
        if self._method_name() != before:
            self.on_method()
        self.refresh()

    def on_jobs(self) -> None:
        """A job has come or gone, or stands otherwise."""
        runs = _pretrainings(self.session)
        fill_combo(
            self.ui.pretrainInit, [(_("nothing: random weights"), ""), *_starts(runs)], keep=True
        )
        self.probe.refresh()
        running = self._running()
        newest = runs[0].folder if runs else None
        self._follow(running.job.run if running is not None else newest)
        self.refresh()

    def on_ended(self, watched: Watched) -> None:
        """A job has ended; perhaps it is the estimate."""
        if self._asked is None or watched.job.folder != self._asked[0].folder:
            return
        choice, self._asked = self._asked[1], None
        self._take(watched, choice)
        self.refresh()

    @guarded
    def _take(self, watched: Watched, choice: Choice) -> None:
        status = watched.status
        if status.state == "done":
            found = parse(jobs.read_answer(watched.job))
            self._answer = Answer(choice=choice, estimate=found, problem=found.problem)
            jobs.forget([watched.job])
        elif status.code == _OUT_OF_RESOURCES:
            self._answer = Answer(choice=choice, estimate=None, problem=status.message)
        elif status.state != "cancelled":
            raise LogicError(status.message or _("The estimate was interrupted."))

    # What is clicked

    def on_method(self) -> None:
        """Show what a method is, and its presets."""
        method = self._method()
        presets = method.presets if method else ()
        fill_combo(self.ui.pretrainPreset, [(name, name) for name in presets])
        wanted = self._first_preset(presets)
        if wanted:
            self.ui.pretrainPreset.currentIndex = self.ui.pretrainPreset.findData(wanted)
        self.refresh()

    def on_length(self) -> None:
        """Another measure of length: it begins with a value that is usual for it."""
        value = self.ui.pretrainLengthValue
        kind = LENGTHS[self.ui.pretrainLength.currentIndex]
        value.decimals = 1 if kind == "hours" else 0
        value.minimum = 0.1 if kind == "hours" else 1.0
        value.singleStep = {"hours": 0.5, "epochs": 10.0}.get(kind, 100.0)
        value.value = {"hours": 1.0, "epochs": 100.0}.get(kind, 1000.0)
        self.refresh()

    @guarded
    def on_choose_init(self) -> None:
        """Ask for a file of weights."""
        start = str(self.session.needs_project().runs)
        name = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(),
            _("Choose the weights to start from"),
            self.session.setting("pretrainInit", start),
            _("Weights (*.safetensors)"),
        )
        if not name:
            return
        path = Path(str(name))
        self.session.remember("pretrainInit", str(path.parent))
        combo = self.ui.pretrainInit
        if combo.findData(str(path)) < 0:
            combo.addItem(path.name, str(path))
        combo.currentIndex = combo.findData(str(path))

    @deliberate
    def on_estimate(self) -> None:
        """Measure what the run would cost, or cancel that."""
        if self._asked is not None:
            self.monitor.stop(job=self._asked[0])
        else:
            choice = self._choice()
            request = replace(self._request(choice), dry_run=True, json=True)
            title = _("Estimate {method} {preset}")
            title = title.format(method=choice.method, preset=choice.preset)
            self._asked = (self.session.start(request, title=title), choice)
        self.refresh()

    @deliberate
    def on_start(self) -> None:
        """Start a run and show it."""
        choice, length = self._choice(), self._length()
        name = str(self.ui.pretrainName.text).strip() or self._proposal()
        run = new_run_folder(self.session.needs_project(), name)
        steps: int | None = None
        if length.kind == "hours":
            steps = self._needs_estimate(choice).steps(length)
        elif length.kind == "steps":
            steps = int(length.value)
        request = replace(
            self._request(choice),
            output=run,
            max_steps=steps,
            epochs=int(length.value) if length.kind == "epochs" else None,
        )
        self.session.start(request, title=_("Pretrain {name}").format(name=run.name))
        self.ui.pretrainName.text = ""
        self.ui.pretrainNewSection.collapsed = True
        self.ui.pretrainRunSection.collapsed = False
        bring_into_view(self.ui.pretrainRunSection, self.view.ui.runStateLabel)
        self.refresh()

    # What is chosen

    def _method(self) -> Method | None:
        return self.catalogue.find(self._method_name())

    def _method_name(self) -> str:
        return str(self.ui.pretrainMethod.currentData or "")

    def _first_preset(self, presets: Sequence[str]) -> str:
        """The preset to begin with: a small one where there is no GPU."""
        report = self.session.report
        has_gpu = report is not None and any(n not in ("auto", "cpu") for n in report.device_names)
        if "tiny" in presets and not has_gpu:
            return "tiny"
        return presets[0] if presets else ""

    def _length(self) -> Length:
        kind = LENGTHS[self.ui.pretrainLength.currentIndex]
        return Length(kind=kind, value=self.ui.pretrainLengthValue.value)

    def _proposal(self) -> str:
        ui = self.ui
        return (
            f"{ui.pretrainMethod.currentData or ''} {ui.pretrainPreset.currentData or ''}".strip()
        )

    def _choice(self) -> Choice:
        """All that is chosen but the length.

        Raises:
            LogicError: if a setting is none, or what is to be probed is not there.
        """
        ui, session = self.ui, self.session
        index = session.project.index if session.project is not None else None
        init = str(ui.pretrainInit.currentData or "")
        return Choice(
            python=session.interpreter.path if session.interpreter is not None else None,
            index_time=_changed(index) if index is not None else 0.0,
            method=self._method_name(),
            preset=str(ui.pretrainPreset.currentData or ""),
            device=session.device,
            init=Path(init) if init else None,
            probe_data=self.probe.chosen(),
            overrides=self.settings.overrides(),
        )

    def _request(self, choice: Choice) -> PretrainRequest:
        return PretrainRequest(
            output=None,
            method=choice.method,
            preset=choice.preset,
            data=(self.session.needs_project().index,),
            device=choice.device,
            init=choice.init,
            probe_data=choice.probe_data,
            overrides=choice.overrides,
        )

    def _answer_for(self, choice: Choice) -> Answer | None:
        fits = self._answer is not None and self._answer.choice == choice
        return self._answer if fits else None

    def _needs_estimate(self, choice: Choice) -> Estimate:
        """The estimate that turns hours into steps.

        Raises:
            LogicError: if there is none for this choice, or the hours are too few.
        """
        answer = self._answer_for(choice)
        if answer is None or answer.estimate is None:
            raise LogicError(
                _("Hours are turned into steps by the measured time of a step."),
                _("Press Estimate first."),
            )
        estimate = answer.estimate
        if estimate.steps(self._length()) < 1:
            raise LogicError(
                _("Preparing the scans alone takes about {time}.").format(
                    time=duration(estimate.preparation_s)
                ),
                _("Give more hours."),
            )
        return estimate

    def _running(self) -> Watched | None:
        """The pretraining that goes on; an estimate has no run and is none."""
        found = (w for w in self.monitor.jobs if w.job.what == "pretrain" and w.job.run is not None)
        return next((w for w in found if w.status.is_active), None)

    # What is shown

    def refresh(self) -> None:
        """Show what follows from all that is chosen and known."""
        self._show_texts()
        needs = self._told(self._check_ready)
        hindered = needs or self._told(self._check_start)
        self._show_estimate(needs)
        self.ui.pretrainStart.enabled = not hindered
        self.ui.pretrainStart.toolTip = hindered or _(
            "Learn from all scans; Slicer may be closed meanwhile"
        )
        problem = self._problem()
        if hindered:
            self.advice.show(hindered, "info")
        elif problem:
            self.advice.show(problem, "warning")
        else:
            self.advice.clear()

    def _told(self, check: Any) -> str:
        """What a check complains of, "" if of nothing."""
        try:
            check()
        except LogicError as error:
            return str(error)
        return ""

    def _check_ready(self) -> None:
        """Complain of what is missing before anything can be measured."""
        project = self.session.needs_project()
        self.session.needs_interpreter()
        if self.session.report is None:
            raise LogicError(
                _("The chosen Python was not tested yet."), _("Test it under 1. Setup.")
            )
        if self.catalogue.problem:
            raise LogicError(self.catalogue.problem)
        if self._method() is None:
            raise LogicError(_("The methods are being listed; this takes some seconds."))
        if not project.index.exists():
            raise LogicError(_("There are no scans yet."), _("Add folders under 2. Data."))
        self._choice()

    def _check_start(self) -> None:
        """Complain of what stands against a start."""
        running = self._running()
        if running is not None:
            what = _("{title} goes on.").format(title=running.job.title)
            raise LogicError(what, _("Wait for it, or stop it below."))
        if self._length().kind == "hours":
            self._needs_estimate(self._choice())

    def _problem(self) -> str:
        """What the estimate of this very choice warns of."""
        try:
            answer = self._answer_for(self._choice())
        except LogicError:
            return ""
        return answer.problem if answer is not None else ""

    def _show_texts(self) -> None:
        ui, method, session = self.ui, self._method(), self.session
        told = _("{sentence}\nTrains: {network}.")
        _tell(
            ui.pretrainMethodText,
            told.format(sentence=method.clinician, network=method.backbone) if method else "",
        )
        preset = str(ui.pretrainPreset.currentData or "")
        _tell(ui.pretrainPresetText, _preset_words(preset) if preset else "")
        ui.pretrainDevice.text = _("{device} (chosen under 1. Setup)").format(
            device=_device_words(session)
        )
        length = method.length_told("pretrain", preset) if method else ""
        ui.pretrainLength.setItemText(0, as_preset_says(length))
        ui.pretrainLengthValue.visible = self._length().kind != "preset"
        proposal = self._proposal()
        if str(ui.pretrainName.text) in ("", self._proposed):
            ui.pretrainName.text = proposal
        self._proposed = proposal

    def _show_estimate(self, needs: str) -> None:
        """Button, bar and table of the estimate, and what the length comes to."""
        ui, asked = self.ui, self._asked
        stopping = asked is not None and self.monitor.is_stopping(asked[0].folder)
        button = ui.pretrainEstimateButton
        button.text = _("Estimate") if asked is None else _("Cancel estimate")
        button.enabled = not stopping and (asked is not None or not needs)
        button.toolTip = needs or _(
            "Measure a few real steps: time, memory and disk of the whole run. "
            "Nothing is left behind"
        )
        ui.pretrainEstimateBar.visible = asked is not None
        answer = None if needs else self._answer_for(self._choice())
        estimate = answer.estimate if answer is not None else None
        ui.pretrainEstimateFrame.visible = estimate is not None and asked is None
        _tell(ui.pretrainEstimateText, self._estimate_words(stopping=stopping, answer=answer))
        _tell(ui.pretrainLengthText, "" if needs else self._length_words(estimate))
        if estimate is not None and estimate.steps(self._length()) >= 1:
            for name, text in rows(estimate, self._length()).items():
                getattr(ui, f"pretrainEstimate{name}").text = text

    def _estimate_words(self, *, stopping: bool, answer: Answer | None) -> str:
        if stopping:
            return str(_("Stopping …"))
        if self._asked is not None:
            return str(_("Prepares a few scans and measures a few steps; usually about a minute."))
        if self._answer is not None and answer is None:
            return str(_("The last estimate was for other settings."))
        return ""

    def _length_words(self, estimate: Estimate | None) -> str:
        """What hours come to in steps, and steps and epochs in time."""
        length = self._length()
        if length.kind == "hours":
            if estimate is None:
                return str(_("Estimate tells how many steps that is."))
            text = _("About {steps:,} steps.").format(steps=max(estimate.steps(length), 0))
            return str(text)
        if length.kind == "preset" and estimate is not None:
            text = _("{steps:,} steps with these scans.").format(steps=estimate.total_steps)
            return str(text)
        return ""

    # The run

    def _follow(self, run: Path | None) -> None:
        """Show a run, and hear when it is done."""
        self.ui.pretrainRunSection.visible = run is not None
        if run == self._run and (run is None) == (self._following is None):
            return
        if self._following is not None:
            self._following.close()
        self._run, self._following = run, None
        self.ui.pretrainNext.visible = False
        self.view.show_run(run)
        if run is not None:
            section = _("Newest run: {name}").format(name=run.name)
            self.ui.pretrainRunSection.text = section.replace("&", "&&")
            self._following = self.monitor.follow(run, self._on_update)

    def _on_update(self, update: Update) -> None:
        status, encoder = update.status, update.checkpoints.get(ENCODER.name)
        if status.state != "done" or encoder is None:
            _tell(self.ui.pretrainNext, "")
            return
        text = _(
            "What it has learnt is kept in {file}. Go on with 4. Fine-tune, and start from it."
        )
        best = best_encoder(status)
        if best is not None and not best.is_last:
            text += _(" The encoder of step {step:,}, which did best in the probe, is offered too.")
        file = f"{status.folder.name}/{ENCODER.as_posix()}"
        _tell(self.ui.pretrainNext, text.format(file=file, step=best.step if best else 0))


def _changed(path: Path) -> float:
    """When a file was written, 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _tell(label: Any, text: str) -> None:
    """Show a text, or nothing at all where there is none."""
    label.text = text
    label.visible = bool(text)


def _pretrainings(session: Any) -> list[RunStatus]:
    if session.project is None:
        return []
    return [run for run in find_runs(session.project) if run.kind == "pretrain"]


def _starts(runs: Sequence[RunStatus]) -> list[tuple[str, str]]:
    """Runs whose encoder others may start from."""
    return [(run.folder.name, str(run.folder)) for run in runs if (run.folder / ENCODER).exists()]


def _preset_words(preset: str) -> str:
    """What a preset is for."""
    words = {
        "tiny": _("Small enough to learn something on two CPU cores: to try it out."),
        "hn_small": _("For planning CT of head and neck, on two CPU cores."),
        "released": _("As its released code has it. Full size, for a GPU."),
        "paper": _("As the paper states it. Full size, for a GPU."),
        "iso": _("On cubes of equal voxels. Full size, for a GPU."),
        "vit_t": _("ViT-T, as the paper states it. Full size, for a GPU."),
        "vit_b": _("ViT-B: fourteen times the weights of vit_t. For a large GPU."),
    }
    return str(words.get(preset, _("Full size, for a GPU.")))


def _device_words(session: Any) -> str:
    """The device with what it is, as far as the test of the Python has told."""
    report, chosen = session.report, str(session.device)
    if report is None:
        return chosen
    if chosen == "auto":
        names = report.device_names[1:]
        return f"auto: {next((n for n in names if n != 'cpu'), 'cpu')}"
    found = next((d.description for d in report.devices if d.name == chosen), "")
    return f"{chosen}: {found}" if found else chosen
