"""The cache gives back what preprocessing made, whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from backend import cachetool
from backend.data.cache import Cache, default_cache_dir, list_cache, prune, told_bytes
from backend.data.labelled import LabelledCase
from backend.data.plain_array import PlainArray, plain_bytes
from backend.data.preprocess import Recipe, preprocess, preprocess_pair
from backend.data.readers import read_label, read_volume
from backend.errors import Cancelled, ResourceError, UserError
from backend.geometry import Index3, Vec3
from backend.settings.common import CacheForm

RECIPE = Recipe(spacing_mm=(3.0, 2.0, 2.0), body_margin_mm=2.0)
FORMS: tuple[CacheForm, ...] = ("compressed", "plain")
REPOSITORY = Path(__file__).parents[3]
DAY = 86400


@dataclass(frozen=True)
class Row:
    """As much of an index row as the cache looks at."""

    id: str
    files: tuple[Path, ...]
    size: Index3
    spacing_mm: Vec3


def write_volume(path: Path, voxels: NDArray[np.generic], spacing: Vec3) -> Path:
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((5.0, -7.0, 11.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def scan(folder: Path, name: str, seed: int = 0) -> Row:
    """A noisy block of tissue with a bone in it, surrounded by air."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(-1000, 10, (24, 40, 44)).astype(np.int16)
    voxels[:, 8:32, 8:36] = rng.normal(40, 20, (24, 24, 28)).astype(np.int16)
    voxels[:, 16:20, 18:24] += 700
    path = write_volume(folder / f"{name}.nii.gz", voxels, (2.5, 1.5, 1.5))
    return Row(name, (path,), (24, 40, 44), (2.5, 1.5, 1.5))


def case(folder: Path, name: str, seed: int = 0) -> LabelledCase:
    row = scan(folder / name, "ct", seed)
    label = np.zeros(row.size, np.uint8)
    label[:, 16:20, 18:24] = 1
    label[4:12, 10:14, 10:30] = 7
    path = write_volume(folder / name / "label.nii.gz", label, row.spacing_mm)
    return LabelledCase(id=name, image=row.files, label=path)


def entry_files(cache: Cache) -> list[str]:
    return sorted(p.name for p in cache.folder.iterdir() if p.is_file())


def test_what_is_read_is_what_preprocessing_makes(tmp_path: Path) -> None:
    row = scan(tmp_path, "a")
    cache = Cache(tmp_path / "cache", RECIPE)
    report = cache.build([row])
    assert report.built == ("a",)
    source = read_volume(row.files)
    wanted = preprocess(source, RECIPE)
    volume = cache.open("a")
    assert volume.geometry == wanted.geometry
    assert volume.source_geometry == source.geometry
    assert volume.recipe == RECIPE
    assert volume.read_all().dtype == np.int16
    np.testing.assert_array_equal(volume.read_all(), wanted.voxels)
    for percentile, value in volume.hu_percentiles.items():
        assert value == pytest.approx(np.percentile(wanted.voxels, percentile), abs=0.5)
    assert entry_files(cache) == ["a.b2nd", "a.json"]


@pytest.mark.parametrize(
    ("start", "size"),
    [
        ((0, 0, 0), (4, 5, 6)),
        ((3, 7, 2), (9, 8, 11)),
        ((-4, -2, -9), (10, 10, 12)),
        ((10, 12, 15), (30, 30, 30)),
        ((-5, -5, -5), (60, 60, 60)),
        ((200, 0, 0), (3, 4, 5)),
        ((-20, 3, 3), (7, 4, 5)),
    ],
)
def test_a_box_may_reach_outside_and_is_filled_there(
    tmp_path: Path, start: Index3, size: Index3
) -> None:
    pair = case(tmp_path, "a")
    image, label = preprocess_pair(read_volume(pair.image), read_label(pair.label), RECIPE)
    before, around = 25, ((25, 210), (25, 80), (25, 80))
    whole = np.pad(image.voxels, around, constant_values=-1024)
    labels = np.pad(label.voxels, around)
    other = np.where(whole == -1024, 9, whole)
    at = tuple(slice(before + a, before + a + n) for a, n in zip(start, size, strict=True))
    for form in FORMS:
        cache = Cache(tmp_path / "cache", RECIPE, form)
        cache.build_pairs([pair])
        volume = cache.open("a")
        np.testing.assert_array_equal(volume.read(start, size), whole[at])
        np.testing.assert_array_equal(volume.read_label(start, size), labels[at])
        np.testing.assert_array_equal(volume.read(start, size, fill=9), other[at])


def test_a_labelled_pair_is_kept_with_its_foreground(tmp_path: Path) -> None:
    pair = case(tmp_path, "a")
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build_pairs([pair])
    image, label = preprocess_pair(read_volume(pair.image), read_label(pair.label), RECIPE)
    volume = cache.open("a")
    np.testing.assert_array_equal(volume.read_all(), image.voxels)
    stored = volume.read_label((0, 0, 0), volume.geometry.size)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, label.voxels)
    assert volume.label_voxels == {v: int((label.voxels == v).sum()) for v in (1, 7)}
    for value, voxels in volume.foreground.items():
        np.testing.assert_array_equal(voxels, np.argwhere(label.voxels == value))


def test_the_foreground_of_a_large_structure_is_an_even_sample(tmp_path: Path) -> None:
    size = (40, 40, 40)
    row = Row(
        "a",
        (
            write_volume(
                tmp_path / "ct.nii.gz",
                np.arange(64000, dtype=np.int16).reshape(size) // 100,
                (1, 1, 1),
            ),
        ),
        size,
        (1, 1, 1),
    )
    label = np.ones(size, np.uint8)
    label[:, :, :20] = 2
    path = write_volume(tmp_path / "label.nii.gz", label, (1, 1, 1))
    cache = Cache(tmp_path / "cache", Recipe(spacing_mm=(1, 1, 1)))
    cache.build_pairs([LabelledCase(id="a", image=row.files, label=path)])
    foreground = cache.open("a").foreground
    for value, voxels in foreground.items():
        assert voxels.shape == (10_000, 3)
        assert len(np.unique(voxels, axis=0)) == 10_000
        assert (label[tuple(voxels.T)] == value).all()
        # 10 000 of 32 000: the mean of a uniform choice lies this close to the middle.
        assert np.abs(voxels.mean(axis=0)[:2] - 19.5).max() < 0.5


def test_a_scan_without_labels_says_so(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build([scan(tmp_path, "a")])
    assert cache.open("a").foreground == {}
    with pytest.raises(UserError, match="a has no label map"):
        cache.open("a").read_label((0, 0, 0), (1, 1, 1))


def test_the_same_recipe_is_reused_and_another_one_is_another_entry(tmp_path: Path) -> None:
    rows = [scan(tmp_path, "a"), scan(tmp_path, "b", 1)]
    Cache(tmp_path / "cache", RECIPE).build(rows)
    written = (Cache(tmp_path / "cache", RECIPE).folder / "a.b2nd").stat().st_mtime_ns
    again = Cache(tmp_path / "cache", RECIPE)
    assert again.missing(rows) == []
    report = again.build(rows)
    assert report.reused == ("a", "b")
    assert report.bytes == 0
    assert (again.folder / "a.b2nd").stat().st_mtime_ns == written
    other = Cache(tmp_path / "cache", Recipe(spacing_mm=(3.0, 2.0, 2.5), body_margin_mm=2.0))
    assert other.missing(rows) == rows
    assert other.build(rows).built == ("a", "b")


def test_a_source_that_changed_is_preprocessed_again(tmp_path: Path) -> None:
    row = scan(tmp_path, "a")
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build([row])
    before = cache.open("a").read_all()
    scan(tmp_path, "a", seed=5)
    assert cache.missing([row]) == [row]
    assert cache.build([row]).built == ("a",)
    assert not np.array_equal(cache.open("a").read_all(), before)


def test_labels_that_changed_beside_their_header_are_preprocessed_again(tmp_path: Path) -> None:
    pair = case(tmp_path, "a")
    label = tmp_path / "label.mhd"
    SimpleITK.WriteImage(SimpleITK.ReadImage(pair.label), label)
    pair = replace(pair, label=label)
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build_pairs([pair])
    assert cache.build_pairs([pair]).reused == ("a",)
    raw = label.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[::-1])
    os.utime(raw, (0, raw.stat().st_mtime + 2))
    assert cache.build_pairs([pair]).built == ("a",)


@pytest.mark.parametrize("damage", ["no json", "half a json", "cut short"])
def test_an_entry_that_was_cut_off_is_missing_and_made_anew(tmp_path: Path, damage: str) -> None:
    row = scan(tmp_path, "a")
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build([row])
    before = cache.open("a").read_all()
    meta, array = cache.folder / "a.json", cache.folder / "a.b2nd"
    if damage == "no json":
        meta.unlink()
    elif damage == "half a json":
        meta.write_bytes(meta.read_bytes()[:100])
    else:
        array.write_bytes(array.read_bytes()[:-50])
    fresh = Cache(tmp_path / "cache", RECIPE)
    assert fresh.missing([row]) == [row]
    assert fresh.build([row]).built == ("a",)
    np.testing.assert_array_equal(fresh.open("a").read_all(), before)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("form", FORMS)
def test_damage_inside_is_found_on_opening_and_repaired(tmp_path: Path, form: CacheForm) -> None:
    row = scan(tmp_path, "a")
    cache = Cache(tmp_path / "cache", RECIPE, form)
    cache.build([row])
    flip_a_byte(cache.folder / {"compressed": "a.b2nd", "plain": "a.npy"}[form])
    wanted = preprocess(read_volume(row.files), RECIPE)
    np.testing.assert_array_equal(cache.open("a").read_all(), wanted.voxels)


@pytest.mark.parametrize("form", FORMS)
def test_an_array_cut_off_while_its_scan_is_open_is_told_and_made_anew(
    tmp_path: Path, form: CacheForm
) -> None:
    row = scan(tmp_path, "a")
    cache = Cache(tmp_path / "cache", RECIPE, form)
    cache.build([row])
    volume = cache.open("a")
    before = volume.read_all()
    array = cache.folder / {"compressed": "a.b2nd", "plain": "a.npy"}[form]
    with array.open("r+b") as stream:
        stream.truncate(array.stat().st_size // 2)
    with pytest.raises(UserError, match="damaged while in use") as caught:
        volume.read_all()
    assert str(array) in str(caught.value)
    assert Cache(tmp_path / "cache", RECIPE, form).build([row]).built == ("a",)
    np.testing.assert_array_equal(volume.read_all(), before)


def test_both_forms_of_a_scan_stand_side_by_side_with_the_same_content(tmp_path: Path) -> None:
    pair, root = case(tmp_path, "a"), tmp_path / "cache"
    plain, compressed = Cache(root, RECIPE, "plain"), Cache(root, RECIPE)
    assert plain.build_pairs([pair]).built == ("a",)
    assert compressed.missing_pairs([pair]) == [pair]
    assert compressed.build_pairs([pair]).built == ("a",)
    assert plain.build_pairs([pair]).reused == ("a",)
    one, other = plain.open("a"), compressed.open("a")
    assert (one.geometry, one.label_voxels) == (other.geometry, other.label_voxels)
    np.testing.assert_array_equal(one.read_all(), other.read_all())
    for value, voxels in one.foreground.items():
        np.testing.assert_array_equal(voxels, other.foreground[value])
    [stored, label] = sorted(plain.folder.glob("*.npy"), key=lambda p: ".label" in p.name)
    np.testing.assert_array_equal(np.load(stored), one.read_all())
    assert np.load(label).max() == 7
    keys = {RECIPE.key(), f"{RECIPE.key()}-plain"}
    assert {use.key for use in list_cache(root) if use.recipe == RECIPE} == keys
    assert prune(root, recipe=f"{RECIPE.key()}-plain").entries == 1
    assert plain.missing_pairs([pair]) == [pair]
    assert compressed.missing_pairs([pair]) == []


@pytest.mark.parametrize("size", [(9, 8, 7), (40, 120, 200), (12, 300, 200)])
def test_boxes_of_a_plain_array_are_those_of_the_array(tmp_path: Path, size: Index3) -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(-1000, 1000, size).astype(np.int16)
    path = tmp_path / "a.npy"
    path.write_bytes(plain_bytes(whole))
    with path.open("rb", buffering=0) as stream:
        array = PlainArray(stream)
        assert (array.shape, array.dtype) == (whole.shape, whole.dtype)
        for _ in range(20):
            ends = [sorted(rng.integers(0, n + 1, 2)) for n in size]
            box = (slice(*ends[0]), slice(*ends[1]), slice(*ends[2]))
            np.testing.assert_array_equal(array[box], whole[box])
        path.write_bytes(plain_bytes(whole)[:-1])
        with pytest.raises(ValueError, match="cut short"):
            array[slice(0, size[0]), slice(0, size[1]), slice(0, size[2])]


def test_damage_without_a_known_source_is_told_and_counts_as_missing(tmp_path: Path) -> None:
    row = scan(tmp_path, "a")
    Cache(tmp_path / "cache", RECIPE).build([row])
    stranger = Cache(tmp_path / "cache", RECIPE)
    flip_a_byte(stranger.folder / "a.b2nd")
    with pytest.raises(UserError, match=r"a: the cached scan is damaged"):
        stranger.open("a")
    assert stranger.missing([row]) == [row]


def test_opening_what_was_never_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        Cache(tmp_path, RECIPE).open("nothing")


def test_a_scan_that_cannot_be_read_is_reported_and_the_others_are_built(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image at all")
    gone = tmp_path / "gone.nii.gz"
    rows = [
        scan(tmp_path, "a"),
        Row("broken", (broken,), (5, 5, 5), (1, 1, 1)),
        Row("gone", (gone,), (5, 5, 5), (1, 1, 1)),
    ]
    cache = Cache(tmp_path / "cache", RECIPE)
    report = cache.build(rows)
    assert report.built == ("a",)
    assert set(report.failed) == {"broken", "gone"}
    with pytest.raises(UserError, match=r"None of 2 scans can be used. broken: "):
        cache.build(rows[1:])


def test_a_label_on_another_grid_is_reported(tmp_path: Path) -> None:
    good, bad = case(tmp_path, "good"), case(tmp_path, "bad")
    write_volume(bad.label, np.ones((24, 40, 44), np.uint8), (2.5, 1.5, 1.6))
    report = Cache(tmp_path / "cache", RECIPE).build_pairs([good, bad])
    assert report.built == ("good",)
    assert "different grids" in report.failed["bad"]


def test_several_processes_give_the_same_voxels_as_one(tmp_path: Path) -> None:
    rows = [scan(tmp_path, f"s{i}", i) for i in range(5)]
    one, many = Cache(tmp_path / "one", RECIPE), Cache(tmp_path / "many", RECIPE)
    one.build(rows, workers=1)
    assert many.build(rows, workers=2).built == tuple(row.id for row in rows)
    for row in rows:
        np.testing.assert_array_equal(one.open(row.id).read_all(), many.open(row.id).read_all())


def test_threads_may_read_one_volume_at_the_same_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build([scan(tmp_path, "a")])
    volume = pickle.loads(pickle.dumps(cache.open("a")))  # as a worker process gets it
    whole = volume.read_all()
    starts = [tuple(s) for s in np.random.default_rng(0).integers(0, 9, (200, 3)).tolist()]
    with ThreadPoolExecutor(8) as pool:
        crops = list(pool.map(lambda start: volume.read(start, (6, 6, 6)), starts))
    for start, crop in zip(starts, crops, strict=True):
        at = tuple(slice(a, a + 6) for a in start)
        np.testing.assert_array_equal(crop, whole[at])


BUILD = """
import pickle, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cache import Cache, RECIPE, Row
rows = [Row(*row) for row in pickle.loads(Path(sys.argv[2]).read_bytes())]
if __name__ == "__main__":
    report = Cache(Path(sys.argv[3]), RECIPE).build(rows, workers=1)
    assert len(report.built) + len(report.reused) == len(rows), report
    sys.stdout.write(",".join(report.built))
"""


def test_two_runs_may_build_the_same_cache_at_once(tmp_path: Path) -> None:
    rows = [scan(tmp_path, f"s{i}", i) for i in range(6)]
    told = tmp_path / "rows"
    told.write_bytes(pickle.dumps([(r.id, r.files, r.size, r.spacing_mm) for r in rows]))
    command = [sys.executable, "-c", BUILD, str(Path(__file__).parent), str(told)]
    runs = [
        subprocess.Popen(
            [*command, str(tmp_path / "cache")],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    built = [name for out, _ in outputs for name in out.split(",") if name]
    assert sorted(built) == [row.id for row in rows]
    cache = Cache(tmp_path / "cache", RECIPE)
    assert cache.missing(rows) == []
    for row in rows:
        wanted = preprocess(read_volume(row.files), RECIPE)
        np.testing.assert_array_equal(cache.open(row.id).read_all(), wanted.voxels)


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cache import Cache, RECIPE, Row, ResourceError
row = Row("a", (Path(sys.argv[2]),), (24, 40, 44), (2.5, 1.5, 1.5))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    Cache(Path(sys.argv[3]), RECIPE).build([row])
except ResourceError as error:
    sys.stdout.write(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are a Unix feature")
def test_a_write_that_stops_in_the_middle_leaves_no_half_file(tmp_path: Path) -> None:
    row = scan(tmp_path, "a")
    command = [sys.executable, "-c", FULL, str(Path(__file__).parent), str(row.files[0])]
    run = subprocess.run(
        [*command, str(tmp_path / "cache")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written" in run.stdout
    assert "--cache DIR" in run.stdout
    assert entry_files(Cache(tmp_path / "cache", RECIPE)) == []


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        Cache(tmp_path / "file" / "cache", RECIPE).build([scan(tmp_path, "a")])


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    row = scan(tmp_path, "a")
    huge = Row("a", row.files, (10**5, 10**5, 10**5), (1.0, 1.0, 1.0))
    with pytest.raises(ResourceError, match=r"needs .* TB and 210 MB to spare, but .* free"):
        Cache(tmp_path / "cache", RECIPE).build([huge])
    assert not (tmp_path / "cache").exists()


def test_the_estimate_is_never_less_than_what_is_written(tmp_path: Path) -> None:
    rows = [scan(tmp_path, "a"), scan(tmp_path, "b", 1)]
    cache = Cache(tmp_path / "cache", RECIPE)
    report = cache.build(rows)
    assert report.bytes <= cache.estimate_bytes(rows)
    voxels = 24 * 40 * 44 * (2.5 * 1.5 * 1.5) / (3 * 2 * 2)
    assert cache.estimate_bytes(rows) == pytest.approx(2 * (voxels * 1.5 + 2**16), rel=1e-3)


def test_two_sets_with_equal_case_names_do_not_share_an_entry(tmp_path: Path) -> None:
    here, there = case(tmp_path / "here", "case_001", 1), case(tmp_path / "there", "case_001", 2)
    os.utime(there.label, (time.time() - DAY, time.time() - DAY))
    first, second = Cache(tmp_path / "cache", RECIPE), Cache(tmp_path / "cache", RECIPE)
    first.build_pairs([here])
    second.build_pairs([there])
    for cache, pair in ((first, here), (second, there)):
        wanted = preprocess_pair(read_volume(pair.image), read_label(pair.label), RECIPE)[0]
        np.testing.assert_array_equal(cache.open("case_001").read_all(), wanted.voxels)
    with pytest.raises(UserError, match="2 times"):
        Cache(tmp_path / "cache", RECIPE).open("case_001")


@pytest.mark.parametrize("name", ["a b", "../up", "x.y.b2nd", "µ/ß", "con*?", "~", "n" * 300])
def test_any_name_is_safe_as_a_file_name(tmp_path: Path, name: str) -> None:
    pair = case(tmp_path, "a")
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build_pairs([LabelledCase(id=name, image=pair.image, label=pair.label)])
    assert cache.open(name).id == name
    assert Cache(tmp_path / "cache", RECIPE).open(name).read((0, 0, 0), (1, 1, 1)).shape == (
        1,
        1,
        1,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "cache"]


def test_one_name_for_two_scans_is_refused(tmp_path: Path) -> None:
    row = scan(tmp_path, "a")
    with pytest.raises(UserError, match="a stands for two scans"):
        Cache(tmp_path / "cache", RECIPE).build([row, row])


def test_names_of_source_files_are_not_written_down(tmp_path: Path) -> None:
    row = scan(tmp_path, "doe_john")
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build([Row("a", row.files, row.size, row.spacing_mm)])
    assert "doe" not in (cache.folder / "a.json").read_text()


def age(cache: Cache, name: str, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(cache.folder / f"{name}.json", (then, then))


def test_listing_and_pruning_by_age_keep_what_is_in_use(tmp_path: Path) -> None:
    rows = [scan(tmp_path, "old"), scan(tmp_path, "new", 1)]
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build(rows)
    age(cache, "old", 40)
    age(cache, "new", 40)
    cache.open("new")
    (use,) = list_cache(tmp_path / "cache")
    assert (use.key, use.recipe, use.entries) == (RECIPE.key(), RECIPE, 2)
    assert use.bytes == sum(p.stat().st_size for p in cache.folder.iterdir() if p.is_file())
    assert abs(use.last_used - time.time()) < 60
    report = prune(tmp_path / "cache", older_than_days=30)
    assert report.entries == 1
    assert cache.missing(rows) == rows[:1]


def test_pruning_one_recipe_or_all_leaves_foreign_files_alone(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    row = scan(tmp_path, "a")
    other = Recipe(spacing_mm=(4, 4, 4))
    Cache(root, RECIPE).build([row])
    Cache(root, other).build([row])
    (root / "notes").mkdir()
    (root / "notes" / "mine.json").write_text("{}")
    (root / other.key() / "mine.txt").write_text("keep")
    assert prune(root, recipe=RECIPE.key()).entries == 1
    assert [use.key for use in list_cache(root)] == [other.key()]
    assert prune(root, everything=True).entries == 1
    assert (root / "notes" / "mine.json").exists()
    assert (root / other.key() / "mine.txt").read_text() == "keep"
    with pytest.raises(UserError, match="no recipe 'abc'"):
        prune(root, recipe="abc")
    with pytest.raises(UserError, match="Nothing is chosen"):
        prune(root)


def test_remains_of_writers_are_pruned_once_they_are_a_day_old(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build([scan(tmp_path, "a")])
    remains = [cache.folder / "b.b2nd", cache.folder / ".c.b2nd.123.tmp"]
    for file in remains:
        file.write_bytes(b"x" * 1000)
    assert prune(cache.root, older_than_days=30).bytes == 0
    for file in remains:
        os.utime(file, (time.time() - 2 * DAY,) * 2)
    assert prune(cache.root, older_than_days=30).bytes == 2000
    assert entry_files(cache) == ["a.b2nd", "a.json"]


def test_reading_what_was_pruned_meanwhile_is_told(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", RECIPE)
    cache.build([scan(tmp_path, "a")])
    volume = cache.open("a")
    prune(cache.root, everything=True)
    with pytest.raises(UserError, match="removed from the cache while in use"):
        volume.read_all()


def test_the_cache_of_a_project_lies_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / "runs").mkdir(parents=True)
    (project / "project.json").write_text(json.dumps({}))
    assert default_cache_dir(project / "index.csv") == project / "cache"
    assert default_cache_dir(project / "runs" / "first") == project / "cache"
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert default_cache_dir(tmp_path / "index.csv") == tmp_path / "xdg" / "sslsegmentation"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert default_cache_dir(None) == Path.home() / ".cache" / "sslsegmentation"


def test_the_command_shows_a_table_and_what_it_freed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path / "cache", RECIPE)
    report = cache.build([scan(tmp_path, "a"), scan(tmp_path, "b", 1)])
    capsys.readouterr()
    cachetool.run(cache.root)
    shown = capsys.readouterr().out.splitlines()
    assert " ".join(shown[1].split()) == "recipe spacing z, y, x (mm) entries size last used"
    assert shown[2].split()[:7] == [RECIPE.key(), "3", "x", "2", "x", "2", "2"]
    cachetool.run(cache.root, remove=True, everything=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Removed 2 entries, ")
    assert second.endswith("is empty.")
    assert report.bytes > 0
    with pytest.raises(UserError, match="no cache folder"):
        cachetool.run(tmp_path / "nowhere")


def test_sizes_are_told_in_units_of_a_thousand() -> None:
    told = [told_bytes(n) for n in (12, 4_200, 7_500_000, 1_500_000_000, 2_300_000_000_000)]
    assert told == ["12 B", "4 kB", "8 MB", "1.5 GB", "2.3 TB"]


def test_the_cache_never_imports_torch() -> None:
    code = "import sys, backend.cachetool, backend.data.labelled; sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert run.returncode == 0


def test_building_stops_between_scans_on_request_and_keeps_what_is_written(
    tmp_path: Path,
) -> None:
    rows = [scan(tmp_path, f"scan_{i}", seed=i) for i in range(3)]
    cache = Cache(tmp_path / "cache", RECIPE)
    seen: list[int] = []

    def stop_after_two() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise Cancelled("Stopped on request.")

    with pytest.raises(Cancelled):
        cache.build(rows, between=stop_after_two)
    assert len(cache.missing(rows)) == 1
