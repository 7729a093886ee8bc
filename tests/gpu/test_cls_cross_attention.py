"""cls_cross_attention on a CUDA device, in 16 bits: within the tolerance, and the same bits every time."""

import pytest
import torch

from hsta_fast import cls_cross_attention
from tests.ops.test_cls_cross_attention import check, inputs, with_gradients

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("N", [17, 324, 588, 1568])
def test_lengths_of_the_model(N: int, dtype: torch.dtype) -> None:
    torch.manual_seed(N)
    check("triton", inputs("triton", 2, N, 384, dtype), num_heads=12)


def test_repeats_are_bit_equal() -> None:
    torch.manual_seed(0)
    named = inputs("triton", 4, 588, 384, torch.bfloat16)
    dout = torch.randn_like(named["cls"])
    options = {"num_heads": 12, "impl": "triton"}
    first, again = (with_gradients(cls_cross_attention, named, dout, **options) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
