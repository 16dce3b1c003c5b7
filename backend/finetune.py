"""`backend finetune`: from labelled scans to a segmentation model, in a run folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.cards import card
from backend.config import (
    FinetuneConfig,
    first_difference,
    load_config,
    preset_names,
    to_plain,
)
from backend.data.cache import Cache, CachedVolume
from backend.data.intensity import Moments, ScanMoments
from backend.data.labelled import (
    LabelledCase,
    LabelledSet,
    check_set,
    fold_cases,
    load_labelled_set,
    split_cases,
    take_fraction,
)
from backend.data.labels import Label, class_table
from backend.data.stream import Position, random_start
from backend.engine.distributed import Team, joined, place, share_of_device
from backend.engine.record import (
    STOP_FILE,
    FollowedFolder,
    RunFolder,
    check_target,
    read_json,
    read_status,
)
from backend.engine.signals import StopRequest, ending_at_once
from backend.errors import UserError
from backend.files import write_json
from backend.geometry import Index3, index3
from backend.preparation import (
    INIT_FILES,
    KeptPath,
    cache_root,
    cached_pairs,
    check_device,
    checked_json,
    encoder_header,
    kept_run,
    preview_every,
    recipe_of,
    require_same_encoder,
    require_same_settings,
    require_shares,
    spaced,
    stall_watch,
    stored,
    write_report,
)
from backend.provenance import (
    preprocessing,
    segmentation_architecture,
    software_versions,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from backend.engine.loop import Loop
    from backend.losses.terms import Losses
    from backend.weights import WeightsHeader

log = logging.getLogger("backend")

_VALIDATIONS_AT_LEAST = 5
"""A run of fewer epochs is judged this often, or there is no choice of a best model; one of a few
steps less often."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """What the user asked for.

    Attributes:
        output: the run folder.
        data: the labelled set.
        init: run folder or weights of an encoder; None starts from random weights.
        method: or None for the one of `init`, or of the run that is resumed.
        preset: or None for the one of `init`, or the method's first.
        cases: names or patterns of the cases to take; empty takes all.
        fraction: share of the training cases to use.
        folds: 0, or how many parts of a cross-validation.
        config_file: YAML or JSON over the preset.
        overrides: `key=value` texts over both.
        device: auto, cpu, cuda, cuda:1, mps.
        resume: continue the run in `output`.
        cache: folder of the preprocessing cache.
        argv: the command as it was given, for status.json.
    """

    output: Path
    data: Path | None
    init: Path | None = None
    method: str | None = None
    preset: str | None = None
    cases: tuple[str, ...] = ()
    fraction: float = 1.0
    folds: int = 0
    config_file: Path | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    resume: bool = False
    cache: Path | None = None
    argv: tuple[str, ...] = ()


class Split(NamedTuple):
    """Cases to learn from and cases to judge by."""

    training: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...]


class Batch(NamedTuple):
    """Crops of a batch.

    Attributes:
        images: int16 HU, (b, z, y, x).
        targets: class of each voxel, (b, z, y, x).
        keys: what the augmentation of each crop follows from, (b).
        moments: mean and deviation of each crop's scan, (b, 2).
    """

    images: Tensor
    targets: Tensor
    keys: Tensor
    moments: Tensor


class Crop(NamedTuple):
    """Part of a labelled scan.

    Attributes:
        hu: its voxels (z, y, x).
        target: the class of each.
        identity: what its augmentation follows from.
        moments: mean and deviation of the whole scan, where values are relative to them.
    """

    hu: NDArray[np.int16]
    target: NDArray[np.uint8]
    identity: tuple[int, ...]
    moments: Moments


class Crops:
    """Crops of labelled scans, balanced between structures.

    Args:
        volumes: the scans.
        labels: structures in the order of the network's classes.
        config: of the run.
    """

    def __init__(
        self, volumes: Sequence[CachedVolume], labels: Sequence[Label], config: FinetuneConfig
    ) -> None:
        self.volumes = volumes
        self._classes = class_table(labels).astype(np.uint8)
        self._size: Index3 = config.crop_size
        self._moments = ScanMoments(volumes, config.preprocess)
        self._count = config.crops_per_scan
        self._foreground = config.foreground
        self._seed = config.train.seed

    def read(self, position: Position) -> list[Crop]:
        """The crops of a scan in an epoch."""
        volume = self.volumes[position.sample]
        crops: list[Crop] = []
        for number in range(self._count):
            identity = (self._seed, position.epoch, position.sample, number)
            start = self._start(volume, np.random.default_rng([*identity, 3]))
            target = self._classes[volume.read_label(start, self._size)]
            moments = self._moments.of(position.sample)
            crops.append(Crop(volume.read(start, self._size), target, identity, moments))
        return crops

    def _start(self, volume: CachedVolume, rng: np.random.Generator) -> Index3:
        places = volume.foreground
        if not places or rng.random() >= self._foreground:
            return random_start(volume.geometry.size, self._size, rng)
        # All structures equally often: otherwise small ones would hardly ever be seen.
        values = sorted(places)
        voxels = places[values[int(rng.integers(len(values)))]]
        centre = voxels[int(rng.integers(len(voxels)))]
        starts = []
        for middle, n, edge in zip(centre, volume.geometry.size, self._size, strict=True):
            room = n - edge
            wanted = int(middle) - edge // 2
            starts.append(min(max(wanted, 0), room) if room >= 0 else -((-room) // 2))
        return index3(starts)


_CLASSES_AT_MOST = 255
"""Crops hold the class of a voxel in one byte."""


class FinetuneTask:
    """A segmentation network with its loss: what the loop trains.

    Args:
        network: the network, on its device.
        config: of the run.
        device: where it is trained.
        learner: calls the network and averages its gradients over processes; None: the network.
    """

    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __init__(
        self,
        network: nn.Module,
        config: FinetuneConfig,
        device: torch.device,
        learner: nn.Module | None = None,
    ) -> None:
        self.module = network
        self.learner = network if learner is None else learner
        self._config = config
        self._device = device

    def loss(self, batch: Batch, progress: float) -> Losses:  # noqa: ARG002 - see `Trainable`
        """Dice and cross-entropy of augmented crops."""
        from backend.losses.segmentation import dice_binary_cross_entropy, dice_cross_entropy
        from backend.losses.terms import Losses

        image, target = self._augmented(batch)
        binary = self._config.loss == "dice_bce"
        loss = dice_binary_cross_entropy if binary else dice_cross_entropy
        dice, ce = loss(self.learner(image), target)
        terms = {"dice": dice.detach(), "bce" if binary else "ce": ce.detach()}
        return Losses(dice + ce, terms, {})

    def after_backward(self, progress: float) -> None:
        """Nothing to do."""

    def after_step(self, progress: float) -> dict[str, float]:  # noqa: ARG002 - see `Trainable`
        """Nothing to do."""
        return {}

    def settings(self, progress: float) -> dict[str, float]:  # noqa: ARG002 - see `Trainable`
        """Nothing changes over the run but the learning rate."""
        return {}

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        import torch

        from backend.views.augment import Labelled, mirror, scale_values, shift_values, turn_axial
        from backend.views.crops import window_hu, zscored
        from backend.views.intensity import Changes, changed

        a, p = self._config.augment, self._config.preprocess
        keys = batch.keys.to(self._device, non_blocking=True)
        hu = batch.images.to(self._device, non_blocking=True).unsqueeze(1)
        target = batch.targets.to(self._device, non_blocking=True).long()
        moments = batch.moments.to(self._device, non_blocking=True)
        seen = (
            zscored(hu, p.hu_window, moments)
            if p.intensity == "zscore"
            else window_hu(hu, p.hu_window)
        )
        crops = Labelled(seen, target)
        crops = turn_axial(crops, keys, probability=a.rotate90_probability)
        crops = mirror(crops, keys, probability=a.flip_probability)
        image = scale_values(crops.image, keys, probability=a.scale_probability, by=a.scale)
        image = shift_values(image, keys, probability=a.shift_probability, by=a.shift)
        changes = Changes(
            noise=a.noise_probability,
            blur=a.blur_probability,
            brightness=a.brightness_probability,
            gamma=a.gamma_probability,
        )
        image = changed(image, keys, changes)
        return image.contiguous(memory_format=torch.channels_last_3d), crops.target


@ending_at_once()
def run(request: FinetuneRequest) -> Path:
    """Fine-tune, or continue; with `folds`, one run after the other in subfolders.

    Returns:
        The run folder.

    Raises:
        UserError, ResourceError, Cancelled, Interrupted: see `backend.errors`.
    """
    here = place()
    request = replace(request, device=share_of_device(request.device, here))
    with joined(here) as team:
        if team.leads:
            _lead(request, team)
            team.announce(None)
        else:
            _follow(request, team)
    return request.output


def check(
    request: FinetuneRequest, *, processes: int = 1
) -> tuple[FinetuneRequest, FinetuneConfig, LabelledSet]:
    """The request with its configuration and cases, if it is one that can be run.

    Raises:
        UserError: if the folder, the settings, the weights or the shares of a batch do not fit.
    """
    # Folds are runs of their own, so the folder around them is none.
    if not (request.folds and request.resume):
        check_target(request.output, kind="finetune", resume=request.resume)
    request, config, labelled = resolve(request)
    require_shares(config.train, processes=processes)
    return request, config, labelled


def _lead(request: FinetuneRequest, team: Team) -> None:
    if team.restarted and any((request.output / n).exists() for n in _REQUESTS):
        request = replace(request, resume=True)
    request, config, labelled = check(request, processes=team.size)
    check_device(request.device)
    cases = tuple(c for c in labelled.cases if c.split != "test")
    if request.folds:
        _cross_validate(request, config, labelled, cases, team=team)
        return
    split = Split(
        *split_cases(cases, validation_fraction=config.validation_fraction, seed=config.train.seed)
    )
    training = take_fraction(split.training, fraction=request.fraction, seed=config.train.seed)
    _one_run(request, config, labelled, split._replace(training=training), team=team)


def _follow(request: FinetuneRequest, team: Team) -> None:
    """Take part in the runs that the leader prepares, one after the other."""
    stop = StopRequest()
    with stop.listening(), team.confessing():
        for facts in team.announced(stop.check):
            run = Path(facts["run"])
            config, then = kept_run(run / "config.json", FinetuneConfig, _KeptRequest)
            joining = replace(
                request,
                output=run,
                data=request.data or then.data,
                cases=then.cases,
                cache=request.cache or then.cache,
                resume=facts["resume"],
                init=None if facts["init"] is None else Path(facts["init"]),
            )
            assert joining.data is not None, "the leader has read them"
            labelled = load_labelled_set(joining.data, joining.cases or None)
            kept = checked_json(run / _SPLIT, _KeptSplit)
            split = _split_of(kept, labelled, run / _SPLIT)
            cache = _cache(joining, config)
            volumes = {case.id: cache.open(case.id) for part in split for case in part}
            folder = FollowedFolder(run)
            _train(
                joining, config, _Set(labelled.labels, split, volumes), folder, stop=stop, team=team
            )


def resolve(request: FinetuneRequest) -> tuple[FinetuneRequest, FinetuneConfig, LabelledSet]:
    """The request with its configuration and cases; when resuming, the stored ones.

    Raises:
        UserError: if weights, data or settings do not fit, or a resumed run had other settings.
    """
    if request.resume:
        request, config = resumed(request)
    elif request.data is None:
        raise UserError("No data was given.", "Add --data with a labelled set.")
    else:
        config = _asked(request)
    if request.data is None:
        raise UserError(f"{request.output}: does not tell its data.", "Add --data.")
    labelled = load_labelled_set(request.data, request.cases or None)
    if len(labelled.labels) > _CLASSES_AT_MOST:
        raise UserError(
            f"{request.data}: names {len(labelled.labels)} structures.",
            f"A network learns {_CLASSES_AT_MOST} at most: leave some out of the labels file.",
        )
    return request, config, labelled


class _KeptRequest(BaseModel):
    """What a run was asked for, as it stands in its config.json."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    data: KeptPath | None = None
    init: KeptPath | None = None
    cases: tuple[str, ...] = ()
    fraction: float = 1.0
    folds: int = 0
    cache: KeptPath | None = None


def resumed(request: FinetuneRequest) -> tuple[FinetuneRequest, FinetuneConfig]:
    """The request and the configuration that the run or the folds in `output` were started with.

    Raises:
        UserError: if what is kept of them is damaged, or something else is asked for now.
    """
    name = _CROSS_VALIDATION if request.folds else "config.json"
    config, then = kept_run(request.output / name, FinetuneConfig, _KeptRequest)
    require_same_settings(
        request.output,
        config,
        named={"method": request.method, "preset": request.preset},
        file=request.config_file,
        overrides=request.overrides,
    )
    _refuse_other_request(request, then.model_dump(mode="json"))
    return replace(
        request,
        data=request.data or then.data,
        init=_start(request.output, then.init),
        cases=then.cases,
        fraction=then.fraction,
        cache=request.cache or then.cache,
    ), config


def _start(run: Path, init: Path | None) -> Path | None:
    """The weights that a run starts from; what has a checkpoint goes on from there."""
    return None if (run / "checkpoints" / "last.pt").exists() else init


def _refuse_other_request(request: FinetuneRequest, then: Mapping[str, Any]) -> None:
    """A resumed run keeps its split and start; other wishes would be left out in silence."""
    now = _plain_request(request)
    unset = {"cases": [], "fraction": 1.0, "init": None}
    if request.folds:
        if request.folds != then["folds"]:
            raise UserError(
                f"{request.output}: was started with folds={then['folds']}, not {request.folds}.",
                f"Resume with --folds {then['folds']}, or start a new run.",
            )
        # A part of the folds on other data would be no cross-validation.
        unset["data"] = None
    for name, nothing in unset.items():
        if now[name] not in (nothing, then[name]):
            raise UserError(
                f"{request.output}: was started with {name}={then[name]}, not {now[name]}.",
                f"Resume without --{name}, or start a new run.",
            )


def _asked(request: FinetuneRequest) -> FinetuneConfig:
    header = None if request.init is None else encoder_header(request.init)
    method = request.method or (header.method if header else "smit")
    preset = request.preset or (header.preset if header and header.preset else None)
    if header is not None and method != header.method:
        _require_kin(request, header, method)
    inherited = () if header is None else _inherited(header, preset_chosen=bool(request.preset))
    config = load_config(
        FinetuneConfig,
        method=method,
        preset=preset,
        below=inherited,
        file=request.config_file,
        overrides=request.overrides,
    )
    if header is not None and request.init is not None:
        require_same_encoder(request.init, header, config.method)
    if header is None and request.preset is None:
        raise UserError(
            "Neither pretrained weights nor a preset is chosen, so the network's size is open.",
            "Add --init RUN (or weights), or --init none --preset tiny "
            f"(presets: {', '.join(preset_names(method))}).",
        )
    if config.freeze_encoder and request.init is None:
        raise UserError("freeze_encoder needs a pretrained encoder.", "Give one with --init RUN.")
    return config


def _require_kin(request: FinetuneRequest, header: WeightsHeader, method: str) -> None:
    """Refuse a method whose network is of another kind than the encoder in the weights."""
    theirs = header.architecture["encoder"]["kind"]
    own = load_config(FinetuneConfig, method=method, preset=request.preset).method.encoder.kind
    if own != theirs:
        raise UserError(
            f"{request.init}: holds an encoder of {header.method} ({theirs}), but --method "
            f"{method} has another ({own}).",
            "Leave out --method, or start from weights of its own.",
        )


def _inherited(header: WeightsHeader, *, preset_chosen: bool) -> tuple[str, ...]:
    """Settings that follow from the weights: whoever names the file need not repeat them."""
    # An encoder knows the patient from the side it was shown.
    orientation = f"preprocess.orientation={header.preprocessing['orientation']}"
    encoder = () if preset_chosen else header.architecture["encoder"].items()
    return (orientation, *(f"method.encoder.{k}={json.dumps(v)}" for k, v in encoder))


def _cross_validate(
    request: FinetuneRequest,
    config: FinetuneConfig,
    labelled: LabelledSet,
    cases: Sequence[LabelledCase],
    *,
    team: Team,
) -> None:
    scores = []
    for number, split in enumerate(_fold_splits(request, config, labelled, cases), start=1):
        folder = request.output / f"fold_{number}"
        begun = request.resume and (folder / "config.json").exists()
        if begun:
            _require_same_fold(folder, config)
        if not (begun and read_json(folder / "status.json").get("state") == "done"):
            start = _start(folder, request.init)
            fold = replace(request, output=folder, folds=0, resume=begun, init=start)
            _one_run(fold, config, labelled, split, team=team)
        best = read_json(folder / "status.json").get("best") or {}
        judged = checked_json(folder / _SPLIT, _KeptSplit).validation
        scores.append({"fold": number, "cases": list(judged), **best})
    dice = [s["val/dice_mean"] for s in scores if s.get("val/dice_mean") is not None]
    summary = {
        "folds": scores,
        "dice_mean": float(np.mean(dice)) if dice else None,
        "dice_sd_over_folds": float(np.std(dice, ddof=1)) if len(dice) > 1 else None,
        "note": "Best checkpoint of each fold, judged on the fold it was chosen by.",
    }
    write_json(request.output / "cross_validation.json", summary)
    log.info("Cross-validation: %s", json.dumps(summary))


_SPLIT = "split.json"
_CROSS_VALIDATION = "cross_validation_request.json"
"""What a cross-validation was asked for and the cases of each fold, beside its folds."""

_REQUESTS = ("config.json", _CROSS_VALIDATION)
"""One of them stands where a run or a cross-validation has begun."""


class _KeptSplit(BaseModel):
    """What split.json holds: names of cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: Annotated[tuple[str, ...], Field(min_length=1)]
    validation: tuple[str, ...]

    @model_validator(mode="after")
    def _apart(self) -> _KeptSplit:
        names = (*self.training, *self.validation)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"case {twice!r} stands twice")
        return self


class _KeptFolds(BaseModel):
    """The part of a cross-validation's request that says which cases each fold has."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    splits: Annotated[tuple[_KeptSplit, ...], Field(min_length=2)]


def _fold_splits(
    request: FinetuneRequest,
    config: FinetuneConfig,
    labelled: LabelledSet,
    cases: Sequence[LabelledCase],
) -> list[Split]:
    """Cases of each fold: written when a cross-validation begins, and read when it goes on."""
    path = request.output / _CROSS_VALIDATION
    if request.resume:
        kept = checked_json(path, _KeptFolds).splits
        return [_split_of(split, labelled, path) for split in kept]
    seed = config.train.seed
    splits = [
        Split(take_fraction(training, fraction=request.fraction, seed=seed), validation)
        for training, validation in fold_cases(cases, folds=request.folds, seed=seed)
    ]
    asked = stored("finetune", config, _plain_request(request))
    write_json(path, {**asked, "splits": [_names(split) for split in splits]})
    return splits


def _require_same_fold(folder: Path, config: FinetuneConfig) -> None:
    """Refuse to go on with a fold under other settings: its scores would not belong together."""
    kept, _ = kept_run(folder / "config.json", FinetuneConfig, _KeptRequest)
    different = first_difference(to_plain(kept), to_plain(config))
    if different:
        raise UserError(
            f"{folder}: was started with {different}.",
            "Resume with the settings it was started with, or start a new run.",
        )


def _one_run(
    request: FinetuneRequest,
    config: FinetuneConfig,
    labelled: LabelledSet,
    split: Split,
    *,
    team: Team,
) -> None:
    stop = StopRequest(request.output / STOP_FILE)
    with stop.listening():
        folder = RunFolder(
            request.output, kind="finetune", argv=request.argv, resume=request.resume
        )
        try:
            with folder, folder.outcome(), team.explaining():
                # The settings come first: with them, whatever happens next can be resumed.
                if not request.resume:
                    folder.write_config(stored("finetune", config, _plain_request(request)))
                stop.check()
                split = _kept_split(folder, labelled, split, resume=request.resume)
                given = _prepared(request, config, labelled.labels, split, folder=folder, stop=stop)
                team.announce(
                    {
                        "run": str(request.output),
                        "resume": request.resume,
                        "init": None if request.init is None else str(request.init),
                    }
                )
                _train(request, config, given, folder, stop=stop, team=team)
        finally:
            write_report(request.output)


def _plain_request(request: FinetuneRequest) -> dict[str, Any]:
    def absolute(path: Path | None) -> str | None:
        return None if path is None else str(path.absolute())

    return {
        "data": absolute(request.data),
        "init": absolute(request.init),
        "cases": list(request.cases),
        "fraction": request.fraction,
        "folds": request.folds,
        "cache": absolute(request.cache),
        "device": request.device,
    }


def _kept_split(folder: RunFolder, labelled: LabelledSet, split: Split, *, resume: bool) -> Split:
    """Write the split, or take the one that the run was started with."""
    path = folder.path / _SPLIT
    # Without a checkpoint nothing was learnt yet: it makes no difference which cases are taken.
    learnt = (folder.checkpoints / "last.pt").exists()
    if not resume or not (learnt or path.exists()):
        write_json(path, _names(split))
        return split
    return _split_of(checked_json(path, _KeptSplit), labelled, path)


def _names(split: Split) -> dict[str, list[str]]:
    return {part: [c.id for c in getattr(split, part)] for part in Split._fields}


def _split_of(kept: _KeptSplit, labelled: LabelledSet, path: Path) -> Split:
    """The cases that are named in the file at `path`."""
    cases = {case.id: case for case in labelled.cases if case.split != "test"}
    gone = [name for name in (*kept.training, *kept.validation) if name not in cases]
    if gone:
        raise UserError(
            f"{path}: case {gone[0]} of this run is no longer in the data.",
            "Put it back, or start a new run.",
        )
    return Split(*(tuple(cases[n] for n in getattr(kept, part)) for part in Split._fields))


class _Set(NamedTuple):
    """What a run learns from: structures, cases, and their scans in the cache."""

    labels: tuple[Label, ...]
    split: Split
    volumes: Mapping[str, CachedVolume]


def _prepared(
    request: FinetuneRequest,
    config: FinetuneConfig,
    labels: Sequence[Label],
    split: Split,
    *,
    folder: RunFolder,
    stop: StopRequest,
) -> _Set:
    cases = [*split.training, *split.validation]
    folder.update(
        message=f"Checking {len(cases)} labelled scans",
        scans={"training": len(split.training), "validation": len(split.validation)},
    )
    check_set(LabelledSet(cases=tuple(cases), labels=tuple(labels), layout=""), between=stop.check)
    volumes = _cached(request, config, cases, folder=folder, stop=stop)
    stop.check()
    return _Set(tuple(labels), split, volumes)


def _train(
    request: FinetuneRequest,
    config: FinetuneConfig,
    given: _Set,
    folder: RunFolder,
    *,
    stop: StopRequest,
    team: Team,
) -> None:
    labels, split, volumes = given
    folder.update(message="Preparing the network")
    import torch

    from backend.engine.device import resolve_device
    from backend.engine.loop import Event
    from backend.training import Samples, plan_of, prepared_loop

    device = resolve_device(request.device)
    torch.manual_seed(config.train.seed)
    network = _network(request, config, labels).to(device)
    # Measured on a CPU: convolutions are a third quicker with channels last.
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    task = FinetuneTask(network.train(), config, device, team.learner(network))
    log.info(
        "%s %s: %d scans to learn from, %d to validate, %d structures",
        config.method.name,
        config.preset,
        len(split.training),
        len(split.validation),
        len(labels),
    )
    loop = prepared_loop(
        task,
        config.train,
        plan=plan_of(config.train, samples=len(split.training)),
        device=device,
        folder=folder,
        resume=request.resume,
        team=team,
    )
    crops = Crops([volumes[c.id] for c in split.training], labels, config)
    samples = Samples(
        count=len(split.training),
        read=crops.read,
        collate=_batch,
        workers=config.data.workers,
        watch=stall_watch(crops.volumes, config.data, folder),
    )
    header = _header(config, labels, split)
    judge = _Judge(
        loop,
        volumes={c.id: volumes[c.id] for c in split.validation or split.training[:1]},
        labels=labels,
        config=config,
        header=header,
        device=device,
        chooses=bool(split.validation),
    )
    total = loop.plan.total_steps
    wanted = round(config.validate_every_epochs * loop.plan.steps_per_epoch)
    events = [Event(every=preview_every(config.train, total), action=judge.draw)]
    if split.validation:
        every = max(1, min(wanted, spaced(total, times=_VALIDATIONS_AT_LEAST)))
        events.insert(0, Event(every=every, action=judge.validate))
    loop.fit(
        samples.batches(config.train, first_step=loop.step, between=team.between(stop), team=team),
        stop=stop,
        events=events,
        on_save=lambda: judge.save("model.safetensors"),
        what="Fine-tuning",
    )


def _cache(request: FinetuneRequest, config: FinetuneConfig) -> Cache:
    beside = request.output if request.data is None else request.data
    return Cache(
        cache_root(request.cache, beside), recipe_of(config.preprocess), config.data.cache_form
    )


def _cached(
    request: FinetuneRequest,
    config: FinetuneConfig,
    cases: Sequence[LabelledCase],
    *,
    folder: RunFolder,
    stop: StopRequest,
) -> dict[str, CachedVolume]:
    cache = _cache(request, config)
    cure = "Mend it or leave it out with --cases."
    return cached_pairs(cache, cases, folder=folder, between=stop.check, cure=cure)


def _network(
    request: FinetuneRequest, config: FinetuneConfig, labels: Sequence[Label]
) -> nn.Module:
    from backend.models.segmentation import build_segmentation, encoder_of, freeze

    network = build_segmentation(segmentation_architecture(config, classes=len(labels) + 1))
    if request.init is not None:
        from backend.weights import load_into, load_weights, resolve_weights

        file = resolve_weights(request.init, prefer=INIT_FILES)
        tensors, header = load_weights(file)
        _warn_of_unfinished(request.init)
        prefix = "encoder." if header.kind == "segmentation" else ""
        report = load_into(encoder_of(network), tensors, prefix=prefix, what=str(file))
        log.info("Encoder from %s\n%s", file, report.text())
    elif not request.resume:
        log.info("Encoder from random weights")
    if config.freeze_encoder:
        freeze(encoder_of(network))
    return network


def _warn_of_unfinished(init: Path) -> None:
    """Say so where weights come from a run folder whose run did not reach its end."""
    if not (init / "status.json").exists():
        return
    status = read_status(init)
    if status["state"] != "done":
        where = "is still" if status["state"] == "running" else "stopped"
        total = status.get("total_steps")
        log.warning("%s: that run %s at step %s of %s.", init, where, status["step"], total)


def _header(config: FinetuneConfig, labels: Sequence[Label], split: Split) -> WeightsHeader:
    from backend.weights import WeightsHeader

    return WeightsHeader(
        kind="segmentation",
        method=config.method.name,
        preset=config.preset,
        preprocessing=preprocessing(config.preprocess),
        architecture=segmentation_architecture(config, classes=len(labels) + 1),
        labels=tuple(
            {
                "value": label.value,
                "name": label.name,
                "color": list(label.color),
                "terminology": label.terminology,
            }
            for label in labels
        ),
        fingerprint={"training": len(split.training), "validation": len(split.validation)},
        versions=software_versions(),
        citations=card(config.method.name).citations,
    )


def _batch(samples: Sequence[list[Crop]]) -> Batch:
    import torch

    from backend.views.randomness import derive_key

    crops = [crop for sample in samples for crop in sample]
    return Batch(
        torch.from_numpy(np.stack([crop.hu for crop in crops])),
        torch.from_numpy(np.stack([crop.target for crop in crops])),
        torch.tensor([derive_key(*crop.identity) for crop in crops]),
        torch.tensor([crop.moments for crop in crops]),
    )


class _Judge:
    """Segments whole scans while the network learns: validation, the best weights, pictures."""

    def __init__(
        self,
        loop: Loop[Batch],
        *,
        volumes: dict[str, CachedVolume],
        labels: Sequence[Label],
        config: FinetuneConfig,
        header: WeightsHeader,
        device: torch.device,
        chooses: bool,
    ) -> None:
        self._loop = loop
        self._volumes = volumes
        self._labels = labels
        self._config = config
        self._header = header
        self._device = device
        self._chooses = chooses
        self._first: dict[int, NDArray[np.integer[Any]]] = {}

    def validate(self, step: int) -> dict[str, float]:
        """Dice per structure over the validation scans, on the preprocessed grid.

        A structure counts in the scans that have it; the mean is over structures.
        """
        from backend.metrics import overlap

        found: dict[str, list[float]] = {label.name: [] for label in self._labels}
        volumes = tuple(self._volumes.values())
        for volume in self._loop.run.through(volumes, doing="Validating"):
            prediction = self._segment(volume)
            if volume is volumes[0]:
                self._first = {step: prediction}
            reference = volume.read_label((0, 0, 0), volume.geometry.size)
            for label in self._labels:
                truth = reference == label.value
                dice = overlap(prediction == label.value, truth).dice
                if truth.any() and dice is not None:
                    found[label.name].append(dice)
        means = {name: float(np.mean(values)) for name, values in found.items() if values}
        record = {f"val/dice/{name}": value for name, value in means.items()}
        record["val/dice_mean"] = float(np.mean(list(means.values()))) if means else 0.0
        self._keep_best(step, record)
        return record

    def draw(self, step: int) -> dict[str, float]:
        """A picture with contours: of a validation scan, or of the first training scan."""
        from backend.previews import contours_png

        volume = next(iter(self._volumes.values()))
        what = "validation scan" if self._chooses else "training scan"
        # Validation at the same step has segmented this scan already.
        prediction = self._first.pop(step, None)
        contours_png(
            self._loop.run.previews / f"step_{step:06d}.png",
            image=volume.read_all(),
            reference=volume.read_label((0, 0, 0), volume.geometry.size),
            prediction=self._segment(volume) if prediction is None else prediction,
            labels=self._labels,
            spacing_mm=volume.geometry.spacing_mm,
            window=self._config.preprocess.hu_window,
            title=f"Step {step}, {what}",
        )
        return {}

    def save(self, name: str) -> None:
        """Write the network as it is."""
        from backend.weights import save_weights

        tensors = self._loop.trainable.module.state_dict()
        save_weights(self._loop.run.checkpoints / name, tensors, self._header)

    def _keep_best(self, step: int, record: dict[str, float]) -> None:
        score = record["val/dice_mean"]
        best = self._loop.best
        # Of equal ones the later: while nothing is found yet, the first is the worst.
        if best is None or score >= best["val/dice_mean"]:
            self._loop.best = {"step": step, "val/dice_mean": score}
            self.save("best.safetensors")

    def _segment(self, volume: CachedVolume) -> NDArray[np.integer[Any]]:
        from backend.inference.predictor import intensity_tensor
        from backend.inference.sliding import Sliding, stream_logits, windows_at_once

        network = self._loop.trainable.module
        window = self._config.crop_size
        size = volume.geometry.size
        values = np.array([0, *(label.value for label in self._labels)], dtype=np.int16)
        result = np.zeros(size, dtype=np.int16)
        network.eval()
        try:
            seen = intensity_tensor(volume.read_all(), preprocessing(self._config.preprocess))
            slabs = stream_logits(
                network,
                seen.image,
                Sliding(
                    window=window,
                    batch_size=windows_at_once(window, self._device),
                    device=self._device,
                    air=seen.air,
                ),
                classes=len(values),
            )
            for start, logits in slabs:
                winner = logits.argmax(dim=0).cpu().numpy()
                result[start : start + len(winner)] = values[winner]
        finally:
            network.train()
        return result
