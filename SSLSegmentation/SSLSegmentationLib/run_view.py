"""One run as it goes on: state, time left, curves, pictures, warnings, and what can be done."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.commands import resume_request
from SSLPretrainLogic.run_folder import RunStatus, Update
from SSLPretrainLogic.stopping import StopProgress
from SSLSegmentationLib.curve_plot import CurvePlot
from SSLSegmentationLib.curves import Book, Group
from SSLSegmentationLib.job_monitor import Following, JobMonitor, Watched
from SSLSegmentationLib.panel import Message, deliberate, guarded
from SSLSegmentationLib.plots import FullPlot
from SSLSegmentationLib.previews import Previews, PreviewVolumes
from SSLSegmentationLib.probe_view import ProbeView
from SSLSegmentationLib.session import Session
from SSLSegmentationLib.wording import (
    duration_words,
    kind_words,
    left_words,
    seconds_between,
    state_pixmap,
    state_words,
)

STALLED_S = 180.0
"""A run in which nothing has changed for so long is suspected to hang."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a run stands, seen together with the job that works in it.

    Attributes:
        state: a state of `RunStatus`, or "starting" or "stopping".
        message: what it does just now, or why it is not there.
        is_active: whether it goes on.
    """

    state: str
    message: str
    is_active: bool


def standing(status: RunStatus, watched: Watched | None, *, was_there: bool = False) -> Standing:
    """How a run stands.

    Args:
        status: of its folder.
        watched: the newest job that works in it, None if it has none here.
        was_there: whether its folder was seen before.
    """
    job = watched.status if watched else None
    if job is not None and job.is_active:
        if job.stopping:
            return Standing(state="stopping", message=_("Saving and stopping"), is_active=True)
        if not status.is_active:
            message = _("The backend starts; its first step may take a minute.")
            if was_there and status.state == "absent":
                message = _("{folder}: was deleted or moved; its process goes on. Stop it.")
                message = message.format(folder=status.folder)
            return Standing(state="starting", message=message, is_active=True)
    if status.state != "absent":
        return Standing(state=status.state, message=status.message, is_active=status.is_active)
    if was_there:
        message = _("{folder}: was deleted or moved. Choose another run, or put it back.")
        return Standing(
            state="absent", message=message.format(folder=status.folder), is_active=False
        )
    if job is not None:
        return Standing(state=job.state, message=job.message, is_active=False)
    return Standing(state="absent", message=status.message, is_active=False)


class Stillness:
    """How long nothing has changed."""

    def __init__(self) -> None:
        self._last: Any = None
        self._since = 0.0

    def seconds(self, sight: Any, *, now: float) -> float:
        """Seconds since another thing was seen than this."""
        if sight != self._last:
            self._last, self._since = sight, now
        return now - self._since


def warning_words(status: RunStatus, *, still_s: float) -> str:
    """What looks wrong with a run that goes on, and what to do; "" if nothing does.

    Args:
        status: of the run.
        still_s: seconds since its step or its message has changed.
    """
    if not status.is_active:
        return status.warning
    silent_s = max(still_s, status.silent_s or 0.0)
    if silent_s >= STALLED_S:
        return str(
            _(
                "Nothing has changed for {time}. If the machine is not just busy with other "
                "work, stop the run and resume it; its log may tell more."
            ).format(time=duration_words(silent_s))
        )
    if status.warning:
        cure = _("Watch the health monitors; if they stay so, stop and lower the learning rate.")
        return f"{status.warning} {cure}"
    return ""


def kept_words(status: RunStatus) -> str:
    """What is left of a run that was stopped, and how it can go on; "" if nothing is."""
    kept = status.folder / "checkpoints"
    if not (status.can_resume and (kept / "last.pt").is_file()):
        return ""
    text = _("Kept as it was at step {step:,}. Resume goes on from there.")
    if (kept / "encoder.safetensors").is_file():
        text += _(" 4. Fine-tune can start from it as it is.")
    return str(text.format(step=status.step))


def error_words(status: RunStatus) -> str:
    """Why a run failed, with the cure; "" if it did not."""
    if status.error is None:
        return ""
    return f"{status.error.message} {status.error.hint}".strip()


class RunView:
    """Shows one run. Several views live side by side.

    Attributes:
        widget: to be put into a layout.
        message: a sentence on the last click.

    Args:
        folder: of the .ui files.
        session: the open project.
        monitor: tells what is new.
    """

    UI = "RunView.ui"

    def __init__(self, folder: Path, *, session: Session, monitor: JobMonitor) -> None:
        self.widget = slicer.util.loadUI(str(folder / self.UI))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.message, self._notice = Message(), Message()
        self.session, self._monitor = session, monitor
        self._following: Following | None = None
        self._update: Update | None = None
        self._was_there = False
        self._stop: StopProgress | None = None
        self._still = Stillness()
        self._book = Book()
        self._groups: tuple[Group, ...] = ()
        self._is_group_chosen = False
        self._plot, self._full_plot = CurvePlot(), FullPlot()
        self._volumes = PreviewVolumes()
        self._setup()
        self.show_run(None)

    def _setup(self) -> None:
        ui = self.ui
        ui.runNoticePlace.layout().addWidget(self._notice.widget)
        ui.runCurvePlace.layout().addWidget(self._plot)
        self.widget.layout().addWidget(self.message.widget)
        self._previews = Previews(ui, self.on_open_preview)
        self._probe = ProbeView(ui)
        ui.runCurveChoice.connect("currentIndexChanged(int)", self._on_curve_choice)
        ui.runFullPlotButton.connect("clicked()", self.on_full_plot)
        ui.runStopButton.connect("clicked()", self.on_stop)
        ui.runResumeButton.connect("clicked()", self.on_resume)
        ui.runReportButton.connect("clicked()", self.on_report)
        ui.runFolderButton.connect("clicked()", self.on_folder)
        self._monitor.changed.connect(self._show_standing)
        self._monitor.stop_progress.connect(self._on_stop_progress)

    # What others call

    @property
    def run(self) -> Path | None:
        """The run that is shown."""
        return self._following.run if self._following else None

    def show_run(self, run: Path | None) -> None:
        """Show a run, None for none; it may not be there yet."""
        if run is not None and run == self.run:
            return
        self._leave()
        self.ui.runEmptyLabel.visible = run is None
        self.ui.runContent.visible = run is not None
        if run is not None:
            self._following = self._monitor.follow(run, self._on_update)
            self._show_standing()

    def cleanup(self) -> None:
        """Follow nothing any more; the run goes on."""
        self._leave()
        self._monitor.changed.disconnect(self._show_standing)
        self._monitor.stop_progress.disconnect(self._on_stop_progress)

    def _leave(self) -> None:
        if self._following is not None:
            self._following.close()
        self._following, self._update, self._stop = None, None, None
        self._was_there = False
        self._still = Stillness()
        self._book.clear()
        self._groups = ()
        self._is_group_chosen = False
        self._full_plot.remove()
        self._previews.show(())
        self._previews.close()
        self.message.clear()
        self._notice.clear()

    # What the run tells

    def _on_update(self, update: Update) -> None:
        self._update = update
        self._was_there = self._was_there or update.status.state != "absent"
        if update.metrics_restarted:
            self._book.clear()
        self._book.add(update.records)
        self._previews.show(update.previews)
        if update.records or update.metrics_restarted or not self._groups:
            self._show_groups()
        # The first one comes before anybody knows whose it is.
        if self._following is not None:
            self._show_standing()

    def _show_groups(self) -> None:
        choice = self.ui.runCurveChoice
        before = [group.key for group in self._groups]
        # Until somebody chooses it is the first: what is recorded first need not be the loss.
        chosen = str(choice.currentData or "") if self._is_group_chosen else ""
        self._groups = self._book.groups()
        keys = [group.key for group in self._groups]
        if keys != before:
            blocked = choice.blockSignals(True)
            choice.clear()
            for group in self._groups:
                choice.addItem(group.title, group.key)
            choice.currentIndex = keys.index(chosen) if chosen in keys else min(len(keys), 1) - 1
            choice.blockSignals(blocked)
        choice.visible = bool(keys)
        self.ui.runFullPlotButton.visible = bool(keys)
        self._draw()

    @property
    def _group(self) -> Group | None:
        index = self.ui.runCurveChoice.currentIndex
        return self._groups[index] if 0 <= index < len(self._groups) else None

    def _on_curve_choice(self, index: int) -> None:
        self._is_group_chosen = True
        self._draw()
        self._show_standing()

    def _draw(self) -> None:
        self._plot.show_group(self._group, empty=_("Curves appear with the first steps."))
        if self._group is not None and self.run is not None:
            self._full_plot.update(self._group, title=self.run.name)

    def _show_standing(self) -> None:
        if self.run is None or self._update is None:
            return
        status, watched = self._update.status, self._monitor.job_of(self.run)
        now = standing(status, watched, was_there=self._was_there)
        ui = self.ui
        ui.runStateIcon.setPixmap(state_pixmap(now.state))
        kind = status.kind or (watched.job.what if watched else "")
        ui.runStateLabel.text = f"{kind_words(kind)}: {state_words(now.state)}"
        ui.runTimeLabel.text = self._time_words(status, now)
        ui.runMessageLabel.text = self._message_words(now)
        ui.runMessageLabel.visible = bool(ui.runMessageLabel.text)
        # The empty place of curves that still come; a run that is gone brings none.
        ui.runCurvePlace.visible = bool(self._groups) or now.is_active
        self._probe.show(self._groups, shown=self._group, is_active=now.is_active)
        self._show_progress(status, now)
        self._show_notice(status, now)
        self._enable(status, now)

    def _message_words(self, now: Standing) -> str:
        if self._stop is not None:
            left = _("waits for {n} of its programs to end").format(n=self._stop.left)
            return f"{self._stop.message}; {left}" if self._stop.left else self._stop.message
        # Else the notice tells it, or the state has said it already.
        return now.message if now.is_active else ""

    def _time_words(self, status: RunStatus, now: Standing) -> str:
        if now.state == "running":
            return left_words(status.eta_s)
        took = seconds_between(status.started, status.updated)
        if now.is_active or took is None:
            return ""
        return str(_("after {time}").format(time=duration_words(took)))

    def _show_progress(self, status: RunStatus, now: Standing) -> None:
        bar = self.ui.runProgressBar
        total = status.total_steps or 0
        bar.visible = bool(total) or now.is_active
        # Without a total the bar runs to and fro, but only while something goes on.
        bar.maximum = total
        bar.value = min(status.step, total) if total else 0
        words = _("step {step} of {total}").format(step=f"{status.step:,}", total=f"{total:,}")
        bar.format = words if total else ""

    def _show_notice(self, status: RunStatus, now: Standing) -> None:
        still_s = self._still.seconds((status.step, status.message), now=time.monotonic())
        error = error_words(status) if not now.is_active else ""
        if not error and now.state in ("failed", "interrupted", "absent", "damaged", "elsewhere"):
            error = now.message
        warning = warning_words(status, still_s=still_s) if now.state != "starting" else ""
        if error:
            self._notice.show(error, "error" if now.state != "interrupted" else "warning")
        elif warning:
            self._notice.show(warning, "warning")
        else:
            kept = kept_words(status) if now.state == "cancelled" else ""
            self._notice.show(kept) if kept else self._notice.clear()
        self.ui.runNoticePlace.visible = bool(self._notice.text)

    def _enable(self, status: RunStatus, now: Standing) -> None:
        run, is_there = status.folder, status.state != "absent"
        can_resume = status.can_resume and not now.is_active
        is_stopping = now.state == "stopping" or self._stop is not None
        switch(
            self.ui.runStopButton,
            on=now.is_active and not is_stopping,
            tip=_("Save a checkpoint and end the run with all its processes; it can be resumed."),
            why_not=_("It is being stopped.") if is_stopping else _("It does not go on."),
        )
        switch(
            self.ui.runResumeButton,
            on=can_resume,
            tip=_("Go on from the last checkpoint."),
            why_not=_why_no_resume(status, now),
        )
        switch(
            self.ui.runReportButton,
            on=(run / "report.html").is_file(),
            tip=_("Open the report of the run: curves, pictures, settings."),
            why_not=_("The report is written when the run ends."),
        )
        switch(
            self.ui.runFolderButton,
            on=is_there,
            tip=_("Open {folder}").format(folder=run),
            why_not=_("There is no folder."),
        )

    # What a person clicks

    @deliberate
    def on_stop(self) -> None:
        """Stop the run, and all processes of it."""
        if self.run is not None:
            watched = self._monitor.active(run=self.run)
            self._monitor.stop(job=watched.job if watched else None, run=self.run)

    def _on_stop_progress(self, key: Path, progress: StopProgress) -> None:
        watched = self._monitor.job_of(self.run) if self.run is not None else None
        if self.run is None or key not in (self.run, watched and watched.job.folder):
            return
        self._stop = None if progress.phase == "stopped" else progress
        self._show_standing()
        if progress.phase == "unreachable":
            self._stop = None
            self.message.show(progress.message, "warning")

    @deliberate
    def on_resume(self) -> None:
        """Go on with the run."""
        if self._update is None or self.run is None:
            return
        request = resume_request(
            self.run, kind=self._update.status.kind, device=self.session.device
        )
        self.session.start(request, title=_("Resume {run}").format(run=self.run.name))

    @guarded
    def on_report(self) -> None:
        """Open the report in the browser."""
        if self.run is not None:
            open_path(self.run / "report.html")

    @guarded
    def on_folder(self) -> None:
        """Show the folder of the run."""
        if self.run is not None:
            open_path(self.run)

    @guarded
    def on_full_plot(self) -> None:
        """Show the curves in the layout of Slicer."""
        if self._group is not None and self.run is not None:
            self._full_plot.show(self._group, title=self.run.name)

    @guarded
    def on_open_preview(self) -> None:
        """Load the step that is shown into the slice views."""
        preview = self._previews.current
        if preview is not None and self.run is not None:
            self.message.show(self._volumes.load(preview, run=self.run.name))


def open_path(path: Path) -> None:
    """Open a file or a folder with what the system has for it."""
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path)))


def switch(button: Any, *, on: bool, tip: str, why_not: str) -> None:
    """Enable a button or not; its tooltip says what it does, or why it cannot."""
    button.enabled = on
    button.toolTip = tip if on else why_not


def _why_no_resume(status: RunStatus, now: Standing) -> str:
    if now.is_active:
        return str(_("It goes on already."))
    if status.state == "done":
        return str(_("It has ended; nothing is left to do."))
    return str(_("No checkpoint was written yet. Start it anew."))
