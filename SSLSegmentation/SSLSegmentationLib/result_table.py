"""The table of volumes, and the ways out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.files import written_whole
from SSLPretrainLogic.tasks import Row, as_text
from SSLSegmentationLib.check_list import swatch

_CASE, _NAME, _ML, _VOXELS, _MEAN = range(5)
_LINE, _FRAME, _MOST_LINES = 24, 30, 8


class ResultTable:
    """Rows of a result in a QTableWidget."""

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self.rows: tuple[Row, ...] = ()
        widget.setColumnCount(5)
        names = (_("Case"), _("Structure"), _("mL"), _("Voxels"), _("Mean HU"))
        widget.setHorizontalHeaderLabels(list(names))
        widget.verticalHeader().visible = False
        header = widget.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(_NAME, qt.QHeaderView.Stretch)

    def show(self, rows: Sequence[Row]) -> None:
        """Show other rows."""
        self.rows = tuple(rows)
        self.widget.setColumnHidden(_CASE, len({row.case for row in rows}) < 2)
        self.widget.setColumnHidden(_MEAN, all(row.mean_hu is None for row in rows))
        self.widget.setRowCount(len(rows))
        for line, row in enumerate(rows):
            for column, text in enumerate(_texts(row)):
                self.widget.setItem(line, column, _cell(text, is_number=column >= _ML))
            if row.color is not None:
                self.widget.item(line, _NAME).setIcon(swatch(row.color))
        # As high as its rows: an empty half of a table looks like missing rows.
        self.widget.setFixedHeight(_FRAME + _LINE * min(max(len(rows), 1), _MOST_LINES))
        self.widget.verticalHeader().setDefaultSectionSize(_LINE)

    def copy(self) -> None:
        """Copy the rows for a spreadsheet."""
        qt.QApplication.clipboard().setText(as_text(self.rows, separator="\t"))

    def save(self, path: Path) -> None:
        """Write the rows as CSV.

        Raises:
            LogicError: if the file cannot be written.
        """
        with written_whole(path) as part:
            part.write_bytes(as_text(self.rows, separator=",").encode())

    def to_scene(self) -> Any:
        """Keep the rows in the scene; answers the table node."""
        import vtk

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", _("Segment volumes"))
        kinds = (vtk.vtkStringArray, vtk.vtkStringArray, vtk.vtkDoubleArray, vtk.vtkLongLongArray)
        names = ("Case", "Structure", "Volume mL", "Voxels", "Mean HU")
        values = [(r.case, r.structure, r.ml, r.voxels, _number(r.mean_hu)) for r in self.rows]
        for column, (kind, name) in enumerate(zip((*kinds, kinds[2]), names, strict=True)):
            array = kind()
            array.SetName(name)
            for row in values:
                array.InsertNextValue(row[column])
            node.AddColumn(array)
        return node


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _texts(row: Row) -> tuple[str, ...]:
    mean = "-" if row.mean_hu is None else f"{row.mean_hu:.0f}"
    return (row.case, row.structure, f"{row.ml:.2f}", str(row.voxels), mean)


def _cell(text: str, *, is_number: bool) -> Any:
    item = qt.QTableWidgetItem(text)
    item.setToolTip(text)
    if is_number:
        item.setData(qt.Qt.TextAlignmentRole, int(qt.Qt.AlignRight | qt.Qt.AlignVCenter))
    return item
