"""Times and states in words, as all tables and views of jobs tell them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86400.0
_ICON_SIZE = 16
_ICONS = {
    "starting": qt.QStyle.SP_BrowserReload,
    "queued": qt.QStyle.SP_BrowserReload,
    "running": qt.QStyle.SP_MediaPlay,
    "stopping": qt.QStyle.SP_MediaStop,
    "done": qt.QStyle.SP_DialogApplyButton,
    "failed": qt.QStyle.SP_MessageBoxCritical,
    "damaged": qt.QStyle.SP_MessageBoxCritical,
    "cancelled": qt.QStyle.SP_MediaPause,
    "interrupted": qt.QStyle.SP_MessageBoxWarning,
    "elsewhere": qt.QStyle.SP_ComputerIcon,
    "absent": qt.QStyle.SP_MessageBoxWarning,
}


def state_words(state: str) -> str:
    """A state of a run or a job for people."""
    words = {
        "starting": _("Starting"),
        "queued": _("Waiting"),
        "running": _("Running"),
        "stopping": _("Stopping"),
        "done": _("Done"),
        "failed": _("Failed"),
        "damaged": _("Damaged"),
        "cancelled": _("Stopped"),
        "interrupted": _("Interrupted"),
        "elsewhere": _("Elsewhere"),
        "absent": _("Gone"),
    }
    return str(words.get(state, state))


def kind_words(what: str) -> str:
    """A command of the backend for people."""
    words = {
        "pretrain": _("Pretrain"),
        "finetune": _("Fine-tune"),
        "segment": _("Segment"),
        "scan": _("Scan"),
        "evaluate": _("Evaluate"),
        "doctor": _("Test"),
        "methods": _("Methods"),
        "describe": _("Estimate"),
        "report": _("Report"),
        "": _("Run"),
    }
    return str(words.get(what, what))


def state_icon(state: str) -> Any:
    """The picture of a state, from the style of the application."""
    return slicer.app.style().standardIcon(_ICONS.get(state, qt.QStyle.SP_MessageBoxWarning))


def state_pixmap(state: str) -> Any:
    """The same, to stand beside a line of text."""
    return state_icon(state).pixmap(_ICON_SIZE, _ICON_SIZE)


def duration_words(seconds: float) -> str:
    """A length of time, rounded as people say it."""
    if round(seconds) < _MINUTE_S:
        return str(_("{n} s").format(n=round(seconds)))
    minutes = round(seconds / _MINUTE_S)
    if minutes < 60:
        return str(_("{n} min").format(n=minutes))
    if seconds < _DAY_S:
        return str(_("{h} h {m} min").format(h=minutes // 60, m=minutes % 60))
    days, rest = divmod(round(seconds / _HOUR_S), 24)
    return str(_("{d} d {h} h").format(d=days, h=rest))


def left_words(seconds: float | None) -> str:
    """How much time is left, "" if nobody knows."""
    if seconds is None:
        return ""
    if seconds < _MINUTE_S:
        return str(_("less than a minute left"))
    if seconds < 1.5 * _MINUTE_S:
        return str(_("about a minute left"))
    return str(_("about {time} left").format(time=_rounded_words(seconds)))


def _rounded_words(seconds: float) -> str:
    if seconds < _HOUR_S:
        return str(_("{n} minutes").format(n=round(seconds / _MINUTE_S)))
    if seconds < _DAY_S:
        return duration_words(seconds)
    return str(_("{n} days").format(n=f"{seconds / _DAY_S:.1f}"))


def moment_words(iso: str, *, whole: bool = False) -> str:
    """A moment in the time of this place, "" if it is none.

    Args:
        iso: the moment, with its time zone.
        whole: date and time; else the time if it was today, and the date if not.
    """
    try:
        moment = datetime.fromisoformat(iso).astimezone()
    except ValueError:
        return ""
    if whole:
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    today = datetime.now().astimezone().date()
    return moment.strftime("%H:%M" if moment.date() == today else "%d %b")


def seconds_between(begin: str, end: str) -> float | None:
    """Seconds from one moment to another, None if one is none."""
    try:
        passed = datetime.fromisoformat(end) - datetime.fromisoformat(begin)
    except ValueError:
        return None
    return max(passed.total_seconds(), 0.0)
