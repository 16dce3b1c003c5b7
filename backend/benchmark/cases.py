"""Which cases are learnt from and which judge, and that none does both, under whatever name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path

from backend.benchmark.plan import DataPlan, Part, Plan, Share
from backend.data.labelled import LabelledCase, LabelledSet, means, shuffled
from backend.data.labels import Label
from backend.data.volume_file import detached_data
from backend.errors import UserError

_APART = "Put it into one part alone."


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Labelled cases by what they are for.

    Attributes:
        labels: the structures.
        train: to learn from.
        validation: for the curves over the steps.
        test: to judge at the end.
    """

    labels: tuple[Label, ...]
    train: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...]
    test: tuple[LabelledCase, ...]

    @property
    def parts(self) -> dict[str, tuple[LabelledCase, ...]]:
        """The cases under the names that the plan has for them."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def divided(data: DataPlan, labelled: LabelledSet) -> Cases:
    """The cases of a labelled set as the plan divides them.

    Raises:
        UserError: naming the case, if one is in two parts, is marked as test by the set itself but
            learnt from, or is the image of a test case under another name.
    """
    by_name = {case.id: case for case in labelled.cases}
    test = _chosen(data.test, by_name, "test", but=())
    validation = _chosen(data.validation, by_name, "validation", but=test)
    marked = [case.id for case in labelled.cases if case.split == "test"]
    rest = [name for name in by_name if name not in {*test, *validation, *marked}]
    train = _chosen(data.train, by_name, "train", but=(*test, *validation)) if data.train else rest
    if not train:
        raise UserError("data: no case is left to learn from.", "Name fewer for the other parts.")
    named = {"train": train, "validation": validation, "test": test}
    _require_apart(named)
    leaked = [name for name in marked if name in {*train, *validation}]
    if leaked:
        raise UserError(
            f"Case {leaked[0]} is a test case of the set itself, but the plan learns from it.",
            "Name it under data.test, or leave it out.",
        )
    cases = Cases(
        labels=labelled.labels,
        **{part: tuple(by_name[n] for n in sorted(names)) for part, names in named.items()},
    )
    require_unseen(cases)
    return cases


def _chosen(
    part: Part, cases: Mapping[str, LabelledCase], what: str, *, but: Sequence[str]
) -> list[str]:
    """Names of the cases that a part of the plan means; a share is drawn from all `but` some."""
    if isinstance(part, Share):
        free = shuffled([case for name, case in cases.items() if name not in but], seed=part.seed)
        return [case.id for case in free[: max(1, round(part.share * len(free)))]]
    for pattern in part:
        if not any(means(pattern, name) for name in cases):
            near = get_close_matches(pattern, list(cases), n=3, cutoff=0.4)
            cure = f"Near: {', '.join(near)}." if near else "Look into the set for names."
            raise UserError(f"data.{what}: there is no case {pattern!r}.", cure)
    return [name for name in cases if any(means(pattern, name) for pattern in part)]


def _require_apart(parts: Mapping[str, Sequence[str]]) -> None:
    first: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            other = first.setdefault(name, part)
            if other != part:
                raise UserError(f"Case {name} is both in data.{other} and data.{part}.", _APART)


def require_unseen(cases: Cases) -> None:
    """Refuse a case whose image is that of a test case, by its place or byte for byte.

    Raises:
        UserError: naming both.
    """
    seen = {case.id: case.image for case in (*cases.train, *cases.validation)}
    for name, test in copies_of(cases.test, seen).items():
        raise UserError(f"Case {name} has the same image as test case {test}.", _APART)


def copies_of(
    cases: Sequence[LabelledCase], others: Mapping[str, Sequence[Path]]
) -> dict[str, str]:
    """Which of `others` are images of `cases`, by their place or byte for byte.

    Files that hold one image in other words (another format, compressed again) are not noticed.

    Args:
        cases: with their images.
        others: names and files of any images.

    Returns:
        The name of the case for each that is one.
    """
    known: dict[tuple[int, ...], list[LabelledCase]] = {}
    for case in cases:
        known.setdefault(_sizes(_voxel_files(case.image)), []).append(case)
    found = {}
    for name, files in others.items():
        for case in known.get(_sizes(voxels := _voxel_files(files)), ()):
            # Only where the sizes agree anything is read.
            if content(voxels) == content(_voxel_files(case.image)):
                found[name] = case.id
    return found


def _voxel_files(files: Iterable[Path]) -> tuple[Path, ...]:
    """In the place of a header without voxels the file that holds them."""
    return tuple(dict.fromkeys(_voxel_file(file) for file in files))


def _voxel_file(file: Path) -> Path:
    data = detached_data(file)
    return data if data is not None and data.is_file() else file


def _sizes(files: Iterable[Path]) -> tuple[int, ...]:
    return tuple(sorted(file.stat().st_size for file in files))


def content(files: Iterable[Path]) -> str:
    """A hash of what files hold, in whatever order."""
    digests = sorted(_digest(file, changed(file)) for file in files)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def changed(file: Path) -> tuple[int, int]:
    """What is another when a file is written anew, told without reading it."""
    told = file.stat()
    return told.st_size, told.st_mtime_ns


@cache
def _digest(file: Path, _: tuple[int, int]) -> str:
    """Read once for as long as the file stays as it is."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def scan_count(labels: int | str, *, available: int) -> int:
    """Labelled scans that a number or share of the plan means.

    Raises:
        UserError: if there are fewer.
    """
    share = isinstance(labels, str)
    count = max(1, round(float(str(labels).rstrip(" %")) / 100 * available)) if share else labels
    assert isinstance(count, int)
    if count > available:
        raise UserError(
            f"labels: {count} scans are asked for, and there are {available} to learn from.",
            "Lower the number, or give the training part more cases.",
        )
    return count


def label_set(plan: Plan, cases: Cases, *, seed: int, count: int) -> tuple[str, ...]:
    """Names of the cases that a seed learns from; those of a smaller count are among them.

    Raises:
        UserError: naming the case, if the plan's own sets hold one that is not to be learnt from,
            or are not part of each other.
    """
    own = plan.data.label_sets.get(seed)
    if own is None:
        return tuple(sorted(case.id for case in shuffled(cases.train, seed=seed)[:count]))
    sets = sorted(own, key=len)
    _require_training(sets, cases, seed=seed)
    for smaller, larger in pairwise(sets):
        for name in smaller:
            if name not in larger:
                raise UserError(
                    f"data.label_sets, seed {seed}: {name} is in the set of {len(smaller)}, but "
                    f"not in that of {len(larger)}.",
                    "Let each set hold the smaller ones.",
                )
    fitting = [names for names in sets if len(names) == count]
    if not fitting:
        sizes = ", ".join(str(len(names)) for names in sets)
        raise UserError(
            f"data.label_sets, seed {seed}: has no set of {count} (it has {sizes}).",
            "Add one, or leave the number out of labels.",
        )
    return tuple(sorted(fitting[0]))


def _require_training(sets: Sequence[Sequence[str]], cases: Cases, *, seed: int) -> None:
    part_of = {case.id: part for part, found in cases.parts.items() for case in found}
    for name in (name for names in sets for name in names):
        part = part_of.get(name)
        if part != "train":
            told = f"is a {part} case" if part else "is no case of the training part"
            raise UserError(f"data.label_sets, seed {seed}: {name} {told}.", "Take it out.")
