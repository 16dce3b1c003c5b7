"""What the last scan learnt, kept beside its index so that unchanged files are not read again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from backend.data.headers import FileFacts, signature
from backend.files import written_whole
from backend.geometry import Geometry

_SCHEMA = 2
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(FileFacts)}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What decoding a series showed.

    Attributes:
        hu_min: lowest value, None if it could not be decoded.
        hu_max: highest value.
        problem: why it cannot be used, "" if it can.
        digest: hash of voxels and grid, "" if it could not be decoded.
    """

    hu_min: int | None = None
    hu_max: int | None = None
    problem: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Memory:
    """Facts by path, and decoding results by the fingerprint of a series' files."""

    facts: dict[str, FileFacts] = field(default_factory=dict)
    decoded: dict[str, Decoded] = field(default_factory=dict)


def memory_path(index: Path) -> Path:
    """Where the memory of an index lies."""
    return index.with_name(f"{index.stem}.headers.jsonl")


def load_memory(index: Path | None) -> Memory:
    """The memory beside an index; empty if there is none or it is of another version."""
    memory = Memory()
    path = memory_path(index) if index else None
    if path is None or not path.is_file():
        return memory
    try:
        with path.open(encoding="utf-8") as stream:
            if json.loads(next(stream, "{}")).get("schema") != _SCHEMA:
                return memory
            for line in stream:
                _remember(memory, json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        # It only saves time: a damaged one is as good as none.
        return Memory()
    return memory


def save_memory(index: Path, memory: Memory) -> None:
    """Write the memory beside an index, whole or not at all."""
    with replacing(memory_path(index)) as stream:
        stream.write(json.dumps({"schema": _SCHEMA}) + "\n")
        for facts in memory.facts.values():
            stream.write(json.dumps(_as_object(facts)) + "\n")
        for fingerprint, decoded in memory.decoded.items():
            stream.write(json.dumps({"series": fingerprint, **dataclasses.asdict(decoded)}) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` once it is complete."""
    with written_whole(path) as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        yield stream


def _remember(memory: Memory, item: dict[str, Any]) -> None:
    if "series" in item:
        fingerprint = str(item.pop("series"))
        memory.decoded[fingerprint] = Decoded(**item)
        return
    geometry = item.pop("geometry", None)
    values = {key: _frozen(value) for key, value in item.items()}
    if geometry is not None:
        values["geometry"] = Geometry(**{key: _frozen(v) for key, v in geometry.items()})
    memory.facts[str(item["path"])] = FileFacts(**values)


def _as_object(facts: FileFacts) -> dict[str, Any]:
    """Only what is not as usual, to keep 100,000 lines short."""
    item = {name: getattr(facts, name) for name in _DEFAULTS}
    item = {name: value for name, value in item.items() if value != _DEFAULTS[name]}
    if facts.geometry is not None:
        item["geometry"] = dataclasses.asdict(facts.geometry)
    return item


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def unchanged(memory: Memory, paths: Iterable[Path]) -> tuple[list[FileFacts], list[Path]]:
    """The facts of files that did not change, and the files that must be read.

    Size and time of change tell, for the file and for the data file that it points to.
    """
    known, unread = [], []
    for path in paths:
        facts = memory.facts.get(str(path))
        try:
            same = facts is not None and signature(path, facts.data_file) == (
                facts.bytes,
                facts.mtime_ns,
            )
        except OSError:
            same = False
        if facts is not None and same:
            known.append(facts)
        else:
            unread.append(path)
    return known, unread
