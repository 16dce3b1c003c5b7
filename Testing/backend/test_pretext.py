"""What methods learn from: parts of scans, or whole ones, as they were preprocessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.config import FinetuneConfig, PretrainConfig, load_config
from backend.data.cache import Cache, CachedVolume
from backend.data.labelled import LabelledCase
from backend.data.labels import Label
from backend.data.phantom.cohort import write_image
from backend.data.readers import read_volume
from backend.data.stream import Position
from backend.finetune import Crops, FinetuneTask, _batch
from backend.geometry import Geometry, Index3, Vec3, Volume, reorient
from backend.inference.predictor import intensity_tensor
from backend.methods import build_method
from backend.preparation import recipe_of
from backend.pretext import PretrainTask, Reader, collated
from backend.provenance import preprocessing
from backend.views.crops import ViewSet

WHOLE = (
    *("views.region=null", "views.main.scale=[0.4, 1.0]", "views.main.flip_probability=0.5"),
    "preprocess.hu_window=[-1000, 0]",
)
NARROW = (
    *("method.encoder.embed_dim=4", "method.encoder.heads=[1, 1, 2]", "method.head.hidden=8"),
    *("method.head.bottleneck=4", "method.head.prototypes=8", "views.main.size=32"),
    *("preprocess.spacing_mm=null", "preprocess.body_threshold_hu=-2000"),
)


@dataclass(frozen=True)
class Row:
    """As much of an index row as the cache looks at."""

    id: str
    files: tuple[Path, ...]
    size: Index3
    spacing_mm: Vec3


SHAPES: list[tuple[Index3, Vec3]] = [((20, 34, 38), (5.0, 2.0, 2.0)), ((41, 36, 33), (1.25, 3, 3))]


def tissue(seed: int, size: Index3) -> NDArray[np.int16]:
    """Dark throughout, so that the 0 of padding was never in the scan."""
    return np.random.default_rng(seed).integers(-900, -300, size).astype(np.int16)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Two scans of unequal sizes and spacings, the first stored as RAS, with labels."""
    folder = tmp_path_factory.mktemp("scans")
    found = []
    for number, (size, spacing) in enumerate(SHAPES):
        scan = Volume(tissue(number, size), Geometry(size=size, spacing_mm=spacing))
        label = Volume((scan.voxels > -500).astype(np.uint8), scan.geometry)
        path = folder / str(number) / "ct.nii.gz"
        write_image(path, reorient(scan, "RAS" if number == 0 else "LPS"))
        write_image(path.with_name("label.nii.gz"), label)
        found.append(Row(f"scan{number}", (path,), size, spacing))
    return found


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> list[CachedVolume]:
    cache = Cache(tmp_path_factory.mktemp("cache"), recipe_of(pretrain().preprocess))
    report = cache.build(rows, workers=1)
    assert report.built == ("scan0", "scan1")
    assert report.bytes <= cache.estimate_bytes(rows)
    # 1.5 bytes a voxel at its own spacing.
    voxels = sum(int(np.prod(row.size)) for row in rows)
    assert cache.estimate_bytes(rows) == pytest.approx(1.5 * voxels + 2 * 2**16, abs=2)
    return [cache.open(row.id) for row in rows]


def pretrain(*overrides: str) -> PretrainConfig:
    return load_config(
        PretrainConfig, method="smit", preset="tiny", overrides=[*NARROW, *overrides]
    )


def task(config: PretrainConfig) -> PretrainTask:
    return PretrainTask(build_method(config.method, epochs=1), config, torch.device("cpu"))


def test_scans_at_their_own_spacing_keep_every_voxel(
    volumes: list[CachedVolume], rows: list[Row]
) -> None:
    for volume, row in zip(volumes, rows, strict=True):
        source = reorient(read_volume(row.files), "LPS")
        assert volume.recipe.spacing_mm is None
        assert volume.geometry.matches(source.geometry, tolerance_mm=1e-4)
        assert volume.geometry.spacing_mm == pytest.approx(row.spacing_mm)
        np.testing.assert_array_equal(volume.read_all(), source.voxels)


def test_every_spacing_has_a_cache_of_its_own(tmp_path: Path) -> None:
    recipes = [
        recipe_of(pretrain(f"preprocess.spacing_mm={s}").preprocess)
        for s in ("null", "[2, 2, 2]", "[2, 2, 3]")
    ]
    assert len({Cache(tmp_path, recipe).folder for recipe in recipes}) == 3


def views_of(config: PretrainConfig, reader: Reader, positions: list[Position]) -> ViewSet:
    samples = [reader.read(position) for position in positions]
    return task(config).views(collated(samples, seed=config.train.seed))


def test_views_of_whole_scans_see_all_of_them_and_never_the_padding(
    volumes: list[CachedVolume],
) -> None:
    config = pretrain(*WHOLE)
    reader = Reader(volumes, config)
    assert [reader.read(Position(i, 0)).hu.shape for i in (0, 1)] == [s for s, _ in SHAPES]
    assert reader.middle(1)[1] == (0, 0, 0)
    corners = []
    for epoch in range(12):
        views = views_of(config, reader, [Position(0, epoch), Position(1, epoch)])
        for view in views.main:
            assert view.image.shape == (2, 1, 32, 32, 32)
            assert view.image.min() >= 0.1
            assert view.image.max() <= 0.7
            ends = torch.tensor([[0, 0, 0, 1.0], [31, 31, 31, 1.0]], dtype=torch.float64)
            faces = (view.affine @ ends.T)[:, :3]
            corners.append(torch.stack([faces.amin(dim=2), faces.amax(dim=2)]))
    reached = torch.stack(corners)  # (views, low and high, scans, axes)
    for number, (size, _) in enumerate(SHAPES):
        assert (reached[:, 0, number].amin(dim=0) < 0.2 * torch.tensor(size)).all()
        assert (reached[:, 1, number].amax(dim=0) > 0.8 * torch.tensor(size)).all()


def test_views_of_a_scan_do_not_depend_on_what_else_is_in_the_batch(
    volumes: list[CachedVolume],
) -> None:
    config = pretrain(*WHOLE)
    reader = Reader(volumes, config)
    alone = views_of(config, reader, [Position(0, 3)])
    padded = views_of(config, reader, [Position(1, 3), Position(0, 3)])
    for one, other in zip(alone.main, padded.main, strict=True):
        assert torch.equal(one.image[0], other.image[1])
        assert torch.equal(one.affine[0], other.affine[1])
        assert torch.equal(one.keys[0], other.keys[1])
    assert not torch.equal(alone.main[0].image, alone.main[1].image)


ZSCORE = ("preprocess.intensity=zscore", "preprocess.hu_window=[-800, -400]")


def test_z_scores_of_a_view_are_those_of_the_whole_scan(volumes: list[CachedVolume]) -> None:
    config = pretrain(*ZSCORE, "views.region=32")
    reader = Reader(volumes, config)
    for number, volume in enumerate(volumes):
        whole = intensity_tensor(volume.read_all(), preprocessing(config.preprocess)).image[0]
        sample, start = reader.middle(number)
        inside = tuple(
            slice(max(s, 0), min(s + 32, n))
            for s, n in zip(start, volume.geometry.size, strict=True)
        )
        views = task(config).views(collated([sample], seed=0), plain=True)
        # A region as large as the view: nothing but the values is changed.
        shifted = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True))
        torch.testing.assert_close(views.main[0].image[0, 0][shifted], whole[inside])


@pytest.mark.parametrize("intensity", ["window", "zscore"])
def test_fine_tuning_sees_the_values_that_validation_and_segmenting_see(
    tmp_path: Path, rows: list[Row], intensity: str
) -> None:
    config = load_config(
        FinetuneConfig,
        method="smit",
        preset="tiny",
        overrides=[
            *("method.encoder.embed_dim=4", "method.encoder.heads=[1, 1, 2]", "crop=16"),
            "method.encoder.final_merge=false",
            *("preprocess.spacing_mm=[3, 3, 3]", "preprocess.body_threshold_hu=-2000"),
            "preprocess.hu_window=[-800, -400]",
            f"preprocess.intensity={intensity}",
            *(f"augment.{name}_probability=0" for name in ("rotate90", "scale", "shift")),
        ],
    )
    cache = Cache(tmp_path, recipe_of(config.preprocess))
    cases = [
        LabelledCase(id=row.id, image=row.files, label=row.files[0].with_name("label.nii.gz"))
        for row in rows
    ]
    cache.build_pairs(cases, workers=1)
    volumes = [cache.open(case.id) for case in cases]
    label = Label(value=1, name="bright", color=(1, 2, 3))
    reader = Crops(volumes, [label], config)
    crops = [reader.read(Position(number, 4)) for number in (0, 1)]
    assert all(c.hu.shape == (16, 16, 16) for sample in crops for c in sample)
    tuned = FinetuneTask(torch.nn.Identity(), config, torch.device("cpu"))
    image, target = tuned._augmented(_batch(crops))
    settings = preprocessing(config.preprocess)
    number = 0
    for sample, volume in zip(crops, volumes, strict=True):
        seen = intensity_tensor(volume.read_all(), settings)
        outside = np.pad(seen.image[0].numpy(), 16, constant_values=seen.air)
        for crop in sample:
            # Found by its HU, wherever it was cut.
            whole = np.pad(volume.read_all(), 16, constant_values=-1024)
            windows = np.lib.stride_tricks.sliding_window_view(whole, (4, 4, 4))
            at = np.argwhere((windows == crop.hu[6:10, 6:10, 6:10]).all(axis=(3, 4, 5)))[0] - 6
            box = tuple(slice(a, a + 16) for a in at)
            np.testing.assert_array_equal(whole[box], crop.hu)
            np.testing.assert_allclose(image[number, 0].numpy(), outside[box], atol=1e-5)
            assert torch.equal(target[number], torch.from_numpy(crop.target).long())
            number += 1
