"""What the panels share: the open project, the Python that computes, and how commands start."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic import environments, jobs, project
from SSLPretrainLogic.commands import Request
from SSLPretrainLogic.environments import Interpreter, Report
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.models import FoundModels, find_models, read_model
from SSLPretrainLogic.project import Project
from SSLSegmentationLib.signals import Signal

_PREFIX = "SSLSegmentation/"
_MODEL_FILE = "modelFile"

chosen = Signal()
"""Emitted without values when a project, Python or model was chosen, in any session."""


class Session:
    """The state behind all panels. It is kept in Slicer's settings, not in scenes.

    Attributes:
        project_changed: emitted without values when another project is open, or its sources change.
        environment_changed: when another interpreter or device is chosen or more is known of it.
        model_changed: without values when another model is to segment.
        started: with the `Job` that was started just now.
        go_on: with the name of the panel that comes next.
        is_settling: whether something was started or stopped by a click a moment ago.
    """

    def __init__(self) -> None:
        self.project_changed = Signal()
        self.environment_changed = Signal()
        self.model_changed = Signal()
        self.started = Signal()
        self.go_on = Signal()
        self.project: Project | None = None
        self.interpreter: Interpreter | None = None
        self.report: Report | None = None
        self.is_settling = False

    # Settings

    def setting(self, name: str, default: str = "") -> str:
        """A remembered text."""
        return str(slicer.app.userSettings().value(_PREFIX + name, default) or default)

    def remember(self, name: str, value: str) -> None:
        """Keep a text for the next start of Slicer."""
        slicer.app.userSettings().setValue(_PREFIX + name, value)

    # The project

    def use_project(self, opened: Project) -> None:
        """Work in a project that was opened, made or changed."""
        self._take_project(opened)
        chosen.emit()

    def needs_project(self) -> Project:
        """The open project.

        Raises:
            LogicError: if there is none, or its folder is gone.
        """
        if self.project is None:
            raise LogicError(_("No project is open."), _("Open or make one at the top."))
        # Else it would be made again, in part, by whatever is written next.
        if not self.project.is_there:
            raise LogicError(
                _("{folder}: the project is not there any more.").format(
                    folder=self.project.folder
                ),
                _("Put it back, or open another one at the top."),
            )
        return self.project

    # The environment

    def use_interpreter(self, interpreter: Interpreter) -> None:
        """Compute with this Python from now on."""
        self.interpreter = interpreter
        self.remember("interpreter", str(interpreter.path))
        self._recall_report()
        self.environment_changed.emit()
        chosen.emit()

    def use_report(self, report: Report) -> None:
        """Know more of the chosen Python."""
        self.report = report
        self.environment_changed.emit()
        chosen.emit()

    def needs_interpreter(self) -> Interpreter:
        """The chosen Python.

        Raises:
            LogicError: if none is chosen, or it is known to lack something.
        """
        if self.interpreter is None:
            raise LogicError(_("No Python is chosen."), _("Choose one under Setup."))
        if self.report is not None and not self.report.ok:
            what = f"{self.interpreter.path}: {self.report.summary}"
            raise LogicError(what, _("Install it under Setup, or choose another Python."))
        return self.interpreter

    def variables(self, interpreter: Interpreter | None = None) -> dict[str, str]:
        """Environment variables for a child that runs the backend.

        Args:
            interpreter: left out, the chosen one.
        """
        chosen = interpreter or self.needs_interpreter()
        # Slicer's own Python needs what Slicer has added; any other must not see it.
        base = None if chosen.kind == "slicer" else slicer.util.startupEnvironment()
        return environments.child_environment(
            chosen,
            base=base,
            slicer_home=Path(slicer.app.slicerHome),
        )

    @property
    def device(self) -> str:
        """What `--device` is given: "auto", or a name from the report."""
        known = self.report.device_names if self.report else ("auto",)
        wanted = self.setting("device", "auto")
        return wanted if wanted in known else "auto"

    def use_device(self, name: str) -> None:
        """Compute on this device from now on."""
        self.remember("device", name)
        self.environment_changed.emit()

    # The model

    @property
    def model(self) -> str:
        """Path of the model that segments, "" if none was chosen yet."""
        return self.setting("model")

    def use_model(self, path: Path) -> None:
        """Segment with this model from now on."""
        self.remember("model", str(path))
        self.model_changed.emit()
        chosen.emit()

    @property
    def model_file(self) -> str:
        """Path of the model from outside the project that was chosen last, "" if there is none."""
        return self.setting(_MODEL_FILE)

    def use_model_file(self, path: Path) -> None:
        """Offer a model from outside the project, in place of the one before.

        Raises:
            LogicError: if it is no model that segments.
        """
        self.remember(_MODEL_FILE, str(read_model(path).path))
        self.model_changed.emit()
        chosen.emit()

    def models(self) -> FoundModels:
        """The models of the open project, the newest first, then the file that was chosen."""
        found = FoundModels(models=(), damaged={})
        if self.project is not None:
            found = find_models(self.project)
        if self.model_file:
            try:
                outside = read_model(Path(self.model_file))
                return FoundModels(models=(*found.models, outside), damaged=found.damaged)
            except LogicError:
                # It was moved since: that is no reason to complain at each start.
                self.remember(_MODEL_FILE, "")
        return found

    # Commands

    def start(self, request: Request, *, title: str) -> jobs.Job:
        """Start a command of the backend, which goes on by itself; returns at once.

        Args:
            request: what to do.
            title: for people, as the list of jobs shows it.

        Raises:
            LogicError: if no project or Python is there, or it cannot be started.
        """
        interpreter = self.needs_interpreter()
        command = jobs.backend_command(
            request, interpreter=interpreter, environment=self.variables(), title=title
        )
        return self.start_command(command)

    def start_command(self, command: jobs.Command) -> jobs.Job:
        """Start any command in the project.

        Raises:
            LogicError: if no project is open, or it cannot be started.
        """
        job = jobs.start(command, project=self.needs_project())
        self.started.emit(job)
        return job

    # After a start of Slicer

    def restore(self) -> None:
        """Go on where Slicer was closed.

        Raises:
            LogicError: if the last project is gone or damaged; all else is restored.
        """
        interpreter = self.setting("interpreter")
        if interpreter:
            # One that was removed since is no reason to complain: Setup asks for another.
            with suppress(LogicError):
                self.interpreter = environments.chosen_interpreter(Path(interpreter))
                self.environment_changed.emit()
        folder = self.setting("project")
        if folder:
            self.remember("project", "")
            self._take_project(project.open_project(Path(folder)))

    def _take_project(self, opened: Project) -> None:
        self.project = opened
        self.remember("project", str(opened.folder))
        self._recall_report()
        self.project_changed.emit()
        # What is known of the Python is kept in the project.
        self.environment_changed.emit()

    def _recall_report(self) -> None:
        self.report = None
        if self.project is not None and self.interpreter is not None:
            self.report = environments.cached_report(
                self.interpreter,
                environment=self.variables(self.interpreter),
                cache=self.project.environments,
            )
