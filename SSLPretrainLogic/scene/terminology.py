"""Codes and colours of structures by their names, from the tables in Resources/Terminology."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import read_json
from SSLPretrainLogic.scene.structures import Color, Structure, folded

FOLDER = Path(__file__).resolve().parents[2] / "Resources" / "Terminology"
TERMS = FOLDER / "SSLSegmentation-CT-Organs.term.json"
COLORS = FOLDER / "SSLSegmentation-CT-Organs.ctbl"

_GENERAL_ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"
_STRUCTURE = "SCT^123037004^Anatomical Structure"
_NO_REGION = "Anatomic codes - DICOM master list~^^~^^"
_TISSUE = "SCT^85756007^Tissue"


@dataclass(frozen=True, kw_only=True)
class Term:
    """A coded structure.

    Attributes:
        name: as the backend and people name it, e.g. "right kidney".
        entry: a terminology entry as 3D Slicer writes it.
        color: red, green, blue, 0 to 255.
    """

    name: str
    entry: str
    color: Color


def register(logic: Any) -> str:
    """Load the table into Slicer, so that its selector shows it.

    Args:
        logic: the vtkSlicerTerminologiesModuleLogic.

    Returns:
        The name of the context.

    Raises:
        LogicError: if Slicer does not take the file.
    """
    name = str(logic.LoadTerminologyFromFile(str(TERMS)) or "")
    if not name:
        raise LogicError(f"{TERMS} cannot be loaded.", "Install the extension again.")
    return name


def code_for(name: str) -> str:
    """The terminology entry of a structure, "" if the table does not have it."""
    term = _by_name().get(_key(name))
    return "" if term is None else term.entry


def color_for(name: str) -> Color | None:
    """The usual colour of a structure, None if the table does not have it."""
    term = _by_name().get(_key(name))
    return None if term is None else term.color


def full_entry(terminology: str, name: str) -> str:
    """What the backend notes as a terminology as a whole entry of 3D Slicer.

    Args:
        terminology: an entry, SCT^10200004^Liver, SCT:10200004, or "" for that of the table.
        name: of the structure.

    Raises:
        LogicError: if it is none of these.
    """
    if not terminology or "~" in terminology:
        return terminology or code_for(name)
    parts = terminology.replace(":", "^", 1).split("^")
    if len(parts) not in (2, 3) or not all(parts[:2]):
        raise LogicError(
            f"The terminology {terminology[:60]!a} of {name!r} is no code.",
            "Write it as SCT^10200004^Liver.",
        )
    triple = "^".join((*parts[:2], *(parts[2:] or [" ".join(name.split())])))
    return f"{_GENERAL_ANATOMY}~{_STRUCTURE}~{triple}~^^~{_NO_REGION}"


def entry_of(structure: Structure) -> str:
    """The whole entry of a structure; a code that nobody can read is worth no more than none."""
    try:
        return full_entry(structure.terminology, structure.name)
    except LogicError:
        return code_for(structure.name)


def matching(name: str, terminology: str, structures: Sequence[Structure]) -> Structure | None:
    """The structure that a segment stands for: by its name, else by its code.

    Args:
        name: of the segment.
        terminology: its entry, "" if it has none.
        structures: of a model.

    Returns:
        None if there is none, or more than one has the code.
    """
    for structure in structures:
        if folded(structure.name) == folded(name):
            return structure
    code = _code(code_for(name) if is_unspecific(terminology) else terminology)
    same = [s for s in structures if code and _code(entry_of(s)) == code]
    return same[0] if len(same) == 1 else None


def _code(entry: str) -> str:
    """Category, type and modifier without the name of their list and without their meanings."""
    parts = [part.split("^")[:2] for part in entry.split("~")[1:4]]
    return "~".join("^".join(part) for part in parts)


def is_unspecific(entry: str) -> bool:
    """Whether an entry says nothing: it is blank, or the tissue that new segments start as."""
    parts = entry.split("~")
    return len(parts) < 3 or parts[2] in ("", "^^", _TISSUE)


@lru_cache(maxsize=1)
def terms() -> tuple[Term, ...]:
    """All structures of the table.

    Raises:
        LogicError: if the table is missing or damaged.
    """
    content = read_json(TERMS)
    try:
        return tuple(_terms(content))
    except (KeyError, TypeError, ValueError) as error:
        raise LogicError(f"{TERMS} is damaged: {error}.", "Install the extension again.") from error


@lru_cache(maxsize=1)
def _by_name() -> Mapping[str, Term]:
    return {_key(term.name): term for term in terms()}


def _terms(content: Mapping[str, Any]) -> Iterator[Term]:
    context = content["SegmentationCategoryTypeContextName"]
    for category in content["SegmentationCodes"]["Category"]:
        for kind in category["Type"]:
            for modifier in kind.get("Modifier", [{}]):
                coded = modifier or kind
                entry = "~".join(
                    (context, _triple(category), _triple(kind), _triple(modifier), _NO_REGION)
                )
                red, green, blue = coded["recommendedDisplayRGBValue"]
                yield Term(name=coded["3dSlicerLabel"], entry=entry, color=(red, green, blue))


def _triple(coded: Mapping[str, str]) -> str:
    keys = ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
    return "^".join(coded.get(key, "") for key in keys)


_SAME_WORDS = {"oesophagus": "esophagus", "postcava": "inferior vena cava"}
"""Other names of the same thing."""

_FILLERS = {"gland", "and", "the"}


def _key(name: str) -> str:
    """Equal for all the ways to write a structure: sides first, "brain stem" in one word.

    "parotid_left", "Left Parotid Gland" and "left parotid" are the same.
    """
    text = folded(name).replace("-", " ").replace("brain stem", "brainstem")
    words = [_SAME_WORDS.get(word, word) for word in text.split() if word not in _FILLERS]
    sides = {"l": "left", "left": "left", "r": "right", "right": "right"}
    found = [sides[word] for word in words if word in sides]
    rest = [word for word in words if word not in sides]
    return _SAME_WORDS.get(" ".join(rest), " ".join((*found, *rest)))
