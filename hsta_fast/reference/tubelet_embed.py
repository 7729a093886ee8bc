"""Tubelet embedding: a strided 3-d convolution turns video into tokens (HSTA, section 3.2).

B batch, T frames, N tokens, C width; patches of t x p x p.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def tubelet_embed(
    video: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    cls_token: Tensor | None = None,
    pos_embed: Tensor | None = None,
    layout: str = "BCTHW",
) -> Tensor:
    """Normalise, convolve with kernel = stride, flatten (t, h, w), put the CLS in front, add positions.

    Args:
        video: (B, 3, T, H, W), or (B, T, H, W, 3) with layout "BTHWC"; uint8 or float.
        weight: (C, 3, t, p, p), as Conv3d's.
        bias: (C,).
        mean: three floats on the 0..1 scale, for uint8 video: pixels become (x / 255 - mean) / std.
            Without mean and std uint8 is used as 0..255. Float video is taken as normalised.
        std: as `mean`.
        cls_token: (1, 1, C), or None for no CLS row.
        pos_embed: (1, N, C), or (1, N + 1, C) with a CLS; added to the tokens.
        layout: "BCTHW" or "BTHWC".

    Returns:
        (B, N, C), or (B, N + 1, C) with a CLS, in the weight's dtype. Trailing rows, columns and frames that
        fill no whole patch are unused, as in Conv3d.
    """
    if layout == "BTHWC":
        video = rearrange(video, "b t h w c -> b c t h w")
    pixels = video.to(weight.dtype)
    if mean is not None and std is not None:
        mean, std = (_by_channel(three, weight) for three in (mean, std))
        pixels = (pixels / 255 - mean) / std
    tokens = rearrange(F.conv3d(pixels, weight, bias, stride=weight.shape[2:]), "b c t h w -> b (t h w) c")
    if cls_token is not None:
        tokens = torch.cat([cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
    return tokens if pos_embed is None else tokens + pos_embed


def _by_channel(three: Sequence[float] | Tensor, weight: Tensor) -> Tensor:
    """Three numbers (3, 1, 1, 1) with the dtype and device of `weight`."""
    if not isinstance(three, Tensor):
        # Written there: a copy of Python's numbers would make the CPU wait for the device.
        three = torch.stack([torch.full((), x, dtype=weight.dtype, device=weight.device) for x in three])
    return three.to(weight).view(3, 1, 1, 1)
