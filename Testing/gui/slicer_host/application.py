"""`slicer.app`, `slicer.modules` and what hangs on them, on the real logic classes of MRML."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from slicer_host.standins import Behaviour

VERSION = (5, 12, 4)
"""The Slicer whose place the host takes."""

_LOGICS = {
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Plots": "vtkSlicerPlotsLogic",
}


class SlicerLogics:
    """The scene and the logic of each module, made in the order that colours need."""

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.application = slicer.vtkSlicerApplicationLogic()
        self.application.SetMRMLScene(self.scene)
        self.application.SetSliceLogics(vtk.vtkCollection())
        self.colors = self.application.GetColorLogic()
        self.colors.SetMRMLScene(self.scene)
        self.colors.AddDefaultColorNodes()
        self.application.SetModuleLogic("Colors", self.colors)
        self.modules = {"Colors": self.colors}
        for name, kind in _LOGICS.items():
            with _quiet():
                logic = getattr(slicer, kind)()
                logic.SetMRMLScene(self.scene)
                logic.SetMRMLApplicationLogic(self.application)
            self.application.SetModuleLogic(name, logic)
            self.modules[name] = logic


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the console lines on Slicer's terminology files, which are not installed here."""
    level = vtk.vtkLogger.GetCurrentVerbosityCutoff()
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    try:
        yield
    finally:
        vtk.vtkLogger.SetStderrVerbosity(level)


class LoadableModule:
    """A module of Slicer written in C++, of which modules use the logic."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name, self._logic = name, logic

    def logic(self) -> Any:
        """Its real logic."""
        return self._logic


class Modules:
    """`slicer.modules`: modules as attributes, in lower case."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"slicer.modules has no {name!r}: it is not loaded.")


class ModuleManager(Behaviour):
    """Finds modules by name."""

    def module(self, name: str) -> Any:
        return vars(slicer.modules).get(name.lower())

    def modulesNames(self) -> list[str]:
        return [module.name for module in vars(slicer.modules).values()]


class CoreIOManager(Behaviour):
    """Reads and writes files with the logic and the storage nodes that Slicer uses itself."""

    def loadNodes(self, kind: str, properties: dict[str, Any], *collected: Any) -> bool:
        readers: dict[str, Callable[[str, str], Any]] = {
            "VolumeFile": self._host_volume(properties),
            "SegmentationFile": lambda path, _: _logic("Segmentations").LoadSegmentationFromFile(
                path, True
            ),
            "ColorTableFile": lambda path, _: _logic("Colors").LoadColorFile(path),
        }
        path = str(properties["fileName"])
        if kind not in readers:
            raise NotImplementedError(f"Slicer loads {kind}; the test host does not.")
        node = readers[kind](path, properties.get("name") or Path(path).name.partition(".")[0])
        if node is not None and collected and collected[0] is not None:
            collected[0].AddItem(node)
        return node is not None

    def _host_volume(self, properties: dict[str, Any]) -> Callable[[str, str], Any]:
        label = int(bool(properties.get("labelmap")))
        return lambda path, name: _logic("Volumes").AddArchetypeVolume(path, name, label)

    def saveNodes(self, _: str, properties: dict[str, Any], *__: Any) -> bool:
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        storage.SetFileName(str(properties["fileName"]))
        return bool(storage.WriteData(node))

    def fileWriterFileType(self, node: Any, *_: Any) -> str:
        kinds = {"vtkMRMLVolumeNode": "VolumeFile", "vtkMRMLSegmentationNode": "SegmentationFile"}
        return next((kind for name, kind in kinds.items() if node.IsA(name)), "NodeFile")

    def fileType(self, path: str) -> str:
        endings = {".seg.nrrd": "SegmentationFile", ".ctbl": "ColorTableFile"}
        found = (kind for ending, kind in endings.items() if str(path).endswith(ending))
        return next(found, "VolumeFile")


def _logic(name: str) -> Any:
    return slicer.app.moduleLogic(name)


class Application(Behaviour):
    """`slicer.app`: one scene, settings in a folder of their own, nothing outside it touched."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        super().__init__(arguments)
        self._host_folder = folder
        self._host_objects: dict[str, Any] = {}
        self._host_environment = dict(os.environ)
        for name, value in _facts(folder).items():
            self.__dict__.setdefault("_host_values", {})[name] = value

    def _host_begin(self, logics: SlicerLogics) -> None:
        self._host_logics = logics

    def _host_one(self, kind: str) -> Any:
        return self._host_objects.setdefault(kind, None) or self._host_made(kind)

    def _host_made(self, kind: str) -> Any:
        self._host_objects[kind] = getattr(slicer, kind)()
        return self._host_objects[kind]

    def mrmlScene(self) -> Any:
        return self._host_logics.scene

    def applicationLogic(self) -> Any:
        return self._host_logics.application

    def moduleLogic(self, name: str) -> Any:
        return self._host_logics.modules[name]

    def moduleManager(self) -> Any:
        return self._host_one("qSlicerModuleManager")

    def layoutManager(self) -> Any:
        return self._host_one("qSlicerLayoutManager")

    def coreIOManager(self) -> Any:
        return self._host_one("qSlicerCoreIOManager")

    ioManager = coreIOManager

    def userSettings(self) -> Any:
        return QtCore.QSettings(self.slicerUserSettingsFilePath, QtCore.QSettings.Format.IniFormat)

    settings = userSettings
    revisionUserSettings = userSettings

    def testingEnabled(self) -> bool:
        # As for a user: Slicer's own code takes other ways when it is tested.
        return False

    def startupEnvironment(self) -> Any:
        environment = QtCore.QProcessEnvironment()
        for name, value in self._host_environment.items():
            environment.insert(name, value)
        return environment

    environment = startupEnvironment

    def setEnvironmentVariable(self, name: str, value: str) -> None:
        self._host_environment[name] = value

    def processEvents(self, *_: Any) -> None:
        QtWidgets.QApplication.processEvents()
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)

    def toSlicerHomeAbsolutePath(self, path: str) -> str:
        return str(Path(self.slicerHome) / path)

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def setRenderPaused(self, paused: bool) -> None:
        self.renderPaused.emit(paused)

    def pauseRender(self) -> None:
        self.setRenderPaused(True)

    def resumeRender(self) -> None:
        self.setRenderPaused(False)

    def logUsageEvent(self, component: str, event: str) -> None:
        self.usageEventLogged.emit(component, event)


def _facts(folder: Path) -> dict[str, Any]:
    major, minor, patch = VERSION
    return {
        "applicationName": "Slicer",
        "arch": platform.machine(),
        "cachePath": str(folder / "cache"),
        "documentationBaseUrl": f"https://slicer.readthedocs.io/en/{major}.{minor}/",
        "documentationVersion": f"{major}.{minor}",
        "extensionsInstallPath": str(folder / "extensions"),
        "isInstalled": True,
        "mainApplicationMajorVersion": major,
        "mainApplicationMinorVersion": minor,
        "mainApplicationPatchVersion": patch,
        "majorVersion": major,
        "minorVersion": minor,
        "os": {"Darwin": "macosx", "Windows": "win"}.get(platform.system(), "linux"),
        "platform": "linux-amd64",
        "releaseType": "Stable",
        "slicerHome": str(folder / "home"),
        "slicerUserSettingsFilePath": str(folder / "Slicer.ini"),
        "temporaryPath": str(folder / "temporary"),
    }


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "qSlicerApplication": Application,
    "qSlicerCoreIOManager": CoreIOManager,
    "qSlicerModuleManager": ModuleManager,
}
