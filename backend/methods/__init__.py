"""Pretext methods, one readable file each, and the table of them."""

from __future__ import annotations

from importlib import import_module

from backend.config import MethodConfig
from backend.methods.method import Method

_CLASSES = {
    "SmitConfig": "smit.Smit",
    "GlmaeConfig": "glmae.Glmae",
    "PglConfig": "pgl.Pgl",
    "SimclrConfig": "simclr.Simclr",
    "TrioConfig": "trio.Trio",
    "ModelsGenesisConfig": "models_genesis.ModelsGenesis",
    "PcrlConfig": "pcrl.Pcrl",
    "Pcrlv2Config": "pcrlv2.Pcrlv2",
    "RubikConfig": "rubik.Rubik",
    "RubikPpConfig": "rubik_pp.RubikPp",
    "Cpc3dConfig": "cpc3d.Cpc3d",
    "SparkConfig": "spark.Spark",
}
"""File and class of each kind of settings."""


def build_method(config: MethodConfig, *, epochs: float) -> Method:
    """The method of its settings; `epochs` is the length that its schedules refer to."""
    file, name = _CLASSES[type(config).__name__].split(".")
    method: Method = getattr(import_module(f"backend.methods.{file}"), name)(config, epochs=epochs)
    return method
