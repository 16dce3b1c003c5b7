"""Models are known by their headers, and what is no model is told with its cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.models import coarseness, find_models, read_model
from SSLPretrainLogic.project import Project, create_project

LABELS = (
    {"value": 1, "name": "liver", "color": [221, 130, 101], "terminology": "SCT^10200004^Liver"},
    {"value": 300, "name": "spleen", "color": [157, 108, 162], "terminology": ""},
)


def write(file: Path, **changes: Any) -> Path:
    """A safetensors file without tensors, as fine-tuning names its model."""
    header = {
        "schema": 1,
        "kind": "segmentation",
        "method": "smit",
        "preprocessing": {"spacing_mm": [5, 2, 1.5], "hu_window": [-175, 250]},
        "labels": LABELS,
        "fingerprint": {"training": 8, "validation": 2},
        **changes,
    }
    table = json.dumps({"__metadata__": {"sslsegmentation": json.dumps(header)}}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(table).to_bytes(8, "little") + table)
    return file


def write_run(folder: Path, *, started: str, kind: str = "finetune") -> Path:
    """A run folder that has a status and a model."""
    names = {"finetune": "best.safetensors", "pretrain": "encoder.safetensors"}
    write(folder / "checkpoints" / names[kind])
    status = {"schema": 1, "kind": kind, "state": "done", "started": started, "step": 1}
    more = {"updated": started, "host": "h", "pid": 1, "process_started": 0, "boot_id": ""}
    (folder / "status.json").write_text(json.dumps({**status, **more}), "utf-8")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create_project(tmp_path / "Projekt ä")


def test_a_header_gives_structures_spacing_window_and_origin(tmp_path: Path) -> None:
    model = read_model(write(tmp_path / "abdomen.safetensors"))
    assert (model.name, model.spacing_mm, model.hu_window) == ("abdomen", (5, 2, 1.5), (-175, 250))
    assert [(s.value, s.name, s.color) for s in model.structures] == [
        (1, "liver", (221, 130, 101)),
        (300, "spleen", (157, 108, 162)),
    ]
    assert model.structures[0].terminology == "SCT^10200004^Liver"
    assert (model.method, model.training, model.validation) == ("smit", 8, 2)


def test_models_of_a_project_are_listed_newest_first_and_encoders_not(project: Project) -> None:
    write_run(project.runs / "old", started="2026-01-01T00:00:00+00:00")
    write_run(project.runs / "cv" / "fold_2", started="2026-03-01T00:00:00+00:00")
    write_run(project.runs / "new", started="2026-02-01T00:00:00+00:00")
    write_run(project.runs / "smit", started="2026-04-01T00:00:00+00:00", kind="pretrain")
    (project.runs / "begun" / "checkpoints").mkdir(parents=True)
    found = find_models(project)
    assert [model.name for model in found.models] == ["cv/fold_2", "new", "old"]
    assert found.models[1].path == project.runs / "new"
    assert found.damaged == {}


def test_a_damaged_model_is_told_and_hides_no_other(project: Project) -> None:
    write_run(project.runs / "good", started="2026-01-01T00:00:00+00:00")
    bad = write_run(project.runs / "bad", started="2026-01-02T00:00:00+00:00")
    (bad / "checkpoints" / "best.safetensors").write_bytes(b"\x10")
    found = find_models(project)
    assert [model.name for model in found.models] == ["good"]
    assert "no safetensors file" in found.damaged[bad]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "encoder"}, "'encoder', which segment nothing. Fine-tune"),
        ({"labels": []}, "segment nothing"),
        ({"schema": 2}, "version 2.*Update"),
        ({"preprocessing": {}}, "damaged.*spacing_mm"),
        ({"labels": [{"value": 1, "name": "liver", "color": [1, 2]}]}, "damaged"),
    ],
)
def test_what_segments_nothing_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(LogicError, match=told):
        read_model(write(tmp_path / "model.safetensors", **changes))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04abcdefgh", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 64]
)
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(LogicError, match=r"x\.safetensors: .*Choose a model"):
        read_model(file)


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogicError, match="no model yet"):
        read_model(tmp_path)
    with pytest.raises(LogicError, match="not there any more"):
        read_model(tmp_path / "gone")


def test_spacings_are_compared_whatever_the_order_of_the_axes(tmp_path: Path) -> None:
    model = read_model(write(tmp_path / "m.safetensors"))
    assert coarseness(model, (1.5, 2.0, 5.0)) == 1
    assert coarseness(model, (5.0, 0.5, 2.0)) == 3
