"""PCRL: preservational contrastive representation learning (Zhou et al., ICCV 2021).

Two views of a scan are spoilt. A U-Net, the student, sees one and a teacher, its moving average,
the other; their pooled bottlenecks are compared across scans. So that they keep what contrast alone
would drop, the student's decoder reconstructs, from features weighted by a drawn transformation
("transformation-conditioned attention"), the own view so transformed, the other view, and from
features of both the mixture of both ("cross-model mixup"). The same is done with images that are
mixed with those of another scan. What the text leaves open is as in the released code
(docs/pcrl.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from backend.losses.distillation import feature_std
from backend.losses.queue import KeyQueue, queue_nce
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.methods.teacher import teacher_of
from backend.models.encoder import build_encoder
from backend.models.unet import EncoderDecoder
from backend.settings.pcrl import PcrlConfig
from backend.views.corruption import paint_boxes, shuffle_locally
from backend.views.crops import View, ViewSet
from backend.views.intensity import blurred
from backend.views.randomness import derive_keys, uniform
from backend.views.turns import INDICATOR_LENGTH, Turns, draw_turns, no_turns, turned

_SPOIL, _SHARES = 821, 822

Levels = tuple[Tensor, ...]


class PcrlBranch(nn.Module):
    """U-Net and projector: what student and teacher both have."""

    def __init__(self, config: PcrlConfig) -> None:
        super().__init__()
        self.encoder = cast(EncoderDecoder, build_encoder(asdict(config.encoder)))
        self.projector = nn.Sequential(
            nn.Linear(self.encoder.bottleneck_width, config.projection),
            nn.ReLU(),
            nn.Linear(config.projection, config.projection),
        )

    def forward(self, image: Float[Tensor, "b 1 z y x"]) -> Encoded:
        """Maps of all levels, and the vector that is compared."""
        levels = self.encoder.encode(image)
        return Encoded(levels, self.projector(levels[-1].mean(dim=(2, 3, 4))))


class Encoded(NamedTuple):
    """What a branch makes of an image.

    Attributes:
        levels: maps of the levels, finest first.
        vector: what is compared, (b, c).
    """

    levels: Levels
    vector: Tensor


class Pcrl(Method):
    """The pretext task of PCRL.

    Args:
        config: its settings.
        epochs: length of the run; nothing here depends on it.
    """

    student: PcrlBranch
    teacher: PcrlBranch

    def __init__(self, config: PcrlConfig, *, epochs: float) -> None:
        momentum = config.ema_momentum
        super().__init__(epochs=epochs, ema_momentum=(momentum, momentum))
        self.config = config
        self.healthy = {"feature_std": (0.01, math.inf)}
        self.student = PcrlBranch(config)
        self.teacher = teacher_of(self.student)
        unet = self.student.encoder
        self.condition = nn.Sequential(
            nn.Linear(INDICATOR_LENGTH, config.condition),
            nn.ReLU(),
            nn.Linear(config.condition, unet.bottleneck_width),
            nn.Sigmoid(),
        )
        self.pixel_head = nn.Conv3d(unet.widths[0], 1, kernel_size=1)
        self.queue = KeyQueue(config.queue, config.projection)

    @property
    def encoder(self) -> EncoderDecoder:
        """What is kept after pretraining: the student's U-Net."""
        return self.student.encoder

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The student's U-Net and projector, the attention and the pixel head."""
        return {
            "encoder": self.student.encoder,
            "projector": self.student.projector,
            "condition": self.condition,
            "pixel_head": self.pixel_head,
        }

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch.

        Args:
            views: the two main ones; the student sees the first.
            progress: how far the run is, in [0, 1].
        """
        del progress  # nothing changes over the run
        keys = views.main[0].keys
        seen = [self._spoilt(view) for view in views.main]
        clean = seen if self.config.restore == "seen" else [view.image for view in views.main]
        share = self._shares(keys)
        own: Encoded = self.student(seen[0])
        other = self._taught(seen[1])
        mixed_seen = [_mixed(x, x.roll(1, dims=0), share[0]) for x in seen]
        mixed_clean = [_mixed(x, x.roll(1, dims=0), share[0]) for x in clean]
        mixed_own: Encoded = self.student(mixed_seen[0])
        mixed_other = self._taught(mixed_seen[1])
        terms = {
            "contrast": self._contrast(own, other, mixed_own, mixed_other, share[0]),
            **self._preserved(own, other, clean, views.main, share[1]),
            "mixed": self._preserved_of_mixed(mixed_own, mixed_other, mixed_clean, share[2]),
        }
        if self.training:
            self.queue.observe(other.vector)
        weights = {name: getattr(self.config, f"weight_{name}") for name in terms}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        detached = {name: term.detach() for name, term in terms.items()}
        return Losses(total, detached, {"feature_std": feature_std(own.vector.detach())})

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """What the student makes of a spoilt view, without transforming it.

        Hidden is what is painted over, and a part always is; if the settings paint nothing, all
        that was changed.
        """
        coarse = self._coarsened(view)
        seen = self._painted(coarse, view, probability=1.0)
        levels = self._conditioned(self.student(seen).levels, no_turns(view.keys))
        before = coarse if self.config.paint_probability else view.image
        return Reconstruction(view.image, (seen != before)[:, 0], self._pixels(levels), seen)

    def _spoilt(self, view: View) -> Float[Tensor, "b 1 z y x"]:
        """The view as a network sees it: blurred, shuffled and painted over."""
        probability = self.config.paint_probability
        return self._painted(self._coarsened(view), view, probability=probability)

    def _coarsened(self, view: View) -> Float[Tensor, "b 1 z y x"]:
        c = self.config
        keys = derive_keys(view.keys, _SPOIL)
        image = blurred(view.image, keys, probability=c.blur_probability, sigma=c.blur_sigma)
        return shuffle_locally(
            image, keys, probability=c.shuffle_probability, blocks=c.shuffle_blocks
        )

    def _painted(self, image: Tensor, view: View, *, probability: float) -> Tensor:
        c = self.config
        if not c.paint_probability:
            return image
        keys = derive_keys(view.keys, _SPOIL)
        return paint_boxes(image, keys, probability=probability, inpaint=c.inpaint_share)

    @torch.no_grad()
    def _taught(self, image: Tensor) -> Encoded:
        encoded: Encoded = self.teacher(image)
        return encoded

    def _shares(self, keys: Int64[Tensor, " b"]) -> Float[Tensor, "3 b"]:
        """Shares of the own image or features in three mixtures: max(a, 1 - a), a ~ Beta(1, 1)."""
        drawn = uniform(keys, 3, stream=_SHARES).T
        return torch.maximum(drawn, 1 - drawn)

    def _contrast(
        self,
        own: Encoded,
        other: Encoded,
        mixed_own: Encoded,
        mixed_other: Encoded,
        share: Float[Tensor, " b"],
    ) -> Tensor:
        """Mean of three: plain, of mixed images, and of mixed images with mixed vectors."""
        mixed_vector = _mixed(other.vector, other.vector.roll(1, dims=0), share)
        pairs = (
            (own.vector, other.vector),
            (mixed_own.vector, mixed_other.vector),
            (mixed_own.vector, mixed_vector),
        )
        losses = [queue_nce(q, k, self.queue.keys, self.config.temperature) for q, k in pairs]
        return torch.stack(losses).mean()

    def _preserved(
        self,
        own: Encoded,
        other: Encoded,
        clean: Sequence[Tensor],
        views: Sequence[View],
        share: Float[Tensor, " b"],
    ) -> dict[str, Tensor]:
        """The three reconstructions from features that know of a transformation each."""
        c = self.config
        turns = [draw_turns(view.keys) for view in views]
        targets = [turned(image, turn) for image, turn in zip(clean, turns, strict=True)]
        levels = [
            self._conditioned(encoded.levels, turn)
            for encoded, turn in zip((own, other), turns, strict=True)
        ]
        terms = {"own": self._error(levels[0], targets[0])}
        if c.weight_other:
            terms["other"] = self._error(levels[1], targets[1])
        if c.weight_mixup:
            terms["mixup"] = self._error(
                _mixed_levels(levels[0], levels[1], share), _mixed(targets[0], targets[1], share)
            )
        return terms

    def _preserved_of_mixed(
        self, own: Encoded, other: Encoded, clean: Sequence[Tensor], share: Float[Tensor, " b"]
    ) -> Tensor:
        """Own view and mixture of both of images mixed with another scan's, not transformed."""
        alone = self._error(own.levels, clean[0])
        both = self._error(
            _mixed_levels(own.levels, other.levels, share), _mixed(clean[0], clean[1], share)
        )
        return (alone + both) / 2

    def _conditioned(self, levels: Levels, turns: Turns) -> Levels:
        """The bottleneck's channels weighted by what the transformation's indicator gives."""
        weights = self.condition(turns.indicator)
        return (*levels[:-1], levels[-1] * weights.view(*weights.shape, 1, 1, 1))

    def _error(self, levels: Levels, target: Tensor) -> Tensor:
        return functional.mse_loss(self._pixels(levels), target)

    def _pixels(self, levels: Levels) -> Float[Tensor, "b 1 z y x"]:
        decoded = self.student.encoder.decode(levels).decoded
        return torch.sigmoid(self.pixel_head(decoded).float())


def _mixed(
    a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."], share: Float[Tensor, " b"]
) -> Float[Tensor, "b ..."]:
    weight = share.view(-1, *[1] * (a.ndim - 1)).to(a.dtype)
    return weight * a + (1 - weight) * b


def _mixed_levels(a: Levels, b: Levels, share: Float[Tensor, " b"]) -> Levels:
    return tuple(_mixed(x, y, share) for x, y in zip(a, b, strict=True))
