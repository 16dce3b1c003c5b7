"""Hosts an effect of the Segment Editor on the real `vtkSlicerSegmentEditorLogic`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import slicer

from slicer_host.standins import Behaviour, strict

_PREFIX = "SegmentEditorEffect"


class ScriptedEffect(Behaviour):
    """`self.scriptedEffect`: what an effect calls to read and change segments."""

    _host_defaults: ClassVar[dict[str, Any]] = {"perSegment": True, "requireSegments": True}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_source = ""
        self._host_self: Any = None
        self._host_active = False
        self._host_node: Any = None
        self._host_logic: Any = None
        self._host_frame = strict("QFrame")()
        strict("QFormLayout")(self._host_frame)

    def _host_write_name(self, name: str) -> None:
        self.objectName = name

    def _host_hook(self, name: str, *values: Any) -> None:
        hook = getattr(self._host_self, name, None)
        if hook is not None:
            hook(*values)

    # Python source

    def setPythonSource(self, path: str) -> None:
        file = Path(path)
        module = _loaded(file)
        self._host_source = str(path)
        self._host_self = getattr(module, file.stem)(self)

    def pythonSource(self) -> str:
        return self._host_source

    def self(self) -> Any:
        return self._host_self

    # Parameters

    def setParameterSetNode(self, node: Any) -> None:
        self._host_node = node

    def parameterSetNode(self) -> Any:
        return self._host_node

    def scene(self) -> Any:
        return self._host_node.GetScene()

    def _host_key(self, name: str) -> str:
        return f"{self.name}.{name}"

    def parameter(self, name: str) -> str:
        own = self._host_node.GetAttribute(self._host_key(name))
        return own if own is not None else self._host_node.GetAttribute(name) or ""

    def integerParameter(self, name: str) -> int:
        return int(float(self.parameter(name) or 0))

    def doubleParameter(self, name: str) -> float:
        return float(self.parameter(name) or 0)

    def parameterDefined(self, name: str) -> bool:
        return self._host_node.GetAttribute(self._host_key(name)) is not None

    def commonParameterDefined(self, name: str) -> bool:
        return self._host_node.GetAttribute(name) is not None

    def setParameter(self, name: str, value: Any) -> None:
        self._host_node.SetAttribute(self._host_key(name), str(value))

    def setCommonParameter(self, name: str, value: Any) -> None:
        self._host_node.SetAttribute(name, str(value))

    def setParameterDefault(self, name: str, value: Any) -> None:
        if not self.parameterDefined(name):
            self.setParameter(name, value)

    def setCommonParameterDefault(self, name: str, value: Any) -> None:
        if not self.commonParameterDefined(name):
            self.setCommonParameter(name, value)

    def nodeReference(self, name: str) -> Any:
        own = self._host_node.GetNodeReference(self._host_key(name))
        return own if own is not None else self._host_node.GetNodeReference(name)

    def setNodeReference(self, name: str, node: Any) -> None:
        self.setCommonNodeReference(self._host_key(name), node)

    def setCommonNodeReference(self, name: str, node: Any) -> None:
        self._host_node.SetNodeReferenceID(name, node.GetID() if node is not None else None)

    # Options

    def optionsFrame(self) -> Any:
        return self._host_frame

    def optionsLayout(self) -> Any:
        return self._host_frame.layout()

    def addOptionsWidget(self, part: Any) -> None:
        self.optionsLayout().addRow(part)

    def addLabeledOptionsWidget(self, label: str, part: Any) -> Any:
        text = strict("QLabel")(label)
        self.optionsLayout().addRow(text, part)
        return text

    # Images

    def sourceVolumeImageData(self) -> Any:
        self._host_logic.UpdateAlignedSourceVolume()
        return self._host_logic.GetAlignedSourceVolume()

    def referenceGeometryImage(self) -> Any:
        self._host_logic.UpdateReferenceGeometryImage()
        return self._host_logic.GetReferenceGeometryImage()

    def modifierLabelmap(self) -> Any:
        return self._host_logic.GetModifierLabelmap()

    def defaultModifierLabelmap(self) -> Any:
        self.referenceGeometryImage()
        self._host_logic.ResetModifierLabelmapToDefault()
        return self._host_logic.GetModifierLabelmap()

    def maskLabelmap(self) -> Any:
        self._host_logic.UpdateMaskLabelmap()
        return self._host_logic.GetMaskLabelmap()

    def selectedSegmentLabelmap(self) -> Any:
        self._host_logic.UpdateSelectedSegmentLabelmap()
        return self._host_logic.GetSelectedSegmentLabelmap()

    # Editing

    def saveStateForUndo(self) -> None:
        self._host_logic.SaveStateForUndo()

    def modifySelectedSegmentByLabelmap(self, image: Any, mode: int, *more: Any) -> None:
        node = self._host_node
        segment = node.GetSelectedSegmentID()
        self.modifySegmentByLabelmap(node.GetSegmentationNode(), segment, image, mode, *more)

    def modifySegmentByLabelmap(
        self, node: Any, segment: str, image: Any, mode: int, *more: Any
    ) -> None:
        bypass = next((m for m in more if isinstance(m, bool)), False)
        extent = [tuple(m) for m in more if not isinstance(m, bool)]
        self._host_logic.UpdateReferenceGeometryImage()
        self._host_logic.UpdateMaskLabelmap()
        self._host_logic.ModifySegmentByLabelmap(
            node, segment, image, _mode(self._host_logic, mode), *extent, self.perSegment, bypass
        )

    def confirmCurrentSegmentVisible(self) -> Any:
        node = self._host_node.GetSegmentationNode()
        segment = self._host_node.GetSelectedSegmentID()
        display = node.GetDisplayNode() if node is not None else None
        if display is None or not segment or display.GetSegmentVisibility(segment):
            return type(self).ConfirmedWithoutDialog
        question = strict("QMessageBox")()
        question.text = "The currently selected segment is hidden. Make it visible?"
        box = strict("QMessageBox")
        question.setStandardButtons(box.Yes | box.No | box.Cancel)
        answer = question.exec()
        if answer == box.Cancel:
            return type(self).NotConfirmed
        if answer == box.Yes:
            display.SetSegmentVisibility(segment, True)
        return type(self).ConfirmedWithDialog

    # Life

    def active(self) -> bool:
        return self._host_active

    def activate(self) -> None:
        self._host_active = True
        self._host_hook("activate")

    def deactivate(self) -> None:
        self._host_active = False
        self._host_hook("deactivate")

    def cleanup(self) -> None:
        self._host_hook("cleanup")

    def helpText(self) -> str:
        return str(self._host_self.helpText())

    def updateGUIFromMRML(self) -> None:
        self._host_hook("updateGUIFromMRML")

    def updateMRMLFromGUI(self) -> None:
        self._host_hook("updateMRMLFromGUI")


def _mode(logic: Any, mode: int) -> Any:
    names = ("Set", "Add", "Remove", "RemoveAll")
    return getattr(logic, f"ModificationMode{names[int(mode)]}")


def _loaded(file: Path) -> ModuleType:
    """Slicer keeps the file in `sys.modules` under the name of its folder."""
    name = file.parent.name
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{file}: is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class AbstractScriptedSegmentEditorEffect:
    """Base class of effects."""

    def __init__(self, scriptedEffect: Any) -> None:
        self.scriptedEffect = scriptedEffect

    def register(self) -> None:
        factory = slicer.qSlicerSegmentEditorEffectFactory.instance()
        factory.registerEffect(self.scriptedEffect)

    def cleanup(self) -> None:
        """Nothing, unless an effect does something here."""


class EffectFactory(Behaviour):
    """Knows the effects that registered."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._host_effects: list[Any] = []

    @classmethod
    def instance(cls) -> Any:
        if not hasattr(cls, "_host_instance"):
            cls._host_instance = cls()
        return cls._host_instance

    def registerEffect(self, effect: Any) -> bool:
        names = [e.name for e in self._host_effects]
        if effect.name in names:
            return False
        self._host_effects.append(effect)
        self.effectRegistered.emit(effect.name)
        return True

    def registeredEffects(self) -> list[Any]:
        return list(self._host_effects)


class Editor:
    """A Segment Editor with one effect, on a segmentation and its source volume.

    Args:
        path: of the effect, `<Folder>/SegmentEditorEffect.py`.
        segmentation: its node, of which a segment is selected.
        volume: the source volume.
        segment: identifier of the selected segment.
    """

    def __init__(self, path: Path, *, segmentation: Any, volume: Any, segment: str) -> None:
        self.node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.node.SetAndObserveSegmentationNode(segmentation)
        self.node.SetAndObserveSourceVolumeNode(volume)
        self.node.SetSelectedSegmentID(segment)
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(slicer.mrmlScene)
        self.logic.SetSegmentEditorNode(self.node)
        self.logic.SetSegmentationNode(segmentation)
        self.logic.SetSourceVolumeNode(volume)
        self.logic.SetCurrentSegmentID(segment)
        self.logic.UpdateReferenceGeometryImage()
        self.effect = slicer.qSlicerSegmentEditorScriptedEffect(None)
        self.effect._host_logic = self.logic
        self.effect.setParameterSetNode(self.node)
        self.effect.setPythonSource(str(path))
        source = self.effect.self()
        for hook in ("setMRMLDefaults", "setupOptionsFrame"):
            if hasattr(source, hook):
                getattr(source, hook)()
        self.node.SetActiveEffectName(self.effect.name)
        self.effect.activate()
        self.effect.updateGUIFromMRML()

    @property
    def options(self) -> Any:
        """The frame with the options of the effect."""
        return self.effect.optionsFrame()

    def select(self, segment: str) -> None:
        """Select another segment."""
        self.node.SetSelectedSegmentID(segment)
        self.logic.SetCurrentSegmentID(segment)
        self.effect.updateGUIFromMRML()

    def undo(self) -> None:
        """Take the last change back."""
        self.logic.Undo()

    def redo(self) -> None:
        """Do it again."""
        self.logic.Redo()

    def close(self) -> None:
        """Deactivate the effect and let it clean up."""
        self.effect.deactivate()
        self.effect.cleanup()
        slicer.mrmlScene.RemoveNode(self.node)
        self.effect.delete()


def make_packages() -> dict[str, ModuleType]:
    """The modules from which effects take their base class and the class of their clones."""
    base = ModuleType("SegmentEditorEffects", "Stands in for Slicer's own.")
    base.AbstractScriptedSegmentEditorEffect = AbstractScriptedSegmentEditorEffect
    base.__all__ = ["AbstractScriptedSegmentEditorEffect"]
    classes = ModuleType("qSlicerSegmentationsEditorEffectsPythonQt", "Classes written in C++.")
    for name in ("qSlicerSegmentEditorAbstractEffect", "qSlicerSegmentEditorScriptedEffect"):
        setattr(classes, name, getattr(slicer, name))
    return {module.__name__: module for module in (base, classes)}


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "qSlicerSegmentEditorEffectFactory": EffectFactory,
    "qSlicerSegmentEditorScriptedEffect": ScriptedEffect,
}
