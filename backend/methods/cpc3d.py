"""CPC-3D: 3D contrastive predictive coding (Taleb et al., NeurIPS 2020, "3D-CPC").

A view is cut into a grid of overlapping patches, and each is encoded alone to a code. For each
column of the grid a recurrent network reads the codes above a row, in an upside-down pyramid that
widens upwards, into a context. Linear layers predict from it the codes of later rows of the column.
Whether such a sequence of codes belongs to the context, and not to another column or scan, is told
by a sigmoid of dot products.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from backend.losses.distillation import feature_std
from backend.losses.precision import full_precision
from backend.losses.terms import Losses
from backend.methods.method import Method
from backend.models.encoder import build_encoder
from backend.models.unet import EncoderDecoder
from backend.settings.cpc3d import Cpc3dConfig
from backend.views.crops import View, ViewSet, copied
from backend.views.randomness import integers, uniform

_PLACE, _FLIPS, _KEPT, _NEGATIVES = 841, 842, 843, 844


class Cpc3d(Method):
    """The pretext task of CPC-3D.

    Args:
        config: its settings.
        epochs: length of the run; nothing here depends on it.
    """

    def __init__(self, config: Cpc3dConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.healthy = {"feature_std": (0.01, math.inf)}
        self.unet = cast(EncoderDecoder, build_encoder(asdict(config.encoder)))
        cells = (config.patch // self.unet.stride[0]) ** 3
        self.to_code = nn.Linear(cells * self.unet.bottleneck_width, config.code)
        self.recurrent = nn.GRU(config.code, config.context, batch_first=True)
        self.predictors = nn.ModuleList(
            nn.Linear(config.context, config.code) for _ in range(config.predicted_rows)
        )

    @property
    def encoder(self) -> EncoderDecoder:
        """What is kept after pretraining: the encoder of patches, without a decoder."""
        return self.unet

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The encoder, the layer to codes, the recurrent network and the predictors."""
        return {
            "encoder": self.unet,
            "to_code": self.to_code,
            "recurrent": self.recurrent,
            "predictors": self.predictors,
        }

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch.

        Args:
            views: the first main one is taken.
            progress: how far the run is, in [0, 1].
        """
        del progress  # nothing changes over the run
        view = views.main[0]
        b, n = len(view.keys), self.config.patches_per_side
        patches = cut_patches(view, self.config)
        cells = self.unet.encode(patches)[-1]
        codes = self.to_code(cells.flatten(1)).view(b, n, n * n, -1)
        with full_precision(codes.device.type):
            codes = codes.float()
            predicted, later = self._predicted(codes), self._later(codes)
            loss, accuracy = self._told_apart(predicted, later, view.keys)
        monitors = {"feature_std": feature_std(codes.detach()), "accuracy": accuracy}
        return Losses(loss, {"cpc": loss.detach()}, monitors)

    def _predicted(self, codes: Float[Tensor, "b n columns c"]) -> Float[Tensor, "b columns r c"]:
        """Codes of later rows as the context of each column predicts them."""
        c = self.config
        order = context_patches(c.patches_per_side, rows=c.context_rows)
        flat = codes.flatten(1, 2)
        # (columns, terms) numbers of patches -> (b columns, terms, c)
        read = flat[:, order.to(flat.device)].flatten(0, 1)
        _, last = self.recurrent(read)
        predicted = torch.stack([predict(last[0]) for predict in self.predictors], dim=1)
        return predicted.view(len(codes), -1, c.predicted_rows, c.code)

    def _later(self, codes: Float[Tensor, "b n columns c"]) -> Float[Tensor, "b columns r c"]:
        return codes[:, -self.config.predicted_rows :].transpose(1, 2)

    def _told_apart(
        self,
        predicted: Float[Tensor, "b columns r c"],
        later: Float[Tensor, "b columns r c"],
        keys: Int64[Tensor, " b"],
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of true and of wrong continuations, half each, and accuracy.

        Where the released code draws one wrong column, among all others of the batch, as here, it
        counts as much as the true one.
        """
        c = self.config
        flat, wanted = predicted.flatten(0, 1), later.flatten(0, 1)  # (b columns, r, c)
        wrong = other_columns(keys, wanted.shape[0] // len(keys), c.negatives)
        divisor = c.dot_divisor or c.code
        true_score = _score(flat, wanted, divisor)
        wrong_score = _score(flat.unsqueeze(1), wanted[wrong], divisor)
        loss = functional.softplus(-true_score).mean() + functional.softplus(wrong_score).mean()
        right = ((true_score > 0).float().mean() + (wrong_score < 0).float().mean()) / 2
        return loss / 2, right.detach()


def _score(
    predicted: Float[Tensor, "*#batch r c"], codes: Float[Tensor, "*#batch r c"], divisor: float
) -> Float[Tensor, "*others"]:
    """Dot products over the code, mean over the predicted rows."""
    return (predicted * codes).sum(dim=-1).mean(dim=-1) / divisor


def cut_patches(view: View, config: Cpc3dConfig) -> Float[Tensor, "patches 1 p p p"]:
    """The grid of patches of each sample, row by row (z, then y, then x), at a drawn place.

    Each patch is mirrored along z or not and loses a drawn part of its border, so that what runs on
    across the borders of neighbours does not give the answer away.
    """
    c = config
    b = len(view.keys)
    extent = c.extent
    room = torch.tensor(
        [edge - extent + 1 for edge in view.image.shape[2:]], device=view.keys.device
    )
    start = integers(view.keys, room, 3, stream=_PLACE)
    still = torch.zeros(b, 3, dtype=torch.bool, device=view.keys.device)
    patches = copied(view.image, start, still, (extent, extent, extent))
    for axis in (2, 3, 4):
        patches = patches.unfold(axis, c.patch, c.step)
    patches = patches.reshape(-1, 1, c.patch, c.patch, c.patch)
    number = c.patches_per_side**3
    mirrored = uniform(view.keys, number, stream=_FLIPS) < c.flip_probability
    patches = torch.where(mirrored.view(-1, 1, 1, 1, 1), patches.flip(2), patches)
    return patches * _kept(view.keys, number, config)


def _kept(
    keys: Int64[Tensor, " b"], number: int, config: Cpc3dConfig
) -> Float[Tensor, "patches 1 p p p"]:
    """1 within a box at a drawn place of each patch, 0 around it."""
    edge = int(config.patch * config.patch_kept)
    first = integers(keys, config.patch - edge + 1, 3 * number, stream=_KEPT).view(-1, 3, 1)
    steps = torch.arange(config.patch, device=keys.device)
    inside = ((steps >= first) & (steps < first + edge)).float()
    z, y, x = inside.unbind(1)
    return torch.einsum("nz,ny,nx->nzyx", z, y, x).unsqueeze(1)


def context_patches(side: int, *, rows: int) -> Int64[Tensor, "columns terms"]:
    """Which patches the context of each column reads, row by row from the first.

    In the last row of the context it is the column's own patch, in each row before one more on all
    sides; beyond the grid's border it is mirrored.

    Args:
        side: patches along each axis.
        rows: rows of the context.

    Returns:
        Numbers of patches in the flat grid (z, y, x), one row for each column (y, x).
    """
    columns = []
    for y in range(side):
        for x in range(side):
            terms = []
            for row in range(rows):
                reach = rows - 1 - row
                near = range(-reach, reach + 1)
                terms += [
                    (row * side + _mirrored(y + dy, side)) * side + _mirrored(x + dx, side)
                    for dy in near
                    for dx in near
                ]
            columns.append(terms)
    return torch.tensor(columns)


def _mirrored(index: int, side: int) -> int:
    """The index within 0 to side - 1 that a mirror at the outermost patches leads to."""
    period = 2 * (side - 1)
    index %= period
    return min(index, period - index)


def other_columns(
    keys: Int64[Tensor, " b"], columns: int, count: int
) -> Int64[Tensor, "all_columns count"]:
    """For each column of each sample `count` columns of the batch that are others.

    Each of the others is equally likely.
    """
    every = len(keys) * columns
    own = torch.arange(every, device=keys.device).unsqueeze(1)
    away = 1 + integers(keys, every - 1, columns * count, stream=_NEGATIVES).view(-1, count)
    return (own + away) % every
