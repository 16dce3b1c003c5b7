"""Dice per structure while a fine-tuning run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import qt
from slicer.i18n import tr as _

from SSLSegmentationLib.labelled_cases import fit_height, spread_columns
from SSLSegmentationLib.structure_table_view import swatch

if TYPE_CHECKING:
    from SSLPretrainLogic.run_folder import Update
    from SSLPretrainLogic.scene.structures import Color

MEAN = "val/dice_mean"
_PREFIX = "val/dice/"
_ROWS_AT_MOST = 10


def validations(records: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Dice by structure, the mean under "", of the records that have them, by step."""
    return {
        int(record["step"]): {
            **{
                key.removeprefix(_PREFIX): float(value)
                for key, value in record.items()
                if key.startswith(_PREFIX)
            },
            "": float(record[MEAN]),
        }
        for record in records
        if MEAN in record
    }


class DiceView:
    """A row per structure: its Dice at the newest validation, and where the best model was kept."""

    def __init__(self, widget: Any) -> None:
        self._widget = widget
        self._colors: Mapping[str, Color] = {}
        self._by_step: dict[int, dict[str, float]] = {}
        self._best: int | None = None
        titles = [_("Structure"), _("Now"), _("Best")]
        spread_columns(widget, titles, stretched=(0,))
        self.begin({})

    @property
    def is_empty(self) -> bool:
        """Whether nothing was validated yet."""
        return not self._by_step

    def begin(self, colors: Mapping[str, Color]) -> None:
        """Show another run.

        Args:
            colors: of its structures by name, where they are known.
        """
        self._colors, self._by_step, self._best = colors, {}, None
        self._show()

    def add(self, update: Update) -> None:
        """Show what is new in the run."""
        if update.metrics_restarted:
            self._by_step.clear()
        new = validations(update.records)
        self._by_step.update(new)
        before, self._best = self._best, (update.status.best or {}).get("step")
        if new or update.metrics_restarted or before != self._best:
            self._show()

    def _show(self) -> None:
        now = self._by_step[max(self._by_step)] if self._by_step else {}
        best = self._by_step.get(-1 if self._best is None else self._best, {})
        names = sorted(now, key=bool)  # the mean first
        self._widget.setRowCount(len(names))
        for row, name in enumerate(names):
            title = qt.QTableWidgetItem(name or _("Mean"))
            if name in self._colors:
                title.setIcon(swatch(self._colors[name]))
            self._widget.setItem(row, 0, title)
            for column, values in enumerate((now, best), start=1):
                text = f"{values[name]:.2f}" if name in values else _("none")
                item = qt.QTableWidgetItem(text)
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
                self._widget.setItem(row, column, item)
        self._widget.visible = bool(names)
        fit_height(self._widget, rows=_ROWS_AT_MOST)
