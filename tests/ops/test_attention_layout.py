"""space_time_attention with heads before tokens: the same numbers, by strides, without a copy."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hsta_fast import reference, space_time_attention
from tests.tolerance import with_gradients

IMPLS = ("triton", "extension", "torch")
B, H, N, M, D = 2, 3, 37, 21, 16


class Calls(TorchDispatchMode):
    """The names of all ops that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def by_heads(stored: str, keys: int = M) -> list[Tensor]:
    """[q, k, v] of shape (B, H, N or M, D), stored in that order, or as a projection leaves them."""
    sizes = (N, keys, keys)
    if stored == "heads first":
        return [torch.randn(B, H, n, D) for n in sizes]
    return [torch.randn(B, n, H, D).transpose(1, 2) for n in sizes]


@pytest.mark.parametrize("stored", ["heads first", "tokens first"])
@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_numbers_in_both_layouts(impl: str, stored: str) -> None:
    torch.manual_seed(0)
    given = by_heads(stored)
    dout = torch.randn(B, H, N, D)

    def transposed(*x: Tensor) -> Tensor:
        by_token = [y.transpose(1, 2) for y in x]
        return space_time_attention(*by_token, impl=impl).transpose(1, 2)

    expected = with_gradients(transposed, given, dout)
    came = with_gradients(lambda *x: space_time_attention(*x, layout="BHND", impl=impl), given, dout)
    for x, y in zip(came, expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_float64_against_the_reference_and_torch(impl: str) -> None:
    torch.manual_seed(0)
    given = [x.double() for x in by_heads("heads first")]
    dout = torch.randn(B, H, N, D).double()
    exact = with_gradients(lambda *x: F.scaled_dot_product_attention(*x), given, dout)
    for function in (reference.space_time_attention, space_time_attention):
        keywords = {"impl": impl} if function is space_time_attention else {}
        came = with_gradients(lambda *x, f=function, k=keywords: f(*x, layout="BHND", **k), given, dout)
        for x, y in zip(came, exact, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", ["triton", "extension"])
def test_no_tensor_is_copied(impl: str) -> None:
    """The views of a projection go into the op as they are, and its result is (B, N, C) without a copy."""
    q, k, v = by_heads("tokens first")
    with Calls() as calls:
        out = space_time_attention(q, k, v, layout="BHND", impl=impl)
        flat = out.transpose(1, 2).flatten(2)
    assert out.shape == (B, H, N, D) and flat.data_ptr() == out.data_ptr()
    copies = [name for name in calls.names if any(word in name for word in ("clone", "copy", "contiguous"))]
    assert not copies
    assert sum("hsta_fast.space_time_attention" in name for name in calls.names) == 1


def test_what_does_not_fit_is_named() -> None:
    q, k, v = by_heads("heads first")
    with pytest.raises(ValueError, match=r'^layout expected "BNHD" or "BHND", got \'NBHD\'$'):
        space_time_attention(q, k, v, layout="NBHD")
    with pytest.raises(ValueError, match=r'^layout expected "BNHD" for the packed projection, got \'BHND\'$'):
        space_time_attention(torch.randn(B, N, 3, H, D), layout="BHND")
    with pytest.raises(ValueError, match=r"^k expected shape \(B, H, M, D\) = \(2, 3, \*, 16\), got"):
        space_time_attention(q, k.transpose(1, 2), v, layout="BHND")
    with pytest.raises(ValueError, match=r"^v expected shape \(B, H, M, D\) = \(2, 3, 21, 16\), got"):
        space_time_attention(q, k, v[:, :, 1:], layout="BHND")
