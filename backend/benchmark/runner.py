"""The recipe behind `backend benchmark`: works a plan off arm by arm, in one process or several.

Every arm and pretraining is claimed by a lock while it is worked on, so that the same command,
started as often as one likes, shares the grid; a process that dies leaves its arm to the others.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from backend import evaluate, finetune, pretrain
from backend.benchmark.cases import Cases
from backend.benchmark.crew import places, work_together
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
from backend.benchmark.ledger import arm_cells, finished, own_rows
from backend.benchmark.material import (
    phantom_folder,
    prepared_cases,
    reference_file,
    reference_folder,
    require_present,
    require_same_cases,
    scans_to_pretrain,
)
from backend.benchmark.plan import Plan, read_plan
from backend.benchmark.publish import PLAN_FILE, publish, require_free
from backend.benchmark.report import Findings, text_of, write_findings
from backend.benchmark.seen import require_unseen_by_weights
from backend.benchmark.sharing import claimed, made_once
from backend.benchmark.tables import CURVES, RESULTS, RUNS, Row, Table, csv_text
from backend.data.index import read_index, usable, write_index
from backend.data.label_files import write_labels_file
from backend.data.labelled import LabelledCase
from backend.data.labels import write_labels
from backend.data.pool import usable_cores
from backend.data.readers import read_volume
from backend.engine.record import read_json, read_metrics, read_status
from backend.engine.signals import StopRequest
from backend.errors import Cancelled, Interrupted, UserError, told_plainly
from backend.files import write_json, write_text
from backend.preparation import check_device
from backend.progress import told_time
from backend.provenance import (
    encoder_arguments,
    preprocessing,
    processor_name,
    software_versions,
    source_commit,
)

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
        processes: how many share the arms; None: one for each GPU, or as many as have cores.
        cache: folder of preprocessed scans; None: in the output.
        publish: folder for what may be shown to others, once all is done.
    """

    plan: Path
    output: Path
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    processes: int | None = None
    cache: Path | None = None
    publish: Path | None = None


def run(request: Request) -> Path:
    """Work off what of the plan is not done yet, and write tables and report.

    Returns:
        The report.

    Raises:
        UserError: if the plan is refused, data is missing, a folder cannot be one, or a table in
            it is not as it was written.
        Cancelled, Interrupted: on a signal; what is finished stays, and the next start goes on.
    """
    with at_work(request) as bench:
        try:
            work_off_everywhere(bench)
        finally:
            report = _reported(bench)
        _published(bench)
    return report


@contextmanager
def at_work(request: Request, *, rehearsal: bool = False) -> Iterator[Bench]:
    """All that a plan needs before its first arm; signals are listened to inside the block.

    Args:
        request: what the user asked for.
        rehearsal: nothing will be concluded, so that labels may be corrected from one to the next.

    Raises:
        UserError, Cancelled, Interrupted: see `run`.
    """
    _require_places(request)
    plan = read_plan(request.plan, request.overrides)
    if request.publish is not None:
        require_free(request.publish, plan)
    _require_apart(plan, request.output)
    found = starts(plan)
    require_present(plan)
    check_device(request.device)
    if request.publish is not None:
        _made(request.publish)
    stop = StopRequest()
    try:
        with stop.listening():
            bench = _prepared(plan, found, request, stop)
            if not rehearsal:
                require_same_cases(bench.cases, bench.output, between=stop.check)
            _require_judged_by(reference_folder(bench.cases, bench.output), bench)
            _require_same_scans(bench)
            yield bench
    except (Cancelled, Interrupted) as error:
        told = "What is finished stays; start the same command again to go on."
        raise type(error)(error.message, told) from error


def _require_judged_by(references: Path, bench: Bench) -> None:
    """Refuse labels other than those that are to judge, if somebody wrote them meanwhile."""
    if bench.references != references:
        raise UserError(
            f"{bench.output}: a labelled scan was written anew while all were read.",
            "Start the same command again.",
        )


def _require_same_scans(bench: Bench) -> None:
    """Refuse pretrainings that are done, of other scans than the plan names by now."""
    asked = {a.pretraining.key: a.pretraining for a in bench.grid if a.pretraining is not None}
    folders = [f for f in map(bench.pretrain_folder, asked.values()) if _is_done(f)]
    if not folders:
        return
    made_once(bench.index, partial(_write_pretrain_index, bench), between=bench.stop.check)
    now = {row.id for row in usable(read_index(bench.index / "index.csv"))}
    for folder in folders:
        with _curable(folder):
            then = {row.id for row in usable(read_index(folder / "index.csv"))}
        if then != now:
            raise UserError(
                f"{folder}: has pretrained on other scans than pretrain.data names now.",
                "Name those that it had, or take another --output.",
            )


def _require_apart(plan: Plan, output: Path) -> None:
    """Refuse to pretrain on what the benchmark itself writes."""
    for path in () if plan.pretrain is None else plan.pretrain.data:
        if output.resolve().is_relative_to(Path(path).resolve()):
            raise UserError(
                f"pretrain.data: {path} holds --output {output}, whose pictures are no scans.",
                "Choose an --output outside of it.",
            )


def _require_places(request: Request) -> None:
    """Refuse, before the work, folders that cannot be written to in the end, or must not be."""
    given = {"output": request.output, "cache": request.cache, "publish": request.publish}
    for option, folder in given.items():
        standing = folder and next(path for path in (folder, *folder.parents) if path.exists())
        if standing and not standing.is_dir():
            raise UserError(f"--{option} {folder}: {standing} is no folder.", "Choose another one.")
    if request.publish is None:
        return
    publish_to = request.publish.resolve()
    if publish_to.is_relative_to(request.output.resolve()):
        raise UserError(
            f"--publish {request.publish}: is in the folder of --output, whose tables go on from "
            "more than is published.",
            "Choose another one.",
        )
    if publish_to / PLAN_FILE == request.plan.resolve():
        raise UserError(
            f"--publish {request.publish}: its {PLAN_FILE} is the plan, which would be written "
            "over.",
            "Choose another folder.",
        )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A plan at work.

    Attributes:
        plan: what is asked.
        request: how.
        cases: the labelled scans.
        references: folder of the labels of those that judge.
        grid: every arm.
        stop: asks to end.
        commit: of the code, as it was when this began; "" where it is not known.
    """

    plan: Plan
    request: Request
    cases: Cases
    references: Path
    grid: tuple[Arm, ...]
    stop: StopRequest
    commit: str

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
        return Table(self.output / "runs.csv", RUNS)

    def run_folder(self, arm: Arm) -> Path:
        """Of the fine-tuning of an arm."""
        return self.output / "runs" / arm.folder

    def pretrain_folder(self, pretraining: Pretraining) -> Path:
        """Of a pretraining."""
        return self.output / "pretrain" / pretraining.folder

    def own(self, table: Table) -> list[Row]:
        """Rows of the arms of this plan; see `own_rows`."""
        return own_rows(table, self.grid, self.cases)

    def finished(self) -> set[str]:
        """Keys of the arms that have a row for every test case and organ."""
        return finished(self.own(self.results), self.cases)


def _prepared(plan: Plan, found: Sequence[Start], request: Request, stop: StopRequest) -> Bench:
    _made(request.output)
    cases, references = prepared_cases(plan, request.output, between=stop.check)
    require_unseen_by_weights(found, cases.test, images_allowed=plan.pretrain_on_test)
    grid = arms(plan, found, cases)
    commit = source_commit() or ""
    return Bench(
        plan=plan,
        request=request,
        cases=cases,
        references=references,
        grid=grid,
        stop=stop,
        commit=commit,
    )


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise told_plainly(error, folder) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written.", "Choose another folder.")


def devices_of(bench: Bench) -> list[str]:
    """The device of each process that there is room for."""
    import torch

    return places(
        bench.request.device,
        processes=bench.request.processes,
        threads=bench.plan.threads,
        cores=usable_cores(),
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
    )


def work_off_everywhere(bench: Bench) -> None:
    """Do all arms, here or in as many processes as there is room for."""
    # More than there are arms would find nothing to do.
    devices = devices_of(bench)[: len(_left(bench))]
    if len(devices) < 2:
        with _threads(bench.plan.threads):
            _work_off(bench)
        return
    log.info("%d processes; what each says stands in %s", len(devices), bench.output / "logs")
    work_together(
        partial(_share, bench.references),
        [replace(bench.request, device=device, processes=1) for device in devices],
        threads=bench.plan.threads or max(1, usable_cores() // len(devices)),
        logs=bench.output / "logs",
        watch=_Watch(bench, len(devices)).look,
    )


def _share(references: Path, request: Request) -> None:
    """What one of several processes does; who has started it writes the report."""
    plan = read_plan(request.plan, request.overrides)
    stop = StopRequest()
    with stop.listening():
        bench = _prepared(plan, starts(plan), request, stop)
        _require_judged_by(references, bench)
        _work_off(bench)


class _Watch:
    """Tells how far several processes are together."""

    def __init__(self, bench: Bench, processes: int) -> None:
        self._bench = bench
        self._processes = processes
        self._told = -1

    def look(self) -> None:
        """Say so whenever an arm is done; raise if this process is to stop."""
        self._bench.stop.check()
        left = _left(self._bench)
        if len(left) != self._told:
            self._told = len(left)
            log.info("%s", _progress(self._bench, left, processes=self._processes))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads inside the block; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _left(bench: Bench) -> list[Arm]:
    done = bench.finished()
    return [arm for arm in bench.grid if arm.key not in done]


def _work_off(bench: Bench) -> None:
    """Do arms until all are done; what others work on is waited for."""
    while left := _left(bench):
        bench.stop.check()
        log.info("%s", _progress(bench, left))
        while not any(_attempt(bench, arm) for arm in left):
            time.sleep(_POLL_S)
            bench.stop.check()
            if len(_left(bench)) != len(left):
                break


def _progress(bench: Bench, left: Sequence[Arm], *, processes: int = 1) -> str:
    """How much is done, and how long the rest takes by what was measured so far."""
    finished = len(bench.grid) - len(left)
    told = f"{finished} of {len(bench.grid)} arms done"
    seconds = _seconds_left(bench, left)
    if left and seconds is not None:
        who = "one process" if processes == 1 else f"{processes} processes"
        told += f", about {told_time(seconds / processes)} left for {who}"
    return told


def _seconds_left(bench: Bench, left: Sequence[Arm]) -> float | None:
    """What the rest takes one process, by the mean of what is like it; None: unknown yet."""
    like = {arm.key: arm.start.network for arm in bench.grid}
    taken: dict[str, list[float]] = {}
    for row in bench.runs.rows():
        for name in (like.get(row["key"], row["key"]), row["kind"]):
            taken.setdefault(name, []).append(float(row["seconds"]))
    open_ = {arm.pretraining.key: arm.pretraining for arm in left if arm.pretraining is not None}
    ahead = [(arm.start.network, "arm") for arm in left] + [
        ("", "pretraining")
        for pretraining in open_.values()
        if not _is_done(bench.pretrain_folder(pretraining))
    ]
    found = [taken.get(name) or taken.get(kind, []) for name, kind in ahead]
    return sum(sum(some) / len(some) for some in found) if all(found) else None


def _attempt(bench: Bench, arm: Arm) -> bool:
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
        folder = bench.run_folder(arm)
        with _curable(folder), _curable(bench.references):
            _finetuned(bench, arm, folder)
            rows = _judged(bench, arm, folder)
        bench.curves.put(arm.key, _curve(arm, folder))
        _note_run(bench, arm.key, arm.folder, kind="arm", seconds=time.monotonic() - began)
        # Last, for with these an arm is done.
        bench.results.put(arm.key, rows)
        return True


def _is_done(folder: Path) -> bool:
    with _curable(folder):
        return (folder / "status.json").exists() and read_status(folder)["state"] == "done"


@contextmanager
def _curable(folder: Path) -> Iterator[None]:
    """What is wrong in a folder of the benchmark's own, it can make anew: say so."""
    try:
        yield
    except UserError as error:
        if str(folder) not in error.message:
            raise
        raise UserError(
            error.message,
            f"Delete {folder} and start the same command again: the same is made anew.",
        ) from error


def _note_run(bench: Bench, key: str, name: str, *, kind: str, seconds: float) -> None:
    import torch

    from backend.engine.device import device_text, resolve_device

    versions = software_versions()
    row = {
        "run": name,
        "kind": kind,
        "seconds": f"{seconds:.1f}",
        "device": device_text(resolve_device(bench.request.device)),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "backend": versions["backend"],
        "torch": versions["torch"],
        "commit": bench.commit,
    }
    bench.runs.put(key, [row])


def _pretrained(bench: Bench, pretraining: Pretraining) -> bool:
    """Do a pretraining unless it is done; False if another process does."""
    folder = bench.pretrain_folder(pretraining)
    lock = bench.output / "locks" / f"{pretraining.key}.lock"
    with _curable(folder), claimed(lock) as mine:
        if not mine or _is_done(folder):
            return mine
        made_once(bench.index, partial(_write_pretrain_index, bench), between=bench.stop.check)
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
                resume=(folder / "config.json").exists(),
                cache=bench.cache,
                argv=tuple(sys.argv),
            )
        )
        seconds = time.monotonic() - began
        _note_run(bench, pretraining.key, pretraining.folder, kind="pretraining", seconds=seconds)
        return True


def _write_pretrain_index(bench: Bench, folder: Path) -> None:
    """An index without the images of test cases, and which those were."""
    made = bench.plan.data.phantoms is not None
    kept, seen = scans_to_pretrain(
        bench.plan,
        bench.cases.test,
        phantoms=phantom_folder(bench.plan, bench.output) if made else None,
    )
    folder.mkdir()
    write_index(folder / "index.csv", kept)
    write_json(folder / "left_out.json", {"scans": len(usable(kept)), "left_out": seen})


def _finetuned(bench: Bench, arm: Arm, folder: Path) -> None:
    """Fine-tune into a run folder, or go on with what is there."""
    if _is_done(folder):
        return
    # Weights that it began with may lie elsewhere by now; from its checkpoint on it needs none.
    begun = (folder / "checkpoints" / "last.pt").exists()
    if not begun and folder.exists():
        shutil.rmtree(folder)
    entry = arm.start.entry
    frozen = ("freeze_encoder=true",) if arm.frozen else ()
    finetune.run(
        finetune.FinetuneRequest(
            output=folder,
            data=_written_set(bench, arm),
            init=None if begun else _origin(bench, arm),
            method=entry.method,
            preset=entry.preset,
            overrides=(
                *finetune_texts(bench.plan, entry),
                f"train.seed={arm.seed}",
                *frozen,
            ),
            device=bench.request.device,
            resume=begun,
            cache=bench.cache,
            argv=tuple(sys.argv),
        )
    )


def _written_set(bench: Bench, arm: Arm) -> Path:
    """The cases of an arm as a labelled set, each marked as what it is for."""
    # Another plan that shares the output may have other structures.
    folder = bench.output / "sets" / arm.folder
    chosen = [case for case in bench.cases.train if case.id in arm.cases]
    rows = [
        _case_row(case, split)
        for split, cases in (("train", chosen), ("validation", bench.cases.validation))
        for case in cases
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder / "labels.json", bench.cases.labels)
    write_text(folder / "cases.csv", csv_text(_CASES, rows))
    return folder / "cases.csv"


def _case_row(case: LabelledCase, split: str) -> dict[str, object]:
    image = case.image[0] if len(case.image) == 1 else case.image[0].parent
    return {
        "case": case.id,
        "image": image.absolute(),
        "label": case.label.absolute(),
        "split": split,
    }


def _origin(bench: Bench, arm: Arm) -> Path | None:
    """What the encoder of an arm starts from; None is random."""
    if arm.pretraining is not None:
        return bench.pretrain_folder(arm.pretraining)
    if arm.start.weights is None and arm.frozen:
        return _random_encoder(bench, arm)
    return arm.start.weights


def _random_encoder(bench: Bench, arm: Arm) -> Path:
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


def _judged(bench: Bench, arm: Arm, folder: Path) -> list[dict[str, object]]:
    """Segment the test cases with the last weights and compare: one row per case and organ."""
    from backend.engine.device import resolve_device
    from backend.inference.predictor import load_predictor

    device = str(resolve_device(bench.request.device))
    predictor = load_predictor(folder / "checkpoints" / "model.safetensors", device=device)
    predictions = folder / "predictions"
    pairs = {}
    for case in bench.cases.test:
        bench.stop.check()
        found = predictor.segment(read_volume(case.image), progress=lambda *_: bench.stop.check())
        prediction = predictions / f"{case.id}.nii.gz"
        write_labels_file(prediction, found, predictor.labels)
        pairs[case.id] = (prediction, reference_file(bench.references, case))
    result = evaluate.evaluate_pairs(pairs, bench.cases.labels)
    return [{**arm_cells(arm), **row} for row in evaluate.rows_of(result)]


def _curve(arm: Arm, folder: Path) -> list[dict[str, Any]]:
    """Mean Dice of the validation scans over the steps."""
    return [
        {**arm_cells(arm), "step": record["step"], "dice": f"{record['val/dice_mean']:.6g}"}
        for record in read_metrics(folder)
        if "val/dice_mean" in record
    ]


def _published(bench: Bench) -> None:
    if bench.request.publish is not None:
        publish(bench.request.publish, _finished_rows(bench))
        sys.stdout.write(f"Published: {bench.request.publish}\n")


def _reported(bench: Bench) -> Path:
    """Tables and report of what is finished."""
    given = _finished_rows(bench)
    report = write_findings(bench.output, given)
    sys.stdout.write(f"\n{text_of(bench.output, given)}Report: {report.resolve()}\n")
    return report


def _finished_rows(bench: Bench) -> Findings:
    done = bench.finished()
    pretrainings = {arm.pretraining.key for arm in bench.grid if arm.pretraining is not None}
    return Findings(
        plan=bench.plan,
        grid=bench.grid,
        cases=bench.cases,
        results=[row for row in bench.own(bench.results) if row["key"] in done],
        curves=[row for row in bench.own(bench.curves) if row["key"] in done],
        runs=[row for row in bench.runs.rows() if row["key"] in done | pretrainings],
        pretraining=_left_out(bench) if pretrainings else {},
    )


def _left_out(bench: Bench) -> dict[str, Any]:
    """How many scans are pretrained on, and which images were left out of them."""
    path = bench.index / "left_out.json"
    if not path.exists():
        return {}
    with _curable(bench.index):
        return read_json(path)
