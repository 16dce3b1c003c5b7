"""The recipe behind `backend segment`: scans in, label files and volumes in millilitres out."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from backend import __version__
from backend.data.index import read_index, refusals, write_index
from backend.data.label_files import (
    ENDINGS,
    NAMES_SUFFIX,
    SLICER_ENDING,
    names_path,
    split_ending,
    value_counts,
    write_labels_file,
)
from backend.data.labels import Label
from backend.data.readers import read_volume
from backend.data.scan import scan as scan_folders
from backend.data.series import SeriesRow
from backend.data.volume_file import volume_among
from backend.engine.distributed import (
    Team,
    joined,
    place,
    repeated,
    share_of_device,
    told_of,
)
from backend.errors import BackendError, ResourceError, ScanError, UserError, told_plainly
from backend.files import require_file_place, written_whole
from backend.geometry import Volume
from backend.inference.structures import header_labels, require_segmentation
from backend.preparation import check_device
from backend.progress import progress, progress_bar
from backend.weights import WeightsHeader, read_header, resolve_weights

if TYPE_CHECKING:
    from backend.inference.predictor import Predictor

SCHEMA = 1
"""Version of the JSON beside every label file."""

# Says nothing about whose scan it is: then the folder's name does.
_GENERIC_STEMS = {"ct", "image", "img", "imaging", "scan", "volume"}
_NNUNET_CHANNEL = "_0000"
_TABLE = "volumes.csv"
_INDEX = "index.csv"
_COLUMNS = ("case", "structure", "value", "voxels", "ml")
_LISTED = 5
_LISTED_REFUSALS = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan to segment.

    Attributes:
        name: of its outputs, without ending; unique in a run.
        files: what to read.
        row: what the search of a folder has found out about it; None if nothing was searched.
    """

    name: str
    files: tuple[Path, ...]
    row: SeriesRow | None = None


@dataclass(frozen=True, kw_only=True)
class StructureVolume:
    """How much of a scan is one structure."""

    value: int
    name: str
    voxels: int
    ml: float


_VOLUMES = TypeAdapter(tuple[StructureVolume, ...])


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """A finished scan.

    Attributes:
        name: of the scan.
        file: its label file.
        volumes: one per structure, absent ones included.
        reused: whether it was there already, from the same weights and scan.
    """

    name: str
    file: Path
    volumes: tuple[StructureVolume, ...]
    reused: bool = False


def run(
    model: Path,
    input: Path,  # noqa: A002 -- the option's own name
    output: Path,
    *,
    device: str = "auto",
    structures: Sequence[str] | None = None,
    overwrite: bool = False,
    ending: str | None = None,
) -> list[Segmented]:
    """Segment one scan into a file, or all scans of a folder into a folder.

    Beside every label file stands `<name>.json` with the volumes in ml, and in a folder
    `volumes.csv` with all of them; where a folder was searched, `index.csv` as well, which tells
    the place of each scan by its id. A later run adds its own to both. In a folder, what the same
    weights made of the same scan before is kept, so that an interrupted run goes on where it
    stopped; anything else that is there already, be it a label file or one of those beside it, is
    refused before the work starts, unless `overwrite`.

    Args:
        model: weights of a segmentation network, or its run folder.
        input: a volume file, a DICOM series, a folder of scans or an index.csv.
        output: a label file (its ending says the format) or a folder.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        structures: names of those to write; None means all.
        overwrite: replace label files that are there already, and what is beside them.
        ending: format of the files in an output folder; None takes ".nii.gz".

    Returns:
        What was written or kept, in the order of the scans.

    Raises:
        UserError: for anything wrong with the options; at the end, if scans failed.
        ResourceError: if memory or disk do not suffice.
    """
    weights = resolve_weights(model)
    header = read_header(weights)
    require_segmentation(header, weights)
    labels = chosen_labels(header_labels(header), structures)
    single = _is_label_file(output, of_one=input.is_file() and input.suffix.lower() != ".csv")
    _check_ending(ending, output if single else None)
    if not single:
        _require_apart(input, output)
    scans = find_scans(input, single=single)
    if single:
        targets = {scans[0].name: output}
    else:
        targets = {scan.name: output / f"{scan.name}{ending or _DEFAULT_ENDING}" for scan in scans}
    digest = _digest(weights)
    here = place()
    work = _Work(
        weights=weights,
        header=header,
        labels=labels,
        targets=targets,
        records={scan.name: _record(scan, digest, labels) for scan in scans},
        device=share_of_device(device, here),
        single=single,
    )
    with joined(here) as team:
        if not team.leads:
            _follow(work, scans, team)
            return []
        check_device(work.device)
        _require_writable(scans, targets)
        table = None if single else output / _TABLE
        index = output / _INDEX if table is not None and input.is_dir() else None
        results = {} if overwrite else _already_done(work, scans, table=table, index=index)
        waiting = [scan for scan in scans if scan.name not in results]
        failed = _shared(work, waiting, team)
        results |= {
            scan.name: _finished(work, scan.name) for scan in waiting if scan.name not in failed
        }
        team.announce(None)
    done = [results[scan.name] for scan in scans if scan.name in results]
    _write_tables(done, scans, table=table, index=index)
    _tell(done, index=index)
    _raise_failures(failed, total=len(scans))
    return done


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be done with each scan.

    Attributes:
        weights: the network's file.
        header: what it says of itself.
        labels: the structures to write.
        targets: the label file of each scan.
        records: what decides the result of each.
        device: to compute on.
        single: whether there is one scan alone, whose failure is the command's.
    """

    weights: Path
    header: WeightsHeader
    labels: tuple[Label, ...]
    targets: dict[str, Path]
    records: dict[str, dict[str, Any]]
    device: str
    single: bool


def _shared(work: _Work, waiting: Sequence[Scan], team: Team) -> dict[str, BackendError]:
    """Divide scans among the processes; those that failed, each with its reason."""
    team.announce({"waiting": [scan.name for scan in waiting]})
    failed = _segment_each(work, waiting[:: team.size])
    for answer in team.answers():
        failed |= {name: repeated(told) for name, told in answer.items()}
    return failed


def _follow(work: _Work, scans: Sequence[Scan], team: Team) -> None:
    """Segment this process' share of what the leader names."""
    by_name = {scan.name: scan for scan in scans}
    with team.confessing():
        for facts in team.announced(lambda: None):
            share = facts["waiting"][team.here.rank :: team.size]
            failed = _segment_each(work, [by_name[name] for name in share])
            team.answer({name: told_of(error) for name, error in failed.items()})


def _segment_each(work: _Work, scans: Sequence[Scan]) -> dict[str, BackendError]:
    """Write the label file of each scan; those that failed, each with its reason."""
    failed: dict[str, BackendError] = {}
    # A scan that cannot be read is told before the seconds that the network takes to load.
    predictor = cache(lambda: _predictor(work.weights, work.device))
    for scan in _shown(scans):
        begin = time.monotonic()
        try:
            found = _labels_of(predictor, scan, work.labels, show_windows=len(scans) == 1)
        except (ScanError, ResourceError) as error:
            if work.single:
                raise
            _log.warning("%s: %s", scan.name, error)
            failed[scan.name] = error
            continue
        content = {
            "schema": SCHEMA,
            "name": scan.name,
            "made_from": work.records[scan.name],
            "method": work.header.method,
            "preset": work.header.preset,
            "device": str(predictor().device),
            "version": __version__,
            "seconds": round(time.monotonic() - begin, 2),
        }
        # A disk that is full or read-only stops the run: every later scan would meet it too.
        _write(found, work.targets[scan.name], work.labels, content)
    return failed


def find_scans(path: Path, *, single: bool) -> list[Scan]:
    """The scans meant by a path, each with a name of its own.

    Args:
        path: a volume file, a DICOM series, a folder of scans or an index.csv.
        single: whether there must be exactly one.

    Raises:
        UserError: if there is none, or there are several where one is needed.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder.", "Give a scan or a folder of scans.")
    if path.is_file() and path.suffix.lower() != ".csv":
        return [Scan(name=_stem(path), files=(path.resolve(),))]
    found = read_index(path) if path.is_file() else scan_folders([path]).rows
    rows = [row for row in found if row.verdict == "usable"]
    if not rows:
        raise UserError(f"{path}: no usable CT series.", refusals(found))
    _tell_refused([row for row in found if row.verdict != "usable"])
    if single and len(rows) > 1:
        named = ", ".join(f"{row.id} ({row.path})" for row in rows[:_LISTED])
        raise UserError(
            f"{path}: {len(rows)} usable series, but the output is one file: {named}"
            + (", ..." if len(rows) > _LISTED else "."),
            "Give one of them as input, or a folder as output.",
        )
    root = path if path.is_dir() else path.parent
    names = scan_names([(row.id, tuple(row.files)) for row in rows], root=root.resolve())
    return [
        Scan(name=name, files=tuple(row.files), row=row)
        for name, row in zip(names, rows, strict=True)
    ]


def scan_names(rows: Sequence[tuple[str, tuple[Path, ...]]], *, root: Path) -> list[str]:
    """A name for each series, the shortest kind that tells all of them apart.

    A volume file is named after itself, after its folder if its own name says nothing ("ct"), or
    after its way from `root`; so is a single DICOM file. A series of several is named by its id:
    what stands in its headers never becomes a file name.

    Args:
        rows: `(id, files)` of each series.
        root: the folder that was searched.
    """
    alone = [(identity, _only(files)) for identity, files in rows]
    single = [(identity, file) for identity, file in alone if file is not None]
    taken = {identity for identity, file in alone if file is None}
    kinds: tuple[Callable[[str, Path], str], ...] = (
        lambda _identity, file: _stem(file),
        lambda _identity, file: file.parent.name,
        lambda _identity, file: _way(file, root),
        lambda identity, file: f"{_stem(file)}_{identity}",
    )
    chosen: dict[str, str] = {}
    for kind in kinds:
        chosen = {identity: kind(identity, file) for identity, file in single}
        # Names that differ in case alone are one file on many systems.
        folded = Counter(f.lower() for name in [*chosen.values(), *taken] for f in _files_of(name))
        if max(folded.values(), default=0) <= 1 and not _GENERIC_STEMS & folded.keys():
            break
    return [chosen.get(identity, identity) for identity, _ in rows]


def _files_of(name: str) -> tuple[str, str]:
    """What a scan's outputs are called, without ending: those of two scans are never one."""
    return name, f"{name}{NAMES_SUFFIX}"


def _only(files: Sequence[Path]) -> Path | None:
    return files[0] if len(files) == 1 else volume_among(files)


def chosen_labels(labels: Sequence[Label], structures: Sequence[str] | None) -> tuple[Label, ...]:
    """The labels of the wanted names, in the network's order.

    Raises:
        UserError: for a name that the network does not know, with the nearest that it does.
    """
    if structures is None:
        return tuple(labels)
    known = [label.name for label in labels]
    for name in structures:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It knows: {', '.join(known)}."
            raise UserError(f"Structure {name!r} is not one of this network's.", hint)
    if not structures:
        raise UserError("No structure is chosen.", f"Name some of: {', '.join(known)}.")
    return tuple(label for label in labels if label.name in structures)


def keep_labels(volume: Volume, labels: Sequence[Label]) -> Volume:
    """The same map with all other values set to background."""
    kept = np.isin(volume.voxels, [label.value for label in labels])
    return Volume(np.where(kept, volume.voxels, 0).astype(volume.voxels.dtype), volume.geometry)


def structure_volumes(volume: Volume, labels: Sequence[Label]) -> tuple[StructureVolume, ...]:
    """Voxels and millilitres of every label, absent ones with 0."""
    counts = value_counts(volume.voxels)
    return tuple(
        StructureVolume(
            value=label.value,
            name=label.name,
            voxels=(voxels := int(counts[label.value]) if label.value < len(counts) else 0),
            ml=round(voxels * volume.geometry.voxel_ml, 4),
        )
        for label in labels
    )


def _labels_of(
    predictor: Callable[[], Predictor],
    scan: Scan,
    labels: Sequence[Label],
    *,
    show_windows: bool,
) -> Volume:
    volume = read_volume(scan.files)
    predictor()
    with _window_bar(shown=show_windows) as windows:
        return keep_labels(predictor().segment(volume, progress=windows), labels)


def _predictor(weights: Path, device: str) -> Predictor:
    from backend.engine.device import resolve_device
    from backend.inference.predictor import load_predictor

    return load_predictor(weights, device=str(resolve_device(device)))


def _write(found: Volume, target: Path, labels: Sequence[Label], content: dict[str, Any]) -> None:
    """The label file first, then its report: a report says that both are whole."""
    volumes = structure_volumes(found, labels)
    report = _report_path(target)
    with written_whole(report) as temporary:
        # Until the new label file is whole, no report vouches for it; that it is ours stays known.
        temporary.write_text(json.dumps(content), encoding="utf-8")
    write_labels_file(target, found, labels)
    content = content | {"structures": [asdict(entry) for entry in volumes]}
    with written_whole(report) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _require_writable(scans: Sequence[Scan], targets: dict[str, Path]) -> None:
    """Find out before the work, not after it; a scan is never replaced by its labels."""
    sources = {file.resolve() for scan in scans for file in scan.files}
    for target in targets.values():
        for path in (target, *_beside(target)):
            require_file_place(path)
        if target.resolve() in sources:
            raise UserError(
                f"{target}: this is one of the scans.", "Choose another folder or name as output."
            )
    folder = next(iter(targets.values())).absolute().parent
    # In the nearest folder there is: one that is made now would be left behind by a refusal.
    folder = next(place for place in (folder, *folder.parents) if place.exists())
    probe = folder / f".writable-{os.getpid()}"
    try:
        with written_whole(probe) as temporary:
            temporary.touch()
        probe.unlink()
    except BackendError as error:
        raise type(error)(error.message.replace(str(probe), str(folder)), error.hint) from None


def _finished(work: _Work, name: str, *, reused: bool = False) -> Segmented:
    """What the report of a scan says, which was written last."""
    target = work.targets[name]
    content = _read_report(_report_path(target))
    if not _vouches(content, work.records[name]):
        raise UserError(f"{target}: was changed while it was written.", "Start the command again.")
    assert content is not None, "it vouches"
    volumes = _VOLUMES.validate_python(content["structures"])
    return Segmented(name=name, file=target, volumes=volumes, reused=reused)


def _already_done(
    work: _Work,
    scans: Sequence[Scan],
    *,
    table: Path | None,
    index: Path | None,
) -> dict[str, Segmented]:
    """Finished scans that need no second pass; anything else in the way is refused.

    Args:
        work: what is to be done with each scan.
        scans: all of the run.
        table: of the output folder; None for a single file, which nothing is kept of.
        index: of the output folder, if there is to be one.
    """
    done: dict[str, Segmented] = {}
    in_the_way = [table] if table is not None and _table_rows(table) is None else []
    if table is not None and index is not None and not _is_ours(index, table):
        in_the_way.append(index)
    for scan in scans:
        target = work.targets[scan.name]
        content = _read_report(_report_path(target))
        whole = target.exists() and _vouches(content, work.records[scan.name])
        if table is not None and whole:
            done[scan.name] = _finished(work, scan.name, reused=True)
        else:
            in_the_way += _in_the_way(target, ours=content is not None)
    if in_the_way:
        named = ", ".join(str(path) for path in in_the_way[:_LISTED])
        more = f" and {len(in_the_way) - _LISTED} more" if len(in_the_way) > _LISTED else ""
        raise UserError(
            f"There already: {named}{more}.", "Choose another output, or add --overwrite."
        )
    return done


def _in_the_way(target: Path, *, ours: bool) -> list[Path]:
    """What a label file would replace; what is beside it is free if the report is one of ours."""
    beside = [] if ours else _beside(target)
    return [path for path in (target, *beside) if path.exists()]


def _beside(target: Path) -> list[Path]:
    """What is written beside a label file."""
    embedded = split_ending(target)[1] == SLICER_ENDING
    return [_report_path(target), *([] if embedded else [names_path(target)])]


def _record(scan: Scan, digest: str, labels: Sequence[Label]) -> dict[str, Any]:
    """What decides the result: equal records give equal label files."""
    # A file that is gone by now is told when its scan's turn comes.
    stats = [(file.name, file.stat()) for file in sorted(scan.files) if file.is_file()]
    text = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return {
        "weights_sha256": digest,
        "scan_files": len(stats),
        "scan_fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
        "structures": [label.name for label in labels],
    }


def _read_report(path: Path) -> dict[str, Any] | None:
    """A report of ours, finished or not; None if there is none, or it is damaged or another's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(content, dict) and content.get("schema") == SCHEMA and "made_from" in content
    return content if ours else None


def _vouches(report: dict[str, Any] | None, record: dict[str, Any]) -> bool:
    """Whether a report says that its label file is whole and what a run would make now."""
    try:
        _VOLUMES.validate_python((report or {})["structures"])
    except (ValueError, KeyError):
        return False
    return report is not None and report["made_from"] == record


def _report_path(target: Path) -> Path:
    return target.with_name(f"{split_ending(target)[0]}.json")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_label_file(path: Path, *, of_one: bool) -> bool:
    """Whether an output names one file; other file endings are refused, not made a folder.

    Args:
        path: the output.
        of_one: whether the input is a single file: then whatever has an ending is meant as a file.
    """
    if path.is_dir():
        return False
    if path.name.lower().endswith(ENDINGS):
        return True
    known = path.suffix.lower() in (".gz", ".dcm", ".nhdr", ".mhd", ".png", ".json")
    if path.is_file() or known or (of_one and path.suffix):
        split_ending(path)
    return False


_DEFAULT_ENDING = ".nii.gz"


def _check_ending(ending: str | None, file: Path | None) -> None:
    """Refuse an ending that is no format, or that contradicts the name of the one output file."""
    if ending is not None and ending not in ENDINGS:
        raise UserError(
            f"--ending {ending!r} is no format of label files.", f"Give {', '.join(ENDINGS)}."
        )
    if file is not None and ending is not None and not file.name.lower().endswith(ending):
        raise UserError(
            f"{file}: does not end in {ending}, which --ending asks for.",
            "Leave out --ending: the name of a file says its format.",
        )


def _require_apart(source: Path, output: Path) -> None:
    """Refuse to write among the scans: the next search would find the labels there."""
    for name in (_TABLE, _INDEX):
        require_file_place(output / name)
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{output}: lies in the folder of the scans, {source}, where labels would be taken "
            "for scans the next time.",
            "Choose an --output outside it.",
        )


def _stem(file: Path) -> str:
    name = file.name
    for known in (*ENDINGS, ".nhdr", ".mhd", ".dcm", ".dicom", ".ima"):
        if name.lower().endswith(known):
            name = name[: -len(known)]
            break
    return name.removesuffix(_NNUNET_CHANNEL) or file.parent.name


def _way(file: Path, root: Path) -> str:
    inside = file.relative_to(root) if file.is_relative_to(root) else file
    return "_".join((*inside.parent.parts[-3:], _stem(file))).replace("/", "")


def _shown(scans: Sequence[Scan]) -> Iterator[Scan]:
    if len(scans) == 1:
        return iter(scans)
    return progress(scans, what="Segmenting", unit="scan")


@contextmanager
def _window_bar(*, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar over the windows of a single scan, for `Predictor.segment`."""
    if not shown:
        yield None
        return
    with progress_bar(total=None, what="Segmenting", unit="window") as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


def _write_tables(
    done: Sequence[Segmented], scans: Sequence[Scan], *, table: Path | None, index: Path | None
) -> None:
    if table is not None and done:
        _write_table(table, done)
    if index is not None and done:
        _write_index(index, [scan.row for scan in scans if scan.row is not None])


def _write_table(path: Path, done: Sequence[Segmented]) -> None:
    """All volumes, one row per scan and structure; those of other scans that are there stay."""
    rows = (_table_rows(path) or {}) | {
        result.name: [[result.name, v.name, v.value, v.voxels, v.ml] for v in result.volumes]
        for result in done
    }
    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(row for of_scan in rows.values() for row in of_scan)


def _table_rows(path: Path) -> dict[str, list[list[Any]]] | None:
    """The rows of a table by scan; None if it is none of ours."""
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = csv.reader(file)
    except (OSError, ValueError, csv.Error):
        return None
    if tuple(header) != _COLUMNS or any(len(line) not in (0, len(_COLUMNS)) for line in lines):
        return None
    rows: dict[str, list[list[Any]]] = {}
    for line in filter(None, lines):
        rows.setdefault(line[0], []).append(line)
    return rows


def _is_ours(index: Path, table: Path) -> bool:
    """Whether an index may grow: one without the table beside it is a project's."""
    return not index.exists() or (table.exists() and _index_rows(index) is not None)


def _write_index(path: Path, rows: Sequence[SeriesRow]) -> None:
    """What was found out about each scan; what stands there of others stays."""
    known = {row.id: row for row in (*(_index_rows(path) or ()), *rows)}
    try:
        write_index(path, tuple(known.values()))
    except OSError as error:
        raise told_plainly(error, path) from error


def _index_rows(path: Path) -> list[SeriesRow] | None:
    """The rows of an index; None if it is none."""
    if not path.exists():
        return []
    try:
        return read_index(path)
    except UserError:
        return None


def _tell_refused(rows: Sequence[SeriesRow]) -> None:
    for row in rows[:_LISTED_REFUSALS]:
        sys.stdout.write(f"Left out: {row.path}: {row.reason}\n")
    if len(rows) > _LISTED_REFUSALS:
        rest = len(rows) - _LISTED_REFUSALS
        sys.stdout.write(f"Left out: {rest} more; `backend scan` lists them all\n")


def _tell(done: Sequence[Segmented], *, index: Path | None) -> None:
    if not done:
        return
    kept = sum(result.reused for result in done)
    text = f"Kept, already there ({kept} of {len(done)})"
    if len(done) == 1:
        lines = [f"{entry.name:<30} {_told_volume(entry):>15}" for entry in done[0].volumes]
        lines.append(f"{text if kept else 'Written'}: {done[0].file}")
    else:
        lines = [f"{len(done)} scans, volumes in {done[0].file.parent / _TABLE}"]
        lines += [text] if kept else []
    lines += [] if index is None else [f"Which scan is which: {index}"]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _told_volume(entry: StructureVolume) -> str:
    return f"{entry.ml:.2f} ml" if entry.voxels else "not found"


def _raise_failures(failed: dict[str, BackendError], *, total: int) -> None:
    if not failed:
        return
    if len(failed) == total == 1:
        raise next(iter(failed.values()))
    told = [f"{name}: {error.message}" for name, error in list(failed.items())[:_LISTED]]
    more = f"; and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
    reasons = "; ".join(told) + more
    only_memory = all(isinstance(error, ResourceError) for error in failed.values())
    kind = ResourceError if only_memory else UserError
    raise kind(
        f"{len(failed)} of {total} scans could not be segmented. {reasons}",
        "The others are done; the same command tries only the failed ones again.",
    )
