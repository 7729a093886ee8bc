"""What the benchmarks on the CPU are to reach: ratios of two members of one group. Those of CUDA devices are
`benchmarks.table.GOALS`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.compare import OURS, PRODUCT, SIDE
from benchmarks.entries import Entry


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on a ratio of times.

    Attributes:
        text: its name in tables.
        group: where both members are timed.
        slow: the member whose time is divided.
        fast: the member by whose time it is divided.
        bound: least ratio; with `per_flop`, the largest.
        per_flop: whether times are divided by the operations of each first.
    """

    text: str
    group: str
    slow: str
    fast: str = OURS
    bound: float
    per_flop: bool = False


_BASE = "model, hsta_base, B 2"
TARGETS = (
    *(
        Target(
            text=f"{what}, {T} frames, against the published formulation",
            group=f"{_BASE}, T {T}, {what}",
            slow="published",
            bound=bound,
        )
        for what, T, bound in (
            ("forward", 6, 1.4),
            ("forward", 16, 2.2),
            ("training step", 6, 1.6),
            ("training step", 16, 3.5),
        )
    ),
    Target(
        text="training step, 6 frames, both compiled",
        group=f"{_BASE}, T 6, training step, compiled",
        slow="published compiled",
        fast=f"{OURS} compiled",
        bound=1.2,
    ),
    Target(
        text="int8 forward, 6 frames, against the published formulation",
        group=f"{_BASE}, T 6, forward",
        slow="published",
        fast=f"{OURS} int8",
        bound=3.0,
    ),
    Target(
        text="bfloat16 forward, 6 frames, against our own float32",
        group=f"{_BASE}, T 6, forward",
        slow=OURS,
        fast=f"{OURS} bfloat16",
        bound=1.5,
    ),
    Target(
        text="forward, time over FLOPs at 64 frames against 16",
        group="model, hsta_base, B 1, forward by frames",
        slow=f"{OURS}, T 64",
        fast=f"{OURS}, T 16",
        bound=1.3,
        per_flop=True,
    ),
)


class Ratio(NamedTuple):
    """The median of the rounds, and their quartiles."""

    median: float
    low: float
    high: float


def ratio(entry: Entry, slow: str, fast: str, per_flop: bool = False) -> Ratio | None:
    """The time of `slow` over that of `fast` in each round; None if one was not timed."""
    times, flop = entry["ms"], entry.get("flop", {})
    if slow not in times or fast not in times:
        return None
    factor = flop[fast] / flop[slow] if per_flop else 1.0
    rounds = [factor * s / f for s, f in zip(times[slow], times[fast], strict=True)]
    low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return Ratio(statistics.median(rounds), low, high)


def median_ms(entry: Entry, name: str) -> float:
    return statistics.median(entry["ms"][name])


def floor_ms(entry: Entry, name: str) -> float | None:
    """The least time of a step: its operations at the rate of the matrix product; None if unknown."""
    if PRODUCT not in entry["ms"] or name not in entry.get("flop", {}):
        return None
    return entry["flop"][name] / (2.0 * SIDE**3) * median_ms(entry, PRODUCT)


class Verdict(NamedTuple):
    """How a target stands.

    Attributes:
        word: "met", "missed" or "not measured".
        ratio: as measured.
        ms: of the fast member.
        floor_ms: least time of the fast member by arithmetic, if known.
    """

    word: str
    ratio: Ratio | None = None
    ms: float | None = None
    floor_ms: float | None = None


def verdict(target: Target, entries: Sequence[Entry]) -> Verdict:
    for entry in entries:
        if entry["group"] != target.group:
            continue
        found = ratio(entry, target.slow, target.fast, target.per_flop)
        if found is not None:
            met = found.median <= target.bound if target.per_flop else found.median >= target.bound
            timed = median_ms(entry, target.fast)
            return Verdict("met" if met else "missed", found, timed, floor_ms(entry, target.fast))
    return Verdict("not measured")
