"""Tubelet embedding from bytes against its peers: forward, and forward with the weight's gradient.

The peers are Conv3d and unfold + linear, with the normalisation of bytes that they need. Only our op adds
positions and CLS. On a CUDA device (`cuda_cases`, for `make gpu`): B = 32 in bfloat16, unfold + linear also
compiled. On the CPU: small batches in float32. Operations are those of the product.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case, Place, Step
from benchmarks.compare import OURS, Make
from hsta_fast import tubelet_embed
from hsta_fast.model import IMAGENET_MEAN, IMAGENET_STD

BRANCHES = {"video": (16, 768), "special": (12, 384)}  # patch, width
CPU_SHAPES = [("video", 1, 6), ("video", 1, 16), ("video", 1, 64), ("special", 1, 2), ("special", 8, 2)]
COMPILED_ON_THE_CPU = [("video", 1, 16)]  # each costs two compilations
SIDE, DEPTH = 224, 2
# Branch, frames. Only the longer clips are also compiled, which costs two compilations.
CUDA_SHAPES = [("video", 6), ("video", 16), ("special", 2)]
COMPILED = [("video", 16)]
BATCH = 32
Embed = Callable[[Tensor, Tensor, Tensor], Tensor]


def normaliser(device: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    """Normalise bytes, pass floats through. The constants are on the device before a step is timed."""
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))

    def normalised(video: Tensor, dtype: torch.dtype) -> Tensor:
        return video if video.dtype != torch.uint8 else ((video.float() / 255 - mean) / std).to(dtype)

    return normalised


def conv3d(device: str) -> Embed:
    normalised = normaliser(device)

    def run(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = F.conv3d(normalised(video, weight.dtype), weight, bias, stride=weight.shape[2:])
        return out.flatten(2).transpose(1, 2)

    return run


def linear(device: str) -> Embed:
    normalised = normaliser(device)

    def run(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = normalised(video, weight.dtype)
        for dim, size in zip((2, 3, 4), weight.shape[2:], strict=True):
            x = x.unfold(dim, size, size)
        return F.linear(x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3), weight.flatten(1), bias)

    return run


def ours(impl: str) -> Callable[[str], Embed]:
    def make(device: str) -> Embed:
        rows: dict[str, Any] = {}

        def run(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if not rows:
                N = (video.shape[2] // DEPTH) * (video.shape[-1] // weight.shape[-1]) ** 2
                rows["cls_token"] = weight.new_zeros(1, 1, weight.shape[0])
                rows["pos_embed"] = weight.new_zeros(1, N + 1, weight.shape[0])
            norm: dict[str, Any] = (
                {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if video.dtype == torch.uint8 else {}
            )
            return tubelet_embed(video, weight, bias, **rows, **norm, impl=impl)

        return run

    return make


PEERS: dict[str, Callable[[str], Embed]] = {  # called with the device
    "extension": ours("extension"),
    "torch": ours("torch"),
    "normalise + conv3d": conv3d,
    "normalise + linear": linear,
}


def make_inputs(
    branch: str, B: int, T: int, side: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(video, weight, bias); the video is uint8."""
    torch.manual_seed(0)
    p, C = BRANCHES[branch]
    video = torch.randint(0, 256, (B, 3, T, side, side), dtype=torch.uint8, device=device)
    weight = (torch.randn(C, 3, DEPTH, p, p, device=device) / 40).to(dtype)
    return video, weight, torch.zeros(C, device=device, dtype=dtype)


def product_flop(branch: str, B: int, T: int, backward: bool) -> int:
    p, C = BRANCHES[branch]
    return 2 * B * (T // DEPTH) * (SIDE // p) ** 2 * 3 * DEPTH * p * p * C * (2 if backward else 1)


def step(embed: Embed, video: Tensor, weight: Tensor, bias: Tensor, backward: bool) -> Step:
    if not backward:
        return lambda: embed(video, weight, bias)
    weight.requires_grad_()
    dout = torch.randn_like(embed(video, weight, bias))
    return lambda: torch.autograd.grad(embed(video, weight, bias), weight, dout)


def _maker(name: str, branch: str, T: int, backward: bool) -> Callable[[Place], Step]:
    def make(place: Place) -> Step:
        if name.endswith("compiled"):
            embed = place.compile(linear(place.device))
        else:  # the CPU stand-in builds no extension
            embed = PEERS["torch" if place.tiny and name == "extension" else name](place.device)
        B, side = (1, 48) if place.tiny else (BATCH, SIDE)
        dtype = torch.float32 if place.tiny else torch.bfloat16
        return step(embed, *make_inputs(branch, B, T, side, dtype, place.device), backward)

    return make


def cuda_cases() -> Iterator[Case]:
    for branch, T in CUDA_SHAPES:
        C = BRANCHES[branch][1]
        rows = BATCH * (T // DEPTH) * (SIDE // BRANCHES[branch][0]) ** 2
        for backward in (False, True):
            names = ["extension", "normalise + conv3d", "normalise + linear"]
            for name in names + ["normalise + linear compiled"] * ((branch, T) in COMPILED):
                yield Case(
                    group=f"tubelets {branch} T={T} B={BATCH} "
                    f"{'forward + weight gradient' if backward else 'forward'}",
                    name=name,
                    peer=name != "extension",
                    make=_maker(name, branch, T, backward),
                    compiled=name.endswith("compiled"),
                    extension=name == "extension",
                    flop=product_flop(branch, BATCH, T, backward),
                    # Bytes of the video and of 16-bit tokens, once per direction.
                    size=(BATCH * 3 * T * SIDE * SIDE + 2 * rows * C) * (2 if backward else 1),
                )


CPU_PEERS = {"published": conv3d, "linear": linear}  # normalisation, then Conv3d or unfold + linear


def _on_the_cpu(embed: Embed, branch: str, B: int, T: int, backward: bool) -> Make:
    return lambda: step(embed, *make_inputs(branch, B, T, SIDE, torch.float32, "cpu"), backward)


def _group(branch: str, B: int, T: int, backward: bool) -> str:
    return f"tubelet_embed, {branch}, B {B}, T {T}, forward{' + weight gradient' * backward}"


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("branch", "B", "T"), CPU_SHAPES)
def bench_cpu(compare: Callable[..., None], branch: str, B: int, T: int, backward: bool) -> None:
    members = {OURS: ours("auto")} | CPU_PEERS
    compare(
        _group(branch, B, T, backward),
        {name: _on_the_cpu(make("cpu"), branch, B, T, backward) for name, make in members.items()},
        flop=product_flop(branch, B, T, backward),
    )


@pytest.mark.parametrize(("branch", "B", "T"), COMPILED_ON_THE_CPU)
def bench_compiled(compare: Callable[..., None], branch: str, B: int, T: int) -> None:
    members = {OURS: _on_the_cpu(ours("auto")("cpu"), branch, B, T, True)}
    for name, make in CPU_PEERS.items():
        compiled = torch.compile(make("cpu"), dynamic=False)
        members[f"{name} compiled"] = _on_the_cpu(compiled, branch, B, T, True)
    flop = product_flop(branch, B, T, True)
    compare(f"{_group(branch, B, T, True)}, compiled peers", members, flop=flop)
