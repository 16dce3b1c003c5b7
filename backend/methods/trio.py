"""Swin UNETR's pretraining by three tasks (Tang et al., CVPR 2022, arXiv 2111.14791).

Of each crop two versions are made: turned by a random number of quarter turns in the axial plane,
then parts hidden behind noise and behind content of another crop. The network tells the turns
(sec. 3.2, rotation prediction), tells the two versions of a crop from those of other crops
(contrastive coding) and restores what was hidden (masked volume inpainting).
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from backend.losses.distillation import feature_std
from backend.losses.similarity import nt_xent
from backend.losses.terms import Losses
from backend.methods.method import Method, Reconstruction
from backend.methods.stochastic_depth import branch_scale
from backend.models.encoder import build_encoder
from backend.models.heads import ConvUpHead, DeconvHead, PixelHead
from backend.models.swin import SwinEncoder
from backend.settings.trio import TrioConfig
from backend.views.crops import View, ViewSet
from backend.views.cutouts import cut_outs, noise_like, partners
from backend.views.randomness import derive_keys, integers
from backend.views.turns import no_turns, turned

_TURNS = 710
_NOISE_BOXES, _CONTENT_BOXES = 720, 721
_VERSIONS = (731, 732)


class Version(NamedTuple):
    """A crop as it is to be restored and as it is shown.

    Attributes:
        image: the turned crop, (b, 1, z, y, x).
        quarters: how often it was turned, 0 to 3, (b).
        shown: with parts of it replaced, (b, 1, z, y, x).
        replaced: which, (b, z, y, x).
    """

    image: Float[Tensor, "b 1 z y x"]
    quarters: Int64[Tensor, " b"]
    shown: Float[Tensor, "b 1 z y x"]
    replaced: Bool[Tensor, "b z y x"]


class Trio(Method):
    """The three pretext tasks of Swin UNETR.

    Args:
        config: its settings.
        epochs: length of the run.
    """

    def __init__(self, config: TrioConfig, *, epochs: float) -> None:
        super().__init__(epochs=epochs)
        self.config = config
        self.network = cast(SwinEncoder, build_encoder(config.encoder.arguments))
        width, stride = self.network.bottleneck_width, self.network.stride
        kinds = {"vae": ConvUpHead, "deconv": DeconvHead, "linear": PixelHead}
        # A head without weight would not learn.
        self.rotation_head = nn.Linear(width, 4) if config.weight_rotation else None
        self.contrast_head = (
            nn.Linear(width, config.contrast_width) if config.weight_contrast else None
        )
        self.pixel_head = (
            kinds[config.decoder](width, stride=stride) if config.weight_reconstruction else None
        )
        self.healthy = {"feature_std": (0.02, math.inf)}

    @property
    def encoder(self) -> SwinEncoder:
        """What is kept after pretraining."""
        return self.network

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The encoder and a head for each task."""
        parts: dict[str, nn.Module | None] = {
            "encoder": self.network,
            "rotation_head": self.rotation_head,
            "contrast_head": self.contrast_head,
            "pixel_head": self.pixel_head,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def forward(self, views: ViewSet, progress: float) -> Losses:  # noqa: ARG002 - nothing changes
        """Losses of a batch of crops (eq. 7: the weighted sum of the three)."""
        c, view = self.config, views.main[0]
        both = [version(view.image, derive_keys(view.keys, v), c, turn=True) for v in _VERSIONS]
        made = Version(*(torch.cat(column) for column in zip(*both, strict=True)))
        cells = self._encoded(made.shown, torch.cat([derive_keys(view.keys, v) for v in _VERSIONS]))
        tokens = cells.flatten(2).transpose(1, 2)
        for_rotation, for_contrast = self._looked_at(tokens)
        terms: dict[str, Tensor] = {}
        monitors = {"feature_std": feature_std(tokens.detach())}
        if self.rotation_head is not None:
            logits = self.rotation_head(for_rotation).float()
            terms["rotation"] = F.cross_entropy(logits, made.quarters)
            right = logits.detach().argmax(dim=1) == made.quarters
            monitors["rotation_accuracy"] = right.float().mean()
        if self.contrast_head is not None:
            first, second = self.contrast_head(for_contrast).chunk(2)
            terms["contrast"] = nt_xent(first, second, c.contrast_temperature)
        if self.pixel_head is not None:
            restored = self.pixel_head(cells).float()
            terms["reconstruction"] = F.l1_loss(restored, made.image)
        total = view.image.new_zeros(())
        for name, term in terms.items():
            total = total + getattr(c, f"weight_{name}") * term
        return Losses(total, {name: term.detach() for name, term in terms.items()}, monitors)

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction | None:
        """What is restored of a crop with cut-outs, which is not turned."""
        if self.pixel_head is None:
            return None
        made = version(view.image, view.keys, self.config, turn=False)
        prediction = self.pixel_head(self._encoded(made.shown, view.keys)).float()
        return Reconstruction(made.image, made.replaced, prediction, made.shown)

    def _encoded(self, image: Tensor, keys: Tensor) -> Float[Tensor, "b c z y x"]:
        """The coarsest map, normalised without learned scale, as MONAI's network gives it."""
        drop_path = self.config.encoder.drop_path if self.training else 0.0
        scale = branch_scale(keys, drop_path=drop_path, sites=self.network.drop_sites)
        cells = self.network(image, None, scale).bottleneck.float().movedim(1, -1)
        return F.layer_norm(cells, cells.shape[-1:]).movedim(-1, 1)

    def _looked_at(
        self, tokens: Float[Tensor, "b n c"]
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
        if self.config.tokens == "pooled":
            mean = tokens.mean(dim=1)
            return mean, mean
        # Two tokens in a corner, in (z, y, x) order: what the released code takes.
        return tokens[:, 0], tokens[:, 1]


def version(
    image: Float[Tensor, "b 1 z y x"], keys: Int64[Tensor, " b"], config: TrioConfig, *, turn: bool
) -> Version:
    """A version of each crop; what is put in from other crops is as those are turned.

    Args:
        image: the crops; y and x are equally long.
        keys: one for each of them.
        config: how much is hidden.
        turn: whether they are turned.
    """
    quarters = integers(keys, 4, 1, stream=_TURNS)[:, 0] if turn else torch.zeros_like(keys)
    image = turned(image, no_turns(keys)._replace(quarters=quarters))
    z, y, x = image.shape[2:]
    of_noise, of_others = (
        cut_outs(
            derive_keys(keys, stream), (z, y, x), most=config.cut_out, edges=config.cut_out_edges
        )
        for stream in (_NOISE_BOXES, _CONTENT_BOXES)
    )
    partner = partners(keys)
    itself = partner == torch.arange(len(keys), device=keys.device)
    of_others = of_others & ~itself.view(-1, 1, 1, 1)
    shown = torch.where(of_noise.unsqueeze(1), noise_like(image, keys), image)
    shown = torch.where(of_others.unsqueeze(1), image[partner], shown)
    return Version(image, quarters, shown, of_noise | of_others)
