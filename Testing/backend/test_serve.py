"""The warm worker as a real process, spoken to by the client that the GUI uses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from cli_runner import LIMIT_S, REPOSITORY, backend, backend_here, environment
from worker_material import DIRECTION, Talk, alive, array_of, talk, write_model, write_scan

from backend.data.readers import read_volume
from backend.errors import ResourceError, ScanError
from backend.inference.worker import Models, read_array
from backend.segment import run
from backend.serve import LONGEST_LINE, MOST_WAITING, BadRequest, Load, Office, lines_of

VOXEL_MM3 = 24.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan in three forms, two networks, and what `backend segment` makes of them."""
    folder = tmp_path_factory.mktemp("serve")
    scan = write_scan(folder / "ct.nrrd")
    for number, intensity in enumerate(("window", "zscore"), start=1):
        model = write_model(folder / f"{intensity}.safetensors", seed=number, intensity=intensity)
        run(model, scan, folder / f"{intensity}.nrrd", device="cpu")
    return folder


@pytest.fixture(scope="module")
def worker(place: Path) -> Iterator[Talk]:
    with talk(place / "home") as conversation:
        yield conversation


def reference(place: Path, intensity: str) -> np.ndarray[Any, Any]:
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(place / f"{intensity}.nrrd")))
    # Both structures are there, or equal results would say little.
    assert set(np.unique(found)) == {0, 1, 300}
    return np.asarray(found)


def labels(reply: dict[str, Any]) -> np.ndarray[Any, Any]:
    assert reply["event"] == "result", reply
    return np.asarray(np.load(reply["labels"]["file"], allow_pickle=False))


@pytest.mark.parametrize("intensity", ["window", "zscore"])
@pytest.mark.parametrize("form", ["path", "array.npy", "array.raw"])
def test_the_result_is_that_of_backend_segment_voxel_for_voxel(
    place: Path, worker: Talk, intensity: str, form: str, tmp_path: Path
) -> None:
    scan = place / "ct.nrrd"
    source: dict[str, Any] = (
        {"volume": str(scan)} if form == "path" else {"array": array_of(scan, tmp_path / form)}
    )
    reply = worker.ask("segment", model=str(place / f"{intensity}.safetensors"), **source)
    expected = reference(place, intensity)
    assert np.array_equal(labels(reply), expected)
    grid = reply["labels"]
    assert grid["size"] == list(expected.shape)
    assert grid["spacing_mm"] == [4.0, 2.0, 3.0]
    assert grid["origin_mm"] == [-40.0, 12.0, 99.5]
    assert grid["direction"] == pytest.approx(DIRECTION)
    for entry in reply["structures"]:
        voxels = int((expected == entry["value"]).sum())
        assert entry["voxels"] == voxels
        assert entry["volume_mm3"] == pytest.approx(voxels * VOXEL_MM3)
    assert [(s["name"], s["color"]) for s in reply["structures"]] == [
        ("liver", [221, 130, 101]),
        ("spleen", [157, 108, 162]),
    ]
    assert reply["structures"][0]["terminology"] == "SCT^10200004"


BOXES = {
    "inside": ((14, 16, 12), (7, 9, 8)),
    "first corner": ((0, 0, 0), (5, 8, 3)),
    "last corner": ((36, 40, 30), (4, 4, 6)),
    "one voxel": ((20, 21, 18), (1, 1, 1)),
    "outside air": ((3, 0, 4), (30, 2, 20)),
    "whole": ((0, 0, 0), (40, 44, 36)),
}


@pytest.mark.parametrize("intensity", ["window", "zscore"])
@pytest.mark.parametrize("box", BOXES)
def test_a_region_is_the_whole_result_cut_to_it(
    place: Path, worker: Talk, intensity: str, box: str
) -> None:
    start, size = BOXES[box]
    reply = worker.ask(
        "segment",
        model=str(place / f"{intensity}.safetensors"),
        volume=str(place / "ct.nrrd"),
        region={"start": start, "size": size},
    )
    cut = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    assert np.array_equal(labels(reply), reference(place, intensity)[cut])
    affine = read_volume([place / "ct.nrrd"]).geometry.affine
    assert reply["labels"]["origin_mm"] == pytest.approx((affine @ [*start, 1])[:3])
    assert reply["region"] == {"start": list(start), "size": list(size)}
    if box == "one voxel":
        # Each axis of it is covered by two windows, or by three where the last one is shifted.
        assert reply["windows"] <= 27


def test_second_use_neither_loads_nor_reads(worker: Talk, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors", seed=3)
    scan = write_scan(tmp_path / "ct.nrrd")
    request = {"model": str(model), "volume": str(scan)}
    first = worker.ask("segment", **request)
    again = worker.ask("segment", **request)
    assert first["reused"] == {"model": False, "scan": False}
    assert {"read", "load", "prepare", "network", "labels", "write"} == first["seconds"].keys()
    assert again["reused"] == {"model": True, "scan": True}
    assert "prepare" not in again["seconds"]
    assert np.array_equal(labels(first), labels(again))
    write_model(model, seed=4)
    write_scan(scan, size=(30, 44, 36))
    renewed = worker.ask("segment", **request)
    assert renewed["reused"] == {"model": False, "scan": False}
    assert renewed["labels"]["size"] == [30, 44, 36]


def test_new_voxels_behind_an_old_header_are_read(worker: Talk, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors", seed=3)
    scan = write_scan(tmp_path / "scan" / "ct.mhd", size=(20, 20, 16))
    asked = {"model": str(model), "volume": str(scan)}
    worker.ask("segment", **asked)
    assert worker.ask("segment", **asked)["reused"]["scan"]
    voxels = np.fromfile(scan.with_suffix(".raw"), dtype=np.int16)
    voxels[::-1].tofile(scan.with_suffix(".raw"))
    found = worker.ask("segment", **asked)
    assert not found["reused"]["scan"]
    run(model, scan, tmp_path / "again.nrrd", device="cpu", overwrite=True)
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "again.nrrd")))
    assert np.array_equal(labels(found), expected)


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nii.gz"])
def test_chosen_structures_come_in_the_wanted_format(
    place: Path, worker: Talk, ending: str
) -> None:
    reply = worker.ask(
        "segment",
        model=str(place / "window.safetensors"),
        volume=str(place / "ct.nrrd"),
        structures=["spleen"],
        ending=ending,
    )
    found = SimpleITK.ReadImage(reply["labels"]["file"])
    expected = reference(place, "window")
    assert np.array_equal(
        SimpleITK.GetArrayFromImage(found), np.where(expected == 300, expected, 0)
    )
    assert [entry["name"] for entry in reply["structures"]] == ["spleen"]
    assert found.GetOrigin() == pytest.approx((-40.0, 12.0, 99.5))


GEOMETRY: dict[str, Any] = {
    "size": (2, 2, 2),
    "spacing_mm": (1, 1, 1),
    "origin_mm": (0, 0, 0),
    "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": ({"kind": "sing"}, "'sing'"),
    "unknown field": ({"kind": "ping", "loud": True}, "loud"),
    "other protocol": ({"kind": "hello", "protocol": 99}, "speaks 1"),
    "wrong type": ({"kind": "load", "model": 7}, "model = 7"),
    "relative path": ({"kind": "load", "model": "run"}, "absolute"),
    "path of no system": ({"kind": "load", "model": "/a\0b"}, "is no path"),
    "no such model": ({"kind": "load", "model": "/nowhere/run"}, "/nowhere/run"),
    "a scan as model": ({"kind": "load", "model": "SCAN"}, "ct.nrrd"),
    "a folder as model": ({"kind": "load", "model": "FOLDER"}, "no weights in it"),
    "no scan": ({"model": "MODEL"}, "no scan, or two"),
    "two scans": ({"model": "MODEL", "volume": "SCAN", "array": {"file": "/a"} | GEOMETRY}, "two"),
    "missing scan": ({"model": "MODEL", "volume": "/nowhere.nrrd"}, "/nowhere.nrrd"),
    "a model as scan": ({"model": "MODEL", "volume": "MODEL"}, "safetensors"),
    "unknown structure": ({"model": "MODEL", "volume": "SCAN", "structures": ["lier"]}, "'liver'"),
    "no structure": ({"model": "MODEL", "volume": "SCAN", "structures": []}, "No structure"),
    "other device": ({"model": "MODEL", "volume": "SCAN", "device": "cuda:7"}, "--device cuda:7"),
    "unknown format": ({"model": "MODEL", "volume": "SCAN", "ending": ".stl"}, ".stl"),
    "region outside": (
        {"model": "MODEL", "volume": "SCAN", "region": {"start": (39, 0, 0), "size": (2, 1, 1)}},
        "leaves the scan of size (40, 44, 36)",
    ),
    "empty region": (
        {"model": "MODEL", "volume": "SCAN", "region": {"start": (0, 0, 0), "size": (0, 1, 1)}},
        "size",
    ),
    "missing array": ({"model": "MODEL", "array": {"file": "/nowhere.raw"} | GEOMETRY}, "/nowhere"),
    "array of other size": ({"model": "MODEL", "array": {"file": "SCAN"} | GEOMETRY}, "needs 16"),
    "no spacing": (
        {"model": "MODEL", "array": {"file": "SCAN"} | GEOMETRY | {"spacing_mm": (1, 0, 1)}},
        "1x0x1",
    ),
    "sheared": (
        {
            "model": "MODEL",
            "array": {"file": "SCAN"} | GEOMETRY | {"direction": (1, 0.6, 0, 0, 0.8, 0, 0, 0, 1)},
        },
        "sheared",
    ),
    "cancel of nothing": ({"kind": "cancel", "target": "r0"}, "'r0'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_request_is_refused_with_its_id_and_the_worker_lives_on(
    place: Path, worker: Talk, what: str
) -> None:
    paths = {"MODEL": "window.safetensors", "SCAN": "ct.nrrd", "FOLDER": "."}
    content, told = REFUSED[what]
    text = json.dumps({"kind": "segment", **content})
    for name, file in paths.items():
        text = text.replace(f'"{name}"', json.dumps(str(place / file)))
    pid = worker.event("hello")["pid"]
    reply = worker.ask(**json.loads(text))
    assert reply["event"] == "error"
    assert told in reply["message"] + reply["hint"]
    assert "mistake" not in reply["hint"]
    assert worker.ask("hello")["pid"] == pid


def test_what_libraries_and_the_search_print_goes_to_the_log(
    place: Path, worker: Talk, tmp_path: Path
) -> None:
    write_scan(tmp_path / "ct.nrrd")
    (tmp_path / "broken.nrrd").write_bytes(b"NRRD0004\n")
    reply = worker.ask(
        "segment", model=str(place / "window.safetensors"), volume=str(tmp_path), region=None
    )
    assert np.array_equal(labels(reply), reference(place, "window"))
    assert any("broken.nrrd" in line for line in worker.client.log)


def test_cancel_ends_what_runs_and_what_waits_while_pings_are_answered(
    place: Path, worker: Talk, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "large.nrrd", size=(200, 150, 120))
    request = {"model": str(place / "window.safetensors"), "volume": str(scan)}
    runs = worker.client.send("segment", **request)
    waits = worker.client.send("segment", **request)
    step = worker.until(lambda r: r["id"] == runs and r.get("done", 0) > 0)
    assert 0 < step["done"] < step["total"]
    pong = worker.ask("ping")
    assert (pong["running"], pong["waiting"]) == (runs, [waits])
    for target, was in ((waits, "waiting"), (runs, "running")):
        identity = worker.client.cancel(target)
        assert identity is not None
        assert worker.answer(identity)["was"] == was
        assert worker.answer(target)["type"] == "Cancelled"
    # Many windows more were to come.
    assert worker.of(runs, "progress")[-1]["done"] < step["total"]
    assert [r["ahead"] for r in worker.of(waits, "accepted")] == [1]
    assert worker.client.cancel(runs) is None


def test_a_second_worker_on_the_device_is_refused_with_the_cure(place: Path, worker: Talk) -> None:
    pid = worker.event("hello")["pid"]
    done = backend("serve", "--device", "cpu", env={"XDG_CACHE_HOME": str(place / "home")})
    assert done.code == 2
    assert f"cpu: another worker ({pid})" in done.told
    assert "--allow-second" in done.told
    assert done.out == ""


@pytest.mark.usefixtures("worker")
def test_models_leave_for_others_and_an_idle_worker_ends(place: Path) -> None:
    first, second = (str(place / f"{name}.safetensors") for name in ("window", "zscore"))
    options = ("--allow-second", "--model-memory-mb", 0.15, "--idle-minutes", 0.02)
    with talk(place / "home", *options) as other:
        assert other.ask("load", model=first)["reused"] == {"model": False}
        loaded = other.ask("load", model=second)
        assert [r["model"] for r in other.of(loaded["id"], "unloaded")] == [first]
        assert [m["model"] for m in other.ask("status")["models"]] == [second]
        assert other.event("bye")["reason"].startswith("idle")
        ended = other.event("ended")
        assert (ended["code"], "idle" in ended["message"]) == (0, True)
        assert not Path(other.event("hello")["folder"]).exists()
        assert not other.client.running


def test_models_are_kept_by_last_use_within_the_budget(tmp_path: Path) -> None:
    files = [write_model(tmp_path / f"{n}.safetensors", seed=n) for n in range(3)]
    one = files[0].stat().st_size
    models = Models(torch.device("cpu"), budget=int(2.5 * one))
    assert not models.take(files[0]).reused
    models.take(files[1])
    assert models.take(files[0]).reused
    assert models.take(files[2]).unloaded == (files[1],)
    assert [held.file for held in models.held] == [files[0], files[2]]
    assert models.drop(files[0]) == (files[0],)
    with pytest.raises(ResourceError, match="larger --model-memory-mb"):
        Models(torch.device("cpu"), budget=one // 2).take(files[0])


def wait_for(there: Any, *, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not there():
        assert time.monotonic() < deadline, f"did not happen within {limit_s:.0f} s"
        time.sleep(0.02)


def test_rubbish_and_silence_are_survived_and_what_a_killed_worker_left_is_removed(
    place: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "sslsegmentation" / "serve"
    left = tmp_path / "sslsegmentation-serve-left"
    mine = tmp_path / "mine"
    for folder in (notes, left, mine):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    note = {"pid": 1, "folder": str(left)}
    (notes / f"{socket.gethostname()}-cpu.json").write_text(json.dumps(note))
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", "serve", "--device", "cpu"],
        cwd=REPOSITORY,
        env=environment(XDG_CACHE_HOME=str(tmp_path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    # Unlike `communicate` its end bears an input that was closed before.
    with process:
        try:
            _survives(process, place)
        finally:
            process.kill()
    assert not left.exists()
    assert (mine / "file").exists()


def _survives(process: subprocess.Popen[bytes], place: Path) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    rubbish = (
        b"no json\n",
        b'["a list"]\n',
        b"[" * 100_000 + b"\n",
        b'{"kind": "ping", "id": "' + b"x" * LONGEST_LINE + b'"}\n',
        b'{"kind": "ping", "id": 7}\n',
        b"\xff\xfe\x00\n",
    )
    nan = b'{"kind":"segment","id":"nan","model":"/m","array":{"file":"/a","size":[1,1,1],'
    nan += b'"spacing_mm":[NaN,1,1],"origin_mm":[0,0,0],"direction":[1,0,0,0,1,0,0,0,1]}}\n'
    process.stdin.write(b"".join(rubbish) + nan)
    process.stdin.flush()
    hello, *replies = [json.loads(process.stdout.readline()) for _ in range(len(rubbish) + 2)]
    assert [r["event"] for r in replies] == ["error"] * (len(rubbish) + 1)
    assert [r["id"] for r in replies] == [None] * len(rubbish) + ["nan"]
    assert "spacing_mm" in replies[-1]["message"]
    assert "1048576 bytes" in replies[3]["message"]
    # From here on nobody reads: the pipe fills, the work goes on.
    for number in range(4000):
        process.stdin.write(b'{"kind": "ping", "id": "p%d"}\n' % number)
    wanted = {"model": str(place / "window.safetensors"), "volume": str(place / "ct.nrrd")}
    line = json.dumps({"kind": "segment", "id": "s", **wanted}).encode() + b"\n"
    process.stdin.write(line)
    process.stdin.flush()
    file = Path(hello["folder"]) / "labels-1.npy"
    # NumPy's header takes 128 bytes.
    size = 128 + reference(place, "window").nbytes
    wait_for(lambda: file.exists() and file.stat().st_size == size)
    process.stdin.close()
    assert process.wait(LIMIT_S) == 0
    assert not file.parent.exists()


def test_a_worker_ends_with_its_owner_though_its_input_stays_open(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    script = (
        "import subprocess, sys, time\n"
        "line = [sys.executable, '-m', 'backend', 'serve', '--device', 'cpu']\n"
        "subprocess.Popen(line, stdin=int(sys.argv[1]))\n"
        "time.sleep(600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(reading)],
        cwd=REPOSITORY,
        env=environment(XDG_CACHE_HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        pass_fds=[reading],
    )
    try:
        assert owner.stdout is not None
        hello = json.loads(owner.stdout.readline())
        assert alive(hello["pid"])
        owner.kill()
        owner.wait()
        assert json.loads(owner.stdout.readline())["reason"] == "its owner has ended"
        wait_for(lambda: not alive(hello["pid"]), limit_s=20)
        assert not Path(hello["folder"]).exists()
    finally:
        owner.kill()
        owner.communicate()
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "float32", "float64"])
def test_an_array_of_any_type_reads_as_the_same_hu(tmp_path: Path, dtype: str) -> None:
    grid = read_volume([write_scan(tmp_path / "ct.nrrd", size=(4, 12, 6))]).geometry
    values = np.random.default_rng(1).normal(0, 300, grid.size).astype(dtype)
    if dtype == "uint16":
        values = values % 2000
    values.tofile(tmp_path / "a.raw")
    if dtype == "uint16":
        with pytest.raises(ScanError, match="not HU"):
            read_array(tmp_path / "a.raw", grid, kind=dtype)
        return
    found = read_array(tmp_path / "a.raw", grid, kind=dtype)
    assert found.voxels.dtype == np.int16
    assert np.array_equal(
        found.voxels, np.rint(values.clip(-1024, 32767) if dtype != "int8" else values)
    )


BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "NaN": (np.full((2, 2, 2), np.nan), "NaN"),
    "infinity": (np.full((2, 2, 2), np.inf), "infinite"),
    "a constant": (np.full((2, 2, 2), -5.0), "not HU"),
    "normalised": (np.linspace(-1, 1, 8).reshape(2, 2, 2), "not HU"),
    "brightness": (np.linspace(-1000, 9000, 8).reshape(2, 2, 2), "not HU"),
    "other shape": (np.linspace(-1000, 1000, 9), "not float64"),
    "objects": (np.array([{}] * 8, dtype=object).reshape(2, 2, 2), "no array file"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_an_array_that_is_no_ct_is_refused(tmp_path: Path, what: str) -> None:
    values, told = BAD_ARRAYS[what]
    grid = read_volume([write_scan(tmp_path / "ct.nrrd", size=(2, 9, 2))]).geometry
    file = tmp_path / "a.npy"
    np.save(file, values)
    with pytest.raises(ScanError, match=told):
        read_array(file, grid.cropped((0, 0, 0), (2, 2, 2)), kind="float64")


def work(identity: str) -> Load:
    return Load(id=identity, kind="load", model=Path("/m"))


def test_work_is_taken_in_order_up_to_a_limit_and_none_after_the_end() -> None:
    office, ahead = Office(), []
    for number in range(MOST_WAITING):
        office.add(work(f"{number}"), accepted=ahead.append)
    assert ahead == list(range(MOST_WAITING))
    with pytest.raises(BadRequest, match="wait already"):
        office.add(work("more"), accepted=ahead.append)
    assert office.next(within_s=0) == work("0")
    with pytest.raises(BadRequest, match="'0' is in use"):
        office.add(work("0"), accepted=ahead.append)
    assert office.cancel("0") == "running"
    assert office.should_stop()
    assert office.next(within_s=0) == work("1")
    assert not office.should_stop()
    office.close("first")
    office.close("second")
    assert office.reason == "first"
    assert office.next(within_s=0) is None
    # Not accepted: the client asks the next worker.
    office.add(work("late"), accepted=ahead.append)
    assert len(ahead) == MOST_WAITING
    assert office.leftover() == tuple(f"{n}" for n in range(2, MOST_WAITING))


def test_an_office_without_work_closes_in_time() -> None:
    office = Office()
    assert office.next(within_s=0.01) is None
    assert office.closing.is_set()
    assert office.reason.startswith("idle")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--idle-minutes", 0), "--idle-minutes 0"),
        (("--model-memory-mb", "nan"), "--model-memory-mb nan"),
        (("--device", "toaster"), "toaster"),
        (("--owner", 2**22 + 1), "no process"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    words: tuple[object, ...], told: str
) -> None:
    done = backend_here("serve", *words)
    assert (done.code, done.out) == (2, "")
    assert told in done.told


def test_lines_are_found_in_any_cut_and_a_long_one_does_not_hide_the_next() -> None:
    reading, writing = os.pipe()
    pieces = [b"on", b"e\ntwo\n\n", b"x" * 30, b"x" * 30, b"\nthree\nto", b"rn"]
    for piece in pieces:
        os.write(writing, piece)
    os.close(writing)
    assert list(lines_of(reading, longest=20)) == [b"one", b"two", None, b"three"]
    os.close(reading)


def test_a_worker_that_the_system_ends_leaves_nothing(worker: Talk) -> None:
    hello = worker.event("hello")
    assert Path(hello["folder"]).is_dir()
    os.kill(hello["pid"], signal.SIGTERM)
    assert worker.event("ended")["code"] == 5
    assert not Path(hello["folder"]).exists()
