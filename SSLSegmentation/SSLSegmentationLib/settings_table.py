"""Settings over those of a preset, read from widgets: what is left alone is left to the preset."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import qt
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError


class SettingsTable:
    """Widgets by the settings that they stand for, and a text for all others.

    A spin box at its minimum and a combo box at its first entry stand for the preset's own value.

    Args:
        widgets: spin boxes and combo boxes by the name that `--set` takes.
        further: a plain text edit with a `key=value` in each line.
        changed: called without values when anything is changed.
    """

    def __init__(
        self, widgets: Mapping[str, Any], *, further: Any, changed: Callable[[], None]
    ) -> None:
        self._widgets = dict(widgets)
        self._further = further
        for widget in self._widgets.values():
            is_combo = isinstance(widget, qt.QComboBox)
            widget.connect("currentIndexChanged(int)" if is_combo else "valueChanged(int)", changed)
        further.connect("textChanged()", changed)

    def overrides(self) -> tuple[str, ...]:
        """The settings as `--set` takes them.

        Raises:
            LogicError: if a line is no setting, or names one that has a widget.
        """
        chosen = {name: _value(widget) for name, widget in self._widgets.items()}
        own = [f"{name}={value}" for name, value in chosen.items() if value]
        lines = [line.strip() for line in str(self._further.plainText).splitlines()]
        return (*own, *(self._checked(line) for line in lines if line))

    def _checked(self, line: str) -> str:
        name, _sign, value = (part.strip() for part in line.partition("="))
        if not re.fullmatch(r"[a-z_]\w*(\.\w+)*", name) or not value:
            raise LogicError(
                _("{line}: is no setting.").format(line=line),
                _("Write key=value, e.g. train.learning_rate=0.0002."),
            )
        if name in self._widgets:
            raise LogicError(
                _("{name}: has a field of its own.").format(name=name), _("Set it there.")
            )
        return f"{name}={value}"


def _value(widget: Any) -> str:
    """What is chosen, "" if that is left to the preset."""
    if isinstance(widget, qt.QComboBox):
        return str(widget.currentText) if widget.currentIndex > 0 else ""
    return str(widget.value) if widget.value > widget.minimum else ""
