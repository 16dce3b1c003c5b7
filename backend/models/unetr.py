"""UNETR: a vision transformer with a convolutional decoder back to voxels.

Hatamizadeh et al., doi:10.1109/WACV51458.2022.00181, sec. 3.1; the network that GL-MAE is
fine-tuned with (Zhuang et al., arXiv 2306.08913, sec. 4).
"""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from backend.models.blocks import OutBlock, ResidualBlock, TokenUpBlock, UpBlock
from backend.models.vit import VitEncoder, as_map


class UnetrSegmenter(nn.Module):
    """A vision transformer's tokens, brought to a pyramid by transposed convolutions.

    A patch of 16 voxels is four steps of 2. The tokens after a quarter, half and three quarters
    of the blocks (3, 6 and 9 of 12, counted from 1 as in the paper; MONAI's own UNETR takes the
    blocks after those) are the skips at strides 2, 4 and 8, the final ones the bottleneck; the
    raw image gives the finest skip. Other patches have a step for each factor 2 in the same way.

    Args:
        encoder: gives tokens and hidden states; its patch is a power of 2, at least 2.
        classes: outputs, background included.
        width: channels at full resolution, doubled at each step down (the feature size: 48 for
            ViT-B, 12 for ViT-T).
        norm: "instance" or "batch".

    Raises:
        ValueError: if the patch is no power of 2 or has more steps than the encoder has blocks.
    """

    def __init__(self, encoder: VitEncoder, *, classes: int, width: int, norm: str) -> None:
        super().__init__()
        self.encoder = encoder
        steps = encoder.patch.bit_length() - 1
        if encoder.patch != 2**steps or not 1 <= steps <= encoder.depth:
            raise ValueError(
                f"patch {encoder.patch} must be a power of 2 from 2 to {2**encoder.depth}"
            )
        widths = [width * 2**step for step in range(steps)]
        self.image_block = ResidualBlock(in_channels=1, out_channels=width, norm=norm)
        self.skip_blocks = nn.ModuleList(
            TokenUpBlock(
                in_channels=encoder.width,
                out_channels=widths[step],
                steps=steps - step,
                norm=norm,
            )
            for step in range(1, steps)
        )
        self.up_blocks = nn.ModuleList(
            UpBlock(
                in_channels=inputs,
                out_channels=outputs,
                factor=2,
                norm=norm,
            )
            for inputs, outputs in pairwise([encoder.width, *reversed(widths)])
        )
        self.out = OutBlock(in_channels=width, out_channels=classes)

    def forward(self, volume: Float[Tensor, "b 1 z y x"]) -> Float[Tensor, "b classes z y x"]:
        """Logits at the input's resolution; edges are multiples of the encoder's patch."""
        features = self.encoder(volume, hidden_after=self.encoder.read_after)
        skips = [self.image_block(volume)]
        for block, tokens in zip(self.skip_blocks, features.hidden, strict=True):
            skips.append(block(as_map(tokens, features.grid)))
        x = as_map(features.tokens, features.grid)
        for block, skip in zip(self.up_blocks, reversed(skips), strict=True):
            x = block(x, skip)
        logits: Tensor = self.out(x)
        return logits
