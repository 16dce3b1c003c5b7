"""How CTK's widgets behave, as far as modules notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from PySide6 import QtCore, QtGui, QtWidgets

from slicer_host.standins import Behaviour, emit, listen, strict

_HEADER = 22
"""Height in pixels of the button that folds a section."""
_UNBOUNDED = 16777215
_WANTED = "visibilityToParent"
"""The property in which CTK remembers whether a child is to be seen."""
_TICKS = 1000
"""Positions of a slider between its ends."""


def _row(widget: Any, *parts: QtWidgets.QWidget) -> None:
    layout = QtWidgets.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(4)
    for number, part in enumerate(parts):
        layout.addWidget(part, 0 if number else 1)


def _parent(arguments: tuple[Any, ...]) -> Any:
    return next((a for a in arguments if isinstance(a, QtWidgets.QWidget)), None)


class Folding(Behaviour):
    """Hides its children while it is folded; each comes back as it was shown or hidden.

    What is shown or hidden explicitly while it is folded is so when it is unfolded. As in CTK, a
    property of the child remembers it, and nothing is done before the window is made.
    """

    _host_forces = False
    _host_is_made = False

    def _host_show_children(self) -> None:
        direct = QtCore.Qt.FindChildOption.FindDirectChildrenOnly
        for child in QtCore.QObject.findChildren(self, QtWidgets.QWidget, options=direct):
            self._host_show_child(child)

    def _host_show_child(self, child: QtWidgets.QWidget) -> None:
        kind = QtCore.Qt.WidgetAttribute
        if not QtWidgets.QWidget.testAttribute(self, kind.WA_WState_Created):
            return
        wanted = QtCore.QObject.property(child, _WANTED) is not False
        shown = wanted and self.checked
        self._host_forces = True
        # A child that is just being made must not be shown yet.
        if not shown or QtWidgets.QWidget.testAttribute(child, kind.WA_WState_Created):
            QtWidgets.QWidget.setVisible(child, shown)
        if wanted:
            QtWidgets.QWidget.setAttribute(child, kind.WA_WState_ExplicitShowHide, False)
        self._host_forces = False

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        child = event.child()
        if event.added() and isinstance(child, QtWidgets.QWidget):
            kind, asked = QtCore.Qt.WidgetAttribute, QtWidgets.QWidget.testAttribute
            hidden = asked(child, kind.WA_WState_Hidden)
            if hidden and asked(child, kind.WA_WState_ExplicitShowHide):
                QtCore.QObject.setProperty(child, _WANTED, False)
            child.installEventFilter(self)
            self._host_show_child(child)

    def setVisible(self, shown: bool) -> None:
        self._host_forces = True
        QtWidgets.QWidget.setVisible(self, shown)
        self._host_forces = False
        created = QtCore.Qt.WidgetAttribute.WA_WState_Created
        if not self._host_is_made and QtWidgets.QWidget.testAttribute(self, created):
            self._host_is_made = True
            self._host_show_children()

    def eventFilter(self, child: QtCore.QObject, event: QtCore.QEvent) -> bool:
        kinds = QtCore.QEvent.Type
        if not self._host_forces and event.type() in (kinds.ShowToParent, kinds.HideToParent):
            shown = event.type() == kinds.ShowToParent
            QtCore.QObject.setProperty(child, _WANTED, shown)
            if shown:
                self._host_show_child(child)
        return False


class CollapsibleButton(Folding):
    """A section with a head that folds it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(_parent(arguments))
        self.text = next((a for a in arguments if isinstance(a, str)), "")
        self.setContentsMargins(0, _HEADER, 0, 0)
        self.checkable = True
        self.checked = True
        policy = QtWidgets.QSizePolicy.Policy
        self.setSizePolicy(policy.Preferred, policy.Preferred)
        self.toggled.connect(self._host_toggled)

    def _host_toggled(self, opened: bool) -> None:
        self._host_show_children()
        self.setMaximumHeight(_UNBOUNDED if opened else _HEADER)
        self.updateGeometry()
        self.contentsCollapsed.emit(not opened)

    def _host_read_collapsed(self) -> bool:
        return not self.checked

    def _host_write_collapsed(self, collapsed: bool) -> None:
        self.checked = not collapsed

    def sizeHint(self) -> QtCore.QSize:
        inner = self.layout().totalSizeHint() if self.layout() and self.checked else QtCore.QSize()
        return inner.expandedTo(
            QtCore.QSize(self.fontMetrics().horizontalAdvance(self.text) + 40, _HEADER)
        )

    def minimumSizeHint(self) -> QtCore.QSize:
        least = (
            self.layout().totalMinimumSize() if self.layout() and self.checked else QtCore.QSize()
        )
        return least.expandedTo(QtCore.QSize(60, _HEADER))

    def hitButton(self, position: QtCore.QPoint) -> bool:
        return position.y() < _HEADER

    def paintEvent(self, _: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, _HEADER)
        option.state |= QtWidgets.QStyle.StateFlag.State_Raised
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyle.PrimitiveElement
        option.rect = QtCore.QRect(6, 7, 9, 9)
        painter.drawPrimitive(
            arrow.PE_IndicatorArrowDown if self.checked else arrow.PE_IndicatorArrowRight, option
        )
        label = QtCore.QRect(22, 0, self.width - 26, _HEADER)
        painter.drawItemText(
            label,
            int(QtCore.Qt.AlignmentFlag.AlignVCenter | QtCore.Qt.TextFlag.TextShowMnemonic),
            self.palette,
            self.enabled,
            self.text,
            QtGui.QPalette.ColorRole.ButtonText,
        )


class CollapsibleGroupBox(Folding):
    """A group box that its check mark folds."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(_parent(arguments))
        self.title = next((a for a in arguments if isinstance(a, str)), "")
        self.checkable = True
        self.toggled.connect(self._host_toggled)

    def _host_toggled(self, opened: bool) -> None:
        self._host_show_children()
        self.setMaximumHeight(_UNBOUNDED if opened else _HEADER)

    def _host_read_collapsed(self) -> bool:
        return not self.checked

    def _host_write_collapsed(self, collapsed: bool) -> None:
        self.checked = not collapsed


class SliderWidget(Behaviour):
    """A slider with a spin box."""

    _host_defaults: ClassVar[dict[str, Any]] = {"spinBoxVisible": True, "tracking": True}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._host_slider.setRange(0, _TICKS)
        self._host_spin = QtWidgets.QDoubleSpinBox()
        _row(self, self._host_slider, self._host_spin)
        listen(self._host_slider.sliderMoved, self._host_dragged)
        listen(self._host_spin.valueChanged, self._host_changed)

    def _host_dragged(self, tick: int) -> None:
        low, high = self._host_spin.minimum, self._host_spin.maximum
        self._host_spin.value = low + (high - low) * tick / _TICKS

    def _host_changed(self, value: float) -> None:
        low, high = self._host_spin.minimum, self._host_spin.maximum
        self._host_slider.value = round((value - low) / ((high - low) or 1.0) * _TICKS)
        self.valueChanged.emit(value)

    def _host_read_value(self) -> float:
        return self._host_spin.value

    def _host_write_value(self, value: float) -> None:
        self._host_spin.value = value

    def _host_read_minimum(self) -> float:
        return self._host_spin.minimum

    def _host_write_minimum(self, value: float) -> None:
        self._host_spin.minimum = value

    def _host_read_maximum(self) -> float:
        return self._host_spin.maximum

    def _host_write_maximum(self, value: float) -> None:
        self._host_spin.maximum = value

    def _host_read_singleStep(self) -> float:
        return self._host_spin.singleStep

    def _host_write_singleStep(self, value: float) -> None:
        self._host_spin.singleStep = value

    def _host_read_decimals(self) -> int:
        return self._host_spin.decimals

    def _host_write_decimals(self, value: int) -> None:
        self._host_spin.decimals = value

    def _host_write_suffix(self, value: str) -> None:
        self._host_spin.suffix = value

    def _host_write_prefix(self, value: str) -> None:
        self._host_spin.prefix = value

    def _host_write_spinBoxVisible(self, shown: bool) -> None:
        self._host_spin.visible = shown


class DoubleSpinBox(Behaviour):
    """A spin box in a widget."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(_parent(arguments))
        self._host_spin = QtWidgets.QDoubleSpinBox()
        _row(self, self._host_spin)
        listen(self._host_spin.valueChanged, self._host_changed)

    def _host_changed(self, value: float) -> None:
        emit(self, "valueChanged(double)", value)

    _host_read_value = SliderWidget._host_read_value
    _host_write_value = SliderWidget._host_write_value
    _host_read_minimum = SliderWidget._host_read_minimum
    _host_write_minimum = SliderWidget._host_write_minimum
    _host_read_maximum = SliderWidget._host_read_maximum
    _host_write_maximum = SliderWidget._host_write_maximum
    _host_read_singleStep = SliderWidget._host_read_singleStep
    _host_write_singleStep = SliderWidget._host_write_singleStep
    _host_read_decimals = SliderWidget._host_read_decimals
    _host_write_decimals = SliderWidget._host_write_decimals
    _host_write_suffix = SliderWidget._host_write_suffix


class PathLineEdit(Behaviour):
    """A path with a button to choose it. Empty means that none is given."""

    _host_defaults: ClassVar[dict[str, Any]] = {"showBrowseButton": True, "showHistoryButton": True}

    def __init__(self, parent: Any = None, *_: Any) -> None:
        super().__init__(parent)
        self._host_combo = strict("QComboBox")()
        self._host_combo.setEditable(True)
        self._host_combo.setSizePolicy(
            QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Fixed
        )
        self._host_button = QtWidgets.QToolButton()
        self._host_button.setText("…")
        listen(self._host_button.clicked, self.browse)
        self._host_valid = False
        _row(self, self._host_combo, self._host_button)
        listen(self._host_combo.editTextChanged, self._host_edited)

    def _host_edited(self, text: str) -> None:
        self.currentPathChanged.emit(text)
        valid = QtCore.QFileInfo(text).exists()
        if valid != self._host_valid:
            self._host_valid = valid
            self.validInputChanged.emit(valid)

    def _host_read_currentPath(self) -> str:
        return self._host_combo.currentText

    def _host_write_currentPath(self, path: str) -> None:
        self._host_combo.setEditText(path)

    def _host_write_showBrowseButton(self, shown: bool) -> None:
        self._host_button.setVisible(shown)

    def browse(self) -> None:
        kind = QtWidgets.QFileDialog
        files = self.filters is None or self.filters & QtCore.QDir.Filter.Files
        choose = kind.getOpenFileName if files else kind.getExistingDirectory
        path = choose(self, self.label, self.currentPath)
        if path:
            self.currentPath = path

    def comboBox(self) -> Any:
        return self._host_combo

    def addCurrentPathToHistory(self) -> None:
        if self._host_combo.findText(self.currentPath) < 0:
            self._host_combo.addItem(self.currentPath)

    def retrieveHistory(self) -> None:
        """The host keeps no history between two starts."""


for _value in QtCore.QDir.Filter:
    setattr(PathLineEdit, _value.name, _value)


class DirectoryButton(Behaviour):
    """A button that shows a folder; it always has one."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(_parent(arguments))
        self._host_folder = ""
        self._host_button = QtWidgets.QPushButton()
        _row(self, self._host_button)
        listen(self._host_button.clicked, self.browse)
        given = next((a for a in arguments if isinstance(a, str)), "")
        self._host_write_directory(given)

    def _host_read_directory(self) -> str:
        return self._host_folder

    def _host_write_directory(self, folder: str) -> None:
        path = str(Path(folder or ".").absolute())
        if path != self._host_folder:
            self._host_folder = path
            self._host_button.text = path
            self.directoryChanged.emit(path)

    def browse(self) -> None:
        folder = QtWidgets.QFileDialog.getExistingDirectory(self, self.caption, self.directory)
        if folder:
            self.directory = folder
            self.directorySelected.emit(folder)


class ComboBox(Behaviour):
    """A combo box with a text for no choice and a stable key for each item."""

    def _host_read_currentUserDataAsString(self) -> str:
        return str(self.currentData or "")

    def _host_write_currentUserDataAsString(self, key: str) -> None:
        self.currentIndex = self.findData(key)

    def _host_write_defaultText(self, text: str) -> None:
        self.placeholderText = text


class CheckableComboBox(Behaviour):
    """A combo box whose items can be checked."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.model().dataChanged.connect(lambda *_: self.checkedIndexesChanged.emit())

    def checkableModel(self) -> Any:
        return self.model()

    def checkState(self, index: QtCore.QModelIndex) -> QtCore.Qt.CheckState:
        return QtCore.Qt.CheckState(index.data(QtCore.Qt.ItemDataRole.CheckStateRole) or 0)

    def setCheckState(self, index: QtCore.QModelIndex, state: QtCore.Qt.CheckState) -> None:
        self.model().setData(index, state, QtCore.Qt.ItemDataRole.CheckStateRole)

    def _host_indexes(self) -> list[QtCore.QModelIndex]:
        return [self.model().index(row, 0) for row in range(self.count)]

    def checkedIndexes(self) -> list[QtCore.QModelIndex]:
        checked = QtCore.Qt.CheckState.Checked
        return [i for i in self._host_indexes() if self.checkState(i) == checked]

    def allChecked(self) -> bool:
        return len(self.checkedIndexes()) == self.count

    def noneChecked(self) -> bool:
        return not self.checkedIndexes()


class BasePopupWidget(Behaviour):
    """A widget that appears over another."""

    def showPopup(self) -> None:
        self.show()
        self.popupOpened.emit(True)

    def hidePopup(self) -> None:
        self.hide()
        self.popupOpened.emit(False)


class PopupWidget(Behaviour):
    """One that can be pinned."""

    _host_defaults: ClassVar[dict[str, Any]] = {"active": True, "autoShow": True, "autoHide": True}

    def pinPopup(self, pinned: bool) -> None:
        self.autoHide = not pinned
        self.setVisible(pinned)


class RangeWidget(Behaviour):
    """Two spin boxes, the first never above the second."""

    _host_defaults: ClassVar[dict[str, Any]] = {"minimum": 0.0, "maximum": 99.0}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_low, self._host_high = QtWidgets.QDoubleSpinBox(), QtWidgets.QDoubleSpinBox()
        _row(self, self._host_low, self._host_high)
        self._host_high.value = self._host_high.maximum
        for spin in (self._host_low, self._host_high):
            listen(spin.valueChanged, self._host_changed)

    def _host_changed(self, _: float) -> None:
        self._host_high.minimum = self._host_low.value
        self._host_low.maximum = self._host_high.value
        self.valuesChanged.emit(self._host_low.value, self._host_high.value)

    def setValues(self, low: float, high: float) -> None:
        self._host_low.maximum = max(high, self._host_low.maximum)
        self._host_high.value, self._host_low.value = high, low

    def setRange(self, low: float, high: float) -> None:
        self.minimum, self.maximum = low, high

    def _host_write_minimum(self, value: float) -> None:
        self._host_low.minimum = value

    def _host_write_maximum(self, value: float) -> None:
        self._host_high.maximum = value

    def _host_read_minimumValue(self) -> float:
        return self._host_low.value

    def _host_write_minimumValue(self, value: float) -> None:
        self._host_low.value = value

    def _host_read_maximumValue(self) -> float:
        return self._host_high.value

    def _host_write_maximumValue(self, value: float) -> None:
        self._host_high.value = value


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "ctkBasePopupWidget": BasePopupWidget,
    "ctkCheckableComboBox": CheckableComboBox,
    "ctkCollapsibleButton": CollapsibleButton,
    "ctkCollapsibleGroupBox": CollapsibleGroupBox,
    "ctkComboBox": ComboBox,
    "ctkDirectoryButton": DirectoryButton,
    "ctkDoubleSpinBox": DoubleSpinBox,
    "ctkPathLineEdit": PathLineEdit,
    "ctkPopupWidget": PopupWidget,
    "ctkRangeWidget": RangeWidget,
    "ctkSliderWidget": SliderWidget,
}
