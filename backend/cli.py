"""The command line: what may be asked, and the exit code of how it ended.

Nothing here imports torch; each command imports its recipe when it runs.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Union

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
from backend.engine.distributed import place
from backend.errors import (
    TOLD_AT_THE_END,
    BackendError,
    Cancelled,
    Interrupted,
    UserError,
    told_plainly,
)
from backend.progress import say_nothing
from backend.tuning import tune_process

# What happens where an option is left out stands in its own words, not as "(default: None)".
Switch = Annotated[bool, arg(help_behavior_hint="")]
OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
OptionalName = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
OptionalCount = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Names = Annotated[tuple[str, ...] | None, arg(metavar="NAME ...", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="auto|cpu|cuda[:i]|mps")]
Processes = Annotated[int, arg(metavar="N")]
Settings = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Go the whole way on phantoms, or on given CT, and write a report with pictures."""

    output: OptionalPath = None
    """Folder to write; must not exist. Left out: demo, or demo-2, demo-3, ... if it does."""
    data: OptionalPath = None
    """Labelled scans (see `finetune --data`) to use instead of phantoms."""
    unlabelled: OptionalPath = None
    """Further scans to pretrain on, with --data. Left out: the scans of --data alone."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    seed: Annotated[int, arg(metavar="N")] = 0
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

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="PATH ...", help_behavior_hint="")]
    """Folders or files: DICOM in any layout, NIfTI, NRRD, MetaImage."""
    output: Path
    """The index to write, e.g. index.csv."""
    min_slices: Annotated[int, arg(metavar="N")] = 16
    """Series with fewer slices are refused."""
    quick: Switch = False
    """Read headers only; voxels are not decoded."""
    workers: OptionalCount = None
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

    output: OptionalPath = None
    """The run folder; must not exist, unless with --resume. Needed unless with --dry-run."""
    method: OptionalName = None
    """Pretext method, see `backend methods`; needed unless with --resume."""
    data: Annotated[tuple[Path, ...], arg(metavar="PATH ...", help_behavior_hint="")] = ()
    """An index.csv, or folders and files, which are scanned first; needed unless with --resume."""
    preset: OptionalName = None
    """Settings of the method. Left out: its first preset."""
    max_steps: OptionalCount = None
    """Length in optimizer steps; all schedules end there. Left out: --epochs."""
    epochs: OptionalCount = None
    """Length in passes over the data. Left out: as the preset says."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    devices: Processes = 1
    """Train on so many GPUs, or in so many processes on a processor; batches are divided."""
    resume: Switch = False
    """Continue the run in --output from its last checkpoint."""
    init: Annotated[Path | None, arg(metavar="RUN|FILE", help_behavior_hint="")] = None
    """Start from the encoder of this run or weights file. Left out: random weights."""
    probe_data: Annotated[Path | None, arg(metavar="SET", help_behavior_hint="")] = None
    """Labelled set (see `finetune --data`) that the features are asked of now and then; the best
    encoder is kept. Half of its scans judge, so scans that you test a model on later do not belong
    here. Left out: nothing is asked."""
    cache: OptionalPath = None
    """Folder of preprocessed scans. Left out: the project's, else the user's."""
    config: OptionalPath = None
    """YAML or JSON file with settings over those of the preset."""
    overrides: Settings = ()
    """One setting over preset and file, e.g. --set train.batch_size=4; may be repeated."""
    dry_run: Switch = False
    """Take a few steps and tell time, memory and disk of the whole run; nothing is left behind."""
    json: Switch = False
    """With --dry-run: print JSON for programs."""

    def run(self) -> None:
        """Pretrain."""
        from backend import pretrain

        if self.json and not self.dry_run:
            raise UserError("--json is for --dry-run.", "Add --dry-run, or leave out --json.")
        if self.output is None and not self.dry_run:
            raise UserError("No run folder was given.", "Add --output RUN, or --dry-run.")
        output = self.output or Path()
        request = pretrain.PretrainRequest(
            output=output,
            data=self.data,
            method=self.method,
            preset=self.preset,
            config_file=self.config,
            overrides=(*self.overrides, *_lengths(self.max_steps, self.epochs)),
            device=self.device,
            resume=self.resume,
            init=self.init,
            probe_data=self.probe_data,
            cache=self.cache,
            argv=tuple(sys.argv),
        )
        if self.dry_run:
            if self.devices != 1:
                raise UserError("--dry-run measures one process.", "Leave out --devices.")
            from backend import dry_run

            dry_run.run(request, as_json=self.json)
            return
        if self.resume and _is_done(output, "pretrain"):
            pretrain.resolve(request)
            _say(_told_done(output, given=f"--method NAME --data PATH --init {output}"))
            return
        if _to_be_divided(self.devices):
            pretrain.check(request, processes=self.devices)
            _in_processes(self.devices, self.device)
        run = pretrain.run(request)
        _say(
            f"Encoder: {run / 'checkpoints' / 'encoder.safetensors'}\n"
            f"{_best_probe_of(run)}"
            f"Report:  {run / 'report.html'}\n"
            f"Next:    backend finetune --init {run} --data LABELLED --output RUN"
        )


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train a segmentation network on labelled scans."""

    output: Path
    """The run folder; must not exist, unless with --resume."""
    data: OptionalPath = None
    """Labelled set: nnU-Net raw, MSD, images/ + labels/, case folders or CSV. See README.md."""
    init: Annotated[str | None, arg(metavar="RUN|FILE|none", help_behavior_hint="")] = None
    """Pretraining run or weights to start from; none starts from random weights, with --preset."""
    method: OptionalName = None
    """Method whose network is taken. Left out: that of --init, else smit."""
    preset: OptionalName = None
    """Settings of the method. Left out: those of --init."""
    cases: Names = None
    """Names or patterns of the cases to take, e.g. 'pt_1*'. Left out: all."""
    freeze_encoder: Switch = False
    """Leave the pretrained encoder as it is and train the decoder alone."""
    fraction: Annotated[float, arg(metavar="SHARE")] = 1.0
    """Share of the training cases to use, chosen by the seed."""
    folds: Annotated[int, arg(metavar="N")] = 0
    """Cross-validate in so many parts, one run each; 0 makes one run with one split."""
    max_steps: OptionalCount = None
    """Length in optimizer steps; all schedules end there. Left out: --epochs."""
    epochs: OptionalCount = None
    """Length in passes over the data. Left out: as the preset says."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    devices: Processes = 1
    """Train on so many GPUs, or in so many processes on a processor; batches are divided."""
    resume: Switch = False
    """Continue the run in --output from its last checkpoint."""
    cache: OptionalPath = None
    """Folder of preprocessed scans. Left out: the project's, else the user's."""
    config: OptionalPath = None
    """YAML or JSON file with settings over those of the preset."""
    overrides: Settings = ()
    """One setting over preset and file, e.g. --set train.batch_size=4; may be repeated."""

    def run(self) -> None:
        """Fine-tune."""
        from backend import finetune

        frozen = ("freeze_encoder=true",) if self.freeze_encoder else ()
        request = finetune.FinetuneRequest(
            output=self.output,
            data=self.data,
            init=None if self.init in {None, "none"} else Path(str(self.init)),
            method=self.method,
            preset=self.preset,
            cases=_some_cases(self.cases),
            fraction=self.fraction,
            folds=self.folds,
            config_file=self.config,
            overrides=(*self.overrides, *frozen, *_lengths(self.max_steps, self.epochs)),
            device=self.device,
            resume=self.resume,
            cache=self.cache,
            argv=tuple(sys.argv),
        )
        if self.resume and not self.folds and _is_done(self.output, "finetune"):
            finetune.resumed(request)
            _say(_told_done(self.output, given="--data SET --init PRETRAINED"))
            return
        if _to_be_divided(self.devices):
            finetune.check(request, processes=self.devices)
            _in_processes(self.devices, self.device)
        run = finetune.run(request)
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
    """Label file (.nii.gz, .nrrd, .seg.nrrd, .mha), or a folder, which gets an index.csv too."""
    structures: Names = None
    """Names of the structures to write. Left out: all."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    ending: Annotated[
        str | None, arg(metavar=".nii.gz|.nrrd|.seg.nrrd|.mha", help_behavior_hint="")
    ] = None
    """Format of the label files when --output is a folder. Left out: .nii.gz."""
    devices: Processes = 1
    """Divide the scans of a folder among so many GPUs, or processes on a processor."""
    overwrite: Switch = False
    """Replace files. Left out: a folder keeps what the same model made of the same scan."""

    def run(self) -> None:
        """Segment."""
        from backend import segment
        from backend.engine.signals import ending_at_once

        if _to_be_divided(self.devices):
            _in_processes(self.devices, self.device)
        with ending_at_once():
            segment.run(
                self.model,
                self.input,
                self.output,
                device=self.device,
                structures=self.structures,
                overwrite=self.overwrite,
                ending=self.ending,
            )


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Keep networks ready and segment on request: JSON lines in, JSON lines out, for programs."""

    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    idle_minutes: Annotated[float, arg(metavar="MINUTES")] = 15.0
    """End after so long without work."""
    model_memory_mb: Annotated[float, arg(metavar="MB")] = 4096.0
    """Memory for networks; beyond it the one longest unused is forgotten."""
    allow_second: Switch = False
    """Start even if another worker serves this device."""
    owner: Annotated[int | None, arg(metavar="PID", help_behavior_hint="")] = None
    """End with this process. Left out: with the one that started it."""

    def run(self) -> None:
        """Serve."""
        from backend import serve

        serve.run(
            device=self.device,
            idle_minutes=self.idle_minutes,
            model_memory_mb=self.model_memory_mb,
            allow_second=self.allow_second,
            owner=self.owner,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare segmentations with references: overlap and surface distances per organ and case."""

    prediction: Path
    """A label file or a folder of them."""
    reference: Path
    """A label file, a folder of them, or a labelled set."""
    output: OptionalPath = None
    """Folder for evaluation.csv and evaluation.json. Left out: the table on screen alone."""
    labels: OptionalPath = None
    """labels.json with names. Left out: found beside the reference."""
    tolerance_mm: Annotated[float, arg(metavar="MM")] = 2.0
    """Surfaces that lie no further apart than this count as equal in the surface Dice."""
    allow_unmatched: Switch = False
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
class Benchmark:
    """Compare pretrainings with random weights on equal terms; start again to go on."""

    plan: Annotated[Positional[Path], arg(metavar="PLAN.yaml")]
    """What to compare: data, methods, label counts, seeds (docs/benchmark.md)."""
    output: OptionalPath = None
    """Folder of tables, report and runs, which several processes may share; not with --check."""
    check: Switch = False
    """Tell what would be done and what of the data is missing; nothing is written."""
    device: Device = "auto"
    """Device to compute on; auto takes a GPU where there is one and says so."""
    processes: OptionalCount = None
    """So many processes share the arms. Left out: one for each GPU; on a processor as many as its
    cores allow, if the plan says how many threads one has, else one."""
    cache: OptionalPath = None
    """Folder of preprocessed scans. Left out: in --output."""
    publish: OptionalPath = None
    """Folder for plan, tables and pictures that tell of no path here, once all is done."""
    overrides: Settings = ()
    """One value over the plan, e.g. --set data.labelled=/scans/spleen; may be repeated."""

    def run(self) -> None:
        """Compare."""
        if self.check:
            from backend.benchmark.overview import show

            show(self.plan, self.overrides)
            return
        if self.output is None:
            raise UserError("No folder was given.", "Add --output DIR, or --check.")
        from backend.benchmark import runner

        runner.run(
            runner.Request(
                plan=self.plan,
                output=self.output,
                overrides=self.overrides,
                device=self.device,
                processes=self.processes,
                cache=self.cache,
                publish=self.publish,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the pretext methods: what each does, for clinicians and for engineers."""

    json: Switch = False
    """Print JSON for programs."""
    baselines: Switch = False
    """List the networks instead that are only trained from scratch, to compare with."""
    measure: Switch = False
    """Measure time and memory of a step of each tiny preset on this machine (about a minute)."""

    def run(self) -> None:
        """List."""
        from backend import describe

        describe.show_methods(as_json=self.json, baselines=self.baselines, measure=self.measure)


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Tell what a method with its settings is: parameters, cost, deviations from the paper."""

    method: OptionalName = None
    """Pretext method or network, see `backend methods`."""
    preset: OptionalName = None
    """Settings of the method. Left out: its first preset."""
    diff: Annotated[tuple[str, str] | None, arg(metavar="A B", help_behavior_hint="")] = None
    """Tell the settings in which two differ, each METHOD, METHOD/PRESET or a run folder."""
    json: Switch = False
    """Print JSON for programs."""
    measure: Switch = False
    """Take a few real steps on this machine, for time and memory."""
    overrides: Settings = ()
    """One setting over the preset, e.g. --set train.batch_size=4; may be repeated."""

    def run(self) -> None:
        """Describe."""
        from backend import describe

        if self.diff is not None:
            if self.method or self.preset or self.overrides or self.measure:
                raise UserError(
                    "--diff compares two recipes as they are.",
                    "Leave out --method, --preset, --set and --measure; name presets so: "
                    "--diff smit/tiny mip/tiny.",
                )
            describe.show_difference(*self.diff, as_json=self.json)
            return
        if self.method is None:
            raise UserError("No method was given.", "Add --method smit, or --diff smit mip.")
        describe.show_description(
            method=self.method,
            preset=self.preset,
            overrides=self.overrides,
            as_json=self.json,
            measure=self.measure,
        )


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn outside weights into an encoder file of ours, with a report of what matched."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """Weights as published (.pt, .pth or .safetensors)."""
    source: Annotated[Literal["smit", "monai"], arg(name="from")]
    """Where they come from."""
    output: Path
    """The .safetensors file to write."""
    merging: Literal["merging", "mergingv2", "merging_before_1_5"] = "merging"
    """How MONAI's network merged patches, which its weights do not tell."""
    approximate: Switch = False
    """Also convert what our encoder cannot be exactly (merging_before_1_5)."""
    overwrite: Switch = False
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
            approximate=self.approximate,
        )


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Ask a run to finish its step, save and stop; then end its whole process tree."""

    run_folder: Annotated[Path, arg(name="run")]
    """The run folder."""
    grace: Annotated[float, arg(metavar="SECONDS")] = 60.0
    """How long the run may take to stop by itself."""

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

    list: Switch = False
    """Show what it holds (done in any case)."""
    prune: Switch = False
    """Delete what --older-than-days, --recipe or --all choose."""
    older_than_days: Annotated[float | None, arg(metavar="DAYS", help_behavior_hint="")] = None
    """With --prune: entries that were not used for so long."""
    recipe: OptionalName = None
    """With --prune: entries of this recipe, as listed."""
    all: Switch = False
    """With --prune: every entry."""
    cache: OptionalPath = None
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
class Bench:
    """Time what must be fast side by side with the peer named for it, and print one table."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...")] = ()
    """Rows by name or number. Left out: all."""
    list: Switch = False
    """Show the rows and their goals; nothing is measured."""
    output: OptionalPath = None
    """JSON file, written anew after each row; what it holds of other rows stays."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto measures on the processor, and on a GPU where there is one."""
    repeats: Annotated[int, arg(metavar="N")] = 3
    """Measurements of each side, in turns."""
    full: Switch = False
    """Sizes of real work, which take far longer without a GPU."""
    json: Switch = False
    """Print JSON for programs."""

    def run(self) -> None:
        """Measure."""
        from backend.bench import run

        if self.list:
            run.show_rows()
            return
        run.run(
            self.names,
            output=self.output,
            device=self.device,
            repeats=self.repeats,
            full=self.full,
            as_json=self.json,
        )


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Tell whether this machine is ready: Python, packages, devices, memory, disk."""

    json: Switch = False
    """Print JSON for programs."""

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
    Annotated[Serve, subcommand("serve")],
    Annotated[Evaluate, subcommand("evaluate")],
    Annotated[Benchmark, subcommand("benchmark")],
    Annotated[Methods, subcommand("methods")],
    Annotated[Describe, subcommand("describe")],
    Annotated[Convert, subcommand("convert")],
    Annotated[Stop, subcommand("stop")],
    Annotated[Report, subcommand("report")],
    Annotated[CacheCommand, subcommand("cache")],
    Annotated[Bench, subcommand("bench")],
    Annotated[Doctor, subcommand("doctor")],
]


def main() -> None:
    """Run the command that was asked for and exit as `backend.errors` says."""
    tune_process()
    if sys.argv[1:] == ["--version"]:
        _say(f"backend {backend.__version__}")
        return
    command: Command = tyro.cli(
        Command,
        prog="backend",
        description="From a folder of CT and a handful of labels to a segmentation model. "
        "`backend COMMAND --help` tells the options of a command, `backend --version` the version.",
        config=(OmitSubcommandPrefixes, OmitArgPrefixes, FlagCreatePairsOff),
    )
    try:
        if not place().leads:
            _fall_silent()
        with _log_on_screen():
            command.run()
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as caught:
        if _reader_left(caught) or _stopped_with_leader(caught):
            return
        sys.exit(_tell(caught))


def _fall_silent() -> None:
    """Of processes that train together one speaks; it also tells the errors of the others."""
    say_nothing()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _stopped_with_leader(caught: BaseException) -> bool:
    """Whether this process has stopped on request beside the one that tells of it.

    As a failure it would let a launcher end that one before its report is written.
    """
    return not place().leads and isinstance(caught, Cancelled | Interrupted)


def _to_be_divided(devices: int) -> bool:
    """Whether this process is to start others, and is none of them."""
    if devices < 1:
        raise UserError(f"--devices {devices}: at least one is needed.", "Leave out --devices.")
    return devices > 1 and place().size == 1


def _in_processes(devices: int, device: str) -> NoReturn:
    from backend.launch import launch

    sys.exit(launch(devices, device=device))


def _reader_left(caught: BaseException) -> bool:
    """Whether whoever reads the output has seen enough, as `| head` has."""
    if not isinstance(caught, BrokenPipeError) or not hasattr(select, "poll"):
        return False
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    left = any(event & select.POLLERR for _, event in pipe.poll(0))
    if left:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


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


@contextmanager
def _log_on_screen() -> Iterator[None]:
    """Errors are told once, at the end; all else as it happens."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(
        lambda r: r.levelno < logging.ERROR and not getattr(r, TOLD_AT_THE_END, False)
    )
    log = logging.getLogger("backend")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _some_cases(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Without --cases all are taken; without a name behind it, none can be meant."""
    if names == ():
        raise UserError(
            "--cases names no case.", "Give names or patterns, or leave it out for all."
        )
    return names or ()


def _lengths(max_steps: int | None, epochs: int | None) -> tuple[str, ...]:
    given = {"train.max_steps": max_steps, "train.epochs": epochs}
    return tuple(f"{key}={value}" for key, value in given.items() if value is not None)


def _is_done(run: Path, kind: Literal["pretrain", "finetune"]) -> bool:
    """Whether a run that is to be resumed has nothing left to do."""
    from backend.engine.record import check_target, read_status

    check_target(run, kind=kind, resume=True)
    return bool(read_status(run)["state"] == "done")


def _told_done(run: Path, *, given: str) -> str:
    """That a run is done, where its report is, and how to train for longer."""
    from backend.engine.record import read_status

    status = read_status(run)
    return (
        f"Already done: {run}, step {status.get('step')} of {status.get('total_steps')}. "
        "Nothing was changed.\n"
        f"Report: {run / 'report.html'}\n"
        "Longer: its learning rate has come to the end; start a new run:\n"
        f"        backend {status['kind']} {given} --max-steps N --output NEW"
    )


def _best_probe_of(run: Path) -> str:
    """Where the encoder stands that did best in the probe, if one was made."""
    from backend.engine.record import read_status

    best = read_status(run).get("best")
    if not best:
        return ""
    told = f"linear probe {best['probe/linear']:.3f}, step {best['step']}"
    return f"Best:    {run / 'checkpoints' / 'best.safetensors'} ({told})\n"


_HARDLY_ANYTHING = 0.01
"""A mean Dice below this is that of a model which has not learnt to find anything."""


def _best_of(run: Path) -> str:
    """Which weights `segment` will take, and how good they were in validation."""
    from backend.engine.record import read_status

    best = read_status(run).get("best")
    if not best:
        return f"Model:  {run / 'checkpoints' / 'model.safetensors'} (not validated)\n"
    dice = best["val/dice_mean"]
    told = f"mean Dice {dice:.3f} on validation scans, step {best['step']}"
    if dice < _HARDLY_ANYTHING:
        told += (
            ":\n        hardly any structure was found yet. Train for longer, or look at "
            f"{run / 'previews'}."
        )
    return f"Model:  {run / 'checkpoints' / 'best.safetensors'}\nBest:   {told}\n"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
