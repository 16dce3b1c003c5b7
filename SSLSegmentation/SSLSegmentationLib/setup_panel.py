"""The panel Setup: the Python that computes, what it lacks, and what it computes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic import environments, jobs
from SSLPretrainLogic.environments import Device, Finding, Interpreter, Report
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import surely
from SSLPretrainLogic.run_folder import Tail
from SSLSegmentationLib import installation, worker
from SSLSegmentationLib.installation import ExtensionMissing, Plan
from SSLSegmentationLib.job_monitor import Watched
from SSLSegmentationLib.panel import Message, Panel, deliberate, guarded, level_icon

_TEST = "doctor"
_ICON_OF = {"ok": "ok", "warning": "warning", "missing": "error"}
_GRAVITY = ("ok", "warning", "missing")
_AFTER_RESTART = "setupAfterRestart"
_STEPS = 1000


class SetupPanel(Panel):
    """Chooses and tests a Python, and installs into it what it lacks."""

    UI = "Setup.ui"

    def setup(self) -> None:
        """Connect the widgets and list the Pythons that are easy to find."""
        self.hint = Message()
        self.hint.widget.objectName = "setupHint"
        self.widget.layout().insertWidget(0, self.hint.widget)
        self._shown: Report | None = None
        self._slicers_lines: list[str] | None = None
        ui = self.ui
        ui.setupPythonCombo.connect("currentIndexChanged(int)", self.on_choose)
        ui.setupOtherButton.connect("clicked()", self.on_other)
        ui.setupDeviceCombo.connect("currentIndexChanged(int)", self.on_device)
        ui.setupGpuCheck.connect("toggled(bool)", self._refresh)
        ui.setupFindings.connect("itemSelectionChanged()", self._show_detail)
        ui.setupTestButton.connect("clicked()", self.on_test)
        ui.setupInstallButton.connect("clicked()", self.on_install)
        ui.setupCancelButton.connect("clicked()", self.on_cancel)
        for box, name in (
            (ui.setupIdleMinutes, worker.IDLE_MINUTES),
            (ui.setupMemoryMb, worker.MEMORY_MB),
        ):
            box.value = worker.limit(self.session, name)
            box.connect("valueChanged(int)", partial(self._keep_limit, name))
        ui.setupUnloadButton.connect("clicked()", self.on_unload)
        self.session.project_changed.connect(self._refresh)
        self.session.environment_changed.connect(self._refresh)
        self.monitor.changed.connect(self._refresh)
        self.monitor.ticked.connect(self._show_progress)
        self.monitor.ended.connect(self._on_ended)
        self._refresh()
        self._show_detail()
        self._tell_after_restart()

    # What a person does

    @guarded
    def on_choose(self) -> None:
        """Compute with the Python that was chosen in the list."""
        try:
            self.session.use_interpreter(self._chosen())
        finally:
            self._refresh()

    @guarded
    def on_other(self) -> None:
        """Ask for a Python and compute with it."""
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(),
            _("Choose the program python of an environment"),
            str(self._chosen_path().parent),
        )
        if path:
            interpreter = environments.chosen_interpreter(Path(path))
            others = [p for p in self._remembered() if p != str(interpreter.path)]
            self.session.remember("interpreters", "\n".join([str(interpreter.path), *others]))
            self.session.use_interpreter(interpreter)

    @guarded
    def on_device(self) -> None:
        """Compute on the device that was chosen in the list."""
        self.session.use_device(str(self.ui.setupDeviceCombo.currentData))

    @deliberate
    def on_test(self) -> None:
        """Examine the chosen Python in a process of its own."""
        self.session.remember(_AFTER_RESTART, "")
        self.session.needs_project()
        self._test(self._chosen())

    @guarded
    def on_install(self) -> None:
        """Ask, then install what is missing."""
        interpreter, plan = self._chosen(), self._plan()
        self.session.needs_project()
        text = installation.question(plan, interpreter) if plan else ""
        if plan and slicer.util.confirmOkCancelDisplay(text, _("Install packages")):
            if interpreter.kind == "slicer":
                self._install_into_slicer(plan)
            else:
                variables = self.session.variables(interpreter)
                self.session.start_command(
                    installation.command(plan, interpreter, environment=variables)
                )

    @guarded
    def on_unload(self) -> None:
        """Free the memory that models take."""
        done = _("The models are unloaded. The next use loads its own again.")
        self.message.show(done if worker.unload() else _("No model is in memory."))

    def _keep_limit(self, name: str, value: int) -> None:
        self.session.remember(name, str(value))

    @deliberate
    def on_cancel(self) -> None:
        """Stop the test or the installation that goes on."""
        busy = self._busy()
        if busy is not None:
            self.monitor.stop(job=busy.job)
            self._show_progress()

    def cleanup(self) -> None:
        """Hear of nothing any more."""
        self._slicers_lines = None
        self.session.project_changed.disconnect(self._refresh)
        self.session.environment_changed.disconnect(self._refresh)
        self.monitor.changed.disconnect(self._refresh)
        self.monitor.ticked.disconnect(self._show_progress)
        self.monitor.ended.disconnect(self._on_ended)

    # The chosen Python

    def _chosen_path(self) -> Path:
        return Path(str(self.ui.setupPythonCombo.currentData or Path.home()))

    def _chosen(self) -> Interpreter:
        if self.ui.setupPythonCombo.currentIndex < 0:
            raise LogicError(_("No Python was found."), _("Choose one with Other…"))
        return environments.chosen_interpreter(self._chosen_path())

    def _remembered(self) -> list[str]:
        return [path for path in self.session.setting("interpreters").splitlines() if path]

    def _test(self, interpreter: Interpreter) -> None:
        if interpreter != self.session.interpreter:
            self.session.use_interpreter(interpreter)
        environment = self.session.variables(interpreter)
        self.session.start_command(jobs.doctor_command(interpreter, environment=environment))

    # Jobs of this panel

    def _busy(self) -> Watched | None:
        return self.monitor.active(what=_TEST) or self.monitor.active(what=installation.WHAT)

    def _on_ended(self, watched: Watched) -> None:
        if watched.job.what == _TEST:
            self._on_tested(watched)
        elif watched.job.what == installation.WHAT:
            self._on_installed(watched)

    @guarded
    def _on_tested(self, watched: Watched) -> None:
        path = Path(watched.job.argv[0])
        if _is_cancelled(watched):
            self.message.show(_("The test was cancelled."))
            return
        if watched.status.state != "done":
            told = _("{path}: cannot be tested. {why}")
            why = watched.status.message
            raise LogicError(told.format(path=path, why=why), _("Choose another Python."))
        interpreter = environments.chosen_interpreter(path)
        text = watched.job.output.read_text("utf-8", errors="replace")
        report = environments.parse_report(text)
        environments.remember(
            interpreter,
            text,
            environment=self.session.variables(interpreter),
            cache=self.session.needs_project().environments,
        )
        jobs.forget([watched.job])
        if interpreter == self.session.interpreter:
            self.session.use_report(report)

    @guarded
    def _on_installed(self, watched: Watched) -> None:
        if _is_cancelled(watched):
            self.message.show(_("The installation was cancelled. Install… begins again."))
            return
        if watched.status.state != "done":
            told = _("The packages could not be installed. {why}")
            log = _("All that pip said stands in {folder}.").format(folder=watched.job.folder)
            raise LogicError(told.format(why=watched.status.message), log)
        jobs.forget([watched.job])
        self._test(environments.chosen_interpreter(Path(watched.job.argv[0])))

    # Slicer's own Python

    def _install_into_slicer(self, plan: Plan) -> None:
        self._slicers_lines = []
        # Seen before Slicer stands still.
        self._refresh()
        slicer.app.processEvents()
        loaded = installation.loaded(plan)
        try:
            installation.install_into_slicer(
                plan,
                gpu=self._wants_gpu(),
                on_line=self._slicers_lines.append,
                on_end=lambda code: self._on_slicer_installed(code, loaded),
            )
        except LogicError as error:
            self._slicers_lines = None
            if isinstance(error, ExtensionMissing):
                self.session.remember(_AFTER_RESTART, "install")
            self._refresh()
            raise

    @guarded
    def _on_slicer_installed(self, code: int, loaded: Sequence[str]) -> None:
        if self._slicers_lines is None:
            # The panel was closed meanwhile.
            return
        lines, self._slicers_lines = self._slicers_lines, None
        self._refresh()
        if code:
            last = next((line for line in reversed(lines) if line.strip()), str(code))
            raise LogicError(
                _("The packages could not be installed. {why}").format(why=last),
                _("Check the network, or choose another Python."),
            )
        self._test(self._chosen())
        if loaded:
            self.session.remember(_AFTER_RESTART, "test")
            told = _("Restart Slicer before you go on: it has loaded older versions of {names}.")
            self.message.show(told.format(names=", ".join(loaded)), "warning")

    def _tell_after_restart(self) -> None:
        step = self.session.setting(_AFTER_RESTART)
        texts = {
            "test": _("Slicer was restarted after an installation. Go on with Test environment."),
            "install": _(
                "Slicer was restarted. Once the extension PyTorch is there, press Install."
            ),
        }
        if step in texts:
            self.message.show(texts[step])
            self.session.remember(_AFTER_RESTART, "")

    # What is shown

    def _wants_gpu(self) -> bool:
        report = self.session.report
        return bool(report and installation.gpu_index(report) and self.ui.setupGpuCheck.checked)

    def _plan(self) -> Plan | None:
        report, interpreter = self.session.report, self.session.interpreter
        if report is None or interpreter is None:
            return None
        if report.ok and interpreter.kind == "slicer":
            # The extension PyTorch does not replace a build; its own module can remove it first.
            return None
        return installation.make_plan(report, gpu=self._wants_gpu())

    def _refresh(self) -> None:
        self._show_pythons()
        self._show_devices()
        self._show_findings()
        self._show_buttons()
        self._show_progress()
        self._show_hint()

    def _show_pythons(self) -> None:
        session, combo = self.session, self.ui.setupPythonCombo
        found = [interpreter.path for interpreter in environments.find_interpreters()]
        found += [Path(path) for path in self._remembered() if surely(Path(path).exists)]
        chosen = session.interpreter.path if session.interpreter else None
        found += [chosen] if chosen else []
        labels = {str(path): python_label(path) for path in found}
        # Before one is chosen the first is proposed; the test chooses it.
        _fill(combo, labels, current=str(chosen or self._chosen_path()))
        what = _("The Python that trains and segments, in a process of its own:\n{path}")
        combo.toolTip = what.format(path=combo.currentData)

    def _show_devices(self) -> None:
        combo, report = self.ui.setupDeviceCombo, self.session.report
        labels = {"auto": _("Automatic: the fastest one that works")}
        for device in report.devices if report else ():
            if not device.error:
                labels[device.name] = device_label(device)
        _fill(combo, labels, current=self.session.device)
        combo.enabled = report is not None and report.ok
        combo.toolTip = (
            _("What training and segmentation compute on")
            if combo.enabled
            else _("Known when the environment has been tested and is ready")
        )

    def _show_findings(self) -> None:
        report, tree = self.session.report, self.ui.setupFindings
        tree.visible = report is not None
        if report is self._shown:
            return
        self._shown = report
        tree.clear()
        for topic, findings in groupby(report.findings if report else (), lambda f: f.topic):
            self._add_topic(topic, tuple(findings))
        self._show_detail()

    def _add_topic(self, topic: str, findings: tuple[Finding, ...]) -> None:
        tree = self.ui.setupFindings
        level = max((finding.level for finding in findings), key=_GRAVITY.index)
        item = _item(topic_label(topic, findings), level)
        tree.addTopLevelItem(item)
        sizes = self._sizes() if topic == "packages" else {}
        for finding in findings:
            # A topic with one line is that line.
            line = item if len(findings) == 1 else _finding_item(finding, sizes)
            if line is not item:
                item.addChild(line)
            # What Install does needs no words of its own.
            cure = "" if _size(finding, sizes) else finding.cure
            line.setToolTip(0, f"{_told(finding)}\n{cure}".strip())
            if cure and tree.currentItem() is None:
                tree.setCurrentItem(line)
        item.setExpanded(level != "ok")

    def _show_detail(self) -> None:
        item = self.ui.setupFindings.currentItem()
        text = item.toolTip(0) if item is not None else ""
        self.ui.setupDetail.text = text
        self.ui.setupDetail.visible = bool(text)

    def _sizes(self) -> dict[str, str]:
        plan = self._plan()
        found = plan.downloads if plan else ()
        return {download.name: _(", {mb} MB").format(mb=download.mb) for download in found}

    def _show_buttons(self) -> None:
        ui, plan = self.ui, self._plan()
        busy, at_work = self._is_busy(), self.monitor.active() is not None
        blocked = _("Wait until what goes on has ended") if busy else ""
        if self.session.project is None:
            blocked = _("Open or make a project at the top first")
        # Packages must not be exchanged under a run.
        no_install = blocked or (_("Wait until all jobs have ended") if at_work else "")
        ui.setupTestButton.enabled = not blocked
        ui.setupTestButton.toolTip = blocked or _("Look what this Python has; installs nothing")
        ui.setupInstallButton.enabled = not no_install
        ui.setupInstallButton.toolTip = no_install or _("Shows what would be downloaded, and asks")
        ui.setupInstallButton.visible = plan is not None
        ui.setupInstallButton.text = _("Install ({size})…").format(size=plan.size if plan else "")
        ui.setupPythonCombo.enabled = ui.setupOtherButton.enabled = not busy
        report = self.session.report
        ui.setupGpuCheck.visible = bool(report and installation.gpu_index(report))
        ui.setupGpuCheck.enabled = not busy

    def _is_busy(self) -> bool:
        return self._slicers_lines is not None or self._busy() is not None

    def _show_progress(self) -> None:
        ui, busy = self.ui, self._busy()
        ui.setupProgress.visible = self._is_busy()
        if not self._is_busy():
            return
        ui.setupCancelButton.enabled = busy is not None and not self.monitor.is_stopping(
            busy.job.folder
        )
        ui.setupCancelButton.toolTip = (
            _("Stop it; what is installed stays") if busy else _("Slicer cannot stop its installer")
        )
        fraction, text = self._progress(busy)
        ui.setupProgressBar.setRange(0, _STEPS if fraction is not None else 0)
        ui.setupProgressBar.value = round((fraction or 0) * _STEPS)
        self.hint.show(text)

    def _progress(self, busy: Watched | None) -> tuple[float | None, str]:
        if busy is not None and self.monitor.is_stopping(busy.job.folder):
            return None, _("Stops…")
        if busy is not None and busy.job.what == _TEST:
            return None, _("Tests the environment. The first time may take a minute.")
        lines = self._slicers_lines or []
        if busy is not None:
            lines = Tail(busy.job.output).read().lines
        plan = self._plan()
        told = installation.progress(lines, mb=plan.mb if plan else 1)
        left = installation.time_left(told.fraction, _elapsed_s(busy) if busy else 0.0)
        text = _("Installs: {what}").format(what=told.what)
        return told.fraction or None, f"{text}, {left}" if left else text

    def _show_hint(self) -> None:
        if not self._is_busy():
            has_project = self.session.project is not None
            level, text = next_step(self.session.report, plan=self._plan(), has_project=has_project)
            self.hint.show(text, level)


def next_step(report: Report | None, *, plan: Plan | None, has_project: bool) -> tuple[str, str]:
    """How grave things are, and what to do next, in a sentence or two.

    Args:
        report: of the chosen Python, None if it has not been tested.
        plan: what could be installed.
        has_project: whether a project is open.
    """
    if not has_project:
        return "info", _("Begin at the top: New… makes a project, a folder that keeps your work.")
    if report is None:
        return "info", _(
            "Press Test environment. It looks whether this Python has what training needs, "
            "and installs nothing."
        )
    if not report.ok and plan is not None:
        return "error", _(
            "Not ready: {count} missing. Press Install to download {size}, "
            "or choose another Python."
        ).format(count=len(report.missing), size=plan.size)
    if not report.ok:
        return "error", _("{summary} A line below tells its cure when you select it.").format(
            summary=report.summary
        )
    if plan is not None:
        return "warning", _(
            "{summary} The GPU is not used: press Install to download {size} for it."
        ).format(summary=report.summary, size=plan.size)
    return "ok", _("{summary} Go on with 2. Data.").format(summary=report.summary)


def python_label(path: Path) -> str:
    """A Python as the list names it: by its environment, so that the end may be cut off."""
    if path.stem == "PythonSlicer":
        return _("Slicer's own Python")
    for prefix in (path.parent.parent, path.parent):
        if (prefix / "pyvenv.cfg").exists() or (prefix / "conda-meta").is_dir():
            return f"{prefix.name} ({prefix.parent})"
    return str(path)


def device_label(device: Device) -> str:
    """A device as the list names it, e.g. "cuda:0: NVIDIA H200, 139 of 140 GB free"."""
    if not device.memory_mb:
        return f"{device.name}: {device.description}"
    return _("{name}: {model}, {free} of {all} GB free").format(
        name=device.name,
        model=device.description,
        free=round(device.free_mb / 1024),
        all=round(device.memory_mb / 1024),
    )


def topic_label(topic: str, findings: Sequence[Finding]) -> str:
    """A topic with what was found: itself if it is one thing, else how many are well."""
    titles = {
        "python": _("Python"),
        "packages": _("Packages"),
        "devices": _("Devices"),
        "processor": _("Processor"),
        "memory": _("Memory"),
        "disk": _("Disk"),
        "dicom": _("DICOM"),
    }
    title = titles.get(topic, topic)
    if len(findings) == 1:
        what = _told(findings[0])
        return what if what.startswith(title) else f"{title}: {what}"
    good = sum(finding.level == "ok" for finding in findings)
    return _("{title}: {good} of {all} are fine").format(title=title, good=good, all=len(findings))


def _told(finding: Finding) -> str:
    # The command line sets its texts in columns.
    return " ".join(finding.what.split())


def _finding_item(finding: Finding, sizes: Mapping[str, str]) -> Any:
    return _item(_told(finding) + _size(finding, sizes), finding.level)


def _size(finding: Finding, sizes: Mapping[str, str]) -> str:
    """What a package that is missing takes; the first word on it is its name."""
    return "" if finding.level == "ok" else sizes.get(_told(finding).split()[0].lower(), "")


def _item(text: str, level: str) -> Any:
    item = qt.QTreeWidgetItem()
    item.setText(0, text)
    item.setIcon(0, level_icon(_ICON_OF[level]))
    return item


def _fill(combo: Any, labels: Mapping[str, str], *, current: str) -> None:
    """Let a list show entries by their keys, and leave alone what is the same."""
    combo.blockSignals(True)
    if [combo.itemData(i) for i in range(combo.count)] != list(labels):
        combo.clear()
        for key, label in labels.items():
            combo.addItem(label, key)
    combo.currentIndex = max(0, combo.findData(current)) if labels else -1
    combo.blockSignals(False)


def _is_cancelled(watched: Watched) -> bool:
    status = watched.status
    return status.state == "cancelled" or (status.stopping and status.state != "done")


def _elapsed_s(watched: Watched) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(watched.job.started)).total_seconds()
