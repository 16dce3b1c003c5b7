"""What recipes do before and after training, without torch: configuration, cache, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from backend.config import (
    ConfigT,
    DataConfig,
    FinetuneConfig,
    NetworkConfig,
    PreprocessConfig,
    PretrainConfig,
    TrainConfig,
    build_config,
    first_difference,
    first_fault,
    to_plain,
    with_settings,
)
from backend.data.cache import Cache, CachedVolume, default_cache_dir, told_bytes
from backend.data.labelled import LabelledCase
from backend.data.preprocess import Recipe
from backend.data.stall import StallWatch
from backend.engine.record import RunFolder, read_json
from backend.errors import UserError
from backend.provenance import encoder_arguments, software_versions
from backend.weights import WeightsHeader, read_header, resolve_weights

log = logging.getLogger("backend")

ModelT = TypeVar("ModelT", bound=BaseModel)


def _nameable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("no path holds a null character")
    return path


KeptPath = Annotated[Path, AfterValidator(_nameable)]
"""A path in a file of a run folder, which may have been edited."""


def recipe_of(config: PreprocessConfig) -> Recipe:
    """The recipe of a configuration; the HU window is applied later, to crops."""
    return Recipe(
        spacing_mm=config.spacing_mm,
        orientation=config.orientation,
        body_margin_mm=config.body_margin_mm,
        body_threshold_hu=config.body_threshold_hu,
    )


def stored(
    kind: str, config: PretrainConfig | FinetuneConfig, request: Mapping[str, Any]
) -> dict[str, Any]:
    """What config.json holds: enough to repeat the run."""
    return {
        "schema": config.schema_version,
        "kind": kind,
        "config": to_plain(config),
        "request": dict(request),
        "versions": software_versions(),
    }


def check_device(name: str) -> None:
    """Refuse a device that is not there before work is done for it.

    Raises:
        UserError: as `backend.engine.device.resolve_device`.
    """
    # Those two are always there: torch is not needed to know.
    if name not in {"auto", "cpu"}:
        from backend.engine.device import resolve_device

        resolve_device(name)


def require_shares(train: TrainConfig, *, processes: int) -> None:
    """Refuse a batch that cannot be divided among processes, or may be cut by each for itself.

    Raises:
        UserError: naming batch and processes.
    """
    if processes > 1 and train.on_out_of_memory == "shrink":
        raise UserError(
            f"train.on_out_of_memory=shrink is for one process, and there are {processes}.",
            "Set it to fail, and raise train.accumulate where memory is short.",
        )
    if train.batch_size % (train.accumulate * processes):
        parts = f" in {train.accumulate} parts" * (train.accumulate > 1)
        raise UserError(
            f"train.batch_size {train.batch_size}{parts} cannot be divided among {processes} "
            "processes.",
            f"Choose a multiple of {train.accumulate * processes}, or other --devices.",
        )


INIT_FILES = ("encoder.safetensors", "best.safetensors", "model.safetensors")
"""What a run folder given as --init is searched for, in this order."""


def encoder_header(init: Path) -> WeightsHeader:
    """What the weights of --init say of themselves.

    Raises:
        UserError: if they are none of ours.
    """
    return read_header(resolve_weights(init, prefer=INIT_FILES))


def require_same_encoder(init: Path, header: WeightsHeader, method: NetworkConfig) -> None:
    """Refuse weights of another encoder than the one that is to be trained.

    Raises:
        UserError: naming the first difference.
    """
    different = first_difference(header.architecture["encoder"], encoder_arguments(method))
    if different:
        cure = f" (--method {header.method} --preset {header.preset})" if header.preset else ""
        raise UserError(
            f"{init}: holds an encoder of {header.method} with {different}.",
            f"Choose the method, preset and settings it was trained with{cure}.",
        )


def checked_json(path: Path, kind: type[ModelT]) -> ModelT:
    """A file of a run folder, in which every field is what it should be.

    Raises:
        UserError: if it is missing or damaged, naming the file, the field and the value.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: damaged: {first_fault(error)}.", "Start a new run.") from None


class _KeptRun(BaseModel, Generic[ModelT]):
    """The part of config.json that a run is resumed by."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    config: dict[str, Any]
    request: ModelT


def kept_run(file: Path, kind: type[ConfigT], request: type[ModelT]) -> tuple[ConfigT, ModelT]:
    """What a run was started with; a setting that is not said is not guessed.

    Args:
        file: config.json, or what stands for it.
        kind: of its configuration.
        request: of its request.

    Raises:
        UserError: naming the file and the key, if one is missing or damaged.
    """
    kept = checked_json(file, _KeptRun[request])  # type: ignore[valid-type]
    try:
        config = build_config(kind, kept.config)
    except UserError as error:
        raise UserError(f"{file}: {error.message}", "Start a new run.") from None
    different = first_difference(to_plain(config), kept.config)
    if different:
        setting = different.partition("=")[0]
        raise UserError(f"{file}: does not say {setting}.", "Start a new run.")
    return config, kept.request


def require_same_settings(
    run: Path,
    kept: ConfigT,
    *,
    named: Mapping[str, str | None],
    file: Path | None,
    overrides: Sequence[str],
) -> None:
    """Refuse to continue a run otherwise than it was started.

    Args:
        run: the run folder.
        kept: what it was started with; what is not asked for now stays as it was.
        named: `method` and `preset` as asked for now, or None.
        file: settings asked for now.
        overrides: `key=value` texts asked for now.

    Raises:
        UserError: naming the first setting that differs.
    """
    then = {"method": kept.method.name, "preset": kept.preset}
    now = {name: value or then[name] for name, value in named.items()}
    asked = with_settings(kept, file=file, overrides=overrides)
    different = first_difference(then, now) or first_difference(to_plain(kept), to_plain(asked))
    if different:
        raise UserError(
            f"{run}: was started with {different}.",
            "Resume without that setting, or start a new run.",
        )


_APART = 10
"""Steps between two looks at the least: pictures of a short run would hardly differ, and take
longer than its steps."""


def preview_every(train: TrainConfig, total_steps: int) -> int:
    """Steps between two pictures: as set, else ten over the run, fewer over a short one."""
    return train.preview_every_steps or spaced(total_steps, times=10)


def spaced(total_steps: int, *, times: int) -> int:
    """Steps between looks that are spread over a run; the last step is always one.

    Args:
        total_steps: of the run.
        times: looks at the most; a short run has fewer.
    """
    return min(total_steps, max(_APART, math.ceil(total_steps / times)))


def cache_root(cache: Path | None, beside: Path) -> Path:
    """Where preprocessed scans are kept: as asked, else as `default_cache_dir` decides."""
    return default_cache_dir(beside) if cache is None else cache


def told_cache(
    cache: Cache, *, missing: int, total: int, folder: RunFolder, estimated_bytes: int = 0
) -> None:
    """Say where the cache lies, what is left to do and what it needs, before it is done."""
    need = f", about {told_bytes(estimated_bytes)} at most" if estimated_bytes else ""
    log.info("Cache %s: %d of %d scans to preprocess%s", cache.folder, missing, total, need)
    folder.update(message=f"Preprocessing {missing} of {total} scans into {cache.root}{need}")


def cached_pairs(
    cache: Cache,
    cases: Sequence[LabelledCase],
    *,
    folder: RunFolder,
    between: Callable[[], None],
    cure: str,
) -> dict[str, CachedVolume]:
    """Labelled cases by name, preprocessed where that is missing.

    Args:
        cache: where they are kept.
        cases: what to prepare; none of them may be left out.
        folder: the run that is told.
        between: called between scans; may raise to end.
        cure: what to do about a case that cannot be used.

    Raises:
        UserError: if one cannot.
    """
    missing = cache.missing_pairs(cases)
    told_cache(cache, missing=len(missing), total=len(cases), folder=folder)
    report = cache.build_pairs(cases, between=between)
    if report.failed:
        name, reason = next(iter(report.failed.items()))
        raise UserError(f"Case {name}: {reason}", cure)
    return {case.id: cache.open(case.id) for case in cases}


def stall_watch(volumes: Sequence[CachedVolume], data: DataConfig, folder: RunFolder) -> StallWatch:
    """Tells log and status.json which of `volumes` a batch is waited for."""
    return StallWatch(
        name=lambda place: volumes[place.sample].id,
        tell=partial(folder.warn, "stall"),
        patience_s=data.patience_s,
    )


def write_report(run: Path) -> None:
    """Write report.html; a run must not fail for the sake of its report."""
    from backend.report import write_run_report

    if not (run / "status.json").exists():
        return
    try:
        write_run_report(run)
    except Exception:
        log.exception("The report could not be written")
