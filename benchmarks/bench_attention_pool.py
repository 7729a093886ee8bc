"""CLS-to-token cross-attention against the usual formulation: norm, projections, attention with one query.

Every case times all of `cls_cross_attention`, small products included. On a CUDA device (`cuda_cases`, for
`make gpu`): both branches' widths in bfloat16 at B = 32, against each backend of scaled_dot_product_attention
forced in turn, cuDNN first, and torch's own choice compiled; the tokens' bytes per second count one read
forward, two reads and one write with the backward. On the CPU: float32, and the pooling alone.
"""

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.cases import Case, Place, Step
from benchmarks.compare import OURS, Make
from hsta_fast import attention_pool, cls_cross_attention, reference

HEADS, BATCH = 12, 32
# Width, tokens: the special branch at 224 pixels, the video branch at 6, 16 and 64 frames.
CUDA_SHAPES = [(384, 324), (768, 588), (768, 1568), (768, 6272)]
COMPILED = [(384, 324), (768, 1568)]  # each costs two compilations
CPU_SHAPES = [(384, 324), (768, 588), (768, 1568)]
COMPILED_ON_THE_CPU = [(768, 588)]  # each costs two compilations
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


def projected(rows: Tensor, given: dict[str, Tensor]) -> list[Tensor]:
    """Rows [cls ; tokens] (B, 1 + N, C) -> q (B, H, 1, D), k and v (B, H, 1 + N, D), normalised first."""
    y = F.layer_norm(rows, rows.shape[-1:], given["norm_weight"], given["norm_bias"], 1e-6)
    return [
        F.linear(x, given[f"{n}_weight"], given[f"{n}_bias"]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for n, x in {"q": y[:, :1], "k": y, "v": y}.items()
    ]


def materialised(given: dict[str, Tensor]) -> Tensor:
    """The usual formulation: [cls ; tokens], norm, keys and values of every row, attention of one query."""
    rows = torch.cat([given["cls"].unsqueeze(1), given["tokens"]], 1)
    q, k, v = projected(rows, given)
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


def published(given: dict[str, Tensor]) -> Tensor:
    """`materialised`, with the weights of the attention in memory."""
    rows = torch.cat([given["cls"].unsqueeze(1), given["tokens"]], 1)
    q, k, v = projected(rows, given)
    return (((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v).flatten(1)


CPU_PEERS: dict[str, Cross] = {"published": published, "SDPA": materialised}


def _on_the_cpu(run: Cross, C: int, N: int, backward: bool) -> Make:
    return lambda: step(run, inputs(2, C, N, "cpu", torch.float32), backward)


def _group(op: str, C: int, N: int, backward: bool) -> str:
    return f"{op}, B 2, C {C}, N {N}, {'forward + backward' if backward else 'forward'}"


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("C", "N"), CPU_SHAPES)
def bench_cpu(compare: Callable[..., None], C: int, N: int, backward: bool) -> None:
    members = {OURS: ours("auto")} | CPU_PEERS
    compare(
        _group("cls_cross_attention", C, N, backward),
        {name: _on_the_cpu(run, C, N, backward) for name, run in members.items()},
    )


@pytest.mark.parametrize(("C", "N"), COMPILED_ON_THE_CPU)
def bench_compiled(compare: Callable[..., None], C: int, N: int) -> None:
    members = {OURS: _on_the_cpu(ours("auto"), C, N, True)}
    for name, run in CPU_PEERS.items():
        compiled = torch.compile(run, dynamic=False)
        members[f"{name} compiled"] = _on_the_cpu(compiled, C, N, True)
    compare(f"{_group('cls_cross_attention', C, N, True)}, compiled peers", members)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("C", "N"), CPU_SHAPES[-1:])
def bench_pool_alone(compare: Callable[..., None], C: int, N: int, backward: bool) -> None:
    """`attention_pool`, which reads the tokens, without the projections of CSTA: 12 queries."""

    def make(pool: Callable[[Tensor, Tensor], object]) -> Make:
        def prepare() -> Step:
            torch.manual_seed(0)
            query = torch.randn(2, HEADS, C, requires_grad=backward)
            tokens = torch.randn(2, N, C, requires_grad=backward)
            if not backward:
                return lambda: pool(query, tokens)
            dout = torch.randn_like(query)
            return lambda: torch.autograd.grad(cast(Tensor, pool(query, tokens)), [query, tokens], dout)

        return prepare

    members = {OURS: make(attention_pool), "written out": make(reference.attention_pool)}
    compare(_group("attention_pool", C, N, backward), members)
