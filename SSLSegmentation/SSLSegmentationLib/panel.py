"""What all panels have in common: their .ui file, their message, and slots that do not throw."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import qt
import slicer

from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLSegmentationLib.catalogue import Catalogue
from SSLSegmentationLib.job_monitor import JobMonitor
from SSLSegmentationLib.session import Session

_ICONS = {
    "ok": qt.QStyle.SP_DialogApplyButton,
    "error": qt.QStyle.SP_MessageBoxCritical,
    "warning": qt.QStyle.SP_MessageBoxWarning,
    "info": qt.QStyle.SP_MessageBoxInformation,
}
_ICON_SIZE = 16
_HABIT_MS = 500
"""A second click that comes sooner was not meant."""
_LATE_S = 0.2
"""A timer that is so late has waited for a window that stood still."""


def level_icon(level: str) -> Any:
    """The picture of how grave something is: "ok", "info", "warning" or "error"."""
    return slicer.app.style().standardIcon(_ICONS[level])


def guarded(method: Callable[..., Any]) -> Callable[..., None]:
    """A slot that shows what a person can mend as a sentence in its panel, and takes any arguments.

    The method takes as many values of the signal as it declares, as Qt's own slots do.
    """
    count = len(inspect.signature(method).parameters) - 1

    @functools.wraps(method)
    def slot(self: Panel, *values: Any) -> None:
        self.message.clear()
        try:
            method(self, *values[:count])
        except LogicError as error:
            self.message.show_error(error)
        except OSError as error:
            self.message.show_error(told_plainly(error, error.filename or ""))

    return slot


def deliberate(method: Callable[..., Any]) -> Callable[..., None]:
    """A guarded slot of a button that starts something or stops it.

    Who clicks twice by habit would stop at once what the first click has started, with the button
    that has turned into Cancel or with one that has moved under the mouse. So after each click no
    such slot of the session hears anything for half a second.
    """
    slot = guarded(method)

    @functools.wraps(method)
    def heard_once(self: Any, *values: Any) -> None:
        session = self.session
        if session.is_settling:
            return
        session.is_settling = True
        try:
            slot(self, *values)
        finally:
            _settle_later(session)

    return heard_once


def _settle_later(session: Session) -> None:
    """Hear clicks again when the window was at rest for a while."""
    due = time.monotonic() + _HABIT_MS / 1000

    def settle() -> None:
        # Clicks that were made while the window stood still may come only after this.
        session.is_settling = time.monotonic() > due + _LATE_S
        if session.is_settling:
            _settle_later(session)

    qt.QTimer.singleShot(_HABIT_MS, settle)


def bring_into_view(*widgets: Any) -> None:
    """Scroll what holds widgets, once they have their places, so that they are seen.

    Args:
        widgets: of one panel; where there is no room for all, the last is seen from its top.
    """

    def scroll() -> None:
        area = widgets[0]
        while area is not None and not isinstance(area, qt.QScrollArea):
            area = area.parentWidget()
        for widget in widgets if area is not None else ():
            area.ensureWidgetVisible(widget)

    qt.QTimer.singleShot(0, scroll)


class Message:
    """One or two sentences at the end of a panel, with a picture of how grave they are."""

    def __init__(self) -> None:
        self.widget = qt.QWidget()
        self.widget.objectName = "message"
        row = qt.QHBoxLayout(self.widget)
        row.setContentsMargins(0, 0, 0, 0)
        self._icon = qt.QLabel()
        self._icon.setAlignment(qt.Qt.AlignTop)
        self._text = qt.QLabel()
        self._text.objectName = "messageText"
        self._text.wordWrap = True
        # A path is one long word, which must not widen the panel.
        self._text.setMinimumWidth(1)
        self._text.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        # Paths and names are shown as they are, whatever stands in them.
        self._text.textFormat = qt.Qt.PlainText
        row.addWidget(self._icon, 0)
        row.addWidget(self._text, 1)
        self.clear()

    @property
    def text(self) -> str:
        """What is shown, "" if nothing is."""
        return str(self._text.text)

    def show(self, text: str, level: str = "info") -> None:
        """Show a sentence.

        Args:
            text: as it stands.
            level: as `level_icon` names it.
        """
        self._icon.setPixmap(level_icon(level).pixmap(_ICON_SIZE, _ICON_SIZE))
        self._text.text = text
        self.widget.visible = True

    def show_error(self, error: LogicError) -> None:
        """Show what is wrong, and the cure."""
        self.show(str(error), "error")

    def clear(self) -> None:
        """Show nothing."""
        self._text.text = ""
        self.widget.visible = False


class Panel:
    """One section of the module. A panel knows the session and the monitor, and no other panel.

    Attributes:
        UI: name of its .ui file.
        folder: where the .ui files lie.
        widget: root of what it shows.
        ui: the widgets of the .ui file by their names.
    """

    UI: ClassVar[str]

    def __init__(
        self, folder: Path, *, session: Session, monitor: JobMonitor, catalogue: Catalogue
    ) -> None:
        self.folder = folder
        self.session = session
        self.monitor = monitor
        self.catalogue = catalogue
        self.widget = slicer.util.loadUI(str(folder / self.UI))
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.message = Message()
        self.widget.layout().addWidget(self.message.widget)
        self.setup()

    def setup(self) -> None:
        """Connect the widgets; called once."""

    def use_parameters(self, parameters: Any) -> None:
        """Tie the widgets to the parameter node of the scene, None while there is none."""

    def scene_closes(self) -> None:
        """Let go of all nodes."""

    def cleanup(self) -> None:
        """Let go of everything that outlives the panel; jobs go on."""
