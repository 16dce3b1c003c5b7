"""What the module gives to others when Slicer has started."""

from __future__ import annotations

from pathlib import Path

import slicer

EFFECT = Path(__file__).resolve().parents[1] / "SSLSegmentationEffectLib" / "SegmentEditorEffect.py"


def register() -> None:
    """Register all of it; each part is quick and touches no network."""
    from SSLSegmentationLib import sample_data

    _register_effect()
    _register_terminology()
    sample_data.register()


def _register_effect() -> None:
    from qSlicerSegmentationsEditorEffectsPythonQt import qSlicerSegmentEditorScriptedEffect

    effect = qSlicerSegmentEditorScriptedEffect(None)
    effect.setPythonSource(EFFECT.as_posix())
    effect.self().register()


def _register_terminology() -> None:
    from SSLPretrainLogic.scene import terminology

    terminology.register(slicer.modules.terminologies.logic())
