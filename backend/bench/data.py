"""Rows 7 to 10: from a file to the views of a batch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from torch import Tensor
from torch.nn import functional

from backend.bench.catalogue import Size
from backend.bench.measure import Memory, Pair
from backend.config import PretrainConfig, load_config
from backend.data.cache import Cache, CachedVolume
from backend.data.phantom import make_phantom
from backend.data.preprocess import Recipe, preprocess
from backend.data.readers import read_volume
from backend.data.stream import position
from backend.geometry import Geometry, Index3, Vec3, Volume
from backend.pretext import Reader, collated
from backend.settings.common import CacheForm
from backend.views import intensity
from backend.views.crops import Boxes, resampled

_SPACING_MM: Vec3 = (2.0, 1.5, 1.5)
_TEXTURE = (60, 64, 64)
_PHANTOMS: dict[Size, tuple[Index3, float]] = {
    "smallest": ((24, 32, 32), 12.0),
    "default": ((140, 200, 200), 2.0),
    "full": ((225, 324, 324), 1.25),
}
"""Grid and spacing in mm of scans of which crops are read; the air around them is cut away."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """A scan on disk, as the cache asks for it."""

    id: str
    files: tuple[Path, ...]
    size: Index3 | None
    spacing_mm: Vec3 | None


def scan_like(size: Index3, *, seed: int = 0) -> Volume:
    """A scan as far as times depend on it: an ellipse of noisy soft tissue, in air."""
    rng = np.random.default_rng(seed)
    texture = rng.normal(40.0, 60.0, _TEXTURE)
    repeats = [-(-n // t) for n, t in zip(size, _TEXTURE, strict=True)]
    box = tuple(slice(n) for n in size)
    voxels = np.ascontiguousarray(np.tile(texture.astype(np.int16), repeats)[box])
    y, x = np.ogrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[2] * 1j]
    voxels[:, (x / 0.95) ** 2 + (y / 0.8) ** 2 > 1] = -1000
    return Volume(voxels, Geometry(size=size, spacing_mm=(1.0, 0.78, 0.78)))


def write_nifti(volume: Volume, file: Path) -> Path:
    """The volume as .nii.gz."""
    image = SimpleITK.GetImageFromArray(volume.voxels)
    image.SetSpacing(volume.geometry.spacing_mm[::-1])
    image.SetOrigin(volume.geometry.origin_mm)
    image.SetDirection(volume.geometry.direction)
    SimpleITK.WriteImage(image, str(file), useCompression=True, compressionLevel=1)
    return file


def preprocess_file(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 7: a .nii.gz read, cropped to the body and resampled."""
    from backend.bench.peers.monai_transforms import preprocessing, read

    grid: Index3 = {"smallest": (24, 32, 32), "default": (150, 512, 512), "full": (300, 512, 512)}[
        size
    ]
    file = write_nifti(scan_like(grid), folder / "scan.nii.gz")
    recipe = Recipe(spacing_mm=_SPACING_MM)
    chain = preprocessing(_SPACING_MM, body_threshold_hu=recipe.body_threshold_hu)
    return Pair(
        size=_told(grid, ".nii.gz"),
        ours=lambda: preprocess(read_volume([file]), recipe),
        peer=lambda: read(file, chain),
    )


def sample(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 8a: what the host does for a sample of SMIT's two views."""
    return _sample(size, folder, "compressed")


def sample_plain(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 8b: the same from the cache's plain form."""
    return _sample(size, folder, "plain")


def _sample(size: Size, folder: Path, form: CacheForm) -> Pair:
    from backend.bench.peers.monai_transforms import read, smit_sample

    grid: Index3 = (90, 90, 90) if size == "smallest" else (300, 512, 512)
    file = write_nifti(scan_like(grid), folder / "scan.nii.gz")
    views = ("views.region=40", "views.main.size=32") if size == "smallest" else ()
    config = load_config(PretrainConfig, method="smit", preset="released", overrides=views)
    cached = _cached(file, grid, Recipe(spacing_mm=_SPACING_MM), folder, form)
    reader = Reader([cached], config)
    edge = int(str(config.views.main.size))
    whole, view = smit_sample(_SPACING_MM, edge=edge, hu_window=config.preprocess.hu_window)
    places = map(partial(position, samples=1, seed=0), itertools.count())

    def peer() -> list[Any]:
        volume = read(file, whole)
        return [view(volume) for _ in range(2)]

    return Pair(
        size=_told(grid, f"{edge}³ views"),
        ours=lambda: collated([reader.read(next(places))], seed=0),
        peer=peer,
    )


def crop(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 9a: a random crop of a preprocessed scan."""
    return _crop(size, folder, "compressed")


def crop_plain(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 9b: the same from the cache's plain form."""
    return _crop(size, folder, "plain")


def _crop(size: Size, folder: Path, form: CacheForm) -> Pair:
    from backend.bench.peers.monai_transforms import crop_of, in_memory

    small = size == "smallest"
    edge = 16 if small else 96
    grid, spacing = _PHANTOMS[size]
    phantom, _ = make_phantom(1, size=grid, spacing_mm=(spacing,) * 3)
    file = write_nifti(phantom, folder / "scan.nii.gz")
    cached = _cached(file, grid, Recipe(spacing_mm=None), folder, form)
    room = [max(1, n - edge) for n in cached.geometry.size]
    rng = np.random.default_rng(0)

    def ours() -> Any:
        z, y, x = (int(rng.integers(0, n)) for n in room)
        return cached.read((z, y, x), (edge, edge, edge))

    whole = cached.read_all()
    held = in_memory(torch.from_numpy(whole)[None])
    kept = cached.path.parent.glob(f"{cached.path.name}.*")
    on_disk = sum(file.stat().st_size for file in kept) / 2**20
    return Pair(
        size=_told(cached.geometry.size, f"crops of {edge}³"),
        ours=ours,
        peer=crop_of(held, edge),
        loops=2 if small else 50,
        memory=lambda: Memory("disk, against plain int16", on_disk, whole.nbytes / 2**20),
    )


def geometry(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 10a: boxes of scans cut out, resized and mirrored, for a batch."""
    from backend.bench.peers.monai_transforms import resized_views

    region, box, edge, count = (24, 20, 16, 2) if size == "smallest" else (160, 128, 96, 8)
    rng = np.random.default_rng(0)
    hu = torch.from_numpy(rng.normal(0, 100, (count, 1, *(region,) * 3)).astype(np.int16))
    hu = hu.to(device)
    starts = rng.integers(0, region - box + 1, (count, 3))
    flips = rng.integers(0, 2, (count, 3)).astype(bool)
    sizes = torch.full((count, 3), region, device=device)
    start = torch.from_numpy(starts).double().to(device)
    boxes = Boxes(start, torch.full_like(start, box))
    mirrored = torch.from_numpy(flips).to(device)
    edges = (edge, edge, edge)

    def ours() -> Tensor:
        return _done(resampled(hu, sizes, boxes, mirrored, edges))

    def peer() -> Tensor:
        return resized_views(
            hu.cpu(),
            starts=starts.tolist(),
            extents=[[box] * 3] * count,
            flips=flips.tolist(),
            size=edges,
        )

    return Pair(size=f"{count} views of {edge}³ from boxes of {box}³", ours=ours, peer=peer)


def intensities(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001
    """Row 10b: noise, blur, brightness and gamma of a batch."""
    from backend.bench.peers.monai_transforms import Intensity

    edge, count = (16, 2) if size == "smallest" else (96, 4)
    coarse = torch.rand(count, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    image = functional.interpolate(coarse, size=(edge,) * 3, mode="trilinear")
    keys = torch.arange(count, device=device)
    changes = intensity.Changes(
        noise=1.0,
        noise_variance=(1e-4, 1e-4),
        blur=1.0,
        blur_sigma=(0.8, 0.8),
        brightness=1.0,
        brightness_factor=(1.2, 1.2),
        gamma=1.0,
        gamma_exponent=(1.3, 1.3),
    )
    there = image.to(device)
    peer = Intensity(noise_sd=0.01, blur_sigma=0.8, brightness=1.2, gamma=1.3)
    return Pair(
        size=f"{count} views of {edge}³, every change",
        ours=lambda: _done(intensity.changed(there, keys, changes)),
        peer=lambda: peer(image),
    )


def _cached(
    file: Path, grid: Index3, recipe: Recipe, folder: Path, form: CacheForm = "compressed"
) -> CachedVolume:
    cache = Cache(folder / "cache", recipe, form)
    row = _File(id="scan", files=(file,), size=grid, spacing_mm=_SPACING_MM)
    cache.build([row], workers=1)
    return cache.open(row.id)


def _done(images: Tensor) -> Tensor:
    """The images, once the device has made them."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return images


def _told(grid: Index3, rest: str) -> str:
    return f"{grid[2]}×{grid[1]}×{grid[0]} voxels, {rest}"
