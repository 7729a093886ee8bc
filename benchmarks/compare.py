"""The steps of one group, ours and its peers, timed in turn: the rounds of all members alternate.

A busy or throttled machine then slows all of them, and the ratio of two members is taken round by round.
"""

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.cases import Step, check_compiled, fresh_compiler
from benchmarks.entries import Entry
from hsta_fast.extension import missing
from hsta_fast.ops import linear

OURS = "hsta_fast"  # variants of ours start with this word; every other member is a peer
PRODUCT = "matrix product"  # the member whose rate gives the floor
SIDE = 2048  # of its matrices
COMPILATION = 25.0  # seconds, assumed for the first call of a compiled member
MOST_ROUNDS = 60
LONG = 3.0  # seconds of all first calls, of which a preparation is a small part
Make = Callable[[], Step]


class LeftOutError(Exception):
    """Why a group is not measured."""


@dataclass
class Clock:
    """The time that a run may take in all.

    Attributes:
        limit: seconds.
        rate: FLOP/s assumed of steps that have not run yet.
    """

    limit: float
    rate: float = 1e11
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.limit - (time.monotonic() - self.start)


def product() -> Step:
    """A float32 product of square matrices, on all threads: torch's or ours, whichever is faster here."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return lambda: linear(a, b)


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _expected(members: Mapping[str, Make], flop: Mapping[str, float], clock: Clock, least: int) -> float:
    """Seconds that the group will take, from its operations and the number of compiled members."""
    compiled = sum(name.endswith("compiled") for name in members)
    return compiled * COMPILATION + (1 + least) * sum(flop.values()) / clock.rate


def measure(
    benchmark: Any,
    clock: Clock,
    group: str,
    members: Mapping[str, Make],
    *,
    flop: Mapping[str, float] | float = 0.0,
    floor: bool = False,
    seconds: float = 1.5,
    least: int = 5,
    notes: Mapping[str, Any] | None = None,
) -> Entry:
    """Time every member's step, in turn.

    Args:
        benchmark: pytest-benchmark's fixture. It times the first member; the figures of the others go to its
            `extra_info`.
        clock: what is left of the run.
        group: what is timed, and its shape.
        members: {name: allocates the inputs and returns the step}, ours first. A name that ends with
            "compiled" needs torch.compile and a C++ compiler.
        flop: operations of one step, of every member or by name.
        floor: whether to time a matrix product too, whose rate gives the least time of a step.
        seconds: of timed rounds, if `least` rounds take less.
        least: rounds, at least; fewer, but two, if the time is short.
        notes: further keys of the entry.

    Returns:
        The entry of the results file: "group", "ms" {member: [milliseconds of each round]}, "flop" {member:
        operations}, "first_call_s" {compiled member: seconds}, "left_out" {member: reason}, "failed" {peer:
        message}, "date", "load" (average of a minute, before).

    Raises:
        LeftOutError: the group would not fit into the time left.
        Exception: what our first member raises. That of a peer is an entry in "failed".
    """
    began = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }
    operations = dict(flop) if isinstance(flop, Mapping) else dict.fromkeys(members, flop)
    expected = _expected(members, operations, clock, least)
    if expected > clock.left():
        raise LeftOutError(f"it takes about {expected:.0f} s, and {max(clock.left(), 0):.0f} s are left")
    with contextlib.ExitStack() as stack:
        if any(name.endswith("compiled") for name in members):
            stack.enter_context(fresh_compiler())
        steps, once, remarks = _first_calls(members, floor)
        ours, *others = steps
        if once < LONG or "first_call_s" in remarks:  # first calls may have built or compiled something
            once = sum(_seconds(step) for step in steps.values())
        rounds = max(least, min(MOST_ROUNDS, int(seconds / once)))
        rounds = max(2, min(rounds, int(clock.left() / once)))
        times: dict[str, list[float]] = {name: [] for name in others}

        def others_in_turn() -> None:
            others[:] = others[1:] + others[:1]  # no member always follows the same one
            for name in others:
                times[name].append(_seconds(steps[name]))

        benchmark.group = group
        benchmark.pedantic(steps[ours], setup=others_in_turn, rounds=rounds)
    data = benchmark.stats.stats.data if benchmark.enabled else []
    ms = {name: [float(f"{1e3 * t:.4g}") for t in ts] for name, ts in ({ours: data} | times).items()}
    entry = {"group": group, **began, "ms": ms}
    if floor:
        rates = [2.0 * SIDE**3 / t for t in times[PRODUCT]]
        clock.rate = sorted(rates)[len(rates) // 2]
    entry |= {"flop": {name: operations[name] for name in ms if operations.get(name)}}
    entry |= remarks | dict(notes or {})
    benchmark.extra_info.update(entry)
    return entry


def _first_calls(members: Mapping[str, Make], floor: bool) -> tuple[dict[str, Step], float, Entry]:
    """The members that run here, each called once; the seconds of these calls; remarks on the members."""
    steps: dict[str, Step] = {}
    total = 0.0
    remarks: Entry = {"first_call_s": {}, "left_out": {}, "failed": {}}
    for name, make in {**members, **({PRODUCT: product} if floor else {})}.items():
        compiled = name.endswith("compiled")
        if compiled and (lacks := missing("cpu")) is not None:
            remarks["left_out"][name] = lacks
            continue
        graphs = counters["stats"]["unique_graphs"]
        try:
            step = make()
            first = _seconds(step)
            if compiled:
                check_compiled(graphs)
        except Exception as error:
            if not steps:
                raise
            remarks["failed"][name] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"[:400]
            continue
        steps[name] = step
        total += first
        if compiled:
            remarks["first_call_s"][name] = round(first, 1)
    return steps, total, {key: found for key, found in remarks.items() if found}
