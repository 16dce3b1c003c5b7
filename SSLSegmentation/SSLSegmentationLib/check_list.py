"""A list in which several things can be chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import qt

_SWATCH = 12
_LINE, _FRAME, _MOST_LINES = 18, 6, 7


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A thing to choose.

    Attributes:
        key: what it is known by.
        text: as it is shown.
        color: red, green, blue, 0 to 255; None shows none.
    """

    key: str
    text: str
    color: tuple[int, int, int] | None = None


def swatch(color: tuple[int, int, int]) -> Any:
    """A small square of a colour, as an icon."""
    picture = qt.QPixmap(_SWATCH, _SWATCH)
    picture.fill(qt.QColor(*color))
    return qt.QIcon(picture)


class CheckList:
    """Entries with boxes in a QListWidget."""

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self._keys: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """What can be chosen."""
        return self._keys

    @property
    def chosen(self) -> tuple[str, ...]:
        """What is chosen."""
        items = enumerate(self._keys)
        return tuple(k for row, k in items if self.widget.item(row).checkState() == qt.Qt.Checked)

    def show(self, entries: Sequence[Entry], *, chosen: Iterable[str]) -> None:
        """Show other entries.

        Args:
            entries: in their order.
            chosen: the keys of those that are chosen.
        """
        self.widget.blockSignals(True)
        self.widget.clear()
        wanted = set(chosen)
        for entry in entries:
            item = qt.QListWidgetItem(entry.text)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(_state(entry.key in wanted))
            if entry.color is not None:
                item.setIcon(swatch(entry.color))
            self.widget.addItem(item)
        self._keys = tuple(entry.key for entry in entries)
        # As high as its entries: an empty half looks as if something were missing.
        lines = min(max(len(entries), 1), _MOST_LINES)
        self.widget.setFixedHeight(_FRAME + lines * max(self.widget.sizeHintForRow(0), _LINE))
        self.widget.blockSignals(False)

    def choose(self, keys: Iterable[str]) -> None:
        """Choose these and no others; the widget tells of each change."""
        wanted = set(keys)
        for row, key in enumerate(self._keys):
            self.widget.item(row).setCheckState(_state(key in wanted))


def _state(on: bool) -> Any:
    return qt.Qt.Checked if on else qt.Qt.Unchecked
