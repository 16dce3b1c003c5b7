"""What a user gets who gives the wrong thing: two lines that help, and nothing half-done."""

from __future__ import annotations

import gzip
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_runner import (
    FINETUNE,
    PRETRAIN,
    Ended,
    Material,
    Runs,
    backend,
    backend_each,
    limited,
    phantom,
    ramp,
    snapshot,
    status,
)

from backend.data.index import read_index
from backend.data.phantom.cohort import write_image, write_label_names
from backend.engine.record import RunFolder
from backend.errors import ResourceError

MIB = 2**20


def assert_told(done: Ended, *words: object, code: int = 2) -> None:
    """One or two lines that name the thing, the value and the cure."""
    assert done.code == code, done.err
    assert "Traceback" not in done.out + done.err
    assert 1 <= len(done.told.splitlines()) <= 2, done.told
    for word in words:
        assert str(word) in done.told
    # The cure is a sentence behind the message.
    assert done.told.count(". ") >= 1 or "? " in done.told, done.told


def assert_no_leftovers(folder: Path) -> None:
    """No file that was begun and not finished."""
    names = [name for name in snapshot(folder) if ".part-" in name or name.endswith(".tmp")]
    assert names == []


# Scans that are none


def truncated(path: Path) -> None:
    write_image(path, phantom(20)[0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def corrupt(path: Path) -> None:
    write_image(path, phantom(20)[0])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(b ^ 0xFF for b in data[middle : middle + 64])
    path.write_bytes(data)


def text(path: Path) -> None:
    path.write_text("This is a letter that somebody renamed.\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sized(*size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        nib.save(nib.Nifti1Image(ramp(size), np.diag([-6.0, -6.0, 6.0, 1.0])), path)

    return write


def no_slices(path: Path) -> None:
    sized(60, 60, 20)(path)
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[46:48] = (0).to_bytes(2, "little")  # dim[3] of the NIfTI header
    path.write_bytes(gzip.compress(bytes(data)))


def holes(path: Path) -> None:
    values = ramp((60, 60, 20), np.float32)
    values[30, 30, 10] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([-6.0, -6.0, 6.0, 1.0])), path)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "unreadable"),
    "corrupt": (corrupt, "unreadable"),
    "text": (text, "unreadable"),
    "empty": (empty, "empty"),
    "no_slices": (no_slices, "no voxels"),
    "four_dimensions": (sized(60, 60, 20, 3), "4 dimensions"),
    "not_a_number": (holes, "NaN"),
}
"""Files that no command can use, and a word of the reason."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that all bear a scan's name and are none."""
    folder = tmp_path_factory.mktemp("broken")
    for name, (write, _) in {**FAULTS, "one_slice": (sized(60, 60, 1), "")}.items():
        write(folder / f"{name}.nii.gz")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where commands write; may not exist afterwards."""
    return tmp_path / "output"


def nowhere(kind: str, folder: Path) -> Path:
    """A path at which no scan is to be had."""
    if kind == "folder without CT":
        (folder / "notes").mkdir()
        (folder / "notes" / "letter.txt").write_text("Dear colleague")
        return folder / "notes"
    if kind == "empty folder":
        (folder / "void").mkdir()
        return folder / "void"
    return folder / "does_not_exist"


NOWHERE = ("missing path", "empty folder", "folder without CT")


def test_a_scan_lists_every_file_it_refuses_with_the_reason(broken: Path, tmp_path: Path) -> None:
    before = snapshot(broken)
    index = tmp_path / "index.csv"
    done = backend("scan", broken, "--output", index)
    assert_told(done, broken, "no usable CT series", index)
    reasons = {row.path.name.removesuffix(".nii.gz"): row.reason for row in read_index(index)}
    assert reasons.keys() == {*FAULTS, "one_slice"}
    for name, (_, word) in FAULTS.items():
        assert word in reasons[name]
    assert "slice" in reasons["one_slice"]
    assert snapshot(broken) == before
    assert_no_leftovers(tmp_path)


def test_pretraining_on_broken_files_is_refused_before_anything_is_written(
    broken: Path, tmp_path: Path, place: Path
) -> None:
    before = snapshot(broken)
    done = backend(
        *(*PRETRAIN, "--data", broken, "--output", place, "--cache", tmp_path / "cache"),
        *("--max-steps", 1),
    )
    assert_told(done, broken, "no usable CT series", "unreadable")
    assert snapshot(tmp_path) == {}
    assert snapshot(broken) == before


def labelled_case(folder: Path, *, name: str, seed: int = 21) -> Path:
    """A good case folder, to be spoilt."""
    ct, label = phantom(seed)
    write_image(folder / name / "ct.nii.gz", ct)
    write_image(folder / name / "label.nii.gz", label)
    write_label_names(folder / "labels.json")
    return folder / name


def spoilt_set(folder: Path, *, fault: Path, part: str) -> Path:
    """A labelled set of two cases, of which one has a broken file."""
    labelled_case(folder, name="good")
    shutil.copy(fault, labelled_case(folder, name="spoilt", seed=22) / f"{part}.nii.gz")
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_named_by_every_command_that_reads_it(
    fault: str, broken: Path, tmp_path: Path, material: Material, runs: Runs
) -> None:
    file = broken / f"{fault}.nii.gz"
    sets = {
        part: spoilt_set(tmp_path / f"spoilt_{part}", fault=file, part=part)
        for part in ("ct", "label")
    }
    before = {folder: snapshot(folder) for folder in (broken, *sets.values())}
    out = tmp_path / "out"
    done = backend_each(
        {
            "segment": (
                *("segment", "--model", runs.finetune, "--input", file, "--device", "cpu"),
                *("--output", out / "segment" / "labels.nii.gz"),
            ),
            "evaluate": (
                *("evaluate", "--prediction", file, "--output", out / "evaluate"),
                *("--reference", material.labelled / "case_1" / "label.nii.gz"),
            ),
            **{
                part: (
                    *(*FINETUNE, "--data", folder, "--output", out / part, "--max-steps", 1),
                    *("--cache", tmp_path / "cache"),
                )
                for part, folder in sets.items()
            },
        }
    )
    assert_told(done["segment"], file, FAULTS[fault][1])
    assert_told(done["evaluate"], file)
    for part in sets:
        assert_told(done[part], "spoilt", f"{part}.nii.gz")
        state = status(out / part)
        assert state["state"] == "failed"
        assert state["error"]["type"] in {"UserError", "ScanError"}
        assert "spoilt" in state["error"]["message"]
        assert state["error"]["hint"]
        assert (out / part / "report.html").exists()
    assert {path.name for path in out.iterdir()} == {*sets}
    assert not (tmp_path / "cache").exists()
    assert {folder: snapshot(folder) for folder in before} == before
    assert_no_leftovers(tmp_path)


@pytest.mark.parametrize("kind", NOWHERE)
def test_where_no_scan_is_to_be_had_every_command_names_the_path(
    kind: str, tmp_path: Path, material: Material, runs: Runs
) -> None:
    path = nowhere(kind, tmp_path)
    before = snapshot(tmp_path)
    index = tmp_path / "index.csv"
    done = backend_each(
        {
            "scan": ("scan", path, "--output", index),
            "pretrain": (*PRETRAIN, "--data", path, "--output", tmp_path / "run"),
            "finetune": (*FINETUNE, "--data", path, "--output", tmp_path / "run"),
            "segment": (
                *("segment", "--model", runs.finetune, "--input", path),
                *("--output", tmp_path / "labels.nii.gz"),
            ),
            "evaluate": (
                *("evaluate", "--prediction", path, "--output", tmp_path / "evaluation"),
                *("--reference", material.labelled / "case_1" / "label.nii.gz"),
            ),
            "convert": ("convert", path, "--from", "smit", "--output", tmp_path / "x.safetensors"),
        }
    )
    for result in done.values():
        assert_told(result, path)
    kept = snapshot(tmp_path)
    if kind != "missing path":
        # What a scan found is told in the index, even if it is nothing.
        assert read_index(index) == []
        kept = {name: v for name, v in kept.items() if not name.startswith("index.")}
    assert kept == before


def test_a_set_of_one_slice_is_not_trained_on_in_silence(tmp_path: Path, place: Path) -> None:
    case = labelled_case(tmp_path / "set", name="flat")
    for part in ("ct", "label"):
        (case / f"{part}.nii.gz").unlink()
    sized(60, 60, 1)(case / "ct.nii.gz")
    nothing = np.zeros((60, 60, 1), np.uint8)
    nib.save(nib.Nifti1Image(nothing, np.diag([-6.0, -6.0, 6.0, 1.0])), case / "label.nii.gz")
    done = backend(*FINETUNE, "--data", tmp_path / "set", "--output", place, "--max-steps", 1)
    assert_told(done, "flat", "nothing is labelled")


# Settings

SETTINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "an unknown key": ("train: {batchsize: 4}", ("train.batchsize", "batch_size")),
    "an unknown section": ("optimiser: {lr: 1}", ("optimiser", "Known:")),
    "a value out of range": ("train: {learning_rate: -1}", ("train.learning_rate", "-1")),
    "a value of another kind": ("train: {epochs: many}", ("train.epochs", "many")),
    "broken YAML": ("train: {batch_size: 4", ("settings.yaml", "YAML")),
    "no settings": ("- 1\n- 2\n", ("settings.yaml", "holds no settings")),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_wrong_settings_file_is_told_with_key_value_and_cure(
    kind: str, tmp_path: Path, material: Material
) -> None:
    content, words = SETTINGS[kind]
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    before = snapshot(tmp_path)
    rest = ("--output", tmp_path / "run", "--config", file)
    done = backend_each(
        {
            "pretrain": (*PRETRAIN, "--data", material.unlabelled, *rest),
            "finetune": (*FINETUNE, "--data", material.labelled, *rest),
        }
    )
    for result in done.values():
        assert_told(result, *words)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.lerning_rate=1", ("train.lerning_rate", "'train.learning_rate'")),
        ("method.mask_ratio=1.5", ("method.mask_ratio", "1.5")),
        ("views.main.size=33", ("views.main.size", "33", "16")),
        ("train.seed", ("train.seed", "--set")),
        ("preprocess.orientation=LLL", ("preprocess.orientation", "LLL")),
        ("train.learning_rate=.nan", ("train.learning_rate", "finite")),
    ],
)
def test_a_wrong_setting_is_told_with_key_value_and_cure(
    setting: str, words: tuple[str, ...], place: Path, material: Material
) -> None:
    done = backend(*(*PRETRAIN, "--data", material.unlabelled, "--output", place, "--set", setting))
    assert_told(done, *words)
    assert not place.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pretrain", "--method", "smti", "--data", ".", "--output", "run"), ("smti", "'smit'")),
        (("pretrain", "--data", ".", "--output", "run"), ("--method",)),
        (("pretrain", "--method", "smit", "--output", "run"), ("--data",)),
        (("finetune", "--output", "run"), ("--data",)),
        (("describe", "--method", "smit", "--preset", "tinny"), ("tinny", "'tiny'")),
        (("stop", "--run", "nowhere"), ("nowhere", "run folder")),
        (("report", "--run", "nowhere"), ("nowhere", "run folder")),
        (("scan", ".", "--output", "index.txt"), ("index.txt", "index.csv")),
        (("scan", ".", "--output", "i.csv", "--min-slices", "0"), ("--min-slices", "0")),
        (("cache", "--list", "--cache", "nowhere"), ("nowhere", "--cache")),
        (("cache", "--prune"), ("--older-than-days", "--recipe", "--all")),
    ],
)
def test_a_wrong_option_is_told_with_its_cure(
    words: tuple[str, ...], told: tuple[str, ...], tmp_path: Path
) -> None:
    done = backend(*words, cwd=tmp_path)
    assert_told(done, *told)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--fraction", "0"), ("Fraction 0", "above 0")),
        (("--fraction", "1.5"), ("Fraction 1.5", "at most 1")),
        (("--folds", "1"), ("1 folds", "2 to 3")),
        (("--folds", "4"), ("4 folds", "2 to 3")),
        (("--cases", "case_7"), ("case_7", "case_1")),
        (("--set", "validation_fraction=1"), ("validation_fraction", "1")),
        (("--init", "none", "--freeze-encoder"), ("freeze_encoder", "--init")),
    ],
)
def test_a_division_that_cannot_be_is_refused_before_a_run_begins(
    options: tuple[str, ...], told: tuple[str, ...], tmp_path: Path, material: Material
) -> None:
    done = backend(
        *(*FINETUNE, "--data", material.labelled, "--output", tmp_path / "run"),
        *("--max-steps", 1, "--cache", material.cache, *options),
    )
    assert_told(done, *told)
    assert snapshot(tmp_path) == {}


# Places that cannot be written


def outputs(command: str, target: Path, runs: Runs) -> tuple[object, ...]:
    """A command that would succeed if only it could write to `target`; all scans are cached."""
    material = runs.material
    cached = ("--cache", material.cache, "--max-steps", 1)
    return {
        "scan": ("scan", material.unlabelled, "--output", target / "index.csv"),
        "pretrain": (*PRETRAIN, "--data", material.unlabelled, "--output", target, *cached),
        "finetune": (*FINETUNE, "--data", material.labelled, "--output", target, *cached),
        "segment": (
            *("segment", "--model", runs.finetune, "--input", material.oblique),
            *("--output", target / "labels.nii.gz", "--device", "cpu"),
        ),
        "evaluate": (
            *("evaluate", "--prediction", material.nnunet / "labelsTr" / "case_1.nii.gz"),
            *("--reference", material.labelled / "case_1", "--output", target),
        ),
        "convert": ("convert", "FILE", "--from", "monai", "--output", target / "x.safetensors"),
    }[command]


COMMANDS = ("scan", "pretrain", "finetune", "segment", "evaluate", "convert")


@pytest.fixture(scope="module")
def outside_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of MONAI's, as somebody else would have saved it."""
    from monai.networks.nets.swin_unetr import SwinTransformer

    network = SwinTransformer(1, 12, (4, 4, 4), (2, 2, 2), (2, 2), (2, 2), patch_norm=True)
    file = tmp_path_factory.mktemp("outside") / "monai.pt"
    torch.save({"state_dict": network.state_dict()}, file)
    return file


def every_command(target: Path, runs: Runs, outside_weights: Path) -> dict[str, tuple[object, ...]]:
    lines = {command: outputs(command, target, runs) for command in COMMANDS}
    return {
        command: tuple(outside_weights if word == "FILE" else word for word in words)
        for command, words in lines.items()
    }


@pytest.mark.parametrize("kind", ["below a file", "where no folder can be made"])
def test_an_output_that_cannot_be_written_is_named_by_every_command(
    kind: str, tmp_path: Path, runs: Runs, outside_weights: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    before = snapshot(tmp_path)
    # Not even root can make a folder in /proc.
    target = tmp_path / "file" / "run" if kind == "below a file" else Path("/proc/sslsegmentation")
    done = backend_each(every_command(target, runs, outside_weights))
    assert done.keys() == {*COMMANDS}
    for result in done.values():
        assert_told(result, tmp_path / "file" if kind == "below a file" else "/proc")
    assert snapshot(tmp_path) == before


# The first file that is larger than this is one that the command writes late.
ROOM = {"pretrain": 200_000, "finetune": 20_000}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_takes_no_more_ends_with_code_4_and_leaves_no_half_file(
    command: str, tmp_path: Path, runs: Runs, outside_weights: Path
) -> None:
    out = tmp_path / "out"
    line = every_command(out, runs, outside_weights)[command]
    done = backend(*line, first=limited(resource.RLIMIT_FSIZE, ROOM.get(command, 200)))
    assert_told(done, out, code=4)
    assert_no_leftovers(tmp_path)
    if command in ROOM:
        assert status(out)["error"]["type"] == "ResourceError"
        return
    for name in ("labels.nii.gz", "x.safetensors", "index.csv", "evaluation.json"):
        assert not (out / name).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs the rights of an administrator")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def test_a_run_on_a_full_disk_tells_so_and_keeps_its_status_readable(
    small_disk: Path, material: Material
) -> None:
    run = small_disk / "run"
    done = backend(
        *(*PRETRAIN, "--data", material.unlabelled, "--output", run, "--cache", material.cache),
        *("--max-steps", 2),
    )
    assert_told(done, run, "disk", "full", code=4)
    assert status(run)["state"] == "failed"
    assert status(run)["error"]["type"] == "ResourceError"
    assert not (run / "checkpoints" / "last.pt").exists()
    assert_no_leftovers(small_disk)


def fill(disk: Path) -> None:
    with (disk / "fill").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1 << 12))


def test_a_run_that_fails_where_not_a_byte_is_left_still_says_so(small_disk: Path) -> None:
    run = RunFolder(small_disk / "run", kind="pretrain", argv=(), resume=False)
    with pytest.raises(ResourceError, match="full"), run, run.outcome():
        fill(small_disk)
    assert status(run.path)["state"] == "failed"
    assert status(run.path)["error"]["type"] == "ResourceError"
    assert not (run.path / ".reserve").exists()


def test_an_output_that_exists_is_never_overwritten(
    tmp_path: Path, runs: Runs, outside_weights: Path
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for name in ("labels.nii.gz", "x.safetensors"):
        (target / name).write_text("precious")
    before = snapshot(tmp_path)
    lines = every_command(target, runs, outside_weights)
    for command in ("scan", "evaluate"):  # These renew what they wrote before.
        lines.pop(command)
    for result in backend_each(lines).values():
        assert_told(result, target)
    assert snapshot(tmp_path) == before


# Weights


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def booby_trap(file: Path, marker: Path) -> Path:
    """A pickle whose opening makes `marker`; proven here, and the marker removed again."""
    file.write_bytes(pickle.dumps({"state_dict": Marker(marker)}))
    pickle.loads(file.read_bytes())
    assert marker.exists()
    marker.unlink()
    return file


def every_reader(file: Path, folder: Path, material: Material) -> dict[str, tuple[object, ...]]:
    """All commands that take weights."""
    run = ("--output", folder / "run", "--cache", material.cache, "--init", file)
    return {
        "pretrain": (*PRETRAIN, "--data", material.unlabelled, *run),
        "finetune": (*FINETUNE, "--data", material.labelled, *run),
        "segment": (
            *("segment", "--model", file, "--input", material.oblique),
            *("--output", folder / "labels.nii.gz"),
        ),
        "convert": ("convert", file, "--from", "smit", "--output", folder / "x.safetensors"),
    }


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_pickle_is_refused_unread_by_every_command(
    ending: str, tmp_path: Path, material: Material
) -> None:
    marker = tmp_path / "was_here"
    file = booby_trap(tmp_path / f"weights{ending}", marker)
    before = snapshot(tmp_path)
    for result in backend_each(every_reader(file, tmp_path, material)).values():
        assert_told(result, file)
        assert not marker.exists()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["truncated", "text", "missing"])
def test_damaged_weights_are_refused_by_every_command_before_anything_is_written(
    kind: str, tmp_path: Path, material: Material, runs: Runs
) -> None:
    file = tmp_path / "weights.safetensors"
    good = (runs.finetune / "checkpoints" / "model.safetensors").read_bytes()
    content = {"truncated": good[:-1000], "text": b"no weights"}
    if kind in content:
        file.write_bytes(content[kind])
    before = snapshot(tmp_path)
    for result in backend_each(every_reader(file, tmp_path, material)).values():
        assert_told(result, file)
    assert snapshot(tmp_path) == before


def test_weights_of_another_network_are_refused(
    tmp_path: Path, material: Material, runs: Runs
) -> None:
    place = tmp_path / "run"
    other = ("--set", "method.encoder.embed_dim=8")
    cached = ("--cache", material.cache, "--max-steps", 1, "--output", place)
    fine = backend(*FINETUNE, "--data", material.labelled, "--init", runs.pretrain, *cached, *other)
    assert_told(fine, runs.pretrain, "embed_dim=4")
    pre = backend(
        *PRETRAIN, "--data", material.unlabelled, "--init", runs.pretrain, *cached, *other
    )
    assert_told(pre, runs.pretrain, "embed_dim")
    encoder = backend(
        *("segment", "--model", runs.pretrain, "--input", material.oblique),
        *("--output", tmp_path / "labels.nii.gz"),
    )
    assert_told(encoder, runs.pretrain)
    assert snapshot(tmp_path) == {}


# Devices and memory


@pytest.mark.parametrize(
    ("device", "commands"), [("cuda:7", ("pretrain", "finetune", "segment")), ("gpu", ("segment",))]
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    device: str, commands: tuple[str, ...], tmp_path: Path, runs: Runs
) -> None:
    lines = {}
    for command in commands:
        line = outputs(command, tmp_path / "out", runs)
        kept = [word for word in line if word not in {"--device", "cpu"}]
        lines[command] = (*kept, "--device", device)
    for result in backend_each(lines).values():
        assert_told(result, device, "cpu")
    assert snapshot(tmp_path) == {}


def test_too_little_memory_ends_with_code_4_and_says_what_to_lower(
    tmp_path: Path, material: Material
) -> None:
    done = backend(
        *(*PRETRAIN, "--data", material.unlabelled, "--output", tmp_path / "run"),
        *("--cache", material.cache, "--max-steps", 1),
        *("--set", "views.region=384", "--set", "views.main.size=384"),
        first=limited(resource.RLIMIT_AS, 3000 * MIB),
    )
    assert_told(done, "emory", "train.batch_size=2", "smaller crop", code=4)
    assert status(tmp_path / "run")["state"] == "failed"
    assert status(tmp_path / "run")["error"]["type"] == "ResourceError"


def test_too_little_memory_to_segment_ends_with_code_4(tmp_path: Path, runs: Runs) -> None:
    huge = tmp_path / "huge.nii.gz"
    # Ten metres of patient, as a wrong unit of the spacing makes them.
    nib.save(nib.Nifti1Image(ramp((200, 200, 200)), np.diag([-50.0, -50.0, 50.0, 1.0])), huge)
    done = backend(
        *("segment", "--model", runs.finetune, "--input", huge, "--device", "cpu"),
        *("--output", tmp_path / "labels.nii.gz"),
        first=limited(resource.RLIMIT_AS, 4000 * MIB),
    )
    assert_told(done, "emory", code=4)
    assert not (tmp_path / "labels.nii.gz").exists()
    assert_no_leftovers(tmp_path)
