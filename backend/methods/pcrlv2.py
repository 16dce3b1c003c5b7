"""PCRLv2: pixels, scales and semantics preserved together (Zhou et al., IEEE TPAMI 2023).

A U-Net whose decoder sees nothing of the encoder but the bottleneck ("non-skip U-Net") restores two
spoilt views of a scan, at the end and, ever less, at a drawn scale of the decoder ("multi-scale
pixel restoration"). At a drawn scale, too, pooled features of one view predict those of another
without any gradient to these ("siamese feature comparison", SimSiam): the two main views of each
other, and those and smaller local ones of each other ("sub-crop"). What the text leaves open is as
in the released code (docs/pcrlv2.md).
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
from backend.losses.similarity import cosine_distance
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.models.encoder import build_encoder
from backend.models.unet import EncoderDecoder, UnetOutput
from backend.schedules import cosine
from backend.settings.common import triple
from backend.settings.pcrlv2 import Pcrlv2Config
from backend.views import intensity
from backend.views.crops import View, ViewSet
from backend.views.randomness import derive_keys, integers
from backend.views.swaps import swap_cells

_SPOIL, _SCALES = 831, 832


class ScaleOutput(NamedTuple):
    """What a scale's head gives.

    Attributes:
        projected: what others predict, (b, c).
        predicted: what is predicted of others, (b, c).
        restored: voxels on the scale's grid, in [0, 1], (b, 1, z, y, x); None if not wanted.
    """

    projected: Tensor
    predicted: Tensor
    restored: Tensor | None


class ScaleHead(nn.Module):
    """Projection, prediction and restoration at one scale of the decoder.

    Args:
        width: channels of the scale.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.predictor = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
        )
        self.restore = nn.Sequential(
            nn.Conv3d(width, 1, kernel_size=3, padding=1), nn.BatchNorm3d(1)
        )

    def forward(self, features: Float[Tensor, "b c z y x"], *, restore: bool) -> ScaleOutput:
        """Compare pooled features; restore voxels only where that is wanted."""
        projected = self.norm(features.mean(dim=(2, 3, 4)))
        restored = torch.sigmoid(self.restore(features).float()) if restore else None
        return ScaleOutput(projected, self.predictor(projected), restored)


class Pcrlv2(Method):
    """The pretext task of PCRLv2.

    Args:
        config: its settings.
        epochs: length of the run, of which the intermediate reconstruction lasts a part.
    """

    def __init__(self, config: Pcrlv2Config, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.healthy = {"feature_std": (0.01, math.inf)}
        self.unet = cast(EncoderDecoder, build_encoder(asdict(config.encoder)))
        self.scales = nn.ModuleList(ScaleHead(width) for width in self.unet.widths[:-1])
        self.pixel_head = nn.Conv3d(self.unet.widths[0], 1, kernel_size=1)

    @property
    def encoder(self) -> EncoderDecoder:
        """What is kept after pretraining: the U-Net."""
        return self.unet

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The U-Net, the heads of its decoder's scales, and the pixel head."""
        return {"encoder": self.unet, "scales": self.scales, "pixel_head": self.pixel_head}

    def settings(self, progress: float) -> dict[str, float]:
        """The weight of the intermediate reconstruction, beta."""
        epoch = progress * self.epochs
        return {"beta": cosine(1.0, 0.0, epoch / self.config.intermediate_epochs)}

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch.

        Args:
            views: two main ones, and any number of local ones.
            progress: how far the run is, in [0, 1].
        """
        c = self.config
        b = len(views.main[0].keys)
        target = torch.cat([view.image for view in views.main])
        output = self._decoded(torch.cat([self._spoilt(view, main=True) for view in views.main]))
        heads = self._heads(output, restore=True)
        main = _views_of(heads, b)
        drawn = self._drawn(views.main[0].keys, 1 + len(main) * len(views.local))
        terms = {
            "restore": functional.mse_loss(self._pixels(output), target),
            "global": _compared(main[0], main[1], drawn[0]),
            "intermediate": _restored(heads, drawn[0], target),
        }
        if views.local:
            terms["local"] = self._local(views, main, drawn[1:])
        weights = {name: getattr(c, f"weight_{name}") for name in terms}
        weights["intermediate"] *= self.settings(progress)["beta"]
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        detached = {name: term.detach() for name, term in terms.items()}
        projected = main[0][-1].projected.detach()
        return Losses(total, detached, {"feature_std": feature_std(projected)})

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """What the network makes of a spoilt view.

        Hidden are the cells that changed places; if the settings swap none, all that was changed.
        """
        seen = self._spoilt(view, main=True)
        before = self._spoilt(view, main=False) if self.config.swaps else view.image
        prediction = self._pixels(self._decoded(seen))
        return Reconstruction(view.image, (seen != before)[:, 0], prediction, seen)

    def _spoilt(self, view: View, *, main: bool) -> Float[Tensor, "b 1 z y x"]:
        """The view as the network sees it; cells change places in main views alone."""
        c = self.config
        keys = derive_keys(view.keys, _SPOIL)
        changes = intensity.Changes(
            blur=c.blur_probability,
            blur_sigma=c.blur_sigma,
            noise=c.noise_probability,
            noise_variance=c.noise_variance,
            gamma=c.gamma_probability,
            gamma_exponent=c.gamma,
        )
        image = intensity.changed(view.image, keys, changes)
        if not (main and c.swaps):
            return image
        return swap_cells(image, keys, pairs=c.swaps, cell=triple(c.swap_cell))

    def _decoded(self, image: Tensor) -> UnetOutput:
        levels = self.unet.encode(image)
        if not self.config.skips:
            # Zeros in place of the skips make the paper's non-skip U-Net out of weights that
            # fit the one with skips.
            levels = (*(torch.zeros_like(level) for level in levels[:-1]), levels[-1])
        return self.unet.decode(levels)

    def _heads(self, output: UnetOutput, *, restore: bool) -> list[ScaleOutput]:
        return [
            head(features, restore=restore)
            for head, features in zip(self.scales, output.pyramid, strict=True)
        ]

    def _pixels(self, output: UnetOutput) -> Float[Tensor, "b 1 z y x"]:
        return torch.sigmoid(self.pixel_head(output.decoded).float())

    def _drawn(self, keys: Int64[Tensor, " b"], count: int) -> Float[Tensor, "count scales"]:
        """One scale for each comparison of a batch, as weights 1 and 0.

        Drawn on the device from the key of the first sample: all scales are computed anyway.
        """
        scales = torch.arange(len(self.scales), device=keys.device)
        drawn = integers(keys[:1], len(self.scales), count, stream=_SCALES)[0]
        return (drawn.unsqueeze(1) == scales).float()

    def _local(
        self, views: ViewSet, main: Sequence[Sequence[ScaleOutput]], drawn: Tensor
    ) -> Tensor:
        """Mean over all pairs of a local and a main view, each at a scale of its own."""
        images = torch.cat([self._spoilt(view, main=False) for view in views.local])
        heads = self._heads(self._decoded(images), restore=False)
        local = _views_of(heads, len(views.local[0].keys))
        pairs = [(whole, part) for part in local for whole in main]
        losses = [
            _compared(whole, part, weight)
            for (whole, part), weight in zip(pairs, drawn, strict=True)
        ]
        return torch.stack(losses).mean()


def _views_of(heads: Sequence[ScaleOutput], b: int) -> list[list[ScaleOutput]]:
    """What stands in one batch, view by view; restorations stay behind."""
    count = len(heads[0].projected) // b
    return [
        [
            ScaleOutput(h.projected[n * b : (n + 1) * b], h.predicted[n * b : (n + 1) * b], None)
            for h in heads
        ]
        for n in range(count)
    ]


def _compared(
    first: Sequence[ScaleOutput], second: Sequence[ScaleOutput], weight: Float[Tensor, " scales"]
) -> Tensor:
    """1 - cos of each view's prediction and the other's projection (SimSiam, eqs. 1 and 2)."""
    distances = [
        cosine_distance(a.predicted, b.projected.detach())
        + cosine_distance(b.predicted, a.projected.detach())
        for a, b in zip(first, second, strict=True)
    ]
    return (weight * torch.stack(distances)).sum() / 4


def _restored(
    heads: Sequence[ScaleOutput], weight: Float[Tensor, " scales"], target: Tensor
) -> Tensor:
    """Mean squared error at a drawn scale, enlarged to the view's grid."""
    size = list(target.shape[2:])
    errors = [
        functional.mse_loss(functional.interpolate(h.restored, size=size, mode="trilinear"), target)
        for h in heads
        if h.restored is not None
    ]
    return (weight * torch.stack(errors)).sum()
