"""The project folder: plain files with relative paths, to be copied to a server and back."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from SSLPretrainLogic.errors import LogicError, told_plainly
from SSLPretrainLogic.files import absolute, read_json, surely, write_json
from SSLPretrainLogic.run_folder import RunStatus, read_status

SCHEMA = 1
PROJECT_FILE = "project.json"
_NAME_BYTES = 100
"""Of a name that is made here; file systems end at 255, and others put endings behind it."""
_FOLDERS = ("cache", "runs", "labels", "jobs")
_CURE = "Choose another folder, or make a new project there."


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project on disk.

    Attributes:
        folder: absolute.
        name: as shown; no patient's.
        created: ISO 8601, UTC.
        sources: what was scanned for CT, relative to the project where it lies inside.
        probe_data: the labelled set that pretrainings are probed with, likewise; "" for none.
    """

    folder: Path
    name: str
    created: str
    sources: tuple[str, ...] = ()
    probe_data: str = ""

    @property
    def is_there(self) -> bool:
        """Whether its folder is still where it was: it may be deleted, moved or disconnected."""
        return surely((self.folder / PROJECT_FILE).exists)

    @property
    def index(self) -> Path:
        """The table of series that `scan` writes."""
        return self.folder / "index.csv"

    @property
    def cache(self) -> Path:
        """Preprocessed scans; may be deleted."""
        return self.folder / "cache"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.folder / "runs"

    @property
    def labels(self) -> Path:
        """Exported segmentations."""
        return self.folder / "labels"

    @property
    def jobs(self) -> Path:
        """One folder per command that was started, with what it said."""
        return self.folder / "jobs"

    @property
    def environments(self) -> Path:
        """What is known of the interpreters of this and other machines; may be deleted."""
        return self.folder / "environments.json"


def create_project(folder: Path, *, name: str = "") -> Project:
    """Make a project in a folder that does not exist or is empty.

    Args:
        folder: of the project.
        name: left out, that of the folder.

    Raises:
        LogicError: if something is there already, or it cannot be written.
    """
    folder = absolute(folder)
    if (folder / PROJECT_FILE).exists():
        raise LogicError(f"{folder}: is a project already.", "Open it, or choose another folder.")
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise LogicError(f"{folder}: is not empty.", "Choose a new or an empty folder.")
        for part in _FOLDERS:
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise told_plainly(error, folder) from error
    created = datetime.now(UTC).isoformat(timespec="seconds")
    project = Project(folder=folder, name=name.strip() or folder.name, created=created)
    _write(project)
    return project


def open_project(folder: Path) -> Project:
    """Open a project and check it; folders that are missing are made again.

    Args:
        folder: the project, or its project.json.

    Raises:
        LogicError: if it is none, is damaged, or comes from a newer program.
    """
    folder = absolute(folder.parent if folder.name == PROJECT_FILE else folder)
    path = folder / PROJECT_FILE
    if not path.exists():
        raise LogicError(f"{folder}: is no project, {PROJECT_FILE} is missing.", _CURE)
    project = _checked(folder, read_json(path, cure=_CURE))
    try:
        for part in _FOLDERS:
            (folder / part).mkdir(exist_ok=True)
    except OSError as error:
        raise told_plainly(error, folder) from error
    return project


def _checked(folder: Path, told: Mapping[str, Any]) -> Project:
    path = folder / PROJECT_FILE
    if told.get("schema") != SCHEMA:
        raise LogicError(
            f"{path}: is of version {told.get('schema')}, this program knows {SCHEMA}.",
            "Update the extension.",
        )
    wanted = {"name": str, "created": str, "sources": list}
    for key, kind in wanted.items():
        if not isinstance(told.get(key), kind):
            raise LogicError(f"{path}: {key} is {told.get(key)!r}.", _CURE)
    sources = tuple(told["sources"])
    if not all(isinstance(source, str) and source for source in sources):
        raise LogicError(f"{path}: sources is {told['sources']!r}.", _CURE)
    probe_data = told.get("probe_data", "")
    if not isinstance(probe_data, str):
        raise LogicError(f"{path}: probe_data is {probe_data!r}.", _CURE)
    return Project(
        folder=folder,
        name=told["name"],
        created=told["created"],
        sources=sources,
        probe_data=probe_data,
    )


def _write(project: Project) -> None:
    value = {
        "schema": SCHEMA,
        "name": project.name,
        "created": project.created,
        "sources": list(project.sources),
        "probe_data": project.probe_data,
    }
    write_json(project.folder / PROJECT_FILE, value)


def with_sources(project: Project, paths: tuple[Path, ...]) -> Project:
    """The project with other folders of scans, which is written.

    Raises:
        LogicError: if it cannot be written.
    """
    return _changed(project, sources=tuple(dict.fromkeys(to_text(project, p) for p in paths)))


def source_paths(project: Project) -> tuple[Path, ...]:
    """The folders of scans."""
    return tuple(from_text(project, source) for source in project.sources)


def with_probe_data(project: Project, path: Path | None) -> Project:
    """The project with another labelled set to probe with, None for none; it is written.

    Raises:
        LogicError: if it cannot be written.
    """
    return _changed(project, probe_data="" if path is None else to_text(project, path))


def probe_data_path(project: Project) -> Path | None:
    """The labelled set to probe with, None if there is none."""
    return from_text(project, project.probe_data) if project.probe_data else None


def labelled_sets(project: Project) -> tuple[Path, ...]:
    """The exported sets that a probe can use, by name: one scan to learn from, one to judge."""
    try:
        return tuple(sorted(path for path in project.labels.iterdir() if _can_be_probed(path)))
    except OSError:
        return ()


def _can_be_probed(folder: Path) -> bool:
    images = folder / "images"
    return (folder / "labels.json").is_file() and len(list(images.glob("[!.]*"))) > 1


def _changed(project: Project, **changes: Any) -> Project:
    changed = replace(project, **changes)
    _write(changed)
    return changed


def to_text(project: Project, path: Path) -> str:
    """A path as files of a project tell it: relative and with `/` inside, else absolute."""
    whole = absolute(path)
    if whole.is_relative_to(project.folder):
        return whole.relative_to(project.folder).as_posix()
    return str(whole)


def from_text(project: Project, text: str) -> Path:
    """The path that such a text means here."""
    return absolute(project.folder / text)


def new_run_folder(project: Project, name: str) -> Path:
    """A folder for a run that does not exist yet; a number follows a name that is taken.

    Args:
        project: where it will lie.
        name: e.g. "smit tiny"; what file systems do not like becomes a hyphen, and what is too
            long is cut off.
    """
    return free_name(project.runs, name)


def free_name(folder: Path, name: str) -> Path:
    """A path in a folder at which nothing is."""
    plain = re.sub(r"[^\w.-]+", "-", name).encode()[:_NAME_BYTES].decode(errors="ignore")
    plain = plain.strip("-.") or "run"
    # Names of devices, which Windows refuses.
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", plain, re.IGNORECASE):
        plain = f"run-{plain}"
    candidate, number = folder / plain, 1
    while candidate.exists():
        number += 1
        candidate = folder / f"{plain}-{number}"
    return candidate


def find_runs(project: Project) -> tuple[RunStatus, ...]:
    """All runs of a project as they stand, the newest first; also those copied into it."""
    try:
        folders = [path for path in project.runs.iterdir() if (path / "status.json").exists()]
    except OSError:
        return ()
    found = [read_status(folder) for folder in folders]
    return tuple(sorted(found, key=lambda run: (run.started, run.folder.name), reverse=True))


def outside(project: Project) -> tuple[str, ...]:
    """What the project needs and does not contain: a copy of it works where these exist too.

    Raises:
        LogicError: if the index cannot be read.
    """
    needed = (*project.sources, project.probe_data)
    found = [text for text in needed if is_outside(text)]
    if project.index.exists():
        found += [path for path in _indexed(project.index) if is_outside(path)]
    return tuple(dict.fromkeys(found))


def _indexed(index: Path) -> list[str]:
    """Where the series of an index lie, as it tells."""
    try:
        text = index.read_text("utf-8-sig")
    except OSError as error:
        raise told_plainly(error, index) from error
    except UnicodeDecodeError:
        text = ""
    # Spreadsheets put semicolons between in half of Europe.
    semicolons = text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",")
    rows = csv.DictReader(io.StringIO(text), delimiter=";" if semicolons else ",")
    # What spreadsheets never wrote may have fields without an end.
    with suppress(csv.Error):
        if "path" in (rows.fieldnames or ()):
            return [row["path"] for row in rows if row["path"]]
    raise LogicError(f"{index}: is no index.", "Scan the folders again.")


def is_outside(text: str) -> bool:
    """Whether a path in a file of a project leads out of it, on whatever system it was written."""
    absolute_somewhere = PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).anchor)
    return absolute_somewhere or ".." in PureWindowsPath(text).parts
