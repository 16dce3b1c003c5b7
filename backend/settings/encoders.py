"""The networks that are pretrained: what builds each of them again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from backend.settings.common import (
    NUMBER,
    STRICT,
    Depth,
    Depths,
    Edge,
    Grid,
    HalfOpenFraction,
    Width,
    Widths,
)

Norm = Literal["batch", "instance"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SwinConfig:
    """The Swin transformer encoder (SMIT, sec. 2; Liu et al. 2021)."""

    kind: Literal["swin"] = "swin"
    embed_dim: Width = 48
    """Channels of the first stage; doubled by each merge."""
    depths: Depths = (2, 2, 4, 2)
    """Blocks per stage."""
    heads: Widths = (4, 4, 4, 4)
    """Attention heads per stage."""
    window: Annotated[int, Field(ge=1, le=32), NUMBER] = 4
    """Edge of an attention window in tokens."""
    patch: Edge = 2
    """Edge of a token in voxels."""
    mlp_ratio: Annotated[float, Field(ge=0.25, le=64), NUMBER] = 4.0
    """Hidden width of a block's MLP over its width."""
    qkv_bias: bool = False
    """Bias in the projection to queries, keys and values."""
    drop_path: HalfOpenFraction = 0.3
    """Stochastic depth of the last block; rises linearly from 0 at the first."""
    final_merge: bool = True
    """Whether the last stage is followed by a merge too (released code: yes)."""
    patch_norm: bool = True
    """Normalise tokens once they are embedded (SMIT: yes; MONAI's Swin UNETR: no)."""

    @model_validator(mode="after")
    def _check(self) -> SwinConfig:
        if len(self.depths) < 2:
            raise ValueError(f"depths {list(self.depths)} must name two stages or more")
        if len(self.depths) != len(self.heads):
            raise ValueError(
                f"depths {list(self.depths)} and heads {list(self.heads)} differ in length"
            )
        for stage, heads in enumerate(self.heads):
            if (self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"stage {stage} has {self.embed_dim * 2**stage} channels, "
                    f"which {heads} heads do not divide"
                )
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """What builds the network: all but how its branches are dropped in training."""
        return {name: value for name, value in asdict(self).items() if name != "drop_path"}

    @property
    def merges(self) -> int:
        """How often the grid is halved after the patch embedding."""
        return len(self.depths) - (0 if self.final_merge else 1)

    @property
    def token_stride(self) -> int:
        """Voxels per token of the last stage."""
        return int(self.patch * 2 ** (len(self.depths) - 1))

    @property
    def bottleneck_width(self) -> int:
        """Channels of the coarsest map."""
        return int(self.embed_dim * 2**self.merges)

    @property
    def first_width(self) -> int:
        """Channels of a decoder at full resolution, where none are set."""
        return int(self.embed_dim)

    @property
    def stride(self) -> Grid:
        """Voxels per cell of the bottleneck."""
        edge = int(self.patch * 2**self.merges)
        return (edge, edge, edge)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VitConfig:
    """The vision transformer of GL-MAE (sec. 4) and MAE3D: frozen 3D sine-cosine positions."""

    kind: Literal["vit"] = "vit"
    width: Width = 192
    """Channels of a token, a multiple of 6."""
    depth: Depth = 12
    """Blocks."""
    heads: Width = 3
    """Attention heads."""
    patch: Edge = 16
    """Edge of a token in voxels, a power of 2."""
    mlp_ratio: Annotated[float, Field(ge=0.25, le=64), NUMBER] = 4.0
    """Hidden width of a block's MLP over its width."""
    qkv_bias: bool = True
    """Bias in the projection to queries, keys and values."""

    @model_validator(mode="after")
    def _check(self) -> VitConfig:
        if self.width % 6:
            raise ValueError(
                f"width {self.width} is no multiple of 6, which sine and cosine on three axes need"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divided by {self.heads} heads")
        steps = self.patch.bit_length() - 1
        if self.patch != 2**steps or not 1 <= steps <= self.depth:
            raise ValueError(
                f"patch {self.patch} must be a power of 2 from 2 to {2**self.depth}: the decoder "
                f"takes a step from each of so many of the {self.depth} blocks"
            )
        return self

    @property
    def first_width(self) -> int:
        """Channels of a decoder at full resolution, where none are set."""
        return int(self.width)

    @property
    def stride(self) -> Grid:
        """Voxels per token."""
        return (self.patch, self.patch, self.patch)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResnetConfig:
    """The 3D ResNet of PGL (sec. 3.3) with bottleneck blocks."""

    kind: Literal["resnet"] = "resnet"
    depths: tuple[Depth, Depth, Depth, Depth] = (3, 4, 6, 3)
    """Blocks per stage."""
    width: Width = 64
    """Channels of the stem; the stages give 4, 8, 16 and 32 times as many."""
    stem_stride: tuple[Edge, Edge, Edge] = (1, 2, 2)
    """Stride of the first convolution along (z, y, x); in all it is 16 times this."""
    norm: Norm = "batch"

    @property
    def first_width(self) -> int:
        """Channels of a decoder at full resolution, where none are set."""
        return int(self.width)

    @property
    def stride(self) -> Grid:
        """Voxels per cell of the last stage."""
        z, y, x = self.stem_stride
        return (16 * z, 16 * y, 16 * x)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UnetConfig:
    """A 3D U-Net."""

    kind: Literal["unet"] = "unet"
    widths: Widths = (64, 128, 256, 512)
    """Channels of each level, finest first."""
    norm: Norm = "batch"
    decoder: bool = True
    """Pretrained with its decoder; false: only the way down, fine-tuning adds a fresh decoder."""

    @property
    def first_width(self) -> int:
        """Channels of a decoder at full resolution, where none are set."""
        return int(self.widths[0])

    @property
    def stride(self) -> Grid:
        """Voxels per cell of the coarsest level."""
        edge = 2 ** (len(self.widths) - 1)
        return (edge, edge, edge)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResencConfig:
    """A U-Net with a residual encoder (nnU-Net's ResEnc-L), pretrained with its decoder."""

    kind: Literal["resenc"] = "resenc"
    widths: Widths = (32, 64, 128, 256, 320, 320)
    """Channels of each level, finest first."""
    blocks: Depths = (1, 3, 4, 6, 6, 6)
    """Residual blocks of each level of the encoder."""

    @model_validator(mode="after")
    def _check(self) -> ResencConfig:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths {list(self.widths)} and blocks {list(self.blocks)} differ in length"
            )
        return self

    @property
    def first_width(self) -> int:
        """Channels of a decoder at full resolution, where none are set."""
        return int(self.widths[0])

    @property
    def stride(self) -> Grid:
        """Voxels per cell of the coarsest level."""
        edge = 2 ** (len(self.widths) - 1)
        return (edge, edge, edge)


EncoderConfig = SwinConfig | VitConfig | ResnetConfig | UnetConfig | ResencConfig
"""Any of them; which one, its `kind` tells."""
