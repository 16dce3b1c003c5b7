"""`backend demo`: the whole way, on phantoms or on the user's scans, with a report at the end."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from backend import evaluate, finetune, pretrain, scan, segment
from backend.data.index import SeriesRow, read_index
from backend.data.labelled import LabelledCase, load_labelled_set, shuffled
from backend.data.labels import Label, write_labels
from backend.data.preprocess import label_array
from backend.data.readers import read_label, read_volume
from backend.errors import UserError
from backend.geometry import reorient
from backend.previews import contours_png
from backend.report import write_demo_report

log = logging.getLogger("backend")

PRETRAIN_STEPS = 100
FINETUNE_STEPS = 260
"""With these all large organs are found; the gallbladder, the smallest organ, sometimes is not."""

PRETRAIN_PICTURES = 5
"""As many as the report shows."""

FINETUNE_PICTURES = 2
"""Each takes as long as a dozen steps, for it segments a whole scan."""

_TEST_SHARE = 1 / 3
_TEST_AT_MOST = 5

ARMS = ("with pretraining", "from scratch")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a demo works on.

    Attributes:
        scanned: folders that are scanned and shown in the report.
        index: the index of `scanned`.
        labelled: set to fine-tune on; None where nothing is labelled.
        training: names of its cases to learn from.
        test: cases that are segmented and compared at the end, never learnt from.
        labels: its structures.
    """

    scanned: tuple[Path, ...]
    labelled: Path | None
    training: tuple[str, ...] = ()
    test: tuple[LabelledCase, ...] = ()
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where all steps compute and keep preprocessed scans, and the seed they share."""

    device: str
    cache: Path
    seed: int


@dataclass
class Steps:
    """Names what is being done and remembers how long it took."""

    total: int
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Time a block."""
        sys.stdout.write(f"\n[{len(self.seconds) + 1}/{self.total}] {what}\n")
        sys.stdout.flush()
        began = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - began


def run(
    *,
    output: Path | None,
    data: Path | None,
    unlabelled: Path | None,
    device: str,
    seed: int,
) -> Path:
    """Go the whole way and write `report.html`.

    Args:
        output: folder to write, or None for the first free of demo, demo-2, demo-3, …
        data: the user's scans, best a labelled set; None makes phantoms.
        unlabelled: further scans to pretrain on.
        device: where to compute.
        seed: of phantoms and networks.

    Returns:
        The report.

    Raises:
        UserError: if the folder is in use or the data cannot be used.
    """
    folder = _new_folder(output)
    steps = Steps(total=8 if data is None else 7)
    if data is None:
        with steps.doing("Making phantoms"):
            material = _phantoms(folder / "scans", seed=seed)
    else:
        material = _own_scans(data, unlabelled, seed=seed)
    place = Place(device=device, cache=folder / "cache", seed=seed)
    rows = _scanned(material, folder, steps)
    with steps.doing("Pretraining on unlabelled scans"):
        pretrain.run(
            pretrain.PretrainRequest(
                output=folder / "pretrain",
                data=(_without_test(rows, material, folder),),
                method="smit",
                preset="tiny",
                overrides=(
                    f"train.max_steps={PRETRAIN_STEPS}",
                    f"train.seed={seed}",
                    f"train.preview_every_steps={PRETRAIN_STEPS // PRETRAIN_PICTURES}",
                ),
                device=place.device,
                cache=place.cache,
                argv=tuple(sys.argv),
            )
        )
    pictures: dict[str, Path] = {}
    if material.labelled is not None and material.test:
        _finetune_both(material, folder, steps, place)
        pictures = _judge_both(material, folder, steps, place)
    report = write_demo_report(
        folder,
        scan_rows=rows,
        pretrain_run=folder / "pretrain",
        finetune_runs={arm: _arm(folder, arm, "finetune") for arm in ARMS if pictures},
        evaluations={arm: _arm(folder, arm, "evaluation") for arm in ARMS if pictures},
        pictures=pictures,
        timings=steps.seconds,
    )
    sys.stdout.write(f"\n{timetable(steps.seconds)}\nOpen the report: {report.resolve()}\n")
    return report


def timetable(seconds: Mapping[str, float]) -> str:
    """How long each step took, and what share of the whole, as lines of text."""
    total = sum(seconds.values())
    width = max(map(len, seconds))
    lines = [
        f"  {what:<{width}}  {spent:6.1f} s  {spent / total:4.0%}"
        for what, spent in (*seconds.items(), ("Together", total))
    ]
    return "\n".join(["How long it took:", *lines])


def _new_folder(output: Path | None) -> Path:
    if output is None:
        number = 1
        while (folder := Path("demo" if number == 1 else f"demo-{number}")).exists():
            number += 1
    else:
        folder = output
        if folder.exists() and (folder.is_file() or any(folder.iterdir())):
            raise UserError(
                f"{folder}: exists already and is not empty.", "Choose another --output."
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _phantoms(folder: Path, *, seed: int) -> Material:
    from backend.data.phantom import make_cohort

    cohort = make_cohort(folder, seed=seed)
    labelled = load_labelled_set(cohort.labelled)
    test = load_labelled_set(cohort.test_images.parent)
    broken = () if cohort.broken is None else (cohort.broken,)
    return Material(
        scanned=(cohort.unlabelled, *broken),
        labelled=cohort.labelled,
        training=tuple(case.id for case in labelled.cases),
        test=test.cases,
        labels=labelled.labels,
    )


def _own_scans(data: Path, unlabelled: Path | None, *, seed: int) -> Material:
    """The user's scans; a third of the labelled ones, at most five, is kept for the end."""
    more = () if unlabelled is None else (unlabelled,)
    for path in (data, *more):
        if not path.exists():
            raise UserError(f"{path}: does not exist.", "Check the path.")
    try:
        found = load_labelled_set(data)
    except UserError as error:
        log.warning("No labels were found, so there is pretraining alone. (%s)", error)
        return Material(scanned=(data, *more), labelled=None)
    order = shuffled([c for c in found.cases if c.split != "test"], seed=seed)
    marked = [c for c in found.cases if c.split == "test"]
    count = min(_TEST_AT_MOST, round(_TEST_SHARE * len(order)))
    test = marked or order[:count]
    training = order if marked else order[count:]
    if not test or not training:
        raise UserError(
            f"{data}: has {len(found.cases)} labelled scans.", "The comparison needs two or more."
        )
    return Material(
        scanned=(data, *more),
        labelled=data,
        training=tuple(c.id for c in training),
        test=tuple(test),
        labels=found.labels,
    )


def _scanned(material: Material, folder: Path, steps: Steps) -> list[SeriesRow]:
    with steps.doing("Scanning for usable CT"):
        scan.run(
            material.scanned, output=folder / "index.csv", min_slices=16, quick=False, workers=None
        )
    return read_index(folder / "index.csv")


def _without_test(rows: Sequence[SeriesRow], material: Material, folder: Path) -> Path:
    """An index without the scans that judge the result: they are not even pretrained on."""
    from backend.data.index import write_index

    kept_apart = {path.resolve() for case in material.test for path in case.image}
    usable = [row for row in rows if not kept_apart & {path.resolve() for path in row.files}]
    write_index(folder / "pretrain_index.csv", usable)
    return folder / "pretrain_index.csv"


def _arm(folder: Path, arm: str, what: str) -> Path:
    return folder / f"{what}_{arm.replace(' ', '_')}"


def _finetune_both(material: Material, folder: Path, steps: Steps, place: Place) -> None:
    """The same network, data, steps and seed twice; only where the encoder starts differs."""
    for arm in ARMS:
        with steps.doing(f"Fine-tuning {arm}"):
            finetune.run(
                finetune.FinetuneRequest(
                    output=_arm(folder, arm, "finetune"),
                    data=material.labelled,
                    init=folder / "pretrain" if arm == ARMS[0] else None,
                    method="smit",
                    preset="tiny",
                    cases=material.training,
                    overrides=(
                        f"train.max_steps={FINETUNE_STEPS}",
                        f"train.seed={place.seed}",
                        # A fixed budget and the last weights: nothing is chosen on any scan.
                        "validation_fraction=0",
                        f"train.preview_every_steps={FINETUNE_STEPS // FINETUNE_PICTURES}",
                    ),
                    device=place.device,
                    cache=place.cache,
                    argv=tuple(sys.argv),
                )
            )


def _judge_both(material: Material, folder: Path, steps: Steps, place: Place) -> dict[str, Path]:
    with steps.doing("Segmenting scans that no network has seen"):
        for arm in ARMS:
            for case in material.test:
                segment.run(
                    _arm(folder, arm, "finetune"),
                    case.image[0] if len(case.image) == 1 else case.image[0].parent,
                    _arm(folder, arm, "prediction") / f"{case.id}.nii.gz",
                    device=place.device,
                )
    references = _references(material, folder / "reference")
    with steps.doing("Comparing with the reference"):
        for arm in ARMS:
            evaluate.run(
                _arm(folder, arm, "prediction"), references, output=_arm(folder, arm, "evaluation")
            )
    with steps.doing("Drawing"):
        return {
            f"{case.id}, {arm}": _drawn(case, material, folder, arm)
            for case in material.test
            for arm in ARMS
        }


def _references(material: Material, folder: Path) -> Path:
    """The labels of the test cases in one folder, each under the name of its case."""
    folder.mkdir()
    for case in material.test:
        ending = (
            "".join(case.label.suffixes[-2:]) if case.label.suffix == ".gz" else (case.label.suffix)
        )
        shutil.copyfile(case.label, folder / f"{case.id}{ending}")
    write_labels(folder / "labels.json", material.labels)
    return folder


def _drawn(case: LabelledCase, material: Material, folder: Path, arm: str) -> Path:
    image = reorient(read_volume(case.image), "LPS")
    reference = reorient(read_label(case.label), "LPS")
    prediction = reorient(read_label(_arm(folder, arm, "prediction") / f"{case.id}.nii.gz"), "LPS")
    path = _arm(folder, arm, "pictures") / f"{case.id}.png"
    contours_png(
        path,
        image=image.voxels.astype(np.int16, copy=False),
        reference=label_array(reference.voxels),
        prediction=label_array(prediction.voxels),
        labels=material.labels,
        spacing_mm=image.geometry.spacing_mm,
        title=f"{case.id}, {arm}",
    )
    return path
