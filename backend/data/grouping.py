"""From the facts of single files to series, each with a verdict as far as headers tell."""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backend.data.dicom import PATIENTS_MIXED, SECONDARY_CAPTURE, short_hash, shown
from backend.data.headers import FileFacts, same_plane
from backend.data.series import SeriesRow, Verdict
from backend.data.stacking import spacing_problem, stack_geometry, stack_problems
from backend.geometry import Geometry

_Key = tuple[object, ...]


def series_rows(facts: Iterable[FileFacts], *, min_slices: int) -> list[SeriesRow]:
    """One row per series, sorted by path; files that are no images are left out.

    Args:
        facts: of every file.
        min_slices: series with fewer slices are refused.
    """
    images = sorted((f for f in facts if f.format or f.problem), key=lambda f: f.path)
    slices = [f for f in images if f.format == "DICOM" and f.identity]
    single = [f for f in images if not (f.format == "DICOM" and f.identity)]
    rows = [
        row
        for group in _dicom_series(slices)
        for row in _copies_apart(group, min_slices=min_slices)
    ]
    rows += [_file_row(f, min_slices=min_slices) for f in single]
    identities = {Path(f.path): f.identity for f in slices}
    return sorted(_duplicates_refused(rows, identities), key=lambda r: (str(r.files[0]), r.id))


def refused(row: SeriesRow, reason: str) -> SeriesRow:
    """The row with the verdict "refused"."""
    return replace(row, verdict="refused", reason=reason)


def _dicom_series(slices: Sequence[FileFacts]) -> list[list[FileFacts]]:
    """Files that form a series: same UID, same kind, same plane."""
    groups: dict[_Key, list[list[FileFacts]]] = defaultdict(list)
    # A file that does not tell its plane spoils its series: apart it would be missed in silence.
    for facts in sorted(slices, key=_planeless):
        parts = groups[_series_key(facts)]
        part = next((p for p in parts if _planeless(facts) or _same_grid(p[0], facts)), None)
        if part is None:
            parts.append([facts])
        else:
            part.append(facts)
    return [part for parts in groups.values() for part in parts]


def _planeless(facts: FileFacts) -> bool:
    return bool(facts.problem) and not (facts.orientation and all(facts.plane))


def _same_grid(one: FileFacts, other: FileFacts) -> bool:
    return one.plane == other.plane and same_plane(one, other)


def _series_key(facts: FileFacts) -> _Key:
    folder = str(Path(facts.path).parent)
    series = (facts.series_uid,) if facts.series_uid else (facts.study_uid, folder, facts.frame_uid)
    # A multi-frame file is a volume of its own.
    alone = facts.identity if len(facts.positions_mm) > 1 else ""
    return (*series, facts.modality, facts.sop_class, facts.localizer, alone)


def _copies_apart(group: Sequence[FileFacts], *, min_slices: int) -> list[SeriesRow]:
    """The row of a series, and one per further copy of its files."""
    copies: list[list[FileFacts]] = []
    seen: dict[_Key, int] = defaultdict(int)
    # A sound file is preferred to a broken copy of it.
    for facts in sorted(group, key=lambda f: (bool(f.problem), f.path)):
        key = (facts.identity, facts.positions_mm, facts.instance)
        if seen[key] == len(copies):
            copies.append([])
        copies[seen[key]].append(facts)
        seen[key] += 1
    first, *others = [_dicom_row(sorted(c, key=lambda f: f.path), min_slices) for c in copies]
    return [first, *(_as_duplicate(row, first, n) for n, row in enumerate(others, start=1))]


def _as_duplicate(row: SeriesRow, original: SeriesRow, number: int) -> SeriesRow:
    copy = replace(row, id=short_hash(f"{original.id} copy {number}"))
    return refused(copy, f"duplicate: the same images as {original.id}")


def _dicom_row(files: Sequence[FileFacts], min_slices: int) -> SeriesRow:
    first = files[0]
    geometry = _dicom_geometry(files)
    reasons = _dicom_reasons(files, geometry, min_slices=min_slices)
    paths = tuple(Path(f.path) for f in files)
    identity = _dicom_id(files)
    frames = sum(len(f.positions_mm) for f in files)
    return SeriesRow(
        id=identity,
        path=paths[0] if len(paths) == 1 else Path(os.path.commonpath([p.parent for p in paths])),
        files=paths,
        patient=first.patient or short_hash(first.study_uid or identity),
        modality=first.modality,
        format=first.format,
        size=geometry.size if geometry else None,
        spacing_mm=geometry.spacing_mm if geometry and geometry.spacing_mm[0] > 0 else None,
        orientation=geometry.orientation if geometry else "",
        hu_min=None,
        hu_max=None,
        slices=frames or len(files),
        verdict=_verdict(reasons),
        reason="; ".join(reasons),
    )


def _verdict(reasons: Sequence[str]) -> Verdict:
    return "refused" if reasons else "usable"


def _dicom_id(files: Sequence[FileFacts]) -> str:
    first = files[0]
    if not first.series_uid:
        return short_hash("\n".join(sorted(f.identity for f in files)))
    plane = [*(round(v, 2) for v in first.orientation), *first.pixel_spacing_mm, *first.plane]
    alone = first.identity if len(first.positions_mm) > 1 else ""
    kind = [first.series_uid, first.modality, first.sop_class, first.localizer, *plane, alone]
    return short_hash("\n".join(str(v) for v in kind))


def _dicom_geometry(files: Sequence[FileFacts]) -> Geometry | None:
    first = files[0]
    positions = [p for f in files for p in f.positions_mm]
    if not (positions and first.orientation and first.pixel_spacing_mm and all(first.plane)):
        return None
    if min(first.pixel_spacing_mm) <= 0:
        return None
    return stack_geometry(
        positions,
        first.orientation,
        pixel_spacing_mm=first.pixel_spacing_mm,
        plane=first.plane,
        slice_mm=first.slice_mm,
    )


def _dicom_reasons(
    files: Sequence[FileFacts], geometry: Geometry | None, *, min_slices: int
) -> list[str]:
    first = files[0]
    if not first.modality:
        return ["unreadable: the header is cut short, or states no modality"]
    if first.modality != "CT":
        return [f"other modality: {shown(first.modality)}"]
    if len({f.patient for f in files}) > 1:
        return [PATIENTS_MIXED]
    if first.localizer:
        return ["localizer: ImageType says LOCALIZER, a scout"]
    if first.sop_class.startswith(SECONDARY_CAPTURE):
        return ["secondary capture: a picture of a screen, no CT image"]
    broken = [f for f in files if f.problem]
    if broken:
        name = Path(broken[0].path).name
        share = f" ({name}; {len(broken)} of {len(files)} files)" if len(files) > 1 else ""
        return [broken[0].problem + share]
    if geometry is None:
        return ["no geometry: position, orientation or pixel spacing not stated"]
    positions = [p for f in files for p in f.positions_mm]
    tilt = max((f.tilt_degrees for f in files), key=abs)
    # Slices at one place have no spacing, which is told as such.
    wrong = spacing_problem(geometry.spacing_mm) if geometry.spacing_mm[0] > 0 else ""
    return [
        *([wrong] if wrong else []),
        *_too_few(len(positions), min_slices),
        *stack_problems(positions, first.orientation, tilt_degrees=tilt),
    ]


def _too_few(slices: int, min_slices: int) -> list[str]:
    return [f"too few slices: {slices} of at least {min_slices}"] if slices < min_slices else []


def _file_row(facts: FileFacts, *, min_slices: int) -> SeriesRow:
    path = Path(facts.path)
    geometry = facts.geometry
    slices = geometry.size[0] if geometry else 0
    reasons = [facts.problem] if facts.problem else _too_few(slices, min_slices)
    identity = short_hash(facts.identity or facts.path)
    return SeriesRow(
        id=identity,
        path=path,
        files=(path, *([Path(facts.data_file)] if facts.data_file else [])),
        patient=identity,
        modality=facts.modality,
        format=facts.format,
        size=geometry.size if geometry else None,
        spacing_mm=geometry.spacing_mm if geometry else None,
        orientation=geometry.orientation if geometry else "",
        hu_min=None,
        hu_max=None,
        slices=slices,
        verdict=_verdict(reasons),
        reason="; ".join(reasons),
    )


def _duplicates_refused(
    rows: Sequence[SeriesRow], identities: Mapping[Path, str]
) -> list[SeriesRow]:
    """Rows with unique ids; of rows with equal content all but the first by path are refused."""
    by_id: dict[str, list[SeriesRow]] = defaultdict(list)
    result = []
    for row in sorted(rows, key=lambda r: str(r.files[0])):
        known = by_id[row.id]
        original = next((k for k in known if _same_content(k, row, identities)), None)
        if original is not None:
            row = _as_duplicate(row, original, len(known))
        elif known:
            row = replace(row, id=short_hash(f"{row.id} variant {len(known)}"))
        known.append(row)
        result.append(row)
    return result


def _same_content(one: SeriesRow, other: SeriesRow, identities: Mapping[Path, str]) -> bool:
    """Whether two rows of equal id are copies of each other."""
    if one.format == "DICOM":
        return {identities.get(f) for f in one.files} == {identities.get(f) for f in other.files}
    # Equal samples do not prove that files are equal.
    pairs = zip(one.files, other.files, strict=False)
    return len(one.files) == len(other.files) and all(
        filecmp.cmp(a, b, shallow=False) for a, b in pairs
    )
