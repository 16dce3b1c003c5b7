"""Which segment of which case becomes which structure: one table for a whole labelled set.

Nothing here touches a scene: the table can be shown, edited, stored and tested alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import read_json, write_json

Color = tuple[int, int, int]

MAX_VALUE = 32767
"""Label maps are at most int16."""

_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One structure of a label map.

    Attributes:
        value: what its voxels hold, 1 to 32767.
        name: as people read it.
        color: red, green, blue, 0 to 255; None where nothing says.
        terminology: an entry as 3D Slicer writes it, a code such as SCT^10200004^Liver, or "".
    """

    value: int
    name: str
    color: Color | None = None
    terminology: str = ""


@dataclass(frozen=True, kw_only=True)
class FoundSegment:
    """A segment as a case has it.

    Attributes:
        case: name of the case.
        name: name of the segment.
        color: red, green, blue, 0 to 255.
        terminology: see `Structure`.
    """

    case: str
    name: str
    color: Color
    terminology: str = ""


@dataclass(frozen=True, kw_only=True)
class StructureTable:
    """Structures with stable values, and the segment names that stand for them.

    Every change gives a new table. Values of structures never change on the way.

    Attributes:
        structures: in the order of their values.
        sources: folded segment name to the name of its structure, or to None if it is left out.
        notes: what the cases do not agree on, to be shown to the user.
    """

    structures: tuple[Structure, ...]
    sources: Mapping[str, str | None]
    notes: tuple[str, ...] = ()

    def value_of(self, segment_name: str) -> int:
        """The label value of a segment, 0 if it is left out.

        Raises:
            LogicError: if the table does not know the segment.
        """
        key = folded(segment_name)
        if key not in self.sources:
            raise LogicError(
                f"Segment {segment_name!r} stands in no row of the table of structures.",
                "Give it a structure or leave it out.",
            )
        target = self.sources[key]
        return 0 if target is None else self.named(target).value

    def named(self, name: str) -> Structure:
        """The structure of this name, however it is written.

        Raises:
            LogicError: if there is none.
        """
        for structure in self.structures:
            if folded(structure.name) == folded(name):
                return structure
        known = ", ".join(structure.name for structure in self.structures)
        raise LogicError(f"There is no structure {name!r}.", f"There are: {known}.")

    def merged(self, names: Iterable[str], *, into: str) -> StructureTable:
        """Several structures as one, which has the value, colour and code of the first.

        Raises:
            LogicError: if a name is unknown, or `into` is another structure.
        """
        parts = [self.named(name) for name in names]
        kept = parts[0]
        gone = {part.name for part in parts[1:]}
        joined = {
            key: kept.name if target in gone else target for key, target in self.sources.items()
        }
        left = tuple(entry for entry in self.structures if entry.name not in gone)
        return replace(self, structures=left, sources=joined).renamed(kept.name, into)

    def renamed(self, old: str, new: str) -> StructureTable:
        """A structure under another name.

        Raises:
            LogicError: if the old name is unknown, or the new one is blank or taken.
        """
        before = self.named(old)
        name = checked_name(new)
        if any(folded(s.name) == folded(name) for s in self.structures if s is not before):
            raise LogicError(f"There is a structure {name!r} already.", "Merge the two.")
        return replace(
            self,
            structures=tuple(replace(s, name=name) if s is before else s for s in self.structures),
            sources={k: name if t == before.name else t for k, t in self.sources.items()},
        )

    def without(self, name: str) -> StructureTable:
        """Leave a structure out: its segments become background.

        Raises:
            LogicError: if the name is unknown.
        """
        gone = self.named(name)
        return replace(
            self,
            structures=tuple(s for s in self.structures if s is not gone),
            sources={k: None if t == gone.name else t for k, t in self.sources.items()},
        )

    def missing(self, found: Iterable[FoundSegment]) -> dict[str, tuple[str, ...]]:
        """What every case lacks, by name of the case; complete cases have an empty entry."""
        has: dict[str, set[int]] = {}
        for segment in found:
            has.setdefault(segment.case, set()).add(self.value_of(segment.name))
        return {
            case: tuple(s.name for s in self.structures if s.value not in values)
            for case, values in has.items()
        }


def proposed(found: Sequence[FoundSegment], *, known: Sequence[Structure] = ()) -> StructureTable:
    """A table in which equal names, however written, are one structure.

    Args:
        found: all segments of all cases; the first that has a name gives spelling and colour.
        known: structures of an earlier set, which keep their values; new ones come behind them,
            in the order of their names, so that the order of cases plays no part.

    Raises:
        LogicError: if a name is blank or too long, or there are more structures than values.
    """
    first: dict[str, FoundSegment] = {}
    notes: dict[str, None] = {}
    for segment in found:
        checked_name(segment.name)
        earlier = first.setdefault(folded(segment.name), segment)
        if _code(earlier) and _code(segment) and _code(earlier) != _code(segment):
            notes[
                f"{segment.name!r} has one code in case {earlier.case} and another in "
                f"case {segment.case}."
            ] = None
    kept = {folded(structure.name): structure for structure in known}
    value = max((structure.value for structure in known), default=0)
    new = sorted(first.keys() - kept.keys())
    if value + len(new) > MAX_VALUE:
        raise LogicError(f"{len(new)} structures are too many.", f"Values end at {MAX_VALUE}.")
    for offset, key in enumerate(new, start=1):
        kept[key] = Structure(
            value=value + offset,
            name=checked_name(first[key].name),
            color=first[key].color,
            terminology=next(
                (s.terminology for s in found if folded(s.name) == key and s.terminology), ""
            ),
        )
    return StructureTable(
        structures=tuple(sorted(kept.values(), key=lambda structure: structure.value)),
        sources={key: kept[key].name for key in first},
        notes=tuple(notes),
    )


def folded(name: str) -> str:
    """A name for comparison: "Left_Kidney " and "left kidney" are the same."""
    return " ".join(name.replace("_", " ").casefold().split())


def checked_name(name: str) -> str:
    """A name that lists and files show as it is, without blanks around it.

    Raises:
        LogicError: if it is blank, too long or holds control characters.
    """
    text = " ".join(name.split())
    if not text or len(text) > _LONGEST_NAME or not text.isprintable():
        raise LogicError(
            f"{name[:60]!a} is no name for a structure.",
            f"Write 1 to {_LONGEST_NAME} characters in one line.",
        )
    return text


def write_labels(path: Path, structures: Sequence[Structure]) -> None:
    """Write `labels.json` as the backend reads it.

    Raises:
        LogicError: if the file cannot be written.
    """
    write_json(path, {"labels": {str(s.value): _described(s) for s in structures}})


def read_labels(path: Path) -> tuple[Structure, ...]:
    """Structures of a `labels.json`, in the order of their values.

    Raises:
        LogicError: if the file cannot be read or does not name structures by their values.
    """
    table = read_json(path).get("labels")
    try:
        if not isinstance(table, Mapping) or not table:
            raise ValueError('it has no "labels"')
        found = [_structure(value, entry) for value, entry in table.items()]
        if len({folded(s.name) for s in found}) < len(found):
            raise ValueError("it names a structure twice")
    except (ValueError, TypeError, KeyError) as error:
        raise LogicError(
            f"{path} names no structures: {error}.",
            'Write {"labels": {"1": {"name": "liver", "color": [221, 130, 101]}}}.',
        ) from error
    return tuple(sorted((s for s in found if s.value), key=lambda s: s.value))


def _structure(value: object, entry: object) -> Structure:
    detail: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"name": entry}
    number = int(str(value))
    if not 0 <= number <= MAX_VALUE or not isinstance(detail["name"], str):
        raise ValueError(f"{value!r}: {entry!r}")
    color = detail.get("color")
    return Structure(
        value=number,
        name=detail["name"],
        color=None if color is None else _color(color),
        terminology=str(detail.get("terminology", "")),
    )


def _color(value: Iterable[Any]) -> Color:
    red, green, blue = (int(channel) for channel in value)
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError(f"colour {value!r}")
    return red, green, blue


def _described(structure: Structure) -> dict[str, object]:
    described: dict[str, object] = {"name": structure.name}
    if structure.color is not None:
        described["color"] = list(structure.color)
    return described | ({"terminology": structure.terminology} if structure.terminology else {})


def _code(segment: FoundSegment) -> str:
    """What two cases must agree on: category, type and modifier without the list's name."""
    return "~".join(segment.terminology.split("~")[1:4]) or segment.terminology
