"""How the attention-pooling kernels are launched, by kernel, width, dtype and device.

Chosen from the resource tables (docs/resources.md: clocks per 16 tokens on sm_90, bfloat16), not by timing.
If `benchmarks/tune.py` has timed a device, its file in tuned/ takes precedence. A token passes through shared
memory once when loaded and, normalised, twice more: at C = 384 and 768 that pipe stays within 1.12 x the
clocks of device memory for the same tokens. Variants that rank higher in the tables were not chosen, because
they prefetch nothing (1 stage: the tables ignore latency), spill in one of Triton 3.6.0, 3.7.1 and 3.9.0, or
have twice the programs and so twice the partial sums (2 warps).
"""

from dataclasses import dataclass, replace
from functools import cache

import torch

from .launch import Device, of_capability, tuned_config, tuned_key

OP = "attention_pool"
MAX_WIDTH = 1024
# For the kernel that sums rows: two tiles of 4 KiB in flight, 16 x 64 sums in the registers of 4 warps.
SUMS = {"TOKENS": 32, "COLUMNS": 64, "num_warps": 4, "num_stages": 3}


@dataclass(frozen=True, kw_only=True)
class Config:
    """One way to launch a kernel.

    Attributes:
        tokens: tokens per iteration of the loop.
        chunk: the most columns per chunk.
        slices: slices that a chunk of columns is divided into, one per warp.
        stages: depth of the software pipeline.
        warps: warps of 32 threads per program.
        residents: programs that share a multiprocessor.
        hold: keep queries in shared memory over the loop, once per product; else read them per tile.
    """

    tokens: int
    chunk: int
    slices: int
    stages: int
    warps: int
    residents: int
    hold: bool = True


# Keyed by the largest width. "bwd, two steps" leaves the sums over the rows to a separate kernel; without
# them the compiler keeps more of a tile in shared memory.
_HALF = {
    "fwd": {
        384: Config(tokens=32, chunk=256, slices=4, stages=3, warps=4, residents=2),
        768: Config(tokens=16, chunk=256, slices=4, stages=3, warps=4, residents=2),
        MAX_WIDTH: Config(tokens=16, chunk=256, slices=8, stages=3, warps=8, residents=1),
    },
    "bwd": {
        384: Config(tokens=16, chunk=128, slices=4, stages=3, warps=4, residents=2),
        # Chunks of 256 spill: a chunk's gradient is held in float32 beside the queries'.
        768: Config(tokens=16, chunk=64, slices=4, stages=3, warps=4, residents=2),
        MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=3, warps=8, residents=1),
    },
    "bwd, two steps": {
        384: Config(tokens=16, chunk=128, slices=4, stages=3, warps=4, residents=2),
        768: Config(tokens=16, chunk=64, slices=4, stages=3, warps=4, residents=1),
        # Prefetching tokens would need more shared memory than sm_80 has.
        MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=1, warps=8, residents=1),
    },
}
# Tokens as they are, not normalised: without float32 copies of a tile the registers of 4 warps suffice. On an
# H100 with 16 queries, C = 1024 and B N = 131072: forward 0.116 ms instead of 0.173, backward 0.45 instead of
# 0.65; backward at C = 768 0.122 instead of 0.176.
_HALF_PLAIN = {
    "fwd": {MAX_WIDTH: Config(tokens=16, chunk=256, slices=4, stages=3, warps=4, residents=1)},
    "bwd": {
        768: Config(tokens=16, chunk=256, slices=4, stages=3, warps=4, residents=1),
        MAX_WIDTH: Config(tokens=16, chunk=256, slices=4, stages=3, warps=4, residents=1),
    },
}
# For 99 KiB of shared memory (sm_86, sm_89, sm_120).
_HALF_SMALL = {
    "fwd": {
        384: Config(tokens=32, chunk=256, slices=4, stages=3, warps=4, residents=1),  # 92 KiB
        768: Config(tokens=16, chunk=256, slices=4, stages=2, warps=4, residents=1),  # 80 KiB
        MAX_WIDTH: Config(tokens=16, chunk=256, slices=8, stages=1, warps=8, residents=1, hold=False),
    },
    "bwd": {
        384: Config(tokens=16, chunk=128, slices=4, stages=3, warps=4, residents=1),  # 53 KiB
        # Held queries alone take 100 KiB.
        768: Config(tokens=16, chunk=64, slices=4, stages=2, warps=4, residents=1, hold=False),  # 96 KiB
        MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=1, warps=8, residents=1, hold=False),
    },
    "bwd, two steps": {
        384: Config(tokens=16, chunk=128, slices=4, stages=3, warps=4, residents=1),  # 61 KiB
        768: Config(tokens=16, chunk=64, slices=4, stages=1, warps=4, residents=2, hold=False),
        MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=1, warps=8, residents=1, hold=False),
    },
}
# float32 as six bfloat16 products: bound by instruction issue and by reading queries again from the caches,
# at 1.5 (forward) and 1.9 (backward) x the clocks of device memory. Held queries would take three parts each.
_PARTS = {
    "fwd": {
        384: Config(tokens=16, chunk=128, slices=4, stages=1, warps=4, residents=2, hold=False),
        MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=1, warps=8, residents=1, hold=False),
    },
    "bwd": {
        # From C = 768 on some one-step kernels spill within the loop.
        MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=1, warps=8, residents=1, hold=False),
    },
}
# float32 on the multiply-add pipes: bound by shared memory, which supplies the operands, at about 4 x the
# clocks of device memory; the backward spills. Held queries would take 240 KiB at a width of 768.
_WHOLE = {
    384: Config(tokens=16, chunk=64, slices=4, stages=1, warps=8, residents=1, hold=False),
    768: Config(tokens=16, chunk=256, slices=8, stages=1, warps=8, residents=1, hold=False),
    MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=1, warps=8, residents=1, hold=False),
}


def chunk_for(width: int, config: Config) -> int:
    """Columns per chunk: the size with the least padding of the width, and of equal ones the largest."""
    chunks = [chunk for chunk in (256, 128, 64, 32) if 16 * config.slices <= chunk <= config.chunk]
    return min(chunks, key=lambda chunk: -width % chunk)


def config_for(
    kernel: str,
    width: int,
    dtype: torch.dtype,
    *,
    normalize: bool = True,
    precision: str = "ieee",
    device: Device | None = None,
) -> Config:
    """The configuration of "fwd", "bwd" or "bwd, two steps" for a width up to `MAX_WIDTH`.

    `normalize`: whether tokens are normalised. `device` None means an H100.
    """
    device = device or of_capability(90)
    if dtype == torch.float32:
        table = _PARTS[kernel.removesuffix(", two steps")] if precision == "bf16x6" else _WHOLE
    else:
        table = (_HALF_SMALL if device.small else _HALF)[kernel]
    widest = next(widest for widest in table if width <= widest)
    if dtype == torch.float32:
        return table[widest]
    if not normalize and not device.small and widest in _HALF_PLAIN.get(kernel, {}):
        return _HALF_PLAIN[kernel][widest]
    return tuned_config(Config, device.name, tuned_key(OP, kernel, widest)) or table[widest]


@cache  # called at every launch
def smaller(config: Config) -> Config:
    """A fallback if `config` does not fit: no prefetching, no held queries."""
    return replace(config, stages=1, hold=False)
