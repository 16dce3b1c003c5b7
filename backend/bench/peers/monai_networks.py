"""MONAI's networks with the weights of ours, and the steps that are made with them."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from monai.networks.nets import MaskedAutoEncoderViT, ResNet
from monai.networks.nets.resnet import get_inplanes
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from backend.convert import our_name
from backend.methods.pgl import Pgl
from backend.methods.trio import _VERSIONS, Trio, version
from backend.models.resnet import ResnetEncoder
from backend.models.swin import SwinEncoder
from backend.models.vit import MaeDecoder, VitEncoder, sincos_positions
from backend.views.crops import ViewSet
from backend.views.masking import CellMask
from backend.views.randomness import derive_keys

_VIT_NAMES = (
    ("patch_embedding.patch_embeddings.", "patch_embed."),
    ("decoder_embed.", "embed."),
    ("decoder_pred.", "predict."),
    ("mask_tokens", "mask_token"),
    (".attn.qkv.", ".qkv."),
    (".attn.out_proj.", ".project."),
    (".mlp.", "."),
)


class MonaiMae(MaskedAutoEncoderViT):  # type: ignore[misc]
    """MONAI's masked autoencoder with the weights of ours, which sees what it is told to.

    Args:
        encoder: whose weights it copies.
        decoder: likewise.
        edge: of the view, in voxels.
    """

    def __init__(self, encoder: VitEncoder, decoder: MaeDecoder, *, edge: int) -> None:
        first, last = (cast(Any, part.blocks[0]) for part in (encoder, decoder))
        super().__init__(
            in_channels=1,
            img_size=edge,
            patch_size=encoder.patch,
            hidden_size=encoder.width,
            mlp_dim=first.linear1.out_features,
            num_layers=len(encoder.blocks),
            num_heads=first.heads,
            decoder_hidden_size=decoder.width,
            decoder_mlp_dim=last.linear1.out_features,
            decoder_num_layers=len(decoder.blocks),
            decoder_num_heads=last.heads,
            qkv_bias=True,
        )
        self.seen: CellMask | None = None
        self._take(encoder, decoder, grid=edge // encoder.patch)

    @torch.no_grad()
    def _take(self, encoder: VitEncoder, decoder: MaeDecoder, *, grid: int) -> None:
        sides = {"": (encoder, len(encoder.blocks)), "decoder_": (decoder, len(decoder.blocks))}
        for name, parameter in self.named_parameters():
            if "norm_cross_attn" in name or "position" in name or "pos_embedding" in name:
                continue
            side = "decoder_" if name.startswith(("decoder_", "mask_tokens")) else ""
            part, depth = sides[side]
            parameter.copy_(part.state_dict()[_our_vit_name(name, depth)])
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = encoder.norm.eps
        cpu = torch.device("cpu")
        places = (grid, grid, grid)
        of_encoder = sincos_positions(places, encoder.width, cpu)
        of_decoder = sincos_positions(places, decoder.width, cpu)
        self.patch_embedding.position_embeddings.copy_(of_encoder[None])
        self.decoder_pos_embedding.copy_(of_decoder[None])

    def _masking(
        self, x: Tensor, masking_ratio: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cells it is told, where MONAI draws its own."""
        del masking_ratio
        assert self.seen is not None, "what is seen is told before"
        places = self.seen.visible
        kept = x[torch.arange(len(x), device=x.device).unsqueeze(1), places]
        return kept, places, self.seen.grid.flatten(1).int()


def _our_vit_name(name: str, depth: int) -> str:
    name = name.removeprefix("decoder_") if name.startswith("decoder_blocks") else name
    # MONAI's last norm stands behind the blocks.
    name = name.replace(f"blocks.{depth}.", "norm.")
    for theirs, ours in _VIT_NAMES:
        name = name.replace(theirs, ours)
    return name


class MonaiResnet(nn.Module):
    """MONAI's ResNet with the weights of our encoder.

    Args:
        encoder: whose weights it copies; with batch norms.
    """

    def __init__(self, encoder: ResnetEncoder) -> None:
        super().__init__()
        widths = get_inplanes()
        scale = encoder.stem.out_channels / widths[0]
        self.net = ResNet(
            "bottleneck",
            [len(cast(nn.Sequential, stage)) for stage in encoder.stages],
            widths,
            n_input_channels=1,
            conv1_t_stride=encoder.stem.stride,
            widen_factor=scale,
            bias_downsample=False,
            feed_forward=False,
        )
        state = encoder.state_dict()
        self.net.load_state_dict({name: state[_our_resnet_name(name)] for name in _names(self.net)})

    def forward(self, volume: Tensor) -> Any:
        """The coarsest map, as `bottleneck`."""
        n = self.net
        x = n.maxpool(n.act(n.bn1(n.conv1(volume))))
        return SimpleNamespace(bottleneck=n.layer4(n.layer3(n.layer2(n.layer1(x)))))


def _names(module: nn.Module) -> list[str]:
    return list(module.state_dict())


def _our_resnet_name(name: str) -> str:
    if not name.startswith("layer"):
        return name.replace("conv1", "stem").replace("bn1", "stem_norm")
    stage, _, rest = name.removeprefix("layer").partition(".")
    rest = rest.replace("downsample", "shortcut").replace("bn", "norm")
    return f"stages.{int(stage) - 1}.{rest}"


class MonaiPgl(nn.Module):
    """PGL's loss with MONAI's ResNet in place of our encoder.

    Args:
        method: whose weights it copies.
    """

    def __init__(self, method: Pgl) -> None:
        super().__init__()
        self.method = deepcopy(method)
        for branch in (self.method.student, self.method.teacher):
            assert branch is not None, "PGL has a target"
            learns = branch is self.method.student
            branch.encoder = cast(ResnetEncoder, MonaiResnet(branch.encoder))
            branch.encoder.requires_grad_(learns)
        self.method.train()
        self.student, self.teacher = self.method.student, self.method.teacher

    def forward(self, views: ViewSet, progress: float) -> Tensor:
        """The total loss."""
        losses = self.method(views, progress)
        total: Tensor = losses.total
        return total


def monai_swin(encoder: SwinEncoder) -> nn.Module:
    """MONAI's SwinTransformer with the weights of our encoder, which has four stages."""
    stages = cast(Any, encoder.stages)
    first = stages[0][0]
    net = SwinTransformer(
        in_chans=1,
        embed_dim=encoder.widths[0],
        window_size=(first.window,) * 3,
        patch_size=(encoder.patch,) * 3,
        depths=[len(blocks) for blocks in stages],
        num_heads=[blocks[0].attention.heads for blocks in stages],
        mlp_ratio=first.linear1.out_features / first.linear1.in_features,
        qkv_bias=first.attention.qkv.bias is not None,
        patch_norm=True,
        downsample="mergingv2",
    )
    state = encoder.state_dict()
    missing = {
        name: state[our_name(name, "monai")] for name in net.state_dict() if "_index" not in name
    }
    net.load_state_dict(missing, strict=False)
    module: nn.Module = net
    return module


class MonaiTrio(nn.Module):
    """Swin UNETR's three tasks as MONAI's research code runs them: version after version.

    Args:
        method: whose weights it copies.
    """

    def __init__(self, method: Trio) -> None:
        super().__init__()
        self.method = deepcopy(method)
        self.network = monai_swin(method.network)
        # Its weights are in the other network now.
        self.method.network = cast(SwinEncoder, nn.Identity())

    def forward(self, views: ViewSet, progress: float) -> Tensor:
        """The total loss."""
        del progress
        m, view = self.method, views.main[0]
        assert m.rotation_head is not None, "all three tasks"
        assert m.contrast_head is not None, "all three tasks"
        assert m.pixel_head is not None, "all three tasks"
        turns, vectors, restored, made = [], [], [], []
        for number in _VERSIONS:
            keys = derive_keys(view.keys, number)
            shown = version(view.image, keys, m.config, turn=True)
            cells = self.network(shown.shown)[-1]
            tokens = cells.flatten(2).transpose(1, 2)
            turns.append(m.rotation_head(tokens[:, 0]))
            vectors.append(m.contrast_head(tokens[:, 1]))
            restored.append(m.pixel_head(cells))
            made.append(shown)
        quarters = torch.cat([version_.quarters for version_ in made])
        wanted = torch.cat([version_.image for version_ in made])
        c = m.config
        return (
            c.weight_rotation * F.cross_entropy(torch.cat(turns), quarters)
            + c.weight_contrast * _contrast(vectors[0], vectors[1], c.contrast_temperature)
            + c.weight_reconstruction * F.l1_loss(torch.cat(restored), wanted)
        )


def _contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross entropy, spelt out as a quotient."""
    both = torch.cat([F.normalize(first, dim=1), F.normalize(second, dim=1)])
    alike = F.cosine_similarity(both.unsqueeze(1), both.unsqueeze(0), dim=2)
    b = len(first)
    positives = torch.cat([torch.diag(alike, b), torch.diag(alike, -b)])
    others = ~torch.eye(2 * b, dtype=torch.bool, device=both.device)
    denominator = (others * torch.exp(alike / temperature)).sum(dim=1)
    return (-torch.log(torch.exp(positives / temperature) / denominator)).sum() / (2 * b)
