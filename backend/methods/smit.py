"""SMIT: self-distilled masked image transformer (Jiang et al., MICCAI 2022, arXiv 2205.10342).

A student sees two views of a scan with cells hidden behind a mask token. It learns to predict the
hidden voxels (MIP), the teacher's distribution for each hidden token of the same view (MPD) and
the teacher's distribution for the whole other view (ITD). The teacher is the student's moving
average and sees the views unmasked.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from backend.losses.distillation import (
    Centre,
    cross_entropy,
    cross_entropy_of_pairs,
    entropy,
    feature_std,
    marginal_entropy,
    teacher_distribution,
    varied,
)
from backend.losses.reconstruction import masked_l1
from backend.losses.similarity import koleo
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.methods.stochastic_depth import branch_scale
from backend.methods.teacher import teacher_of
from backend.models.encoder import build_encoder
from backend.models.heads import ClassAttention, DeconvHead, PixelHead, PrototypeHead
from backend.models.swin import EncoderOutput, SwinEncoder, upsample_cells
from backend.schedules import linear_warmup
from backend.settings.smit import HeadConfig, SmitConfig
from backend.views.crops import View, ViewSet
from backend.views.masking import HiddenCells, drawn_cells


class SmitBranch(nn.Module):
    """Encoder and distillation heads: what student and teacher both have.

    A head is there only if its term has a weight.
    """

    def __init__(self, config: SmitConfig) -> None:
        super().__init__()
        self.encoder = cast(SwinEncoder, build_encoder(config.encoder.arguments))
        self.last_stage = config.tokens == "last_stage"
        width = self.encoder.widths[-1]
        attends = config.class_token == "attention" and config.weight_itd > 0
        self.class_attention = ClassAttention(width) if attends else None
        self.patch_head = _head(width, config.head) if config.weight_mpd else None
        self.class_head: PrototypeHead | None = None
        if config.weight_itd:
            share = config.head.shared and self.patch_head is not None
            self.class_head = self.patch_head if share else _head(width, config.head)

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


def _head(width: int, config: HeadConfig) -> PrototypeHead:
    return PrototypeHead(
        width,
        hidden=config.hidden,
        bottleneck=config.bottleneck,
        prototypes=config.prototypes,
    )


class Smit(Method):
    """The pretext task of SMIT, and what is left of it where terms have no weight.

    Only what learns is built: no teacher, heads and centres without distillation, no pixel head
    without image prediction.

    Args:
        config: its settings.
        epochs: length of the run; warm-ups that are told in epochs become shares of it.
    """

    student: SmitBranch
    teacher: SmitBranch | None

    def __init__(self, config: SmitConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs, ema_momentum=config.ema_momentum)
        self.config = config
        self.student = SmitBranch(config)
        self.teacher = teacher_of(self.student) if config.distils else None
        self.pixel_head = _pixel_head(config, self.student.encoder)
        self.patch_centre = _centre(config) if config.weight_mpd else None
        self.class_centre = _centre(config) if config.weight_itd else None
        self.healthy = _healthy(config)

    @property
    def encoder(self) -> SwinEncoder:
        """What is kept after pretraining."""
        if self.config.kept == "teacher" and self.teacher is not None:
            return self.teacher.encoder
        return self.student.encoder

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Encoder and heads of the student."""
        branch = self.student
        shared = branch.patch_head is branch.class_head
        parts: dict[str, nn.Module | None] = {
            "encoder": branch.encoder,
            "class_attention": branch.class_attention,
            "shared_head" if shared else "patch_head": branch.patch_head,
            "class_head": None if shared else branch.class_head,
            "pixel_head": self.pixel_head,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def settings(self, progress: float) -> dict[str, float]:
        """What changes over the run, by the name it has in the record."""
        c = self.config
        if self.teacher is None:
            return {}
        share = c.teacher_temperature_warmup_epochs / self.epochs
        delay = c.patch_temperature_delay_epochs / self.epochs
        low, high = c.teacher_temperature
        warm = {"temperature/student": c.student_temperature}
        if self.class_centre is not None:
            warm["temperature/teacher_cls"] = linear_warmup(low, high, progress, share=share)
        if self.patch_centre is not None:
            warm["temperature/teacher_patch"] = linear_warmup(
                low, high, progress, share=share, delay=delay
            )
        return warm

    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch of views.

        Args:
            views: the main ones are u and v, and more if there are; local ones serve the image
                tokens alone.
            progress: how far the run is, in [0, 1].
        """
        c = self.config
        image = torch.cat([view.image for view in views.main])  # (2b, 1, z, y, x): u, then v
        keys = torch.cat([view.keys for view in views.main])
        mask = self._mask(image, keys)
        grid = None if mask is None else mask.grid
        features = self.student.encoder(image, grid, self._branch_scale(keys))
        tokens = self.student.tokens(features)
        terms: dict[str, Tensor] = {}
        monitors = {"feature_std": feature_std(tokens.detach())}
        if self.pixel_head is not None:
            counted = None if c.loss_on == "all" else mask
            prediction = self.pixel_head(features.bottleneck)
            terms["mip"] = masked_l1(prediction, image, _voxels(counted, image))
        if self.teacher is not None:
            targets = self._targets(self.teacher, image, self.settings(progress))
            if self.student.patch_head is not None and mask is not None:
                terms["mpd"] = self._mpd(self.student.patch_head, tokens, targets["patch"], mask)
            if self.student.class_head is not None:
                terms |= self._itd(self.student.class_head, tokens, targets["cls"], views)
            monitors |= self._monitors(targets)
        weights = {
            "mip": c.weight_mip,
            "mpd": c.weight_mpd,
            "itd": c.weight_itd,
            "koleo": c.weight_koleo,
        }
        total = image.new_zeros(())
        for name, term in terms.items():
            total = total + weights[name] * term
        detached = {name: term.detach() for name, term in terms.items()}
        return Losses(total, detached, monitors)

    def after_backward(self, progress: float) -> None:
        """Drop the prototypes' gradients in the first epochs (DINO's freeze_last_layer)."""
        # Rounded, because 1 / 49 * 49 < 1 in floating point.
        if round(progress * self.epochs, 9) < self.config.freeze_prototypes_epochs:
            for head in (self.student.patch_head, self.student.class_head):
                if head is not None:
                    head.prototypes.grad = None

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction | None:
        """What the student predicts for a view that is masked as in training.

        Where nothing is masked (full-image reconstruction) every voxel counts as one to predict.
        """
        if self.pixel_head is None:
            return None
        mask = self._mask(view.image, view.keys)
        features = self.student.encoder(view.image, None if mask is None else mask.grid)
        prediction = self.pixel_head(features.bottleneck).float()
        shown = view.image if mask is None else None
        return Reconstruction(view.image, _voxels(mask, view.image), prediction, shown)

    def _mask(self, image: Tensor, keys: Tensor) -> HiddenCells | None:
        c = self.config
        if not c.mask_range[1]:
            return None
        z, y, x = (n // c.mask_cell for n in image.shape[2:])
        return drawn_cells(
            keys, (z, y, x), c.mask_range, chance=c.masked_views, blocks=c.masking == "block"
        )

    def _branch_scale(self, keys: Tensor) -> Float[Tensor, "sites b"] | None:
        """Stochastic depth drawn for each sample, kept branches scaled up to the same mean."""
        if not self.training:
            return None
        drop_path = self.config.encoder.drop_path
        return branch_scale(keys, drop_path=drop_path, sites=self.student.encoder.drop_sites)

    @torch.no_grad()
    def _targets(
        self, teacher: SmitBranch, image: Tensor, settings: dict[str, float]
    ) -> dict[str, Tensor]:
        """Distributions of the teacher, (b, n, k) for "patch" and (b, k) for "cls"."""
        tokens = teacher.tokens(teacher.encoder(image))
        sources = {
            "patch": (teacher.patch_head, self.patch_centre),
            "cls": (teacher.class_head, self.class_centre),
        }
        targets = {}
        for name, (head, centre) in sources.items():
            if head is None or centre is None:
                continue
            logits = head(tokens if name == "patch" else teacher.class_token(tokens))
            if self.training:
                centre.observe(logits)
            temperature = settings[f"temperature/teacher_{name}"]
            targets[name] = teacher_distribution(logits, centre.value, temperature)
        return targets

    def _mpd(
        self,
        head: PrototypeHead,
        tokens: Float[Tensor, "b n c"],
        target: Float[Tensor, "b n k"],
        mask: HiddenCells,
    ) -> Tensor:
        """Eq. 2: hidden tokens of the same view; mean over tokens, samples and both views.

        A token stands for one cell of the mask. Where every sample hides the same number of them,
        the mean over all is the mean over samples of the mean over a sample's tokens. A sample
        that hides none counts as 0 (iBOT, eq. 2 and its code).
        """
        # Only hidden tokens go through the head: the others do not enter the loss.
        logits = head(_pick(tokens, mask.listed))
        wanted = _pick(target, mask.listed)
        entropies = cross_entropy(wanted, logits, self.config.student_temperature)
        if mask.counted is None:
            return entropies.mean()
        counted = mask.counted.float()
        return ((entropies * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean()

    def _itd(
        self,
        head: PrototypeHead,
        tokens: Float[Tensor, "gb n c"],
        target: Float[Tensor, "gb k"],
        views: ViewSet,
    ) -> dict[str, Tensor]:
        """Eq. 4 across views: the teacher's v for the student's masked u, and the reverse.

        The paper's sum over masked tokens has no meaning for a single class token and is left
        out, as in the released code. In general it is the mean over all pairs of a main view of
        the teacher and any other view, main or local, of the student (DINO, eq. 3).

        Where it has a weight, KoLeo keeps the answers for the scans of a batch apart.
        """
        heat = self.config.student_temperature
        main, b = len(views.main), len(views.main[0].image)
        logits = head(self.student.class_token(tokens))
        terms = {"koleo": koleo(logits.view(main, b, -1))} if self.config.weight_koleo else {}
        shifted = (
            cross_entropy(target.roll(shift * b, dims=0), logits, heat).mean()
            for shift in range(1, main)
        )
        pairs, total = main * (main - 1), main * torch.stack(list(shifted)).sum()
        if views.local:
            of_locals = head(self._class_tokens(views.local))
            count = main * len(views.local)
            of_local = cross_entropy_of_pairs(
                target.view(main, b, -1), of_locals.view(len(views.local), b, -1), heat
            )
            pairs, total = pairs + count, total + count * of_local
        return {"itd": total / pairs, **terms}

    def _class_tokens(self, views: tuple[View, ...]) -> Float[Tensor, "vb c"]:
        """One token of the student for each view, shown whole."""
        image = torch.cat([view.image for view in views])
        scale = self._branch_scale(torch.cat([view.keys for view in views]))
        features = self.student.encoder(image, None, scale)
        return self.student.class_token(self.student.tokens(features))

    @torch.no_grad()
    def _monitors(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        centres = {"patch": self.patch_centre, "cls": self.class_centre}
        entropies = {f"teacher_entropy_{name}": entropy(t) for name, t in targets.items()}
        variety = {
            f"marginal_entropy_{name}": marginal_entropy(t)
            for name, t in targets.items()
            if varied(t)
        }
        norms = {
            f"centre_norm_{name}": centre.value.norm()
            for name, centre in centres.items()
            if centre is not None
        }
        return entropies | variety | norms


def _pixel_head(config: SmitConfig, encoder: SwinEncoder) -> nn.Module | None:
    if not config.weight_mip:
        return None
    kind = PixelHead if config.pixel_decoder == "linear" else DeconvHead
    return kind(encoder.bottleneck_width, stride=encoder.stride)


def _healthy(config: SmitConfig) -> dict[str, tuple[float, float]]:
    """Bounds outside of which tokens are all alike, or the teacher tells nothing.

    A teacher may be sure of each token, but not answer all of them with the same prototype; nor
    may it spread its answer over all prototypes.
    """
    most = math.log(config.head.prototypes)
    weights = {"patch": config.weight_mpd, "cls": config.weight_itd}
    names = [name for name, weight in weights.items() if weight]
    sure = {f"teacher_entropy_{name}": (0.0, 0.98 * most) for name in names}
    variety = {f"marginal_entropy_{name}": (0.02 * most, math.inf) for name in names}
    return {"feature_std": (0.05, math.inf), **sure, **variety}


def _centre(config: SmitConfig) -> Centre:
    return Centre(config.head.prototypes, momentum=config.centre_momentum)


def _voxels(mask: HiddenCells | None, image: Tensor) -> Bool[Tensor, "b z y x"]:
    """The voxels of hidden cells; all of them where nothing is hidden."""
    if mask is None:
        return torch.ones_like(image[:, 0], dtype=torch.bool)
    return upsample_cells(mask.grid, image.shape[2:])


def _pick(tokens: Float[Tensor, "b n c"], index: Int64[Tensor, "b h"]) -> Float[Tensor, "b h c"]:
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
