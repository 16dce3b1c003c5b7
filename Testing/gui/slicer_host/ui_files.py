"""Reads .ui files into strict widgets, and refuses what Slicer's loader would pass over.

Properties of CTK's and Slicer's widgets, and all connections, are taken out of the file and set by
the host, after the children exist. So a misspelt name is an error and not a dynamic property.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from slicer_host.api import class_names
from slicer_host.pythonqt import UI_LOADING, PropertyAttribute
from slicer_host.standins import Standins

_LINE = "Line"
"""Designer's name for a frame drawn as a line."""

Connection = dict[str, str]
Values = dict[str, dict[str, ET.Element]]


def loader_class(qt: ModuleType, standins: Standins) -> type:
    """The class `qt.QUiLoader`."""

    class UiLoader(QtUiTools.QUiLoader):
        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self._errors: list[Exception] = []

        def createWidget(self, kind: str, parent: Any = None, name: str = "") -> Any:
            # An exception that leaves this method would end the process.
            try:
                made = _class(kind, qt=qt, standins=standins)
                widget = made(parent) if made else super().createWidget(kind, parent, name)
            except Exception as error:
                self._errors.append(error)
                widget = QtWidgets.QWidget(parent)
            widget.setObjectName(name)
            return widget

        def load(self, file: Any, parent: Any = None) -> Any:
            path = Path(file.fileName())
            tree = ET.parse(path)
            connections, values = _taken_out(tree, qt=qt, standins=standins, path=path)
            root = self._loaded(ET.tostring(tree.getroot()), parent)
            if self._errors:
                raise self._errors[0]
            named = {o.objectName: o for o in (root, *root.findChildren(QtCore.QObject))}
            _set_all(named, values, path=path)
            for connection in connections:
                _connect(named, connection, path=path)
            return root

        def _loaded(self, content: bytes, parent: Any) -> Any:
            buffer = QtCore.QBuffer()
            buffer.setData(content)
            buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
            UI_LOADING.append(True)
            try:
                return super().load(buffer, parent)
            finally:
                UI_LOADING.pop()

    return UiLoader


def _class(kind: str, *, qt: ModuleType, standins: Standins) -> Any:
    """The strict class of a widget; None leaves it to Qt's loader."""
    if kind in class_names():
        return standins.make(kind)
    return None if kind == _LINE else getattr(qt, kind, None)


def _taken_out(
    tree: ET.ElementTree[Any], *, qt: ModuleType, standins: Standins, path: Path
) -> tuple[list[Connection], Values]:
    root = tree.getroot()
    connections = [{part.tag: part.text or "" for part in c} for c in root.iter("connection")]
    for element in root.findall("connections"):
        root.remove(element)
    values: Values = {}
    for widget in root.iter("widget"):
        kind, name = widget.get("class", ""), widget.get("name", "")
        if name in values:
            raise ValueError(f"{path.name}: two widgets are called {name}.")
        made = _class(kind, qt=qt, standins=standins)
        values[name] = {}
        for entry in widget.findall("property") if made is not None else ():
            if _is_hosts(entry, made, where=f"{path.name}: {name}"):
                widget.remove(entry)
                values[name][entry.get("name", "")] = entry
    return connections, values


def _is_hosts(entry: ET.Element, kind: type, *, where: str) -> bool:
    """Whether the host sets a property, and not Qt's loader."""
    name = entry.get("name", "")
    found = next((c.__dict__[name] for c in kind.__mro__ if name in c.__dict__), None)
    dynamic = entry.get("stdset") == "0"
    if not dynamic and not isinstance(found, PropertyAttribute | QtCore.Property):
        raise ValueError(f"{where}: {kind.__name__} has no property {name}.")
    return isinstance(found, QtCore.Property)


def _set_all(named: dict[str, Any], values: Values, *, path: Path) -> None:
    for name, entries in values.items():
        for key, entry in entries.items():
            try:
                setattr(named[name], key, _value(entry[0], owner=named[name]))
            except AttributeError as error:
                raise ValueError(f"{path.name}: {name}: {error}") from error


def _value(element: ET.Element, *, owner: Any) -> Any:
    text = element.text or ""
    if element.tag in ("set", "enum"):
        parts = [getattr(owner, part.rpartition("::")[2]) for part in text.split("|")]
        total = parts[0]
        for part in parts[1:]:
            total |= part
        return total
    if element.tag == "stringlist":
        return [part.text or "" for part in element]
    readers: dict[str, Callable[[str], Any]] = {
        "bool": lambda t: t == "true",
        "number": int,
        "double": float,
        "string": str,
        "cstring": str,
    }
    return readers[element.tag](text)


def _connect(named: dict[str, Any], connection: Connection, *, path: Path) -> None:
    sender, receiver = named[connection["sender"]], named[connection["receiver"]]
    slot = connection["slot"].partition("(")[0]
    if not hasattr(receiver, slot):
        raise ValueError(
            f"{path.name}: {type(receiver).__name__} has no slot {connection['slot']}."
        )
    sender.connect(connection["signal"], getattr(receiver, slot))
