"""Makes the classes of CTK and Slicer from `api.json` and the behaviours written for them.

A member that Slicer lacks does not exist. One that Slicer has and the host cannot do raises
NotImplementedError when it is used, so that no test passes on an empty shell.
"""

from __future__ import annotations

import enum
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import shiboken6
from PySide6 import QtCore

from slicer_host.api import Members, class_names, members
from slicer_host.pythonqt import Slot, strict_class

_DEFAULTS: dict[str, Callable[[], Any]] = {
    "bool": bool,
    "int": int,
    "double": float,
    "QString": str,
    "QStringList": list,
}
_TAKEN = {"bool": object, "int": int | float, "double": int | float, "QString": str}

_MADE_ELSEWHERE = ("qSlicerApplication", "qSlicerCoreApplication")
_OPENGL = ("ctkVTK", "qMRMLPlotView", "qMRMLSliceView", "qMRMLThreeDView", "qSlicerApp")
"""Views draw with OpenGL; the host has no rendering of its own."""


class Behaviour:
    """What the host can do for a class: methods under their names, properties by two hooks.

    `_host_read_NAME(self)` answers for a property (else what was set last), and
    `_host_write_NAME(self, value)` hears of a new value.
    """

    _host_defaults: Mapping[str, Any] = {}
    """Values of properties before they are set, where they are not empty."""

    _host_also: frozenset[str] = frozenset()
    """Methods that Slicer's own Python code calls, though no header lists them."""


class Standins:
    """The classes, made when they are asked for."""

    def __init__(self, qt: ModuleType, behaviours: Mapping[str, type[Behaviour]]) -> None:
        self._qt, self._behaviours = qt, behaviours
        self._made: dict[str, type] = {}

    def names(self, *prefixes: str) -> list[str]:
        """All classes that can be made and begin so."""
        unfit = (*_MADE_ELSEWHERE, *_OPENGL)
        known = (n for n in class_names() if n.startswith(prefixes) and not n.startswith(unfit))
        return [name for name in known if self._fits(name)]

    def _fits(self, name: str) -> bool:
        bases = members(name).bases
        return any(self._qt_base(b) for b in bases) and not any(
            b.startswith(_OPENGL) for b in bases
        )

    def make(self, name: str) -> type:
        """The class of that name."""
        if name not in self._made:
            self._made[name] = self._build(name, members(name))
        return self._made[name]

    def _qt_base(self, name: str) -> type | None:
        found = getattr(self._qt, name, None)
        return found if isinstance(found, type) and issubclass(found, QtCore.QObject) else None

    def _base(self, entry: Members) -> type:
        for name in entry.bases:
            if name.startswith(("ctk", "qMRML", "qSlicer")) and name in class_names():
                return self.make(name)
            found = self._qt_base(name)
            if found is not None:
                return found
        raise TypeError(f"none of {entry.bases} is known.")

    def _build(self, name: str, entry: Members) -> type:
        base = self._base(entry)
        behaviour = self._behaviours.get(name)
        content: dict[str, Any] = {"_host_strict": True}
        content |= _signals(entry, inherited=getattr(base, "_host_signals", {}))
        content |= {p: _property(p, *entry.properties[p]) for p in entry.properties}
        content |= _enums(entry)
        there = _has_member(base, behaviour)
        _check_behaviour(name, behaviour, entry, base)
        for method in entry.methods:
            if not there(method):
                content[method] = _method(name, method, entry)
        for extra in entry.seen:
            if extra not in content and not there(extra):
                content[extra] = _missing(name, extra)
        bases = base if behaviour is None else type(name, (behaviour, base), {"_host_strict": True})
        module = "ctk" if name.startswith("ctk") else "slicer"
        return strict_class(name, bases, content, module=module)


def _check_behaviour(name: str, behaviour: Any, entry: Members, base: type) -> None:
    """Refuse a behaviour that can more than Slicer's class.

    Raises:
        TypeError: naming what is too much.
    """
    known = {*entry.methods, *entry.seen, *getattr(behaviour, "_host_also", ())}
    public = {n for kind in getattr(behaviour, "__mro__", ()) for n in vars(kind) if n[0] != "_"}
    surplus = {n for n in public - known if not hasattr(base, n)}
    if surplus:
        raise TypeError(f"Slicer's {name} has no {', '.join(sorted(surplus))}.")


def _has_member(base: type, behaviour: type | None) -> Callable[[str], bool]:
    return lambda name: hasattr(base, name) or hasattr(behaviour, name)


def _signals(entry: Members, *, inherited: Mapping[str, str]) -> dict[str, Any]:
    """Signals, each signature under an attribute of its own.

    MRML types have no name in PySide6; they travel as Python objects.
    """
    content: dict[str, Any] = {}
    attributes = dict(inherited)
    # The plain name means the one declared first: nodes before truth values, numbers before text.
    ordered = sorted(entry.signals, key=lambda s: ("*" not in s, "QString" in s))
    for number, signature in enumerate(ordered):
        name, _, kinds = signature.rstrip(")").partition("(")
        attribute = name if name not in content else f"_host_{name}_{number}"
        content[attribute] = QtCore.Signal(*[object] * (kinds.count(",") + bool(kinds)))
        attributes[signature] = attribute
    return {**content, "_host_signals": attributes}


def _property(name: str, kind: str, writable: bool) -> QtCore.Property:
    def read(self: Any) -> Any:
        hook = getattr(type(self), f"_host_read_{name}", None)
        return hook(self) if hook else _stored(self, name, kind)

    def write(self: Any, value: Any) -> None:
        taken = _taken(value, kind=kind, where=f"{type(self).__name__}.{name}")
        self.__dict__.setdefault("_host_values", {})[name] = taken
        hook = getattr(type(self), f"_host_write_{name}", None)
        if hook:
            hook(self, taken)

    return QtCore.Property("QVariant", read, write if writable else None)


def _stored(self: Any, name: str, kind: str) -> Any:
    default = getattr(type(self), "_host_defaults", {}).get(name, _DEFAULTS.get(kind, type(None))())
    return self.__dict__.get("_host_values", {}).get(name, default)


def _taken(value: Any, *, kind: str, where: str) -> Any:
    wanted = _TAKEN.get(kind, object)
    if isinstance(value, Path) or not isinstance(value, wanted):
        raise AttributeError(f"{where} does not take {value!r}; it wants {kind}.")
    return {"bool": bool, "int": int, "double": float}.get(kind, lambda v: v)(value)


def _enums(entry: Members) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, values in entry.enums.items():
        made = enum.IntEnum(name, {value: index for index, value in enumerate(values)})
        content |= {name: made, **dict(made.__members__)}
    return content


def _method(owner: str, name: str, entry: Members) -> Callable[..., Any]:
    """A setter of a property, or a method that tells that the host lacks it."""
    target = name[3:4].lower() + name[4:]
    if name.startswith("set") and target in entry.properties:
        return lambda self, value: setattr(self, target, value)
    return _missing(owner, name)


def _missing(owner: str, name: str) -> Callable[..., Any]:
    def missing(*_: Any) -> Any:
        raise NotImplementedError(f"Slicer has {owner}.{name}; the test host does not.")

    return missing


def strict(name: str) -> Any:
    """A class of the module `qt`, for inner widgets that a module gets into its hands."""
    return getattr(sys.modules["qt"], name)


def emit(instance: Any, signature: str, *values: Any) -> None:
    """Emit one of several signals with the same name."""
    object.__getattribute__(instance, type(instance)._host_signals[signature]).emit(*values)


def listen(signal: Any, method: Callable[..., Any]) -> None:
    """Connect a signal of an inner widget to a method of the outer, not keeping that alive."""
    weak = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        living = weak()
        if living is not None and shiboken6.isValid(living.__self__):
            Slot(living)(*arguments)

    signal.connect(call)
