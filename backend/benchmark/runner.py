"""The recipe behind `backend benchmark`: works a plan off arm by arm, in one process or several.

Every arm and pretraining is claimed by a lock while it is worked on, so that the same command,
started as often as one likes, shares the grid; a process that dies leaves its arm to the others.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backend import evaluate, finetune, pretrain
from backend.benchmark.cases import Cases, copies_of
from backend.benchmark.grid import (
    RANDOM,
    Arm,
    Pretraining,
    Start,
    arms,
    digest,
    finetune_texts,
    pretrain_texts,
    starts,
)
from backend.benchmark.material import (
    phantom_folder,
    prepared_cases,
    present_files,
    reference_folder,
    require_present,
    require_unseen_by_weights,
)
from backend.benchmark.plan import Plan, read_plan
from backend.benchmark.publish import publish
from backend.benchmark.report import Findings, text_of, write_findings
from backend.benchmark.sharing import claimed, made_once
from backend.benchmark.tables import CURVES, MADE_ON, RESULTS, RUNS, Table, csv_text
from backend.data.index import found_series, usable, write_index
from backend.data.label_files import write_labels_file
from backend.data.labelled import LabelledCase
from backend.data.labels import write_labels
from backend.data.readers import read_volume
from backend.engine.record import read_metrics, read_status
from backend.engine.signals import StopRequest
from backend.errors import Cancelled, Interrupted, told_plainly
from backend.files import write_json, write_text
from backend.preparation import check_device
from backend.provenance import (
    encoder_arguments,
    preprocessing,
    processor_name,
    software_versions,
    source_commit,
)
from backend.report.words import duration_text

log = logging.getLogger("backend")

_POLL_S = 1.0
_CASES = ("case", "image", "label", "split")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for.

    Attributes:
        plan: the plan file.
        output: folder of tables, report and runs.
        overrides: `key=value` texts over the plan.
        device: where to compute.
        cache: folder of preprocessed scans; None: in the output.
        publish: folder for what may be shown to others, once all is done.
    """

    plan: Path
    output: Path
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    cache: Path | None = None
    publish: Path | None = None


def run(request: Request) -> Path:
    """Work off what of the plan is not done yet, and write tables and report.

    Returns:
        The report.

    Raises:
        UserError: if the plan is refused, or data is missing.
        Cancelled, Interrupted: on a signal; what is finished stays, and the next start goes on.
    """
    plan = read_plan(request.plan, request.overrides)
    found = starts(plan)
    require_present(plan)
    check_device(request.device)
    stop = StopRequest()
    try:
        with stop.listening():
            bench = _prepared(plan, found, request, stop)
            try:
                _work_off(bench)
            finally:
                report = _reported(bench)
            _published(bench)
    except (Cancelled, Interrupted) as error:
        told = "What is finished stays; start the same command again to go on."
        raise type(error)(error.message, told) from error
    return report


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """A plan at work.

    Attributes:
        plan: what is asked.
        request: how.
        cases: the labelled scans.
        grid: every arm.
        stop: asks to end.
        made_on: device, processor, threads and versions, as they stand in `runs.csv`.
    """

    plan: Plan
    request: Request
    cases: Cases
    grid: tuple[Arm, ...]
    stop: StopRequest
    made_on: Mapping[str, str]

    @property
    def output(self) -> Path:
        """Where everything is written."""
        return self.request.output

    @property
    def cache(self) -> Path:
        """Preprocessed scans."""
        return self.request.cache or self.output / "cache"

    @property
    def index(self) -> Path:
        """What is pretrained on."""
        assert self.plan.pretrain is not None, "the plan is checked"
        asked = {
            "data": self.plan.pretrain.data,
            "without": [] if self.plan.pretrain_on_test else [c.id for c in self.cases.test],
        }
        return self.output / f"index_{digest(asked)[:6]}"

    @property
    def results(self) -> Table:
        """Scores of every case and organ."""
        return Table(self.output / "results.csv", RESULTS)

    @property
    def curves(self) -> Table:
        """Validation over the steps."""
        return Table(self.output / "curves.csv", CURVES)

    @property
    def runs(self) -> Table:
        """What each run took, and on what."""
        return Table(self.output / "runs.csv", RUNS, ("processor", "threads", "commit"))

    def run_folder(self, arm: Arm) -> Path:
        """Of the fine-tuning of an arm."""
        return self.output / "runs" / arm.folder

    def pretrain_folder(self, pretraining: Pretraining) -> Path:
        """Of a pretraining."""
        return self.output / "pretrain" / pretraining.folder

    def finished(self) -> set[str]:
        """Keys of the arms that have a row for every test case."""
        judged: dict[str, set[str]] = {}
        for row in self.results.rows():
            judged.setdefault(row["key"], set()).add(row["case"])
        wanted = {case.id for case in self.cases.test}
        return {key for key, cases in judged.items() if cases >= wanted}


def _prepared(plan: Plan, found: Sequence[Start], request: Request, stop: StopRequest) -> _Bench:
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise told_plainly(error, request.output) from error
    cases = prepared_cases(plan, request.output)
    if not plan.pretrain_on_test:
        require_unseen_by_weights(found, cases)
    grid = arms(plan, found, cases)
    return _Bench(
        plan=plan,
        request=request,
        cases=cases,
        grid=grid,
        stop=stop,
        made_on=_made_on(request.device),
    )


def _made_on(device: str) -> dict[str, str]:
    """What `runs.csv` says of every run; of the code it is what was there when this began."""
    import torch

    from backend.engine.device import device_text, resolve_device

    versions = software_versions()
    values = (
        device_text(resolve_device(device)),
        processor_name(),
        str(torch.get_num_threads()),
        versions["backend"],
        versions["torch"],
        source_commit() or "",
    )
    return dict(zip(MADE_ON, values, strict=True))


def _work_off(bench: _Bench) -> None:
    """Do arms until all are done; what others work on is waited for."""
    while left := [arm for arm in bench.grid if arm.key not in (done := bench.finished())]:
        bench.stop.check()
        log.info("%s", _progress(bench, left))
        while not any(_attempt(bench, arm) for arm in left):
            time.sleep(_POLL_S)
            bench.stop.check()
            if bench.finished() != done:
                break


def _progress(bench: _Bench, left: Sequence[Arm]) -> str:
    """How much is done, and how long the rest takes by what was measured so far."""
    finished = len(bench.grid) - len(left)
    pretrainings = {
        arm.pretraining.key
        for arm in left
        if arm.pretraining is not None and not _is_done(bench.pretrain_folder(arm.pretraining))
    }
    seconds: dict[str, list[float]] = {"arm": [], "pretraining": []}
    for row in bench.runs.rows():
        seconds[row["kind"]].append(float(row["seconds"]))
    counts = {"arm": len(left), "pretraining": len(pretrainings)}
    told = f"{finished} of {len(bench.grid)} arms done"
    if all(seconds[kind] for kind, count in counts.items() if count):
        rest = sum(
            count * sum(seconds[kind]) / len(seconds[kind])
            for kind, count in counts.items()
            if count
        )
        told += f", about {duration_text(rest)} left for one process"
    return told


def _attempt(bench: _Bench, arm: Arm) -> bool:
    """Do an arm; False if another process has it or its pretraining."""
    locks = bench.output / "locks"
    with claimed(locks / f"{arm.key}.lock") as mine:
        if not mine:
            return False
        if arm.key in bench.finished():
            return True
        if arm.pretraining is not None and not _pretrained(bench, arm.pretraining):
            return False
        log.info("%s", arm)
        began = time.monotonic()
        folder = _finetuned(bench, arm)
        rows = _judged(bench, arm, folder)
        bench.curves.put(arm.key, _curve(arm, folder))
        _note_run(bench, arm.key, arm.folder, kind="arm", seconds=time.monotonic() - began)
        # Last, for with these an arm is done.
        bench.results.put(arm.key, rows)
        return True


def _is_done(folder: Path) -> bool:
    return (folder / "status.json").exists() and read_status(folder)["state"] == "done"


def _begun(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _note_run(bench: _Bench, key: str, name: str, *, kind: str, seconds: float) -> None:
    row = {"run": name, "kind": kind, "seconds": f"{seconds:.1f}", **bench.made_on}
    bench.runs.put(key, [row])


def _pretrained(bench: _Bench, pretraining: Pretraining) -> bool:
    """Do a pretraining unless it is done; False if another process does."""
    folder = bench.pretrain_folder(pretraining)
    with claimed(bench.output / "locks" / f"{pretraining.key}.lock") as mine:
        if not mine or _is_done(folder):
            return mine
        made_once(bench.index, partial(_write_pretrain_index, bench))
        entry = pretraining.start.entry
        log.info("Pretraining %s, seed %d", entry.name, pretraining.seed)
        began = time.monotonic()
        pretrain.run(
            pretrain.PretrainRequest(
                output=folder,
                data=(bench.index / "index.csv",),
                method=entry.method,
                preset=entry.preset,
                overrides=(
                    *pretrain_texts(bench.plan, entry),
                    f"train.seed={pretraining.seed}",
                ),
                device=bench.request.device,
                resume=_begun(folder),
                cache=bench.cache,
                argv=tuple(sys.argv),
            )
        )
        seconds = time.monotonic() - began
        _note_run(bench, pretraining.key, pretraining.folder, kind="pretraining", seconds=seconds)
        return True


def _write_pretrain_index(bench: _Bench, folder: Path) -> None:
    """An index without the images of test cases, and which those were."""
    assert bench.plan.pretrain is not None, "the plan is checked"
    paths = [Path(path) for path in bench.plan.pretrain.data]
    if bench.plan.data.phantoms is not None:
        paths.append(phantom_folder(bench.plan, bench.output) / "unlabelled")
    rows = found_series(paths)
    seen = {} if bench.plan.pretrain_on_test else copies_of(bench.cases.test, present_files(rows))
    kept = [row for row in rows if row.id not in seen]
    folder.mkdir()
    write_index(folder / "index.csv", kept)
    write_json(folder / "left_out.json", {"scans": len(usable(kept)), "left_out": seen})


def _finetuned(bench: _Bench, arm: Arm) -> Path:
    """The run folder of a finished fine-tuning."""
    folder = bench.run_folder(arm)
    if _is_done(folder):
        return folder
    entry = arm.start.entry
    frozen = ("freeze_encoder=true",) if arm.frozen else ()
    finetune.run(
        finetune.FinetuneRequest(
            output=folder,
            data=_written_set(bench, arm),
            init=_origin(bench, arm),
            method=entry.method,
            preset=entry.preset,
            overrides=(
                *finetune_texts(bench.plan, entry),
                f"train.seed={arm.seed}",
                *frozen,
            ),
            device=bench.request.device,
            resume=_begun(folder),
            cache=bench.cache,
            argv=tuple(sys.argv),
        )
    )
    return folder


def _written_set(bench: _Bench, arm: Arm) -> Path:
    """The cases of an arm as a labelled set, each marked as what it is for."""
    folder = bench.output / "sets"
    chosen = [case for case in bench.cases.train if case.id in arm.cases]
    rows = [
        _case_row(case, split)
        for split, cases in (("train", chosen), ("validation", bench.cases.validation))
        for case in cases
    ]
    folder.mkdir(exist_ok=True)
    write_labels(folder / "labels.json", bench.cases.labels)
    write_text(folder / f"{arm.folder}.csv", csv_text(_CASES, rows))
    return folder / f"{arm.folder}.csv"


def _case_row(case: LabelledCase, split: str) -> dict[str, object]:
    image = case.image[0] if len(case.image) == 1 else case.image[0].parent
    return {
        "case": case.id,
        "image": image.absolute(),
        "label": case.label.absolute(),
        "split": split,
    }


def _origin(bench: _Bench, arm: Arm) -> Path | None:
    """What the encoder of an arm starts from; None is random."""
    if arm.pretraining is not None:
        return bench.pretrain_folder(arm.pretraining)
    if arm.start.weights is None and arm.frozen:
        return _random_encoder(bench, arm)
    return arm.start.weights


def _random_encoder(bench: _Bench, arm: Arm) -> Path:
    """Weights as they are before any training: what a frozen encoder is compared with."""
    import torch

    from backend.models.encoder import build_encoder
    from backend.weights import WeightsHeader, save_weights

    config = arm.start.finetune
    arguments = encoder_arguments(config.method)
    path = bench.output / "weights" / f"{RANDOM}_{arm.start.network}_seed{arm.seed}.safetensors"
    torch.manual_seed(arm.seed)
    header = WeightsHeader(
        kind="encoder",
        method=config.method.name,
        preset=config.preset,
        preprocessing=preprocessing(config.preprocess),
        architecture={"encoder": arguments},
        versions=software_versions(),
    )
    save_weights(path, build_encoder(arguments).state_dict(), header)
    return path


def _judged(bench: _Bench, arm: Arm, folder: Path) -> list[dict[str, object]]:
    """Segment the test cases with the last weights and compare: one row per case and organ."""
    from backend.engine.device import resolve_device
    from backend.inference.predictor import load_predictor

    device = str(resolve_device(bench.request.device))
    predictor = load_predictor(folder / "checkpoints" / "model.safetensors", device=device)
    predictions = folder / "predictions"
    for case in bench.cases.test:
        bench.stop.check()
        found = predictor.segment(read_volume(case.image), progress=lambda *_: bench.stop.check())
        write_labels_file(predictions / f"{case.id}.nii.gz", found, predictor.labels)
    result = evaluate.evaluate(predictions, reference_folder(bench.cases, bench.output))
    return [_arm_row(arm) | row for row in evaluate.rows_of(result)]


def _arm_row(arm: Arm) -> dict[str, object]:
    return {
        "start": arm.start.entry.name,
        "network": arm.start.network,
        "mode": arm.mode,
        "labels": len(arm.cases),
        "seed": arm.seed,
    }


def _curve(arm: Arm, folder: Path) -> list[dict[str, Any]]:
    """Mean Dice of the validation scans over the steps."""
    return [
        {**_arm_row(arm), "step": record["step"], "dice": f"{record['val/dice_mean']:.6g}"}
        for record in read_metrics(folder)
        if "val/dice_mean" in record
    ]


def _published(bench: _Bench) -> None:
    if bench.request.publish is not None:
        publish(bench.request.publish, _finished_rows(bench))
        sys.stdout.write(f"Published: {bench.request.publish}\n")


def _reported(bench: _Bench) -> Path:
    """Tables and report of what is finished."""
    given = _finished_rows(bench)
    report = write_findings(bench.output, given)
    sys.stdout.write(f"\n{text_of(bench.output, given)}Report: {report.resolve()}\n")
    return report


def _finished_rows(bench: _Bench) -> Findings:
    finished = bench.finished() & {arm.key for arm in bench.grid}
    pretrainings = {arm.pretraining.key for arm in bench.grid if arm.pretraining is not None}
    return Findings(
        plan=bench.plan,
        grid=bench.grid,
        cases=bench.cases,
        results=[row for row in bench.results.rows() if row["key"] in finished],
        curves=[row for row in bench.curves.rows() if row["key"] in finished],
        runs=[row for row in bench.runs.rows() if row["key"] in finished | pretrainings],
        pretraining=_left_out(bench) if pretrainings else {},
    )


def _left_out(bench: _Bench) -> dict[str, Any]:
    """How many scans are pretrained on, and which images were left out of them."""
    path = bench.index / "left_out.json"
    told: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return told
