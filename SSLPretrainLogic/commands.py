"""What may be asked of the backend, and the words behind `backend` that ask it.

One rule makes the words: an option is named as its field, what is left out stays out, a switch that
is on is its name alone, and several values stand behind one name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from SSLPretrainLogic.errors import LogicError

_POSITIONAL = {"form": "positional"}
_REPEATED = {"form": "repeated", "flag": "--set"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One command; the options are those of `backend COMMAND --help`."""

    command: ClassVar[str]

    @property
    def run(self) -> Path | None:
        """The run folder that the command works in, None if it has none."""
        return None


@dataclass(frozen=True, kw_only=True)
class ScanRequest(Request):
    """Find the usable CT series below some paths."""

    command: ClassVar[str] = "scan"
    paths: tuple[Path, ...] = field(metadata=_POSITIONAL)
    output: Path
    min_slices: int | None = None
    quick: bool = False
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Training(Request):
    """What both ways to train have in common."""

    output: Path | None
    method: str | None = None
    preset: str | None = None
    max_steps: int | None = None
    epochs: int | None = None
    device: str | None = None
    resume: bool = False
    cache: Path | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = field(default=(), metadata=_REPEATED)

    @property
    def run(self) -> Path | None:
        """The run folder."""
        return self.output


@dataclass(frozen=True, kw_only=True)
class PretrainRequest(_Training):
    """Pretrain an encoder on unlabelled CT.

    `dry_run` only tells what it would cost: its `output` is None, and `json` makes it an answer.
    """

    command: ClassVar[str] = "pretrain"
    data: tuple[Path, ...] = ()
    init: Path | None = None
    probe_data: Path | None = None
    dry_run: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest(_Training):
    """Train a segmentation network; `init` is a run, a weights file or the word none."""

    command: ClassVar[str] = "finetune"
    data: Path | None = None
    init: Path | str | None = None
    cases: tuple[str, ...] = ()
    freeze_encoder: bool = False
    fraction: float | None = None
    folds: int | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentRequest(Request):
    """Segment a scan, a DICOM series or a folder of scans."""

    command: ClassVar[str] = "segment"
    model: Path
    input: Path
    output: Path
    structures: tuple[str, ...] = ()
    device: str | None = None
    ending: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(Request):
    """Compare segmentations with references."""

    command: ClassVar[str] = "evaluate"
    prediction: Path
    reference: Path
    output: Path | None = None
    labels: Path | None = None
    tolerance_mm: float | None = None
    allow_unmatched: bool = False


@dataclass(frozen=True, kw_only=True)
class StopRequest(Request):
    """Stop a run; `run_folder` is called `--run` on the command line."""

    command: ClassVar[str] = "stop"
    run_folder: Path = field(metadata={"flag": "--run"})
    grace: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReportRequest(Request):
    """Write the report of a run again."""

    command: ClassVar[str] = "report"
    run_folder: Path = field(metadata={"flag": "--run"})


@dataclass(frozen=True, kw_only=True)
class MethodsRequest(Request):
    """List the methods."""

    command: ClassVar[str] = "methods"
    json: bool = True
    baselines: bool = False


@dataclass(frozen=True, kw_only=True)
class DescribeRequest(Request):
    """Tell what a method costs."""

    command: ClassVar[str] = "describe"
    method: str
    preset: str | None = None
    json: bool = True
    overrides: tuple[str, ...] = field(default=(), metadata=_REPEATED)


def words(request: Request) -> tuple[str, ...]:
    """The words behind `backend`.

    Raises:
        LogicError: if a value would be taken for an option, or there is none where one is needed.
    """
    # Options that take any number of values would swallow what has no name.
    options = sorted(fields(request), key=lambda option: not _is_positional(option))
    return (
        request.command,
        *chain.from_iterable(_option(o, getattr(request, o.name)) for o in options),
    )


def resume_request(run: Path, *, kind: str, device: str | None = None) -> Request:
    """The command that goes on with a run; all else stands in its config.json.

    Args:
        run: its folder.
        kind: "pretrain" or "finetune", as its status says.
        device: to compute on, None as the backend chooses.

    Raises:
        LogicError: if there are no such runs.
    """
    if kind == "pretrain":
        return PretrainRequest(output=run, resume=True, device=device)
    if kind == "finetune":
        return FinetuneRequest(output=run, resume=True, device=device)
    raise LogicError(f"{run}: a run of kind {kind or 'unknown'} cannot be resumed.", "Start anew.")


def _is_positional(option: Field[Any]) -> bool:
    return option.metadata.get("form") == "positional"


def _option(option: Field[Any], value: object) -> Sequence[str]:
    flag = option.metadata.get("flag", "--" + option.name.replace("_", "-"))
    if _is_positional(option):
        return _several(option.name, value)
    if value is None or value is False or value == ():
        return ()
    if value is True:
        return (flag,)
    if option.metadata.get("form") == "repeated":
        return tuple(chain.from_iterable((flag, word) for word in _several(flag, value)))
    return (flag, *_several(flag, value if isinstance(value, tuple) else (value,)))


def _several(name: str, values: object) -> Sequence[str]:
    if not isinstance(values, tuple) or not values:
        raise LogicError(f"{name}: nothing was given.", "Give at least one.")
    return tuple(_word(name, value) for value in values)


def _word(name: str, value: object) -> str:
    word = str(value)
    if isinstance(value, Path) and word.startswith("-"):
        return str(Path.cwd() / value)
    if not word or word.startswith("-") or "\0" in word:
        raise LogicError(f"{name}: {word!r} cannot be a value.", "Use another name.")
    return word
