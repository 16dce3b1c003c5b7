"""Networks that are only ever trained from scratch, to compare pretraining with: MONAI's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backend.models.unet import check_edges

_HEAD = 64
"""Channels of one of UNETR's attention heads, as in ViT-B."""
_WIDEST = 320
"""No level of DynUNet is wider (nnU-Net's limit in 3D)."""


class Baseline(nn.Module):
    """A network from volumes to logits, with what it asks of a volume checked first.

    Args:
        network: the network.
        stride: what edges must be multiples of, (z, y, x).
        size: the only size there may be; None: any of two strides or more.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        stride: tuple[int, int, int],
        size: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.stride = stride
        self.size = size

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b classes z y x"]:
        """Logits at the input's resolution.

        Raises:
            ValueError: if the volume's edges do not fit the network.
        """
        edges = tuple(volume.shape[2:])
        check_edges(volume, self.stride)
        if self.size is None and any(n < 2 * s for n, s in zip(edges, self.stride, strict=True)):
            # Instance normalisation of a single cell has nothing to go by.
            raise ValueError(f"edges {edges} are shorter than twice {self.stride}")
        if self.size is not None and edges != self.size:
            raise ValueError(f"edges {edges} are not those the positions are made for, {self.size}")
        logits: Tensor = self.network(volume)
        return logits


def build_baseline(arguments: Mapping[str, Any], *, classes: int) -> Baseline:
    """The network of plain arguments, as they stand in settings and weights files.

    Args:
        arguments: `kind` (segresnet, unetr, swinunetr or dynunet), `width`; for UNETR `patch` and
            `hidden`, for Swin UNETR `window`.
        classes: outputs, background included.

    Raises:
        KeyError: if there is no such kind.
    """
    # SwinUNETR reads numbers out of tensors while it is built, which the meta device has none of.
    device = torch.get_default_device()
    with warnings.catch_warnings(), torch.device("cpu"):
        # MONAI's import warns about its own dependencies; nothing a user could act on.
        warnings.simplefilter("ignore")
        builder, stride = _BUILDERS[arguments["kind"]]
        network = builder(arguments, classes).to(device)
    patch = arguments.get("patch")
    size = None if patch is None else (patch[0], patch[1], patch[2])
    return Baseline(network, stride=(stride, stride, stride), size=size)


def _segresnet(arguments: Mapping[str, Any], classes: int) -> nn.Module:
    """Myronenko 2018, arXiv 1810.11654, without the autoencoder's branch."""
    from monai.networks.nets.segresnet import SegResNet

    network: nn.Module = SegResNet(
        spatial_dims=3,
        init_filters=arguments["width"],
        in_channels=1,
        out_channels=classes,
        blocks_down=(1, 2, 2, 4),
        blocks_up=(1, 1, 1),
    )
    return network


def _unetr(arguments: Mapping[str, Any], classes: int) -> nn.Module:
    """Hatamizadeh et al. 2022, doi:10.1109/WACV51458.2022.00181."""
    from monai.networks.nets.unetr import UNETR

    hidden = arguments["hidden"]
    network: nn.Module = UNETR(
        in_channels=1,
        out_channels=classes,
        img_size=tuple(arguments["patch"]),
        feature_size=arguments["width"],
        hidden_size=hidden,
        mlp_dim=4 * hidden,
        num_heads=hidden // _HEAD,
    )
    for name, parameter in network.named_parameters():
        # MONAI's blocks carry a norm for cross-attention that UNETR never runs.
        if ".norm_cross_attn." in name:
            parameter.requires_grad_(False)
    return network


def _swinunetr(arguments: Mapping[str, Any], classes: int) -> nn.Module:
    """Hatamizadeh et al. 2021, arXiv 2201.01266."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    network: nn.Module = SwinUNETR(
        in_channels=1,
        out_channels=classes,
        feature_size=arguments["width"],
        window_size=arguments["window"],
    )
    return network


def _dynunet(arguments: Mapping[str, Any], classes: int) -> nn.Module:
    """nnU-Net's 3D full-resolution network (Isensee et al. 2021) without deep supervision."""
    from monai.networks.nets.dynunet import DynUNet

    levels = 6
    strides = [1, *[2] * (levels - 1)]
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=classes,
        kernel_size=[3] * levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(_WIDEST, arguments["width"] * 2**level) for level in range(levels)],
    )
    return network


_BUILDERS = {
    "segresnet": (_segresnet, 8),
    "unetr": (_unetr, 16),
    "swinunetr": (_swinunetr, 32),
    "dynunet": (_dynunet, 32),
}
"""What builds each kind, and the multiple that edges of a crop must be of."""
