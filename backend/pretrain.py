"""`backend pretrain`: from unlabelled CT to an encoder, in a run folder that can be followed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from backend.cards import card
from backend.config import PretrainConfig, load_config
from backend.data.cache import Cache, CachedVolume
from backend.data.index import SeriesRow, found_series, refusals, usable, write_index
from backend.data.preprocess import Recipe
from backend.engine.distributed import Team, joined, place, share_of_device
from backend.engine.record import STOP_FILE, FollowedFolder, RunFolder, check_target
from backend.engine.signals import StopRequest, ending_at_once
from backend.errors import UserError
from backend.preparation import (
    INIT_FILES,
    KeptPath,
    cache_root,
    check_device,
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
    told_cache,
    write_report,
)
from backend.probe_scans import Probed, cached_probe, probed_cases

if TYPE_CHECKING:
    from backend.engine.loop import Event, Loop
    from backend.methods.method import Method

log = logging.getLogger("backend")

_HELD_OUT_AT_MOST = 8


@dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """What the user asked for.

    Attributes:
        output: the run folder; of no meaning to a dry run.
        data: index files or folders.
        method: or None for the one of the run that is resumed.
        preset: or None for the method's first.
        config_file: YAML or JSON over the preset.
        overrides: `key=value` texts over both.
        device: auto, cpu, cuda, cuda:1, mps.
        resume: continue the run in `output`.
        init: run or weights file whose encoder is the start.
        probe_data: labelled set that frozen features are asked of; None asks nothing.
        cache: folder of the preprocessing cache.
        argv: the command as it was given, for status.json.
    """

    output: Path
    data: tuple[Path, ...]
    method: str | None = None
    preset: str | None = None
    config_file: Path | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    resume: bool = False
    init: Path | None = None
    probe_data: Path | None = None
    cache: Path | None = None
    argv: tuple[str, ...] = ()


class _Material(NamedTuple):
    """What a run needs of the cache.

    Attributes:
        volumes: scans by series.
        probed: labelled scans, if this process asks them.
        pairs: those, by case.
    """

    volumes: Mapping[str, CachedVolume]
    probed: Probed | None = None
    pairs: Mapping[str, CachedVolume] = MappingProxyType({})


@ending_at_once()
def run(request: PretrainRequest) -> Path:
    """Pretrain from the first step, or from the last checkpoint on.

    Returns:
        The run folder.

    Raises:
        UserError, ResourceError, Cancelled, Interrupted: see `backend.errors`.
    """
    here = place()
    request = replace(request, device=share_of_device(request.device, here))
    with joined(here) as team:
        if not team.leads:
            _follow(request, team)
            return request.output
        if team.restarted and (request.output / "config.json").exists():
            request = replace(request, resume=True)
        # All that can be refused is refused before the time of a scan is spent.
        request, config = check(request, processes=team.size)
        check_device(request.device)
        rows = [] if request.resume else found_series(request.data)
        stop = StopRequest(request.output / STOP_FILE)
        with stop.listening():
            _run_in_folder(request, config, rows, stop=stop, team=team)
        return request.output


def check(
    request: PretrainRequest, *, processes: int = 1
) -> tuple[PretrainRequest, PretrainConfig]:
    """The request with its configuration, if it is one that can be run.

    Raises:
        UserError: if the folder, the settings, the weights or the shares of a batch do not fit.
    """
    check_target(request.output, kind="pretrain", resume=request.resume)
    request, config = resolve(request)
    require_shares(config.train, processes=processes)
    if request.init is not None:
        require_same_encoder(request.init, encoder_header(request.init), config.method)
    probed_cases(request.probe_data, config.probe)
    return request, config


def _run_in_folder(
    request: PretrainRequest,
    config: PretrainConfig,
    rows: list[SeriesRow],
    *,
    stop: StopRequest,
    team: Team,
) -> None:
    folder = RunFolder(request.output, kind="pretrain", argv=request.argv, resume=request.resume)
    try:
        with folder, folder.outcome(), team.explaining():
            # The settings come first: with them, whatever happens next can be resumed.
            if not request.resume:
                folder.write_config(stored("pretrain", config, _plain_request(request)))
            stop.check()
            index = folder.path / "index.csv"
            if index.exists():
                folder.update(message="Reading the index")
                rows = found_series([index])
            else:
                rows = rows or found_series(request.data)
                write_index(index, rows)
            if left := len(rows) - len(usable(rows)):
                told = (left, len(rows), index, refusals(rows))
                log.info("%d of %d series are left out; %s tells why of each. %s", *told)
            cache = _cache(request, config)
            volumes = _cached(usable(rows), cache, folder=folder, stop=stop)
            stop.check()
            given = _Material(volumes)
            if probed := probed_cases(request.probe_data, config.probe):
                pairs = cached_probe(probed, cache, folder=folder, between=stop.check)
                given = _Material(volumes, probed, pairs)
            stop.check()
            team.announce(
                {
                    "series": sorted(volumes),
                    "resume": request.resume,
                    "init": None if request.init is None else str(request.init),
                }
            )
            _train(request, config, given, folder=folder, stop=stop, team=team)
            team.announce(None)
    finally:
        write_report(request.output)


def _follow(request: PretrainRequest, team: Team) -> None:
    """Take part in the run that the leader has prepared."""
    stop = StopRequest()
    with stop.listening(), team.confessing():
        for facts in team.announced(stop.check):
            config, then = kept_run(request.output / "config.json", PretrainConfig, _KeptRequest)
            joining = replace(
                request,
                data=then.data,
                cache=request.cache or then.cache,
                resume=facts["resume"],
                init=None if facts["init"] is None else Path(facts["init"]),
            )
            cache = _cache(joining, config)
            given = _Material({series: cache.open(series) for series in facts["series"]})
            folder = FollowedFolder(request.output)
            _train(joining, config, given, folder=folder, stop=stop, team=team)


class _KeptRequest(BaseModel):
    """What a run was asked for, as it stands in its config.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    data: Annotated[tuple[KeptPath, ...], Field(min_length=1)]
    init: KeptPath | None
    probe_data: KeptPath | None = None
    cache: KeptPath | None


def resolve(request: PretrainRequest) -> tuple[PretrainRequest, PretrainConfig]:
    """The request with its configuration; when resuming, the stored ones.

    Raises:
        UserError: if a resumed run was started with other settings.
    """
    if not request.resume:
        if request.method is None:
            raise UserError("No method was given.", "Add --method smit (see `backend methods`).")
        if not request.data:
            raise UserError("No data was given.", "Add --data with an index.csv or a folder.")
        return request, _asked(request, request.method)
    config, then = kept_run(request.output / "config.json", PretrainConfig, _KeptRequest)
    require_same_settings(
        request.output,
        config,
        named={"method": request.method, "preset": request.preset},
        file=request.config_file,
        overrides=request.overrides,
    )
    _refuse_other_sources(request, then.model_dump(mode="json"))
    # What has no checkpoint yet starts again from the same weights.
    learnt = (request.output / "checkpoints" / "last.pt").exists()
    return replace(
        request,
        data=then.data,
        probe_data=then.probe_data,
        cache=request.cache or then.cache,
        init=None if learnt else then.init,
    ), config


def _refuse_other_sources(request: PretrainRequest, then: Mapping[str, Any]) -> None:
    """A resumed run goes on with its own index and weights; others would be left out in silence."""
    now = _plain_request(request)
    for name in ("data", "init", "probe_data"):
        if now[name] and now[name] != then[name]:
            option = name.replace("_", "-")
            raise UserError(
                f"{request.output}: was started with --{option} {_told(then[name])}, "
                f"not {_told(now[name])}.",
                f"Resume without --{option}, or start a new run.",
            )


def _told(paths: str | Sequence[str] | None) -> str:
    return (paths if isinstance(paths, str) else " ".join(paths or ())) or "none"


def _asked(request: PretrainRequest, method: str) -> PretrainConfig:
    return load_config(
        PretrainConfig,
        method=method,
        preset=request.preset,
        file=request.config_file,
        overrides=request.overrides,
    )


def _plain_request(request: PretrainRequest) -> dict[str, Any]:
    return {
        "data": [str(p.absolute()) for p in request.data],
        "cache": None if request.cache is None else str(request.cache.absolute()),
        "init": None if request.init is None else str(request.init.absolute()),
        "probe_data": None if request.probe_data is None else str(request.probe_data.absolute()),
        "device": request.device,
    }


def _cache(request: PretrainRequest, config: PretrainConfig) -> Cache:
    beside = request.data[0] if request.data else request.output
    return Cache(
        cache_root(request.cache, beside), recipe_of(config.preprocess), config.data.cache_form
    )


def _train(
    request: PretrainRequest,
    config: PretrainConfig,
    given: _Material,
    *,
    folder: RunFolder,
    stop: StopRequest,
    team: Team,
) -> None:
    volumes = given.volumes
    folder.update(message="Preparing the network")
    import torch

    from backend.engine.device import resolve_device
    from backend.engine.loop import Event
    from backend.methods import build_method
    from backend.pretext import PretrainTask, Reader, collated
    from backend.training import Samples, plan_of, prepared_loop
    from backend.watch import Watcher
    from backend.weights import save_weights

    device = resolve_device(request.device)
    train = config.train
    torch.manual_seed(train.seed)
    method = build_method(config.method, epochs=train.epochs)
    if request.init is not None:
        initialise(method, request.init)
    method = method.to(device).train()
    task = PretrainTask(method, config, device, team.learner(method))

    learn, held_out = split_held_out(sorted(volumes), share=config.data.held_out, seed=train.seed)
    require_enough(config, scans=len(learn))
    reader = Reader([volumes[i] for i in learn], config)
    shown = [volumes[i] for i in held_out or learn[:1]]
    watcher = Watcher(task, Reader(shown, config), folder=folder, measured=bool(held_out))
    folder.update(scans={"training": len(learn), "held_out": len(held_out)})
    log.info(
        "%s %s: %d scans to learn from, %d held out%s",
        config.method.name,
        config.preset,
        len(learn),
        len(held_out),
        f"; {few}" if (few := too_few_to_hold_out(config, scans=len(volumes))) else "",
    )
    loop = prepared_loop(
        task,
        train,
        plan=plan_of(train, samples=len(learn), least_part=config.method.least_batch),
        device=device,
        folder=folder,
        resume=request.resume,
        team=team,
    )
    samples = Samples(
        count=len(learn),
        read=reader.read,
        collate=lambda chosen: collated(chosen, seed=train.seed),
        workers=config.data.workers,
        watch=stall_watch(reader.volumes, config.data, folder),
    )
    header = _encoder_header(config, recipe_of(config.preprocess), learn)

    def save(name: str) -> None:
        save_weights(folder.checkpoints / name, method.encoder.state_dict(), header)

    every = preview_every(train, loop.plan.total_steps)
    keep = partial(save, "best.safetensors")
    loop.fit(
        samples.batches(train, first_step=loop.step, between=team.between(stop), team=team),
        stop=stop,
        events=[
            Event(every=every, action=watcher.look),
            *_probes(config, given, loop=loop, method=method, keep=keep),
        ],
        on_save=lambda: save("encoder.safetensors"),
        what="Pretraining",
    )


def _cached(
    rows: Sequence[SeriesRow], cache: Cache, *, folder: RunFolder, stop: StopRequest
) -> dict[str, CachedVolume]:
    """Preprocess what is missing and open everything; what cannot be read is told by name."""
    missing = cache.missing(rows)
    told_cache(
        cache,
        missing=len(missing),
        total=len(rows),
        folder=folder,
        estimated_bytes=cache.estimate_bytes(missing),
    )
    report = cache.build(rows, between=stop.check)
    for series, reason in report.failed.items():
        folder.warn("scans", f"Left out {series}: {reason}")
    return {row.id: cache.open(row.id) for row in rows if row.id not in report.failed}


def _probes(
    config: PretrainConfig,
    given: _Material,
    *,
    loop: Loop[Any],
    method: Method,
    keep: Callable[[], None],
) -> list[Event]:
    """What is asked of labelled scans, if there are any."""
    if given.probed is None:
        return []
    from backend.engine.loop import Event
    from backend.probe import ProbeSettings
    from backend.probing import Prober, labelled_windows

    learn, judge = (
        labelled_windows([given.pairs[case.id] for case in part], given.probed.labels, config)
        for part in (given.probed.learn, given.probed.judge)
    )
    settings = ProbeSettings(voxels=config.probe.voxels, ridge=config.probe.ridge)
    prober = Prober(
        loop, lambda: method.encoder, learn=learn, judge=judge, settings=settings, keep=keep
    )
    every = spaced(loop.plan.total_steps, times=10)
    if (epochs := config.probe.every_epochs) is not None:
        every = max(1, round(epochs * loop.plan.steps_per_epoch))
    return [Event(every=every, action=prober.ask, first=True)]


def split_held_out(ids: Sequence[str], *, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Scans to learn from and scans to judge by, decided by the seed.

    Of so few that the share is half a scan or less none is held out, and never more than eight.
    """
    count = min(_HELD_OUT_AT_MOST, round(share * len(ids)))
    order = np.random.default_rng([seed, 2]).permutation(len(ids))
    chosen = {ids[i] for i in order[:count]}
    return [i for i in ids if i not in chosen], [i for i in ids if i in chosen]


def too_few_to_hold_out(config: PretrainConfig, *, scans: int) -> str:
    """That a share of the scans rounds to none, and which one would not; "" if it does not."""
    if config.data.held_out == 0 or round(config.data.held_out * scans) > 0:
        return ""
    if scans == 1:
        return "one scan alone cannot be held out"
    # The smallest hundredth that makes more than half a scan.
    share = (50 // scans + 1) / 100
    return f"too few to hold one out; --set data.held_out={share:g} would"


def require_enough(config: PretrainConfig, *, scans: int) -> None:
    """Refuse fewer scans than a method tells apart; warn where a batch holds a scan twice.

    Args:
        config: names the method and the size of a batch.
        scans: those to learn from.

    Raises:
        UserError: if there are too few.
    """
    least = config.method.least_batch
    if scans < least:
        raise UserError(
            f"{config.method.name} tells scans from each other and needs {least} to learn from; "
            f"there {'is' if scans == 1 else 'are'} {scans}.",
            "Add scans with --data, or choose a method that needs one (see `backend methods`).",
        )
    if config.train.batch_size > scans:
        log.warning(
            "train.batch_size %d is more than the %d scans to learn from: a batch holds some twice",
            config.train.batch_size,
            scans,
        )


def initialise(method: Method, source: Path) -> None:
    """Start from the encoder of a run or weights file.

    Raises:
        UserError: if the file is damaged or its encoder is another.
    """
    from backend.weights import load_into, load_weights, resolve_weights

    file = resolve_weights(source, prefer=INIT_FILES)
    tensors, header = load_weights(file)
    prefix = "encoder." if header.kind == "segmentation" else ""
    report = load_into(method.parts["encoder"], tensors, prefix=prefix, what=str(file))
    log.info("Started from %s\n%s", file, report.text())
    method.restart_teacher()


def _encoder_header(config: PretrainConfig, recipe: Recipe, ids: Sequence[str]) -> Any:
    from backend.provenance import (
        encoder_arguments,
        preprocessing,
        software_versions,
    )
    from backend.weights import WeightsHeader

    return WeightsHeader(
        kind="encoder",
        method=config.method.name,
        preset=config.preset,
        preprocessing=preprocessing(config.preprocess),
        architecture={"encoder": encoder_arguments(config.method)},
        fingerprint={
            "scans": len(ids),
            "sha256": hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest(),
            "recipe": recipe.key(),
        },
        versions=software_versions(),
        citations=card(config.method.name).citations,
    )
