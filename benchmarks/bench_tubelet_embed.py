"""Tubelet embedding from bytes against its peers: forward, and forward with the weight's gradient.

Conv3d and unfold + linear, eager and compiled, with the normalisation of the bytes that they need; "alone"
they are given floats. Positions and CLS are added by ours only. On a CUDA device at B = 32 in bfloat16 and
float32; on the CPU small batches in float32. Each result carries TFLOP/s of the product.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hsta_fast import tubelet_embed
from hsta_fast.model import IMAGENET_MEAN, IMAGENET_STD

BRANCHES = {"video": (16, 768), "special": (12, 384)}  # patch, width
FRAMES = (6, 16, 32, 64)
SIDE, DEPTH = 224, 2
Embed = Callable[[Tensor, Tensor, Tensor], Tensor]


def normalised(video: Tensor, dtype: torch.dtype) -> Tensor:
    if video.dtype != torch.uint8:
        return video
    mean, std = (torch.tensor(x, device=video.device).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return ((video.float() / 255 - mean) / std).to(dtype)


def conv3d(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = F.conv3d(normalised(video, weight.dtype), weight, bias, stride=weight.shape[2:])
    return out.flatten(2).transpose(1, 2)


def linear(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = normalised(video, weight.dtype)
    for dim, size in zip((2, 3, 4), weight.shape[2:], strict=True):
        x = x.unfold(dim, size, size)
    return F.linear(x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3), weight.flatten(1), bias)


def ours(impl: str) -> Callable[[], Embed]:
    def make() -> Embed:
        rows: dict[str, Any] = {}

        def run(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if not rows:
                N = (video.shape[2] // DEPTH) * (SIDE // weight.shape[-1]) ** 2
                rows["cls_token"] = weight.new_zeros(1, 1, weight.shape[0])
                rows["pos_embed"] = weight.new_zeros(1, N + 1, weight.shape[0])
            norm: dict[str, Any] = (
                {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if video.dtype == torch.uint8 else {}
            )
            return tubelet_embed(video, weight, bias, **rows, **norm, impl=impl)

        return run

    return make


PEERS: dict[str, Callable[[], Embed]] = {
    "extension": ours("extension"),
    "normalise + conv3d": lambda: conv3d,
    "normalise + linear": lambda: linear,
    "normalise + conv3d compiled": lambda: torch.compile(conv3d),
    "normalise + linear compiled": lambda: torch.compile(linear),
    "conv3d alone": lambda: conv3d,
    "linear alone": lambda: linear,
}


def record(
    benchmark: Any, peer: str, branch: str, B: int, T: int, dtype: torch.dtype, backward: bool, device: str
) -> None:
    torch.manual_seed(0)
    p, C = BRANCHES[branch]
    video = torch.randint(0, 256, (B, 3, T, SIDE, SIDE), dtype=torch.uint8, device=device)
    if peer.endswith("alone"):
        video = normalised(video, dtype)
    weight = (torch.randn(C, 3, DEPTH, p, p, device=device) / 40).to(dtype).requires_grad_(backward)
    bias = torch.zeros(C, device=device, dtype=dtype)
    embed = PEERS[peer]()
    dout = torch.randn_like(embed(video, weight, bias)) if backward else None

    def run() -> None:
        out = embed(video, weight, bias)
        if dout is not None:
            torch.autograd.grad(out, weight, dout)
        if device == "cuda":
            torch.cuda.synchronize()

    what = "forward + weight gradient" if backward else "forward"
    benchmark.group = f"{device} {branch}, B {B}, T {T}, {str(dtype).removeprefix('torch.')}, {what}"
    benchmark.pedantic(run, rounds=7, warmup_rounds=2)
    flop = 2 * B * (T // DEPTH) * (SIDE // p) ** 2 * weight[0].numel() * C * (2 if backward else 1)
    benchmark.extra_info["TFLOP/s"] = round(flop / benchmark.stats.stats.median / 1e12, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("T", FRAMES)
@pytest.mark.parametrize("peer", PEERS)
def bench_cuda(benchmark: Any, peer: str, T: int, branch: str, dtype: torch.dtype, backward: bool) -> None:
    record(benchmark, peer, branch, 32, T, dtype, backward, "cuda")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("branch", "B", "T"),
    [*(("video", 1, T) for T in FRAMES), *(("special", B, 2) for B in (1, 8)), ("special", 1, 16)],
)
@pytest.mark.parametrize("peer", [peer for peer in PEERS if "compiled" not in peer])
def bench_cpu(benchmark: Any, peer: str, branch: str, B: int, T: int, backward: bool) -> None:
    record(benchmark, peer, branch, B, T, torch.float32, backward, "cpu")
