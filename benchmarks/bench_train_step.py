"""Forward and training step of whole models on the device at hand: clips per second.

On a CPU small batches in float32; on a CUDA device the paper's model in bfloat16 at growing frame counts.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import hsta_fast
from hsta_fast.model import HSTA

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
# model, batch, frames, side in pixels
CASES = (
    [("hsta_base", 32, T, 224) for T in (6, 16, 32)]
    if CUDA
    else [("hsta_tiny", 16, 6, 112), ("hsta_base", 1, 6, 224), ("hsta_base", 1, 16, 224)]
)


def clips(batch: int, frames: int, side: int) -> dict[str, torch.Tensor]:
    """Random bytes: the arithmetic does not depend on what they show."""
    shape = {"video": frames, "special": 2}
    return {
        name: torch.randint(0, 256, (batch, 3, n, side, side), dtype=torch.uint8, device=DEVICE)
        for name, n in shape.items()
    }


def forward(model: HSTA, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
        return model(**given)


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


@pytest.mark.parametrize(("name", "batch", "frames", "side"), CASES)
@pytest.mark.parametrize("what", ["forward", "train step"])
def bench_model(benchmark: Any, what: str, name: str, batch: int, frames: int, side: int) -> None:
    model = hsta_fast.create_model(name).to(DEVICE).train(what == "train step")
    given = clips(batch, frames, side)
    label = torch.arange(batch, device=DEVICE) % 7
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        if what == "forward":
            with torch.inference_mode():
                forward(model, given)
        else:
            F.cross_entropy(forward(model, given).float(), label).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait()

    benchmark.group = f"{what}, {name}, B {batch}, T {frames}, {side} x {side}"
    benchmark.pedantic(run, rounds=5, warmup_rounds=2)
    benchmark.extra_info["clips_per_second"] = batch / benchmark.stats.stats.median
    if CUDA:
        benchmark.extra_info["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
