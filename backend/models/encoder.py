"""Any of the networks that are pretrained, from the plain arguments in a weights file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from backend.models.vit import VitEncoder, as_map

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


def feature_maps(encoder: nn.Module, volume: Float[Tensor, "b 1 z y x"]) -> tuple[Tensor, ...]:
    """Maps (b, c, z, y, x) that a decoder reads of an encoder, from the first to the deepest.

    Those of encoders with stages grow coarser. A transformer without has its tokens after some
    blocks, as `VitEncoder.read_after` tells, and the final ones, all of one size.
    """
    if isinstance(encoder, VitEncoder):
        out = encoder(volume, hidden_after=encoder.read_after)
        every = (*out.hidden, out.tokens)
        return tuple(as_map(tokens, out.grid) for tokens in every)
    output = encoder(volume)
    finer: tuple[Tensor, ...] = tuple(output.pyramid)
    coarsest: Tensor = output.bottleneck
    return finer if finer[-1] is coarsest else (*finer, coarsest)
