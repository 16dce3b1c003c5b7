from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.engine.checkpoint import load_checkpoint, save_checkpoint
from backend.errors import BackendError, UserError


def _state() -> dict[str, Any]:
    return {"step": 3, "module": {"a": torch.arange(5.0), "b": [1, None, "x"]}, "best": None}


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file grow further, as a full disk would."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, _state())
    state = load_checkpoint(path)
    assert torch.equal(state["module"].pop("a"), torch.arange(5.0))
    assert state == {"schema": 1, "step": 3, "module": {"b": [1, None, "x"]}, "best": None}
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_the_last_checkpoint_stays_when_the_next_one_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, _state())
    before = path.read_bytes()
    with _files_of_at_most(2**20), pytest.raises((BackendError, RuntimeError)):
        save_checkpoint(path, {"large": torch.zeros(2**20)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_that_finds_no_room_is_told_as_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with _files_of_at_most(2**20), pytest.raises(BackendError) as caught:
        save_checkpoint(path, {"large": torch.zeros(2**20)})
    assert str(path) in caught.value.message


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_torn_checkpoint_is_told_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, _state())
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(UserError, match="is damaged") as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.message


def test_a_checkpoint_with_a_single_wrong_bit_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"module": {"a": torch.zeros(1000)}})
    data = bytearray(path.read_bytes())
    data[data.index(bytes(4000)) + 2000] ^= 1
    path.write_bytes(data)
    # torch itself reads it.
    assert torch.load(path, weights_only=True)["module"]["a"].count_nonzero() == 1
    with pytest.raises(UserError, match="another checksum"):
        load_checkpoint(path)


def test_a_missing_or_newer_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_checkpoint(tmp_path / "last.pt")
    torch.save({"schema": 99}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="version 99, this program reads 1"):
        load_checkpoint(tmp_path / "last.pt")
    torch.save(torch.zeros(2), tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt"):
        load_checkpoint(tmp_path / "last.pt")


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"schema": 1, "module": _Trap()}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "sprung").exists()
