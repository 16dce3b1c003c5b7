"""Segmentation networks: a pretrained encoder and a decoder back to voxels."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from backend.models.blocks import OutBlock, ResidualBlock, UpBlock
from backend.models.encoder import build_encoder
from backend.models.swin import SwinEncoder
from backend.models.unet import EncoderDecoder, UnetSegmenter


class SwinSegmenter(nn.Module):
    """Swin encoder with a UNETR-like decoder, SMIT's network for fine-tuning.

    Residual blocks work on the raw image, on the finer skips and on the bottleneck; the skip
    beneath the bottleneck is used as it is. Each step up is a transposed convolution, a
    concatenation with the skip and a residual block.

    Args:
        encoder: gives pyramid and bottleneck.
        classes: outputs, background included.
        width: channels at full resolution.
        norm: "instance" or "batch".
    """

    def __init__(self, encoder: SwinEncoder, *, classes: int, width: int, norm: str) -> None:
        super().__init__()
        self.encoder = encoder
        skips = list(encoder.widths if encoder.final_merge else encoder.widths[:-1])
        self.image_block = ResidualBlock(in_channels=1, out_channels=width, norm=norm)
        self.skip_blocks = nn.ModuleList(
            ResidualBlock(in_channels=w, out_channels=w, norm=norm) for w in skips[:-1]
        )
        if not encoder.final_merge:
            # There the skip beneath the bottleneck is one of the finer ones.
            self.skip_blocks.append(
                ResidualBlock(in_channels=skips[-1], out_channels=skips[-1], norm=norm)
            )
        self.bottleneck_block = ResidualBlock(
            in_channels=encoder.bottleneck_width,
            out_channels=encoder.bottleneck_width,
            norm=norm,
        )
        outputs = [width, *skips]
        inputs = [*skips, encoder.bottleneck_width]
        self.up_blocks = nn.ModuleList(
            UpBlock(
                in_channels=inputs[level],
                out_channels=outputs[level],
                # The first stage's tokens are `patch` voxels wide.
                factor=encoder.patch if level == 0 else 2,
                norm=norm,
            )
            for level in reversed(range(len(inputs)))
        )
        self.out = OutBlock(in_channels=width, out_channels=classes)

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b classes z y x"]:
        """Logits at the input's resolution; edges are multiples of the encoder's stride."""
        features = self.encoder(volume)
        skips = [self.image_block(volume)]
        for index in range(len(self.up_blocks) - 1):
            skip = features.pyramid[index].contiguous()
            skips.append(self.skip_blocks[index](skip) if index < len(self.skip_blocks) else skip)
        x = self.bottleneck_block(features.bottleneck.contiguous())
        for block, skip in zip(self.up_blocks, reversed(skips), strict=True):
            x = block(x, skip)
        logits: Tensor = self.out(x)
        return logits


_DECODERS = {
    ("swin", "default"): "segmentation.SwinSegmenter",
    ("vit", "default"): "unetr.UnetrSegmenter",
    ("resnet", "default"): "aspp.AsppSegmenter",
    ("resnet", "unet"): "aspp.ResnetUnetSegmenter",
}
"""File and class by kind of encoder and of decoder."""


def build_segmentation(architecture: Mapping[str, Any]) -> nn.Module:
    """The segmentation network of plain arguments, as they stand in a weights file.

    Args:
        architecture: `encoder` (see `build_encoder`; or one of the baselines), `decoder`,
            `classes`, `width` and `norm`.

    Returns:
        Volumes (b, 1, z, y, x) to logits (b, classes, z, y, x).

    Raises:
        ValueError: if there is no such decoder for this encoder.
    """
    arguments, classes = architecture["encoder"], architecture["classes"]
    kind, decoder = arguments["kind"], architecture["decoder"]
    if (kind, decoder) in _DECODERS:
        file, name = _DECODERS[kind, decoder].split(".")
        build = getattr(import_module(f"backend.models.{file}"), name)
        network: nn.Module = build(
            build_encoder(arguments),
            classes=classes,
            width=architecture["width"],
            norm=architecture["norm"],
        )
        return network
    if decoder != "default":
        raise ValueError(f"decoder {decoder!r} is none for the encoder {kind!r}")
    if kind in ("unet", "resenc"):
        backbone = cast(EncoderDecoder, build_encoder(arguments))
        return UnetSegmenter(backbone, classes=classes)
    from backend.models.baselines import build_baseline

    baseline: nn.Module = build_baseline(arguments, classes=classes)
    return baseline


def parameter_count(module: nn.Module) -> int:
    """All parameters, frozen ones included."""
    return sum(p.numel() for p in module.parameters())


def freeze(module: nn.Module) -> None:
    """Take a module out of training: no gradients."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def encoder_of(network: nn.Module) -> nn.Module:
    """The part of a segmentation network that pretraining gives."""
    encoder: nn.Module = network.get_submodule("encoder")
    return encoder
