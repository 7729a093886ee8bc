"""Compare tubelet_embed on the extension with Conv3d in float64; shared by tests on the CPU and on CUDA."""

from typing import Any

import torch
from torch import Tensor

from hsta_fast import reference, tubelet_embed
from hsta_fast.model import IMAGENET_MEAN, IMAGENET_STD
from tests.tolerance import DEVICE, assert_close, with_gradients

NORM: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
CASES = [  # kind, layout, (B, T, H, W), (t, p, p), C, cls, pos
    ("bytes", "BCTHW", (2, 4, 32, 32), (2, 16, 16), 64, True, True),
    ("bytes", "BTHWC", (1, 2, 40, 52), (1, 8, 8), 37, True, True),
    ("raw", "BCTHW", (2, 5, 30, 41), (4, 14, 14), 65, False, True),
    ("bytes", "sliced", (3, 3, 50, 29), (2, 12, 12), 1, True, False),
    ("float", "BCTHW", (2, 4, 49, 50), (2, 24, 24), 130, True, True),
    ("float", "BTHWC", (1, 4, 33, 35), (4, 16, 16), 16, False, False),
    ("float", "sliced", (2, 2, 26, 38), (1, 12, 12), 48, True, True),
    ("raw", "sliced", (1, 2, 19, 23), (2, 5, 5), 3, False, True),
    ("bytes", "BCTHW", (0, 2, 32, 32), (2, 16, 16), 64, True, True),
    ("float", "BCTHW", (0, 2, 32, 32), (2, 16, 16), 64, True, True),
    ("bytes", "BCTHW", (3, 2, 16, 16), (2, 16, 16), 24, True, True),  # a single token
    ("bytes", "BTHWC", (1, 1, 31, 31), (1, 31, 31), 1, False, True),  # all sizes 1
    ("bytes", "BCTHW", (1, 2, 224, 224), (2, 12, 12), 96, True, True),  # 18 patches of 12, 8 pixels unused
]


def make_video(kind: str, layout: str, B: int, T: int, H: int, W: int, dtype: torch.dtype) -> Tensor:
    """Bytes if kind is "bytes" or "raw" (without mean and std), else floats; "sliced" is a view."""
    shape = {"BCTHW": (B, 3, T, H, W)}.get(layout, (B, T, H, W, 3))
    if layout == "sliced":
        shape = (B + 1, 3, T + 1, H + 2, 2 * W + 1)
    if kind in ("bytes", "raw"):
        video = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
    else:
        video = torch.randn(shape, device=DEVICE).to(dtype)
    return video[1:, :, 1:, 2:, 1::2] if layout == "sliced" else video


def parameters(
    C: int, patch: tuple[int, int, int], rows: int, dtype: torch.dtype, cls: bool, pos: bool
) -> Any:
    """[weight, bias], {cls_token, pos_embed}."""

    def randn(*shape: int, size: float = 1.0) -> Tensor:
        return (size * torch.randn(shape, device=DEVICE)).to(dtype)

    weight = randn(C, 3, *patch, size=(3 * patch[0] * patch[1] * patch[2]) ** -0.5)
    named = {"cls_token": randn(1, 1, C)} if cls else {}
    return [weight, randn(C)], named | ({"pos_embed": randn(1, rows + cls, C)} if pos else {})


def check(
    kind: str,
    layout: str,
    sizes: tuple[int, int, int, int],
    patch: tuple[int, int, int],
    C: int,
    dtype: torch.dtype,
    *,
    cls: bool = True,
    pos: bool = True,
) -> None:
    """Forward and every gradient within the tolerance."""
    video = make_video(kind, layout, *sizes, dtype)
    rows = (sizes[1] // patch[0]) * (sizes[2] // patch[1]) * (sizes[3] // patch[2])
    tensors, named = parameters(C, patch, rows, dtype, cls, pos)
    fixed = {"layout": "BTHWC" if layout == "BTHWC" else "BCTHW"} | (NORM if kind == "bytes" else {})
    floats = video.is_floating_point()
    dout = torch.randn(sizes[0], rows + cls, C, device=DEVICE).to(dtype)

    def run(function: Any, cast: torch.dtype, **how: str) -> list[Tensor]:
        def call(*x: Tensor) -> Tensor:
            frames, rest = (x[0], x[1:]) if floats else (video, x)
            more = dict(zip(named, rest[2:], strict=True))
            return function(frames, *rest[:2], **more, **fixed, **how)

        inputs = [video] * floats + tensors + list(named.values())
        return with_gradients(call, [x.to(cast) for x in inputs], dout)

    exact = run(reference.tubelet_embed, torch.float64)
    plain = run(reference.tubelet_embed, dtype)
    came = run(tubelet_embed, dtype, impl="extension")
    eps = torch.finfo(dtype).eps
    slack = 128 if dtype == torch.float64 else 4  # in float64 the reference is rounded as much as ours
    for i, (a, b, c) in enumerate(zip(came, plain, exact, strict=True)):
        if c.numel():
            assert_close([a], [b], [c], band=(slack if i or eps < 1e-6 else 1) * eps)
        else:
            assert a.shape == c.shape and a.dtype == dtype
