"""Where torch's attention was timed faster than our kernels: `impl="auto"` then forces the fastest backend.

`benchmarks/tune.py` times each backend of scaled_dot_product_attention, forced, beside the Triton kernels, at
the model's lengths and in both directions, and writes the fastest into kernels/tuned/<device>.json. Torch's
own choice of a backend is not among them: it can leave out the fastest (by public reports cuDNN, on Hopper).
"""

from itertools import pairwise

import torch
from torch.nn.attention import SDPBackend

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
DIRECTIONS = ("forward", "training")  # without and with a gradient, the backward included


def _timed(device: torch.device, direction: str, width: int) -> tuple[tuple[int, str], ...]:
    """(N, what was fastest), by N; empty if nothing was timed."""
    from ..kernels.launch import device_of, fastest_attention

    return fastest_attention(device_of(device).name).get(f"{direction} {width}", ())


# What torch.compiler.assume_constant_result does, which imports Triton.
_timed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def timed_backend(device: torch.device, width: int, length: int, needs_grad: bool) -> str | None:
    """The name of torch's backend if one was fastest at this head width and about this length N; else None.

    Of the lengths that were timed, the nearest counts, by ratio.
    """
    timed = _timed(device, "training" if needs_grad else "forward", width)
    if not timed:
        return None
    fastest = timed[-1][1]
    for (shorter, name), (longer, _) in pairwise(timed):
        if length * length <= shorter * longer:
            fastest = name
            break
    return fastest if fastest in BACKENDS else None


def forced_order(backend: str) -> list[SDPBackend]:
    """The backend first, then the others: for inputs that it does not take."""
    return [BACKENDS[backend], *(b for b in BACKENDS.values() if b != BACKENDS[backend]), SDPBackend.MATH]


def timed_faster(device: torch.device, widths: tuple[int, ...] = (64, 32)) -> str:
    """Where torch's backends were timed faster, as `hsta_fast.info()` shows it; "" if nowhere."""
    found = [
        f"{name} at D {width}, N {length}, {direction}"
        for width in widths
        for direction in DIRECTIONS
        for length, name in _timed(device, direction, width)
        if name in BACKENDS
    ]
    return f"; torch's where timed faster: {', '.join(found)}" if found else ""
