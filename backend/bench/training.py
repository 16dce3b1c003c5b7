"""Rows 1 to 6: whole optimizer steps, and what follows the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from backend.bench.catalogue import Size
from backend.bench.measure import Pair, activations
from backend.bench.peers.plain_tail import plain_follow, plain_optimizer
from backend.config import PretrainConfig, load_config
from backend.cost import views_of_noise
from backend.engine.device import autocast, use_bf16
from backend.engine.distributed import Team
from backend.losses.reconstruction import masked_mse
from backend.losses.state import StepState
from backend.methods import build_method
from backend.methods.glmae import Glmae
from backend.methods.method import Method
from backend.methods.pgl import Pgl
from backend.methods.smit import Smit
from backend.methods.teacher import follow
from backend.methods.trio import Trio
from backend.models.vit import MaeDecoder, VitEncoder, patchify
from backend.training import optimizer_of
from backend.views.crops import View, ViewSet
from backend.views.masking import CellMask, random_cells

_RATE, _DECAY, _MOMENTUM, _PROGRESS = 1e-6, 0.01, 0.996, 0.5
"""Small steps: the losses of both sides stay alike however often they run."""

_TINY_SWIN = (
    "method.encoder.embed_dim=4",
    "method.encoder.depths=[1, 1, 1, 1]",
    "method.encoder.heads=[1, 1, 2, 2]",
)
_TINY_VIT = (
    *("method.encoder.width=24", "method.encoder.depth=4", "method.encoder.heads=2"),
    *("method.decoder.width=24", "method.decoder.depth=1", "method.decoder.heads=2"),
    *("method.projector.hidden=16", "method.projector.output=16"),
)


class Step:
    """One optimizer step again and again.

    Args:
        loss: of the batch.
        optimizer: over what learns.
        after: what moves on behind it.
        around: context of the forward pass, made anew for each.
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        after: Callable[[], object] = lambda: None,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._loss, self._optimizer, self._after, self._around = loss, optimizer, after, around

    def forward(self) -> Tensor:
        """The loss alone."""
        with self._around():
            return self._loss()

    def __call__(self) -> float:
        """The step; reading the loss waits for all that came before it."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._after()
        return float(loss.detach())


def smit(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001 - rows are built alike
    """Row 1: two views of 96³, with the teacher."""
    from backend.bench.peers.plain_smit import PlainSmit

    config = _smit_config(size)
    method = cast(Smit, _method(config, device))
    return _pair(method, PlainSmit(method).train(), config, samples=1, device=device)


def shared_smit(size: Size, device: str, team: Team, *, samples: int) -> Step:
    """Row 15: a step on this process' share of a batch."""
    config = _smit_config(size)
    method = _method(config, device)
    views = views_of_noise(config, samples=samples, device=torch.device(device))
    main = (View(*(part.chunk(team.size)[team.here.rank] for part in view)) for view in views.main)
    share, learner = ViewSet(tuple(main), ()), team.learner(method)
    return Step(
        lambda: cast(Tensor, learner(share, _PROGRESS).total),
        _our_optimizer(method),
        after=lambda: method.after_step(_PROGRESS),
        around=_half(device),
    )


def _smit_config(size: Size) -> PretrainConfig:
    tiny = (
        *("method.encoder.embed_dim=4", "method.encoder.heads=[1, 1, 2]"),
        *("views.region=40", "views.main.size=32", "method.head.hidden=16"),
        *("method.head.bottleneck=8", "method.head.prototypes=32"),
    )
    if size == "smallest":
        return _config("smit", "tiny", tiny)
    return _config("smit", "released", () if size == "full" else ("views.main.size=64",))


def glmae(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001 - rows are built alike
    """Row 2: two global views of 160³ and eight local ones of 96³, ViT-B."""
    from backend.bench.peers.plain_glmae import PlainGlmae

    views = ("views.main.size=32", "views.local.size=32", "views.local.count=2")
    layers = {
        "smallest": (*_TINY_VIT, *views),
        "default": ("method.encoder.depth=4", "method.decoder.depth=2", "views.local.count=4"),
        "full": (),
    }
    config = _config("glmae", "vit_b", layers[size])
    method = cast(Glmae, _method(config, device))
    note = ", depths 4 and 2 of 12 and 8" if size == "default" else ""
    return _pair(method, PlainGlmae(method).train(), config, samples=1, device=device, note=note)


def pgl(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001 - rows are built alike
    """Row 4: two views of 16×96×96, ResNet-50."""
    from backend.bench.peers.monai_networks import MonaiPgl

    tiny = (
        *("method.encoder.depths=[1, 1, 1, 1]", "method.encoder.width=4"),
        *("method.projector.hidden=16", "method.projector.output=8", "method.predictor_hidden=16"),
        *(
            "views.main.size=[32, 64, 64]",
            "views.region=[64, 96, 96]",
        ),
    )
    config = _config("pgl", "paper", tiny if size == "smallest" else ())
    samples = {"smallest": 2, "default": 1, "full": 8}[size]
    method = cast(Pgl, _method(config, device))
    return _pair(method, MonaiPgl(method), config, samples=samples, device=device)


def trio(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001 - rows are built alike
    """Row 5: Swin UNETR's three tasks, where MONAI's research code looks for anomalies."""
    from backend.bench.peers.monai_networks import MonaiTrio

    edges = {"smallest": 64, "default": 64, "full": 96}[size]
    view = (f"views.region={edges}", f"views.main.size={edges}")
    layers = {
        "smallest": (*_TINY_SWIN, "method.encoder.window=4", "method.contrast_width=8"),
        "default": ("method.encoder.embed_dim=24",),
        "full": (),
    }
    config = _config("swinunetr_trio", "paper", (*view, *layers[size]))
    method = cast(Trio, _method(config, device))
    return _pair(
        method,
        MonaiTrio(method).train(),
        config,
        samples=2,
        device=device,
        note=", width 24 of 48" if size == "default" else "",
        watched=torch.autograd.detect_anomaly,
    )


def mae(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001 - rows are built alike
    """Row 3: the masked autoencoder alone, 160³, ViT-B with MONAI's default decoder."""
    from backend.bench.peers.monai_networks import MonaiMae

    torch.manual_seed(0)
    small = size == "smallest"
    edge = 32 if small else 160
    encoder = VitEncoder(
        width=24 if small else 768, depth=2 if small else 12, heads=2 if small else 12
    )
    decoder = MaeDecoder(
        encoder_width=encoder.width,
        width=24 if small else 384,
        depth=1 if small else 4,
        heads=2 if small else 12,
    )
    image = torch.rand(1, 1, edge, edge, edge, device=device)
    keys = torch.tensor([5], device=device)
    grid = (edge // 16,) * 3
    mask = random_cells(keys, grid, 0.75)
    wanted = patchify(image, encoder.patch)
    ours = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(device)
    peer = MonaiMae(encoder, decoder, edge=edge).to(device)
    peer.seen = mask

    def our_loss() -> Tensor:
        seen = encoder(image, mask.visible)
        return masked_mse(decoder(seen.cls, seen.tokens, mask.visible, seen.grid), wanted, _hidden)

    def peer_loss() -> Tensor:
        predicted, hidden = peer(image)
        error = (predicted - wanted).square().mean(dim=-1)
        loss: Tensor = (error * hidden).sum() / hidden.sum()
        return loss

    _hidden = _flat(mask)
    steps = (
        Step(our_loss, _our_optimizer(ours), around=_half(device)),
        Step(peer_loss, _plain(peer)),
    )
    told = f"1 view of {edge}³, 75 % masked"
    return _steps(*steps, modules=(ours, peer), size=told)


def tail(size: Size, device: str, folder: Path) -> Pair:  # noqa: ARG001 - rows are built alike
    """Row 6: optimizer and moving average over SMIT's weights."""
    preset = "tiny" if size == "smallest" else "released"
    method = cast(Smit, _method(_config("smit", preset), device))
    assert method.teacher is not None, "SMIT distils"
    ours, peer = method.student, deepcopy(method.student)
    our_teacher, peer_teacher = method.teacher, deepcopy(method.teacher)
    for a, b in zip(ours.parameters(), peer.parameters(), strict=True):
        if a.requires_grad:
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
    fused, plain = _our_optimizer(ours), _plain(peer)

    def our_tail() -> float:
        fused.step()
        follow(our_teacher, ours, _MOMENTUM)
        return _sum(our_teacher)

    def peer_tail() -> float:
        plain.step()
        plain_follow(peer_teacher, peer, _MOMENTUM)
        return _sum(peer_teacher)

    count = sum(p.numel() for p in chain(ours.parameters(), our_teacher.parameters()))
    return Pair(size=f"{count / 1e6:.1f} M weights", ours=our_tail, peer=peer_tail)


def _sum(teacher: nn.Module) -> float:
    """Of the last parameter: it stands for all and takes no time."""
    *_, last = teacher.parameters()
    return float(last.sum())


def _config(method: str, preset: str, overrides: Iterable[str] = ()) -> PretrainConfig:
    return load_config(PretrainConfig, method=method, preset=preset, overrides=tuple(overrides))


def _method(config: PretrainConfig, device: str) -> Method:
    torch.manual_seed(0)
    return build_method(config.method, epochs=config.train.epochs).to(device).train()


def _pair(
    method: Method,
    peer: nn.Module,
    config: PretrainConfig,
    *,
    samples: int,
    device: str,
    note: str = "",
    watched: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Pair:
    """Both steps on the same views of noise; the peer's under `watched`."""
    views = views_of_noise(config, samples=samples, device=torch.device(device))
    ours = Step(
        lambda: cast(Tensor, method(views, _PROGRESS).total),
        _our_optimizer(method),
        after=lambda: method.after_step(_PROGRESS),
        around=_half(device),
    )
    plain = Step(lambda: cast(Tensor, peer(views, _PROGRESS)), _plain(peer), after=_after(peer))

    def watched_step() -> float:
        with watched():
            return plain()

    size = _told(views) + note
    pair = _steps(ours, plain, modules=(method, peer), size=size)
    return Pair(size=size, ours=ours, peer=watched_step, memory=pair.memory)


def _steps(ours: Step, peer: Step, *, modules: tuple[nn.Module, ...], size: str) -> Pair:
    return Pair(
        size=size,
        ours=ours,
        peer=peer,
        memory=lambda: activations(ours.forward, peer.forward, modules=modules),
    )


def _after(peer: nn.Module) -> Callable[[], None]:
    """Teacher and centres of a peer that has them."""
    student, teacher = getattr(peer, "student", None), getattr(peer, "teacher", None)

    def move_on() -> None:
        if teacher is not None and student is not None:
            plain_follow(teacher, student, _MOMENTUM)
        for module in peer.modules():
            if isinstance(module, StepState):
                module.update()

    return move_on


def _our_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    train = _config("smit", "released").train
    return optimizer_of(
        replace(train, learning_rate=_RATE, weight_decay=_DECAY, betas=(0.9, 0.999)),
        module.named_parameters(),
    )


def _plain(module: nn.Module) -> torch.optim.Optimizer:
    return plain_optimizer(module.parameters(), learning_rate=_RATE, weight_decay=_DECAY)


def _half(device: str) -> Callable[[], AbstractContextManager[object]]:
    place = torch.device(device)
    bf16 = use_bf16("auto", place)
    return lambda: autocast(place, bf16=bf16)


def _flat(mask: CellMask) -> Tensor:
    return mask.grid.flatten(1)


def _told(views: ViewSet) -> str:
    """How many views of which edges, e.g. "2 views of 96³ and 8 of 64³"."""
    parts = []
    for group in (views.main, views.local):
        if group:
            z, y, x = group[0].image.shape[2:]
            edges = f"{z}³" if z == y == x else f"{z}×{y}×{x}"
            parts.append(f"{len(group) * len(group[0].image)} of {edges}")
    return f"views: {' and '.join(parts)}"
