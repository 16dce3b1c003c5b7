"""GL-MAE: global-local masked autoencoder (Zhuang et al., arXiv 2306.08913, IEEE TMI 2025).

Large (global) and small (local) parts of a scan are resized to views. A student sees a quarter of
the patches of each and predicts the voxels of the others (eq. 2). A teacher, the student's moving
average, sees the global views whole; its class token guides those of all the masked views of the
same scan (eq. 8). With one kind of views and without the teacher this is MAE3D (Chen et al.,
WACV 2023, arXiv 2204.11716).

The equations are missing from the public text; what stands here is rebuilt from the words around
them, see docs/glmae.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backend.losses.distillation import (
    Centre,
    cross_entropy_of_pairs,
    entropy,
    feature_std,
    marginal_entropy,
    teacher_distribution,
    varied,
)
from backend.losses.reconstruction import masked_mse
from backend.losses.similarity import koleo
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.methods.teacher import teacher_of
from backend.models.encoder import build_encoder
from backend.models.swin import upsample_cells
from backend.models.vit import MaeDecoder, VitEncoder, VitOutput, patch_grid, patchify, unpatchify
from backend.schedules import linear_warmup
from backend.settings.glmae import GlmaeConfig
from backend.views.crops import View, ViewSet
from backend.views.masking import CellMask, random_cells


class Projector(nn.Sequential):
    """Three linears with GELU between, from the class token to what is compared (eq. 4)."""

    def __init__(self, width: int, *, hidden: int, output: int) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, output),
        )
        for layer in self:
            if isinstance(layer, nn.Linear):
                # Outputs as large whatever the widths: small ones start, and stay, uniform.
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)


class GlmaeBranch(nn.Module):
    """Encoder and projector: what student and teacher both have."""

    def __init__(self, config: GlmaeConfig) -> None:
        super().__init__()
        self.encoder = cast(VitEncoder, build_encoder(asdict(config.encoder)))
        p = config.projector
        self.projector = (
            Projector(config.encoder.width, hidden=p.hidden, output=p.output)
            if config.weight_consistency
            else None
        )

    def project(self, token: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        """What is compared of a class token."""
        assert self.projector is not None, "no consistency, no projector"
        projected: Tensor = self.projector(token)
        return projected


class Glmae(Method):
    """The pretext task of GL-MAE, and of MAE3D.

    Args:
        config: its settings.
        epochs: length of the run; warm-ups that are told in epochs become shares of it.
    """

    student: GlmaeBranch
    teacher: GlmaeBranch | None

    def __init__(self, config: GlmaeConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs, ema_momentum=config.ema_momentum)
        self.config = config
        self.student = GlmaeBranch(config)
        self.decoder = MaeDecoder(
            encoder_width=config.encoder.width,
            width=config.decoder.width,
            depth=config.decoder.depth,
            heads=config.decoder.heads,
            patch=config.encoder.patch,
        )
        self.teacher = teacher_of(self.student) if config.weight_consistency else None
        self.centre = Centre(config.projector.output, momentum=config.centre_momentum)
        uniform = math.log(config.projector.output)
        self.healthy = {
            "feature_std": (0.02, math.inf),
            # Spread over all features, or all views answered with the same one.
            "teacher_entropy": (0.0, 0.995 * uniform),
            "marginal_entropy": (0.02 * uniform, math.inf),
        }

    @property
    def encoder(self) -> VitEncoder:
        """What is kept after pretraining: the student's encoder."""
        return self.student.encoder

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Encoder and projector of the student, and the decoder."""
        parts: dict[str, nn.Module] = {"encoder": self.student.encoder}
        if self.student.projector is not None:
            parts["projector"] = self.student.projector
        return {**parts, "decoder": self.decoder}

    def settings(self, progress: float) -> dict[str, float]:
        """What changes over the run, by the name it has in the record."""
        c = self.config
        if self.teacher is None:
            return {}
        share = c.teacher_temperature_warmup_epochs / self.epochs
        low, high = c.teacher_temperature
        return {
            "temperature/student": c.student_temperature,
            "temperature/teacher": linear_warmup(low, high, progress, share=share),
        }

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch.

        Args:
            views: the main ones are global; local ones may be missing.
            progress: how far the run is, in [0, 1].
        """
        groups = {"main": views.main, "local": views.local}
        seen = {name: self._see(group) for name, group in groups.items() if group}
        terms = {f"reconstruction_{name}": self._reconstruction(s) for name, s in seen.items()}
        total = torch.stack(list(terms.values())).sum()
        monitors = {"feature_std": feature_std(seen["main"].features.tokens.detach())}
        if self.teacher is not None:
            guide = self._targets(self.teacher, views.main, self.settings(progress))
            guided = self._consistency(seen.values(), guide)
            total = total + self.config.weight_consistency * guided["consistency"]
            if "koleo" in guided:
                total = total + self.config.weight_koleo * guided["koleo"]
            terms |= guided
            monitors["teacher_entropy"] = entropy(guide)
            if varied(guide):
                monitors["marginal_entropy"] = marginal_entropy(guide)
            monitors["centre_norm"] = self.centre.value.norm()
        return Losses(total, {name: term.detach() for name, term in terms.items()}, monitors)

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """What the student predicts for a view of which it sees a part."""
        seen = self._see([view])
        grid, patch = seen.features.grid, self.config.encoder.patch
        prediction = unpatchify(self._decoded(seen).float(), grid, patch)
        hidden = upsample_cells(seen.mask.grid, view.image.shape[2:])
        return Reconstruction(view.image, hidden, prediction)

    def _see(self, views: Sequence[View]) -> _Seen:
        """The student's tokens of views of one size: eq. 1, left half."""
        image = torch.cat([view.image for view in views])  # (views * b, 1, z, y, x)
        keys = torch.cat([view.keys for view in views])
        grid = patch_grid(image.shape[2:], self.config.encoder.patch)
        mask = random_cells(keys, grid, self.config.mask_ratio)
        return _Seen(image, mask, self.student.encoder(image, mask.visible))

    def _decoded(self, seen: _Seen) -> Float[Tensor, "vb n voxels"]:
        out = seen.features
        predicted: Tensor = self.decoder(out.cls, out.tokens, seen.mask.visible, out.grid)
        return predicted

    def _reconstruction(self, seen: _Seen) -> Tensor:
        """Eq. 2 for the views of one size: their mean of each view's mean."""
        judged = seen.mask.grid.flatten(1)
        if self.config.reconstruct == "all":
            judged = torch.ones_like(judged)
        wanted = patchify(seen.image, self.config.encoder.patch)
        return masked_mse(self._decoded(seen), wanted, judged)

    @torch.no_grad()
    def _targets(
        self, teacher: GlmaeBranch, views: Sequence[View], settings: dict[str, float]
    ) -> Float[Tensor, "p b k"]:
        """Eqs. 5 and 6, left halves: the teacher's distribution for each whole global view."""
        image = torch.cat([view.image for view in views])
        logits = teacher.project(teacher.encoder(image).cls)
        if self.training:
            self.centre.observe(logits)
        target = teacher_distribution(logits, self.centre.value, settings["temperature/teacher"])
        return target.view(len(views), -1, target.shape[-1])

    def _consistency(
        self, seen: Iterable[_Seen], target: Float[Tensor, "p b k"]
    ) -> dict[str, Tensor]:
        """Eqs. 5 to 8: masked views, the global ones under their own whole view too.

        Where it has a weight, KoLeo keeps what is said of a batch's scans in global views apart.
        """
        # All views at once through the projector: it is the same for both sizes.
        tokens = torch.cat([s.features.cls for s in seen])
        logits = self.student.project(tokens).view(-1, *target.shape[1:])
        heat = self.config.student_temperature
        terms = {"consistency": cross_entropy_of_pairs(target, logits, heat)}
        if self.config.weight_koleo:
            terms["koleo"] = koleo(logits[: len(target)])
        return terms


class _Seen(NamedTuple):
    """Masked views of one size.

    Attributes:
        image: whole, view after view, (views * b, 1, z, y, x).
        mask: which patches are hidden.
        features: what the student's encoder makes of the visible ones.
    """

    image: Tensor
    mask: CellMask
    features: VitOutput
