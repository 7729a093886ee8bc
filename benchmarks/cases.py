"""One benchmark case on a CUDA device: how it is compiled, timed, and what counts as a refusal.

Times are medians of CUDA events around one step, with the second-level cache overwritten before each: what a
step reads comes from device memory. The device then spins, and launches queue up behind that: a step's
dispatch on the CPU is hidden as long as it takes less than this head start. Else the figure is marked.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel

from hsta_fast.extension import missing

Step = Callable[[], object]
FLUSH = 1 << 29  # bytes: several times any second-level cache
_SPIN = 6_000_000  # clocks of the device: 3 ms at 2 GHz, where CSTA and its backward take 1.1 ms to dispatch
_SECONDS = 0.25  # of a case's timed rounds, which are 5 to 30
# Torch's words where a forced backend, or all of them, cannot take the shape, dtype or device.
_REFUSALS = (
    "No available kernel",
    "No viable backend",
    "cuDNN Frontend error",
    "no valid execution plans",
    "No valid engine configs",
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where cases run: on a CUDA device, or `tiny` on the CPU in its place, to show that all of them run."""

    device: str = "cuda"
    tiny: bool = False
    backend: str = "inductor"

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False, backend=self.backend)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One function at one shape.

    Attributes:
        group: the shape and the direction, which its peers share.
        name: the function.
        peer: whether it is somebody else's.
        make: what allocates the inputs and returns the step that is timed.
        compiled: whether torch.compile must have taken part.
        extension: whether it is skipped where the extension cannot be built for the device.
        forced: the backend of scaled_dot_product_attention that is forced.
        flop: operations of one step.
        size: bytes of device memory that one step must move.
    """

    group: str
    name: str
    peer: bool
    make: Callable[[Place], Step]
    compiled: bool = False
    extension: bool = False
    forced: SDPBackend | None = None
    flop: float = 0.0
    size: float = 0.0

    def __str__(self) -> str:
        return f"{self.group}, {self.name}"


@contextlib.contextmanager
def own_compilation() -> Iterator[None]:
    """Nothing compiled before is used, a function past its recompile limit raises; so does one not compiled.

    Dynamo turns a function that was compiled for several shapes dynamic, and past a limit runs it eagerly,
    with no word: its times would be called those of a compiled peer.
    """
    torch._dynamo.reset()
    counters.clear()
    # Donated buffers are freed by a backward, and could not be timed again on the same graph.
    donated = torch._functorch.config.patch(donated_buffer=False)
    with donated, torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    if not counters["stats"]["unique_graphs"]:
        raise RuntimeError("no graph was compiled: this would be the time of the eager function")


def device_is_dead() -> bool:
    """Whether the CUDA device answers this process no more, as after an illegal access."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def refusal(error: BaseException) -> str | None:
    """The first line of torch's refusal to run a shape; None where the error is another."""
    refused = isinstance(error, NotImplementedError) or any(words in str(error) for words in _REFUSALS)
    return str(error).strip().splitlines()[0] if refused else None


def measure(case: Case, place: Place) -> dict[str, Any]:
    """The entry of one case: "ms" and what follows from it, or why there is none."""
    entry: dict[str, Any] = {"case": str(case), "group": case.group, "name": case.name, "peer": case.peer}
    lacks = missing(place.device) if case.extension and not place.tiny else None
    if lacks is not None:
        return entry | {"skipped": f"no extension: {lacks}"}
    compilation = own_compilation() if case.compiled else contextlib.nullcontext()
    forced = sdpa_kernel(case.forced) if case.forced is not None else contextlib.nullcontext()
    start = time.perf_counter()
    try:
        with compilation, forced:
            step = case.make(place)
            step()
            figures = _times_on_cuda(step) if place.device == "cuda" else _times_on_the_cpu(step)
    except Exception as error:  # whatever one case does, the others are timed
        refused = refusal(error) if case.peer else None
        if refused is not None:
            return entry | {"refuses": refused}
        return entry | {"failed": f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:400]}
    seconds = figures["ms"] / 1e3
    if case.flop and not place.tiny:
        figures["TFLOP/s"] = case.flop / seconds / 1e12
    if case.size and not place.tiny:
        figures["GB/s"] = case.size / seconds / 1e9
    return entry | figures | {"seconds": round(time.perf_counter() - start, 2)}


def _times_on_cuda(step: Step) -> dict[str, Any]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) >> 20
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    head_start = _head_start(flush)
    once, _ = round_on_cuda(step, flush)
    rounds = max(5, min(30, int(_SECONDS * 1e3 / (head_start + once))))
    times, dispatches = zip(*(round_on_cuda(step, flush) for _ in range(rounds)), strict=True)
    quarters = statistics.quantiles(times, n=4)
    dispatch = statistics.median(dispatches)
    figures = {
        "ms": statistics.median(times),
        "quartiles_ms": [quarters[0], quarters[2]],
        "dispatch ms": dispatch,
        "rounds": rounds,
        "peak MiB": peak,
        "L2 flushed": True,
    }
    return figures | ({"dispatch shows": True} if dispatch > head_start else {})


def _occupy(flush: Tensor) -> None:
    """Queue what overwrites the cache and keeps the device busy while a step is dispatched."""
    flush.zero_()
    torch.cuda._sleep(_SPIN)


def _head_start(flush: Tensor) -> float:
    """Milliseconds of `_occupy` on this device: the spin is counted in its clocks."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _occupy(flush)  # the first time the kernels are loaded
    start.record()
    _occupy(flush)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def round_on_cuda(step: Step, flush: Tensor) -> tuple[float, float]:
    """Time one step on the current device, behind a head start of about 3 ms.

    Args:
        step: queues its work on the current stream.
        flush: contiguous bytes on the device, more than its second-level cache holds (`FLUSH`); overwritten.

    Returns:
        (device, host): milliseconds between CUDA events around the step, and those that the CPU took to queue
        it. The first are free of the second where the second are less than the head start.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _occupy(flush)
    start.record()
    before = time.perf_counter()
    step()
    dispatch = time.perf_counter() - before
    end.record()
    end.synchronize()
    return start.elapsed_time(end), dispatch * 1e3


def _times_on_the_cpu(step: Step) -> dict[str, Any]:
    start = time.perf_counter()
    step()
    return {"ms": (time.perf_counter() - start) * 1e3, "rounds": 1, "L2 flushed": False}
