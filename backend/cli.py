"""The command line: what may be asked, and the exit code of how it ended.

Nothing here imports torch; each command imports its recipe when it runs.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro
from tyro.conf import (
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    UseAppendAction,
    arg,
    subcommand,
)

import backend
from backend.errors import BackendError, told_plainly

Device = Annotated[str, arg(metavar="auto|cpu|cuda[:i]|mps")]
Settings = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Go the whole way on phantoms, or on given CT, and write a report with pictures."""

    output: Path | None = None
    """Folder to write; must not exist. Left out: demo, or demo-2, demo-3, ... if it does."""
    data: Path | None = None
    """Labelled scans (see `finetune --data`) to use instead of phantoms."""
    unlabelled: Path | None = None
    """Further scans to pretrain on, with --data. Left out: the scans of --data alone."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    seed: int = 0
    """Other seeds give other phantoms and other weights to start from."""

    def run(self) -> None:
        """Run the demo."""
        from backend import demo

        demo.run(
            output=self.output,
            data=self.data,
            unlabelled=self.unlabelled,
            device=self.device,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Find every usable CT series below any number of paths and say why others are not."""

    paths: Positional[tuple[Path, ...]]
    """Folders or files: DICOM in any layout, NIfTI, NRRD, MetaImage."""
    output: Path
    """The index to write, e.g. index.csv."""
    min_slices: int = 16
    """Series with fewer slices are refused."""
    quick: bool = False
    """Read headers only; voxels are not decoded."""
    workers: int | None = None
    """Parallel readers. Left out: one per core."""

    def run(self) -> None:
        """Scan."""
        from backend import scan

        scan.run(
            self.paths,
            output=self.output,
            min_slices=self.min_slices,
            quick=self.quick,
            workers=self.workers,
        )


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretrain an encoder on unlabelled CT."""

    output: Path
    """The run folder; must not exist, unless with --resume."""
    method: str | None = None
    """Pretext method, see `backend methods`."""
    data: tuple[Path, ...] = ()
    """An index.csv of `backend scan`, or folders and files, which are scanned first."""
    preset: str | None = None
    """Settings of the method. Left out: its first preset."""
    max_steps: int | None = None
    """Length in optimizer steps; all schedules end there."""
    epochs: int | None = None
    """Length in passes over the data."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    resume: bool = False
    """Continue the run in --output from its last checkpoint."""
    init: Path | None = None
    """Start from the encoder of this run or weights file."""
    cache: Path | None = None
    """Folder of preprocessed scans. Left out: the project's, else the user's."""
    config: Path | None = None
    """YAML or JSON with settings over the preset."""
    overrides: Settings = ()
    """One setting over preset and file, e.g. --set train.batch_size=4; may be repeated."""

    def run(self) -> None:
        """Pretrain."""
        from backend import pretrain

        run = pretrain.run(
            pretrain.PretrainRequest(
                output=self.output,
                data=self.data,
                method=self.method,
                preset=self.preset,
                config_file=self.config,
                overrides=(*self.overrides, *_lengths(self.max_steps, self.epochs)),
                device=self.device,
                resume=self.resume,
                init=self.init,
                cache=self.cache,
                argv=tuple(sys.argv),
            )
        )
        _say(
            f"Encoder: {run / 'checkpoints' / 'encoder.safetensors'}\n"
            f"Report:  {run / 'report.html'}\n"
            f"Next:    backend finetune --init {run} --data LABELLED --output RUN"
        )


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train a segmentation network on labelled scans."""

    output: Path
    """The run folder; must not exist, unless with --resume."""
    data: Path | None = None
    """Labelled set: nnU-Net raw, MSD, images/ + labels/, case folders, or a CSV."""
    init: Annotated[str | None, arg(metavar="RUN|FILE|none")] = None
    """Pretraining run or weights to start from; none says that random weights are wanted."""
    method: str | None = None
    """Method whose network is taken. Left out: that of --init, else smit."""
    preset: str | None = None
    """Settings of the method. Left out: those of --init, else the first."""
    cases: tuple[str, ...] = ()
    """Names or patterns of the cases to take, e.g. 'pt_1*'. Left out: all."""
    freeze_encoder: bool = False
    """Leave the pretrained encoder as it is and train the decoder alone."""
    fraction: float = 1.0
    """Share of the training cases to use, chosen by the seed."""
    folds: int = 0
    """Cross-validate in so many parts, one run each."""
    max_steps: int | None = None
    """Length in optimizer steps; all schedules end there."""
    epochs: int | None = None
    """Length in passes over the data."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    resume: bool = False
    """Continue the run in --output from its last checkpoint."""
    cache: Path | None = None
    """Folder of preprocessed scans. Left out: the project's, else the user's."""
    config: Path | None = None
    """YAML or JSON with settings over the preset."""
    overrides: Settings = ()
    """One setting over preset and file, e.g. --set train.batch_size=4; may be repeated."""

    def run(self) -> None:
        """Fine-tune."""
        from backend import finetune

        frozen = ("freeze_encoder=true",) if self.freeze_encoder else ()
        run = finetune.run(
            finetune.FinetuneRequest(
                output=self.output,
                data=self.data,
                init=None if self.init in {None, "none"} else Path(str(self.init)),
                method=self.method,
                preset=self.preset,
                cases=self.cases,
                fraction=self.fraction,
                folds=self.folds,
                config_file=self.config,
                overrides=(*self.overrides, *frozen, *_lengths(self.max_steps, self.epochs)),
                device=self.device,
                resume=self.resume,
                cache=self.cache,
                argv=tuple(sys.argv),
            )
        )
        if not self.folds:
            _say(
                f"{_best_of(run)}"
                f"Report: {run / 'report.html'}\n"
                f"Next:   backend segment --model {run} --input SCAN --output LABELS.nii.gz"
            )


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment a scan, a DICOM series or a folder of scans."""

    model: Path
    """Fine-tuning run or .safetensors file."""
    input: Path
    """A volume file, a folder with one DICOM series, or a folder of scans."""
    output: Path
    """Label file (.nii.gz, .nrrd, .seg.nrrd, .mha) for one scan, a folder for many."""
    structures: tuple[str, ...] = ()
    """Names of the structures to write. Left out: all."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    ending: str = ".nii.gz"
    """Format of the label files when --output is a folder."""
    overwrite: bool = False
    """Replace output files that exist."""

    def run(self) -> None:
        """Segment."""
        from backend import segment

        segment.run(
            self.model,
            self.input,
            self.output,
            device=self.device,
            structures=self.structures or None,
            overwrite=self.overwrite,
            ending=self.ending,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare segmentations with references: overlap and surface distances per organ and case."""

    prediction: Path
    """A label file or a folder of them."""
    reference: Path
    """A label file, a folder of them, or a labelled set."""
    output: Path | None = None
    """Folder for evaluation.csv and evaluation.json. Left out: the table on screen alone."""
    labels: Path | None = None
    """labels.json with names. Left out: found beside the reference."""
    tolerance_mm: float = 2.0
    """Tolerance of the surface Dice."""
    allow_unmatched: bool = False
    """Go on where a file on one side has no partner; they are listed."""

    def run(self) -> None:
        """Evaluate."""
        from backend import evaluate

        evaluate.run(
            self.prediction,
            self.reference,
            output=self.output,
            labels=self.labels,
            tolerance_mm=self.tolerance_mm,
            allow_unmatched=self.allow_unmatched,
        )


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the pretext methods: what each does, for clinicians and for engineers."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """List."""
        from backend import describe

        describe.show_methods(as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Tell what a method with its settings is: parameters, cost, deviations from the paper."""

    method: str
    """Pretext method, see `backend methods`."""
    preset: str | None = None
    """Settings of the method. Left out: its first preset."""
    json: bool = False
    """Print JSON."""
    overrides: Settings = ()
    """One setting over the preset, e.g. --set train.batch_size=4; may be repeated."""

    def run(self) -> None:
        """Describe."""
        from backend import describe

        describe.show_description(
            method=self.method, preset=self.preset, overrides=self.overrides, as_json=self.json
        )


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn outside weights into an encoder file of ours, with a report of what matched."""

    file: Positional[Path]
    """Weights as published (.pt, .pth or .safetensors)."""
    source: Annotated[Literal["smit", "monai"], arg(name="from")]
    """Where they come from."""
    output: Path
    """The .safetensors file to write."""
    merging: Literal["merging", "mergingv2", "merging_before_1_5"] = "merging"
    """How MONAI's network merged patches, which its weights do not tell."""
    overwrite: bool = False
    """Replace the output if it exists."""

    def run(self) -> None:
        """Convert."""
        from backend import convert

        convert.run(
            self.file,
            source=self.source,
            output=self.output,
            overwrite=self.overwrite,
            merging=self.merging,
        )


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Ask a run to finish its step, save and stop; then end its whole process tree."""

    run_folder: Annotated[Path, arg(name="run")]
    """The run folder."""
    grace: float = 60.0
    """Seconds the run may take to stop by itself."""

    def run(self) -> None:
        """Stop."""
        from backend import stop

        stop.run(self.run_folder, grace_s=self.grace)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the report of a run again, e.g. after a crash or while it goes on."""

    run_folder: Annotated[Path, arg(name="run")]
    """The run folder."""

    def run(self) -> None:
        """Write the report."""
        from backend.report import write_run_report

        _say(str(write_run_report(self.run_folder)))


@dataclass(frozen=True, kw_only=True)
class CacheCommand:
    """Show or empty the cache of preprocessed scans."""

    list: bool = False
    """Show what it holds (done in any case)."""
    prune: bool = False
    """Delete what the options below choose."""
    older_than_days: float | None = None
    """Entries that were not used for so long."""
    recipe: str | None = None
    """Entries of this recipe, as listed."""
    all: bool = False
    """Every entry."""
    cache: Path | None = None
    """The cache. Left out: the user's."""

    def run(self) -> None:
        """List or prune."""
        from backend import cachetool

        cachetool.run(
            self.cache,
            remove=self.prune,
            older_than_days=self.older_than_days,
            recipe=self.recipe,
            everything=self.all,
        )


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Tell whether this machine is ready: Python, packages, devices, memory, disk."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Look."""
        from backend import doctor

        doctor.run(as_json=self.json)


Command = Union[  # noqa: UP007 - tyro wants a type it can print in order
    Annotated[Demo, subcommand("demo")],
    Annotated[Scan, subcommand("scan")],
    Annotated[Pretrain, subcommand("pretrain")],
    Annotated[Finetune, subcommand("finetune")],
    Annotated[Segment, subcommand("segment")],
    Annotated[Evaluate, subcommand("evaluate")],
    Annotated[Methods, subcommand("methods")],
    Annotated[Describe, subcommand("describe")],
    Annotated[Convert, subcommand("convert")],
    Annotated[Stop, subcommand("stop")],
    Annotated[Report, subcommand("report")],
    Annotated[CacheCommand, subcommand("cache")],
    Annotated[Doctor, subcommand("doctor")],
]


def main() -> None:
    """Run the command that was asked for and exit as `backend.errors` says."""
    # OpenMP's threads spin while they wait for each other. Where something else computes as well
    # that made a step 5 to 25 times slower; with short spinning it costs 2 % on a quiet machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if sys.argv[1:] == ["--version"]:
        _say(f"backend {backend.__version__}")
        return
    command: Command = tyro.cli(
        Command,
        prog="backend",
        description="From a folder of CT and a handful of labels to a segmentation model.",
        config=(OmitSubcommandPrefixes, OmitArgPrefixes, FlagCreatePairsOff),
    )
    _log_to_screen()
    try:
        command.run()
    except (Exception, KeyboardInterrupt) as caught:
        sys.exit(_tell(caught))


def _tell(caught: BaseException) -> int:
    """One or two lines on standard error, and the exit code."""
    error = told_plainly(caught)
    sys.stderr.write(f"\nbackend: {error}\n")
    if type(error) is BackendError:
        _keep_details(caught)
    return error.exit_code


def _keep_details(caught: BaseException) -> None:
    """Write the traceback to a new file; one of a fixed name may belong to somebody else."""
    with suppress(OSError):
        number, name = tempfile.mkstemp(prefix="backend-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            stream.write("".join(traceback.format_exception(caught)))
        sys.stderr.write(f"backend: details in {name}\n")


def _log_to_screen() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: record.levelno < logging.ERROR)
    log = logging.getLogger("backend")
    log.setLevel(logging.INFO)
    log.addHandler(handler)


def _lengths(max_steps: int | None, epochs: int | None) -> tuple[str, ...]:
    given = {"train.max_steps": max_steps, "train.epochs": epochs}
    return tuple(f"{key}={value}" for key, value in given.items() if value is not None)


def _best_of(run: Path) -> str:
    """Which weights `segment` will take, and how good they were in validation."""
    from backend.engine.record import read_status

    best = read_status(run).get("best")
    if not best:
        return f"Model:  {run / 'checkpoints' / 'model.safetensors'} (not validated)\n"
    return (
        f"Model:  {run / 'checkpoints' / 'best.safetensors'}\n"
        f"Best:   mean Dice {best['val/dice_mean']:.3f} on validation scans, step {best['step']}\n"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
