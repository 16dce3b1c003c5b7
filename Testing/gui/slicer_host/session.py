"""The host as a whole: started once per process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtGui, QtTest, QtWidgets

from slicer_host import (
    application,
    ctk_widgets,
    dicom,
    effects,
    look,
    modules,
    mrml_widgets,
    scripted,
    views,
)
from slicer_host.dialogs import Dialogs, make_packaging, paths_without_filters
from slicer_host.faults import FAULTS
from slicer_host.pythonqt import check_alive, make_properties_attributes, make_qt
from slicer_host.standins import Standins
from slicer_host.ui_files import loader_class

_BEHAVIOURS = {
    **application.BEHAVIOURS,
    **ctk_widgets.BEHAVIOURS,
    **dicom.BEHAVIOURS,
    **effects.BEHAVIOURS,
    **modules.BEHAVIOURS,
    **mrml_widgets.BEHAVIOURS,
    **views.BEHAVIOURS,
}
_STEP_S = 0.005
_STILL_S = 0.2
_PACE_S = 0.6
"""So long does a user take between two clicks on a button, if both are meant."""


class Host:
    """A stand-in for a running Slicer in this process.

    Args:
        folder: for settings and temporary files; nothing is written elsewhere.
        testing: dialogs are recorded and answered by the test; else they are shown.
        base_python: the folder `Base/Python` of Slicer's sources, to use its own Python code.
        theme: of the widgets.
    """

    def __init__(
        self,
        folder: Path,
        *,
        testing: bool = True,
        base_python: Path | None = None,
        theme: look.Theme = "light",
    ) -> None:
        self.folder = folder
        for part in ("temporary", "cache", "home", "extensions"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        _isolate_settings(folder)
        make_properties_attributes()
        qt = make_qt()
        self._standins = Standins(qt, _BEHAVIOURS)
        qt.QUiLoader = loader_class(qt, self._standins)
        self.application = self._standins.make("qSlicerApplication")(["Slicer"], folder)
        look.use_font(self.application)
        look.apply_theme(self.application, theme)
        self._fill(qt)
        self.dialogs = Dialogs()
        self._clicked: dict[int, float] = {}
        self.hears_clicks: Callable[[], bool] = lambda: True
        self._stood_still = 0.0
        self._use_python(base_python)
        paths_without_filters()
        if testing:
            self.dialogs.install(slicer.util, sys.modules["slicer.packaging"])
        FAULTS.install()

    def _fill(self, qt: ModuleType) -> None:
        """Complete `qt`, `ctk` and `slicer`."""
        ctk = ModuleType("ctk", "CTK's widgets, as Slicer's Python side shows them.")
        for target, prefixes in ((ctk, ("ctk",)), (slicer, ("qMRML", "qSlicer"))):
            for name in self._standins.names(*prefixes):
                setattr(target, name, self._standins.make(name))
        sys.modules["qt"], sys.modules["ctk"] = qt, ctk
        logics = application.SlicerLogics()
        self.application._host_begin(logics)
        slicer.app, slicer.mrmlScene = self.application, logics.scene
        slicer.dicomDatabase = ctk.ctkDICOMDatabase()
        slicer.modules = application.Modules()
        for name, logic in logics.modules.items():
            setattr(slicer.modules, name.lower(), application.LoadableModule(name, logic))
        _own_subject_items(logics.scene)
        self.application.layoutManager()._host_start()

    def _use_python(self, base_python: Path | None) -> None:
        scripted.use_own({"packaging": make_packaging()})
        if base_python is not None:
            scripted.use_real(base_python)
        else:
            from slicer_host import parameter_node

            scripted.use_own(
                {
                    "i18n": scripted.make_i18n(),
                    "ScriptedLoadableModule": scripted,
                    "parameterNodeWrapper": parameter_node,
                }
            )
        sys.modules.update(effects.make_packages())

    # Modules

    def python(self, name: str) -> ModuleType:
        """`slicer`, `qt` or `ctk`, as a module of Slicer imports it."""
        return sys.modules[name]

    def load(self, file: Path) -> Any:
        """Load a scripted module; answers `slicer.modules.<name>`.

        Raises:
            Exception: whatever the module raises while it is read.
        """
        module = slicer.qSlicerScriptedLoadableModule()
        module._host_load(Path(file).resolve())
        return module

    def startup_completed(self) -> None:
        """Tell modules that Slicer is up, once they are all loaded."""
        self.application.startupCompleted.emit()
        self.settle()

    def show(self, module: Any, *, size: tuple[int, int] = (modules.PANEL_WIDTH, 760)) -> Any:
        """Show the panel of a module and enter it."""
        panel = modules.make_panel(module)
        panel.resize(*size)
        panel.show()
        module.widgetRepresentation().enter()
        self.settle()
        return panel

    def unload(self, module: Any) -> None:
        """Leave a module, let it clean up and forget it."""
        module._host_unload()
        for name in (module.name.lower(), f"{module.name}Widget"):
            if hasattr(slicer.modules, name):
                delattr(slicer.modules, name)
        sys.modules.pop(module.name, None)
        self.settle()

    # Time and input

    def settle(self) -> None:
        """Let all that waits happen."""
        for _ in range(3):
            self._process_events()

    def _process_events(self) -> None:
        before = time.monotonic()
        self.application.processEvents()
        if time.monotonic() > before + _STILL_S:
            self._stood_still = time.monotonic()

    def wait_until(
        self, there: Callable[[], Any], *, limit_s: float = 20.0, every_s: float = _STEP_S
    ) -> None:
        """Let time pass until something is so.

        Args:
            there: tells whether it is so.
            limit_s: longer is not waited.
            every_s: between two looks.

        Raises:
            AssertionError: if it does not become so.
        """
        deadline = time.monotonic() + limit_s
        while not there():
            if time.monotonic() > deadline:
                raise AssertionError(f"did not happen within {limit_s:.0f} s")
            self._process_events()
            time.sleep(every_s)

    def click(self, widget: Any, *, by_habit: bool = False) -> None:
        """Click a widget with the mouse; it must be there to be clicked.

        Args:
            widget: what is clicked.
            by_habit: at once after another click on it; else as much later as a user who means
                it, and not before `hears_clicks`, which a module may set that stops its ears.

        Raises:
            AssertionError: if it is hidden or disabled: a user could not click it.
        """
        check_alive(widget)
        if not by_habit:
            self.wait_until(self.hears_clicks)
        if not by_habit and id(widget) in self._clicked:
            before = self._clicked[id(widget)]
            # A user does not click at a window that stands still.
            self.wait_until(lambda: time.monotonic() > max(before, self._stood_still) + _PACE_S)
        if not (widget.visible and widget.enabled):
            raise AssertionError(
                f"{widget.objectName or widget} cannot be clicked: hidden or disabled."
            )
        where = QtCore.QPoint(min(12, widget.width // 2), min(10, widget.height // 2))
        QtTest.QTest.mouseClick(
            widget, QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier, where
        )
        self.settle()
        self._clicked[id(widget)] = time.monotonic()

    def type(self, widget: Any, text: str) -> None:
        """Type into a widget."""
        QtTest.QTest.keyClicks(widget, text)
        self.settle()

    # Pictures

    def use_theme(self, theme: look.Theme) -> None:
        """Change between light and dark."""
        look.apply_theme(self.application, theme)
        self.settle()

    def picture(self, widget: Any, path: Path, *, scale: int = 1) -> QtGui.QPixmap:
        """Save a picture of a widget as PNG.

        Raises:
            OSError: if it cannot be written.
        """
        made = look.picture(widget, scale=scale)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not made.save(str(path)):
            raise OSError(f"{path}: cannot be written.")
        return made

    # Between tests

    def faults(self) -> list[str]:
        """Exceptions that nobody caught since the last call; `check` hears of them no more."""
        return FAULTS.take()

    def check(self) -> None:
        """Fail if an exception was lost in a slot, or an answer was never asked for.

        Raises:
            AssertionError: with the exceptions.
        """
        faults, unused = self.faults(), self.dialogs.unused()
        self.dialogs.forget()
        if faults:
            raise AssertionError("exceptions in slots:\n" + "\n".join(faults))
        if unused:
            raise AssertionError(f"answers that nobody asked for: {', '.join(unused)}")

    def clear(self) -> None:
        """Close all windows and empty the scene and the settings."""
        self.hears_clicks = lambda: True
        for module in [m for m in vars(slicer.modules).values() if isinstance(m, _scripted())]:
            self.unload(module)
        for widget in QtWidgets.QApplication.topLevelWidgets():
            if not getattr(widget, "_host_kept", False):
                widget.close()
                widget.deleteLater()
        slicer.mrmlScene.Clear(0)
        slicer.dicomDatabase.closeDatabase()
        self.application.userSettings().clear()
        self.settle()

    def stop(self) -> None:
        """End in an order in which Qt and VTK do not outlive each other."""
        self.clear()
        FAULTS.uninstall()


def _scripted() -> type:
    kind: type = slicer.qSlicerScriptedLoadableModule
    return kind


def _isolate_settings(folder: Path) -> None:
    settings = QtCore.QSettings
    settings.setDefaultFormat(settings.Format.IniFormat)
    for scope in (settings.Scope.UserScope, settings.Scope.SystemScope):
        settings.setPath(settings.Format.IniFormat, scope, str(folder / "settings"))
    QtCore.QCoreApplication.setOrganizationName("Slicer")
    QtCore.QCoreApplication.setApplicationName("Slicer")


def _own_subject_items(scene: Any) -> None:
    """Give each new node its item; in Slicer a plugin written with Qt does so."""

    # Python may clear a forgotten observer that VTK still calls; that would end the process.
    kept: list[Any] = []

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(_caller: Any, _event: str, node: Any) -> None:
        if node.IsA("vtkMRMLScriptedModuleNode"):
            kept.append(node)
        if not node.IsA("vtkMRMLDisplayableNode") and not node.IsA("vtkMRMLTableNode"):
            return
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if not node.GetHideFromEditors() and tree.GetItemByDataNode(node) == 0:
            tree.CreateItem(tree.GetSceneItemID(), node)

    scene.AddObserver(scene.NodeAddedEvent, added)
