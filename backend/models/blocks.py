"""MONAI's convolutional blocks in 3D, as every decoder here uses them."""

from __future__ import annotations

import warnings
from functools import partial

with warnings.catch_warnings():
    # MONAI's import warns about its own dependencies; nothing a user could act on.
    warnings.simplefilter("ignore")
    from monai.networks.blocks.dynunet_block import UnetOutBlock
    from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock

ResidualBlock = partial(UnetrBasicBlock, spatial_dims=3, kernel_size=3, stride=1, res_block=True)
"""Two convolutions beside a shortcut; takes in_channels, out_channels, norm_name."""

UpBlock = partial(UnetrUpBlock, spatial_dims=3, kernel_size=3, res_block=True)
"""A transposed convolution, the skip beside it, a residual block.

Takes in_channels, out_channels, upsample_kernel_size (the factor) and norm_name.
"""

TokenUpBlock = partial(
    UnetrPrUpBlock,
    spatial_dims=3,
    kernel_size=3,
    stride=1,
    upsample_kernel_size=2,
    conv_block=True,
    res_block=True,
)
"""Transposed convolutions with residual blocks between: 1 + num_layer steps of 2."""

OutBlock = partial(UnetOutBlock, spatial_dims=3)
"""Logits of each voxel; takes in_channels, out_channels."""
