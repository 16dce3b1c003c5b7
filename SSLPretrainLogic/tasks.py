"""What a segmentation was started for: kept in the project, so that a later Slicer can load it.

A task is a folder in the project, deleted when its result is in the scene:

    segmenting/NAME/task.json   what was asked: model, cases, output, job
    segmenting/NAME/in/         the volumes, as files without a patient's name
    segmenting/NAME/out/        label files, with a report each
"""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLPretrainLogic.files import checked_moment, read_json, write_json
from SSLPretrainLogic.jobs import Job
from SSLPretrainLogic.project import Project, free_name, from_text, to_text

SCHEMA = 1
ENDING = ".seg.nrrd"

_FOLDER = "segmenting"
_ABANDONED = timedelta(days=1)
_TAIL_BYTES = 1 << 13
_BAR = re.compile(r"([^\r\n:]+):\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[[^<\]]*<([\d:]+|\?)")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A volume of the scene.

    Attributes:
        name: of its files in the task.
        fingerprint: of its voxels and of where they lie, to find it again.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """A segmentation that was started.

    Attributes:
        folder: of the task.
        model: its name.
        output: folder of the label files.
        job: the name of its job's folder, "" before it has started.
        started: ISO 8601, UTC.
        cases: volumes of the scene; none if whole folders were segmented.
    """

    folder: Path
    model: str
    output: Path
    job: str = ""
    started: str = ""
    cases: tuple[Case, ...] = ()

    @property
    def input(self) -> Path:
        """Where the volumes of the scene are written to."""
        return self.folder / "in"

    @property
    def is_of_scene(self) -> bool:
        """Whether its result belongs into the scene."""
        return self.output.parent == self.folder

    def label_file(self, case: Case) -> Path:
        """Where the segmentation of a case is, once it is done."""
        return self.output / f"{case.name}{ENDING}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """How much of a case is one structure.

    Attributes:
        case: its name, for people.
        structure: its name.
        voxels: how many it has.
        ml: its volume in millilitres.
        mean_hu: its mean value, None if it has no voxels or is not known.
        color: red, green, blue, 0 to 255, None if it is not known.
    """

    case: str
    structure: str
    voxels: int
    ml: float
    mean_hu: float | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How far a command is.

    Attributes:
        what: is being done.
        done: so many of them.
        total: of so many.
        left_s: seconds left, None if unknown.
    """

    what: str
    done: int
    total: int
    left_s: int | None


def new_task(project: Project, *, model: str, output: Path | None = None) -> Task:
    """Make the folder of a task.

    Args:
        project: where it lies.
        model: its name.
        output: folder of the label files; left out, a folder of the task itself.

    Raises:
        LogicError: if it cannot be written.
    """
    now = datetime.now(UTC)
    folder = free_name(project.folder / _FOLDER, f"{now:%Y%m%d-%H%M%S}")
    task = Task(
        folder=folder,
        model=model,
        output=output or folder / "out",
        started=now.isoformat(timespec="seconds"),
    )
    keep(project, task)
    return task


def keep(project: Project, task: Task) -> None:
    """Write a task as it stands.

    Raises:
        LogicError: if it cannot be written.
    """
    told = {
        "schema": SCHEMA,
        "model": task.model,
        "output": to_text(project, task.output),
        "job": task.job,
        "started": task.started,
        "cases": [asdict(case) for case in task.cases],
    }
    write_json(task.folder / "task.json", told)


def find_tasks(project: Project) -> tuple[Task, ...]:
    """The tasks whose results are not loaded yet, the newest first; damaged ones are left out."""
    found = []
    for path in (project.folder / _FOLDER).glob("*/task.json"):
        try:
            found.append(_task(project, path))
        except (LogicError, KeyError, TypeError):
            continue
    return tuple(sorted(found, key=lambda task: task.folder.name, reverse=True))


def _task(project: Project, path: Path) -> Task:
    told = read_json(path)
    if told.get("schema") != SCHEMA:
        raise LogicError(f"{path}: is of version {told.get('schema')}.", "Delete its folder.")
    checked_moment(str(told["started"]), path=path, cure="Delete its folder.")
    return Task(
        folder=path.parent,
        model=str(told["model"]),
        output=from_text(project, told["output"]),
        job=str(told["job"]),
        started=str(told["started"]),
        cases=tuple(Case(**case) for case in told["cases"]),
    )


def discard(task: Task) -> None:
    """Delete the folder of a task; label files elsewhere stay.

    Raises:
        LogicError: if it cannot be deleted.
    """
    try:
        shutil.rmtree(task.folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise told_plainly(error, task.folder) from error


def has_result(task: Task) -> bool:
    """Whether there is something to load."""
    if not task.is_of_scene:
        return (task.output / "volumes.csv").is_file()
    return any(task.label_file(case).is_file() for case in task.cases)


def is_abandoned(task: Task) -> bool:
    """Whether it left nothing to load and nobody can be at work on it any more."""
    age = datetime.now(UTC) - datetime.fromisoformat(task.started)
    return age > _ABANDONED and not has_result(task)


def case_rows(task: Task, case: Case, *, name: str) -> tuple[Row, ...]:
    """What the backend counted in one case.

    Args:
        task: that is done.
        case: one of its cases.
        name: of the case, for people.

    Raises:
        LogicError: if the case was not done.
    """
    path = task.output / f"{case.name}.json"
    try:
        return tuple(_row(entry, case=name) for entry in read_json(path)["structures"])
    except (KeyError, TypeError, ValueError) as error:
        raise LogicError(f"{path}: is damaged.", "Segment the volume again.") from error


def folder_rows(task: Task) -> tuple[Row, ...]:
    """What the backend counted in a whole folder.

    Raises:
        LogicError: if it did not come so far.
    """
    path = task.output / "volumes.csv"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return tuple(_row(told, case=told["case"]) for told in csv.DictReader(stream))
    except OSError as error:
        raise told_plainly(error, path) from error
    except (KeyError, TypeError, ValueError) as error:
        raise LogicError(f"{path}: is damaged.", "Segment the folder again.") from error


def _row(told: Mapping[str, Any], *, case: str) -> Row:
    name = str(told.get("name") or told["structure"])
    return Row(case=case, structure=name, voxels=int(told["voxels"]), ml=float(told["ml"]))


def problems(job: Job) -> tuple[str, ...]:
    """What a segmentation left out, and why."""
    told = [line for line in _text(job.output).splitlines() if line.startswith("Left out: ")]
    return tuple(line.removeprefix("Left out: ") for line in told)


def read_bar(job: Job) -> Bar | None:
    """How far a job is, None before it counts anything."""
    bars = _BAR.findall(_text(job.log, last_bytes=_TAIL_BYTES))
    if not bars:
        return None
    what, done, total, left = bars[-1]
    return Bar(what=what.strip(), done=int(done), total=int(total), left_s=_seconds(left))


def _seconds(text: str) -> int | None:
    if "?" in text:
        return None
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total


def _text(path: Path, *, last_bytes: int | None = None) -> str:
    """The text of a file that may not be there yet; of a long one, its end."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(size - last_bytes, 0) if last_bytes else 0)
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


HEADINGS = ("case", "structure", "ml", "voxels", "mean_hu")


def as_text(rows: Sequence[Row], *, separator: str) -> str:
    """Rows with their headings, as spreadsheets take them: with tabs pasted, with commas as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(HEADINGS)
    for row in rows:
        mean = "" if row.mean_hu is None else f"{row.mean_hu:.1f}"
        writer.writerow((row.case, row.structure, f"{row.ml:.4f}", row.voxels, mean))
    return text.getvalue()
