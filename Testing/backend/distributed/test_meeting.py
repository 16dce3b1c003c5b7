"""How processes find each other: what is missing or wrong is told, and waiting can be ended."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cli_runner import LIMIT_S, backend, ended, started, wait_until

from backend.engine.distributed import Place, joined
from backend.errors import NotMet

ALONE = {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}
LEADER, FOLLOWER = ALONE | {"RANK": "0"}, ALONE | {"RANK": "1"}


def meeting_at(port: object) -> dict[str, str]:
    return {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def words(folder: Path) -> tuple[object, ...]:
    """What a follower does not look at, and a leader only once all are there."""
    return ("pretrain", "--method", "smit", "--data", folder, "--output", folder / "run")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody at a port who accepts and says nothing."""
    with socket.create_server(("localhost", 0)) as server:
        server.settimeout(LIMIT_S)
        yield server


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({}, "Process 1 of 2 cannot meet the others: MASTER_ADDR and MASTER_PORT missing"),
        ({"MASTER_PORT": "29500"}, "Process 1 of 2 cannot meet the others: MASTER_ADDR missing"),
        (meeting_at("http"), "MASTER_PORT=http is no port."),
        (meeting_at(65536), "MASTER_PORT=65536 is no port."),
    ],
)
def test_what_a_meeting_lacks_is_told_at_once(
    known: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotMet, match=f"^{told}.* [Ee]xport "), joined(Place(rank=1, size=2)):
        pytest.fail("nobody was met")


def test_a_process_that_has_not_met_the_one_that_leads_speaks_for_itself(tmp_path: Path) -> None:
    done = backend(*words(tmp_path), env=FOLLOWER | {"MASTER_ADDR": "", "MASTER_PORT": ""})
    assert (done.code, done.out) == (2, "")
    assert done.err == f"\nbackend: {done.told}\n"
    assert done.told.startswith("Process 1 of 2 cannot meet the others: MASTER_ADDR and ")


def test_a_port_that_is_taken_is_told_with_its_number(
    listener: socket.socket, tmp_path: Path
) -> None:
    port = listener.getsockname()[1]
    done = backend(*words(tmp_path), env=LEADER | meeting_at(port))
    assert done.code == 2
    assert f"MASTER_ADDR=localhost, MASTER_PORT={port}: " in done.told
    assert "is the port free" in done.told


def test_a_signal_ends_the_waiting_for_a_leader_that_does_not_come(
    listener: socket.socket, tmp_path: Path
) -> None:
    environment = FOLLOWER | meeting_at(listener.getsockname()[1])
    with started(*words(tmp_path), env=environment) as process, listener.accept()[0]:
        process.send_signal(signal.SIGTERM)
        done = ended(process)
    # As beside a leader, which tells how it ended.
    assert (done.code, done.err) == (0, "")


def test_a_signal_ends_the_waiting_for_others_that_do_not_come(
    listener: socket.socket, tmp_path: Path
) -> None:
    port = listener.getsockname()[1]
    listener.close()

    def waits() -> bool:
        with suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return True
        return False

    with started(*words(tmp_path), env=LEADER | meeting_at(port)) as process:
        wait_until(waits, process=process)
        process.send_signal(signal.SIGINT)
        done = ended(process)
    assert done.code == 3
    assert done.told == "Stopped by the keyboard."
