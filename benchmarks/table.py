"""The results of `make gpu` as text: each stage, benchmarks with their best peer, and which goals are met."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.entries import Entry

Stages = dict[str, dict[str, Any]]
_RATES = ("TFLOP/s", "GB/s")


def beside_the_best_peer(entries: Sequence[Entry]) -> list[Entry]:
    """The entries; timed ones get the time of their group's best peer over their own: above 1 is faster."""
    best: dict[str, float] = {}
    for entry in entries:
        if entry.get("peer") and "ms" in entry:
            best[entry["group"]] = min(entry["ms"], best.get(entry["group"], entry["ms"]))
    return [
        entry | {"x best peer": best[entry["group"]] / entry["ms"]}
        if "ms" in entry and entry["group"] in best
        else entry
        for entry in entries
    ]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on a ratio of times that every matching group has to reach.

    Attributes:
        text: its name in the table.
        groups: a regular expression for the groups' names.
        bound: the minimum of peer / ours; with `floor`, the maximum of ours / floor.
        peer: the peer to compare with; None for the fastest.
        floor: whether to compare with the least time that the device's measured ceilings allow instead.
        ceiling: whether to compare our FLOP/s with those measured in a product instead: the bound is a share.
        other: a group whose FLOP/s of ours to compare with those of `groups` instead: the bound is a maximum
            of the former over the latter.
        number: number of matching groups.
    """

    text: str
    groups: str
    bound: float
    number: int
    peer: str | None = None
    floor: bool = False
    ceiling: bool = False
    other: str | None = None

    @property
    def at_most(self) -> bool:
        """Whether the bound is a maximum."""
        return self.floor or self.other is not None


_LONG = r"N=(1569|3137|6273) B=\d+"
_MODEL = "hsta_base"
GOALS = (
    Goal(
        text="attention D=64, N >= 1569, forward, against forced cuDNN",
        groups=rf"attention D=64 {_LONG} forward",
        peer="cudnn",
        bound=1.0,
        number=3,
    ),
    Goal(
        text="attention D=64, N >= 1569, backward, against forced cuDNN",
        groups=rf"attention D=64 {_LONG} backward",
        peer="cudnn",
        bound=0.7,
        number=3,
    ),
    Goal(
        text="attention D=32, N >= 1569, forward, against the best peer",
        groups=rf"attention D=32 {_LONG} forward",
        bound=1.3,
        number=3,
    ),
    Goal(
        text="attention D=32, N >= 1569, backward, against the best peer",
        groups=rf"attention D=32 {_LONG} backward",
        bound=1.0,
        number=3,
    ),
    Goal(text="CSTA forward, against the best peer", groups=r"csta .* forward", bound=10.0, number=4),
    Goal(
        text="CSTA forward + backward, against the best peer",
        groups=r"csta .* forward \+ backward",
        bound=8.0,
        number=4,
    ),
    Goal(
        text="tubelets forward, against their floor",
        groups=r"tubelets .* forward",
        bound=2.0,
        number=3,
        floor=True,
    ),
    Goal(
        text="step, 6 frames, against published, eager",
        groups=rf"{_MODEL} T=6 B=32 train step",
        peer="published",
        bound=3.0,
        number=1,
    ),
    Goal(
        text="step, 6 frames, against published, compiled, cuDNN",
        groups=rf"{_MODEL} T=6 B=32 train step",
        peer="published compiled",
        bound=1.4,
        number=1,
    ),
    Goal(
        text="the same, both in a CUDA graph",
        groups=rf"{_MODEL} T=6 B=32 train step",
        peer="published compiled, graph",
        bound=1.4,
        number=1,
    ),
    Goal(
        text="step, 32 frames, against published, compiled, cuDNN",
        groups=rf"{_MODEL} T=32 B=32 train step",
        peer="published compiled",
        bound=1.5,
        number=1,
    ),
    Goal(
        text="step, 16 frames, FLOP/s over those measured in a product",
        groups=rf"{_MODEL} T=16 B=32 train step",
        ceiling=True,
        bound=0.55,
        number=1,
    ),
    Goal(
        text="step, time over FLOPs, 64 frames against 16",
        groups=rf"{_MODEL} T=64 B=32 train step",
        other=f"{_MODEL} T=16 B=32 train step",
        bound=1.3,
        number=1,
    ),
    Goal(
        text="one clip's latency, against published, eager",
        groups=rf"{_MODEL} T=6 B=1 latency",
        peer="published",
        bound=4.0,
        number=1,
    ),
    Goal(
        text="one clip's latency, against reduce-overhead",
        groups=rf"{_MODEL} T=6 B=1 latency",
        peer="reduce-overhead",
        bound=1.2,
        number=1,
    ),
    Goal(
        text="other libraries' cross-attention, accelerated, forward",
        groups=r"drop-in, .*cross-attention.* forward",
        bound=8.0,
        number=3,
    ),
)
BENCHMARKS = ("bench", "drop-in")  # stages


def _ceilings(entries: Iterable[Entry]) -> Entry:
    """The measured rates of a product and a copy."""
    ceilings: Entry = {}
    for entry in entries:
        if entry.get("group") == "ceilings":
            ceilings |= {unit: entry[unit] for unit in _RATES if unit in entry}
    return ceilings


def _over_the_floor(ours: Entry, entries: Iterable[Entry]) -> float | None:
    """Our time over the floor, the larger of the times at the measured rates of a product and a copy."""
    ceilings = _ceilings(entries)
    if not all(unit in ceilings and unit in ours for unit in _RATES):
        return None
    return min(ceilings[unit] / ours[unit] for unit in _RATES)


def _ratio(goal: Goal, ours: Entry, entries: Sequence[Entry]) -> float | None:
    """What the goal bounds, for one group; None if what it needs was not measured."""
    if goal.floor:
        return _over_the_floor(ours, entries)
    rate = _RATES[0]
    if goal.ceiling:
        ceilings = _ceilings(entries)
        return ours[rate] / ceilings[rate] if rate in ours and rate in ceilings else None
    if goal.other is not None:
        other = [e[rate] for e in entries if e.get("group") == goal.other and not e["peer"] and rate in e]
        return other[0] / ours[rate] if other and rate in ours else None
    peers = [e for e in entries if e.get("group") == ours["group"] and e["peer"] and "ms" in e]
    times = [e["ms"] for e in peers if e["L2 flushed"] and goal.peer in (None, e["name"])]
    return min(times) / ours["ms"] if times else None


def measured(goal: Goal, entries: Sequence[Entry]) -> list[tuple[str, float]]:
    """(group, ratio) for every group of the goal in which both sides were timed."""
    found = []
    found_in = [entry for entry in entries if re.fullmatch(goal.groups, entry.get("group", ""))]
    timed = [entry for entry in found_in if "ms" in entry and entry["L2 flushed"]]
    for ours in (entry for entry in timed if not entry["peer"]):
        ratio = _ratio(goal, ours, entries)
        if ratio is not None:
            found.append((ours["group"], ratio))
    return found


def goal_line(goal: Goal, entries: Sequence[Entry]) -> str:
    """The goal and the worst ratio; it is met only if every group was measured."""
    ratios = measured(goal, entries)
    sign = "<=" if goal.at_most else ">="
    head = f"{goal.text:<62} {sign} {goal.bound:4.3g} x"
    if not ratios:
        return f"{head}  not measured"
    group, worst = (max if goal.at_most else min)(ratios, key=lambda found: found[1])
    good = worst <= goal.bound if goal.at_most else worst >= goal.bound
    if len(ratios) < goal.number:
        verdict = f"{'so far met' if good else 'NOT MET'}, {len(ratios)} of {goal.number} groups"
    else:
        verdict = "met" if good else "NOT MET"
    return f"{head}  {worst:6.2f} x  {verdict}  ({group})"


def _benchmark_lines(entries: Sequence[Entry]) -> list[str]:
    lines: list[str] = []
    group = None
    for entry in sorted(beside_the_best_peer(entries), key=lambda entry: str(entry.get("group"))):
        if entry.get("group") != group:
            group = entry.get("group")
            lines.append(f"  {group}")
        name = f"    {'' if entry.get('peer') else '* '}{entry.get('name', entry['case']):<24}"
        if "ms" not in entry:
            lines += [
                f"{name} {word}: {entry[word]}" for word in ("refuses", "skipped", "failed") if word in entry
            ]
            continue
        figures = [f"{entry['ms']:10.3f} ms"]
        figures += [f"{entry[unit]:8.1f} {unit}" for unit in _RATES if unit in entry]
        figures += [f"{entry['x best peer']:6.2f} x best peer"] if "x best peer" in entry else []
        if entry.get("dispatch shows"):
            figures.append(f"dispatch of {entry['dispatch ms']:.1f} ms shows")
        figures += [] if entry["L2 flushed"] else ["L2 not flushed"]
        lines.append(f"{name} {'  '.join(figures)}")
    return lines


def timed_entries(stages: Stages) -> list[Entry]:
    """The entries of all stages that time something."""
    return [entry for name in BENCHMARKS for entry in stages.get(name, {}).get("entries", [])]


def _lines(entries: Sequence[Entry]) -> list[str]:
    """Benchmarks as times, tests and checks by their outcome."""
    timed = [entry for entry in entries if "group" in entry]
    others = [entry for entry in entries if "group" not in entry]
    return [*(_check_lines(others) if others or not timed else []), *_benchmark_lines(timed)]


def _check_lines(entries: Sequence[Entry]) -> list[str]:
    """The number of passes, failures and skips; then each failure, skip, measured error and note."""
    failed = [entry for entry in entries if "failed" in entry]
    skipped = [entry for entry in entries if "skipped" in entry]
    passed = len(entries) - len(failed) - len(skipped)
    lines = [f"  {passed} passed, {len(failed)} failed, {len(skipped)} skipped"]
    lines += [f"    FAILED {entry['case']}: {entry['failed']}" for entry in failed]
    lines += [f"    skipped {entry['case']}: {entry['skipped']}" for entry in skipped]
    for entry in entries:
        if "bound" in entry and "failed" not in entry:
            lines.append(
                f"    {entry['case']:<36} {entry['error']:9.2e} of {entry['bound']:.0e}, {entry['seconds']} s"
            )
        if "note" in entry:
            lines.append(f"    {entry['case']}: {entry['note']}")
    return lines


def last_line(tail: Sequence[str]) -> str:
    """The last non-empty line that a process printed."""
    return next((line for line in reversed(tail) if line.strip()), "nothing was printed")


def table(device: str, stages: Stages) -> str:
    """Every stage that has run, and the goals."""
    lines = [device]
    for name, stage in stages.items():
        lines.append(f"{name}: {stage['status']}, {stage['seconds']} s of {stage['budget']} s")
        if "tail" in stage:
            ended = "cut" if stage["exit"] is None else f"exit status {stage['exit']}"
            lines.append(f"  {ended}, last line: {last_line(stage['tail'])}")
        lines += _lines(stage["entries"])
    lines.append("goals (* is ours; ratios of medians, the worst group counts)")
    entries = timed_entries(stages)
    return "\n".join([*lines, *(f"  {goal_line(goal, entries)}" for goal in GOALS)])
