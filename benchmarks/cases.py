"""One benchmark case on a CUDA device: how it is compiled, timed, and what counts as a refusal.

Times are medians of CUDA events around one step. The second-level cache is overwritten before each step, so
its reads come from device memory. Then the device spins while launches queue up: this hides a step's dispatch
on the CPU if it takes less than this head start. If it takes longer, the figure is marked. A latency is that
of the clock instead, from the call on an idle device until its results are there.
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
_CALLS = 40  # of a latency, without and with a graph
_SECONDS = 0.25  # of timed rounds per case, 5 to 30 of them
# Torch's messages if a forced backend, or every backend, does not support the shape, dtype or device.
_REFUSALS = (
    "No available kernel",
    "No viable backend",
    "cuDNN Frontend error",
    "no valid execution plans",
    "No valid engine configs",
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where cases run: on a CUDA device, or with `tiny` inputs on the CPU, to show that all run."""

    device: str = "cuda"
    tiny: bool = False
    backend: str = "inductor"

    def compile(self, function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
        """`mode` is one of inductor's."""
        own = {"mode": mode} if mode is not None and self.backend == "inductor" else {"backend": self.backend}
        return torch.compile(function, dynamic=False, **own)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One function at one shape.

    Attributes:
        group: the shape and the direction, shared with its peers.
        name: the function.
        peer: whether the function is not ours.
        make: allocates the inputs and returns the step to time.
        compiled: whether torch.compile must take part.
        extension: whether to skip it if the extension cannot be built for the device.
        forced: the backend of scaled_dot_product_attention to force.
        flop: operations of one step.
        size: bytes of device memory that one step must move.
        latency: whether to time it by the clock, with Python's part.
        may_lack_memory: whether a device too small for it counts as a refusal, not as a failure.
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
    latency: bool = False
    may_lack_memory: bool = False

    def __str__(self) -> str:
        return f"{self.group}, {self.name}"


@contextlib.contextmanager
def fresh_compiler() -> Iterator[None]:
    """Compile from scratch; raise if a function reaches the recompile limit.

    Dynamo makes a function dynamic once it was compiled for several shapes, and past a limit silently runs it
    eagerly: its times would be reported as those of a compiled peer.
    """
    torch._dynamo.reset()
    counters.clear()
    # A backward frees donated buffers, so it could not be timed again on the same graph.
    donated = torch._functorch.config.patch(donated_buffer=False)
    with donated, torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@contextlib.contextmanager
def own_compilation() -> Iterator[None]:
    """`fresh_compiler`; raise if nothing was compiled either."""
    with fresh_compiler():
        yield
    check_compiled()


def check_compiled(before: int = 0) -> None:
    """Raise if no graph was compiled since there were `before` of them."""
    if counters["stats"]["unique_graphs"] == before:
        raise RuntimeError("no graph was compiled: this would be the time of the eager function")


def device_is_dead() -> bool:
    """Whether this process can no longer use the CUDA device, as after an illegal access."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def refusal(error: BaseException) -> str | None:
    """The first line of torch's refusal to run a shape; None for any other error."""
    refused = isinstance(error, NotImplementedError) or any(words in str(error) for words in _REFUSALS)
    return str(error).strip().splitlines()[0] if refused else None


def measure(case: Case, place: Place) -> dict[str, Any]:
    """The entry of one case: "ms" and what follows from it, or why it was not timed."""
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
            figures = _times(step, case.latency) if place.device == "cuda" else _times_on_the_cpu(step)
    except Exception as error:  # one failing case must not stop the others
        refused = refusal(error) if case.peer else None
        if case.may_lack_memory and isinstance(error, torch.OutOfMemoryError):
            refused = "the device has too little memory"
        if refused is not None:
            return entry | {"refuses": refused}
        return entry | {"failed": f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:400]}
    seconds = figures["ms"] / 1e3
    if case.flop and not place.tiny:
        figures["TFLOP/s"] = case.flop / seconds / 1e12
    if case.size and not place.tiny:
        figures["GB/s"] = case.size / seconds / 1e9
    return entry | figures | {"seconds": round(time.perf_counter() - start, 2)}


def _times(step: Step, latency: bool) -> dict[str, Any]:
    return _latency_on_cuda(step) if latency else _times_on_cuda(step)


def _latency_on_cuda(step: Step) -> dict[str, Any]:
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(_CALLS):
        flush.zero_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    times = times[_CALLS // 4 :]  # the first calls capture graphs
    quarters = statistics.quantiles(times, n=4)
    figures = {"ms": statistics.median(times), "quartiles_ms": [quarters[0], quarters[2]]}
    return figures | {"rounds": len(times), "L2 flushed": True}


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
    """Queue work that overwrites the cache and keeps the device busy while a step is dispatched."""
    flush.zero_()
    torch.cuda._sleep(_SPIN)


def _head_start(flush: Tensor) -> float:
    """Milliseconds that `_occupy` takes on this device: its spin is set in device clocks."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _occupy(flush)  # the first call loads the kernels
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
        (device, host): milliseconds between CUDA events around the step, and milliseconds that the CPU took
        to queue it. The first excludes the second if the second is shorter than the head start.
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
