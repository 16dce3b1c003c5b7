"""Commands that train: `pretrain` and `finetune`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from backend.cli.dividing import in_processes, to_be_divided
from backend.cli.options import (
    Device,
    Names,
    OptionalCount,
    OptionalName,
    OptionalPath,
    Processes,
    Settings,
    Switch,
)
from backend.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Options of `backend pretrain`."""

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
            from backend import dry_run

            to_be_divided(self.devices)
            dry_run.run(request, as_json=self.json, processes=self.devices)
            return
        if self.resume and _is_done(output, "pretrain"):
            pretrain.resolve(request)
            _say(_told_done(output, given=f"--method NAME --data PATH --init {output}"))
            return
        if to_be_divided(self.devices):
            pretrain.check(request, processes=self.devices)
            in_processes(self.devices, self.device)
        run = pretrain.run(request)
        _say(
            f"Encoder: {run / 'checkpoints' / 'encoder.safetensors'}\n"
            f"{_best_probe_of(run)}"
            f"Report:  {run / 'report.html'}\n"
            f"Next:    backend finetune --init {run} --data LABELLED --output RUN"
        )


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Options of `backend finetune`."""

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
        if to_be_divided(self.devices):
            finetune.check(request, processes=self.devices)
            in_processes(self.devices, self.device)
        run = finetune.run(request)
        if not self.folds:
            _say(
                f"{_best_of(run)}"
                f"Report: {run / 'report.html'}\n"
                f"Next:   backend segment --model {run} --input SCAN --output LABELS.nii.gz"
            )


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
    """That a run is done, where its report is, and how to train for longer.

    Its process may have been killed over its last file, the report: that is then made up for.
    """
    from backend.engine.record import read_status, remove_leftovers
    from backend.report import write_run_report

    status = read_status(run)
    remove_leftovers(run)
    changed = "Nothing was changed."
    if not (run / "report.html").exists():
        write_run_report(run)
        changed = "Its report, which it lacked, was made."
    return (
        f"Already done: {run}, step {status.get('step')} of {status.get('total_steps')}. "
        f"{changed}\n"
        f"Report: {run / 'report.html'}\n"
        "Longer: its learning rate has come to the end; start a new run:\n"
        f"        backend {status['kind']} {given} --max-steps N --output NEW"
    )


def _best_probe_of(run: Path) -> str:
    """Where the encoder stands that did best in the probe, if one was made."""
    from backend.engine.record import read_metrics, read_status

    best = read_status(run).get("best")
    if not best:
        return ""
    scores = {best["step"]: best["probe/linear"]} | {
        r["step"]: r["probe/linear"]
        for r in read_metrics(run)
        if r["step"] == 0 and r.get("probe/linear")
    }
    told = ", ".join(
        f"{score:.3f} {f'at step {step}' if step else 'before training'}"
        for step, score in scores.items()
    )
    best_file = run / "checkpoints" / "best.safetensors"
    gained = "" if best["step"] else "; nothing is gained yet"
    return f"Best:    {best_file} (linear probe {told}{gained})\n"


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
