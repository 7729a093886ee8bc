"""Space-time attention against its peers, forward and forward + backward, at the lengths of HSTA.

On a CUDA device: every scaled_dot_product_attention backend forced in turn, FlexAttention compiled and
the plain formula, in bfloat16 at B = 32, H = 12. On the CPU: `auto` and the plain formula, small. Each
result carries TFLOP/s (4 N^2 D a head forward, 14 with the backward) and, on CUDA, the peak of memory.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from hsta_fast import reference, space_time_attention

LENGTHS = (325, 589, 1569, 3137, 6273, 12545)
SHORT = (325, 589)  # where launches take as long as kernels: also as one CUDA graph
WIDTHS = (32, 64)
HEADS = 12
Attention = Callable[[Tensor], Tensor]


def torch_default(qkv: Tensor) -> Tensor:
    """Torch's own attention, with the backend that is forced or else that it chooses."""
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def flex() -> Attention:
    torch._dynamo.reset()  # each length compiled for itself
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
        return compiled(q, k, v).transpose(1, 2)

    return run


BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
PEERS: dict[str, Callable[[], Attention]] = {
    "triton": lambda: lambda qkv: space_time_attention(qkv, impl="triton"),
    "auto": lambda: space_time_attention,
    "default": lambda: torch_default,
    **dict.fromkeys(BACKENDS, lambda: torch_default),
    "flex": flex,
    "formula": lambda: reference.space_time_attention,
}
FUSED = ("triton", "cudnn", "flash", "efficient", "flex")
# B H N^2 of them: 12 GiB a tensor in bfloat16 at N = 4096, so no longer ones.
WRITES_SCORES = ("math", "formula")


def cuda_cases() -> list[tuple[str, int, int, bool]]:
    return [
        (peer, N, D, graphed)
        for N in LENGTHS
        for D in WIDTHS
        for peer in (*FUSED, *(WRITES_SCORES if N <= 1569 else ()))
        for graphed in ((False, True) if N in SHORT else (False,))
    ]


def step(attention: Attention, qkv: Tensor, backward: bool) -> Callable[[], object]:
    """One forward, or one forward and backward, on `qkv`."""
    if not backward:
        x = qkv.detach()
        return lambda: attention(x)
    dout = torch.randn_like(qkv[:, :, 0])
    return lambda: torch.autograd.grad(attention(qkv), qkv, dout)


def record(benchmark: Any, run: Callable[[], object], qkv: Tensor, backward: bool, rounds: int) -> None:
    B, N, _, H, D = qkv.shape
    benchmark.group = f"{qkv.device.type} N={N} D={D} {'forward + backward' if backward else 'forward'}"
    benchmark.pedantic(run, rounds=rounds, warmup_rounds=2)
    flop = (14 if backward else 4) * N * N * D * B * H
    benchmark.extra_info["TFLOP/s"] = round(flop / benchmark.stats.stats.median / 1e12, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("peer", "N", "D", "graphed"), cuda_cases())
def test_cuda(benchmark: Any, peer: str, N: int, D: int, graphed: bool, backward: bool) -> None:
    """`graphed` replays ten steps recorded as one CUDA graph; the others pay for their launches."""
    torch.manual_seed(0)
    qkv = torch.randn(32, N, 3, HEADS, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    run = step(PEERS[peer](), qkv, backward)
    forced = sdpa_kernel(BACKENDS[peer]) if peer in BACKENDS else contextlib.nullcontext()
    with forced:  # around all rounds: entering it takes as long as a launch
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        benchmark.extra_info["peak MiB"] = (torch.cuda.max_memory_allocated() - before) >> 20
        if graphed:
            run = replay(run)

        def timed() -> None:
            run()
            torch.cuda.synchronize()

        record(benchmark, timed, qkv, backward, rounds=20)
    benchmark.group += ", graphed" if graphed else ""
    benchmark.extra_info["peer"] = peer != "triton"
    if graphed:
        benchmark.extra_info["TFLOP/s"] *= 10
        benchmark.extra_info["steps"] = 10


def replay(run: Callable[[], object]) -> Callable[[], object]:
    """Ten runs as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            run()
    return graph.replay


@pytest.mark.parametrize("peer", ["auto", "formula"])  # one right after the other
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("N", [325, 589, 1569])
def test_cpu(benchmark: Any, peer: str, N: int, backward: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, N, 3, HEADS, 64, requires_grad=True)
    record(benchmark, step(PEERS[peer](), qkv, backward), qkv, backward, rounds=100 if N in SHORT else 10)


@pytest.mark.parametrize("peer", ["triton", "default"])
@pytest.mark.parametrize("backward", [False, True])
def test_dispatch(benchmark: Any, monkeypatch: pytest.MonkeyPatch, peer: str, backward: bool) -> None:
    """What a call costs on the CPU before any kernel: an empty batch launches none."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    qkv = torch.zeros(0, 325, 3, HEADS, 64, requires_grad=True)
    benchmark.group = f"dispatch, {'forward + backward' if backward else 'forward'}"
    benchmark.pedantic(step(PEERS[peer](), qkv, backward), rounds=500, iterations=10, warmup_rounds=20)
