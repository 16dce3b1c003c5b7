"""A small cohort on disk, as mixed as what hospitals hand over: formats, orientations, faults."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK

from backend.data.label_files import holds
from backend.data.phantom.anatomy import LABELS
from backend.data.phantom.dicom import Series, localizer, write_series
from backend.data.phantom.patient import Difficulty
from backend.data.phantom.render import make_phantom
from backend.errors import UserError
from backend.files import written_whole
from backend.geometry import Index3, Vec3, Volume
from backend.progress import progress

_FEW = 6
"""So many scans are made in this process: to start others would take as long."""

_SMALL: Index3 = (24, 64, 64)
_SMALL_SPACING_MM: Vec3 = (8.0, 6.0, 6.0)


@dataclass(frozen=True, kw_only=True)
class CohortEntry:
    """One scan or fault of a cohort, and what a scan of the folder should say about it.

    Attributes:
        path: file, or folder of a DICOM series, relative to the cohort.
        part: "unlabelled", "labelled", "test" or "broken".
        kind: what it is, in a word or two.
        usable: whether it is a CT to train on.
        reason: why not, for a human.
        series: DICOM SeriesInstanceUID, or "" for other formats.
    """

    path: str
    part: str
    kind: str
    usable: bool = True
    reason: str = ""
    series: str = ""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Where the parts of a cohort lie.

    Attributes:
        folder: holds all of it, and `cohort.json`, which lists `entries`.
        unlabelled: DICOM, NIfTI, NRRD and MetaImage scans for pretraining.
        labelled: case folders with `ct.nii.gz`, `label.nii.gz` and `labels.json`.
        test_images: `<case>.nii.gz`, to be segmented.
        test_labels: `<case>.nii.gz` and `labels.json`, kept apart for the evaluation.
        broken: what a scan must refuse; None if not asked for.
        entries: everything that was written.
    """

    folder: Path
    unlabelled: Path
    labelled: Path
    test_images: Path
    test_labels: Path
    broken: Path | None
    entries: tuple[CohortEntry, ...]


@dataclass(frozen=True, kw_only=True)
class _Job:
    write: Callable[[_Job], list[CohortEntry]]
    folder: Path
    part: str
    number: int
    seed: int
    difficulty: Difficulty


def make_cohort(
    folder: Path,
    *,
    seed: int,
    unlabelled: int = 8,
    labelled: int = 3,
    test: int = 3,
    broken: bool = True,
    difficulty: float = 0.0,
) -> Cohort:
    """Write a cohort of phantoms; the same seed and difficulty give the same files.

    Args:
        folder: made if missing; must be empty.
        seed: which patients.
        unlabelled: scans for pretraining.
        labelled: scans with labels for fine-tuning.
        test: scans whose labels are kept apart.
        broken: whether to add what must be refused.
        difficulty: how hard all patients are, 0 to 1: see `Difficulty.of`.

    Raises:
        UserError: if the folder holds something already.
        ResourceError: if the disk is full or the folder cannot be written.
        ValueError: if the difficulty is below 0 or above 1.
    """
    hard = Difficulty.of(difficulty)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty.", "Choose a new folder for the phantoms.")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(
        folder,
        seed=seed,
        counts={
            "unlabelled": unlabelled,
            "labelled": labelled,
            "test": test,
            "broken": int(broken),
        },
        difficulty=hard,
    )
    entries = tuple(entry for done in _run(jobs) for entry in done)
    _write_text(
        folder / "cohort.json",
        json.dumps(
            {
                "schema": 1,
                "seed": seed,
                "difficulty": difficulty,
                "entries": [asdict(entry) for entry in entries],
            },
            indent=1,
        ),
    )
    return Cohort(
        folder=folder,
        unlabelled=folder / "unlabelled",
        labelled=folder / "labelled",
        test_images=folder / "test" / "images",
        test_labels=folder / "test" / "labels",
        broken=folder / "broken" if broken else None,
        entries=entries,
    )


def _jobs(folder: Path, *, seed: int, counts: dict[str, int], difficulty: Difficulty) -> list[_Job]:
    """One job per scan; patient numbers run through all parts, so no patient is in two."""
    jobs: list[_Job] = []
    for part, count in counts.items():
        if count:
            (folder / part).mkdir()
        for number in range(1, count + 1):
            write = {
                "unlabelled": _FORMATS[(number - 1) % len(_FORMATS)],
                "labelled": _write_labelled,
                "test": _write_test,
                "broken": _write_broken,
            }[part]
            # A seed per patient that no other cohort seed nearby shares.
            patient = int(np.random.SeedSequence([seed, len(jobs)]).generate_state(1)[0])
            jobs.append(
                _Job(
                    write=write,
                    folder=folder,
                    part=part,
                    number=number,
                    seed=patient,
                    difficulty=difficulty,
                )
            )
    return jobs


def _run(jobs: Sequence[_Job]) -> list[list[CohortEntry]]:
    workers = 1 if len(jobs) <= _FEW else min(os.cpu_count() or 1, len(jobs))
    if workers == 1:
        return list(progress(map(_work, jobs), total=len(jobs), what="Phantoms", unit="scan"))
    # Spawned, since forking a process that holds threads of torch may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = pool.map(_work, jobs)
        return list(progress(done, total=len(jobs), what="Phantoms", unit="scan"))


def _work(job: _Job) -> list[CohortEntry]:
    return job.write(job)


def _grid(job: _Job) -> tuple[Index3, Vec3]:
    """Every scan has a grid of its own, as protocols differ; all cover the whole width."""
    rng = np.random.default_rng([job.seed, 1])
    in_plane = float(rng.choice((2.75, 3.0, 3.25)))
    thickness = float(rng.choice((3.0, 4.0, 5.0)))
    return (round(rng.uniform(215, 250) / thickness), 128, 128), (
        thickness,
        in_plane,
        in_plane,
    )


def _phantom(job: _Job, *, orientation: str = "LPS", oblique: bool = False) -> list[Volume]:
    size, spacing_mm = _grid(job)
    turn: Vec3 = (7.0, -4.0, 9.0) if oblique else (0.0, 0.0, 0.0)
    return list(
        make_phantom(
            job.seed,
            size=size,
            spacing_mm=spacing_mm,
            orientation=orientation,
            turn_deg=turn,
            # As in a department: what somebody labels, and wants labelled, is of one protocol;
            # the archive holds all phases.
            phase=None if job.part == "unlabelled" else "portal",
            difficulty=job.difficulty,
        )
    )


def _patient(job: _Job) -> str:
    return f"PHANTOM_{job.number:02d}"


def _entry(job: _Job, path: Path, kind: str, *, reason: str = "", series: str = "") -> CohortEntry:
    relative = path.relative_to(job.folder).as_posix()
    return CohortEntry(
        path=relative, part=job.part, kind=kind, usable=not reason, reason=reason, series=series
    )


def _write_dicom_bare(job: _Job) -> list[CohortEntry]:
    """Nested folders and file names without an ending, as on a hospital's CD."""
    folder = job.folder / job.part / "DICOM" / f"PAT{job.number:03d}" / "STD0001" / "SER0001"
    series = Series(patient=_patient(job), ending="", stem="I", intercept=0)
    write_series(folder, _phantom(job)[0], series)
    return [_entry(job, folder, "DICOM without endings", series=series.uid("series", 1))]


def _write_dicom_shared(job: _Job) -> list[CohortEntry]:
    """One of two patients' series that share a folder."""
    folder = job.folder / job.part / "export"
    series = Series(patient=_patient(job), number=job.number, description="Abdomen 120 kV")
    write_series(folder, _phantom(job)[0], series)
    uid = series.uid("series", job.number)
    return [_entry(job, folder, "DICOM, two series in one folder", series=uid)]


def _write_single(
    job: _Job, ending: str, kind: str, *, orientation: str = "LPS", oblique: bool = False
) -> list[CohortEntry]:
    path = job.folder / job.part / f"{_patient(job).lower()}{ending}"
    write_image(path, _phantom(job, orientation=orientation, oblique=oblique)[0])
    return [_entry(job, path, kind)]


def _write_nifti_ras(job: _Job) -> list[CohortEntry]:
    return _write_single(job, ".nii.gz", "NIfTI, RAS", orientation="RAS")


def _write_nifti_lps(job: _Job) -> list[CohortEntry]:
    return _write_single(job, ".nii", "NIfTI, LPS, not compressed")


def _write_nifti_oblique(job: _Job) -> list[CohortEntry]:
    return _write_single(job, ".nii.gz", "NIfTI, oblique", oblique=True)


def _write_nrrd(job: _Job) -> list[CohortEntry]:
    return _write_single(job, ".nrrd", "NRRD")


def _write_metaimage(job: _Job) -> list[CohortEntry]:
    return _write_single(job, ".mha", "MetaImage, sagittal slices", orientation="PSL")


_FORMATS = (
    _write_dicom_bare,
    _write_dicom_shared,
    _write_dicom_shared,
    _write_nifti_ras,
    _write_nifti_lps,
    _write_nifti_oblique,
    _write_nrrd,
    _write_metaimage,
)


def _write_labelled(job: _Job) -> list[CohortEntry]:
    folder = job.folder / job.part / f"case_{job.number:02d}"
    folder.mkdir(parents=True)
    ct, label = _phantom(job, orientation=("LPS", "RAS", "LAS")[job.number % 3])
    write_image(folder / "ct.nii.gz", ct)
    write_image(folder / "label.nii.gz", label)
    write_label_names(folder / "labels.json")
    return [
        _entry(job, folder / "ct.nii.gz", "NIfTI with labels"),
        _entry(job, folder / "label.nii.gz", "label map", reason="a label map, not a CT"),
    ]


def _write_test(job: _Job) -> list[CohortEntry]:
    images, labels = (job.folder / job.part / name for name in ("images", "labels"))
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    ct, label = _phantom(job, orientation=("RAS", "LPS")[job.number % 2])
    name = f"test_{job.number:02d}.nii.gz"
    write_image(images / name, ct)
    write_image(labels / name, label)
    write_label_names(labels / "labels.json")
    return [
        _entry(job, images / name, "NIfTI"),
        _entry(job, labels / name, "label map", reason="a label map, not a CT"),
    ]


def _write_broken(job: _Job) -> list[CohortEntry]:
    """Everything a scan must refuse, small: one folder or file per fault."""
    root = job.folder / job.part
    ct, label = make_phantom(job.seed, size=_SMALL, spacing_mm=_SMALL_SPACING_MM)
    return [*_broken_series(job, root, ct), *_broken_files(job, root, ct, label)]


def _broken_series(job: _Job, root: Path, ct: Volume) -> list[CohortEntry]:
    def series(name: str) -> Series:
        return Series(patient=f"PHANTOM_{name.upper()}", description=name)

    scout, scout_series = localizer(ct, series("localizer"))
    # A tilted gantry shears the stack: the slices stay upright and slide backwards.
    slide = float(np.tan(np.deg2rad(15.0)) * ct.geometry.spacing_mm[0])
    written = {
        "localizer": (scout_series, write_series(root / "localizer", scout, scout_series)),
        "missing_slice": (
            chosen := series("missing_slice"),
            write_series(root / "missing_slice", ct, chosen, keep=lambda i: i != 11),
        ),
        "gantry_tilt": (
            chosen := replace(series("gantry_tilt"), tilt_deg=15.0),
            write_series(root / "gantry_tilt", ct, chosen, shear_mm=(0.0, slide, 0.0)),
        ),
        "too_few_slices": (
            chosen := series("too_few_slices"),
            write_series(root / "too_few_slices", ct, chosen, keep=lambda i: i < 3),
        ),
        "mr": (
            chosen := replace(series("mr"), modality="MR"),
            write_series(root / "mr", _as_mr(ct), chosen),
        ),
        "original": (
            chosen := series("original"),
            write_series(root / "original", ct, chosen),
        ),
    }
    shutil.copytree(root / "original", root / "original_copy")
    reasons = {
        "localizer": "a localizer",
        "missing_slice": "a slice is missing",
        "gantry_tilt": "a tilted gantry",
        "too_few_slices": "too few slices",
        "mr": "an MR, not a CT",
        "original": "",
    }
    entries = [
        _entry(job, root / name, "DICOM", reason=reasons[name], series=s.uid("series", s.number))
        for name, (s, _) in written.items()
    ]
    uid = entries[-1].series
    twin = _entry(job, root / "original_copy", "DICOM", reason="one of the two", series=uid)
    return [*entries, twin]


def _broken_files(job: _Job, root: Path, ct: Volume, label: Volume) -> list[CohortEntry]:
    write_image(root / "truncated.nii.gz", ct)
    data = (root / "truncated.nii.gz").read_bytes()
    (root / "truncated.nii.gz").write_bytes(data[: len(data) // 3])
    _write_text(root / "text.nii.gz", "This is a letter that somebody renamed.\n")
    write_image(root / "label.nii.gz", label)
    return [
        _entry(job, root / "truncated.nii.gz", "NIfTI", reason="cut off in the middle"),
        _entry(job, root / "text.nii.gz", "text", reason="not an image"),
        _entry(job, root / "label.nii.gz", "label map", reason="a label map, not a CT"),
    ]


def _as_mr(ct: Volume) -> Volume:
    """Bright fat, dark bone and air: what a T1-weighted MR makes of the same body."""
    hu = ct.voxels.astype(np.float32)
    signal = np.interp(hu, [-1000, -300, -110, -60, 20, 120, 400], [5, 20, 900, 700, 260, 420, 40])
    return Volume(signal.astype(np.int16), ct.geometry)


def write_image(path: Path, volume: Volume) -> None:
    """Write a volume as the format its ending names, through a temporary file beside it."""
    image = SimpleITK.GetImageFromArray(volume.voxels)
    image.SetSpacing(volume.geometry.spacing_mm[::-1])
    image.SetOrigin(volume.geometry.origin_mm)
    image.SetDirection(volume.geometry.direction)
    with written_whole(path, failures=(RuntimeError,)) as temporary:
        SimpleITK.WriteImage(image, str(temporary), useCompression=path.suffix != ".nii")
        # ITK's NIfTI writer reports nothing when the disk is full.
        if not holds(temporary, volume.voxels):
            raise OSError("it reads back differently, as on a full disk")


def write_label_names(path: Path) -> None:
    """Write `labels.json` with the names of `LABELS`."""
    _write_text(path, json.dumps({"labels": {str(v): n for v, n in LABELS.items()}}, indent=1))


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
