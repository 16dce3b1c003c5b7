"""Help and refusals come at once: neither torch nor MONAI is loaded for them.

Of the program itself the help needs less still, and a command only its own options.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_runner import FINETUNE, PRETRAIN, REPOSITORY, Ended, Material, Runs, backend, environment

from backend.cli.commands import COMMANDS

HEAVY = ("torch", "monai")


def imported(done: Ended) -> set[str]:
    """The packages that a command run with `-X importtime` has loaded."""
    found = re.findall(r"^import time:.*\| +([\w.]+)$", done.err, re.MULTILINE)
    return {name.partition(".")[0] for name in found}


def run(*words: object, cwd: Path) -> Ended:
    done = backend(*words, python=("-X", "importtime"), cwd=cwd)
    packages = imported(done)
    # Proof that the listing is read rightly.
    assert {"backend", "encodings"} <= packages
    assert packages.isdisjoint(HEAVY), sorted(packages)
    return done


def test_the_listing_shows_torch_where_it_is_loaded(tmp_path: Path) -> None:
    done = backend("doctor", python=("-X", "importtime"), cwd=tmp_path)
    assert done.code == 0
    assert "torch" in imported(done)


def test_to_segment_with_our_networks_needs_no_monai(
    tmp_path: Path, material: Material, runs: Runs
) -> None:
    words = ("--model", runs.finetune, "--input", material.oblique, "--output", tmp_path / "o.nrrd")
    done = backend("segment", *words, "--device", "cpu", python=("-X", "importtime"), cwd=tmp_path)
    assert done.code == 0, done.err
    assert imported(done) & set(HEAVY) == {"torch"}


def test_help_names_every_command_and_the_version_is_a_number(tmp_path: Path) -> None:
    shown = run("--help", cwd=tmp_path)
    assert shown.code == 0
    assert all(command in shown.out for command in COMMANDS)
    assert re.fullmatch(r"backend \d+\.\d+\S*\n", run("--version", cwd=tmp_path).out)
    listed = run("methods", cwd=tmp_path)
    assert "smit" in listed.out
    assert imported(listed).isdisjoint({"numpy", "SimpleITK", "pydicom", "nibabel", "blosc2"})


@pytest.mark.parametrize("words", [("--help",), ("--version",), (), ("scna",)])
def test_no_parser_is_made_before_a_command_is_named(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(*words, cwd=tmp_path)
    slow = {"tyro", "dataclasses", "inspect", "logging", "tqdm", "tempfile", "subprocess"}
    assert imported(done).isdisjoint(slow)


LOADED = """
import sys
from backend.cli import main
try:
    main()
finally:
    sys.stderr.write(" ".join(sys.modules))
"""


def test_a_command_loads_the_options_of_no_other_file() -> None:
    rooms = {f"backend.cli.{room}" for room, _ in COMMANDS.values()}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "scan", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stderr.split()) & rooms == {"backend.cli.scans"}


# One process for all of them: it is light in the end only if each of them is.
ONE_AFTER_THE_OTHER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from backend.cli import main
for line in sys.stdin:
    sys.argv, out, err, code = ["backend", *json.loads(line)], io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    heavy = [name for name in ("torch", "monai") if name in sys.modules]
    print(json.dumps([code, out.getvalue(), err.getvalue(), heavy]))
"""


def one_after_the_other(lines: Sequence[Sequence[str]], *, cwd: Path) -> list[Ended]:
    """What becomes of commands that load neither torch nor MONAI."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER],
        cwd=cwd,
        env=environment(PYTHONPATH=str(REPOSITORY)),
        input="".join(f"{json.dumps(words)}\n" for words in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    found = []
    for words, line in zip(lines, done.stdout.splitlines(), strict=True):
        code, out, err, heavy = json.loads(line)
        assert heavy == [], words
        found.append(Ended(code=code, out=out, err=err))
    return found


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    lines = [(command, "--help") for command in COMMANDS]
    shown = one_after_the_other(lines, cwd=tmp_path_factory.mktemp("helps"))
    return dict(zip(COMMANDS, shown, strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_light_and_begins_with_what_the_overview_says(
    command: str, helps: dict[str, Ended]
) -> None:
    shown = helps[command]
    assert shown.code == 0
    usage, _, summary, *_ = shown.out.splitlines()
    assert usage.startswith(f"usage: backend {command} [-h] ")
    assert summary == COMMANDS[command][1]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """In a folder with a pickle, an empty folder and a folder that is in use."""
    place = tmp_path_factory.mktemp("refusals")
    (place / "weights.pt").write_bytes(b"\x80\x04N.")
    (place / "empty").mkdir()
    (place / "used").mkdir()
    (place / "used" / "notes.txt").write_text("mine")
    done = one_after_the_other([words for words, _ in REFUSED.values()], cwd=place)
    return dict(zip(REFUSED, done, strict=True))


TRAIN = ("--data", "empty", "--output", "run")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown preset": ((*PRETRAIN, *TRAIN, "--preset", "tinny"), "'tiny'"),
    "unknown method": (("finetune", *TRAIN, "--method", "smti"), "'smit'"),
    "unknown key": ((*PRETRAIN, *TRAIN, "--set", "train.sead=1"), "'train.seed'"),
    "missing path to scan": (("scan", "nowhere", "--output", "i.csv"), "nowhere"),
    "missing path to pretrain": ((*PRETRAIN, *TRAIN, "--data", "nowhere"), "nowhere"),
    "missing path to fine-tune": ((*FINETUNE, *TRAIN, "--data", "nowhere"), "nowhere"),
    "missing model": (("segment", "--model", "no", "--input", ".", "--output", "o"), "no"),
    "missing weights to convert": (("convert", "no.pt", "--from", "smit", "--output", "x"), "x"),
    "missing prediction": (("evaluate", "--prediction", "no", "--reference", "."), "no"),
    "missing plan": (("benchmark", "no.yaml", "--output", "o"), "no.yaml"),
    "missing run": (("stop", "--run", "nowhere"), "nowhere"),
    "existing output of pretraining": ((*PRETRAIN, *TRAIN, "--output", "used"), "used"),
    "existing output of fine-tuning": ((*FINETUNE, *TRAIN, "--output", "used"), "used"),
    "pickle to pretrain from": ((*PRETRAIN, *TRAIN, "--init", "weights.pt"), "weights.pt"),
    "pickle to fine-tune from": ((*FINETUNE, *TRAIN, "--init", "weights.pt"), "weights.pt"),
    "pickle to segment with": (
        ("segment", "--model", "weights.pt", "--input", ".", "--output", "o"),
        "weights.pt",
    ),
    "empty folder to scan": (("scan", "empty", "--output", "i.csv"), "empty"),
    "empty folder to pretrain on": ((*PRETRAIN, *TRAIN), "empty"),
    "empty folder to fine-tune on": ((*FINETUNE, *TRAIN), "empty"),
    "empty folder as model": (
        ("segment", "--model", "empty", "--input", ".", "--output", "o"),
        "empty",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_that_needs_no_tensors_is_light(kind: str, refusals: dict[str, Ended]) -> None:
    done = refusals[kind]
    assert done.code == 2
    assert REFUSED[kind][1] in done.told
