"""The table of series: thousands of lines, filled in pieces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.index import Series
from SSLSegmentationLib.stepwise import Steps

ALL, USABLE, REFUSED = range(3)
"""What is shown, in the order of the filter."""

_TITLE, _RESULT, _SLICES, _SIZE, _SPACING, _MODALITY, _PATIENT = range(7)
_WIDTHS = {_TITLE: 176, _RESULT: 124, _SLICES: 44, _SIZE: 92, _SPACING: 96, _MODALITY: 60}
"""The first two fill the narrowest panel, so that no reason is cut off."""


class IndexTable:
    """Shows series in a QTreeWidget.

    Attributes:
        series: those that are shown or hidden by the filter, in the order of the index.
    """

    def __init__(self, tree: Any) -> None:
        self.series: list[Series] = []
        self._tree = tree
        self._items: list[Any] = []
        self._shown = ALL
        for column, width in _WIDTHS.items():
            tree.setColumnWidth(column, width)
        tree.sortByColumn(_TITLE, qt.Qt.AscendingOrder)
        style = slicer.app.style()
        self._usable = style.standardIcon(qt.QStyle.SP_DialogApplyButton)
        self._refused = style.standardIcon(qt.QStyle.SP_DialogCancelButton)

    def filled(self, series: Iterable[Series]) -> Steps:
        """Show other series; each step adds a line."""
        self.clear()
        # Sorting while lines come would take time for each of them.
        self._tree.setSortingEnabled(False)
        for one in series:
            self._add(one)
            yield False
        self._tell_apart()
        self._tree.setSortingEnabled(True)

    def clear(self) -> None:
        """Show nothing."""
        self._tree.clear()
        self.series, self._items = [], []

    def show_only(self, which: int) -> None:
        """Filter: `ALL`, `USABLE` or `REFUSED`."""
        self._shown = which
        for item, series in zip(self._items, self.series, strict=True):
            item.setHidden(not self._fits(series))

    def current(self) -> Series | None:
        """The selected series, None without one."""
        item = self._tree.currentItem()
        if item is None or item.isHidden() or not item.isSelected():
            return None
        return self.series[int(item.data(_TITLE, qt.Qt.UserRole))]

    def _add(self, series: Series) -> None:
        item = qt.QTreeWidgetItem()
        item.setData(_TITLE, qt.Qt.UserRole, len(self.series))
        item.setText(_TITLE, series.title)
        item.setText(_RESULT, _("usable") if series.usable else series.kind)
        item.setIcon(_RESULT, self._usable if series.usable else self._refused)
        # A number and no text, so that it is sorted as one.
        item.setData(_SLICES, qt.Qt.DisplayRole, series.slices)
        item.setText(_SIZE, "×".join(map(str, series.size or ())))
        item.setText(_SPACING, "×".join(f"{mm:.3g}" for mm in series.spacing_mm or ()))
        item.setText(_MODALITY, series.modality)
        item.setText(_PATIENT, series.patient)
        item.setToolTip(_TITLE, str(series.path))
        item.setToolTip(_RESULT, series.reason or _("usable"))
        self._tree.addTopLevelItem(item)
        self.series.append(series)
        self._items.append(item)
        if not self._fits(series):
            item.setHidden(True)

    def _tell_apart(self) -> None:
        """Add to equal titles, as of series in one folder, in what they differ."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, one in enumerate(self.series):
            rows[one.title].append(row)
        for title, same in rows.items():
            if len(same) > 1:
                texts = differences([self.series[row] for row in same])
                for row, text in zip(same, texts, strict=True):
                    self._items[row].setText(_TITLE, f"{title}, {text}")

    def _fits(self, series: Series) -> bool:
        return self._shown == ALL or series.usable == (self._shown == USABLE)


def differences(series: Sequence[Series]) -> list[str]:
    """In what series of one title differ: their slices, else their patients, else their ids."""
    slices = [str(_("{n} slices").format(n=one.slices)) for one in series]
    patients = [one.patient for one in series]
    found = (texts for texts in (slices, patients) if len(set(texts)) == len(series))
    return next(found, [one.id for one in series])
