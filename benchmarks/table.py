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
        number: number of matching groups.
    """

    text: str
    groups: str
    bound: float
    number: int
    peer: str | None = None
    floor: bool = False


_LONG = r"N=(1569|3137|6273) B=\d+"
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
)


def _over_the_floor(ours: Entry, entries: Iterable[Entry]) -> float | None:
    """Our time over the floor, the larger of the times at the measured rates of a product and a copy."""
    ceilings: Entry = {}
    for entry in entries:
        if entry.get("group") == "ceilings":
            ceilings |= {unit: entry[unit] for unit in _RATES if unit in entry}
    if not all(unit in ceilings and unit in ours for unit in _RATES):
        return None
    return min(ceilings[unit] / ours[unit] for unit in _RATES)


def measured(goal: Goal, entries: Sequence[Entry]) -> list[tuple[str, float]]:
    """(group, ratio) for every group of the goal in which both sides were timed."""
    found = []
    found_in = [entry for entry in entries if re.fullmatch(goal.groups, entry.get("group", ""))]
    timed = [entry for entry in found_in if "ms" in entry and entry["L2 flushed"]]
    for ours in (entry for entry in timed if not entry["peer"]):
        peers = [entry["ms"] for entry in timed if entry["group"] == ours["group"] and entry["peer"]]
        if goal.peer is not None:
            peers = [e["ms"] for e in timed if e["group"] == ours["group"] and e["name"] == goal.peer]
        ratio = _over_the_floor(ours, entries) if goal.floor else min(peers) / ours["ms"] if peers else None
        if ratio is not None:
            found.append((ours["group"], ratio))
    return found


def goal_line(goal: Goal, entries: Sequence[Entry]) -> str:
    """The goal and the worst ratio; it is met only if every group was measured."""
    ratios = measured(goal, entries)
    sign = "<=" if goal.floor else ">="
    head = f"{goal.text:<62} {sign} {goal.bound:4.1f} x"
    if not ratios:
        return f"{head}  not measured"
    group, worst = (max if goal.floor else min)(ratios, key=lambda found: found[1])
    good = worst <= goal.bound if goal.floor else worst >= goal.bound
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
        lines += (_benchmark_lines if name == "bench" else _check_lines)(stage["entries"])
    lines.append("goals (* is ours; ratios of medians, the worst group counts)")
    entries = stages.get("bench", {}).get("entries", [])
    return "\n".join([*lines, *(f"  {goal_line(goal, entries)}" for goal in GOALS)])
