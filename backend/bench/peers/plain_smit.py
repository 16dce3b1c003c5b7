"""SMIT's step as its released code makes it: view after view, and every token through the head."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

from backend.bench.peers.plain_swin import PlainSwin
from backend.methods.smit import Smit
from backend.models.heads import PrototypeHead
from backend.models.swin import upsample_cells
from backend.views.crops import View, ViewSet


class PlainSmit(nn.Module):
    """The loss of `Smit` for two views (Jiang et al., MICCAI 2022, eqs. 1 to 4).

    Args:
        method: whose weights it copies.
    """

    def __init__(self, method: Smit) -> None:
        super().__init__()
        self.method = deepcopy(method)
        assert self.method.teacher is not None, "SMIT distils"
        self.student, self.teacher = self.method.student, self.method.teacher
        self.student_encoder = PlainSwin(self.student.encoder)
        self.teacher_encoder = PlainSwin(self.teacher.encoder)

    def forward(self, views: ViewSet, progress: float) -> Tensor:
        """The total loss."""
        c, heat = self.method.config, self.method.settings(progress)
        pixels, patches, classes, wanted = [], [], [], []
        for view in views.main:
            mask = self.method._mask(view.image, view.keys)
            assert mask is not None, "SMIT hides cells"
            features = self.student_encoder(
                view.image, mask.grid, self.method._branch_scale(view.keys)
            )
            tokens = self.student.tokens(features)
            pixels.append(self._pixel_error(view, features.bottleneck, mask.grid))
            target = self._targets(view, heat)
            logits = _logits(self.student.patch_head, tokens)
            entropies = _cross_entropy(target["patch"], logits, c.student_temperature)
            hidden = mask.grid.flatten(1).float()
            patches.append((entropies * hidden).sum(dim=1) / hidden.sum(dim=1))
            classes.append(_logits(self.student.class_head, self.student.class_token(tokens)))
            wanted.append(target["cls"])
        error = sum(e for e, _ in pixels) / (sum(n for _, n in pixels) + 1e-5)
        across = [
            _cross_entropy(wanted[1 - side], classes[side], c.student_temperature).mean()
            for side in (0, 1)
        ]
        total: Tensor = (
            c.weight_mip * error
            + c.weight_mpd * torch.stack(patches).mean()
            + c.weight_itd * torch.stack(across).mean()
        )
        return total

    def _pixel_error(self, view: View, cells: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the absolute errors of hidden voxels, and their number."""
        assert self.method.pixel_head is not None, "SMIT predicts pixels"
        hidden = upsample_cells(grid, view.image.shape[2:]).unsqueeze(1).float()
        error = F.l1_loss(self.method.pixel_head(cells), view.image, reduction="none")
        return (error * hidden).sum(), hidden.sum()

    @torch.no_grad()
    def _targets(self, view: View, heat: dict[str, float]) -> dict[str, Tensor]:
        method = self.method
        assert method.patch_centre is not None, "SMIT distils patches"
        assert method.class_centre is not None, "and images"
        tokens = self.teacher.tokens(self.teacher_encoder(view.image))
        patch = _logits(self.teacher.patch_head, tokens)
        cls = _logits(self.teacher.class_head, self.teacher.class_token(tokens))
        both = {"patch": (patch, method.patch_centre), "cls": (cls, method.class_centre)}
        for logits, centre in both.values():
            centre.observe(logits)
        return {
            name: torch.softmax((logits - centre.value) / heat[f"temperature/teacher_{name}"], -1)
            for name, (logits, centre) in both.items()
        }


def _logits(head: PrototypeHead | None, tokens: Tensor) -> Tensor:
    assert head is not None, "SMIT has both heads"
    logits: Tensor = head(tokens)
    return logits


def _cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    return torch.sum(-target * F.log_softmax(logits / temperature, dim=-1), dim=-1)
