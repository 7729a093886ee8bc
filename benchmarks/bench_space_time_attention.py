"""Space-time attention against its peers, forward and backward, at the lengths of HSTA.

On a CUDA device (`cuda_cases`, for `make gpu`), in bfloat16 at B = 32, H = 12: each backend of
scaled_dot_product_attention forced in turn, cuDNN first, and FlexAttention compiled per case; the forward
without gradients, and the backward alone. On the CPU, in float32 at B = 1: `auto`, the published formulation
and torch's own choice, forward and forward + backward. Operations: 4 N^2 D per head forward; 10 backward.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.cases import Case, Place, Step
from benchmarks.compare import OURS, Make
from hsta_fast import space_time_attention

LENGTHS = (589, 1569, 3137, 6273)
FLEX = (1569,)  # each costs two compilations
WIDTHS = (64, 32)
BATCH, HEADS = 32, 12
CPU_SHAPES = [(325, 32), (589, 64), (1569, 64)]  # N, D
COMPILED_ON_THE_CPU = [(589, 64)]  # each costs two compilations
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


def _maker(name: str, N: int, D: int, backward: bool) -> Callable[[Place], Step]:
    def make(place: Place) -> Step:
        torch.manual_seed(0)
        shape = (1, 33, 3, 2, D) if place.tiny else (BATCH, N, 3, HEADS, D)
        dtype = torch.float32 if place.tiny else torch.bfloat16
        qkv = torch.randn(shape, device=place.device, dtype=dtype, requires_grad=backward)
        attention = flex(place) if name == "flex" else triton if name == "triton" else torch_default
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


def published(qkv: Tensor) -> Tensor:
    """The published formulation: all weights in memory."""
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return (((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)


def _on_the_cpu(attention: Attention, N: int, D: int, backward: bool) -> Make:
    def make() -> Step:
        torch.manual_seed(0)
        return step(attention, torch.randn(1, N, 3, HEADS, D, requires_grad=backward), backward)

    return make


def _group(N: int, D: int, backward: bool) -> str:
    return f"space_time_attention, N {N}, D {D}, {'forward + backward' if backward else 'forward'}"


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("N", "D"), CPU_SHAPES)
def bench_cpu(compare: Callable[..., None], N: int, D: int, backward: bool) -> None:
    members = {OURS: space_time_attention, "published": published, "SDPA": torch_default}
    compare(
        _group(N, D, backward),
        {name: _on_the_cpu(attention, N, D, backward) for name, attention in members.items()},
        flop=(14 if backward else 4) * N * N * D * HEADS,
    )


@pytest.mark.parametrize(("N", "D"), COMPILED_ON_THE_CPU)
def bench_compiled(compare: Callable[..., None], N: int, D: int) -> None:
    peers = {"published": published, "SDPA": torch_default}
    members: dict[str, Make] = {OURS: _on_the_cpu(space_time_attention, N, D, True)}
    for name, attention in peers.items():
        compiled = torch.compile(attention, dynamic=False)
        members[f"{name} compiled"] = _on_the_cpu(compiled, N, D, True)
    compare(f"{_group(N, D, True)}, compiled peers", members, flop=14 * N * N * D * HEADS)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def bench_dispatch(compare: Callable[..., None], monkeypatch: pytest.MonkeyPatch, backward: bool) -> None:
    """The CPU time of a call of the Triton path without kernels: an empty batch launches none."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    qkv = torch.zeros(0, 325, 3, HEADS, 64, requires_grad=True)

    def make(attention: Attention) -> Make:
        once = step(attention, qkv, backward)
        return lambda: lambda: [once() for _ in range(100)]

    compare(
        f"space_time_attention, 100 calls without kernels, {'forward + backward' if backward else 'forward'}",
        {OURS: make(triton), "SDPA": make(torch_default)},
    )
