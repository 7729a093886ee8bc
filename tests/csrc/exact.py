"""Videos, weights, and the float64 convolution that the kernels are compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS = [torch.float16, torch.bfloat16, torch.float32]


def make_video(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype)
    return torch.randn(shape).to(dtype)


def make_weight(C: int, t: int, p: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Weights as large as folded weights for uint8 video: they give tokens of about 1."""
    return (torch.randn(C, 3, t, p, p) / (127 * (3 * t * p * p) ** 0.5)).to(dtype)


def convolved(
    video: Tensor,
    weight: Tensor,
    bias: Tensor,
    cls_token: Tensor | None = None,
    pos_embed: Tensor | None = None,
) -> Tensor:
    tokens = F.conv3d(video.double(), weight.double(), bias.double(), stride=weight.shape[2:])
    tokens = tokens.flatten(2).transpose(1, 2)
    if cls_token is not None:
        tokens = torch.cat([cls_token.double().expand(video.shape[0], 1, -1), tokens], dim=1)
    return tokens if pos_embed is None else tokens + pos_embed.double()


def assert_rounded(came: Tensor, exact: Tensor) -> None:
    """Per element: one rounding to the result's dtype plus that of the float32 sum."""
    assert came.shape == exact.shape
    scale = exact.abs().amax() if exact.numel() else 0.0
    allowed = exact.abs() * torch.finfo(came.dtype).eps / 2 + scale * 1e-5
    wrong = ~((came.double() - exact).abs() <= allowed)
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()}, first at {wrong.nonzero()[0].tolist()}"


def as_layout(video: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "BTHWC":
        return video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    assert layout == "BCTHW"
    return video.contiguous()
