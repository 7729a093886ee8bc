"""The error an implementation may have: twice that of the plain path in its dtype, plus a band."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter's bfloat16 products are wrong; real ones are tested on a GPU.
DTYPES = (torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else []))

Function = Callable[..., Tensor]


def with_gradients(function: Function, inputs: Sequence[Tensor], dout: Tensor) -> list[Tensor]:
    """The output of function(*inputs) and the gradient of each input."""
    leaves = [x.detach().requires_grad_() for x in inputs]  # views keep their strides
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Torch's setting for float32 products on CUDA devices: "none" (its default), "tf32" or "ieee"."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def worst(came: Tensor, exact: Tensor) -> float:
    """The largest difference; infinite for a NaN or infinity where the exact result is finite."""
    difference = (came.double() - exact).abs()
    return float(difference.nan_to_num(nan=torch.inf).max()) if came.numel() else 0.0


def assert_close(
    came: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    *,
    band: float,
    terms: float = 0.0,
) -> None:
    """Tensors that belong together: `band` is relative to the largest value of all exact ones.

    If the exact result is a difference that can vanish, `terms` is the size of its terms, whose rounding
    errors do not cancel.
    """
    largest = max([terms, *(float(x.abs().max()) for x in exact if x.numel())])
    for came_x, plain_x, exact_x in zip(came, plain, exact, strict=True):
        assert came_x.shape == exact_x.shape
        assert came_x.dtype == plain_x.dtype
        error, allowed = worst(came_x, exact_x), 2 * worst(plain_x, exact_x) + band * largest
        assert allowed < torch.inf, "the plain path gives no number: nothing would be too wrong"
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
