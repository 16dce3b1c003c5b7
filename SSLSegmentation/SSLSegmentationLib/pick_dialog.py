"""A dialog in which several of many things are chosen, some of them in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLSegmentationLib.stepwise import Steps, Stepwise


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One thing to choose.

    Attributes:
        text: as shown.
        value: what is handed over.
        group: under which heading it stands, "" for none.
        detail: second column.
    """

    text: str
    value: Any
    group: str = ""
    detail: str = ""


class PickDialog:
    """Shows choices as they are found; does not wait for the answer.

    Args:
        folder: of the .ui files.
        title: of the window.
        sentence: what happens with what is chosen.
        empty: the sentence shown if there are no choices.
    """

    def __init__(self, folder: Path, *, title: str, sentence: str, empty: str) -> None:
        self.dialog = slicer.util.loadUI(str(folder / "DataPick.ui"))
        self.ui = slicer.util.childWidgetVariables(self.dialog)
        self.dialog.setParent(slicer.util.mainWindow(), qt.Qt.Dialog)
        self.dialog.windowTitle = title
        self.ui.dataPickSentence.text = sentence
        self._empty = empty
        self._values: list[Any] = []
        self._checked: set[int] = set()
        self._groups: dict[str, Any] = {}
        self._receiver: Callable[[list[Any]], None] | None = None
        self._over = False
        self._steps = Stepwise(self._show_error)
        self.ui.dataPickTree.setColumnWidth(0, 280)
        self.ui.dataPickTree.connect("itemChanged(QTreeWidgetItem*,int)", self._on_changed)
        self.ui.dataPickAll.connect("clicked()", self._check_all)
        self.ui.dataPickOk.connect("clicked()", self._accept)
        self.ui.dataPickCancel.connect("clicked()", self.close)
        self.dialog.connect("finished(int)", self._on_finished)
        self._count()

    def show(self, choices: Iterable[Choice], receiver: Callable[[list[Any]], None]) -> None:
        """Let a person choose.

        Args:
            choices: found one by one.
            receiver: is given the chosen values; it is not called after a cancel.
        """
        self._receiver = receiver
        self.dialog.open()
        self._steps.start(self._filled(choices), self._on_filled)

    def close(self) -> None:
        """As Cancel does."""
        if not self._over:
            self.dialog.reject()

    def _accept(self) -> None:
        self.dialog.accept()
        if self._receiver is not None:
            self._receiver([self._values[number] for number in sorted(self._checked)])

    def _on_finished(self) -> None:
        self._over = True
        self._steps.stop()
        # Slicer's main window would keep it.
        self.dialog.deleteLater()

    def _filled(self, choices: Iterable[Choice]) -> Steps:
        for choice in choices:
            self._add(choice)
            yield False

    def _on_filled(self, _result: None) -> None:
        self._count()
        if not self._values:
            self.ui.dataPickCount.text = self._empty

    def _add(self, choice: Choice) -> None:
        item = self._checkable(choice.text)
        item.setText(1, choice.detail)
        item.setData(0, qt.Qt.UserRole, len(self._values))
        self._values.append(choice.value)
        if not choice.group:
            self.ui.dataPickTree.addTopLevelItem(item)
            return
        self.ui.dataPickTree.rootIsDecorated = True
        heading = self._groups.get(choice.group)
        if heading is None:
            heading = self._checkable(choice.group)
            heading.setFlags(heading.flags() | qt.Qt.ItemIsAutoTristate)
            heading.setData(0, qt.Qt.UserRole, -1)
            self.ui.dataPickTree.addTopLevelItem(heading)
            heading.setExpanded(True)
            self._groups[choice.group] = heading
        heading.addChild(item)

    def _checkable(self, text: str) -> Any:
        item = qt.QTreeWidgetItem()
        item.setText(0, text)
        item.setToolTip(0, text)
        item.setFlags(item.flags() | qt.Qt.ItemIsUserCheckable)
        item.setCheckState(0, qt.Qt.Unchecked)
        return item

    def _on_changed(self, item: Any) -> None:
        number = int(item.data(0, qt.Qt.UserRole))
        if number < 0:
            return
        if item.checkState(0) == qt.Qt.Checked:
            self._checked.add(number)
        else:
            self._checked.discard(number)
        self._count()

    def _check_all(self) -> None:
        state = qt.Qt.Unchecked if len(self._checked) == len(self._values) else qt.Qt.Checked
        tree = self.ui.dataPickTree
        for row in range(tree.topLevelItemCount):
            tree.topLevelItem(row).setCheckState(0, state)

    def _count(self) -> None:
        chosen, every = len(self._checked), len(self._values)
        self.ui.dataPickCount.text = _("{chosen} of {every} chosen").format(
            chosen=chosen, every=every
        )
        self.ui.dataPickOk.enabled = chosen > 0
        self.ui.dataPickOk.toolTip = (
            _("Add what is ticked") if chosen else _("Tick at least one line first")
        )
        self.ui.dataPickAll.enabled = every > 0

    def _show_error(self, error: LogicError) -> None:
        self.ui.dataPickCount.text = str(error)
