import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backend.errors import UserError
from backend.weights import (
    SCHEMA,
    WeightsHeader,
    load_into,
    load_weights,
    read_header,
    resolve_weights,
    save_weights,
)


@pytest.fixture
def header() -> WeightsHeader:
    return WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing={
            "spacing_mm": [2.0, 1.5, 1.5],
            "orientation": "LPS",
            "hu_window": [-175, 250],
        },
        architecture={"window": [32, 32, 32], "classes": 2},
        labels=({"value": 1, "name": "Hühnerleber", "color": [1, 2, 3], "terminology": ""},),
        fingerprint={"scans": 3},
        versions={"torch": "2"},
        citations=("Jiang 2022",),
    )


@pytest.fixture
def file(tmp_path: Path, header: WeightsHeader) -> Path:
    path = tmp_path / "model.safetensors"
    save_weights(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, header)
    return path


def test_header_and_tensors_come_back_as_they_were(file: Path, header: WeightsHeader) -> None:
    tensors, read = load_weights(file)
    assert read == header
    assert read_header(file) == header
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3))
    assert [p.name for p in file.parent.iterdir()] == ["model.safetensors"]


def test_shared_and_strided_tensors_are_saved_as_plain_copies(
    tmp_path: Path, header: WeightsHeader
) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "same": base, "turned": base.T, "part": base[:, 1:3]}
    save_weights(tmp_path / "x.safetensors", tensors, header)
    read, _ = load_weights(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_reading_a_header_does_not_import_torch(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from backend.weights import read_header\n"
        f"read_header(Path({str(file)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["last.pt", "model.pth", "disguised.safetensors"])
def test_a_pickle_is_refused_unread_with_the_cure(tmp_path: Path, name: str) -> None:
    torch.save({"weights": torch.ones(2)}, tmp_path / name)
    for refusing in (read_header, load_weights, resolve_weights):
        with pytest.raises(UserError, match="backend convert"):
            refusing(tmp_path / name)


def test_a_bare_pickle_under_our_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match="pickled"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_file_cut_off_anywhere_is_refused(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match="cut off"):
        load_weights(file)


def test_safetensors_without_our_header_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="without our header"):
        read_header(tmp_path / "foreign.safetensors")


def _with_header(path: Path, change: dict[str, object], header: WeightsHeader) -> None:
    save_weights(path, {"a": torch.ones(1)}, header)
    values = json.loads(json.dumps(header.__dict__)) | change
    save_file({"a": torch.ones(1)}, path, metadata={"sslsegmentation": json.dumps(values)})


def test_a_newer_header_is_refused_and_an_unknown_key_is_not(
    tmp_path: Path, header: WeightsHeader
) -> None:
    path = tmp_path / "x.safetensors"
    _with_header(path, {"added_later": 1}, header)
    assert read_header(path) == header
    _with_header(path, {"schema": SCHEMA + 1}, header)
    with pytest.raises(UserError, match="newer version"):
        read_header(path)


@pytest.mark.parametrize("change", [{"kind": "cat"}, {"labels": 3}, {"schema": "new"}])
def test_a_damaged_header_is_refused(
    tmp_path: Path, header: WeightsHeader, change: dict[str, object]
) -> None:
    _with_header(tmp_path / "x.safetensors", change, header)
    with pytest.raises(UserError, match="damaged"):
        read_header(tmp_path / "x.safetensors")


def test_weights_that_cannot_be_written_leave_nothing_behind(
    tmp_path: Path, header: WeightsHeader
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file stands"):
        save_weights(tmp_path / "file" / "x.safetensors", {"a": torch.ones(1)}, header)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_loading_copies_what_matches_and_reports_the_rest() -> None:
    source, target = _network(), _network()
    tensors = {f"encoder.{k}": v + 1 for k, v in source.state_dict().items()}
    tensors["encoder.2.weight"] = torch.zeros(5, 4)
    del tensors["encoder.2.bias"]
    tensors |= {"encoder.extra": torch.ones(1), "decoder.x": torch.ones(1)}
    before = target[2].weight.clone()
    report = load_into(target, tensors, prefix="encoder.", minimum_share=0.7, what="test")
    assert torch.equal(target[0].weight, source[0].weight + 1)
    assert torch.equal(target[1].running_mean, source[1].running_mean + 1)
    assert torch.equal(target[2].weight, before)
    assert report.missing == ("2.bias",)
    assert report.unexpected == ("extra",)
    assert report.mismatched == (("2.weight", (2, 4), (5, 4)),)
    # Linear 3*4+4 and the norm's 4+4 of 34 parameters; the norm's buffers do not count.
    assert report.share == pytest.approx(24 / 34)
    assert "70.6%" in report.text()
    assert "2.weight (ours (2, 4), file (5, 4))" in report.text()


def test_below_the_share_nothing_is_loaded_and_keys_are_named() -> None:
    target = _network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    tensors = {"0.weight": torch.ones(4, 3), "stranger": torch.ones(1)}
    with pytest.raises(UserError, match=r"only 35\.3%.*0\.bias.*stranger"):
        load_into(target, tensors, what="test")
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_no_match_fails_even_where_no_share_is_asked() -> None:
    with pytest.raises(UserError, match="nothing was loaded"):
        load_into(_network(), {"stranger": torch.ones(1)}, minimum_share=0.0, what="test")


def test_a_run_folder_gives_its_best_weights_and_an_empty_one_says_what_is_missing(
    tmp_path: Path, file: Path, header: WeightsHeader
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no weights.*model\.safetensors"):
        resolve_weights(run)
    for name in ("encoder.safetensors", "best.safetensors"):
        save_weights(run / "checkpoints" / name, {"a": torch.ones(1)}, header)
    assert resolve_weights(run).name == "best.safetensors"
    assert resolve_weights(run, prefer=("encoder.safetensors",)).name == "encoder.safetensors"
    assert resolve_weights(file) == file
    with pytest.raises(UserError, match="no such"):
        resolve_weights(tmp_path / "nowhere")
