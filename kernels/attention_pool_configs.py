"""How the attention-pooling kernels are launched, by kernel, width and dtype.

Chosen by resource table (docs/resources.md: clocks per 16 tokens on sm_90, bfloat16), not by timing. Shared memory
binds, for each token passes through it as it comes, and twice normalised; the configurations below need at most
1.24 x the clocks that device memory needs for the same tokens (18 bytes a clock).
"""

from dataclasses import dataclass

import torch

MAX_WIDTH = 1024


@dataclass(frozen=True, kw_only=True)
class Config:
    """One way to launch a kernel.

    Attributes:
        tokens: tokens that the loop takes at a time.
        slices: parts that a chunk of columns falls into, one per warp.
        stages: depth of the software pipeline.
        warps: warps of 32 threads per program.
        residents: programs that share a multiprocessor of sm_90.
        registers: the most that a thread may take, where that lets one more program onto a multiprocessor.
    """

    tokens: int
    slices: int
    stages: int
    warps: int
    residents: int
    registers: int | None = None


# Keyed by the largest padded width.
_HALF = {
    "fwd": {
        384: Config(tokens=32, slices=4, stages=3, warps=4, residents=2),
        768: Config(tokens=16, slices=4, stages=3, warps=4, residents=2),
        1024: Config(tokens=16, slices=8, stages=3, warps=8, residents=1),
    },
    "bwd": {
        384: Config(tokens=16, slices=4, stages=3, warps=4, residents=3, registers=168),
        768: Config(tokens=16, slices=4, stages=3, warps=4, residents=2),
        1024: Config(tokens=16, slices=8, stages=3, warps=8, residents=1),
    },
}
_FLOAT32 = {
    384: Config(tokens=16, slices=4, stages=1, warps=4, residents=2),
    768: Config(tokens=16, slices=8, stages=1, warps=8, residents=1),
    1024: Config(tokens=16, slices=8, stages=1, warps=8, residents=1),
}
KERNELS = tuple(_HALF)


def chunk_for(width: int, slices: int) -> int:
    """Columns per chunk: what pads the width least, and of those the most."""
    chunks = [chunk for chunk in (256, 128, 64) if chunk >= 16 * slices]
    return min(chunks, key=lambda chunk: -width % chunk)


def config_for(kernel: str, width: int, dtype: torch.dtype) -> Config:
    """The configuration of kernel "fwd" or "bwd" for a width up to `MAX_WIDTH`."""
    table = _FLOAT32 if dtype == torch.float32 else _HALF[kernel]
    return next(config for widest, config in table.items() if width <= widest)
