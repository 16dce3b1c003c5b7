"""PySide6 with the manners of PythonQt: what Slicer's modules see as `qt`.

- A property is a value, not a getter: `button.enabled`, `edit.text = "…"`.
- `widget.connect("clicked(bool)", slot)`; a signature that does not exist is refused (Slicer only
  prints a line). A Python slot gets as many arguments as it declares.
- An attribute that does not exist can neither be read nor set; a child can be read by its name.
- Methods take no keyword arguments. What Qt 5.15 lacks is refused.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets

from slicer_host.api import absent
from slicer_host.faults import FAULTS

if sys.version_info < (3, 12):
    # PySide6 6.12 gives back a None that it never took with each call of a static function without
    # a result, e.g. processEvents. None must not run out; from 3.12 on it is not counted.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40

_MODULES = (QtCore, QtGui, QtWidgets)

_KEPT_METHODS = {"sizeHint", "minimumSizeHint"}
"""Virtual methods and properties at once. As properties they would break Qt's layouts."""

_CALLED_BY_QT = {"initViewItemOption", "itemDelegateForIndex"}
"""Virtual methods that Qt 6 calls on its views; refusing them would break what it draws."""

_OWN = "_host_"
"""Begins the names of attributes that belong to the host."""


class PropertyAttribute:
    """Makes a Qt property an attribute; on the class stands what stood there before."""

    def __init__(self, owner: type, meta: QtCore.QMetaProperty, before: Any) -> None:
        self._name, self._kind = str(meta.name()), str(meta.typeName())
        self._writable, self._before = meta.isWritable(), before
        capital = self._name[0].upper() + self._name[1:]
        # QTimer.singleShot is a property and another method: isSingleShot() reads it.
        getters = (
            getattr(owner, f"is{capital}", None),
            getattr(owner, f"has{capital}", None),
            before,
        )
        # The methods of the application are static: they take no instance.
        static = issubclass(owner, QtCore.QCoreApplication)
        self._getter = None if static else next((g for g in getters if callable(g)), None)
        self._setter = None if static else getattr(owner, f"set{capital}", None)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self if self._before is None else self._before
        check_alive(instance)
        if self._getter is not None:
            return self._getter(instance)
        return QtCore.QObject.property(instance, self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        check_alive(instance)
        if not self._writable:
            raise AttributeError(f"{type(instance).__name__}.{self._name} cannot be written.")
        try:
            if isinstance(value, Path):
                raise TypeError("a pathlib.Path")
            self._write(instance, _converted(value, kind=self._kind))
        except (TypeError, ValueError) as error:
            raise AttributeError(
                f"{type(instance).__name__}.{self._name} does not take {value!r} ({error})."
            ) from error

    def _write(self, instance: Any, value: Any) -> None:
        if self._setter is not None:
            self._setter(instance, value)
        elif not QtCore.QObject.setProperty(instance, self._name, value):
            raise TypeError(f"wants {self._kind}")


def check_alive(instance: Any) -> None:
    """Refuse an object whose C++ part is gone: it would take the process with it.

    Raises:
        ValueError: as in PythonQt.
    """
    if not shiboken6.isValid(instance):
        raise ValueError(f"This {type(instance).__name__} was deleted.")


def _converted(value: Any, *, kind: str) -> Any:
    """PythonQt takes a number for a whole number and anything for a truth value."""
    if kind == "bool":
        return bool(value)
    return int(value) if kind == "int" and isinstance(value, float) else value


class Slot:
    """A Python function as a slot: takes as many arguments as it declares, fails aloud."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._count = _argument_count(function)

    def __call__(self, *arguments: Any) -> None:
        try:
            self.function(*arguments[: self._count])
        except Exception as error:
            FAULTS.add(error)

    def as_function(self) -> Callable[..., None]:
        """A plain function, which PySide6 gives all arguments."""

        def call(*arguments: Any) -> None:
            self(*arguments)

        return call


def _argument_count(function: Callable[..., Any]) -> int | None:
    """How many arguments PythonQt passes; None for all. Defaults count as declared."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or code.co_flags & 0x04:  # *arguments
        return None
    return int(code.co_argcount) - (getattr(function, "__self__", None) is not None)


class BoundSignal:
    """A signal of an object: `widget.clicked`, or as `widget.connect("clicked(bool)", …)` says it.

    Args:
        owner: the object.
        name: of the signal, without arguments.
        signal: what connects it in PySide6.
    """

    def __init__(self, owner: Any, name: str, signal: Any) -> None:
        self._owner, self._name, self._signal = owner, name, signal

    def connect(self, slot: Any, *_: Any) -> bool:
        """Call a function, or emit another signal, when this one is emitted."""
        plain = getattr(slot, "_host_native", slot)
        if not callable(plain):
            raise TypeError(f"{slot!r} cannot be called.")
        native = isinstance(plain, types.BuiltinMethodType)
        target = plain if native else Slot(plain).as_function()
        self._signal.connect(target)
        self._connections.append((self._name, plain, self._signal, target))
        return True

    def disconnect(self, slot: Any) -> bool:
        """End a connection; false if there is none."""
        plain = getattr(slot, "_host_native", slot)
        for entry in self._connections:
            name, function, signal, target = entry
            if (name, function) == (self._name, plain):
                signal.disconnect(target)
                self._connections.remove(entry)
                return True
        return False

    def emit(self, *values: Any) -> None:
        """Emit the signal."""
        self._signal.emit(*values)

    __call__ = emit

    @property
    def _connections(self) -> list[Any]:
        kept: list[Any] = self._owner.__dict__.setdefault("_host_connections", [])
        return kept


class _NamedSignal:
    """A signal of a Qt class, told by its C++ signature."""

    def __init__(self, owner: Any, signature: str, signal: Any = None) -> None:
        self._owner, self._text, self._signal = owner, f"2{signature}", signal

    def emit(self, *values: Any) -> None:
        self._signal.emit(*values)

    def connect(self, target: Any) -> None:
        QtCore.QObject.connect(self._owner, self._text, target)

    def disconnect(self, target: Any) -> None:
        QtCore.QObject.disconnect(self._owner, self._text, target)


def _signal_named(instance: Any, signature: str) -> BoundSignal:
    """The signal with this C++ signature.

    Raises:
        ValueError: if there is none.
    """
    wanted = QtCore.QMetaObject.normalizedSignature(signature.lstrip("2"))
    text = bytes(wanted).decode() if not isinstance(wanted, str) else wanted
    name = text.partition("(")[0]
    attribute = getattr(type(instance), "_host_signals", {}).get(text)
    if attribute is not None:
        return BoundSignal(instance, name, object.__getattribute__(instance, attribute))
    if instance.metaObject().indexOfSignal(text) < 0:
        raise ValueError(f"{type(instance).__name__} has no signal {text}.")
    return BoundSignal(instance, name, _NamedSignal(instance, text))


def _first_signal(instance: Any, name: str, signal: Any) -> BoundSignal:
    """The signal of an attribute; of several with one name the one declared first."""
    meta = instance.metaObject()
    for index in range(meta.methodCount()):
        method = meta.method(index)
        if bytes(method.name()).decode() == name and _host_signal(instance, name) is None:
            text = bytes(method.methodSignature()).decode()
            return BoundSignal(instance, name, _NamedSignal(instance, text, signal))
    return BoundSignal(instance, name, signal)


def _host_signal(instance: Any, name: str) -> str | None:
    signals = getattr(type(instance), "_host_signals", {})
    return next((s for s in signals if s.partition("(")[0] == name), None)


def _receiver_slot(receiver: Any, signature: str) -> Any:
    name = signature.lstrip("1").partition("(")[0]
    if not hasattr(receiver, name):
        raise ValueError(f"{type(receiver).__name__} has no slot {signature}.")
    return getattr(receiver, name)


class Manners:
    """What a strict class adds to a class of PySide6."""

    def connect(self, signal: Any, *target: Any) -> bool:
        """`connect("clicked(bool)", function)` or `connect("clicked()", receiver, "slot()")`."""
        slot = _receiver_slot(*target) if len(target) == 2 else target[0]
        return _signal_named(self, signal).connect(slot)

    def disconnect(self, signal: str, *target: Any) -> bool:
        """End a connection; false if there is none."""
        slot = _receiver_slot(*target) if len(target) == 2 else target[0]
        return _signal_named(self, signal).disconnect(slot)

    def findChild(self, kind: Any, name: str = "") -> Any:
        """The first child of a kind; the kind comes first."""
        return next(iter(self.findChildren(kind, name)), None)

    def findChildren(self, kind: Any, name: str = "") -> list[Any]:
        """All children of a kind: a class, or its name."""
        everything = QtCore.QObject.findChildren(self, QtCore.QObject)
        wanted = (lambda c: c.inherits(kind)) if isinstance(kind, str) else _is_a(kind)
        return [c for c in everything if wanted(c) and name in ("", c.objectName)]

    def delete(self) -> None:
        """Delete the C++ object at once."""
        shiboken6.delete(self)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in _OWN_METHODS:
            return object.__getattribute__(self, name)
        if name in type(self)._host_absent:
            raise AttributeError(name)
        check_alive(self)
        # PySide6 has its own way for methods that are static and not (QFile.exists).
        value = _nearest(type(self), "__getattribute__")(self, name)
        if isinstance(value, QtCore.Property):
            return value.fget(self)
        if isinstance(value, QtCore.SignalInstance):
            return _first_signal(self, name, value)
        return _without_keywords(value) if isinstance(value, types.BuiltinMethodType) else value

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            for child in QtCore.QObject.children(self):
                if child.objectName == name:
                    return child
        lack = ", nor has Qt 5.15" if name in type(self)._host_absent else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{lack}.")

    def __setattr__(self, name: str, value: Any) -> None:
        kind = type(self)
        if name.startswith(_OWN) or not kind.__dict__.get("_host_strict") or _is_data(kind, name):
            _nearest(kind, "__setattr__")(self, name, value)
        elif QtCore.QObject.property(self, name) is not None:
            QtCore.QObject.setProperty(self, name, value)
        elif not UI_LOADING:
            raise AttributeError(f"{kind.__name__} has no attribute {name!r} that could be set.")


_OWN_METHODS = {"connect", "disconnect", "findChild", "findChildren", "delete"}

UI_LOADING: list[bool] = []
"""Not empty while a .ui file is read: PySide6 sets each child on its root then, PythonQt not."""


def _is_a(kind: type) -> Callable[[Any], bool]:
    return lambda child: isinstance(child, kind)


def _is_data(kind: type, name: str) -> bool:
    found = next((c.__dict__[name] for c in kind.__mro__ if name in c.__dict__), None)
    return isinstance(found, PropertyAttribute | property | QtCore.Property)


@cache
def _nearest(kind: type, name: str) -> Callable[..., Any]:
    """A special method of the nearest class of PySide6; Python refuses that of a farther one."""
    for base in kind.__mro__:
        if base.__module__.startswith("PySide6") and name in base.__dict__:
            method: Callable[..., Any] = base.__dict__[name]
            return method
    raise TypeError(f"{kind.__name__} is no class of Qt.")


def _without_keywords(method: types.BuiltinMethodType) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if keywords:
            raise TypeError(f"{method.__name__}() takes no keyword arguments in PythonQt.")
        return method(*arguments)

    call._host_native = method
    return call


class StrictMeta(type(QtCore.QObject)):
    """An object that C++ made is an instance too."""

    def __instancecheck__(cls, instance: Any) -> bool:
        base = cls.__dict__.get("_host_base")
        return type.__instancecheck__(cls, instance) or (
            base is not None and type.__instancecheck__(base, instance)
        )


def strict_class(name: str, base: type, members: dict[str, Any], *, module: str) -> type:
    """A class with the manners of PythonQt.

    Args:
        name: of the class.
        base: a class of PySide6 or a strict one.
        members: its own members.
        module: where it says it lives.
    """
    manners = () if issubclass(base, Manners) else (Manners,)
    inherited = getattr(base, "_host_absent", frozenset())
    content = {
        "_host_strict": True,
        "_host_absent": inherited | (absent(name) - _CALLED_BY_QT),
        "__module__": module,
        **members,
    }
    return StrictMeta(name, (*manners, base), content)


def _strict_from_qt(name: str, base: type) -> type:
    def begin(self: Any, *arguments: Any, **keywords: Any) -> None:
        if keywords:
            raise TypeError(f"{name}() takes no keyword arguments in PythonQt.")
        base.__init__(self, *arguments)

    return strict_class(name, base, {"_host_base": base, "__init__": begin}, module="qt")


def _descendants(kind: type) -> Iterator[type]:
    for below in kind.__subclasses__():
        yield below
        yield from _descendants(below)


def make_properties_attributes() -> None:
    """Turn every property of Qt into an attribute, for all objects, also those made in C++."""
    for module in _MODULES:
        for name in dir(module):  # PySide6 makes its classes when they are first asked for
            getattr(module, name, None)
    for kind in [QtCore.QObject, *_descendants(QtCore.QObject)]:
        if kind.__module__.startswith("PySide6") and hasattr(kind, "staticMetaObject"):
            _attributes_of(kind)
    QtCore.QObject.name = property(lambda s: s.objectName, lambda s, v: s.setObjectName(v))
    QtCore.QObject.className = lambda self: self.metaObject().className()
    for kind in (QtWidgets.QDialog, QtWidgets.QMenu, QtCore.QCoreApplication):
        kind.exec_ = kind.exec


def _attributes_of(kind: type) -> None:
    meta = kind.staticMetaObject
    for index in range(meta.propertyCount()):
        entry = meta.property(index)
        name = str(entry.name())
        # A method of a farther class would hide the property of a nearer one.
        own = index >= meta.propertyOffset() or callable(kind.__dict__.get(name))
        if own and name not in _KEPT_METHODS:
            setattr(kind, name, PropertyAttribute(kind, entry, kind.__dict__.get(name)))


def make_qt() -> types.ModuleType:
    """The module `qt`: all names of Qt's three modules, classes of objects strict."""
    qt = types.ModuleType("qt", "Qt, as PythonQt shows it.")
    for source in _MODULES:
        for name in (n for n in dir(source) if not n.startswith("_")):
            thing = getattr(source, name)
            setattr(qt, name, _strict_from_qt(name, thing) if _becomes_strict(thing) else thing)
    return qt


def _becomes_strict(thing: Any) -> bool:
    if not (isinstance(thing, type) and issubclass(thing, QtCore.QObject)):
        return False
    unfit = (QtCore.QCoreApplication, QtGui.QAction)
    return thing is not QtCore.QObject and not issubclass(thing, unfit)
