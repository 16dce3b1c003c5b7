"""Runs `python -m backend ...` as a user would, and makes the small data that it is run on."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from backend.cli import main
from backend.data.phantom import make_phantom
from backend.data.phantom.cohort import write_image, write_label_names
from backend.data.phantom.dicom import Series, write_series
from backend.geometry import Geometry, Volume

REPOSITORY = Path(__file__).parents[2]
SIZE, SPACING_MM = (36, 60, 60), (6.0, 6.0, 6.0)
LIMIT_S = 100.0
"""A command that takes longer than this hangs."""

_NETWORK = (
    *("--preset", "tiny", "--device", "cpu"),
    *("--set", "method.encoder.embed_dim=4", "--set", "method.encoder.heads=[1, 1, 2]"),
    *("--set", "preprocess.spacing_mm=[6, 6, 6]", "--set", "data.workers=1"),
    *("--set", "train.preview_every_steps=1000"),
)
PRETRAIN = (
    *("pretrain", "--method", "smit", *_NETWORK, "--set", "train.batch_size=2"),
    *("--set", "views.region=40", "--set", "views.main.size=32", "--set", "method.head.hidden=16"),
    *("--set", "method.head.bottleneck=8", "--set", "method.head.prototypes=32"),
)
"""The smallest pretraining that has all parts; lacks --data, --output, --cache and a length."""
FINETUNE = (
    *("finetune", *_NETWORK, "--set", "decoder.width=4"),
    *("--set", "crop=32", "--set", "crops_per_scan=1"),
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that has ended: exit code (negative: the signal that killed it) and its words."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """The error as told to the user, without the program's name."""
        return self.err.rpartition("\nbackend: ")[2].strip()


def environment(**more: str) -> dict[str, str]:
    """One thread, for machines that do other things as well."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", **more}


def limited(kind: int, limit: int) -> Callable[[], None]:
    """What a child process runs first, so that a resource (`resource.RLIMIT_...`) is scarce."""
    return partial(resource.setrlimit, kind, (limit, limit))


def backend(
    *words: object,
    env: Mapping[str, str] | None = None,
    first: Callable[[], None] | None = None,
    python: tuple[str, ...] = (),
    cwd: Path = REPOSITORY,
    limit_s: float = LIMIT_S,
) -> Ended:
    """Run a command to its end.

    Args:
        words: what stands behind `backend` on the command line.
        env: further environment variables.
        first: called in the child before the program starts.
        python: options of the interpreter.
        cwd: folder to run in.
        limit_s: a command that takes longer hangs.
    """
    done = subprocess.run(
        [sys.executable, *python, "-m", "backend", *map(str, words)],
        cwd=cwd,
        env=environment(PYTHONPATH=str(REPOSITORY), **(env or {})),
        capture_output=True,
        text=True,
        timeout=limit_s,
        preexec_fn=first,
        check=False,
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


def backend_here(*words: object) -> Ended:
    """Run a command to its end in this process: quicker, where nothing of the start matters."""
    before, sys.argv = sys.argv, ["backend", *map(str, words)]
    code, out, err = 0, io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv = before
    return Ended(code=code, out=out.getvalue(), err=err.getvalue())


def backend_stopped(*words: object, run: Path, step: int) -> Ended:
    """As `backend_here`, with the run asked to stop once a step is recorded."""
    done = threading.Event()

    def ask() -> None:
        while len(records(run)) < step and not done.wait(0.002):
            pass
        if not done.is_set():
            (run / "stop").touch()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        return backend_here(*words)
    finally:
        done.set()
        asking.join()


def backend_each(lines: Mapping[str, Sequence[object]]) -> dict[str, Ended]:
    """Run several commands in this process; the results under their names."""
    return {name: backend_here(*words) for name, words in lines.items()}


@contextmanager
def started(
    *words: object, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on while the block runs; killed after it if it still does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", *map(str, words)],
        cwd=REPOSITORY,
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for a started command."""
    out, err = process.communicate(timeout=LIMIT_S)
    return Ended(code=process.returncode, out=out, err=err)


def wait_until(
    there: Callable[[], object], *, process: subprocess.Popen[str], limit_s: float = LIMIT_S
) -> None:
    """Wait for something that a started command brings about; fail if it ends before."""
    deadline = time.monotonic() + limit_s
    while not there():
        if process.poll() is not None and not there():
            raise AssertionError(f"ended too early: {process.communicate()[1][-2000:]}")
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {limit_s:.0f} s")
        time.sleep(0.02)


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def status(run: Path) -> dict[str, Any]:
    """status.json as it stands."""
    content: dict[str, Any] = json.loads((run / "status.json").read_text("utf-8"))
    return content


def note_figures(file: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Replace one entry of a committed JSON file of figures; several processes may do so."""
    with FileLock(file.with_suffix(".lock")):
        known = json.loads(file.read_text("utf-8")) if file.exists() else {}
        text = json.dumps(dict(sorted({**known, name: dict(figures)}.items())), indent=1)
        file.write_text(text + "\n", encoding="utf-8")


def snapshot(folder: Path) -> dict[str, tuple[int, int, bool]]:
    """Every file and folder below a folder, hidden ones included: size and time of change."""
    return {
        str(path.relative_to(folder)): (
            (s := path.lstat()).st_size * path.is_file(),
            s.st_mtime_ns * path.is_file(),
            path.is_dir(),
        )
        for path in folder.rglob("*")
    }


@dataclass(frozen=True, kw_only=True)
class Material:
    """Six phantoms.

    Attributes:
        unlabelled: a DICOM series without endings, an oblique NIfTI and an NRRD.
        dicom: the folder of the series.
        oblique: the NIfTI.
        labelled: three case folders with `labels.json` beside them.
        nnunet: the same three as an nnU-Net raw folder.
        cache: shared by all runs.
    """

    unlabelled: Path
    dicom: Path
    oblique: Path
    labelled: Path
    nnunet: Path
    cache: Path


def phantom(
    seed: int, *, orientation: str = "LPS", turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> tuple[Volume, Volume]:
    """A coarse CT with its label map."""
    return make_phantom(
        seed, size=SIZE, spacing_mm=SPACING_MM, orientation=orientation, turn_deg=turn_deg
    )


def ramp(size: tuple[int, ...], dtype: type = np.int16) -> np.ndarray[Any, np.dtype[Any]]:
    """Values that pass for HU, of any shape."""
    return np.linspace(-1000, 1000, int(np.prod(size))).reshape(size).astype(dtype)


def grid(size: tuple[int, int, int], *, spacing_mm: float = 6.0) -> Geometry:
    """A plain grid."""
    return Geometry(size=size, spacing_mm=(spacing_mm,) * 3)


def make_material(root: Path) -> Material:
    """Write the phantoms below a folder."""
    material = Material(
        unlabelled=root / "unlabelled",
        dicom=root / "unlabelled" / "PAT001" / "SER1",
        oblique=root / "unlabelled" / "oblique.nii.gz",
        labelled=root / "labelled",
        nnunet=root / "Dataset001_phantoms",
        cache=root / "cache",
    )
    write_series(material.dicom, phantom(1)[0], Series(patient="PHANTOM_1", ending=""))
    write_image(material.oblique, phantom(2, turn_deg=(8.0, -5.0, 11.0))[0])
    write_image(material.unlabelled / "plain.nrrd", phantom(3)[0])
    for number, orientation in enumerate(("LPS", "RAS", "PIL"), start=1):
        ct, label = phantom(10 + number, orientation=orientation)
        write_image(material.labelled / f"case_{number}" / "ct.nii.gz", ct)
        write_image(material.labelled / f"case_{number}" / "label.nii.gz", label)
    write_label_names(material.labelled / "labels.json")
    _as_nnunet(material.labelled, material.nnunet)
    return material


def _as_nnunet(labelled: Path, folder: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in sorted(p for p in labelled.iterdir() if p.is_dir()):
        shutil.copy(case / "ct.nii.gz", folder / "imagesTr" / f"{case.name}_0000.nii.gz")
        shutil.copy(case / "label.nii.gz", folder / "labelsTr" / f"{case.name}.nii.gz")
    names = json.loads((labelled / "labels.json").read_text())["labels"]
    table = {"background": 0, **{name: int(value) for value, name in names.items()}}
    content = {"channel_names": {"0": "CT"}, "labels": table, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


@dataclass(frozen=True, kw_only=True)
class Runs:
    """One finished pretraining, a fine-tuning from it, and the phantoms they were made of."""

    material: Material
    pretrain: Path
    finetune: Path
    pretrained: Ended
    finetuned: Ended


def make_runs(root: Path, material: Material) -> Runs:
    """Train both, four steps each, below a folder, unless that was done before."""
    lines: dict[str, tuple[object, ...]] = {
        "pretrain": (*PRETRAIN, "--data", material.unlabelled),
        "finetune": (*FINETUNE, "--data", material.labelled, "--init", root / "pretrain"),
    }
    told = root / "made.json"
    if not told.exists():
        ended = {}
        for name, words in lines.items():
            where = ("--output", root / name, "--cache", material.cache)
            done = backend(*words, *where, "--max-steps", 4)
            assert done.code == 0, done.err
            ended[name] = asdict(done)
        paths = {name: str(path) for name, path in asdict(material).items()}
        told.write_text(json.dumps({"material": paths, "ended": ended}), "utf-8")
    made = json.loads(told.read_text("utf-8"))
    known = {name: Ended(**values) for name, values in made["ended"].items()}
    return Runs(
        material=Material(**{name: Path(path) for name, path in made["material"].items()}),
        pretrain=root / "pretrain",
        finetune=root / "finetune",
        pretrained=known["pretrain"],
        finetuned=known["finetune"],
    )
