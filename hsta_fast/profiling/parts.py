"""The time of a training step by part of the model, from torch's profiler.

A hook on a module would make layers take another path (`hsta_fast.replaced`), so none is used. Functions of
the classes are replaced, while a profile is taken, by ones that open a named range; the profiler records it
with every operation inside. What is in a USTA and not in its attention is told apart by the name of the
operation. Operations of the backward have the sequence number of the forward operation that they
differentiate, and count as its part.

Every instant of a step counts once: an operation's own time is its time without that of the operations in it.
What is left, such as Python between the operations, is "other".
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

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

Key = tuple[Part, Direction]


@dataclass(frozen=True)
class StepTimes:
    """Where the time of one profiled step went.

    Attributes:
        seconds: of each part and direction, "other" included; on CUDA the time of the kernels, and "other" is
            what the device waited.
        total: of the whole step, by a clock outside of the profiler.
        on_device: whether the seconds are those of kernels.
        gelu_apart: whether GELU was an operation of its own, not part of a product.
        kernels: on CUDA, (name, number, seconds) of the kernels that took longest.
    """

    seconds: dict[Key, float]
    total: float
    on_device: bool = False
    gelu_apart: bool = True
    kernels: list[tuple[str, int, float]] = field(default_factory=list)


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
    inside = [
        e for e in events if not _is_on_device(e) and start <= e.time_range.start and e.time_range.end <= end
    ]
    forward = _Forward()
    forward.visit(root)
    seconds: dict[Key, float] = defaultdict(float)
    kernels: dict[str, list[float]] = defaultdict(list)
    # The backward has a thread of its own on CUDA.
    for event in inside:
        if event is root or (event.cpu_parent is None and on_device):
            for inner, key in forward.keyed(event):
                if not on_device:
                    seconds[key] += inner.self_cpu_time_total / 1e6
                    continue
                for kernel in inner.kernels:
                    seconds[key] += kernel.duration / 1e6
                    kernels[kernel.name].append(kernel.duration / 1e6)
    total = (end - start) / 1e6
    named = {key: value for key, value in seconds.items() if key[0] != "other"}
    named[("other", "update")] = max(0.0, total - sum(named.values()))
    longest = sorted(((n, len(t), sum(t)) for n, t in kernels.items()), key=lambda row: -row[2])
    return StepTimes(named, total, on_device, forward.gelu_apart, longest[:12])


def _is_on_device(event: Any) -> bool:
    return event.device_type != torch._C._autograd.DeviceType.CPU


class _Forward:
    """The part of each operation: those of the forward by their range, the others by the forward's."""

    def __init__(self) -> None:
        self.keys: dict[int, Key] = {}
        self.by_sequence: dict[tuple[int, int], Part] = {}  # of the operations that autograd recorded
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
            part = self.by_sequence.get((event.fwd_thread, event.sequence_nr), "other")
            key = (part, "backward")
        yield event, key
        for child in event.cpu_children:
            # The engine sums the gradients of a tensor that was used twice, after the node itself.
            summed = (
                node
                and not child.name.startswith(event.name.removeprefix(_NODE))
                and key[0].startswith(_USTA)
            )
            summed = summed or (node and key[0] == "norms" and child.name.startswith("aten::add"))
            yield from self.keyed(child, ("USTA pointwise", "backward") if summed else key)
