"""Files that were good once, changed at random, through everything that reads files.

`python Testing/backend/faults/fuzzing.py --first 0 --count 10000` tells one JSON object a file:
what became of it. Whoever starts it sees a crash or a hang by the number that is missing. What is
changed, and how, follows from the number alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from dicom_files import save, series_of

from backend.config import FinetuneConfig, PretrainConfig, load_config
from backend.data.cache import Cache
from backend.data.index import read_index, write_index
from backend.data.labelled import load_labelled_set
from backend.data.phantom.cohort import write_image
from backend.data.preprocess import Recipe
from backend.data.readers import read_label, read_volume
from backend.data.scan import scan
from backend.engine.checkpoint import load_checkpoint, save_checkpoint
from backend.engine.record import read_metrics, read_status
from backend.errors import BackendError
from backend.geometry import Geometry, Volume
from backend.models.segmentation import build_segmentation
from backend.preparation import stored
from backend.pretrain import PretrainRequest, resolve
from backend.provenance import preprocessing, segmentation_architecture
from backend.weights import WeightsHeader, load_weights, save_weights

SIZE = (16, 12, 10)
_HEADER_BYTES = 512
_MEMORY = 4 << 30
"""A file of some kilobytes that makes a reader ask for more is a bomb."""
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_TEXTS = (
    b"0",
    b"-1",
    b"1e308",
    b"nan",
    b"9" * 12,
    b"null",
    b'"',
    b"[]",
    b"\xff",
    b"\0",
    b"\n",
)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The same with a few changes, of which half are near the beginning."""
    for _ in range(int(rng.integers(1, 4))):
        change = _CHANGES[int(rng.integers(len(_CHANGES)))]
        near = min(len(data), _HEADER_BYTES if rng.random() < 0.5 else len(data))
        data = change(data, int(rng.integers(max(1, near))), rng)
    return data


def _flip(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    byte = data[at : at + 1]
    return data[:at] + bytes(b ^ 1 << int(rng.integers(8)) for b in byte) + data[at + 1 :]


def _random(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    new = rng.bytes(int(rng.integers(1, 17)))
    return data[:at] + new + data[at + len(new) :]


def _number(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    width = int(rng.choice([1, 2, 4]))
    number = _NUMBERS[int(rng.integers(len(_NUMBERS)))] % (1 << 8 * width)
    order: Literal["little", "big"] = "big" if int(rng.integers(2)) else "little"
    return data[:at] + number.to_bytes(width, order) + data[at + width :]


def _text(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + _TEXTS[int(rng.integers(len(_TEXTS)))] + data[at + 1 :]


def _cut(data: bytes, at: int, _: np.random.Generator) -> bytes:
    return data[:at]


def _without(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + data[at + int(rng.integers(1, 65)) :]


def _twice(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    piece = data[at : at + int(rng.integers(1, 65))]
    return data[:at] + piece + data[at:]


_CHANGES = (_flip, _random, _number, _text, _cut, _without, _twice)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file.

    Attributes:
        file: one that is good; the others of its folder belong to it.
        read: reads it as the program does; gives what it says, comparable, or raises.
        exact: whether the file can tell by itself that anything was changed.
    """

    file: Path
    read: Callable[[Path], Any]
    exact: bool = False


def ct() -> Volume:
    """A small scan that passes for a CT."""
    hu = np.linspace(-1000, 900, int(np.prod(SIZE))).reshape(SIZE).astype(np.int16)
    geometry = Geometry(size=SIZE, spacing_mm=(2.0, 1.5, 1.25), origin_mm=(5.0, -7.0, 11.0))
    return Volume(hu, geometry)


def _plain(volume: Volume) -> dict[str, Any]:
    """What a volume must be whatever it was read from."""
    voxels, geometry = volume.voxels, volume.geometry
    assert voxels.shape == geometry.size, (voxels.shape, geometry.size)
    assert voxels.dtype.kind in "iu", voxels.dtype
    assert all(0 < s < 1e6 for s in geometry.spacing_mm), geometry.spacing_mm
    return {"geometry": geometry, "voxels": voxels.tobytes(), "type": str(voxels.dtype)}


def _scan_file(path: Path) -> dict[str, Any]:
    """As a scan of its folder and then a run would read it."""
    rows = scan([path.parent], min_slices=4, workers=1).rows
    assert all(row.reason or row.verdict == "usable" for row in rows)
    volume = _plain(read_volume((path,)))
    usable = [row for row in rows if row.verdict == "usable"]
    assert not usable or usable[0].size == volume["geometry"].size
    return volume


def _scan_series(path: Path) -> dict[str, Any]:
    files = tuple(sorted(path.parent.glob("*.dcm")))
    rows = scan([path.parent], min_slices=4, workers=1).rows
    assert all(row.reason or row.verdict == "usable" for row in rows)
    volume = _plain(read_volume(files))
    assert volume["geometry"].size[0] == len(files)
    return volume


def _cached(path: Path) -> dict[str, Any]:
    entry = Cache(path.parents[1], RECIPE).open("ct")
    return {"geometry": entry.geometry, "voxels": entry.read_all().tobytes()}


def _weights(path: Path) -> dict[str, Any]:
    tensors, header = load_weights(path)
    return {"header": header, **{name: t.numpy().tobytes() for name, t in tensors.items()}}


def _checkpoint(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path)
    return {**state, "module": {k: v.numpy().tobytes() for k, v in state["module"].items()}}


def _config(path: Path) -> Any:
    return resolve(PretrainRequest(output=path.parent, data=(), resume=True))


def _labels(path: Path) -> Any:
    return load_labelled_set(path.parent)


RECIPE = Recipe(spacing_mm=(2.0, 1.5, 1.5), orientation="LPS")


def targets(root: Path) -> dict[str, Target]:
    """One good file of each kind below a folder, with its reader."""
    found = {f"volume{e}": _volume(root, e) for e in (".nii", ".nii.gz", ".nrrd", ".mha")}
    label = _label(root / "label")
    found["label.nii.gz"] = Target(file=label, read=lambda p: _plain(read_label(p)), exact=True)
    series = save(series_of(ct().voxels), root / "dicom")
    found["DICOM"] = Target(file=series[5], read=_scan_series)
    found |= {f"cache{e}": _cache_entry(root / f"cache{e}", e) for e in (".b2nd", ".json")}
    found["weights"] = Target(file=_model(root / "weights"), read=_weights, exact=True)
    state = {"module": {"a": torch.arange(500.0)}, "step": 3, "best": None}
    save_checkpoint(root / "checkpoint" / "last.pt", state)
    found["checkpoint"] = Target(file=root / "checkpoint" / "last.pt", read=_checkpoint, exact=True)
    rows = scan([found["volume.nii"].file.parent], min_slices=4, workers=1).rows
    for name in ("index.csv", "index.files.jsonl"):
        write_index(root / name / "index.csv", rows)
        found[name] = Target(
            file=root / name / name, read=lambda p: read_index(p.with_name("index.csv"))
        )
    return found | _run_files(root) | {"labels.json": _labelled(root / "set")}


def _volume(root: Path, ending: str) -> Target:
    file = root / f"volume{ending}" / f"ct{ending}"
    write_image(file, ct())
    # Compressed voxels have a checksum, and NIfTI compresses its header with them.
    return Target(file=file, read=_scan_file, exact=ending == ".nii.gz")


def _label(folder: Path) -> Path:
    volume = ct()
    label = (volume.voxels > 0).astype(np.uint8)
    write_image(folder / "label.nii.gz", Volume(label, volume.geometry))
    return folder / "label.nii.gz"


def _labelled(folder: Path) -> Target:
    write_image(folder / "case_1" / "ct.nii.gz", ct())
    shutil.copy(_label(folder / "made"), folder / "case_1")
    shutil.rmtree(folder / "made")
    (folder / "labels.json").write_text(
        json.dumps({"labels": {"1": "liver", "2": "spleen"}}), encoding="utf-8"
    )
    return Target(file=folder / "labels.json", read=_labels)


def _cache_entry(root: Path, ending: str) -> Target:
    source = root.parent / "volume.nii.gz" / "ct.nii.gz"
    cache = Cache(root, RECIPE)
    cache.build([_Row(source)])
    return Target(file=cache.folder / f"ct{ending}", read=_cached, exact=True)


@dataclass(frozen=True)
class _Row:
    """As much of a row as the cache looks at."""

    file: Path
    id: str = "ct"
    size: tuple[int, int, int] = SIZE
    spacing_mm: tuple[float, float, float] = (2.0, 1.5, 1.25)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)


_SMALL = ("method.encoder.embed_dim=4", "method.encoder.heads=[1, 1, 2]", "decoder.width=4")


def _model(folder: Path) -> Path:
    config = load_config(FinetuneConfig, method="simmim", preset="tiny", overrides=_SMALL)
    architecture = segmentation_architecture(config, classes=2)
    torch.manual_seed(0)
    label = {"value": 1, "name": "liver", "color": [1, 2, 3], "terminology": ""}
    header = WeightsHeader(
        kind="segmentation",
        method="simmim",
        preset="tiny",
        preprocessing=preprocessing(config.preprocess),
        architecture=architecture,
        labels=(label,),
    )
    file = folder / "model.safetensors"
    save_weights(file, build_segmentation(architecture).state_dict(), header)
    return file


def _run_files(root: Path) -> dict[str, Target]:
    config = load_config(PretrainConfig, method="simmim", preset="tiny")
    request = {"data": ["/data"], "init": None, "cache": None, "device": "cpu"}
    status = {
        **{"schema": 1, "kind": "pretrain", "state": "running", "pid": 1, "host": "nowhere"},
        **{"process_started": 1.0, "updated": "2026-01-01T00:00:00+00:00", "step": 3},
    }
    lines = [{"step": n, "loss/total": 1 / n, "lr": 1e-4} for n in range(1, 9)]
    contents = {
        "config.json": json.dumps(stored("pretrain", config, request), indent=1),
        "status.json": json.dumps(status, indent=1),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
    }
    readers: dict[str, Callable[[Path], Any]] = {
        "config.json": _config,
        "status.json": lambda path: read_status(path.parent),
        "metrics.jsonl": lambda path: read_metrics(path.parent),
    }
    for name, text in contents.items():
        (root / name).mkdir(parents=True)
        (root / name / name).write_text(text, encoding="utf-8")
    return {name: Target(file=root / name / name, read=readers[name]) for name in contents}


def outcome(target: Target, good: Any, data: bytes) -> dict[str, str]:
    """What became of a changed file: refused by name, read as it was, read as another, or wrong."""
    before = {path: path.read_bytes() for path in target.file.parent.iterdir() if path.is_file()}
    target.file.write_bytes(data)
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = target.read(target.file)
    except BackendError as error:
        path = target.file
        named = any(name in str(error) for name in (path.name, path.parent.name, path.stem))
        if error.exit_code == 1 or not error.message or not named:
            return {"became": "wrong", "why": f"{type(error).__name__}: {error}"}
        return {"became": "refused", "why": error.message}
    # Anything else is what a user would see as a traceback, and counts as a defect.
    except Exception:
        return {"became": "wrong", "why": traceback.format_exc()[-1500:]}
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    if found == good:
        return {"became": "as it was"}
    changed = [k for k in found if found[k] != good.get(k)] if isinstance(found, dict) else []
    became = "wrong" if target.exact else "another"
    return {"became": became, "why": f"read as another without a word: {changed}"}


def main(words: Sequence[str]) -> None:
    """Change and read the files of the numbers that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kinds = targets(Path(folder))
        good = {name: target.read(target.file) for name, target in kinds.items()}
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, -1))
        names = list(kinds)
        for number in range(asked.first, asked.first + asked.count):
            name = names[number % len(names)]
            target = kinds[name]
            data = mutated(target.file.read_bytes(), np.random.default_rng([7, number]))
            told = {"number": number, "kind": name, **outcome(target, good[name], data)}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
