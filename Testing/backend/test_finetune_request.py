"""What is refused before a fine-tuning begins or goes on; no network is built for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runner import FINETUNE, phantom, snapshot

from backend import cli, finetune
from backend.cli import training
from backend.config import FinetuneConfig, load_config, to_plain
from backend.data.phantom.cohort import write_image, write_label_names
from backend.inference import sliding

Told = Callable[..., str]
Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for number in (1, 2):
        ct, label = phantom(number)
        write_image(folder / f"case_{number}" / "ct.nii.gz", ct)
        write_image(folder / f"case_{number}" / "label.nii.gz", label)
    write_label_names(folder / "labels.json")
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process; gives the exit code and what was told."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["backend", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.err.rpartition("\nbackend: ")[2] if code else captured.out

    return run


@pytest.fixture
def run_folder(tmp_path: Path, labelled: Path) -> Path:
    """A run that was interrupted behind its first checkpoint, as far as resuming looks at it."""
    run = tmp_path / "run"
    config = load_config(
        FinetuneConfig, method="smit", preset="tiny", overrides=["train.max_steps=4"]
    )
    request = {
        **{"data": str(labelled), "init": None, "cases": [], "fraction": 1.0, "cache": None},
        "device": "cpu",
    }
    status = {
        **{"schema": 1, "kind": "finetune", "state": "interrupted", "argv": [], "pid": 1},
        **{"process_started": 0.0, "boot_id": "", "host": "", "error": None, "message": ""},
        **{"started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:00:00+00:00"},
        **{"step": 2, "total_steps": 4, "epoch": 0, "eta_s": None, "best": None},
    }
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.pt").touch()
    for name, content in {
        "config": {"schema": 1, "config": to_plain(config), "request": request},
        "status": status,
        "split": {"training": ["case_1"], "validation": ["case_2"]},
    }.items():
        (run / f"{name}.json").write_text(json.dumps(content))
    return run


@pytest.mark.parametrize("init", [(), ("--init", "none")])
def test_neither_weights_nor_preset_is_no_choice(
    init: tuple[str, ...], command: Command, labelled: Path, tmp_path: Path
) -> None:
    code, told = command("finetune", "--data", labelled, "--output", tmp_path / "run", *init)
    assert code == 2
    assert "--init RUN" in told
    assert "--init none --preset tiny" in told
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--folds", "-1"), ("-1 folds of 2 cases",)),
        (("--fraction", "nan"), ("Fraction nan",)),
        (("--fraction", "-0.5"), ("Fraction -0.5",)),
        (("--epochs", "0"), ("train.epochs = 0",)),
        (("--max-steps", "0"), ("train.max_steps = 0",)),
        (("--max-steps", "-3"), ("train.max_steps = -3",)),
        (("--cases",), ("--cases names no case",)),
        (("--cases", ""), ("nothing is in the quotes behind '--cases'",)),
        (("--set", "preset=paper"), ("preset is no setting", "--preset")),
        (("--set", "train.max_steps=true"), ("train.max_steps = True", "number")),
    ],
)
def test_a_length_share_or_choice_that_cannot_be_is_refused(
    options: tuple[str, ...],
    words: tuple[str, ...],
    command: Command,
    labelled: Path,
    tmp_path: Path,
) -> None:
    code, told = command(
        *("finetune", "--preset", "tiny", "--data", labelled, "--output", tmp_path / "run"),
        *options,
    )
    assert code == 2
    assert all(word in told for word in words), told
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"training": [], "validation": []}, ("training = []",)),
        ({"training": ["case_1"], "validation": ["case_1"]}, ("'case_1' stands twice",)),
        ({"training": ["case_1", "case_1"], "validation": []}, ("'case_1' stands twice",)),
        ({"training": ["x"], "validation": []}, ("case x", "no longer")),
        ({"training": "case_1", "validation": []}, ("training = 'case_1'",)),
        ({"training": [1], "validation": []}, ("training.0 = 1",)),
        ({"training": ["case_1"]}, ("validation is missing",)),
        ([], ("damaged",)),
        (None, ("cannot be read",)),
    ],
)
def test_a_split_that_cannot_be_is_refused_when_a_run_goes_on(
    content: object, words: tuple[str, ...], command: Command, run_folder: Path
) -> None:
    file = run_folder / "split.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(json.dumps(content))
    code, told = command("finetune", "--resume", "--output", run_folder, "--device", "cpu")
    assert code == 2
    assert all(word in told for word in (str(file), *words)), told


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["config"].pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("request"), ("request is missing",)),
        (lambda c: c.update(request=[]), ("request = []",)),
        (lambda c: c.update(config=[]), ("config = []",)),
        (lambda c: c["request"].update(cases=3), ("request.cases = 3",)),
        (lambda c: c["request"].update(fraction="x"), ("request.fraction = 'x'",)),
        (lambda c: c["request"].update(data=None), ("--data",)),
        (lambda c: c["config"]["train"].update(seed="x"), ("train.seed = 'x'",)),
        (lambda c: c["config"]["train"].pop("seed"), ("does not say train.seed",)),
        (_without("train"), ("does not say train",)),
        (_without("preprocess"), ("preprocess", "missing")),
    ],
)
def test_a_damaged_config_is_refused_when_a_run_goes_on(
    change: Callable[[dict[str, Any]], object],
    words: tuple[str, ...],
    command: Command,
    run_folder: Path,
) -> None:
    file = run_folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    before = snapshot(run_folder)
    code, told = command("finetune", "--resume", "--output", run_folder, "--device", "cpu")
    assert code == 2
    assert all(word in told for word in (str(run_folder), *words)), told
    assert snapshot(run_folder) == before


def test_a_finished_run_is_told_as_finished_and_left_as_it_is(
    command: Command, run_folder: Path
) -> None:
    file = run_folder / "status.json"
    done = {"state": "done", "step": 4, "total_steps": 4}
    file.write_text(json.dumps(json.loads(file.read_text()) | done))
    left = run_folder / ".part-99999999-0a1b2c3d-report.html"
    left.touch()
    # Its process was killed over the report.
    code, told = command("finetune", "--resume", "--output", run_folder)
    assert code == 0
    assert "Its report, which it lacked, was made." in told
    assert not left.exists()
    assert (run_folder / "report.html").exists()
    before = snapshot(run_folder)
    code, told = command("finetune", "--resume", "--output", run_folder)
    assert code == 0
    assert "Nothing was changed." in told
    for word in ("Already done", "step 4 of 4", run_folder / "report.html", "--max-steps N"):
        assert str(word) in told
    code, told = command("finetune", "--resume", "--output", run_folder, "--max-steps", 8)
    assert code == 2
    assert "train.max_steps=4, not 8" in told
    assert snapshot(run_folder) == before


@pytest.fixture
def folds(tmp_path: Path, labelled: Path) -> Path:
    """A cross-validation that was stopped before its first fold began."""
    folder = tmp_path / "folds"
    folder.mkdir()
    config = load_config(
        FinetuneConfig, method="smit", preset="tiny", overrides=["train.max_steps=4"]
    )
    request: dict[str, Any] = {
        **{"data": str(labelled), "init": None, "cases": ["case_*"], "fraction": 0.5},
        **{"folds": 2, "cache": None, "device": "cpu"},
    }
    splits = [
        {"training": ["case_1"], "validation": ["case_2"]},
        {"training": ["case_2"], "validation": ["case_1"]},
    ]
    content = {"schema": 1, "config": to_plain(config), "request": request, "splits": splits}
    (folder / "cross_validation_request.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--folds", 3), ("folds=2, not 3", "--folds 2")),
        (("--folds", 2, "--fraction", 0.7), ("fraction=0.5, not 0.7",)),
        (("--folds", 2, "--init", "elsewhere"), ("init=None", "elsewhere")),
        (("--folds", 2, "--cases", "case_1"), ("cases=['case_*'], not ['case_1']",)),
        (("--folds", 2, "--data", "elsewhere"), ("data=", "elsewhere")),
        (("--folds", 2, "--set", "train.seed=5"), ("train.seed=0, not 5",)),
        (("--folds", 2, "--preset", "paper"), ("preset=",)),
    ],
)
def test_a_cross_validation_goes_on_only_as_it_was_started(
    options: tuple[object, ...], words: tuple[str, ...], command: Command, folds: Path
) -> None:
    before = snapshot(folds)
    code, told = command("finetune", "--resume", "--output", folds, "--device", "cpu", *options)
    assert code == 2
    assert all(word in told for word in (str(folds), *words)), told
    assert snapshot(folds) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["splits"][1].update(validation=["x"]), ("case x", "no longer")),
        (lambda c: c.pop("splits"), ("splits is missing",)),
        (lambda c: c["splits"].pop(), ("splits = ",)),
        (lambda c: c["request"].update(folds="x"), ("request.folds = 'x'",)),
    ],
)
def test_damaged_or_missing_folds_are_refused(
    change: Callable[[dict[str, Any]], object],
    words: tuple[str, ...],
    command: Command,
    folds: Path,
) -> None:
    file = folds / "cross_validation_request.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    code, told = command("finetune", "--resume", "--folds", 2, "--output", folds)
    assert code == 2
    assert all(word in told for word in (str(file), *words)), told
    file.unlink()
    code, told = command("finetune", "--resume", "--folds", 2, "--output", folds)
    assert code == 2
    assert str(file) in told


def test_of_equal_models_the_later_is_kept_and_no_scan_is_segmented_twice_at_a_step(
    command: Command, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmented: list[object] = []
    real = sliding.stream_logits

    def counted(network: Any, image: Any, *rest: Any, **options: Any) -> Any:
        segmented.append(image)
        return real(network, image, *rest, **options)

    monkeypatch.setattr(sliding, "stream_logits", counted)
    # Its random weights find something by chance.
    monkeypatch.setattr(training, "_HARDLY_ANYTHING", 0.5)
    run = tmp_path / "run"
    code, told = command(
        *(*FINETUNE, "--data", labelled, "--output", run, "--cache", tmp_path / "cache"),
        *("--max-steps", 2, "--set", "validate_every_epochs=1", "--set", "train.batch_size=1"),
        *("--set", "train.learning_rate=1e-30", "--set", "train.learning_rate_end=0"),
    )
    assert code == 0, told
    status = json.loads((run / "status.json").read_text())
    assert status["best"]["step"] == 2
    assert f"Model:  {run / 'checkpoints' / 'best.safetensors'}\n" in told
    assert f"Best:   mean Dice {status['best']['val/dice_mean']:.3f} on validation scans" in told
    assert "hardly any structure was found yet. Train for longer" in told
    assert list((run / "previews").glob("step_*.png"))
    assert len(segmented) == 2


@pytest.mark.parametrize("state", ["interrupted", "done"])
def test_weights_of_a_run_that_did_not_finish_are_told_as_such(
    state: str, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = run_folder / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": state}))
    finetune._warn_of_unfinished(run_folder)
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{run_folder}: that run stopped at step 2 of 4."] * (state != "done")


def test_a_run_without_a_checkpoint_goes_on_from_the_weights_it_was_asked_to_start_from(
    run_folder: Path, tmp_path: Path
) -> None:
    file = run_folder / "config.json"
    content = json.loads(file.read_text())
    content["request"]["init"] = str(tmp_path / "weights")
    file.write_text(json.dumps(content))
    request = finetune.FinetuneRequest(output=run_folder, data=None, resume=True)
    assert finetune.resumed(request)[0].init is None
    (run_folder / "checkpoints" / "last.pt").unlink()
    assert finetune.resumed(request)[0].init == tmp_path / "weights"


def test_inherited_settings_lie_over_the_preset_and_below_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("preprocess: {orientation: RAS}\n")
    inherited = ("preprocess.orientation=LPS", "train.batch_size=3")
    config = load_config(
        *(FinetuneConfig,), method="smit", preset="tiny", below=inherited, file=file
    )
    assert (config.preprocess.orientation, config.train.batch_size) == ("RAS", 3)
