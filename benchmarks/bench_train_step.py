"""Forward and training step of whole models: clips per second.

On the CPU: small batches in float32. On a CUDA device (`cuda_cases`, for `make gpu`): the paper's model in
bfloat16 against the published formulation in ordinary modules, eager and compiled block by block.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hsta_fast
from benchmarks.cases import Case, Place, Step
from hsta_fast.published import PublishedHSTA

FRAMES, BATCH = (6, 16), 32
COMPILED = (16,)  # costs four compilations per direction
# model, batch, frames, side in pixels
CPU_CASES = [("hsta_tiny", 16, 6, 112), ("hsta_base", 1, 6, 224), ("hsta_base", 1, 16, 224)]


def clips(batch: int, frames: int, side: int, device: str) -> dict[str, Tensor]:
    """Random bytes: the time does not depend on their values."""
    shape = {"video": frames, "special": 2}
    return {
        name: torch.randint(0, 256, (batch, 3, n, side, side), dtype=torch.uint8, device=device)
        for name, n in shape.items()
    }


def step(model: nn.Module, given: dict[str, Tensor], train: bool) -> Step:
    """A forward in inference mode, or a whole training step; under bfloat16 autocast on CUDA."""
    video = given["video"]
    device = video.device.type
    label = torch.arange(video.shape[0], device=device) % 7
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train(train)

    def forward() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return model(**given)

    def run() -> None:
        if not train:
            with torch.inference_mode():
                forward()
            return
        F.cross_entropy(forward().float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def _maker(name: str, T: int, train: bool) -> Callable[[Place], Step]:
    def make(place: Place) -> Step:
        torch.manual_seed(0)
        with torch.device(place.device):
            model = hsta_fast.create_model("hsta_tiny" if place.tiny else "hsta_base")
        given = clips(*(1, T, 32) if place.tiny else (BATCH, T, 224), place.device)
        if name == "ours":
            return step(model, given, train)
        peer = PublishedHSTA(model, attention="sdpa")
        if name.endswith("compiled"):
            peer.compile_blocks(place.backend)
        return step(peer, given, train)

    return make


def cuda_cases() -> Iterator[Case]:
    for T in FRAMES:
        for train in (False, True):
            for name in ("ours", "published", *(("published compiled",) if T in COMPILED else ())):
                yield Case(
                    group=f"hsta_base T={T} B={BATCH} {'train step' if train else 'forward'}",
                    name=name,
                    peer=name != "ours",
                    make=_maker(name, T, train),
                    compiled=name.endswith("compiled"),
                )


@pytest.mark.parametrize(("name", "batch", "frames", "side"), CPU_CASES)
@pytest.mark.parametrize("what", ["forward", "train step"])
def bench_model(benchmark: Any, what: str, name: str, batch: int, frames: int, side: int) -> None:
    run = step(hsta_fast.create_model(name), clips(batch, frames, side, "cpu"), what == "train step")
    benchmark.group = f"{what}, {name}, B {batch}, T {frames}, {side} x {side}"
    benchmark.pedantic(run, rounds=5, warmup_rounds=2)
    benchmark.extra_info["clips_per_second"] = batch / benchmark.stats.stats.median
