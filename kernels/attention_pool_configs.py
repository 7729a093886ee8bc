"""How the attention-pooling kernels are launched, by kernel, width and dtype.

Chosen by resource table (docs/resources.md: clocks per 16 tokens on sm_90, bfloat16), not by timing. A
token passes through shared memory as it comes and, normalised, twice more: at C = 384 and 768 that pipe
stays within 1.12 x the clocks that device memory takes for the same tokens. What ranks higher fetches
nothing ahead (1 stage: the table sees no latency), spills in one of Triton 3.6.0, 3.7.1 and 3.9.0, or has
twice the programs and so twice the partial sums (2 warps).
"""

from dataclasses import dataclass, replace

import torch

MAX_WIDTH = 1024
# Bytes of shared memory per program: on sm_86, sm_89 and sm_120; on all others from sm_80 on.
SMALL, LARGE = 99 * 1024, 163 * 1024


@dataclass(frozen=True, kw_only=True)
class Config:
    """One way to launch a kernel.

    Attributes:
        tokens: tokens that the loop takes at a time.
        chunk: columns that are taken at a time, at most.
        slices: parts that a chunk of columns falls into, one per warp.
        stages: depth of the software pipeline.
        warps: warps of 32 threads per program.
        residents: programs that share a multiprocessor of sm_90.
        hold: whether queries stay in shared memory over the loop, once per product; or are read per tile.
    """

    tokens: int
    chunk: int
    slices: int
    stages: int
    warps: int
    residents: int
    hold: bool = True


# Keyed by the largest width.
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
}
# Bound by shared memory, through which multiply-adds take their operands, at about 4 x the clocks of device
# memory; the backward spills. Queries held would take 240 KiB at a width of 768.
_FLOAT32 = {
    384: Config(tokens=16, chunk=64, slices=4, stages=1, warps=8, residents=1, hold=False),
    768: Config(tokens=16, chunk=256, slices=8, stages=1, warps=8, residents=1, hold=False),
    MAX_WIDTH: Config(tokens=16, chunk=128, slices=8, stages=1, warps=8, residents=1, hold=False),
}


def chunk_for(width: int, config: Config) -> int:
    """Columns per chunk: what pads the width least, and of those the most."""
    chunks = [chunk for chunk in (256, 128, 64, 32) if 16 * config.slices <= chunk <= config.chunk]
    return min(chunks, key=lambda chunk: -width % chunk)


def config_for(kernel: str, width: int, dtype: torch.dtype, *, small: bool = False) -> Config:
    """The configuration of kernel "fwd" or "bwd" for a width up to `MAX_WIDTH`.

    small: for devices of `SMALL` shared memory, where neither queries nor tokens fetched ahead fit.
    """
    table = _FLOAT32 if dtype == torch.float32 else _HALF[kernel]
    if small:
        return replace(table[MAX_WIDTH], stages=1, hold=False)
    return next(config for widest, config in table.items() if width <= widest)


def leaving_sums(config: Config, width: int) -> Config:
    """`config` of the backward where sums over the rows are a step of their own.

    Without the sums the compiler keeps more of a tile in shared memory: above a width of 768, with tokens
    fetched ahead, more than sm_80 has.
    """
    return replace(config, stages=1) if width > 768 else config
