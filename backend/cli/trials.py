"""Commands that try out methods, this program or this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from backend.cli.dividing import require_count
from backend.cli.options import Device, OptionalCount, OptionalPath, Settings, Switch
from backend.errors import UserError

_MOST_PROCESSES = 1024
"""More than any machine has cores to spare for."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Options of `backend demo`."""

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
class Benchmark:
    """Options of `backend benchmark`."""

    plan: Annotated[Positional[Path], arg(metavar="PLAN.yaml")]
    """What to compare: data, methods, label counts, seeds (docs/benchmark.md)."""
    output: OptionalPath = None
    """Folder of tables, report and runs, which several processes may share; not with --check."""
    check: Switch = False
    """Tell what would be done and what of the data is missing; nothing is written."""
    rehearse: Switch = False
    """Do ten steps of each start in a folder inside --output, and tell how long all would take."""
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
        require_count("--processes", self.processes, most=_MOST_PROCESSES)
        if self.check and self.rehearse:
            raise UserError("--check and --rehearse are two things.", "Give one of them.")
        if self.check:
            from backend.benchmark.overview import show

            show(self.plan, self.overrides)
            return
        if self.output is None:
            raise UserError("No folder was given.", "Add --output DIR, or --check.")
        from backend.benchmark import rehearsal, runner

        request = runner.Request(
            plan=self.plan,
            output=self.output,
            overrides=self.overrides,
            device=self.device,
            processes=self.processes,
            cache=self.cache,
            publish=self.publish,
        )
        if self.rehearse:
            rehearsal.run(request)
        else:
            runner.run(request)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Options of `backend bench`."""

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
    """Options of `backend doctor`."""

    json: Switch = False
    """Print JSON for programs."""

    def run(self) -> None:
        """Look."""
        from backend import doctor

        doctor.run(as_json=self.json)
