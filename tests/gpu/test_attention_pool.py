"""Attention pooling, what needs a CUDA device: real bfloat16, full widths, repeats, graphs."""

import pytest
import torch

from tests.kernels.pool_checks import check, inputs, kernels, randn

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16


@pytest.mark.parametrize(("C", "dtype"), [(384, BF16), (768, BF16), (384, torch.float16)])
@pytest.mark.parametrize("N", [0, 1, 17, 324, 588, 1568, 6272, 12544])
def test_lengths_of_the_model(N: int, C: int, dtype: torch.dtype) -> None:
    torch.manual_seed(N)
    check(*inputs(2, 12, N, C, dtype))


@pytest.mark.parametrize("mean", [30.0, 300.0, 1e4])
@pytest.mark.parametrize("C", [384, 768])
def test_tokens_with_a_mean(C: int, mean: float) -> None:
    torch.manual_seed(0)
    query, tokens, extra = inputs(2, 12, 588, C, BF16)
    assert extra is not None
    check(query, (tokens.float() + mean).to(BF16), (extra.float() + mean).to(BF16))
    sign = torch.where(torch.arange(588, device="cuda") % 2 == 0, 1.0, -1.0)[None, :, None]
    check(query, (tokens.float() + sign * mean).to(BF16), extra)


@pytest.mark.parametrize("C", [384, 768])
@pytest.mark.parametrize("B", [1, 32])
def test_repeats_are_bit_equal(B: int, C: int) -> None:
    torch.manual_seed(0)
    given, dpooled = inputs(B, 12, 1568, C, BF16), randn(B, 12, C, dtype=BF16)
    first = kernels(*given, True, dpooled)
    for _ in range(20):
        again = kernels(*given, True, dpooled)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("C", [384, 768])
def test_cuda_graph(C: int) -> None:
    torch.manual_seed(0)
    query, tokens, extra = inputs(4, 12, 588, C, BF16)
    dpooled = randn(4, 12, C, dtype=BF16)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            kernels(query, tokens, extra, True, dpooled)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        came = kernels(query, tokens, extra, True, dpooled)
    tokens.copy_(torch.randn_like(tokens))
    graph.replay()
    expected = kernels(query, tokens, extra, True, dpooled)
    assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))
