"""The words that the logic makes are those that the backend's command line understands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from backend.cli.commands import COMMANDS
from backend.cli.options import understood
from backend.cli.training import Finetune
from SSLPretrainLogic.commands import (
    DescribeRequest,
    EvaluateRequest,
    FinetuneRequest,
    MethodsRequest,
    PretrainRequest,
    ReportRequest,
    Request,
    ScanRequest,
    SegmentRequest,
    StopRequest,
    words,
)

ODD = Path("/data/Müller's 100% (new)/-x")
REQUESTS: list[Request] = [
    ScanRequest(paths=(ODD, Path("-b")), output=ODD, min_slices=3, quick=True, workers=2),
    PretrainRequest(
        method="smit",
        data=(ODD, Path("/b")),
        output=ODD,
        preset="tiny",
        max_steps=5,
        epochs=2,
        device="cuda:1",
        resume=True,
        init=ODD,
        probe_data=ODD,
        cache=ODD,
        config=ODD,
        overrides=("train.batch_size=4", "a.b=[1, 2]"),
        dry_run=True,
        json=True,
    ),
    FinetuneRequest(
        data=ODD,
        init="none",
        output=ODD,
        method="smit",
        preset="tiny",
        cases=("pt_1*", "b c"),
        freeze_encoder=True,
        fraction=0.5,
        folds=3,
        max_steps=5,
        epochs=2,
        device="mps",
        resume=True,
        cache=ODD,
        config=ODD,
        overrides=("crop=32",),
    ),
    SegmentRequest(
        model=ODD,
        input=ODD,
        output=ODD,
        structures=("left kidney", "spleen"),
        device="cpu",
        ending=".nrrd",
        overwrite=True,
    ),
    EvaluateRequest(
        prediction=ODD,
        reference=ODD,
        output=ODD,
        labels=ODD,
        tolerance_mm=1.5,
        allow_unmatched=True,
    ),
    StopRequest(run_folder=ODD, grace=2.5),
    ReportRequest(run_folder=ODD),
    MethodsRequest(baselines=True),
    DescribeRequest(method="smit", preset="tiny", overrides=("train.batch_size=4",)),
]
UNUSED = {
    "methods": {"measure"},
    "describe": {"diff", "measure"},
    **{name: {"devices"} for name in ("pretrain", "finetune", "segment")},
}
"""Options of the command line that the GUI has no use for."""


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.command)
def test_every_option_arrives_as_it_was_asked(request_: Request) -> None:
    name, *options = words(request_)
    command = understood(name, options)
    assert type(command).__name__.lower() == request_.command
    asked = {f.name: getattr(request_, f.name) for f in dataclasses.fields(request_)}
    if request_.command == "scan":
        asked["paths"] = (ODD, Path.cwd() / "-b")
    given = {f.name: getattr(command, f.name) for f in dataclasses.fields(command)}
    assert {name: given[name] for name in asked} == asked
    assert given.keys() - asked.keys() == UNUSED.get(request_.command, set())


def test_what_is_left_out_is_left_to_the_backend() -> None:
    line = words(FinetuneRequest(data=ODD, output=ODD))
    assert line == ("finetune", "--output", str(ODD), "--data", str(ODD))
    assert understood(line[0], line[1:]) == Finetune(output=ODD, data=ODD)


def test_every_request_is_a_command_of_the_backend() -> None:
    assert {request.command for request in REQUESTS} <= COMMANDS.keys()
