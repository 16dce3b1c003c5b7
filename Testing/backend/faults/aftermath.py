"""What must hold after any fault, and again once the run has been resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cli_runner import Ended, records, status
from commands import Command, wait_for

from backend.engine.checkpoint import load_checkpoint
from backend.engine.record import read_status
from backend.weights import load_weights

_NAMES = re.compile(
    r"config\.json|status\.json|split\.json|metrics\.jsonl|log\.txt|report\.html|\.(lock|reserve)|stop"
    r"|index\.csv|index\.files\.jsonl|previews|checkpoints"
    r"|previews/step_\d{6}(_\w+)?\.(png|nrrd)"
    r"|checkpoints/(last\.pt|(best|encoder|model)\.safetensors)"
)
_PART = re.compile(r"\.part-\d+-[0-9a-f]{8}-")
_TIMES = {"time_s", "volumes_per_s", "memory_mb"}


def numbers(run: Path) -> list[dict[str, Any]]:
    """The record without what differs from one time to another."""
    return [{k: v for k, v in r.items() if k not in _TIMES} for r in records(run)]


def assert_told(done: Ended, *, code: int, words: tuple[str, ...] = ()) -> None:
    """The exit code is the one that is documented, and one or two lines say what and why."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err, done.err
    if code > 0:
        assert 1 <= len(done.told.splitlines()) <= 2, done.told
        # The cure is a sentence behind the message; who stopped something needs none.
        stopped = done.told.startswith("Stopped by ")
        assert stopped or ". " in done.told or "? " in done.told, done.told
    for word in words:
        assert word in done.told, done.told


def assert_alone(command: Command) -> None:
    """Nothing that a command started outlives it, but for the moment that an end takes."""
    wait_for(lambda: not command.family(), what="the end of all processes")


def assert_whole(run: Path, *, killed: bool = False) -> None:
    """No file stands half-written under its final name, and none is there that nobody knows.

    Args:
        run: the run folder.
        killed: its process had no time to tidy up; parts of files are there until it is resumed.
    """
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        part = killed and _PART.match(path.name)
        assert part or _NAMES.fullmatch(name), name
    for file in ("config.json", "status.json", "split.json"):
        if (run / file).exists():
            json.loads((run / file).read_text("utf-8"))
    if (run / "checkpoints" / "last.pt").exists():
        load_checkpoint(run / "checkpoints" / "last.pt")
    for file in (run / "checkpoints").glob("[!.]*.safetensors"):
        load_weights(file)


def assert_state(run: Path, *, state: str, step: int | None = None) -> None:
    """status.json tells the truth, or what is known once its process is dead."""
    told = read_status(run)
    assert told["state"] == state, told
    if state == "failed":
        assert told["error"]["message"]
        assert told["error"]["hint"]
    if step is not None:
        assert told["step"] == step


def kept_step(run: Path) -> int:
    """The step that resuming begins at."""
    last = run / "checkpoints" / "last.pt"
    return int(load_checkpoint(last)["step"]) if last.exists() else 0


def assert_little_lost(run: Path, *, every: int) -> None:
    """Only the steps since the last checkpoint that was due are lost."""
    made = len(records(run))
    # A checkpoint may be due after the last step that was recorded, and be what broke off.
    assert kept_step(run) >= (made - 1) // every * every


def assert_same_run(run: Path, reference: Path) -> None:
    """All numbers and weights of a run are those of the undisturbed one, to the last bit."""
    assert numbers(run) == numbers(reference)
    for file in (reference / "checkpoints").glob("*.safetensors"):
        assert (run / "checkpoints" / file.name).read_bytes() == file.read_bytes(), file.name
    kept = status(run)
    assert (kept["state"], kept["step"]) == ("done", status(reference)["step"])
    assert kept["error"] is None
    assert_whole(run)
