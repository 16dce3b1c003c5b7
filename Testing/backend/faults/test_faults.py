"""Faults at every moment of a run: what is told, what is lost, and that it goes on exactly.

`pytest -m slow Testing/backend/faults` runs the whole matrix. A further kind of process (ranks,
their launcher) is a further `Phase`: what must hold afterwards is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from checks import (
    assert_alone,
    assert_little_lost,
    assert_same_run,
    assert_state,
    assert_told,
    assert_whole,
)
from cli_runner import Material, make_material
from commands import Command, Commands
from injection import Fault

STEPS, EVERY = 6, 2
_SMALL = (
    *("--preset", "tiny", "--device", "cpu", "--set", "preprocess.spacing_mm=[6, 6, 6]"),
    *("--set", "method.encoder.embed_dim=4", "--set", "method.encoder.heads=[1, 1, 2]"),
    *("--set", "data.workers=1", "--set", f"train.checkpoint_every_steps={EVERY}"),
    *("--set", "train.batch_size=2", "--max-steps", STEPS),
)
PRETRAIN = (
    *("pretrain", "--method", "simmim", *_SMALL),
    *("--set", "views.region=40", "--set", "views.main.size=32"),
)
FINETUNE = (
    *("finetune", "--method", "simmim", *_SMALL, "--set", "decoder.width=4"),
    *("--set", "crop=32", "--set", "crops_per_scan=1"),
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What goes wrong, and how a training run then ends.

    Attributes:
        do: see `Fault`.
        code: documented exit code.
        state: that status.json then reads as.
        words: of the message.
        argument: see `Fault`.
        again: whether it happens each time from then on.
    """

    do: str
    code: int
    state: str
    words: tuple[str, ...] = ()
    argument: str = ""
    again: bool = False


KINDS = {
    "killed": Kind(do="SIGKILL", code=-9, state="interrupted"),
    "terminated": Kind(do="SIGTERM", code=5, state="interrupted", words=("SIGTERM", "--resume")),
    "preempted": Kind(do="SIGUSR1", code=5, state="interrupted", words=("SIGUSR1", "--resume")),
    "ctrl-c": Kind(do="SIGINT", code=3, state="cancelled", words=("keyboard", "--resume")),
    "at once": Kind(do="SIGTERM, SIGTERM", code=5, state="interrupted", words=("SIGTERM",)),
    "full": Kind(do="full", code=4, state="failed", words=("full", "Free ")),
    "cut off": Kind(
        do="limit files", code=4, state="failed", words=("larger", "ulimit"), argument="500"
    ),
    # Not even status.json can be written: it reads as what is known of a dead process.
    "read-only": Kind(
        do="read-only", code=2, state="interrupted", words=("Read-only", "rights"), again=True
    ),
}
SIGNALS = ("killed", "terminated", "preempted", "ctrl-c", "at once")
DISK = ("full", "read-only")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A moment of a command, by the file that it opens then.

    Attributes:
        words: the command.
        path: see `Fault`.
        mode: see `Fault`.
        at: see `Fault`.
        kinds: what can go wrong then.
    """

    words: tuple[object, ...] = PRETRAIN
    path: str
    mode: str = ""
    at: int = 1
    kinds: tuple[str, ...] = (*SIGNALS, *DISK)


PHASES = {
    "cache build": Phase(path=r"\.b2nd\.\w+\.tmp$", at=2, kinds=(*SIGNALS, "full")),
    "index": Phase(path=r"\.part-.*-index\.csv$", mode="w", kinds=SIGNALS),
    "starting": Phase(path=r"\.part-.*-status\.json$", mode="w", at=3),
    "crop": Phase(path=r"\.b2nd$", mode="r", at=9, kinds=SIGNALS),
    "first step": Phase(path=r"metrics\.jsonl$", mode="a"),
    "between checkpoints": Phase(path=r"metrics\.jsonl$", mode="a", at=3),
    "checkpoint begun": Phase(path=r"\.part-.*-last\.pt$", mode="w", at=2),
    "checkpoint": Phase(path=r"\.part-.*-last\.pt$", mode="w", at=2, kinds=("cut off",)),
    "checkpoint flushed": Phase(path=r"\.part-.*-last\.pt$", mode="+", at=2),
    "weights": Phase(path=r"\.part-.*-encoder\.safetensors$", at=2),
    "preview": Phase(path=r"\.part-.*-step_\d+\.png$", mode="w"),
    "report": Phase(path=r"report\.html$", mode="w", kinds=("killed",)),
    "validation": Phase(words=FINETUNE, path=r"\.part-.*-best\.safetensors$"),
    "labelled crop": Phase(words=FINETUNE, path=r"\.label\.b2nd$", mode="r", at=5, kinds=SIGNALS),
    "model": Phase(words=FINETUNE, path=r"\.part-.*-model\.safetensors$", at=2),
}
CELLS = [(phase, kind) for phase, found in PHASES.items() for kind in found.kinds]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where commands run, and undisturbed runs to compare with."""

    commands: Commands
    folder: Path
    material: Material
    index: Path

    def line(self, words: tuple[object, ...], run: Path, *, cache: Path) -> tuple[object, ...]:
        """A whole command line."""
        data = self.material.labelled if words[0] == "finetune" else self.index
        init = ("--init", "none") if words[0] == "finetune" else ()
        return (*words, "--data", data, "--output", run, "--cache", cache, *init)

    def reference(self, words: tuple[object, ...]) -> Path:
        """The undisturbed run of a command, made once."""
        run = self.folder / f"undisturbed_{words[0]}"
        if not run.exists():
            done = self.commands.run(*self.line(words, run, cache=self.cache))
            assert done.code == 0, done.err
        return run

    @property
    def cache(self) -> Path:
        """Shared by all runs that leave it alone."""
        return self.folder / "cache"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    commands = Commands(folder / "commands")
    material = make_material(tmp_path_factory)
    index = folder / "index.csv"
    assert commands.run("scan", material.unlabelled, "--output", index).code == 0
    yield Place(commands=commands, folder=folder, material=material, index=index)
    commands.close()


def fault_of(phase: Phase, kind: Kind, *, folder: Path, run: Path) -> Fault:
    """The fault of a cell of the matrix."""
    return Fault(
        do=kind.do,
        path=phase.path,
        mode=phase.mode,
        at=phase.at,
        argument=str(run) if kind.do == "read-only" else kind.argument,
        marker="" if kind.again else str(folder / "happened"),
    )


def assert_ended(command: Command, run: Path, kind: Kind) -> None:
    """All that must hold after a fault."""
    done = command.ended()
    assert_told(done, code=kind.code, words=kind.words)
    assert_alone(command)
    if run.exists():
        assert_state(run, state=kind.state)
        assert_whole(run, killed=kind.code < 0)
        assert_little_lost(run, every=EVERY)


@pytest.mark.slow
@pytest.mark.parametrize(("phase_name", "kind_name"), CELLS)
def test_after_any_fault_at_any_moment_a_run_goes_on_as_if_nothing_had_been(
    phase_name: str, kind_name: str, tmp_path: Path, place: Place
) -> None:
    phase, kind = PHASES[phase_name], KINDS[kind_name]
    reference = place.reference(phase.words)
    run = tmp_path / "run"
    cache = tmp_path / "cache" if phase_name == "cache build" else place.cache
    line = place.line(phase.words, run, cache=cache)
    fault = fault_of(phase, kind, folder=tmp_path, run=run)
    if kind_name == "killed" and phase_name == "report":
        # The run itself is done by then.
        kind = replace(kind, state="done")
    assert_ended(place.commands.start(*line, faults=[fault]), run, kind)
    resumed = place.commands.run(*line, "--resume")
    assert_told(resumed, code=0)
    assert_same_run(run, reference)
