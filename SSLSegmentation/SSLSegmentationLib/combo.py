"""Combo boxes whose entries come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def fill_combo(combo: Any, entries: Sequence[tuple[str, str]], *, keep: bool = False) -> None:
    """Give a combo box its texts and what stands behind them; the choice stays where it can.

    Args:
        combo: the box.
        entries: texts and data.
        keep: a choice that is not among them stays as well, e.g. a file.
    """
    chosen, text = str(combo.currentData or ""), str(combo.currentText)
    known = {data for _text, data in entries}
    more = [(text, chosen)] if keep and chosen and chosen not in known else []
    before = combo.blockSignals(True)
    combo.clear()
    for shown, data in (*entries, *more):
        combo.addItem(shown, data)
    combo.currentIndex = max(combo.findData(chosen), 0) if combo.count else -1
    combo.blockSignals(before)
