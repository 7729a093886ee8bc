"""Time torch's attention backends, each forced, beside our kernels: `impl="auto"` takes the fastest.

Called by tune.py, after the kernels are tuned.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

import hsta_fast
from hsta_fast.files import write_text
from hsta_fast.kernels.launch import TORCH_AND_TRITON, fastest_attention, tuned_path
from hsta_fast.ops.attention_backends import BACKENDS, DIRECTIONS

# (D, B, N) of hsta_base at 224 pixels: the special branch; the video branch at 6, 16, 32 and 64 frames.
SHAPES = ((32, 32, 325), (64, 32, 589), (64, 32, 1569), (64, 8, 3137), (64, 2, 6273))
HEADS = 12
GAIN = 1.03  # a backend must be this much faster than our kernels

Run = Callable[[], Sequence[Tensor]]


def attention(name: str, qkv: Tensor) -> Tensor:
    """Our kernels ("triton") or a backend of torch's, and no other, on (B, N, 3, H, D)."""
    if name == "triton":
        return hsta_fast.space_time_attention(qkv, impl="triton")
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    with sdpa_kernel(BACKENDS[name]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def step(name: str, direction: str, shape: tuple[int, int, int], place: str) -> Run:
    """The forward, or the forward and the gradient of the packed projection, in bfloat16."""
    D, B, N = shape
    torch.manual_seed(0)
    qkv = torch.randn(B, N, 3, HEADS, D, device=place).bfloat16()
    dout = torch.randn(B, N, HEADS, D, device=place).bfloat16()

    def forward() -> Sequence[Tensor]:
        with torch.inference_mode():
            return [attention(name, qkv)]

    def training() -> Sequence[Tensor]:
        leaf = qkv.detach().requires_grad_()
        out = attention(name, leaf)
        return [out.detach(), *torch.autograd.grad(out, leaf, dout)]

    return forward if direction == "forward" else training


def fastest(times: dict[str, float]) -> str:
    """The name of the fastest; our kernels unless another is faster by more than noise."""
    best = min(times, key=times.__getitem__)
    ours = times.get("triton")
    return "triton" if ours is not None and times[best] * GAIN >= ours else best


def time_backends(
    name: str,
    until: float,
    *,
    seconds_of: Callable[[Run], float],
    alike: Callable[[Sequence[Tensor], Sequence[Tensor]], bool],
    note: Callable[..., None],
    folder: Path | None = None,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    place: str = "cuda",
) -> dict[str, dict[str, str]]:
    """Time every shape in both directions, until `time.monotonic()` is `until`; returns what was written.

    Args:
        name: of the device.
        until: no further shape is begun then.
        seconds_of: seconds of a step.
        alike: whether results are those of our kernels; a backend with others is left out.
        note: writes an entry of `make gpu`: note(case, **facts).
        folder: of the device's file; None: the one that launchers read.
        shapes: (D, B, N) each.
        place: the device of the tensors.
    """
    found: dict[str, dict[str, str]] = {}
    milliseconds: dict[str, dict[str, float]] = {}
    for shape in shapes:
        for direction in DIRECTIONS:
            case = f"attention {direction} D {shape[0]} N {shape[2]}"
            if time.monotonic() > until:
                note(case, skipped="no time left")
                continue
            times, failures = _times(direction, shape, place, seconds_of, alike)
            if "triton" not in times:
                note(case, failed=failures.get("triton", "our kernels do not run"))
                continue
            winner = fastest(times)
            found.setdefault(f"{direction} {shape[0]}", {})[str(shape[2])] = winner
            milliseconds[case] = {key: round(seconds * 1e3, 4) for key, seconds in times.items()}
            note(case, ms=milliseconds[case][winner], fastest=winner, all=milliseconds[case], **failures)
    if found:
        _write(folder, name, found, milliseconds)
    return found


def _times(
    direction: str,
    shape: tuple[int, int, int],
    place: str,
    seconds_of: Callable[[Run], float],
    alike: Callable[[Sequence[Tensor], Sequence[Tensor]], bool],
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of our kernels and of each backend, and why others have none."""
    times: dict[str, float] = {}
    failures: dict[str, str] = {}
    expected: Sequence[Tensor] = []
    for name in ("triton", *BACKENDS):
        try:
            run = step(name, direction, shape, place)
            came = run()
            if name == "triton":
                expected = came
            elif not alike(came, expected):
                failures[name] = "its results differ"
                continue
            del came
            times[name] = statistics.median(seconds_of(run) for _ in range(3))
        except Exception as error:  # such as a backend that does not take the shape, or too little memory
            failures[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
            if name == "triton":
                break
    return times, failures


def _write(
    folder: Path | None, name: str, found: dict[str, Any], milliseconds: dict[str, dict[str, float]]
) -> None:
    """Add to the device's file; entries of other versions, and of shapes not timed now, are kept."""
    path = (folder or tuned_path(name).parent) / tuned_path(name).name
    held: dict[str, Any] = {"device": name, "triton": {}, "milliseconds": {}}
    held |= json.loads(path.read_text()) if path.exists() else {}
    table = held.setdefault("attention", {}).setdefault(TORCH_AND_TRITON, {})
    for key, timed in found.items():
        table.setdefault(key, {}).update(timed)
    held["milliseconds"].setdefault(TORCH_AND_TRITON, {}).update(milliseconds)
    write_text(path, json.dumps(held, indent=1) + "\n")
    fastest_attention.cache_clear()
