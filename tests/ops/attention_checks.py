"""Compare space_time_attention with float64; shared by the tests with and without a CUDA device."""

import torch
from torch import Tensor

from hsta_fast import reference, space_time_attention
from tests.tolerance import DEVICE, assert_close, with_gradients

LAYOUTS = ("packed", "sliced", "transposed", "separate")
EPS32 = torch.finfo(torch.float32).eps


def inputs(layout: str, B: int, N: int, M: int, H: int, D: int, dtype: torch.dtype) -> list[Tensor]:
    """[qkv], or [q, k, v] with M keys if the layout is "separate"."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype)

    if layout == "separate":
        return [randn(B, N, H, D), randn(B, M, H, D), randn(B, M, H, D)]
    if layout == "sliced":
        return [randn(B + 1, N + 3, 3, H + 1, D)[1:, 2:-1, :, 1:]]
    if layout == "transposed":
        return [randn(3, B, H, N, D).permute(1, 3, 0, 2, 4)]
    return [randn(B, N, 3, H, D)]


def check(given: list[Tensor], *, scale: float | None = None, impl: str = "triton") -> None:
    """Forward and every gradient within the tolerance."""
    q, k = given[0].unbind(2)[:2] if len(given) == 1 else given[:2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dout = torch.randn(q.shape, device=DEVICE).to(q.dtype)

    def specified(*x: Tensor) -> Tensor:
        return reference.space_time_attention(*x, scale=scale)

    exact = with_gradients(specified, [x.double() for x in given], dout)
    plain = with_gradients(specified, given, dout)
    came = with_gradients(lambda *x: space_time_attention(*x, scale=scale, impl=impl), given, dout)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()).abs().max() * abs(scale)
    eps, rounding = torch.finfo(q.dtype).eps, 4 * float(scores) * EPS32
    forward = (4 if q.dtype == torch.float32 else 1) * eps + rounding
    assert_close(came[:1], plain[:1], exact[:1], band=forward)
    assert_close(came[1:], plain[1:], exact[1:], band=4 * eps + rounding)
