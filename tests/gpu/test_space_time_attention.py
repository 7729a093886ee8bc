"""space_time_attention, what needs a CUDA device: real bfloat16, repeats, graphs."""

import pytest
import torch

from hsta_fast import info, space_time_attention
from tests.ops.attention_checks import check, inputs
from tests.tolerance import with_gradients

pytestmark = pytest.mark.gpu
HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("D", [32, 64])
@pytest.mark.parametrize("N", [325, 589, 1569, 3137])
def test_lengths_of_the_model(N: int, D: int, dtype: torch.dtype) -> None:
    torch.manual_seed(N)
    check(inputs("packed", 2, N, N, 3, D, dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("D", [32, 64])
def test_repeats_are_bit_equal(D: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    [qkv] = inputs("packed", 8, 1569, 1569, 12, D, dtype)
    dout = torch.randn(8, 1569, 12, D, device="cuda").to(dtype)
    first = with_gradients(space_time_attention, [qkv], dout)
    for _ in range(20):
        again = with_gradients(space_time_attention, [qkv], dout)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("D", [32, 64])
def test_cuda_graph(D: int) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(4, 325, 3, 12, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dout = torch.randn(4, 325, 12, D, device="cuda", dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(space_time_attention(qkv), qkv, dout)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = space_time_attention(qkv)
        (gradient,) = torch.autograd.grad(out, qkv, dout)
    with torch.no_grad():
        qkv.copy_(torch.randn_like(qkv))
    graph.replay()
    expected = with_gradients(space_time_attention, [qkv], dout)
    assert torch.equal(out, expected[0])
    assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_as_one_graph(mode: str) -> None:
    torch.manual_seed(0)
    [qkv] = inputs("packed", 2, 325, 325, 12, 64, torch.bfloat16)
    dout = torch.randn(2, 325, 12, 64, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(space_time_attention, fullgraph=True, mode=mode)
    for _ in range(3):
        came = [x.clone() for x in with_gradients(compiled, [qkv], dout)]
    for a, b in zip(came, with_gradients(space_time_attention, [qkv], dout), strict=True):
        assert torch.equal(a, b)


def test_auto_is_triton() -> None:
    assert info()["ops"]["cuda:0"]["space_time_attention"]["impl"] == "triton"
