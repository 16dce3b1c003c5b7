"""SMIT: self-distilled masked image transformer (Jiang et al., MICCAI 2022, arXiv 2205.10342).

A student sees two views of a scan with cells hidden behind a mask token. It learns to predict the
hidden voxels (MIP), the teacher's distribution for each hidden token of the same view (MPD) and
the teacher's distribution for the whole other view (ITD). The teacher is the student's moving
average and sees the views unmasked.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Float, Int64
from torch import Tensor, nn

from backend.losses.distillation import Centre, cross_entropy, entropy, teacher_distribution
from backend.losses.reconstruction import masked_l1
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.methods.teacher import follow, teacher_of
from backend.models.heads import ClassAttention, PixelHead, PrototypeHead
from backend.models.swin import (
    EncoderOutput,
    SwinEncoder,
    branch_rates,
    build_encoder,
    upsample_cells,
)
from backend.schedules import cosine, linear_warmup
from backend.settings.smit import SmitConfig
from backend.views.crops import View, ViewSet
from backend.views.masking import CellMask, random_cells
from backend.views.randomness import uniform

_DROP_PATH_STREAM = 201


class SmitBranch(nn.Module):
    """Encoder and distillation heads: what student and teacher both have."""

    def __init__(self, config: SmitConfig) -> None:
        super().__init__()
        h = config.head
        self.encoder = build_encoder(asdict(config.encoder))
        self.last_stage = config.tokens == "last_stage"
        width = self.encoder.widths[-1]
        self.class_attention = ClassAttention(width) if config.class_token == "attention" else None
        self.patch_head = PrototypeHead(
            width, hidden=h.hidden, bottleneck=h.bottleneck, prototypes=h.prototypes
        )
        self.class_head = (
            self.patch_head
            if h.shared
            else PrototypeHead(
                width, hidden=h.hidden, bottleneck=h.bottleneck, prototypes=h.prototypes
            )
        )

    def tokens(self, features: EncoderOutput) -> Float[Tensor, "b n c"]:
        """The distilled tokens, normalised without learned scale, in (z, y, x) order."""
        grid = features.pyramid[-1] if self.last_stage else features.before_last_stage
        flat = grid.flatten(2).transpose(1, 2)
        return F.layer_norm(flat.float(), flat.shape[-1:], eps=1e-6)

    def class_token(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b c"]:
        """One token for the whole view: Swin has none, so the mean stands for it."""
        if self.class_attention is not None:
            token: Tensor = self.class_attention(tokens)
            return token
        return tokens.mean(dim=1)


class Smit(Method):
    """The pretext task of SMIT.

    Args:
        config: its settings.
        epochs: length of the run; warm-ups that are told in epochs become shares of it.
    """

    def __init__(self, config: SmitConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.student = SmitBranch(config)
        self.teacher = teacher_of(self.student)
        encoder = self.student.encoder
        self.pixel_head = PixelHead(encoder.bottleneck_width, stride=encoder.stride)
        prototypes = config.head.prototypes
        self.patch_centre = Centre(prototypes, momentum=config.centre_momentum)
        self.class_centre = Centre(prototypes, momentum=config.centre_momentum)

    @property
    def encoder(self) -> SwinEncoder:
        """What is kept after pretraining: the student's encoder."""
        return self.student.encoder

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Encoder and heads of the student."""
        branch = self.student
        return {
            "encoder": branch.encoder,
            "patch_head": branch.patch_head,
            "class_head": branch.class_head,
            "pixel_head": self.pixel_head,
        }

    def settings(self, progress: float) -> dict[str, float]:
        """What changes over the run, by the name it has in the record."""
        c = self.config
        share = c.teacher_temperature_warmup_epochs / self.epochs
        delay = c.patch_temperature_delay_epochs / self.epochs
        low, high = c.teacher_temperature
        return {
            "temperature/student": c.student_temperature,
            "temperature/teacher_cls": linear_warmup(low, high, progress, share=share),
            "temperature/teacher_patch": linear_warmup(
                low, high, progress, share=share, delay=delay
            ),
        }

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch of two views of each sample.

        Args:
            views: u and v are the main ones.
            progress: how far the run is, in [0, 1].
        """
        c = self.config
        settings = self.settings(progress)
        image = torch.cat([view.image for view in views.main])  # (2b, 1, z, y, x): u, then v
        keys = torch.cat([view.keys for view in views.main])
        mask = self._mask(image, keys)
        features = self.student.encoder(image, mask.grid, self._branch_scale(keys))
        terms: dict[str, Tensor] = {}
        monitors: dict[str, Tensor] = {}
        total = image.new_zeros(())
        if c.weight_mip:
            voxels = upsample_cells(mask.grid, image.shape[2:])
            terms["mip"] = masked_l1(self.pixel_head(features.bottleneck), image, voxels)
            total = total + c.weight_mip * terms["mip"]
        if c.weight_mpd or c.weight_itd:
            targets = self._targets(image, settings)
            student_tokens = self.student.tokens(features)
            if c.weight_mpd:
                terms["mpd"] = self._mpd(student_tokens, targets.patch, mask.hidden)
                total = total + c.weight_mpd * terms["mpd"]
            if c.weight_itd:
                terms["itd"] = self._itd(student_tokens, targets.whole)
                total = total + c.weight_itd * terms["itd"]
            monitors = self._monitors(targets, student_tokens)
        detached = {name: term.detach() for name, term in terms.items()}
        return Losses(total, detached, monitors)

    def after_backward(self, progress: float) -> None:
        """Drop the prototypes' gradients in the first epochs (DINO's freeze_last_layer)."""
        # Rounded, because 1 / 49 * 49 < 1 in floating point.
        if round(progress * self.epochs, 9) < self.config.freeze_prototypes_epochs:
            self.student.patch_head.prototypes.grad = None
            self.student.class_head.prototypes.grad = None

    def after_step(self, progress: float) -> dict[str, float]:
        """Move teacher and centres on; `progress` counts the step just made.

        Returns the momentum that was used.
        """
        momentum = cosine(*self.config.ema_momentum, progress)
        follow(self.teacher, self.student, momentum)
        self.patch_centre.update()
        self.class_centre.update()
        return {"ema_momentum": momentum}

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """What the student predicts for a masked view, without dropping branches."""
        mask = self._mask(view.image, view.keys)
        features = self.student.encoder(view.image, mask.grid)
        prediction = self.pixel_head(features.bottleneck)
        hidden = upsample_cells(mask.grid, view.image.shape[2:])
        return Reconstruction(view.image, hidden, prediction.float())

    def _mask(self, image: Tensor, keys: Tensor) -> CellMask:
        z, y, x = (n // self.config.mask_cell for n in image.shape[2:])
        return random_cells(keys, (z, y, x), self.config.mask_ratio)

    def _branch_scale(self, keys: Tensor) -> Float[Tensor, "sites b"] | None:
        """Stochastic depth drawn for each sample, kept branches scaled up to the same mean."""
        if not self.training or self.config.encoder.drop_path == 0:
            return None
        sites = self.student.encoder.drop_sites
        rate = torch.tensor(branch_rates(self.config.encoder.drop_path, sites), device=keys.device)
        kept = uniform(keys, sites, stream=_DROP_PATH_STREAM) >= rate
        return (kept / (1 - rate)).T

    @torch.no_grad()
    def _targets(self, image: Tensor, settings: dict[str, float]) -> _Targets:
        tokens = self.teacher.tokens(self.teacher.encoder(image))
        patch = self.teacher.patch_head(tokens)
        whole = self.teacher.class_head(self.teacher.class_token(tokens))
        if self.training:
            self.patch_centre.observe(patch)
            self.class_centre.observe(whole)
        return _Targets(
            teacher_distribution(
                patch, self.patch_centre.value, settings["temperature/teacher_patch"]
            ),
            teacher_distribution(
                whole, self.class_centre.value, settings["temperature/teacher_cls"]
            ),
        )

    def _mpd(
        self,
        tokens: Float[Tensor, "b n c"],
        target: Float[Tensor, "b n k"],
        hidden: Int64[Tensor, "b h"],
    ) -> Tensor:
        """Eq. 2: hidden tokens of the same view; mean over tokens, samples and both views.

        A token stands for one cell of the mask, and every sample hides the same number of them,
        so the mean over all is the mean over samples of the mean over a sample's tokens.
        """
        # Only hidden tokens go through the head: the others do not enter the loss.
        logits = self.student.patch_head(_pick(tokens, hidden))
        wanted = _pick(target, hidden)
        return cross_entropy(wanted, logits, self.config.student_temperature).mean()

    def _itd(self, tokens: Float[Tensor, "b n c"], target: Float[Tensor, "b k"]) -> Tensor:
        """Eq. 4 across views: the teacher's v for the student's masked u, and the reverse.

        The paper's sum over masked tokens has no meaning for a single class token and is left
        out, as in the released code.
        """
        logits = self.student.class_head(self.student.class_token(tokens))
        other_view = target.roll(len(target) // 2, dims=0)
        return cross_entropy(other_view, logits, self.config.student_temperature).mean()

    @torch.no_grad()
    def _monitors(self, targets: _Targets, student_tokens: Tensor) -> dict[str, Tensor]:
        unit = F.normalize(student_tokens.flatten(0, 1), dim=-1)
        return {
            "teacher_entropy_patch": entropy(targets.patch),
            "teacher_entropy_cls": entropy(targets.whole),
            # 1 for tokens spread evenly over the sphere, 0 when all tokens are the same.
            "feature_std": unit.std(dim=0).mean() * unit.shape[-1] ** 0.5,
            "centre_norm_patch": self.patch_centre.value.norm(),
            "centre_norm_cls": self.class_centre.value.norm(),
        }


def _pick(tokens: Float[Tensor, "b n c"], index: Int64[Tensor, "b h"]) -> Float[Tensor, "b h c"]:
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class _Targets(NamedTuple):
    patch: Float[Tensor, "b n k"]
    whole: Float[Tensor, "b k"]
