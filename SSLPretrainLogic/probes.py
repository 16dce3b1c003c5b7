"""What a run has found when it asked its features: how far they have come, and which did best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from SSLPretrainLogic.run_folder import RunStatus

PROBE = "probe/linear"
"""The key of the score, in metrics.jsonl and in what status.json calls the best."""

ENCODER, BEST = Path("checkpoints", "encoder.safetensors"), Path("checkpoints", "best.safetensors")
"""In a run folder: the encoder as it was last, and the one that did best in the probe."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How the score of the features went; scores are shares of voxels, 0 to 1.

    Attributes:
        step: of the newest probe.
        score: of the newest probe.
        best_step: where the score was highest, of equal ones the latest: that encoder is kept.
        best_score: the highest.
        since: probes after the best.
        only: whether there was but one probe.
    """

    step: int
    score: float
    best_step: int
    best_score: float
    since: int
    only: bool


def course(steps: Sequence[int], scores: Sequence[float]) -> Course | None:
    """How scores went, None before the first one.

    Args:
        steps: of the probes, rising.
        scores: as many.
    """
    if not scores:
        return None
    best = max(range(len(scores)), key=lambda probe: (scores[probe], probe))
    return Course(
        step=steps[-1],
        score=scores[-1],
        best_step=steps[best],
        best_score=scores[best],
        since=len(scores) - 1 - best,
        only=len(scores) == 1,
    )


@dataclass(frozen=True, kw_only=True)
class BestEncoder:
    """The encoder that did best in the probe of its run.

    Attributes:
        path: of its weights.
        step: at which it was kept.
        score: share of voxels, 0 to 1.
        is_last: whether the run ended with it: then it is the last one as well.
    """

    path: Path
    step: int
    score: float
    is_last: bool


def best_encoder(run: RunStatus) -> BestEncoder | None:
    """The encoder of a run that did best in its probe, None where none was asked or kept."""
    best, path = run.best or {}, run.folder / BEST
    step, score = best.get("step"), best.get(PROBE)
    if not isinstance(step, int) or not isinstance(score, int | float) or not path.is_file():
        return None
    is_last = run.state == "done" and step == run.step
    return BestEncoder(path=path, step=step, score=score, is_last=is_last)
