"""How the space-time attention kernels are launched, by kernel, head width and dtype.

Chosen by resource table (docs/resources.md: clocks per 128 x 64 scores on sm_90, bfloat16), not by timing.
In 16 bits the frozen maximum takes a quarter to a third of the instructions off the forward's loop at D = 32
and 64, which then waits for exponentials and products. In true float32 operands come from shared memory one
by one, and that binds, so there the online form stays. One table serves all architectures and Triton
versions: every entry builds for sm_80 to sm_120 in Triton 3.6, 3.7 and 3.9, and until a GPU has timed them
there is nothing by which to tell them apart.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Config:
    """One way to launch a kernel.

    Attributes:
        rows: rows that a program owns.
        cols: rows that its loop takes at a time.
        stages: depth of the software pipeline; 2 is one buffer, so nothing is fetched ahead.
        warps: warps of 32 threads per program.
        registers: the most that a thread may take, where that lets one more program onto a multiprocessor.
        frozen: whether the forward keeps the first tile's maximum, the online loop being its checked way out.
        polynomial: whether a quarter of the forward's exponentials goes to the multiply-add pipes.
    """

    rows: int
    cols: int
    stages: int
    warps: int
    registers: int | None = None
    frozen: bool = False
    polynomial: bool = False


# Keyed by padded head width. Every entry fits the 99 KiB of shared memory that sm_86, sm_89 and sm_120 have.
_HALF = {
    "fwd": {
        # Exponentials bind (512 clocks, matrix 256): a quarter by polynomial leaves 384, and issue at 468.
        16: Config(rows=64, cols=128, stages=3, warps=4, registers=168, frozen=True, polynomial=True),
        32: Config(rows=64, cols=128, stages=3, warps=4, registers=168, frozen=True, polynomial=True),
        # Matrix and exponentials at 512 each: a polynomial would raise issue from 438 to 566. Three programs
        # share a multiprocessor, so that one's products run under another's exponentials.
        64: Config(rows=64, cols=64, stages=3, warps=4, registers=168, frozen=True),
        128: Config(rows=128, cols=64, stages=2, warps=8, frozen=True),
    },
    "dq": {
        16: Config(rows=64, cols=64, stages=3, warps=4, registers=128),
        32: Config(rows=64, cols=64, stages=3, warps=4, registers=128),
        # Shared memory binds (wgmma operands): 824 clocks, where 64 x 64 needs 952.
        64: Config(rows=128, cols=64, stages=3, warps=8, registers=128),
        128: Config(rows=64, cols=32, stages=3, warps=4),
    },
    "dkv": {
        16: Config(rows=64, cols=64, stages=3, warps=4, registers=168),
        32: Config(rows=64, cols=64, stages=3, warps=4, registers=168),
        # Two programs of 4 warps, of which one computes while the other waits at its barrier, before one
        # program of 8 warps on 128 x 64 that needs 10 % fewer clocks.
        64: Config(rows=64, cols=64, stages=3, warps=4),
        128: Config(rows=64, cols=32, stages=2, warps=4),
    },
}
# Products on the multiply-add pipes keep whole tiles in registers: 8 warps where 4 spill by the hundred. At
# D = 64 and 128 some still spill (docs/resources.md).
_FLOAT32 = {
    16: Config(rows=32, cols=32, stages=2, warps=4),
    32: Config(rows=32, cols=32, stages=2, warps=4),
    64: Config(rows=32, cols=32, stages=2, warps=8),
    128: Config(rows=32, cols=32, stages=2, warps=8),
}
KERNELS = tuple(_HALF)
WIDTHS = tuple(_FLOAT32)


def config_for(kernel: str, width: int, dtype: torch.dtype) -> Config:
    """The configuration of kernel "fwd", "dq" or "dkv" for a padded head width in `WIDTHS`."""
    return _FLOAT32[width] if dtype == torch.float32 else _HALF[kernel][width]
