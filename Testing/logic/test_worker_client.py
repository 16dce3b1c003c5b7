"""The client of the warm worker, with small real processes that behave and misbehave."""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from SSLPretrainLogic import worker_client
from SSLPretrainLogic.worker_client import Reply, WorkerClient

LIMIT_S = 20.0

ANSWERS = """
import json, sys
def tell(event, identity, **more):
    sys.stdout.write(json.dumps({"event": event, "id": identity, **more}) + "\\n")
    sys.stdout.flush()
def asked():
    for line in sys.stdin:
        yield json.loads(line)
"""


def client_of(script: str, **options: Path) -> WorkerClient:
    """A client whose worker is a script; it may use `tell` and `asked`."""
    return WorkerClient([sys.executable, "-S", "-c", ANSWERS + script], **options)


def heard_until(client: WorkerClient, there: Callable[[list[Reply]], object]) -> list[Reply]:
    """Everything polled until it is enough."""
    heard: list[Reply] = []
    deadline = time.monotonic() + LIMIT_S
    while not there(heard):
        assert time.monotonic() < deadline, heard[-5:]
        heard += client.poll()
        time.sleep(0.002)
    return heard


def said(event: str, identity: str | None = None) -> Callable[[list[Reply]], bool]:
    return lambda heard: any(r["event"] == event and identity in (None, r["id"]) for r in heard)


def test_replies_come_in_order_under_the_id_of_their_request() -> None:
    client = client_of(
        "for r in asked():\n"
        "    if r['kind'] == 'shutdown': break\n"
        "    tell('accepted', r['id'], ahead=0)\n"
        "    tell('result', r['id'], twice=r['value'] * 2)\n"
    )
    assert client.poll() == []
    assert not client.running
    first, second = client.send("double", value=4), client.send("double", value=5)
    assert client.running
    assert client.pending == (first, second)
    heard = heard_until(client, said("result", second))
    assert heard == [
        {"event": "accepted", "id": first, "ahead": 0},
        {"event": "result", "id": first, "twice": 8},
        {"event": "accepted", "id": second, "ahead": 0},
        {"event": "result", "id": second, "twice": 10},
    ]
    assert client.pending == ()
    assert client.cancel(first) is None
    client.shutdown()
    assert not client.running
    assert heard_until(client, said("ended"))[-1]["code"] == 0


def test_full_pipes_on_all_sides_block_nobody(tmp_path: Path) -> None:
    # The worker writes far more than a pipe holds, to both outputs, and reads nothing before
    # more was sent than its input holds.
    client = client_of(
        "import time\n"
        "from pathlib import Path\n"
        "sys.stderr.write('noise ' * 200_000 + '\\n')\n"
        "for n in range(20_000): tell('progress', None, done=n)\n"
        "while not Path('sent').exists(): time.sleep(0.01)\n"
        "for r in asked():\n"
        "    if r['kind'] == 'shutdown': break\n"
        "    tell('result', r['id'])\n",
        cwd=tmp_path,
    )
    identities = [client.send("take", padding="x" * 1000) for _ in range(300)]
    (tmp_path / "sent").touch()
    heard = heard_until(client, said("result", identities[-1]))
    assert [r["done"] for r in heard if r["event"] == "progress"] == list(range(20_000))
    assert [r["id"] for r in heard if r["event"] == "result"] == identities
    client.shutdown()


def test_a_dead_worker_is_told_with_its_last_words_and_the_next_request_starts_another(
    tmp_path: Path,
) -> None:
    client = client_of(
        "from pathlib import Path\n"
        "Path('starts').open('a').write('x')\n"
        "for r in asked():\n"
        "    if r['kind'] == 'fall':\n"
        "        sys.stderr.write('first\\n' * 300 + 'out of memory on cuda:0\\n')\n"
        "        sys.exit(7)\n"
        "    if r['kind'] == 'shutdown': break\n"
        "    tell('accepted', r['id'], ahead=0)\n"
        "    if r['kind'] == 'go': tell('result', r['id'])\n",
        cwd=tmp_path,
    )
    waits, falls = client.send("wait"), client.send("fall")
    heard = heard_until(client, said("error", falls))
    ended = next(r for r in heard if r["event"] == "ended")
    assert ended["code"] == 7
    assert "exit code 7" in ended["message"]
    assert "out of memory on cuda:0" in ended["message"]
    assert len(ended["log"]) == 200
    for identity in (waits, falls):
        error = next(r for r in heard if r["id"] == identity and r["event"] == "error")
        assert error["type"] == "WorkerEnded"
        assert error["message"] == ended["message"]
        assert error["hint"]
    assert client.pending == ()
    assert not client.running
    heard_until(client, said("result", client.send("go")))
    assert (tmp_path / "starts").read_text() == "xx"
    client.shutdown()


def test_a_worker_that_cannot_be_started_is_told_like_a_dead_one(tmp_path: Path) -> None:
    client = WorkerClient([str(tmp_path / "no python"), "-m", "backend"])
    identity = client.send("ping")
    heard = heard_until(client, said("error", identity))
    assert [r["event"] for r in heard] == ["ended", "error"]
    assert "no python" in heard[0]["message"]
    assert heard[0]["code"] is None
    client.shutdown()


def test_what_a_worker_that_was_just_ending_never_took_is_asked_again_and_only_once(
    tmp_path: Path,
) -> None:
    # The first one says good-bye without taking anything, as an idle one may; so does the third.
    client = client_of(
        "from pathlib import Path\n"
        "Path('starts').open('a').write('x')\n"
        "starts = len(Path('starts').read_text())\n"
        "for r in asked():\n"
        "    if r['kind'] == 'shutdown': break\n"
        "    if starts == 1 or r['kind'] == 'leave':\n"
        "        tell('bye', None, reason='idle for 15 minutes')\n"
        "        break\n"
        "    tell('result', r['id'])\n",
        cwd=tmp_path,
    )
    wanted = client.send("go")
    heard = heard_until(client, said("result", wanted))
    assert [r["event"] for r in heard] == ["bye", "ended", "result"]
    assert "idle for 15 minutes" in heard[1]["message"]
    refused = client.send("leave")
    heard = heard_until(client, said("error", refused))
    assert [r["event"] for r in heard] == ["bye", "ended", "bye", "ended", "error"]
    assert (tmp_path / "starts").read_text() == "xxx"


def test_what_is_no_reply_goes_to_the_log() -> None:
    client = client_of(
        "print('Welcome to the launcher', flush=True)\n"
        "print('[1, 2]', flush=True)\n"
        "sys.stderr.write('10%\\r20%\\n'); sys.stderr.flush()\n"
        "for r in asked():\n"
        "    if r['kind'] == 'shutdown': break\n"
        "    tell('result', r['id'])\n"
    )
    heard = heard_until(client, said("result", client.send("go")))
    assert [r["event"] for r in heard] == ["result"]
    deadline = time.monotonic() + LIMIT_S
    while set(client.log) != {"Welcome to the launcher", "[1, 2]", "20%"}:
        assert time.monotonic() < deadline, client.log
    client.shutdown()


def test_shutdown_ends_a_worker_that_listens_to_nothing() -> None:
    client = client_of(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "tell('hello', None)\n"
        "time.sleep(600)\n"
    )
    client.send("ping")
    heard_until(client, said("hello"))
    client.shutdown(within_s=0.1)
    assert not client.running
    heard = heard_until(client, said("ended"))
    assert heard[-1]["type"] == "WorkerEnded"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_is_refused_before_a_worker_is_started(value: object) -> None:
    client = client_of("tell('hello', None)")
    with pytest.raises((TypeError, ValueError)):
        client.send("go", value=value)
    assert not client.running


def test_the_client_needs_the_standard_library_of_python_3_9_alone() -> None:
    source = Path(worker_client.__file__).read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 9))
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ] + [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))
