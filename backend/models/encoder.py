"""Any of the networks that are pretrained, from the plain arguments in a weights file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

_CLASSES = {
    "swin": "swin.SwinEncoder",
    "vit": "vit.VitEncoder",
    "resnet": "resnet.ResnetEncoder",
    "unet": "unet.UnetBackbone",
    "resenc": "resenc.ResencBackbone",
}
"""File and class of each kind of encoder."""


def build_encoder(arguments: Mapping[str, Any]) -> nn.Module:
    """The encoder of plain arguments: its `kind` and what the constructor of that kind takes."""
    file, name = _CLASSES[arguments["kind"]].split(".")
    rest = {k: v for k, v in arguments.items() if k != "kind"}
    encoder: nn.Module = getattr(import_module(f"backend.models.{file}"), name)(**rest)
    return encoder
