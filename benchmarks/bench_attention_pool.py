"""CLS-to-token cross-attention against the usual formulation: norm, projections, attention with one query.

Every case times all of `cls_cross_attention`, small products included, and reports the tokens' bytes per
second (read once forward; read twice and written once with the backward). On a CUDA device (`cuda_cases`, for
`make gpu`): both branches' widths in bfloat16 at B = 32, against each backend of scaled_dot_product_attention
forced in turn, cuDNN first, and torch's own choice compiled. On the CPU: float32, and the pooling alone.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.cases import Case, Place, Step, own_compilation
from hsta_fast import attention_pool, cls_cross_attention

HEADS, BATCH = 12, 32
# Width, tokens: the special branch at 224 pixels, the video branch at 6, 16 and 64 frames.
CUDA_SHAPES = [(384, 324), (768, 588), (768, 1568), (768, 6272)]
COMPILED = [(384, 324), (768, 1568)]  # each costs two compilations
CPU_SHAPES = [(384, 324), (768, 588), (768, 1568)]
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Cross = Callable[[dict[str, Tensor]], Tensor]


def parameters(C: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    def make(*shape: int) -> Tensor:
        return (torch.randn(shape, device=device) * C**-0.5).to(dtype).requires_grad_()

    matrices = {f"{name}_weight": make(C, C) for name in "qkv"}
    vectors = {name: make(C) for name in ("q_bias", "k_bias", "v_bias", "norm_weight", "norm_bias")}
    return matrices | vectors


def materialised(given: dict[str, Tensor]) -> Tensor:
    """The usual formulation: [cls ; tokens], norm, keys and values of every row, attention of one query."""
    rows = torch.cat([given["cls"].unsqueeze(1), given["tokens"]], 1)
    y = F.layer_norm(rows, rows.shape[-1:], given["norm_weight"], given["norm_bias"], 1e-6)
    q, k, v = (
        F.linear(x, given[f"{n}_weight"], given[f"{n}_bias"]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for n, x in {"q": y[:, :1], "k": y, "v": y}.items()
    )
    return F.scaled_dot_product_attention(q, k, v).flatten(1)


def ours(impl: str) -> Cross:
    return lambda given: cls_cross_attention(**given, num_heads=HEADS, impl=impl)  # type: ignore[arg-type]


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


def _maker(name: str, C: int, N: int, backward: bool) -> Callable[[Place], Step]:
    def make(place: Place) -> Step:
        run = ours("triton") if name == "triton" else materialised
        if name == "sdpa compiled":
            run = place.compile(run)
        size = (2, C // 8, 20) if place.tiny else (BATCH, C, N)
        dtype = torch.float32 if place.tiny else torch.bfloat16
        return step(run, inputs(*size, place.device, dtype), backward)

    return make


def cuda_cases() -> Iterator[Case]:
    for C, N in CUDA_SHAPES:
        for backward in (False, True):
            for name in ("triton", *BACKENDS, *(("sdpa compiled",) if (C, N) in COMPILED else ())):
                yield Case(
                    group=f"csta C={C} N={N} B={BATCH} {'forward + backward' if backward else 'forward'}",
                    name=name,
                    peer=name != "triton",
                    make=_maker(name, C, N, backward),
                    compiled=name == "sdpa compiled",
                    forced=BACKENDS.get(name),
                    size=BATCH * N * C * 2 * (3 if backward else 1),
                )


def record(benchmark: Any, run: Callable[[], object], tokens: Tensor, backward: bool) -> None:
    B, N, C = tokens.shape
    benchmark.group = f"cpu C={C} N={N} B={B} {'forward + backward' if backward else 'forward'}"
    benchmark.pedantic(run, rounds=15, warmup_rounds=2)
    size = tokens.numel() * tokens.element_size() * (3 if backward else 1)
    benchmark.extra_info["GB/s of tokens"] = round(size / benchmark.stats.stats.median / 1e9, 1)


CPU_PEERS: dict[str, Callable[[], Cross]] = {
    "extension": lambda: ours("extension"),
    "torch": lambda: ours("torch"),
    "sdpa": lambda: materialised,
    "sdpa compiled": lambda: torch.compile(materialised, dynamic=False),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("C", "N"), CPU_SHAPES)
@pytest.mark.parametrize("peer", CPU_PEERS)
def bench_cpu(benchmark: Any, peer: str, C: int, N: int, backward: bool) -> None:
    given = inputs(2, C, N, "cpu", torch.float32)
    with own_compilation() if "compiled" in peer else contextlib.nullcontext():
        record(benchmark, step(CPU_PEERS[peer](), given, backward), given["tokens"], backward)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("impl", ["extension", "torch"])
def bench_pool_alone(benchmark: Any, impl: str, backward: bool) -> None:
    """`attention_pool`, which reads the tokens: B 2, C 768, N 1568, 12 queries, float32 on the CPU."""
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

    record(benchmark, once, given["tokens"], backward)
