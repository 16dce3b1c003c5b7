"""Which labelled scans tell during a pretraining what its features are worth, if any."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import surely
from SSLPretrainLogic.project import labelled_sets, probe_data_path, with_probe_data
from SSLSegmentationLib.combo import fill_combo
from SSLSegmentationLib.session import Session

_NOTHING, _OTHER = "", "other"
"""Values of the combo that are no set of the project."""


class ProbeChoice:
    """Nothing, a set that was exported into the project, or any folder or CSV.

    The project remembers what was chosen.

    Args:
        ui: of the panel.
        session: the open project.
        changed: called without values when another set is chosen.
    """

    def __init__(self, ui: Any, *, session: Session, changed: Callable[[], None]) -> None:
        self._combo, self._path = ui.pretrainProbe, ui.pretrainProbePath
        self._text = ui.pretrainProbeText
        self._session = session
        self._changed = changed
        self.recall()
        self._combo.connect("currentIndexChanged(int)", self._on_changed)
        self._path.connect("currentPathChanged(QString)", self._on_changed)

    def recall(self) -> None:
        """Choose what the open project remembers."""
        project = self._session.project
        remembered = probe_data_path(project) if project is not None else None
        offered = self._offered()
        kept = _NOTHING if remembered is None else str(remembered)
        is_other = kept not in offered
        before = self._path.blockSignals(True)
        self._path.currentPath = kept if is_other else ""
        self._path.blockSignals(before)
        self._fill(_OTHER if is_other else kept)

    def refresh(self) -> None:
        """Offer what the project has by now; a chosen set that is gone is told as missing."""
        if self._value in self._offered():
            self._fill(self._value)
        else:
            self.recall()

    def chosen(self) -> Path | None:
        """The labelled set, None if nothing is to be asked.

        Raises:
            LogicError: if it is not there.
        """
        value = self._value
        text = str(self._path.currentPath).strip() if value == _OTHER else value
        if value == _NOTHING:
            return None
        if not text:
            raise LogicError(
                _("Probe: no labelled set is chosen."),
                _("Choose one under Advanced settings, or do not probe."),
            )
        if not surely(Path(text).exists):
            raise LogicError(
                _("{path}: does not exist.").format(path=text),
                _("Choose another set to probe with under Advanced settings, or do not probe."),
            )
        return Path(text)

    @property
    def _value(self) -> str:
        return str(self._combo.currentData or _NOTHING)

    def _offered(self) -> dict[str, str]:
        """Texts by values."""
        project = self._session.project
        sets = labelled_sets(project) if project is not None else ()
        own = _("Segments of this project: {name}")
        return {
            _NOTHING: _("Do not probe"),
            **{str(path): own.format(name=path.name) for path in sets},
            _OTHER: _("A labelled folder or CSV"),
        }

    def _fill(self, value: str) -> None:
        before = self._combo.blockSignals(True)
        fill_combo(self._combo, [(text, data) for data, text in self._offered().items()])
        self._combo.currentIndex = max(self._combo.findData(value), 0)
        self._combo.blockSignals(before)
        self._show()

    def _show(self) -> None:
        self._path.visible = self._value == _OTHER
        self._text.visible = self._value != _NOTHING

    def _on_changed(self) -> None:
        self._show()
        # What is not typed to the end yet is not kept; the panel tells what is missing.
        with suppress(LogicError):
            self._remember(self.chosen())
        self._changed()

    def _remember(self, chosen: Path | None) -> None:
        project = self._session.project
        if project is not None and chosen != probe_data_path(project):
            # Nobody else need hear of it: scans and runs are the same.
            self._session.project = with_probe_data(project, chosen)
