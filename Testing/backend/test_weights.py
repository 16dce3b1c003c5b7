from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backend.config import BASELINES, FinetuneConfig, load_config
from backend.errors import UserError
from backend.models.segmentation import build_segmentation
from backend.provenance import encoder_arguments
from backend.weights import (
    SCHEMA,
    TOP_NAMES,
    WeightsHeader,
    load_into,
    load_weights,
    read_header,
    resolve_weights,
    save_weights,
)

ENCODER: dict[str, object] = {
    "kind": "swin",
    "embed_dim": 4,
    "depths": [1, 2],
    "heads": [1, 2],
    "window": 2,
    "patch": 2,
    "mlp_ratio": 2.0,
    "qkv_bias": False,
    "final_merge": True,
    "patch_norm": True,
}
UNET = {"kind": "unet", "widths": [4, 8], "norm": "batch", "decoder": True}
PREPROCESSING: dict[str, object] = {
    "spacing_mm": [2.0, 1.5, 1.5],
    "orientation": "LPS",
    "hu_window": [-175, 250],
    "intensity": "window",
    "body_margin_mm": 8.0,
    "body_threshold_hu": -350,
}
ARCHITECTURE: dict[str, object] = {
    "encoder": ENCODER,
    "decoder": "default",
    "classes": 2,
    "width": 4,
    "norm": "instance",
    "window": [32, 32, 32],
}
LABEL: dict[str, object] = {
    "value": 1,
    "name": "Hühnerleber",
    "color": [1, 2, 3],
    "terminology": "",
}


@pytest.fixture
def header() -> WeightsHeader:
    return WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing=PREPROCESSING,
        architecture=ARCHITECTURE,
        labels=(LABEL,),
        fingerprint={"scans": 3},
        versions={"torch": "2"},
        citations=("Jiang 2022",),
    )


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Some of those that such a network has: what is not there, the header cannot contradict."""
    return {
        "encoder.patch_embed.weight": torch.arange(32.0).reshape(4, 1, 2, 2, 2),
        "encoder.stages.0.0.attention.relative_bias": torch.ones(27, 1),
        "encoder.stages.1.0.linear1.weight": torch.ones(16, 8),
        "encoder.stages.1.1.norm1.weight": torch.ones(8),
        "out.conv.conv.weight": torch.ones(2, 4, 1, 1, 1),
    }


@pytest.fixture
def file(tmp_path: Path, header: WeightsHeader, tensors: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "model.safetensors"
    save_weights(path, tensors, header)
    return path


def test_header_and_tensors_come_back_as_they_were(
    file: Path, header: WeightsHeader, tensors: dict[str, torch.Tensor]
) -> None:
    found, read = load_weights(file)
    assert read == header
    assert read_header(file) == header
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert [p.name for p in file.parent.iterdir()] == ["model.safetensors"]


def test_shared_and_strided_tensors_are_saved_as_plain_copies(
    tmp_path: Path, header: WeightsHeader, tensors: dict[str, torch.Tensor]
) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    odd = {"whole": base, "same": base, "turned": base.T, "part": base[:, 1:3]}
    save_weights(tmp_path / "x.safetensors", tensors | odd, header)
    read, _ = load_weights(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in odd.items())


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


def test_a_single_wrong_bit_is_refused_where_a_network_is_loaded(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="checksum") as caught:
        load_weights(file)
    assert str(file) in caught.value.message


def test_another_number_in_the_header_is_refused_where_a_network_is_loaded(file: Path) -> None:
    before = file.read_bytes()
    after = before.replace(b"1.5, 1.5]", b"1.6, 1.5]")
    assert after != before
    file.write_bytes(after)
    with pytest.raises(UserError, match="checksum"):
        load_weights(file)


def test_safetensors_without_our_header_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="without our header"):
        read_header(tmp_path / "foreign.safetensors")


def _rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The file with another table; the numbers behind it stay."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _with_header(path: Path, where: str, value: object) -> None:
    """The file with one field of its header (e.g. `architecture.classes`) set to a value."""

    def change(table: dict[str, Any]) -> None:
        header = json.loads(table["__metadata__"]["sslsegmentation"])
        *parents, last = where.split(".")
        inner = header
        for name in parents:
            inner = inner[name]
        if value is ABSENT:
            del inner[last]
        else:
            inner[last] = value
        table["__metadata__"]["sslsegmentation"] = json.dumps(header)

    _rewritten(path, change)


ABSENT = object()


def test_a_newer_header_is_refused_and_an_unknown_key_is_not(
    file: Path, header: WeightsHeader
) -> None:
    _with_header(file, "added_later", 1)
    assert read_header(file) == header
    _with_header(file, "schema", SCHEMA + 1)
    with pytest.raises(UserError, match="newer version"):
        read_header(file)


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("kind", "cat", "'cat'"),
        ("kind", ABSENT, "kind"),
        ("schema", "new", "schema is 'new'"),
        ("schema", True, "schema is True"),
        ("schema", ABSENT, "schema"),
        ("method", "smot", "method 'smot'"),
        ("method", 3, "method = 3"),
        ("preset", "huge", "preset 'huge'"),
        ("labels", 3, "labels = 3"),
        ("labels", [], "labels name 0 structures, but classes is 2"),
        ("labels", [LABEL, LABEL | {"value": 2, "name": "b"}], "labels name 2 structures"),
        ("labels", ["liver"], "labels.0 = 'liver'"),
        ("labels", [LABEL | {"value": 0}], "labels.0.value = 0"),
        ("labels", [LABEL | {"value": True}], "labels.0.value = True"),
        ("labels", [LABEL | {"name": " "}], "labels.0.name = ' '"),
        ("labels", [LABEL | {"color": [1, 2, 256]}], "labels.0.color.2 = 256"),
        ("architecture", [], "architecture = []"),
        ("architecture.classes", 10**9, "architecture.classes = 1000000000"),
        ("architecture.classes", 2.0, "architecture.classes = 2.0"),
        ("architecture.window", [32, 32], "architecture.window.2 is missing"),
        ("architecture.window", [31, 32, 32], "window [31, 32, 32] is no multiple"),
        ("architecture.window", [8, 8, 10**6], "architecture.window.2 = 1000000"),
        ("architecture.width", 8, "out.conv.conv.weight [2, 8, 1, 1, 1]"),
        ("architecture.norm", "none", "architecture.norm = 'none'"),
        ("architecture.encoder", None, "architecture.encoder = None"),
        ("architecture.decoder", "aspp", "architecture.decoder = 'aspp'"),
        ("architecture.encoder.kind", "huge", "kind"),
        ("architecture.encoder.kind", ABSENT, "kind"),
        ("architecture.encoder.added", 1, "architecture.encoder.added = 1"),
        ("architecture.encoder.window", ABSENT, "architecture.encoder lacks window"),
        ("architecture.encoder.window", "4", "architecture.encoder.window = '4'"),
        ("architecture.encoder.window", 20, "relative_bias"),
        ("architecture.encoder.window", 10**6, "architecture.encoder.window = 1000000"),
        ("architecture.encoder.embed_dim", 8000, "patch_embed.weight [8000, 1, 2, 2, 2]"),
        ("architecture.encoder.embed_dim", 10**12, "embed_dim = 1000000000000"),
        ("architecture.width", 10**20, "architecture.width = 100000000000000000000"),
        ("architecture.encoder.depths", [1, 200], "depths is [1, 200]"),
        ("architecture.encoder.depths", [1, 10**9], "depths.1 = 1000000000"),
        ("architecture.encoder", UNET | {"widths": []}, "architecture.encoder.widths = []"),
        ("architecture.encoder", UNET | {"widths": [4] * 3000}, "at most 10 items"),
        ("architecture.encoder", UNET, "kind is unet, which has decoder, down; the file has"),
        ("architecture.encoder.mlp_ratio", 8, "linear1.weight [64, 8]"),
        ("architecture.encoder.mlp_ratio", 1e308, "mlp_ratio = 1e+308"),
        ("architecture.encoder.qkv_bias", 0, "qkv_bias = 0"),
        ("preprocessing", "LPS", "preprocessing = 'LPS'"),
        ("preprocessing.hu_window", ABSENT, "preprocessing lacks hu_window"),
        ("preprocessing.hu_window", [250, -175], "hu_window must rise"),
        ("preprocessing.spacing_mm", [float("nan"), 1, 1], "preprocessing.spacing_mm.0 = nan"),
        ("preprocessing.spacing_mm", [1e-9, 1, 1], "preprocessing.spacing_mm.0 = 1e-09"),
        ("preprocessing.spacing_mm", None, "spacing_mm"),
        ("preprocessing.intensity", "zs", "preprocessing.intensity = 'zs'"),
        ("preprocessing.intensity", ABSENT, "preprocessing lacks intensity"),
        ("preprocessing.spacing_mm", [1, 1], "preprocessing.spacing_mm.2 is missing"),
        ("preprocessing.orientation", 1, "preprocessing.orientation = 1"),
        ("preprocessing.body_margin_mm", float("inf"), "preprocessing.body_margin_mm = inf"),
        ("citations", [1], "citations.0 = 1"),
    ],
)
def test_a_header_that_says_what_cannot_be_is_refused_with_field_and_value(
    file: Path, where: str, value: object, told: str
) -> None:
    _with_header(file, where, value)
    with pytest.raises(UserError, match="damaged header") as caught:
        read_header(file)
    assert str(file) in caught.value.message
    assert told in caught.value.message
    assert len(caught.value.message) < 500
    assert caught.value.hint


@pytest.mark.parametrize("method", ["smit", "glmae", "pgl", "models_genesis", "spark", *BASELINES])
def test_the_names_of_each_family_are_those_of_its_network(method: str) -> None:
    settings = load_config(FinetuneConfig, method=method, preset="tiny").method
    arguments = {"encoder": encoder_arguments(settings), "decoder": "default"}
    network = build_segmentation({**arguments, "classes": 2, "width": 8, "norm": "instance"})
    part = network if method in BASELINES else network.get_submodule("encoder")
    assert {name.split(".")[0] for name in part.state_dict()} == TOP_NAMES[settings.encoder.kind]


def test_a_model_without_the_tensors_of_its_encoder_is_refused(
    tmp_path: Path, header: WeightsHeader
) -> None:
    save_weights(tmp_path / "x.safetensors", {"network.conv.weight": torch.ones(2)}, header)
    with pytest.raises(UserError, match=r"kind is swin.*no tensors encoder\.\*"):
        read_header(tmp_path / "x.safetensors")


def test_a_header_that_is_no_object_is_refused(file: Path) -> None:
    for text in ("[]", "3", "{", "[" * 100_000):
        _rewritten(file, lambda t, text=text: t["__metadata__"].update(sslsegmentation=text))
        with pytest.raises(UserError, match="damaged header"):
            read_header(file)


OUT = "out.conv.conv.weight"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (7, f"{OUT} = 7"),
        ({}, f"{OUT}.dtype is missing"),
        ({"dtype": "F32", "shape": [8]}, f"{OUT}.data_offsets is missing"),
        ({"dtype": "F32", "data_offsets": [0, 32]}, f"{OUT}.shape is missing"),
        ({"dtype": 32, "shape": [8], "data_offsets": [0, 32]}, f"{OUT}.dtype = 32"),
        ({"dtype": "F33", "shape": [8], "data_offsets": [0, 32]}, "dtype 'F33'"),
        ({"dtype": "F32", "shape": 8, "data_offsets": [0, 32]}, f"{OUT}.shape = 8"),
        ({"dtype": "F32", "shape": [-8], "data_offsets": [0, 32]}, f"{OUT}.shape.0 = -8"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [0]}, f"{OUT}.data_offsets.1 is missing"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [32, 0]}, "span -32 bytes"),
        ({"dtype": "F32", "shape": [9], "data_offsets": [0, 32]}, "span 32 bytes"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}, "ends at"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [10**9, 10**9 + 32]}, "[1000000000,"),
    ],
)
def test_a_table_in_which_a_tensor_has_no_place_is_refused(
    file: Path, entry: object, told: str
) -> None:
    _rewritten(file, lambda table: table.update({OUT: entry}))
    with pytest.raises(UserError, match="damaged table") as caught:
        load_weights(file)
    assert str(file) in caught.value.message
    assert told in caught.value.message
    assert "Copy the file again" in caught.value.hint


@pytest.mark.parametrize("metadata", [3, [], {"sslsegmentation": {}}, {"sslsegmentation": 1}])
def test_metadata_that_are_no_texts_are_refused(file: Path, metadata: object) -> None:
    _rewritten(file, lambda table: table.update(__metadata__=metadata))
    with pytest.raises(UserError, match="damaged table"):
        read_header(file)


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_file_and_tensor(
    file: Path, header: WeightsHeader, tensors: dict[str, torch.Tensor], value: float
) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    save_weights(file, tensors, header)
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: .*{re.escape(name)} holds"):
        load_weights(file)
