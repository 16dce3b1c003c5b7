"""A scan segmented with MONAI: transforms, sliding window, their inverse, argmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, EnsureChannelFirst, ScaleIntensityRange, SpatialResample
from numpy.typing import NDArray
from torch import Tensor

from backend.geometry import Geometry, Index3, Volume


def segmented(
    volume: Volume,
    network: Callable[[Tensor], Tensor],
    *,
    onto: Geometry,
    window: Index3,
    hu_window: tuple[float, float],
    device: str = "cpu",
) -> NDArray[np.uint8]:
    """Labels on the scan's own grid, (z, y, x).

    Args:
        volume: HU.
        network: windows to logits.
        onto: the grid that the network works on, so that both sides see the same voxels.
        window: edges of a window.
        hu_window: becomes 0 to 1.
        device: where the network lives.
    """
    low, high = hu_window
    there = Compose(
        [
            EnsureChannelFirst(channel_dim="no_channel"),
            SpatialResample(mode="bilinear", padding_mode="border", align_corners=True),
        ]
    )
    scale = ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
    image = MetaTensor(torch.from_numpy(volume.voxels).float(), affine=_affine(volume.geometry))
    resample = there.transforms[1]
    image = there.transforms[0](image)
    image = resample(image, dst_affine=_affine(onto), spatial_size=onto.size)
    with torch.inference_mode():
        logits = sliding_window_inference(
            scale(image).as_tensor()[None].to(device),
            window,
            sw_batch_size=1,
            predictor=network,
            overlap=0.5,
            mode="gaussian",
        )
    back = MetaTensor(logits[0], affine=image.affine, applied_operations=image.applied_operations)
    labels: NDArray[np.uint8] = resample.inverse(back).argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


def _affine(geometry: Geometry) -> Tensor:
    """From (z, y, x, 1) to millimetres; which world it is does not matter here."""
    return torch.from_numpy(geometry.affine)
