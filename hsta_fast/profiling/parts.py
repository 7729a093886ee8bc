"""The time of a training step by part of the model, from torch's profiler.

A hook on a module would make layers take another path (`hsta_fast.replaced`), so none is used. Functions of
the classes are replaced, while a profile is taken, by ones that open a named range; the profiler records it
with every operation inside. What is in a USTA and not in its attention is told apart by the name of the
operation. Operations of the backward have the sequence number of the forward operation that they
differentiate, and count as its part.

On the CPU every instant of a step counts once: an operation's own time is its time without that of the
operations in it. What is left, such as Python between the operations, is "other".

On CUDA the times are those of the kernels, copies and fills on the device, each of which belongs to the
operation that launched it. "Other" are those that no part claims.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .. import crossmodal, layers, ops, published
from .work import Direction, Part

_PREFIX = "hsta_fast profile: "
_STEP = _PREFIX + "step"
_USTA = "USTA"
# What is replaced while a profile is taken, and the range that it opens.
_RANGES: tuple[tuple[Any, str, str], ...] = (
    (layers.TubeletEmbed, "forward", "embedding"),
    (layers.USTA, "forward", _USTA),
    (ops, "space_time_attention", "USTA attention"),
    (crossmodal.CrossmodalSpaceTimeAttention, "forward", "CSTA"),
    (published.PublishedHSTA, "embed", "embedding"),
    (published.Block, "forward", _USTA),
    (published, "attend", "USTA attention"),
    (published.Layer, "exchange", "CSTA"),
)
# Inside a USTA, by the name of an operation; the first that fits. Backward nodes have the names of their op.
_BY_NAME: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"layer_?norm", re.IGNORECASE), "norms"),
    (re.compile(r"linear|addmm|::mm$|matmul", re.IGNORECASE), "USTA products"),
)
_NODE = "autograd::engine::evaluate_function: "
_KEEPS_GRADIENT = _NODE + "torch::autograd::AccumulateGrad"
# Calls of the CUDA runtime and driver are events too. Those that no operation made, such as a wait for an
# event, have a number of CUDA's own as id; torch gives them also the kernels of the operation with this id.
_CUDA_CALL = re.compile(r"cu(da)?[A-Z]")

Key = tuple[Part, Direction]


class Kernels(NamedTuple):
    """The calls of one CUDA kernel (or copy, or fill) that belong to one part."""

    name: str
    part: Part
    number: int
    seconds: float


@dataclass(frozen=True)
class StepTimes:
    """Where the time of one profiled step went.

    Attributes:
        seconds: of each part and direction, "other" included. On CUDA those in which the device worked.
        total: of the whole step, by the clock, with what the profiler takes.
        on_device: whether the seconds are those of kernels; on the CPU they add up to `total`.
        gelu_apart: whether GELU was an operation of its own, not part of a product.
        kernels: on CUDA, those that took longest first.
    """

    seconds: dict[Key, float]
    total: float
    on_device: bool = False
    gelu_apart: bool = True
    kernels: list[Kernels] = field(default_factory=list)

    @property
    def busy(self) -> float:
        """The sum of all parts."""
        return sum(self.seconds.values())


def part_range(name: str) -> record_function:
    """A range of the part `name`, which a profile finds again."""
    return record_function(_PREFIX + name)


@contextmanager
def named_ranges() -> Iterator[None]:
    """Let the parts of a model open their ranges, in all models of this process."""
    replaced = [(owner, name, getattr(owner, name)) for owner, name, _ in _RANGES]
    try:
        for owner, name, part in _RANGES:
            setattr(owner, name, _with_range(getattr(owner, name), part))
        yield
    finally:
        for owner, name, before in replaced:
            setattr(owner, name, before)


def _with_range(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with part_range(part):
            return function(*args, **kwargs)

    return run


def profile_step(step: Callable[[], object], device: torch.device) -> tuple[StepTimes, profile]:
    """Run `step` once under torch's profiler. It should have run before: the first one is slower.

    Returns:
        Its times by part, and the profiler, which can write a trace.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with named_ranges(), profile(activities=activities) as profiler:
        if cuda:
            torch.cuda.synchronize(device)
        with record_function(_STEP):
            step()
            if cuda:
                torch.cuda.synchronize(device)
    return _times(profiler.events(), on_device=cuda), profiler


def _times(events: Sequence[Any], *, on_device: bool) -> StepTimes:
    [root] = [event for event in events if event.name == _STEP and not _is_on_device(event)]
    start, end = root.time_range.start, root.time_range.end
    forward = _Forward()
    forward.visit(root)
    total = (end - start) / 1e6
    if on_device:
        seconds, kernels = _of_kernels(events, root, forward)
        return StepTimes(seconds, total, True, forward.gelu_apart, kernels)
    seconds = defaultdict(float)
    for event, key in forward.keyed(root):
        seconds[key] += event.self_cpu_time_total / 1e6
    named = {key: value for key, value in seconds.items() if key[0] != "other"}
    named[("other", "update")] = max(0.0, total - sum(named.values()))
    return StepTimes(named, total, False, forward.gelu_apart)


def _of_kernels(
    events: Sequence[Any], root: Any, forward: "_Forward"
) -> tuple[dict[Key, float], list[Kernels]]:
    """Seconds of what ran on the device while `root` did, by part and direction, and the kernels.

    The thread that makes batches is not recorded. What it launches runs on a stream of its own and is "data",
    as far as nothing else ran at that time.
    """
    start, end = root.time_range.start, root.time_range.end

    def is_inside(event: Any) -> bool:
        return bool(start <= (event.time_range.start + event.time_range.end) / 2 <= end)

    inside = [event for event in events if is_inside(event)]
    keys: dict[tuple[str, float], list[Key]] = defaultdict(list)  # by name and microseconds
    for event in inside:
        # The backward has a thread of its own, so not all is below the root.
        if _is_on_device(event) or (event is not root and event.cpu_parent is not None):
            continue
        for inner, key in forward.keyed(event):
            if not _CUDA_CALL.match(inner.name):
                for kernel in inner.kernels:
                    keys[kernel.name, kernel.duration].append(key)
    # A range is on the device too, from its first kernel to its last one.
    ran = [event for event in inside if _is_on_device(event) and not event.is_user_annotation]
    ran.sort(key=lambda event: event.time_range.start)
    claimed: list[Key | None] = []
    for event in ran:
        own = keys[event.name, event.time_range.end - event.time_range.start]
        claimed.append(own.pop(0) if own else None)
    streams = {event.device_resource_id for event, key in zip(ran, claimed, strict=True) if key}
    seconds: dict[Key, float] = defaultdict(float)
    calls: dict[tuple[str, Part], list[float]] = defaultdict(list)
    worked, until = 0.0, start
    for event, claim in zip(ran, claimed, strict=True):
        begun, ended = event.time_range.start, event.time_range.end
        beside = claim is None and event.device_resource_id not in streams
        key = claim or ("data" if beside else "other", "update")
        calls[event.name, key[0]].append((ended - begun) / 1e6)
        if not beside:
            seconds[key] += (ended - begun) / 1e6
        worked += max(0.0, ended - max(until, begun)) / 1e6  # each instant once
        until = max(until, ended)
    if (rest := worked - sum(seconds.values())) > 1e-9:
        seconds["data", "update"] += rest
    kernels = [Kernels(name, part, len(times), sum(times)) for (name, part), times in calls.items()]
    return dict(seconds), sorted(kernels, key=lambda kernel: -kernel.seconds)


def _is_on_device(event: Any) -> bool:
    return event.device_type != torch._C._autograd.DeviceType.CPU


class _Forward:
    """The part of each operation: those of the forward by their range, the others by the forward's."""

    def __init__(self) -> None:
        self.keys: dict[int, Key] = {}
        self.by_sequence: dict[tuple[int, int], Part] = {}  # of the operations that autograd recorded
        self.last_node: Key = ("other", "backward")
        self.gelu_apart = False

    def visit(self, event: Any, range_name: str = "", part: Part = "other") -> None:
        """Note the part of `event` and of those in it, unless they belong to the backward."""
        name = event.name
        if name.startswith(_NODE):
            return
        if name.startswith(_PREFIX):
            own = name.removeprefix(_PREFIX)
            if range_name in ("", "head and loss", "data") or (range_name, own) == (_USTA, "USTA attention"):
                range_name = "" if name == _STEP else own
                part = "other" if range_name in ("", _USTA) else range_name  # type: ignore[assignment]
        elif name.startswith("Optimizer."):
            range_name, part = "optimiser", "optimiser"
        elif range_name == _USTA and part in ("other", "USTA pointwise"):
            part = next((part for pattern, part in _BY_NAME if pattern.search(name)), "USTA pointwise")
            self.gelu_apart = self.gelu_apart or (part == "USTA pointwise" and "gelu" in name)
        elif range_name == "head and loss" and _BY_NAME[0][0].search(name):
            part = "norms"
        direction: Direction = "update" if part in ("optimiser", "data") else "forward"
        self.keys[id(event)] = (part, direction)
        if (
            event.sequence_nr >= 0
        ):  # the innermost of several: the others only contain the one that is recorded
            self.by_sequence[event.thread, event.sequence_nr] = part
        for child in event.cpu_children:
            self.visit(child, range_name, part)

    def keyed(self, event: Any, key: Key = ("other", "forward")) -> Iterator[tuple[Any, Key]]:
        """`event`, which belongs to `key` unless it is known better, and those in it, each with its key."""
        key = self.keys.get(id(event), key)
        node = event.name.startswith(_NODE)
        if node:
            if event.name != _KEEPS_GRADIENT:  # a gradient is kept at once by the engine, and has no forward
                part = self.by_sequence.get((event.fwd_thread, event.sequence_nr), "other")
                self.last_node = (part, "backward")
            key = self.last_node
        yield event, key
        for child in event.cpu_children:
            # The engine sums the gradients of a tensor that was used twice, after the node itself.
            summed = (
                node
                and event.name != _KEEPS_GRADIENT
                and not child.name.startswith(event.name.removeprefix(_NODE))
                and key[0].startswith(_USTA)
            )
            summed = summed or (node and key[0] == "norms" and child.name.startswith("aten::add"))
            yield from self.keyed(child, ("USTA pointwise", "backward") if summed else key)
