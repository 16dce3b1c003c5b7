"""The models that segment: those of a project and others, told by the headers of their files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLPretrainLogic.files import absolute, surely
from SSLPretrainLogic.project import Project
from SSLPretrainLogic.run_folder import read_status
from SSLPretrainLogic.scene.structures import Structure

SCHEMA = 1

_FILES = ("best.safetensors", "model.safetensors")
_HEADER_KEY = "sslsegmentation"
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
_CURE = "Choose a model.safetensors that fine-tuning has made."


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network that segments, as its file tells of it.

    Attributes:
        path: the run folder or the file, as `--model` takes it.
        name: for people.
        structures: in the order of the network's classes.
        spacing_mm: of the grid it was trained on, (z, y, x).
        hu_window: the Hounsfield units it tells apart, (low, high).
        method: that it was pretrained with.
        training: scans it learned from, None if the file does not say.
        validation: scans it was chosen by, None likewise.
    """

    path: Path
    name: str
    structures: tuple[Structure, ...]
    spacing_mm: tuple[float, float, float]
    hu_window: tuple[float, float]
    method: str
    training: int | None
    validation: int | None


@dataclass(frozen=True, kw_only=True)
class FoundModels:
    """The models of a project, the newest first, and the files that are none and why."""

    models: tuple[Model, ...]
    damaged: Mapping[Path, str]


def find_models(project: Project) -> FoundModels:
    """The models of all fine-tuning runs, also of each fold, and of runs that go on."""
    found: list[tuple[str, Model]] = []
    damaged: dict[Path, str] = {}
    for pattern in ("*/checkpoints", "*/fold_*/checkpoints"):
        for folder in sorted(project.runs.glob(pattern)):
            run = folder.parent
            status = read_status(run)
            # A pretrained encoder segments nothing, and a run begins without a model.
            if status.kind == "pretrain" or not any((folder / name).is_file() for name in _FILES):
                continue
            try:
                name = run.relative_to(project.runs).as_posix()
                found.append((status.started, read_model(run, name=name)))
            except LogicError as error:
                damaged[run] = str(error)
    newest = sorted(found, key=lambda entry: (entry[0], entry[1].name), reverse=True)
    return FoundModels(models=tuple(model for _, model in newest), damaged=damaged)


def read_model(path: Path, *, name: str = "") -> Model:
    """What a model's file tells of it; no tensor is read.

    Args:
        path: a safetensors file, or the run folder that holds one.
        name: for people; left out, that of the file or folder.

    Raises:
        LogicError: if there is none, or it segments nothing.
    """
    path = absolute(path)
    file = _file(path)
    told = _header(file)
    if told.get("kind") != "segmentation" or not told.get("labels"):
        raise LogicError(
            f"{file}: holds weights of kind {told.get('kind')!r}, which segment nothing.",
            "Fine-tune them first.",
        )
    try:
        return _model(told, path=path, name=name or path.name.removesuffix(".safetensors"))
    except (KeyError, TypeError, ValueError) as error:
        raise LogicError(f"{file}: is damaged ({type(error).__name__}: {error}).", _CURE) from error


def _model(told: Mapping[str, Any], *, path: Path, name: str) -> Model:
    preprocessing, source = told["preprocessing"], told.get("fingerprint") or {}
    z, y, x = map(float, preprocessing["spacing_mm"])
    low, high = map(float, preprocessing["hu_window"])
    return Model(
        path=path,
        name=name,
        structures=tuple(_structure(entry) for entry in told["labels"] if entry["value"] != 0),
        spacing_mm=(z, y, x),
        hu_window=(low, high),
        method=str(told.get("method") or ""),
        training=_count(source, "training"),
        validation=_count(source, "validation"),
    )


def _structure(entry: Mapping[str, Any]) -> Structure:
    red, green, blue = map(int, entry["color"])
    return Structure(
        value=int(entry["value"]),
        name=str(entry["name"]),
        color=(red, green, blue),
        terminology=str(entry.get("terminology") or ""),
    )


def _count(source: Mapping[str, Any], key: str) -> int | None:
    value = source.get(key)
    return value if isinstance(value, int) else None


def _file(path: Path) -> Path:
    if surely(path.is_file):
        return path
    places = [folder / name for folder in (path / "checkpoints", path) for name in _FILES]
    file = next((place for place in places if surely(place.is_file)), None)
    if file is None:
        what = "has no model yet" if surely(path.is_dir) else "is not there any more"
        raise LogicError(f"{path}: {what}.", _CURE)
    return file


def _header(file: Path) -> Mapping[str, Any]:
    """What we wrote into a safetensors file: its length, a JSON table, the tensors."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            table = json.loads(stream.read(length)) if 0 < length < _LONGEST_HEADER else None
    except OSError as error:
        raise told_plainly(error, file) from error
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise LogicError(f"{file}: is no safetensors file.", _CURE)
    try:
        told = json.loads(table["__metadata__"][_HEADER_KEY])
        schema = told["schema"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise LogicError(f"{file}: does not say which network it holds.", _CURE) from None
    if schema != SCHEMA:
        raise LogicError(
            f"{file}: is of version {schema}, this program knows {SCHEMA}.", "Update the extension."
        )
    return dict(told)


def coarseness(model: Model, spacing_mm: Sequence[float]) -> float:
    """How many times a volume's voxels are longer or shorter than the model's, at the worst axis.

    Infinite for voxels without a length.

    Args:
        model: that is to segment it.
        spacing_mm: of the volume, in any order of its axes.
    """
    pairs = zip(sorted(spacing_mm), sorted(model.spacing_mm), strict=True)
    return max(max(own / its, its / own) if own else math.inf for own, its in pairs)
