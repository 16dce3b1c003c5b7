"""The table of structures: what the segments of all cases stand for, to be merged and renamed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLSegmentationLib.labelled_cases import fit_height, spread_columns

if TYPE_CHECKING:
    from SSLPretrainLogic.scene.structures import (
        Color,
        FoundSegment,
        Structure,
        StructureTable,
    )

    Edit = Callable[[StructureTable], StructureTable]

_VALUE, _NAME, _SEGMENTS, _CASES = range(4)
_ROWS_AT_MOST = 8
_SWATCH = 12


@dataclass(frozen=True, kw_only=True)
class Row:
    """A structure as the table shows it.

    Attributes:
        structure: value, name, colour.
        segments: names that stand for it, as they are written.
        missing: volumes of the cases without it.
        cases: how many cases there are.
    """

    structure: Structure
    segments: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cases: int = 0


def rows_of(
    table: StructureTable, found: Sequence[FoundSegment], volumes: Mapping[str, str]
) -> tuple[Row, ...]:
    """The rows of a table.

    Args:
        table: structures and what stands for them.
        found: all segments of all cases.
        volumes: names of the cases to names of their volumes.
    """
    lacking = table.missing(found)
    return tuple(
        Row(
            structure=structure,
            segments=tuple(
                dict.fromkeys(s.name for s in found if table.value_of(s.name) == structure.value)
            ),
            missing=tuple(volumes[case] for case in volumes if structure.name in lacking[case]),
            cases=len(volumes),
        )
        for structure in table.structures
    )


def notes_of(
    table: StructureTable, found: Sequence[FoundSegment], volumes: Mapping[str, str]
) -> tuple[str, ...]:
    """What the user should know of a table, in sentences."""
    from SSLPretrainLogic.scene.structures import folded

    out = {folded(s.name): s.name.strip() for s in found if table.sources[folded(s.name)] is None}
    notes = [_("Left out: {names}.").format(names=", ".join(out.values()))] if out else []
    twice = Counter((s.case, folded(s.name)) for s in found)
    for (case, name), count in twice.items():
        if count > 1 and table.sources[name] is not None:
            text = _("{volume} has {count} segments that read “{name}”: they become one structure.")
            notes.append(text.format(volume=volumes[case], count=count, name=name))
    return (*notes, *(by_volume(note, volumes) for note in table.notes))


def by_volume(text: str, volumes: Mapping[str, str]) -> str:
    """A sentence in which cases are called as their volumes are, which users know.

    Args:
        text: with names of cases.
        volumes: names of the cases to names of their volumes.
    """
    for case, volume in volumes.items():
        text = re.sub(rf"\b[Cc]ase {re.escape(case)}\b", lambda _, name=volume: name, text)
    return text


class StructureTableView:
    """Shows a table of structures and changes it.

    Changes are kept as what was done, and done again when the cases change: a case more or less
    does not lose them.

    Attributes:
        table: as changed; None while nothing can be proposed, or names come from a file.
    """

    def __init__(self, widget: Any) -> None:
        self.table: StructureTable | None = None
        self._widget = widget
        self._edits: list[Edit] = []
        self._found: tuple[FoundSegment, ...] = ()
        self._volumes: Mapping[str, str] = {}
        titles = [_("Value"), _("Structure"), _("Segments"), _("Cases")]
        spread_columns(widget, titles, stretched=(_NAME, _SEGMENTS))
        self.show_rows(())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        return notes_of(self.table, self._found, self._volumes) if self.table else ()

    @property
    def is_empty(self) -> bool:
        """Whether no structure is shown."""
        return not self._widget.rowCount

    @property
    def selected(self) -> tuple[str, ...]:
        """Names of the structures of the selected rows, from above."""
        if self.table is None:
            return ()
        rows = sorted({index.row() for index in self._widget.selectedIndexes()})
        return tuple(self.table.structures[row].name for row in rows)

    @property
    def is_changed(self) -> bool:
        """Whether the user has changed what was proposed."""
        return bool(self._edits)

    def propose(self, found: Sequence[FoundSegment], volumes: Mapping[str, str]) -> None:
        """Make a table of segments, with the changes so far.

        Raises:
            LogicError: if a name of a segment is none for a structure.
        """
        from SSLPretrainLogic.scene.structures import proposed

        self._found, self._volumes, self.table = tuple(found), volumes, None
        self.show_rows(())
        table = proposed(self._found)
        for edit in self._edits:
            # What it was about may be in no case that is checked now.
            with suppress(LogicError):
                table = edit(table)
        self.table = table
        self._show()

    def propose_again(self) -> None:
        """Undo all changes."""
        self._edits.clear()
        self.propose(self._found, self._volumes)

    def forget(self) -> None:
        """Forget the cases and what was changed."""
        self._edits.clear()
        self.propose((), {})

    def rename(self, row: int, name: str) -> None:
        """Give a structure another name.

        Raises:
            LogicError: if it is blank or taken.
        """
        if self.table is None:
            return
        old = self.table.structures[row].name
        if name != old:
            self._change(lambda table: table.renamed(old, name), selected=row)

    def merge_selected(self) -> None:
        """Make the selected structures one, with name, value and colour of the first."""
        names = self.selected
        first = min(index.row() for index in self._widget.selectedIndexes())
        self._change(lambda table: table.merged(names, into=names[0]), selected=first)

    def leave_out_selected(self) -> None:
        """Let the selected structures become background."""
        for name in self.selected:
            self._change(lambda table, name=name: table.without(name))

    def show_known(self, structures: Sequence[Structure]) -> None:
        """Show structures that are named in a file, and cannot be changed here."""
        self.table = None
        self.show_rows(tuple(Row(structure=structure) for structure in structures))

    def show_rows(self, rows: Sequence[Row]) -> None:
        """Fill the table; nothing is selected, since other rows stand where rows were."""
        widget = self._widget
        widget.blockSignals(True)
        widget.clearSelection()
        widget.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, item in enumerate(self._items(row)):
                widget.setItem(number, column, item)
        widget.blockSignals(False)
        widget.setColumnHidden(_SEGMENTS, not any(row.segments for row in rows))
        widget.setColumnHidden(_CASES, not any(row.cases for row in rows))
        widget.visible = bool(rows)
        fit_height(widget, rows=_ROWS_AT_MOST)

    def _change(self, edit: Edit, *, selected: int | None = None) -> None:
        if self.table is None:
            return
        try:
            self.table = edit(self.table)
            self._edits.append(edit)
        finally:
            # Also what was typed in vain gives way to the name as it is.
            self._show()
            if selected is not None:
                self._widget.selectRow(selected)

    def _show(self) -> None:
        if self.table is not None:
            self.show_rows(rows_of(self.table, self._found, self._volumes))

    def _items(self, row: Row) -> list[Any]:
        structure = row.structure
        value = qt.QTableWidgetItem(str(structure.value))
        value.setToolTip(_("The voxel value in label files; it stays when others are merged"))
        if structure.color is not None:
            value.setIcon(swatch(structure.color))
        name = qt.QTableWidgetItem(structure.name)
        segments = qt.QTableWidgetItem(", ".join(row.segments))
        segments.setToolTip("\n".join(row.segments))
        items = [value, name, segments, _cases_item(row)]
        fixed = qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable
        for item in items:
            item.setFlags(fixed)
        if self.table is not None:
            name.setFlags(fixed | qt.Qt.ItemIsEditable)
            name.setToolTip(_("Double-click to rename"))
        return items


def _cases_item(row: Row) -> Any:
    there = row.cases - len(row.missing)
    item = qt.QTableWidgetItem(_("{some} of {all}").format(some=there, all=row.cases))
    item.setToolTip(_("Every case has it"))
    if row.missing:
        item.setIcon(slicer.app.style().standardIcon(qt.QStyle.SP_MessageBoxWarning))
        item.setToolTip(_("Missing on: {volumes}").format(volumes=", ".join(row.missing)))
    return item


def swatch(color: Color) -> Any:
    """A small square of a colour."""
    picture = qt.QPixmap(_SWATCH, _SWATCH)
    picture.fill(qt.QColor(*color))
    return qt.QIcon(picture)
