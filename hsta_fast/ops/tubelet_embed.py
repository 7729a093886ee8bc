"""tubelet_embed: checks and choice of implementation. The specification is in `reference`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .checks import autocast_dtype, want, want_shape
from .choice import Choice, resolve

_OP = "tubelet_embed"
IMPLS = ("torch",)


def auto_choice(device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation that `impl="auto"` takes for video on this device."""
    return Choice("torch", "torch's conv3d")


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
    impl: str = "auto",
) -> Tensor:
    """Video to tokens: normalise, project tubelets (t, p, p), put the CLS in front, add positions (sec. 3.2).

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
        impl: "auto" or "torch".

    Returns:
        (B, N, C), or (B, N + 1, C) with a CLS, in the weight's dtype or autocast's. Tokens run over t, then
        h, then w. Trailing rows, columns and frames that fill no whole patch are unused, as in Conv3d.

    Raises:
        ValueError: shapes or dtypes that do not belong together, mean and std with float video or one without
            the other, or an unknown `impl`.
    """
    want(layout in ("BCTHW", "BTHWC"), _OP, 'layout "BCTHW" or "BTHWC"', repr(layout))
    want_shape(_OP, "weight", weight, (None, 3, None, None, None), "(C, 3, t, p, p)")
    C, _, *patch = weight.shape
    want_shape(_OP, "bias", bias, (C,), "(C,)")
    shape = (None, 3, None, None, None) if layout == "BCTHW" else (None, None, None, None, 3)
    want_shape(_OP, "video", video, shape, "(" + ", ".join(layout.replace("C", "3")) + ")")
    pixels = video.dtype == torch.uint8
    want(pixels or video.is_floating_point(), _OP, "video of uint8 or a floating dtype", video.dtype)
    want((mean is None) == (std is None), _OP, "both mean and std, or neither", "one of them")
    want(
        mean is None or pixels, _OP, "no mean and std with float video, which is taken as normalised", "both"
    )
    sizes = video.shape[2:] if layout == "BCTHW" else video.shape[1:4]
    grid = [size // p for size, p in zip(sizes, patch, strict=True)]
    want(min(grid) > 0, _OP, f"T, H, W of at least one tubelet {tuple(patch)}", tuple(sizes))
    rows = grid[0] * grid[1] * grid[2]
    if cls_token is not None:
        want_shape(_OP, "cls_token", cls_token, (1, 1, C), "(1, 1, C)")
        rows += 1
    if pos_embed is not None:
        want_shape(_OP, "pos_embed", pos_embed, (1, rows, C), "(1, tokens with the CLS, C)")
    for name, three in {"mean": mean, "std": std}.items():
        want(three is None or len(three) == 3, _OP, f"{name} of three floats", three)
    resolve(_OP, impl, auto_choice(video.device, weight.dtype), IMPLS)
    tokens = reference.tubelet_embed(
        video,
        weight,
        bias,
        mean=mean,
        std=std,
        cls_token=cls_token,
        pos_embed=pos_embed,
        layout=layout,
    )
    return tokens.to(autocast_dtype(weight) or weight.dtype)
