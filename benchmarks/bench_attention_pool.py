"""CLS-to-token cross-attention against what everyone runs: norm, projections and attention with one query.

Every case is the whole of `cls_cross_attention`, small products included, with the tokens' bytes a second
(read once forward; read twice and written once with the backward) and, on CUDA, the peak of memory. On a CUDA
device: both branches' widths, every scaled_dot_product_attention backend, eager and compiled, in bfloat16. On
the CPU: float32, and the pooling alone.
"""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hsta_fast import attention_pool, cls_cross_attention

HEADS = 12
CUDA_SHAPES = [  # width, tokens: the special branch at 224 pixels, the video branch at 6 to 128 frames
    (384, 324),
    (384, 588),
    (384, 1568),
    (384, 6272),
    (768, 588),
    (768, 1568),
    (768, 3136),
    (768, 6272),
    (768, 12544),
]
CPU_SHAPES = [(384, 324), (768, 588), (768, 1568)]
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
Cross = Callable[[dict[str, Tensor]], Tensor]


def parameters(C: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    def make(*shape: int) -> Tensor:
        return (torch.randn(shape, device=device) * C**-0.5).to(dtype).requires_grad_()

    matrices = {f"{name}_weight": make(C, C) for name in "qkv"}
    vectors = {name: make(C) for name in ("q_bias", "k_bias", "v_bias", "norm_weight", "norm_bias")}
    return matrices | vectors


def materialised(backend: str | None) -> Cross:
    """[cls ; tokens], the norm, keys and values of every row, attention of one query; None: torch chooses."""

    def run(given: dict[str, Tensor]) -> Tensor:
        rows = torch.cat([given["cls"].unsqueeze(1), given["tokens"]], 1)
        y = F.layer_norm(rows, rows.shape[-1:], given["norm_weight"], given["norm_bias"], 1e-6)
        q, k, v = (
            F.linear(x, given[f"{n}_weight"], given[f"{n}_bias"]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for n, x in {"q": y[:, :1], "k": y, "v": y}.items()
        )
        if backend is None:
            return F.scaled_dot_product_attention(q, k, v).flatten(1)
        with sdpa_kernel(BACKENDS[backend]):
            return F.scaled_dot_product_attention(q, k, v).flatten(1)

    return run


def ours(impl: str) -> Cross:
    return lambda given: cls_cross_attention(**given, num_heads=HEADS, impl=impl)  # type: ignore[arg-type]


def make(peer: str) -> Cross:
    """Ours by its implementation, the materialised form by its backend or as sdpa; "compiled" or not."""
    name, _, compiled = peer.partition(" ")
    if name in ("triton", "extension", "torch"):
        run = ours(name)
    else:
        run = materialised(None if name == "sdpa" else name)
    return torch.compile(run) if compiled else run


def inputs(B: int, C: int, N: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = torch.randn(B, N + 1, C, device=device).to(dtype)
    given = {"cls": state[:, 0].clone().requires_grad_(), "tokens": state[:, 1:].detach().requires_grad_()}
    return given | parameters(C, device, dtype)


def step(run: Cross, given: dict[str, Tensor], backward: bool) -> Callable[[], object]:
    if not backward:
        detached = {name: x.detach() for name, x in given.items()}
        return lambda: run(detached)
    dout = torch.randn_like(given["cls"])
    return lambda: torch.autograd.grad(run(given), list(given.values()), dout, allow_unused=True)


def record(
    benchmark: Any,
    run: Callable[[], object],
    tokens: Tensor,
    backward: bool,
    rounds: int,
    setup: Callable[[], None] | None = None,
) -> None:
    B, N, C = tokens.shape
    what = "forward + backward" if backward else "forward"
    benchmark.group = f"{tokens.device.type} C={C} N={N} B={B} {what}"
    benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=2)
    size = tokens.numel() * tokens.element_size() * (3 if backward else 1)
    benchmark.extra_info["GB/s of tokens"] = round(size / benchmark.stats.stats.median / 1e9, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("B", [1, 32])
@pytest.mark.parametrize(("C", "N"), CUDA_SHAPES)
@pytest.mark.parametrize(
    "peer", ["triton", "triton compiled", *BACKENDS, *(f"{b} compiled" for b in BACKENDS)]
)
def bench_cuda(benchmark: Any, peer: str, C: int, N: int, B: int, backward: bool) -> None:
    given = inputs(B, C, N, "cuda", torch.bfloat16)
    run = step(make(peer), given, backward)
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    benchmark.extra_info["peak MiB"] = (torch.cuda.max_memory_allocated() - before) >> 20
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")  # more than any second-level cache holds

    def timed() -> None:
        run()
        torch.cuda.synchronize()

    def cold() -> None:
        flush.zero_()
        torch.cuda.synchronize()

    record(benchmark, timed, given["tokens"], backward, rounds=20, setup=cold)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("C", "N"), CPU_SHAPES)
@pytest.mark.parametrize("peer", ["extension", "torch", "sdpa", "sdpa compiled"])
def bench_cpu(benchmark: Any, peer: str, C: int, N: int, backward: bool) -> None:
    given = inputs(2, C, N, "cpu", torch.float32)
    record(benchmark, step(make(peer), given, backward), given["tokens"], backward, rounds=15)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("impl", ["extension", "torch"])
def bench_pool_alone(benchmark: Any, impl: str, backward: bool) -> None:
    """What touches the tokens: B 2, C 768, N 1568, 12 queries, float32 on the CPU."""
    given = inputs(2, 768, 1568, "cpu", torch.float32)
    query = torch.randn(2, HEADS, 768, requires_grad=True)

    pair = {"query": query, "tokens": given["tokens"]}

    def run() -> Tensor:
        return cast(Tensor, attention_pool(pair["query"], pair["tokens"], impl=impl))

    def once() -> object:
        if not backward:
            with torch.no_grad():
                return run()
        return torch.autograd.grad(run(), list(pair.values()), query)

    record(benchmark, once, given["tokens"], backward, rounds=15)
