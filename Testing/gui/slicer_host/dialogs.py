"""Modal dialogs and installations: recorded and answered by the test, never shown or done."""

from __future__ import annotations

import subprocess
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from PySide6 import QtCore, QtWidgets

from slicer_host.api import function_names
from slicer_host.pythonqt import Slot

_MESSAGES = ("errorDisplay", "warningDisplay", "infoDisplay", "delayDisplay")
_QUESTIONS = (
    "confirmOkCancelDisplay",
    "confirmYesNoDisplay",
    "confirmRetryCloseDisplay",
    "messageBox",
)
_INSTALLATIONS = ("pip_install", "pip_uninstall")
_PACKAGING = ("pip_ensure", "pip_install", "pip_uninstall")
_FILES = {
    "getExistingDirectory": str,
    "getOpenFileName": str,
    "getOpenFileNames": list,
    "getSaveFileName": str,
}
_BOXES = ("question", "information", "warning", "critical")


@dataclass
class Dialogs:
    """What was shown, and the answers that wait.

    Attributes:
        shown: (function, text) of every message, question and installation, in order.
    """

    shown: list[tuple[str, str]] = field(default_factory=list)
    _answers: dict[str, deque[Any]] = field(default_factory=lambda: defaultdict(deque))

    def answer(self, function: str, *values: Any) -> None:
        """Answer the next calls of a function, e.g. `answer("getExistingDirectory", folder)`."""
        self._answers[function].extend(values)

    def texts(self, function: str) -> list[str]:
        """What a function was told."""
        return [text for name, text in self.shown if name == function]

    def forget(self) -> None:
        """Begin anew."""
        self.shown.clear()
        self._answers.clear()

    def unused(self) -> list[str]:
        """Functions whose answers nobody asked for."""
        return [name for name, answers in self._answers.items() if answers]

    def told(self, function: str) -> Callable[..., Any]:
        """A stand-in that only records."""

        def call(text: Any = "", *_: Any, **__: Any) -> None:
            self.shown.append((function, str(text)))

        return call

    def installed(self, function: str) -> Callable[..., Any]:
        """A stand-in that records, and ends as Slicer's own does.

        It succeeds, or ends with the code that the test has scripted as its answer.
        """

        def call(text: Any = "", *_: Any, **options: Any) -> None:
            self.shown.append((function, str(text)))
            code = self._answers[function].popleft() if self._answers[function] else 0
            if options.get("blocking", True):
                if code:
                    raise subprocess.CalledProcessError(code, "pip install")
                return
            completed = options.get("completedCallback") or (lambda _: None)
            QtCore.QTimer.singleShot(0, Slot(partial(completed, code)).as_function())

        return call

    def asked(self, function: str, *, text_at: int = 0) -> Callable[..., Any]:
        """A stand-in that records and takes the next answer.

        Raises:
            AssertionError: when called without one; in Slicer the dialog would wait for a user.
        """

        def call(*arguments: Any, **_: Any) -> Any:
            told = arguments[text_at] if len(arguments) > text_at else ""
            text = str(getattr(told, "text", told))  # of a message box, the text it shows
            self.shown.append((function, text))
            if not self._answers[function]:
                raise AssertionError(f"{function}({text!r}) waits for a user; script its answer.")
            return self._answers[function].popleft()

        return call

    def install(self, util: ModuleType, packaging: ModuleType) -> None:
        """Take the place of Slicer's and Qt's modal functions."""
        for name in _MESSAGES:
            setattr(util, name, self.told(_known(util, name)))
        for module, names in ((util, _INSTALLATIONS), (packaging, _PACKAGING)):
            for name in names:
                setattr(module, name, self.installed(_known(module, name)))
        for name in _QUESTIONS:
            setattr(util, name, self.asked(_known(util, name)))
        for name in _FILES:
            setattr(QtWidgets.QFileDialog, name, staticmethod(self.asked(name, text_at=1)))
        for name in _BOXES:
            setattr(QtWidgets.QMessageBox, name, staticmethod(self.asked(name, text_at=2)))
        for name in ("exec", "exec_"):
            setattr(QtWidgets.QDialog, name, self.asked("exec"))
            setattr(QtWidgets.QMessageBox, name, self.asked("exec"))


def _known(module: ModuleType, name: str) -> str:
    if name not in function_names(module.__name__):
        raise AttributeError(f"{module.__name__}.{name} does not exist in Slicer.")
    return name


def make_packaging() -> ModuleType:
    """The module `slicer.packaging` with the names that Slicer 5.12 has."""
    packaging = ModuleType("slicer.packaging", "Stands in for Slicer's own.")
    for name in function_names("slicer.packaging"):
        setattr(packaging, name, _refused(name))
    packaging.isPipInstallInProgress = bool
    packaging.pip_check = _pip_check
    return packaging


def _refused(name: str) -> Callable[..., Any]:
    def missing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"Slicer has slicer.packaging.{name}; the test host does not.")

    return missing


def _pip_check(requirement: str) -> bool:
    from importlib import metadata

    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def paths_without_filters() -> None:
    """PythonQt's file dialogs answer with the path alone; PySide6 adds the filter."""
    for name, empty in _FILES.items():
        if name != "getExistingDirectory":
            original = getattr(QtWidgets.QFileDialog, name)
            setattr(QtWidgets.QFileDialog, name, staticmethod(_first(original, empty)))


def _first(function: Callable[..., Any], empty: type) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments)[0] or empty()
