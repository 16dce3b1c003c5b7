"""MONAI's transforms as its tutorials and SMIT's code put them together, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrast,
    Compose,
    CropForeground,
    EnsureChannelFirst,
    Flip,
    GaussianSmooth,
    LoadImage,
    Orientation,
    RandFlip,
    RandGaussianNoise,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSpatialCrop,
    Resize,
    ScaleIntensityRange,
    Spacing,
    SpatialCrop,
)
from torch import Tensor

from backend.geometry import Vec3


def preprocessing(spacing_zyx: Vec3, *, body_threshold_hu: float) -> Compose:
    """From a file to a volume cropped to the body on a grid of its own, (1, x, y, z)."""
    return Compose(
        [
            LoadImage("NibabelReader", image_only=True),
            EnsureChannelFirst(),
            # MONAI's world is RAS: these are the axes that we call LPS in ours.
            Orientation(axcodes="LPS", labels=None),
            Spacing(pixdim=spacing_zyx[::-1], mode="bilinear", padding_mode="border"),
            CropForeground(select_fn=lambda x: x > body_threshold_hu, allow_smaller=True),
        ]
    )


def smit_sample(
    spacing_zyx: Vec3, *, edge: int, hu_window: tuple[float, float]
) -> tuple[Compose, Compose]:
    """SMIT's training sample: what it does with a file, and with the result for each view.

    Nothing is kept between two samples: the file is read and resampled each time.
    """
    low, high = hu_window
    whole = Compose(
        [
            LoadImage("NibabelReader", image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes="RAS", labels=None),
            Spacing(pixdim=spacing_zyx[::-1], mode="bilinear"),
            ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            CropForeground(allow_smaller=True),
        ]
    )
    view = Compose(
        [
            RandSpatialCrop(roi_size=(edge,) * 3, random_size=False),
            *(RandFlip(prob=0.2, spatial_axis=axis) for axis in range(3)),
            RandScaleIntensity(factors=0.1, prob=0.1),
            RandShiftIntensity(offsets=0.1, prob=0.1),
            RandGaussianNoise(prob=0.1),
        ]
    )
    return whole, view


def read(path: Path, chain: Compose) -> Any:
    """What a chain makes of a file."""
    return chain(str(path))


def crop_of(volume: Any, edge: int) -> Any:
    """A random crop of a volume (1, z, y, x) held in memory, as a batch is made from it."""
    # The crop itself is a view into the volume; whoever collates a batch copies it.
    crop = RandSpatialCrop(roi_size=(edge,) * 3, random_size=False)

    def once() -> Tensor:
        made: Tensor = crop(volume).contiguous()
        return made

    return once


def in_memory(voxels: Tensor) -> Any:
    """A volume as MONAI's cache holds it: float32 with its affine."""
    return MetaTensor(voxels.float())


def resized_views(
    volumes: Tensor,
    *,
    starts: Sequence[Sequence[int]],
    extents: Sequence[Sequence[int]],
    flips: Sequence[Sequence[bool]],
    size: Sequence[int],
) -> Tensor:
    """Boxes of (b, 1, z, y, x), resized and mirrored one after the other."""
    resize = Resize(size, mode="trilinear", align_corners=False)
    views = []
    for volume, start, extent, flip in zip(volumes, starts, extents, flips, strict=True):
        end = [a + n for a, n in zip(start, extent, strict=True)]
        view = resize(SpatialCrop(roi_start=start, roi_end=end)(in_memory(volume)))
        axes = [axis for axis, mirrored in enumerate(flip) if mirrored]
        views.append(Flip(spatial_axis=axes)(view) if axes else view)
    return torch.stack([view.as_tensor() for view in views])


class Intensity:
    """Noise, blur, brightness and gamma, each at a fixed strength, sample by sample.

    Args:
        noise_sd: deviation of the noise.
        blur_sigma: deviation of the blur in voxels.
        brightness: factor.
        gamma: exponent.
    """

    def __init__(
        self, *, noise_sd: float, blur_sigma: float, brightness: float, gamma: float
    ) -> None:
        self.brightness = brightness
        self.noise = RandGaussianNoise(prob=1.0, std=noise_sd, sample_std=False)
        self.blur = GaussianSmooth(sigma=blur_sigma)
        self.contrast = AdjustContrast(gamma=gamma)

    def __call__(self, images: Tensor) -> Tensor:
        """Change (b, 1, z, y, x)."""
        return torch.stack([self._one(in_memory(image)).as_tensor() for image in images])

    def _one(self, image: Any) -> Any:
        image = self.blur(self.noise(image))
        low, high = image.min(), image.max()
        return self.contrast((image * self.brightness).clamp(low, high))
