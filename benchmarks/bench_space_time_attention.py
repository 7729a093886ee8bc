"""Space-time attention against its peers, forward and backward, at the lengths of HSTA.

On a CUDA device (`cuda_cases`, for `make gpu`), in bfloat16 at B = 32, H = 12: each backend of
scaled_dot_product_attention forced in turn, cuDNN first, and FlexAttention compiled per case; the forward
without gradients, and the backward alone. On the CPU: `auto` and the plain formula at small sizes, forward
and forward + backward. Each result includes TFLOP/s (4 N^2 D per head forward; 10 backward, 14 both).
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.cases import Case, Place, Step
from hsta_fast import reference, space_time_attention

LENGTHS = (589, 1569, 3137, 6273)
FLEX = (1569,)  # each costs two compilations
WIDTHS = (64, 32)
BATCH, HEADS = 32, 12
Attention = Callable[[Tensor], Tensor]


def torch_default(qkv: Tensor) -> Tensor:
    """Torch's own attention, with the forced backend or the one that torch chooses."""
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def triton(qkv: Tensor) -> Tensor:
    return space_time_attention(qkv, impl="triton")


def flex(place: Place) -> Attention:
    compiled = place.compile(flex_attention)

    def run(qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
        return compiled(q, k, v).transpose(1, 2)

    return run


BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PEERS: dict[str, Attention] = {
    "auto": space_time_attention,
    "default": torch_default,
    "formula": reference.space_time_attention,
    "triton": triton,
}


def _maker(name: str, N: int, D: int, backward: bool) -> Callable[[Place], Step]:
    def make(place: Place) -> Step:
        torch.manual_seed(0)
        shape = (1, 33, 3, 2, D) if place.tiny else (BATCH, N, 3, HEADS, D)
        dtype = torch.float32 if place.tiny else torch.bfloat16
        qkv = torch.randn(shape, device=place.device, dtype=dtype, requires_grad=backward)
        attention = flex(place) if name == "flex" else PEERS.get(name, torch_default)
        if not backward:
            return lambda: attention(qkv)
        out = attention(qkv)
        dout = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, qkv, dout, retain_graph=True)

    return make


def cuda_cases() -> Iterator[Case]:
    for D in WIDTHS:
        for N in LENGTHS:
            for backward in (False, True):
                for name in ("triton", *BACKENDS, *(("flex",) if N in FLEX else ())):
                    yield Case(
                        group=f"attention D={D} N={N} B={BATCH} {'backward' if backward else 'forward'}",
                        name=name,
                        peer=name != "triton",
                        make=_maker(name, N, D, backward),
                        compiled=name == "flex",
                        forced=BACKENDS.get(name),
                        flop=(10 if backward else 4) * N * N * D * BATCH * HEADS,
                    )


def step(attention: Attention, qkv: Tensor, backward: bool) -> Callable[[], object]:
    """One forward, or one forward and backward, on `qkv`."""
    if not backward:
        x = qkv.detach()
        return lambda: attention(x)
    dout = torch.randn_like(qkv[:, :, 0])
    return lambda: torch.autograd.grad(attention(qkv), qkv, dout)


@pytest.mark.parametrize("peer", ["auto", "formula"])  # adjacent, so that both meet the same load
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("N", [325, 589, 1569])
def bench_cpu(benchmark: Any, peer: str, N: int, backward: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, N, 3, HEADS, 64, requires_grad=True)
    benchmark.group = f"cpu N={N} D=64 {'forward + backward' if backward else 'forward'}"
    benchmark.pedantic(step(PEERS[peer], qkv, backward), rounds=100 if N < 1000 else 10, warmup_rounds=2)
    flop = (14 if backward else 4) * N * N * 64 * HEADS
    benchmark.extra_info["TFLOP/s"] = round(flop / benchmark.stats.stats.median / 1e12, 3)


@pytest.mark.parametrize("peer", ["triton", "default"])
@pytest.mark.parametrize("backward", [False, True])
def bench_dispatch(benchmark: Any, monkeypatch: pytest.MonkeyPatch, peer: str, backward: bool) -> None:
    """The CPU time of a call without kernels: an empty batch launches none."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    qkv = torch.zeros(0, 325, 3, HEADS, 64, requires_grad=True)
    benchmark.group = f"dispatch, {'forward + backward' if backward else 'forward'}"
    benchmark.pedantic(step(PEERS[peer], qkv, backward), rounds=500, iterations=10, warmup_rounds=20)
