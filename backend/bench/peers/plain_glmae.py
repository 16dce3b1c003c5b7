"""GL-MAE's step where every token goes through the encoder and attention is spelt out."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

from backend.methods.glmae import Glmae
from backend.models.vit import (
    MaeDecoder,
    VitBlock,
    VitEncoder,
    patch_grid,
    patchify,
    pick,
    sincos_positions,
)
from backend.views.crops import View, ViewSet
from backend.views.masking import CellMask, random_cells


class PlainGlmae(nn.Module):
    """The loss of `Glmae`, view after view (Zhuang et al., arXiv 2306.08913, eqs. 2 to 8).

    Hidden tokens are kept out of the attention of visible ones by a mask, so that the loss is that
    of an encoder which never saw them.

    Args:
        method: whose weights it copies.
    """

    def __init__(self, method: Glmae) -> None:
        super().__init__()
        self.method = deepcopy(method)
        assert self.method.teacher is not None, "GL-MAE distils"
        self.student, self.teacher = self.method.student, self.method.teacher

    def forward(self, views: ViewSet, progress: float) -> Tensor:
        """The total loss."""
        c, heat = self.method.config, self.method.settings(progress)
        groups = [group for group in (views.main, views.local) if group]
        seen = [[self._view(view) for view in group] for group in groups]
        errors = [torch.stack([error for error, _ in group]).mean() for group in seen]
        logits = [self.student.project(token) for group in seen for _, token in group]
        pairs = [
            torch.sum(-target * F.log_softmax(answer / c.student_temperature, dim=-1), -1).mean()
            for target in self._targets(views.main, heat["temperature/teacher"])
            for answer in logits
        ]
        return torch.stack(errors).sum() + c.weight_consistency * torch.stack(pairs).mean()

    def _view(self, view: View) -> tuple[Tensor, Tensor]:
        """Reconstruction error and class token of one masked view."""
        patch = self.method.config.encoder.patch
        grid = patch_grid(view.image.shape[2:], patch)
        mask = random_cells(view.keys, grid, self.method.config.mask_ratio)
        encoded = _encoded(self.student.encoder, view.image, mask)
        visible = pick(encoded[:, 1:], mask.visible)
        predicted = _decoded(self.method.decoder, encoded[:, :1], visible, mask)
        error = (predicted - patchify(view.image, patch)).square().mean(dim=-1)
        hidden = mask.grid.flatten(1).float()
        return (error * hidden).sum() / hidden.sum(), encoded[:, 0]

    @torch.no_grad()
    def _targets(self, views: Sequence[View], temperature: float) -> list[Tensor]:
        targets, centre = [], self.method.centre
        for view in views:
            logits = self.teacher.project(_encoded(self.teacher.encoder, view.image, None)[:, 0])
            centre.observe(logits)
            targets.append(torch.softmax((logits - centre.value) / temperature, dim=-1))
        return targets


def _encoded(encoder: VitEncoder, image: Tensor, mask: CellMask | None) -> Tensor:
    """The class token and every patch, whatever the mask hides."""
    grid = patch_grid(image.shape[2:], encoder.patch)
    x = encoder.patch_embed(image).flatten(2).transpose(1, 2)
    x = x + sincos_positions(grid, encoder.width, x.device)
    x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
    bias = None
    if mask is not None:
        hidden = F.pad(mask.grid.flatten(1), (1, 0))
        bias = torch.zeros(len(x), 1, x.shape[1], x.shape[1], device=x.device)
        bias = bias.masked_fill(hidden[:, None, None, :], float("-inf"))
    for block in encoder.blocks:
        x = _block(cast(VitBlock, block), x, bias)
    normed: Tensor = encoder.norm(x)
    return normed


def _decoded(decoder: MaeDecoder, cls: Tensor, visible: Tensor, mask: CellMask) -> Tensor:
    b, gz, gy, gx = mask.grid.shape
    positions = sincos_positions((gz, gy, gx), decoder.width, cls.device)
    x = decoder.embed(torch.cat([cls, visible], dim=1))
    every = decoder.mask_token.repeat(b, len(positions), 1)
    every = every.scatter(1, mask.visible.unsqueeze(-1).expand(-1, -1, decoder.width), x[:, 1:])
    x = torch.cat([x[:, :1], every + positions], dim=1)
    for block in decoder.blocks:
        x = _block(cast(VitBlock, block), x, None)
    predicted: Tensor = decoder.predict(decoder.norm(x))
    return predicted[:, 1:]


def _block(block: VitBlock, x: Tensor, bias: Tensor | None) -> Tensor:
    b, n, c = x.shape
    qkv = block.qkv(block.norm1(x)).reshape(b, n, 3, block.heads, c // block.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = (q @ k.transpose(-2, -1)) * (c // block.heads) ** -0.5
    if bias is not None:
        logits = logits + bias
    gathered = torch.softmax(logits, dim=-1) @ v
    x = x + block.project(gathered.transpose(1, 2).reshape(b, n, c))
    second: Tensor = x + block.linear2(F.gelu(block.linear1(block.norm2(x))))
    return second
