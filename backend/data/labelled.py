"""Labelled sets as people keep them: which image belongs to which label map, and what it names.

Nothing is guessed: an image without its label map, two names for one value, or a label map on
another grid is refused with the name of the case.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.data.label_files import embedded_names
from backend.data.labels import Label, labels_from, read_json, read_labels
from backend.data.native_guard import name_problem, printable
from backend.data.preprocess import label_array, require_same_grid
from backend.data.readers import read_label, read_volume
from backend.data.tables import table_lines
from backend.errors import ScanError, UserError
from backend.progress import progress

ENDINGS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Image and label files end with one of these; a folder in an image's place is a DICOM series."""

LAYOUTS_HINT = (
    "Give an nnU-Net raw or MSD folder, images/ + labels/ + labels.json, a folder of case folders "
    "(ct.*, label.*, labels.json) or a CSV with case,image,label."
)

_log = logging.getLogger(__name__)

_LONGEST_NAME = 200
"""Bytes: a file may have 255 with what is put before and behind."""
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
_TOLD_AT_MOST = 5


@dataclass(frozen=True, kw_only=True)
class LabelledCase:
    """One image with its label map.

    Attributes:
        id: name, unique in the set.
        image: the volume's file, or the files of a DICOM series.
        label: the label map, on the image's grid.
        split: "train", "validation", "test", or None where the set does not say.
    """

    id: str
    image: tuple[Path, ...]
    label: Path
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Labelled cases that share one list of structures.

    Attributes:
        cases: sorted by name.
        labels: structures in the order of their values, background left out.
        layout: "nnU-Net", "MSD", "images and labels", "case folders" or "CSV".
        ignored: case folders that hold no label map, by name.
    """

    cases: tuple[LabelledCase, ...]
    labels: tuple[Label, ...]
    layout: str
    ignored: tuple[str, ...] = ()


def load_labelled_set(path: Path, cases: Sequence[str] | None = None) -> LabelledSet:
    """Find the cases and labels of a set without reading any volume.

    Args:
        path: folder or CSV file in one of the layouts named in `LAYOUTS_HINT`.
        cases: names or patterns such as "hn_*"; None takes all.

    Raises:
        UserError: if the layout is not understood, a file is missing, a name selects nothing, or
            labels contradict each other.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.", LAYOUTS_HINT)
    seen: list[str] = []
    loaded = _loader(path)(path, _selector(cases, seen))
    # Files are named after cases, and on some systems "A" and "a" are one file.
    ids = Counter(case.id.casefold() for case in loaded.cases)
    if repeated := sorted({case.id for case in loaded.cases if ids[case.id.casefold()] > 1}):
        raise UserError(f"{path} has {_some(repeated)} twice.", "Give every case its own name.")
    _refuse_one_image_twice(loaded.cases, path)
    _refuse_unmatched(cases, seen, path)
    if not loaded.cases:
        without = f": no label map in {_some(loaded.ignored)}" if loaded.ignored else ""
        raise UserError(f"{path} has no labelled case{without}.", LAYOUTS_HINT)
    if loaded.ignored:
        _log.warning("%s: left out, for no label map is in %s.", path, _some(loaded.ignored))
    return replace(loaded, cases=tuple(sorted(loaded.cases, key=lambda case: case.id)))


def _refuse_one_image_twice(cases: Sequence[LabelledCase], path: Path) -> None:
    """An image under two names could be learnt from and judged by at once."""
    first: dict[Path, str] = {}
    for case in cases:
        image = case.image[0].resolve()
        other = first.setdefault(image, case.id)
        if other != case.id:
            raise UserError(
                f"{path}: cases {other} and {case.id} are the same image {image}.",
                "Keep one of the two.",
            )


def check_case(case: LabelledCase, labels: Sequence[Label]) -> dict[int, int]:
    """Read image and label map and make sure that one can be learnt from the other.

    Returns:
        Voxels of every label value that occurs, background left out.

    Raises:
        ScanError: naming the case, if a file cannot be read, the grids differ, a value has no
            name, the file itself has the name for another value or nothing is labelled.
    """
    try:
        image = read_volume(case.image)
        label = read_label(case.label)
        require_same_grid(image.geometry, label.geometry)
        counts = np.bincount(label_array(label.voxels).ravel())
        _refuse_exchanged(case.label, labels, counts)
    except ScanError as error:
        raise ScanError(f"Case {case.id}: {error.message}", error.hint) from error
    voxels = {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v > 0}
    if not voxels:
        raise ScanError(
            f"Case {case.id}: nothing is labelled in {case.label.name}.",
            "Segment it or leave it out.",
        )
    known = {label.value for label in labels}
    if unknown := {value: count for value, count in voxels.items() if value not in known}:
        told = _some([f"{value} ({count} voxels)" for value, count in unknown.items()])
        raise ScanError(
            f"Case {case.id}: label values without a name: {told}.",
            f"Name them in the labels file, which has {_some([str(v) for v in sorted(known)])}.",
        )
    return voxels


def _refuse_exchanged(
    file: Path, labels: Sequence[Label], counts: NDArray[np.signedinteger[Any]]
) -> None:
    """Where a file names its values itself, a structure must not have another value there."""
    values = {label.name.casefold(): label.value for label in labels}
    for value, name in embedded_names(file).items():
        occurs = value < len(counts) and counts[value] > 0
        if occurs and values.get(name.casefold(), value) != value:
            raise ScanError(
                f"{file.name} itself has {name!r} as value {value}, and the labels file as value "
                f"{values[name.casefold()]}.",
                "Correct the labels file, or export the segmentation anew.",
            )


def check_set(
    labelled: LabelledSet, *, workers: int = 2, between: Callable[[], None] = lambda: None
) -> dict[str, dict[int, int]]:
    """Check every case.

    A structure that no case has is told in the log: it cannot be learnt.

    Args:
        labelled: the cases.
        workers: threads that read.
        between: called after every case; may raise to end.

    Returns:
        Voxels per label value, per case.

    Raises:
        UserError: naming the first case that is refused; the log tells all.
    """

    def checked(case: LabelledCase) -> dict[int, int] | ScanError:
        try:
            return check_case(case, labelled.labels)
        except ScanError as error:
            return error

    results: dict[str, dict[int, int] | ScanError] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        done = progress(
            pool.map(checked, labelled.cases),
            total=len(labelled.cases),
            what="Checking labels",
            unit="case",
        )
        try:
            for case, found in zip(labelled.cases, done, strict=True):
                results[case.id] = found
                between()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    refused = [r for r in results.values() if isinstance(r, ScanError)]
    if refused:
        for error in refused:
            _log.warning("%s", error)
        more = len(refused) - 1
        others = f" {more} more {'case is' if more == 1 else 'cases are'} refused." if more else ""
        raise UserError(refused[0].message + others, refused[0].hint)
    stats = {name: r for name, r in results.items() if not isinstance(r, ScanError)}
    used = {value for voxels in stats.values() for value in voxels}
    if absent := [label.name for label in labelled.labels if label.value not in used]:
        _log.warning("No case has a voxel of %s: it cannot be learnt.", _some(absent))
    return stats


def split_cases(
    cases: Sequence[LabelledCase], *, validation_fraction: float, seed: int
) -> tuple[tuple[LabelledCase, ...], tuple[LabelledCase, ...]]:
    """Cases to train on and cases to validate on, both sorted by name.

    What the set says itself is kept: "test" cases are in neither part, and where any case is
    marked "validation" those are the validation cases. Otherwise the unmarked cases are divided.
    The choice depends on the seed and on each case's name alone: order plays no part, and a case
    that is added later moves few of the others.

    Args:
        cases: see `LabelledSet`.
        validation_fraction: share of the unmarked cases, 0 to 1; at least one case stays on
            either side if there are two or more and the share is above 0.
        seed: another seed gives another division.

    Raises:
        UserError: if the share is outside 0 to 1 or no case is left to train on.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"Validation fraction {validation_fraction} is no share.", "Give 0 up to below 1."
        )
    marked = {split: [c for c in cases if c.split == split] for split in ("train", "validation")}
    free = shuffled([case for case in cases if case.split is None], seed=seed)
    count = 0 if marked["validation"] else round(validation_fraction * len(free))
    if validation_fraction > 0 and not marked["validation"] and len(free) > 1:
        count = min(max(count, 1), len(free) - (not marked["train"]))
    validation = [*marked["validation"], *free[:count]]
    training = [*marked["train"], *free[count:]]
    if not training:
        raise UserError("No case is left to train on.", "Mark one as train or lower the fraction.")
    return _by_name(training), _by_name(validation)


def fold_cases(
    cases: Sequence[LabelledCase], *, folds: int, seed: int
) -> list[tuple[tuple[LabelledCase, ...], tuple[LabelledCase, ...]]]:
    """Cross-validation: (training, validation) per fold; every case validates exactly once.

    Cases marked "test" are in neither part; other marks are not regarded.

    Raises:
        UserError: if there are fewer than two folds or fewer cases than folds.
    """
    usable = shuffled([case for case in cases if case.split != "test"], seed=seed)
    if not 2 <= folds <= len(usable):
        raise UserError(f"{folds} folds of {len(usable)} cases.", f"Give 2 to {len(usable)} folds.")
    parts = [usable[fold::folds] for fold in range(folds)]
    return [
        (_by_name([c for other in parts if other is not part for c in other]), _by_name(part))
        for part in parts
    ]


def take_fraction(
    cases: Sequence[LabelledCase], *, fraction: float, seed: int
) -> tuple[LabelledCase, ...]:
    """A share of the cases, at least one; a smaller share is always part of a larger one.

    Raises:
        UserError: if the share is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"Fraction {fraction} is no share.", "Give above 0 and at most 1.")
    return _by_name(shuffled(cases, seed=seed)[: max(1, round(fraction * len(cases)))])


def shuffled(cases: Iterable[LabelledCase], *, seed: int) -> list[LabelledCase]:
    """The cases in an order that depends on the seed and their names, not on their order."""

    def rank(case: LabelledCase) -> str:
        return hashlib.sha256(f"{seed}:{case.id}".encode()).hexdigest()

    return sorted(cases, key=rank)


def _by_name(cases: Iterable[LabelledCase]) -> tuple[LabelledCase, ...]:
    return tuple(sorted(cases, key=lambda case: case.id))


def merged_labels(tables: Mapping[str, tuple[Label, ...]]) -> tuple[Label, ...]:
    """One list of labels, in the order of their values.

    Args:
        tables: the labels of each case.

    Raises:
        UserError: if two cases use a value or a name differently.
    """
    values: dict[int, tuple[str, Label]] = {}
    names: dict[str, tuple[str, Label]] = {}
    for case, labels in tables.items():
        for label in labels:
            first, known = values.setdefault(label.value, (case, label))
            earlier, same = names.setdefault(label.name.casefold(), (case, label))
            if known.name.casefold() != label.name.casefold():
                raise UserError(
                    f"Value {label.value} is {known.name!r} in case {first} but {label.name!r} in "
                    f"case {case}.",
                    "Select cases that agree, or renumber one of them.",
                )
            if same.value != label.value:
                raise UserError(
                    f"{label.name!r} has the value {same.value} in case {earlier} but "
                    f"{label.value} in case {case}.",
                    "Select cases that agree, or renumber one of them.",
                )
    return tuple(values[value][1] for value in sorted(values))


_Selector = Callable[[str], bool]
_Loader = Callable[[Path, _Selector], LabelledSet]


def _loader(path: Path) -> _Loader:
    """The reader of the layout that a path has."""
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return _load_csv
    elif (path / "imagesTr").is_dir():
        return _load_decathlon if _lists_training(path) else _load_nnunet
    elif (path / "images").is_dir() and (path / "labels").is_dir():
        return _load_images_and_labels
    else:
        return _load_case_folders
    raise UserError(f"{path} is no labelled set.", LAYOUTS_HINT)


def means(pattern: str, name: str) -> bool:
    """Whether a name or pattern such as "hn_*" stands for a case."""
    return pattern == name or fnmatchcase(name, pattern)


def _selector(patterns: Sequence[str] | None, seen: list[str]) -> _Selector:
    """Whether a name is chosen; every name that is asked for is noted in `seen`."""

    def chosen(name: str) -> bool:
        seen.append(name)
        return patterns is None or any(means(pattern, name) for pattern in patterns)

    return chosen


def _refuse_unmatched(patterns: Sequence[str] | None, seen: Sequence[str], path: Path) -> None:
    for pattern in patterns or ():
        if not any(means(pattern, name) for name in seen):
            near = get_close_matches(pattern, seen, n=3, cutoff=0.4)
            hint = f"Near: {', '.join(near)}." if near else "Look into the folder for names."
            raise UserError(f"{path} has no case {pattern!r}.", hint)


def _lists_training(path: Path) -> bool:
    return isinstance(read_json(path / "dataset.json").get("training"), list)


def _load_nnunet(path: Path, chosen: _Selector) -> LabelledSet:
    """imagesTr/<case>_0000.<ending>, labelsTr/<case>.<ending>, dataset.json."""
    content = read_json(path / "dataset.json")
    images = _volumes(path / "imagesTr")
    if more := [name for name in images if name[-5:].startswith("_0") and name[-5:] != "_0000"]:
        raise UserError(
            f"{path} has more than one channel: {_some(more)}.", "Only a single CT channel is used."
        )
    cases = _paired(
        {name.removesuffix("_0000"): file for name, file in images.items()},
        _volumes(path / "labelsTr"),
        path=path,
        chosen=chosen,
    )
    labels = labels_from(content, source=str(path / "dataset.json"))
    return LabelledSet(cases=cases, labels=labels, layout="nnU-Net")


def _load_decathlon(path: Path, chosen: _Selector) -> LabelledSet:
    """The "training" list of dataset.json; files as in nnU-Net version 1 are found as well."""
    content = read_json(path / "dataset.json")
    cases = []
    training = content["training"]
    for entry in training if isinstance(training, list) else []:
        if not isinstance(entry, Mapping) or not {"image", "label"} <= entry.keys():
            raise UserError(
                f'{path / "dataset.json"}: {entry!r} in "training" is no pair.',
                'Write {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}.',
            )
        label = path / str(entry["label"])
        name = stem(label)
        if not chosen(name):
            continue
        image = path / str(entry["image"])
        numbered = image.with_name(f"{stem(image)}_0000{image.name[len(stem(image)) :]}")
        image = numbered if numbered.is_file() and not image.is_file() else image
        cases.append(_case(name, image, label))
    labels = labels_from(content, source=str(path / "dataset.json"))
    return LabelledSet(cases=tuple(cases), labels=labels, layout="MSD")


def _load_images_and_labels(path: Path, chosen: _Selector) -> LabelledSet:
    """images/<case>.<ending> or images/<case>/ (DICOM), labels/<case>.<ending>, labels.json."""
    images = _volumes(path / "images")
    images |= {p.name: p for p in _folders(path / "images")}
    cases = _paired(images, _volumes(path / "labels"), path=path, chosen=chosen)
    places = [path / "labels.json", path / "labels" / "labels.json", path / "dataset.json"]
    labels = _nearest_labels(places, f"{path}")
    return LabelledSet(cases=cases, labels=labels, layout="images and labels")


def _load_case_folders(path: Path, chosen: _Selector) -> LabelledSet:
    """<case>/ct.* (or ct/, dicom/), <case>/label.*, labels.json in the case or beside the cases."""
    alone = _named(path, "label") is not None
    folders = [p for p in ([path] if alone else _folders(path)) if chosen(p.name)]
    found: list[LabelledCase] = []
    ignored: list[str] = []
    tables: dict[str, tuple[Label, ...]] = {}
    for folder in folders:
        label = _named(folder, "label")
        if label is None:
            ignored.append(folder.name)
            continue
        image = _named(folder, "ct") or next(
            (folder / name for name in ("ct", "dicom") if (folder / name).is_dir()), None
        )
        if image is None:
            raise UserError(f"Case {folder.name} in {path} has a label but no ct.*.", LAYOUTS_HINT)
        found.append(_case(folder.name, image, label))
        places = [folder / "labels.json", folder.parent / "labels.json"]
        tables[folder.name] = _nearest_labels(places, f"Case {folder.name}")
    return LabelledSet(
        cases=tuple(found),
        labels=merged_labels(tables),
        layout="case folders",
        ignored=tuple(ignored),
    )


def _load_csv(path: Path, chosen: _Selector) -> LabelledSet:
    """Columns case,image,label[,split]; paths relative to the table; labels.json beside it."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}.", LAYOUTS_HINT) from error
    columns = ("case", "image", "label")
    lines = table_lines(
        str(path),
        text,
        columns=columns,
        optional=("split",),
        what="a labelled set",
        cure="Use the columns case,image,label[,split].",
    )
    cases = []
    for number, row in lines:
        name, image, label = (row.get(key, "").strip() for key in columns)
        if not (name and image and label):
            raise UserError(f"{path}, line {number}: a field is empty.", "Give case,image,label.")
        if chosen(name):
            case = _case(name, path.parent / image, path.parent / label)
            cases.append(replace(case, split=_split(row.get("split"), name, path)))
    labels = _nearest_labels([path.with_name("labels.json")], f"{path}")
    return LabelledSet(cases=tuple(cases), labels=labels, layout="CSV")


def _split(text: str | None, name: str, path: Path) -> str | None:
    word = (text or "").strip().casefold()
    if word and word not in _SPLITS:
        raise UserError(
            f"{path}: case {name} has the split {text!r}.",
            "Use train, validation, test or nothing.",
        )
    return _SPLITS.get(word)


def _paired(
    images: Mapping[str, Path], labels: Mapping[str, Path], *, path: Path, chosen: _Selector
) -> tuple[LabelledCase, ...]:
    """Images and label maps of equal names; one without the other is refused."""
    names = sorted(name for name in images.keys() | labels.keys() if chosen(name))
    for have, lack, what in ((images, labels, "label map"), (labels, images, "image")):
        if alone := [name for name in names if name in have and name not in lack]:
            raise UserError(
                f"{path}: no {what} for {_some(alone)}.",
                "Add the file or leave the case out; both files of a case have its name.",
            )
    return tuple(_case(name, images[name], labels[name]) for name in names)


def _case(name: str, image: Path, label: Path) -> LabelledCase:
    """A case whose files are there; a folder stands for the DICOM files in it."""
    files: tuple[Path, ...] = (image,)
    if image.is_dir():
        files = tuple(
            sorted(
                file
                for file in image.iterdir()
                if file.is_file() and file.name[0] != "." and file.name != "DICOMDIR"
            )
        )
    for what, file in (("image", files[0] if files else image), ("label map", label)):
        if name_problem(file):
            raise UserError(f"{printable(file)}: the name is not valid UTF-8.", "Rename it.")
        if not file.is_file():
            raise UserError(f"Case {name}: its {what} {file} is missing.", "Add or correct it.")
    if problem := _name_problem(name):
        raise UserError(
            f"Case {printable(name)[:80]!r}: its name {problem}.",
            "Files are named after it: rename it.",
        )
    return LabelledCase(id=name, image=files, label=label)


def _name_problem(name: str) -> str:
    """Why no file can be named after a case, else ""."""
    if any(mark in name for mark in "/\\") or not name.isprintable():
        return "holds a slash or a character that cannot be printed"
    if name[0] in ". " or name[-1] == " ":
        return "begins with a dot, or begins or ends with a space"
    if name.lower().endswith(ENDINGS):
        return "ends as a file does"
    if len(name.encode()) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    return ""


def _nearest_labels(places: Sequence[Path], what: str) -> tuple[Label, ...]:
    for place in places:
        if place.is_file():
            return read_labels(place)
    raise UserError(
        f"{what} has no {places[0].name}.",
        f'Write {{"labels": {{"1": "liver"}}}} with your names to {places[0]}.',
    )


def stem(path: Path) -> str:
    """A volume file's name without its ending, e.g. "a" for "a.nii.gz"."""
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def _volumes(folder: Path) -> dict[str, Path]:
    """Volume files of a folder by their names without ending, hidden ones left out."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist.", LAYOUTS_HINT)
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name[0] != "." and file.is_file() and file.name.lower().endswith(ENDINGS):
            if stem(file) in found:
                raise UserError(
                    f"{folder} has both {found[stem(file)].name} and {file.name}.",
                    "Keep one file for each case.",
                )
            found[stem(file)] = file
    return found


def _named(folder: Path, name: str) -> Path | None:
    """The one volume file `<name>.*` of a folder, or None."""
    found = [
        file
        for file in sorted(folder.glob(f"{name}.*"))
        if file.is_file() and stem(file) == name and file.name.lower().endswith(ENDINGS)
    ]
    if len(found) > 1:
        told = _some([file.name for file in found])
        raise UserError(f"{folder} has {told}.", f"Keep one {name}.* file for the case.")
    return found[0] if found else None


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")


def _some(items: Sequence[str]) -> str:
    more = len(items) - _TOLD_AT_MOST
    return ", ".join(items[:_TOLD_AT_MOST]) + (f" and {more} more" if more > 0 else "")
