"""Loads a scripted module from its file and shows its panel."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from slicer_host.mrml_widgets import SlicerWidget
from slicer_host.standins import Behaviour

PANEL_WIDTH = 400


class ScriptedModule(Behaviour):
    """`slicer.modules.name` and the `parent` of its class."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_widget: Any = None
        self._host_classes: Any = None

    def _host_load(self, file: Path) -> None:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{file}: is no Python file.")
        python = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = python
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))
        self.__dict__.setdefault("_host_values", {}).update(name=file.stem, path=str(file))
        setattr(slicer.modules, file.stem.lower(), self)
        spec.loader.exec_module(python)
        self._host_classes = python
        self._host_instance = getattr(python, file.stem)(self)
        slicer.app.moduleManager().moduleLoaded.emit(file.stem)

    def logic(self) -> Any:
        """Slicer answers with a C++ logic of no use; the Python one belongs to the widget."""
        return None

    def widgetRepresentation(self) -> Any:
        if self._host_widget is None:
            self._host_widget = self.createNewWidgetRepresentation()
        return self._host_widget

    def createNewWidgetRepresentation(self) -> Any:
        widget = slicer.qSlicerScriptedLoadableModuleWidget()
        QtWidgets.QVBoxLayout(widget).setContentsMargins(0, 0, 0, 0)
        widget.setMRMLScene(slicer.mrmlScene)
        widget._host_show(getattr(self._host_classes, f"{self.name}Widget"), self.name)
        return widget

    def _host_unload(self) -> None:
        """Let the widget clean up and delete it."""
        manager = slicer.app.moduleManager()
        if self._host_widget is not None:
            if self._host_widget.isEntered:
                self._host_widget.exit()
            manager.moduleAboutToBeUnloaded.emit(self.name)
            self._host_widget.delete()
            self._host_widget = None


class ScriptedWidget(SlicerWidget):
    """The widget that holds the panel of a module."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_self: Any = None
        self._host_entered = False

    def _host_show(self, kind: type, name: str) -> None:
        self.__dict__.setdefault("_host_values", {})["moduleName"] = name
        self._host_self = kind(self)
        setattr(slicer.modules, f"{name}Widget", self._host_self)
        self._host_self.setup()

    def self(self) -> Any:
        return self._host_self

    def _host_read_isEntered(self) -> bool:
        return self._host_entered

    def enter(self) -> None:
        self._host_entered = True
        getattr(self._host_self, "enter", lambda: None)()

    def exit(self) -> None:
        self._host_entered = False
        getattr(self._host_self, "exit", lambda: None)()

    def reload(self) -> None:
        """Make the widget of the class that was read anew (`slicer.util.reloadScriptedModule`)."""
        name = self._host_values["moduleName"]
        self._host_show(getattr(sys.modules[name], f"{name}Widget"), name)


def make_panel(module: Any) -> Any:
    """The panel as Slicer shows it: help, the module's widgets, all of it in a scroll area."""
    content = QtWidgets.QWidget()
    layout = QtWidgets.QVBoxLayout(content)
    layout.setContentsMargins(4, 4, 4, 4)
    layout.setSpacing(4)
    layout.addWidget(_help(module))
    layout.addWidget(module.widgetRepresentation(), 1)
    panel = QtWidgets.QScrollArea()
    panel.setWidget(content)
    panel.setWidgetResizable(True)
    panel.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
    panel.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    panel.windowTitle = module.title
    panel.resize(PANEL_WIDTH, 760)
    return panel


def _help(module: Any) -> Any:
    import ctk

    section = ctk.ctkCollapsibleButton("Help && Acknowledgement")
    layout = QtWidgets.QVBoxLayout(section)
    tabs = QtWidgets.QTabWidget()
    for title, text in (
        ("Help", module.helpText),
        ("Acknowledgement", module.acknowledgementText),
    ):
        browser = QtWidgets.QTextBrowser()
        browser.setHtml(text)
        tabs.addTab(browser, title)
    layout.addWidget(tabs)
    section.collapsed = True
    return section


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "qSlicerScriptedLoadableModule": ScriptedModule,
    "qSlicerScriptedLoadableModuleWidget": ScriptedWidget,
}
