"""What recipes do before and after training, without torch: configuration, cache, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.config import FinetuneConfig, PreprocessConfig, PretrainConfig, TrainConfig, to_plain
from backend.data.cache import Cache, default_cache_dir
from backend.data.preprocess import Recipe
from backend.engine.record import RunFolder
from backend.provenance import software_versions

log = logging.getLogger("backend")


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


def preview_every(train: TrainConfig, total_steps: int) -> int:
    """Steps between two pictures: as set, else ten over the run."""
    return train.preview_every_steps or max(1, total_steps // 10)


def cache_root(cache: Path | None, beside: Path) -> Path:
    """Where preprocessed scans are kept: as asked, else as `default_cache_dir` decides."""
    return default_cache_dir(beside) if cache is None else cache


def told_cache(cache: Cache, *, missing: int, total: int, folder: RunFolder) -> None:
    """Say where the cache lies and what is left to do, before it is done."""
    log.info("Cache %s: %d of %d scans to preprocess", cache.folder, missing, total)
    folder.update(message=f"Preprocessing {missing} of {total} scans into {cache.root}")


def write_report(run: Path) -> None:
    """Write report.html; a run must not fail for the sake of its report."""
    from backend.report import write_run_report

    if not (run / "status.json").exists():
        return
    try:
        write_run_report(run)
    except Exception:
        log.exception("The report could not be written")
