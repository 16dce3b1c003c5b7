"""The models that the effect offers, their structures, and which segment stands for which."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLPretrainLogic.files import surely
from SSLPretrainLogic.project import find_runs
from SSLPretrainLogic.run_folder import find_checkpoints
from SSLSegmentationLib.session import Session

if TYPE_CHECKING:
    from SSLPretrainLogic.scene.structures import Structure

FILE_SETTING = "model_file"
"""The setting that remembers a weights file from outside the project."""

_FILES = ("best.safetensors", "model.safetensors")
_HEADER = "sslsegmentation"
_LONGEST_HEADER = 100 << 20
_CURE = _("Choose a model that was fine-tuned with this program.")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network that segments.

    Attributes:
        key: tells it in a scene, which is given to others: a run's name or a hash, never a path.
        name: as people read it.
        path: of its weights.
    """

    key: str
    name: str
    path: Path


def found_models(session: Session) -> tuple[Model, ...]:
    """The fine-tuned runs of the open project, the newest first, then the remembered file."""
    runs = find_runs(session.project) if session.project is not None else ()
    found = []
    for run in runs:
        weights = find_checkpoints(run.folder) if run.kind == "finetune" else {}
        file = next((weights[name].path for name in _FILES if name in weights), None)
        if file is not None:
            name = run.folder.name
            found.append(Model(key=f"run:{name}", name=name, path=file))
    remembered = session.setting(FILE_SETTING)
    if remembered and surely(Path(remembered).is_file):
        found.append(file_model(Path(remembered)))
    return tuple(found)


def file_model(path: Path) -> Model:
    """The model of a weights file."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return Model(key=f"file:{digest[:16]}", name=path.name, path=path)


def structures_of(model: Model) -> tuple[Structure, ...]:
    """What a model segments, as the header of its weights tells; reads no weights.

    Raises:
        LogicError: if the file is no such model.
    """
    try:
        facts = model.path.stat()
        return _structures(model.path, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise told_plainly(error, model.path) from error


def matching(name: str, terminology: str, structures: Sequence[Structure]) -> Structure | None:
    """The structure that a segment stands for: by its name, else by its code.

    Args:
        name: of the segment.
        terminology: its entry, "" if it has none.
        structures: of a model, see `structures_of`.

    Returns:
        None if there is none, or more than one has the code.
    """
    from SSLPretrainLogic.scene.structures import folded
    from SSLPretrainLogic.scene.terminology import code_for, is_unspecific

    for structure in structures:
        if folded(structure.name) == folded(name):
            return structure
    code = _code(code_for(name) if is_unspecific(terminology) else terminology)
    same = [s for s in structures if code and _code(s.terminology) == code]
    return same[0] if len(same) == 1 else None


def _code(entry: str) -> str:
    """Category, type and modifier without the name of their list and without their meanings."""
    parts = [part.split("^")[:2] for part in entry.split("~")[1:4]]
    return "~".join("^".join(part) for part in parts)


@lru_cache(maxsize=32)
def _structures(path: Path, _modified: int, _size: int) -> tuple[Structure, ...]:
    try:
        header = json.loads(_metadata(path)[_HEADER])
        found = tuple(_structure(label) for label in header["labels"])
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise LogicError(_("{path}: is no model.").format(path=path), _CURE) from error
    if not found:
        what = _("{path}: is a pretrained network and names no structures.").format(path=path)
        raise LogicError(what, _CURE)
    return found


def _metadata(path: Path) -> dict[str, str]:
    """What stands at the beginning of a safetensors file: a length of eight bytes, then JSON."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > _LONGEST_HEADER:
            raise ValueError(length)
        metadata: dict[str, str] = json.loads(file.read(length))["__metadata__"]
        return metadata


def _structure(label: dict[str, Any]) -> Structure:
    from SSLPretrainLogic.scene.structures import Structure
    from SSLPretrainLogic.scene.terminology import code_for, full_entry

    color, name = label.get("color"), str(label["name"])
    try:
        entry = full_entry(str(label.get("terminology") or ""), name)
    except LogicError:
        # A code that nobody can read is worth no more than none.
        entry = code_for(name)
    return Structure(
        value=int(label["value"]),
        name=name,
        color=tuple(int(channel) for channel in color) if color else None,
        terminology=entry,
    )
