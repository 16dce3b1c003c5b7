"""Base classes of a scripted module and the functions of translation: small, our own.

With a folder that holds Slicer's own `Base/Python` the host uses that instead.
"""

from __future__ import annotations

import importlib
import sys
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]

_NODE = "vtkMRMLScriptedModuleNode"
_UNLOADING = "moduleAboutToBeUnloaded(QString)"


def _resource(module: str, name: str) -> str:
    return str(Path(slicer.util.modulePath(module)).parent / "Resources" / name)


class ScriptedLoadableModule:
    """Tells Slicer about a module."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__

    def resourcePath(self, filename: str) -> str:
        return _resource(self.moduleName, filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        url = slicer.app.moduleDocumentationUrl(self.moduleName) if docPage is None else docPage
        return f'<p>For more information see the <a href="{url}">online documentation</a>.</p>'

    def runTest(self, msec: int = 100, **_: Any) -> None:
        name = f"{self.moduleName}Test"
        test = getattr(sys.modules[type(self).__module__], name)()
        test.messageDelay = msec
        test.runTest()


class ScriptedLoadableModuleWidget:
    """The panel of a module."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()
        slicer.app.moduleManager().connect(_UNLOADING, self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        return _resource(self.moduleName, filename)

    def setup(self) -> None:
        """Nothing: the section for developers is not shown."""

    def cleanup(self) -> None:
        """Nothing, unless a module does something here."""

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, name: str) -> None:
        if name == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect(_UNLOADING, self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    """Finds and makes the parameter node of a module."""

    def __init__(self, parent: Any = None) -> None:
        del parent  # Slicer's takes it and forgets it
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        existing = self.getAllParameterNodes()
        return existing[0] if existing else slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self) -> list[Any]:
        if self.isSingletonParameterNode:
            # A closed scene keeps the node and loses its attribute.
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, _NODE)
            if node is not None:
                node.SetAttribute("ModuleName", self.moduleName)
        nodes = slicer.util.getNodesByClass(_NODE)
        return [n for n in nodes if n.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass(_NODE)
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The test that a module brings with it."""

    messageDelay = 0

    def delayDisplay(self, message: str, *_: Any, **__: Any) -> None:
        slicer.util.delayDisplay(message)

    def runTest(self) -> None:
        """Nothing, unless a module does something here."""


def make_i18n() -> ModuleType:
    """The module `slicer.i18n`: texts stay as they are."""
    i18n = ModuleType("slicer.i18n", "Stands in for Slicer's own.")
    i18n.tr = lambda text: text
    i18n.translate = lambda _context, text: text
    i18n.getContext = lambda path: Path(path).stem
    return i18n


def use_own(modules: dict[str, ModuleType]) -> None:
    """Make modules importable as parts of `slicer`."""
    for name, module in modules.items():
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)


def use_real(base_python: Path) -> None:
    """Use Slicer's own Python code.

    Args:
        base_python: the folder `Base/Python` of Slicer's sources.

    Raises:
        FileNotFoundError: if it is not there.
    """
    folder = base_python / "slicer"
    if not (folder / "ScriptedLoadableModule.py").is_file():
        raise FileNotFoundError(f"{base_python}: is not the folder Base/Python of Slicer.")
    slicer.__path__.append(str(folder))
    for name in ("i18n", "ScriptedLoadableModule", "parameterNodeWrapper"):
        setattr(slicer, name, importlib.import_module(f"slicer.{name}"))
