"""Faults at every moment of a run: what is told, what is lost, and that it goes on exactly.

`pytest -m slow Testing/backend/faults` runs the whole matrix.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from aftermath import (
    assert_alone,
    assert_little_lost,
    assert_same_run,
    assert_state,
    assert_told,
    assert_whole,
    kept_step,
)
from cli_runner import Ended, Material, phantom, records, status
from commands import Command, Commands, wait_for
from injection import Fault, files, flip_bit

from backend.data.phantom.cohort import write_image

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
    *("--set", "crop=32", "--set", "crops_per_scan=1", "--set", "validate_every_epochs=2"),
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
    "full": Kind(do="full", code=4, state="failed", words=("Free ",)),
    "cut off": Kind(
        do="limit files", code=4, state="failed", words=("larger", "ulimit"), argument="20000"
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
    "beginning": Phase(path=r"\.part-.*-status\.json$", mode="w"),
    "settings": Phase(path=r"\.part-.*-config\.json$", mode="w"),
    "starting": Phase(path=r"\.part-.*-status\.json$", mode="w", at=3),
    "crop": Phase(path=r"\.b2nd$", mode="r", at=9, kinds=SIGNALS),
    "first step": Phase(path=r"metrics\.jsonl$", mode="a"),
    "between checkpoints": Phase(path=r"metrics\.jsonl$", mode="a", at=3),
    "checkpoint begun": Phase(path=r"\.part-.*-last\.pt$", mode="w", at=2),
    "checkpoint": Phase(path=r"\.part-.*-last\.pt$", mode="w", at=2, kinds=("cut off",)),
    "checkpoint flushed": Phase(path=r"\.part-.*-last\.pt$", mode="+", at=2),
    "weights": Phase(path=r"\.part-.*-encoder\.safetensors$", at=2),
    "preview": Phase(
        words=(*PRETRAIN, "--set", "train.preview_every_steps=5"),
        path=r"\.part-.*-step_\d+\.png$",
        mode="w",
    ),
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
        run = self.folder / f"undisturbed_{words[0]}{'_in_two' * (words[-2:] == TWO)}"
        if not run.exists():
            done = self.commands.run(*self.line(words, run, cache=self.cache))
            assert done.code == 0, done.err
        return run

    def cached(self) -> Path:
        """The cache, with everything in it."""
        self.reference(PRETRAIN)
        return self.cache

    @property
    def cache(self) -> Path:
        """Shared by all runs that leave it alone."""
        return self.folder / "cache"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    commands = Commands(folder / "commands")
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


def resume(run: Path) -> tuple[str, ...]:
    """What continues a run; one without settings never began."""
    return ("--resume",) if (run / "config.json").exists() else ()


def assert_ended(command: Command, run: Path, kind: Kind) -> None:
    """All that must hold after a fault."""
    done = command.ended()
    assert_told(done, code=kind.code, words=kind.words)
    assert_alone(command)
    if (run / "status.json").exists():
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
    resumed = place.commands.run(*line, *resume(run))
    assert_told(resumed, code=0)
    assert_same_run(run, reference)


RANKS = {
    "leader": ("0", Kind(do="SIGKILL", code=1, state="interrupted", words=("SIGKILL",))),
    "follower": ("1", Kind(do="SIGKILL", code=1, state="failed", words=("without a word",))),
    "leader's disk": (
        "0",
        Kind(do="full", code=4, state="failed", words=("Free ",)),
    ),
}
RANK_PHASES = {
    "joining": (Phase(path=r"\.b2nd$", mode="r", at=1), ("follower",)),
    "crop": (Phase(path=r"\.b2nd$", mode="r", at=9), ("leader", "follower")),
    "settings": (PHASES["settings"], ("leader", "leader's disk")),
    "first step": (PHASES["first step"], ("leader", "leader's disk")),
    "checkpoint begun": (PHASES["checkpoint begun"], ("leader", "leader's disk")),
    "checkpoint flushed": (PHASES["checkpoint flushed"], ("leader",)),
    "weights": (PHASES["weights"], ("leader",)),
}
TWO = ("--devices", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase_name", "who"),
    [(name, who) for name, (_, found) in RANK_PHASES.items() for who in found],
)
def test_whichever_of_two_processes_a_fault_meets_both_end_and_the_run_goes_on(
    phase_name: str, who: str, tmp_path: Path, place: Place
) -> None:
    (phase, _), (rank, kind) = RANK_PHASES[phase_name], RANKS[who]
    words = (*PRETRAIN, *TWO)
    reference = place.reference(words)
    run = tmp_path / "run"
    line = place.line(words, run, cache=place.cached())
    fault = replace(fault_of(phase, kind, folder=tmp_path, run=run), rank=rank)
    command = place.commands.start(*line, faults=[fault])
    done = command.ended()
    assert (tmp_path / "happened").exists(), done.err
    assert done.code == kind.code, done.err
    assert "Traceback" not in done.err
    assert all(word in done.err for word in kind.words), done.err
    assert_alone(command)
    if (run / "config.json").exists():
        assert_state(run, state=kind.state)
        assert_whole(run, killed=True)
        assert_little_lost(run, every=EVERY)
    assert_told(place.commands.run(*line, *resume(run)), code=0)
    assert_same_run(run, reference)


FAST = (
    ("beginning", "full"),
    ("first step", "ctrl-c"),
    ("checkpoint", "cut off"),
    ("between checkpoints", "killed"),
    ("between checkpoints", "preempted"),
    ("weights", "read-only"),
    ("checkpoint flushed", "at once"),
    ("between checkpoints", "terminated"),
)
"""Cells of the matrix for the fast suite, as they follow each other in one run."""


def test_a_run_that_meets_one_fault_after_the_other_ends_as_if_nothing_had_been(
    tmp_path: Path, place: Place
) -> None:
    run = tmp_path / "run"
    line = place.line(PRETRAIN, run, cache=place.cache)
    steps = []
    for number, (phase_name, kind_name) in enumerate(FAST):
        # What happened before has taken the run past its first checkpoint or not.
        phase, kind = replace(PHASES[phase_name], at=1), KINDS[kind_name]
        (tmp_path / str(number)).mkdir()
        fault = fault_of(phase, kind, folder=tmp_path / str(number), run=run)
        command = place.commands.start(*line, *resume(run), faults=[fault])
        assert_ended(command, run, kind)
        steps.append(kept_step(run))
    assert steps == sorted(steps)
    assert_told(place.commands.run(*line, "--resume"), code=0)
    assert_same_run(run, place.reference(PRETRAIN))


def with_fault(
    place: Place, line: tuple[object, ...], fault: Fault, *, folder: Path
) -> tuple[Command, Ended]:
    """A command with one fault that happens once, to its end."""
    faults = [replace(fault, marker=str(folder / "happened"))]
    command = place.commands.start(*line, faults=faults)
    done = command.ended()
    assert (folder / "happened").exists(), done.err
    assert_alone(command)
    return command, done


CROP = r"\.b2nd$"


@pytest.mark.parametrize(
    ("do", "word", "form"),
    [
        ("remove", "removed", "compressed"),
        ("flip", "damaged", "compressed"),
        ("truncate", "damaged", "compressed"),
        ("truncate", "damaged", "plain"),
    ],
)
def test_a_cache_entry_that_is_spoilt_under_way_is_named_and_made_anew(
    do: str, word: str, form: str, tmp_path: Path, place: Place
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(place.cached(), cache)
    line = (*place.line(PRETRAIN, run, cache=cache), "--set", f"data.cache_form={form}")
    end = {"compressed": "b2nd", "plain": "npy"}[form]
    fault = Fault(do=do, path=rf"\.{end}$", mode="r", at=9, argument=f"{cache}/*/*[!l].{end}")
    _, done = with_fault(place, line, fault, folder=tmp_path)
    assert_told(done, code=2, words=(str(cache), word, "--resume"))
    assert_state(run, state="failed")
    # What was learnt until then is kept.
    assert kept_step(run) == len(records(run))
    assert_told(place.commands.run(*line, "--resume"), code=0)
    assert_same_run(run, place.reference(PRETRAIN))


def test_a_spoilt_cache_entry_is_found_before_training_and_made_anew(
    tmp_path: Path, place: Place
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(place.cached(), cache)
    for entry in files(f"{cache}/*/*.b2nd"):
        flip_bit(entry)
    done = place.commands.run(*place.line(PRETRAIN, run, cache=cache))
    assert_told(done, code=0)
    assert "damaged and is made anew" in done.err
    assert_same_run(run, place.reference(PRETRAIN))


def test_a_scan_that_vanishes_before_it_is_cached_is_told_and_cannot_go_missing_by_resuming(
    tmp_path: Path, place: Place
) -> None:
    scans, run = tmp_path / "scans", tmp_path / "run"
    shutil.copytree(place.material.unlabelled, scans)
    lost = scans / "plain.nrrd"
    line = (*PRETRAIN, "--data", scans, "--output", run, "--cache", tmp_path / "cache")
    fault = Fault(do="remove", path=r"\.b2nd\.\w+\.tmp$", argument=str(lost))
    _, done = with_fault(place, line, fault, folder=tmp_path)
    assert_told(done, code=0)
    assert "Left out" in status(run)["warning"]
    assert status(run)["scans"]["training"] == 2
    again = place.commands.run(*line, "--resume")
    assert "Already done" in again.out


@pytest.mark.parametrize("waits", [True, False], ids=["comes back", "stays away"])
def test_a_disk_that_does_not_answer_is_told_with_the_scan_that_is_waited_for(
    waits: bool, tmp_path: Path, place: Place
) -> None:
    run, answer = tmp_path / "run", tmp_path / "answer"
    patience = ("--set", "data.patience_s=0.2")
    line = (*place.line(PRETRAIN, run, cache=place.cached()), *patience)
    fault = Fault(do="stall", path=CROP, mode="r", at=9, argument=str(answer))
    command = place.commands.start(*line, faults=[replace(fault, marker=str(tmp_path / "once"))])
    wait_for(lambda: run.exists() and warned(run), what="a warning")
    assert re.search(r"No batch has come for \d+ s: \S+ is being read by reader 1", warned(run))
    assert status(run)["state"] == "running"
    if waits:
        answer.touch()
        assert_told(command.ended(), code=0)
        assert status(run)["warning"] is None
    else:
        done = command.ended()
        assert_told(done, code=4, words=("No batch", "reader 1", "data.patience_s=0.2"))
        assert_alone(command)
        assert_state(run, state="failed")
        assert_told(place.commands.run(*line, "--resume"), code=0)
    assert_same_run(run, place.reference(PRETRAIN))


def warned(run: Path) -> str:
    """The warning in status.json, once it is there."""
    return status(run).get("warning") or "" if (run / "status.json").exists() else ""


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path, place: Place) -> None:
    run, scans = tmp_path / "run", tmp_path / "scans"
    for number in range(4):
        ct, _ = phantom(30 + number)
        write_image(scans / f"ct_{number}.nrrd", ct)
    line = (*PRETRAIN, "--data", scans, "--output", run, "--cache", tmp_path / "cache")
    fault = Fault(do="SIGKILL", path=r"\.b2nd\.\w+\.tmp$")
    command, done = with_fault(place, line, fault, folder=tmp_path)
    assert_told(done, code=0)
    assert status(run)["scans"]["training"] == 4
    assert "Left out" not in done.err
    assert not list((tmp_path / "cache").glob("*/.*.tmp")) or command.code == 0


HUNGRY = (
    *(*PRETRAIN, "--max-steps", 2, "--set", "train.batch_size=32"),
    *("--set", "views.region=64", "--set", "views.main.size=64"),
)
ROOM_MIB = "400"
"""More memory than one or two samples need at a time, and less than thirty-two."""


@pytest.mark.slow
def test_a_batch_that_memory_does_not_take_is_told_or_cut_into_parts_of_equal_losses(
    tmp_path: Path, place: Place
) -> None:
    fault = Fault(do="limit memory", path=CROP, mode="r", at=4, argument=ROOM_MIB)
    lines = {
        name: place.line(words, tmp_path / name, cache=place.cached())
        for name, words in {
            "roomy": HUNGRY,
            "fails": HUNGRY,
            "shrinks": (*HUNGRY, "--set", "train.on_out_of_memory=shrink"),
        }.items()
    }
    assert_told(place.commands.run(*lines["roomy"]), code=0)
    for name in ("fails", "shrinks"):
        (tmp_path / f"{name}_fault").mkdir()
        _, done = with_fault(place, lines[name], fault, folder=tmp_path / f"{name}_fault")
        if name == "fails":
            assert_told(
                done, code=4, words=("emory", "train.batch_size=32", "train.accumulate", "=shrink")
            )
            assert_state(tmp_path / name, state="failed")
        else:
            assert_told(done, code=0)
    told = status(tmp_path / "shrinks")
    assert told["accumulate"] in (2, 4, 8, 16)
    assert f"train.accumulate={told['accumulate']}" in told["warning"]
    assert told["warning"] in (tmp_path / "shrinks" / "log.txt").read_text("utf-8")
    for one, other in zip(*(records(tmp_path / n) for n in ("roomy", "shrinks")), strict=True):
        assert one["loss/total"] == pytest.approx(other["loss/total"], rel=1e-5)


def outputs(place: Place) -> dict[str, tuple[object, ...]]:
    """Commands that train nothing and write one file; it is named last."""
    model = place.reference(FINETUNE)
    return {
        "scan": ("scan", place.material.unlabelled, "--output", "index.csv"),
        "segment": (
            *("segment", "--model", model, "--input", place.material.oblique, "--device", "cpu"),
            *("--output", "labels.nii.gz"),
        ),
    }


MOMENTS = {
    ("scan", "reading"): Phase(path=r"\.nii\.gz$", mode="r", kinds=SIGNALS),
    ("scan", "writing"): Phase(path=r"\.part-.*-index\.csv$", mode="w"),
    ("segment", "reading"): Phase(path=r"oblique\.nii\.gz$", mode="r", kinds=SIGNALS),
    ("segment", "writing"): Phase(path=r"\.part-.*-labels\.nii\.gz$", mode="+"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "kind_name"), [(m, kind) for m, phase in MOMENTS.items() for kind in phase.kinds]
)
def test_a_scan_or_a_segmentation_is_written_whole_or_not_at_all(
    moment: tuple[str, str], kind_name: str, tmp_path: Path, place: Place
) -> None:
    phase, kind = MOMENTS[moment], KINDS[kind_name]
    *words, name = outputs(place)[moment[0]]
    whole, torn = tmp_path / "whole" / str(name), tmp_path / "torn" / str(name)
    assert_told(place.commands.run(*words, whole), code=0)
    fault = fault_of(phase, kind, folder=tmp_path, run=torn.parent)
    command = place.commands.start(*words, torn, faults=[fault])
    done = command.ended()
    assert_alone(command)
    # A stop that comes when the result is being written comes too late.
    if done.code != 0:
        assert_told(done, code=kind.code)
        assert not torn.exists()
        assert_told(place.commands.run(*words, torn), code=0)
    assert torn.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
def test_a_run_that_is_killed_at_any_time_goes_on_exactly(
    number: int, tmp_path: Path, place: Place
) -> None:
    run = tmp_path / "run"
    line = place.line(PRETRAIN, run, cache=place.cached())
    # Not at a file of ours but at any that is opened, somewhere in the run.
    at = int(np.random.default_rng(number).integers(1, 400))
    fault = Fault(do="SIGKILL", path="", at=at, marker=str(tmp_path / "happened"))
    done = place.commands.run(*line, faults=[fault])
    assert done.code == (-9 if (tmp_path / "happened").exists() else 0)
    assert_told(place.commands.run(*line, *resume(run)), code=0)
    assert_same_run(run, place.reference(PRETRAIN))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, with room for a run without its report."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs the rights of an administrator")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "mode", "at", "left"),
    [
        (r"\.part-.*-last\.pt$", "w", 3, 40_000),
        (r"\.part-.*-step_\d+\.png$", "w", 1, 0),
        (r"metrics\.jsonl$", "a", 3, 0),
        (r"\.part-.*-status\.json$", "w", 3, 0),
    ],
)
def test_a_disk_that_fills_up_under_way_loses_nothing_once_there_is_room_again(
    path: str, mode: str, at: int, left: int, small_disk: Path, place: Place, tmp_path: Path
) -> None:
    run = small_disk / "run"
    line = place.line(PRETRAIN, run, cache=place.cached())
    fault = Fault(do="fill disk", path=path, mode=mode, at=at, argument=str(left))
    _, done = with_fault(place, line, fault, folder=tmp_path)
    assert_told(done, code=4, words=(str(run), "full"))
    for ballast in files(f"{small_disk}/**/ballast"):
        ballast.unlink()
    assert_whole(run)
    assert_told(place.commands.run(*line, *resume(run)), code=0)
    assert_same_run(run, place.reference(PRETRAIN))


def test_a_clock_that_jumps_by_years_changes_nothing_but_what_is_shown(
    tmp_path: Path, place: Place
) -> None:
    if place.commands.clock is None:
        pytest.skip("a clock that jumps needs a C compiler")
    run = tmp_path / "run"
    line = place.line(PRETRAIN, run, cache=tmp_path / "cache")
    done = place.commands.run(*line, SSL_TEST_CLOCK="1")
    assert_told(done, code=0)
    shown = {status(run)["started"][:4], status(run)["updated"][:4]}
    assert str(datetime.now(UTC).year) not in shown
    times = [record["time_s"] for record in records(run)]
    assert times == sorted(times)
    assert 0 < times[-1] < 1000
    assert_same_run(run, place.reference(PRETRAIN))
