"""Stands in for `slicer.parameterNodeWrapper`: typed parameters in a node, tied to widgets.

As the real one it matches widgets by their exact type, overwrites ranges and items with those of
the annotation, and refuses what it cannot tie. Values are kept as JSON, nodes as references.
"""

from __future__ import annotations

import enum
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import ctk
import qt
import slicer
import vtk

PROPERTY = "SlicerParameterName"
_INT_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Default:
    """Value of a parameter that was never set."""

    value: Any


@dataclass(frozen=True)
class Minimum:
    """Least value."""

    minimum: float


@dataclass(frozen=True)
class Maximum:
    """Greatest value."""

    maximum: float


@dataclass(frozen=True)
class WithinRange:
    """Least and greatest value."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class Choice:
    """The values to choose from."""

    choices: list[Any]


@dataclass(frozen=True)
class Parameter:
    """One field of a parameter node.

    Attributes:
        name: of the field.
        kind: its type, without annotation and None.
        notes: of the annotation.
        default: its value before it is set.
    """

    name: str
    kind: Any
    notes: tuple[Any, ...]
    default: Any

    @property
    def is_node(self) -> bool:
        return isinstance(self.kind, type) and issubclass(self.kind, slicer.vtkMRMLNode)

    def note(self, *kinds: type) -> Any:
        """The first note of these kinds."""
        return next((n for n in self.notes if isinstance(n, kinds)), None)

    def check(self, value: Any) -> None:
        """Refuse a value that the annotation forbids.

        Raises:
            TypeError: if it is of another type.
            ValueError: if it is out of range or no choice.
        """
        origin = get_origin(self.kind) or self.kind
        number = self.kind is float and isinstance(value, int)
        if (
            value is not None
            and isinstance(origin, type)
            and not (number or isinstance(value, origin))
        ):
            raise TypeError(f"{self.name} wants {origin.__name__}, not {value!r}.")
        choice = self.note(Choice)
        if choice and value not in choice.choices:
            raise ValueError(f"{self.name} must be one of {choice.choices}, not {value!r}.")
        low, high = self.limits()
        if isinstance(value, int | float) and not low <= value <= high:
            raise ValueError(f"{self.name} must be from {low} to {high}, not {value!r}.")

    def limits(self) -> tuple[float, float]:
        """Least and greatest value; infinite where none is given."""
        low, high = self.note(Minimum, WithinRange), self.note(Maximum, WithinRange)
        return low.minimum if low else -math.inf, high.maximum if high else math.inf

    def to_text(self, value: Any) -> str:
        """The value as it is kept in the node."""
        return json.dumps(value, default=_plain)

    def from_text(self, text: str) -> Any:
        """The value that was kept."""
        return _restored(json.loads(text), self.kind)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{value!r} cannot be kept in a parameter node.")


def _restored(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if origin in (list, tuple):
        parts = get_args(kind) or (Any,)
        return origin(_restored(v, parts[0]) for v in value)
    if origin is dict:
        return {k: _restored(v, get_args(kind)[1]) for k, v in value.items()}
    if not isinstance(kind, type) or value is None:
        return value
    if issubclass(kind, enum.Enum):
        return kind[value]
    return Path(value) if issubclass(kind, PurePath) else value


def _parameters(owner: type) -> dict[str, Parameter]:
    hints = get_type_hints(owner, include_extras=True)
    return {name: _parameter(name, hint, owner) for name, hint in hints.items()}


def _parameter(name: str, hint: Any, owner: type) -> Parameter:
    kind, notes = hint, ()
    if get_origin(hint) is Annotated:
        kind, *rest = get_args(hint)
        notes = tuple(rest)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    default = next((n.value for n in notes if isinstance(n, Default)), None)
    default = owner.__dict__.get(name, default)
    if default is None and (hint is kind or notes):
        default = _empty(kind, notes)
    return Parameter(name, kind, notes, default)


def _empty(kind: Any, notes: tuple[Any, ...]) -> Any:
    choice = next((n for n in notes if isinstance(n, Choice)), None)
    if choice:
        return choice.choices[0]
    origin = get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return next(iter(origin))
    return origin() if origin in (int, float, str, bool, list, dict, tuple, Path) else None


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Give a class with annotated fields the ways of a parameter node."""
    if classtype is None:
        return parameterNodeWrapper
    parameters = _parameters(classtype)
    content = {k: v for k, v in vars(classtype).items() if k not in (*parameters, "__dict__")}
    content |= {name: _field(p) for name, p in parameters.items()}
    return type(classtype.__name__, (ParameterNode,), {**content, "_parameters": parameters})


def _field(parameter: Parameter) -> property:
    return property(
        lambda self: self.getValue(parameter.name),
        lambda self, value: self.setValue(parameter.name, value),
    )


class ParameterNode:
    """A `vtkMRMLScriptedModuleNode` with typed fields; what is not found here is the node's."""

    _parameters: typing.ClassVar[dict[str, Parameter]] = {}

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        object.__setattr__(self, "parameterNode", parameterNode)
        object.__setattr__(self, "_prefix", f"{prefix}." if prefix else "")
        object.__setattr__(self, "_tied", {})
        with slicer.util.NodeModify(parameterNode):
            for name, parameter in self._parameters.items():
                if not parameter.is_node and not self._text(name):
                    self.setValue(name, parameter.default)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "parameterNode"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._parameters:
            raise AttributeError(f"{type(self).__name__} has no parameter {name!r}.")
        self.setValue(name, value)

    def _text(self, name: str) -> str:
        return str(self.parameterNode.GetParameter(self._prefix + name))

    def _named(self, name: str) -> Parameter:
        if name not in self._parameters:
            raise ValueError(f"{type(self).__name__} has no parameter {name!r}.")
        return self._parameters[name]

    def getValue(self, name: str) -> Any:
        """The value of a parameter."""
        parameter = self._named(name)
        if parameter.is_node:
            return self.parameterNode.GetNodeReference(self._prefix + name)
        text = self._text(name)
        return parameter.from_text(text) if text else parameter.default

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter; it is checked first."""
        parameter = self._named(name)
        parameter.check(value)
        if parameter.is_node:
            node_id = value.GetID() if value is not None else None
            self.parameterNode.SetNodeReferenceID(self._prefix + name, node_id)
        else:
            self.parameterNode.SetParameter(self._prefix + name, parameter.to_text(value))

    def default(self, name: str) -> Any:
        """The value before anybody set one."""
        return self._named(name).default

    def isCached(self, _: str) -> bool:
        """Values are read from the node each time."""
        return False

    def connectGui(self, gui: Any) -> int:
        """Tie parameters to the widgets that name them by `SlicerParameterName`.

        Raises:
            ValueError: if a widget names no parameter, or is of a type that cannot be tied.
        """
        mapping = {w.property(PROPERTY): w for w in _widgets(gui) if w.property(PROPERTY)}
        return self.connectParametersToGui(mapping)

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        """Tie parameters to widgets; answers a tag for `disconnectGui`."""
        ties = []
        for name, widget in mapping.items():
            tie = _tie(widget, self._named(name))
            tie.prepare()
            slot = partial(self._from_gui, name, tie)
            ties.append((name, tie, slot))
        update = partial(self._to_gui, ties)
        update()
        for _, tie, slot in ties:
            tie.widget.connect(tie.signal, slot)
        tag = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, update)
        self._tied[tag] = ties
        return int(tag)

    def disconnectGui(self, tag: int) -> None:
        """Untie."""
        self.parameterNode.RemoveObserver(tag)
        for _, tie, slot in self._tied.pop(tag):
            tie.widget.disconnect(tie.signal, slot)

    def _from_gui(self, name: str, tie: Tie, *_: Any) -> None:
        value = tie.read()
        if value != self.getValue(name):
            self.setValue(name, value)

    def _to_gui(self, ties: list[Any], *_: Any) -> None:
        for name, tie, _slot in ties:
            value = self.getValue(name)
            if tie.read() != value:
                tie.write(value)


@dataclass(frozen=True)
class Tie:
    """How a widget is tied to a parameter.

    Attributes:
        widget: the widget.
        signal: C++ signature of what tells a change.
        read: its value.
        write: shows a value.
        prepare: sets range or items.
    """

    widget: Any
    signal: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    prepare: Callable[[], None] = lambda: None


def _widgets(gui: Any) -> list[Any]:
    if isinstance(gui, qt.QWidget):
        return [gui, *gui.findChildren("QWidget")]
    return [w for w in vars(gui).values() if isinstance(w, qt.QWidget)]


def _tie(widget: Any, parameter: Parameter) -> Tie:
    kind, exact = parameter.kind, type(widget)
    for widgets, fits, make in _ties():
        if exact in widgets and fits(parameter):
            return make(widget, parameter)
    raise ValueError(f"{parameter.name}: a {exact.__name__} cannot be tied to {kind}.")


def _is(*kinds: type) -> Callable[[Parameter], bool]:
    return lambda p: p.kind in kinds


def _attribute(name: str, signal: str, convert: Callable[[Any], Any]) -> Callable[..., Tie]:
    def make(widget: Any, parameter: Parameter) -> Tie:
        return Tie(
            widget,
            signal,
            read=lambda: (parameter.kind if isinstance(parameter.kind, type) else convert)(
                getattr(widget, name)
            ),
            write=lambda value: setattr(widget, name, convert(value)),
        )

    return make


def _number(unbounded_raises: bool) -> Callable[..., Tie]:
    def make(widget: Any, parameter: Parameter) -> Tie:
        low, high = parameter.limits()
        if unbounded_raises and math.isinf(high - low):
            raise ValueError(f"{parameter.name}: a {type(widget).__name__} wants WithinRange.")
        whole = type(widget) in (qt.QSpinBox, qt.QSlider)

        def prepare() -> None:
            limit = float(_INT_LIMIT) if whole else math.inf
            least, most = max(low, -limit - 1), min(high, limit)
            widget.minimum, widget.maximum = (int(least), int(most)) if whole else (least, most)

        kind = "int" if whole else "double"
        return Tie(
            widget,
            f"valueChanged({kind})",
            read=lambda: parameter.kind(widget.value),
            write=lambda value: setattr(widget, "value", value),
            prepare=prepare,
        )

    return make


def _choice(widget: Any, parameter: Parameter) -> Tie:
    is_enum = isinstance(parameter.kind, type) and issubclass(parameter.kind, enum.Enum)
    choices = list(parameter.kind) if is_enum else parameter.note(Choice).choices

    def prepare() -> None:
        widget.clear()
        widget.addItems([_label(c) for c in choices])

    return Tie(
        widget,
        "currentIndexChanged(int)",
        read=lambda: choices[widget.currentIndex] if widget.currentIndex >= 0 else None,
        write=lambda value: setattr(widget, "currentIndex", choices.index(value)),
        prepare=prepare,
    )


def _label(choice: Any) -> str:
    if isinstance(choice, enum.Enum):
        return str(choice.label() if hasattr(choice, "label") else choice.name)
    return str(choice)


def _node(widget: Any, _: Parameter) -> Tie:
    return Tie(
        widget,
        "currentNodeChanged(vtkMRMLNode*)",
        read=widget.currentNode,
        write=widget.setCurrentNode,
    )


def _ties() -> list[tuple[tuple[type, ...], Callable[[Parameter], bool], Callable[..., Tie]]]:
    choices = (qt.QComboBox, ctk.ctkComboBox)
    bounded = (ctk.ctkSliderWidget, slicer.qMRMLSliderWidget, qt.QSlider)
    free = (qt.QSpinBox, qt.QDoubleSpinBox, ctk.ctkDoubleSpinBox, slicer.qMRMLSpinBox)
    path = _is(Path)
    return [
        ((qt.QCheckBox, ctk.ctkCheckBox), _is(bool), _attribute("checked", "toggled(bool)", bool)),
        ((qt.QPushButton,), _is(bool), _attribute("checked", "toggled(bool)", bool)),
        (bounded, _is(int, float), _number(unbounded_raises=True)),
        (free, _is(int, float), _number(unbounded_raises=False)),
        ((qt.QLineEdit,), _is(str), _attribute("text", "textChanged(QString)", str)),
        (
            (ctk.ctkPathLineEdit,),
            path,
            _attribute("currentPath", "currentPathChanged(QString)", str),
        ),
        (
            (ctk.ctkDirectoryButton,),
            path,
            _attribute("directory", "directoryChanged(QString)", str),
        ),
        ((slicer.qMRMLNodeComboBox,), lambda p: p.is_node, _node),
        (choices, _has_choices, _choice),
    ]


def _has_choices(parameter: Parameter) -> bool:
    is_enum = isinstance(parameter.kind, type) and issubclass(parameter.kind, enum.Enum)
    return is_enum or parameter.note(Choice) is not None
