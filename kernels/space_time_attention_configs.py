"""How the space-time attention kernels are launched, by kernel, head width, dtype and device.

Chosen from the resource tables (docs/resources.md: clocks per 128 x 64 scores, bfloat16), not by timing. If
`benchmarks/tune.py` has timed a device, its file in tuned/ takes precedence.

Keys and values are read from the L2 once per block of queries. With 64 rows that takes 1260 clocks, while the
products take 512 (D = 64), so blocks have 128 rows. In 16 bits the frozen maximum saves a quarter to a third
of the instructions in the forward's loop. Every entry builds in Triton 3.6, 3.7 and 3.9.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch

from .launch import Device, of_capability, tuned_config, tuned_key

OP = "space_time_attention"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One way to launch a kernel.

    Attributes:
        rows: rows that a program owns.
        cols: rows per iteration of its loop.
        stages: depth of the software pipeline; 2 means one buffer, so nothing is prefetched.
        warps: warps of 32 threads per program.
        registers: limit per thread, set if it lets one more program onto a multiprocessor.
        frozen: the forward keeps the first tile's maximum and falls back on the online loop if a check fails.
        polynomial: compute a quarter of the forward's exponentials on the multiply-add pipes.
        held: dk and dv keep their own rows of k and v (16 bits) in registers, not in shared memory.
    """

    rows: int
    cols: int
    stages: int
    warps: int
    registers: int | None = None
    frozen: bool = False
    polynomial: bool = False
    held: bool = False


# 16 bits, keyed by padded head width; Hopper (`wgmma`) and Blackwell's sm_100.
_HALF = {
    "fwd": {
        # Exponentials bind (512 clocks, matrix 256). A quarter of them by polynomial would leave 384, but it
        # gained nothing on an H100, and there 64 rows were 1.13 times as fast as 128 at D = 32.
        16: Config(rows=64, cols=128, stages=3, warps=4, registers=168, frozen=True, polynomial=True),
        32: Config(rows=64, cols=64, stages=3, warps=4, frozen=True),
        # Matrix and exponentials take 512 each: a polynomial would raise issue from 408 to 542. Two programs
        # share a multiprocessor, so one's products overlap with the other's exponentials.
        64: Config(rows=128, cols=64, stages=3, warps=8, registers=128, frozen=True),
        128: Config(rows=128, cols=64, stages=2, warps=8, frozen=True),
    },
    "dq": {
        16: Config(rows=64, cols=64, stages=3, warps=4, registers=128),
        32: Config(rows=64, cols=64, stages=3, warps=4, registers=168),
        # Shared memory binds (wgmma operands): 824 clocks; 64 x 64 needs 952.
        64: Config(rows=128, cols=64, stages=3, warps=8, registers=128),
        # 1592 clocks of shared memory; 64 x 32 needs 2416, and 2521 of the L2.
        128: Config(rows=128, cols=64, stages=2, warps=8),
    },
    "dkv": {
        16: Config(rows=64, cols=64, stages=3, warps=4, registers=168),
        # k and v in registers: from shared memory they are read again for every product. On an H100 at
        # N = 1569: 1.11 (D = 32) and 1.10 times as fast as from there, and 64 rows than 128, whose 8 warps
        # wait for each other (1.31 at D = 64).
        32: Config(rows=64, cols=32, stages=3, warps=4, registers=128, held=True),
        64: Config(rows=64, cols=32, stages=3, warps=4, registers=168, held=True),
        128: Config(rows=128, cols=32, stages=2, warps=8),
    },
}
# 16 bits with products by `mma.sync` (sm_80, 86, 89, 120): operands go through registers, so the limits above
# would leave too few; products take at least twice the clocks and bind from D = 64 on.
_HALF_MMA_SYNC = {
    "fwd": {
        16: Config(rows=128, cols=64, stages=3, warps=8, frozen=True),
        32: Config(rows=128, cols=64, stages=3, warps=8, frozen=True),
        64: Config(rows=128, cols=64, stages=3, warps=8, frozen=True),
        128: Config(rows=128, cols=32, stages=3, warps=8, frozen=True),
    },
    "dq": {
        16: Config(rows=128, cols=64, stages=3, warps=8),
        32: Config(rows=128, cols=64, stages=3, warps=8),
        64: Config(rows=128, cols=64, stages=3, warps=8),
        128: Config(rows=64, cols=32, stages=3, warps=4),
    },
    "dkv": {
        16: Config(rows=64, cols=64, stages=3, warps=4),
        32: Config(rows=64, cols=64, stages=3, warps=4),
        64: Config(rows=128, cols=64, stages=3, warps=8),
        128: Config(rows=64, cols=32, stages=2, warps=4),
    },
}
# float32 as six bfloat16 products: three parts of every operand. From D = 64 on, dk and dv together would
# need more registers than exist, so each has its own launch and scores are computed twice.
_PARTS = {
    "fwd": {w: Config(rows=128, cols=32, stages=2, warps=8) for w in (16, 32, 64, 128)},
    "dq": {w: Config(rows=128, cols=32, stages=2, warps=8) for w in (16, 32, 64, 128)},
    "dkv": {w: Config(rows=128, cols=32, stages=2, warps=8) for w in (16, 32)},
    "dk": {w: Config(rows=128, cols=32, stages=2, warps=8) for w in (64, 128)},
    "dv": {w: Config(rows=128, cols=32, stages=2, warps=8) for w in (64, 128)},
}
# With `mma.sync` 32 columns would spill within the loop.
_PARTS_MMA_SYNC = {k: {64: Config(rows=128, cols=16, stages=2, warps=8)} for k in ("dq", "dk")}
# float32 in tf32. At D = 128 larger tiles take 192 KiB.
_TF32 = {w: Config(rows=128, cols=32, stages=2, warps=8) for w in (16, 32, 64)}
_TF32 |= {128: Config(rows=32, cols=32, stages=2, warps=8)}
# float32 on the multiply-add pipes, with whole tiles in registers: 8 warps where 4 would spill hundreds of
# values. At D = 64 and 128 some still spill (docs/resources.md).
_WHOLE = {
    16: Config(rows=32, cols=32, stages=2, warps=4),
    32: Config(rows=32, cols=32, stages=2, warps=4),
    64: Config(rows=32, cols=32, stages=2, warps=8),
    128: Config(rows=32, cols=32, stages=2, warps=8),
}
WIDTHS = tuple(_WHOLE)
FLOAT32_PRECISIONS = ("bf16x6", "tf32", "ieee")


def backward_kernels(width: int, precision: str) -> tuple[str, ...]:
    """The kernels of the backward for a padded head width, in the order in which they are launched."""
    together = precision != "bf16x6" or width in _PARTS["dkv"]
    return ("dq", "dkv") if together else ("dq", "dk", "dv")


def config_for(
    kernel: str, width: int, dtype: torch.dtype, *, precision: str = "ieee", device: Device | None = None
) -> Config:
    """The configuration of a kernel for a padded head width in `WIDTHS`; `device` None means an H100."""
    device = device or of_capability(90)
    mma_sync = device.capability not in (90, 100, 103, 110)
    if dtype == torch.float32:
        if precision != "bf16x6":
            return (_TF32 if precision == "tf32" else _WHOLE)[width]
        exception = _PARTS_MMA_SYNC.get(kernel, {}).get(width) if mma_sync else None
        return exception or _PARTS[kernel][width]
    tuned = tuned_config(Config, device.name, tuned_key(OP, kernel, width))
    return tuned or (_HALF_MMA_SYNC if mma_sync else _HALF)[kernel][width]


@cache  # called at every launch
def smaller(config: Config) -> Config:
    """A fallback if `config` does not fit: no prefetching, smaller tiles."""
    cols = max(16, min(32, config.cols // 2))
    return replace(config, rows=min(64, config.rows), cols=cols, stages=1, warps=4, registers=None)
