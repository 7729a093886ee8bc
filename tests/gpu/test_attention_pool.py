"""What only a CUDA device shows: real bfloat16, full widths, many shapes, repeats, graphs, the first call."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.test_attention_pool import check, inputs, kernels, randn

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16


@pytest.mark.parametrize("C", [384, 768])
@pytest.mark.parametrize("N", [0, 1, 17, 324, 588, 1568, 6272, 12544])
def test_lengths_of_the_model(N: int, C: int) -> None:
    torch.manual_seed(N)
    check(*inputs(2, 12, N, C, BF16))


@pytest.mark.parametrize("mean", [30.0, 300.0, 1e4])
@pytest.mark.parametrize("C", [384, 768])
def test_tokens_with_a_mean(C: int, mean: float) -> None:
    torch.manual_seed(0)
    query, tokens, extra = inputs(2, 12, 588, C, BF16)
    assert extra is not None
    check(query, (tokens.float() + mean).to(BF16), (extra.float() + mean).to(BF16))
    sign = torch.where(torch.arange(588, device="cuda") % 2 == 0, 1.0, -1.0)[None, :, None]
    check(query, (tokens.float() + sign * mean).to(BF16), extra)


@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(seed: int) -> None:
    """A hundred each, in every dtype and with every configuration."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(100):
        extra = draw.random() < 0.5
        N, C = draw.randint(0 if extra else 1, 900), draw.choice((8, 96, 200, 384, 640, 768, 1000, 1024))
        dtype = draw.choice((BF16, BF16, torch.float16, torch.float32))
        given = inputs(draw.randint(1, 5), draw.randint(1, 20), N, C, dtype, extra=extra)
        check(*given, normalize=draw.random() < 0.7)


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


def test_first_call_in_a_new_process(tmp_path: Path) -> None:
    """Forward and backward, compiled from nothing, within 10 s of the imports."""
    code = (
        "import time, torch\n"
        "from hsta_fast.kernels.attention_pool import attention_pool_bwd, attention_pool_fwd\n"
        "shapes = ((2, 12, 768), (2, 588, 768), (2, 768))\n"
        "q, x, e = (torch.randn(*shape, device='cuda').bfloat16() for shape in shapes)\n"
        "torch.cuda.synchronize(); start = time.perf_counter()\n"
        "saved = attention_pool_fwd(q, x, e, True, 1e-6)\n"
        "attention_pool_bwd(q, q, x, e, True, 1e-6, *saved, dtokens=torch.empty_like(x))\n"
        "torch.cuda.synchronize(); print(time.perf_counter() - start)"
    )
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 10.0
