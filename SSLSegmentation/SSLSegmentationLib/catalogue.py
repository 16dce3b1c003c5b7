"""The methods that the chosen backend offers, asked once of `backend methods --json`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from SSLPretrainLogic import jobs
from SSLPretrainLogic.commands import MethodsRequest
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.jobs import Job
from SSLSegmentationLib.job_monitor import JobMonitor, Watched
from SSLSegmentationLib.session import Session
from SSLSegmentationLib.signals import Signal


@dataclass(frozen=True, kw_only=True)
class Method:
    """A pretext method, as `backend methods --json` tells it.

    Attributes:
        name: as the command line takes it.
        clinician: what it does, in a sentence without jargon.
        engineer: the same in the terms of the field.
        paper: short, e.g. "SMIT, MICCAI 2022".
        backbone: the network that it trains.
        presets: the names that `--preset` takes, the default first.
        lengths: how long a preset trains, by command and preset: "epochs" or "steps" and how many.
        citations: to cite.
    """

    name: str
    clinician: str
    engineer: str
    paper: str
    backbone: str
    presets: tuple[str, ...]
    citations: tuple[str, ...]
    lengths: Mapping[str, Mapping[str, Mapping[str, int]]]

    def length_told(self, command: str, preset: str) -> str:
        """How long a preset trains, as "100 epochs"; "" if that is not known."""
        told = self.lengths.get(command, {}).get(preset, {})
        texts = {"epochs": _("{n} epochs"), "steps": _("{n} steps")}
        return "".join(texts[unit].format(n=f"{count:,}") for unit, count in told.items())


class Catalogue:
    """Asks for the methods when an environment is there, and keeps the answer.

    Attributes:
        changed: emitted without values when the methods are known, or cannot be known.
        methods: empty until they are known.
        problem: why they cannot be known, "" if nothing is wrong.
    """

    def __init__(self, session: Session, monitor: JobMonitor) -> None:
        self.changed = Signal()
        self.methods: tuple[Method, ...] = ()
        self.problem = ""
        self._session = session
        self._asked: Job | None = None
        self._of: tuple[object, ...] = ()
        session.project_changed.connect(self._ask)
        session.environment_changed.connect(self._ask)
        monitor.ended.connect(self._on_ended)

    def find(self, name: str) -> Method | None:
        """The method of a name, None if it is not known (yet)."""
        return next((method for method in self.methods if method.name == name), None)

    def _ask(self) -> None:
        session = self._session
        if session.project is None or session.report is None or not session.report.ok:
            return
        of = (session.interpreter, session.report.version)
        if of == self._of:
            return
        try:
            self._asked = session.start(MethodsRequest(), title="List the methods")
            self._of = of
        except LogicError as error:
            self._tell(problem=str(error))

    def _on_ended(self, watched: Watched) -> None:
        if self._asked is None or watched.job.folder != self._asked.folder:
            return
        self._asked = None
        try:
            if watched.status.state != "done":
                raise LogicError(watched.status.message or "The methods cannot be listed.")
            answer = jobs.read_answer(watched.job)
            self._tell(methods=tuple(_method(told) for told in answer))
        except (LogicError, KeyError, TypeError) as error:
            self._of = ()
            self._tell(problem=str(error))
        # What cannot be deleted stays in the list of jobs.
        with suppress(LogicError):
            jobs.forget([watched.job])

    def _tell(self, *, methods: tuple[Method, ...] = (), problem: str = "") -> None:
        self.methods, self.problem = methods, problem
        self.changed.emit()


def _method(told: Mapping[str, Any]) -> Method:
    texts = {key: str(told[key]) for key in ("name", "clinician", "engineer", "paper", "backbone")}
    lists = {key: tuple(map(str, told[key])) for key in ("presets", "citations")}
    # Backends before this one do not tell it.
    return Method(**texts, **lists, lengths=told.get("lengths", {}))


def as_preset_says(length: str) -> str:
    """The choice of a preset's own length, with what that is where it is known."""
    told = _("As the preset says")
    return f"{told}: {length}" if length else str(told)
