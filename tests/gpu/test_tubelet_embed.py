"""tubelet_embed's CUDA kernel: every kind of video, the shapes of the model, and the same bits every time."""

from typing import Any

import pytest
import torch

from hsta_fast import tubelet_embed
from tests.compiler import needs_extension
from tests.ops.tubelet_checks import CASES, NORM, check, make_video, parameters
from tests.tolerance import with_gradients

pytestmark = [pytest.mark.gpu, needs_extension]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kind, layout, sizes, patch, C, cls, pos = case
    check(kind, layout, sizes, patch, C, dtype, cls=cls, pos=pos)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "p", "C"), [(6, 16, 768), (16, 16, 768), (2, 12, 384)])
def test_shapes_of_the_model(T: int, p: int, C: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check("bytes", "BCTHW", (2, T, 224, 224), (2, p, p), C, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_are_bit_equal(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    video = make_video("bytes", "BCTHW", 4, 6, 224, 224, dtype)
    tensors, named = parameters(768, (2, 16, 16), 3 * 14 * 14, dtype, True, True)
    dout = torch.randn(4, 3 * 14 * 14 + 1, 768, device="cuda").to(dtype)

    def run(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return tubelet_embed(video, weight, bias, **named, **NORM, impl="extension")

    first, again = (with_gradients(run, tensors, dout) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
