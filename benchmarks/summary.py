"""The end of a run of the benchmarks: one line per group with its verdict, the targets, what was left out."""

import os
from collections.abc import Mapping, Sequence

from benchmarks.compare import OURS, PRODUCT
from benchmarks.entries import Entry
from benchmarks.targets import TARGETS, Ratio, Target, Verdict, median_ms, ratio, verdict

BUSY = 1.5  # load for each core; the benchmarks themselves give 1
PUBLISHED = "published"  # the peer that is always named, in files of the model's parts


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


def in_words(found: Ratio, peer: str) -> str:
    """The ratio as a sentence: faster or slower only if three quarters of the rounds were."""
    if found.low > 1.0:
        return f"{found.median:.2f} x faster than {peer} ({found.low:.2f} to {found.high:.2f})"
    if found.high < 1.0:
        slower = 1 / found.median, 1 / found.high, 1 / found.low
        return f"{slower[0]:.2f} x slower than {peer} ({slower[1]:.2f} to {slower[2]:.2f})"
    return f"as fast as {peer} ({found.low:.2f} to {found.high:.2f})"


def ms_text(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.3g}"


def group_lines(entry: Entry) -> list[str]:
    """Our first member against the fastest peer and the published one; then each other variant of ours."""
    first, *names = entry["ms"]
    lines = []
    for ours in [first, *(name for name in names if is_ours(name))]:
        peers = [name for name in entry["ms"] if name != PRODUCT and not is_ours(name)]
        found = {name: r for name in (*peers, first) if (r := ratio(entry, name, ours)) is not None}
        fastest = sorted(peers, key=lambda name: found[name].median)[:1]
        others = [name for name in (PUBLISHED, first) if name in found and name != ours]
        named = dict.fromkeys(fastest + others)
        words = ", ".join(in_words(found[name], name) for name in named)
        head = entry["group"] if ours == first else f"  {ours}"
        lines.append(f"{head:<58} {ms_text(median_ms(entry, ours)):>7} ms  {words}".rstrip())
    return lines


def target_line(target: Target, found: Verdict) -> str:
    sign = "<=" if target.per_flop else ">="
    line = f"{target.text:<58} {sign} {target.bound:.1f} x"
    if found.ratio is None:
        return f"{line}  {found.word}"
    line += f"  {found.ratio.median:5.2f} x  {found.word}"
    if found.floor_ms is not None and found.ms is not None:
        line += f"  ({ms_text(found.ms)} ms; floor by arithmetic {ms_text(found.floor_ms)} ms)"
    return line


def summary(entries: Sequence[Entry], left_out: Mapping[str, str]) -> list[str]:
    """Text for the terminal.

    Args:
        entries: the groups measured.
        left_out: {group: why it was not}.
    """
    lines = ["medians of rounds in turn with the peers; in brackets the quartiles of the rounds' ratios"]
    for entry in entries:
        lines += group_lines(entry)
    busiest = max((entry["load"] for entry in entries), default=0.0)
    if busiest > BUSY * (os.cpu_count() or 1):
        lines += ["", f"the machine was busy (load {busiest:.1f}): times are too long, ratios less so"]
    groups = {entry["group"] for entry in entries}
    chosen = [target for target in TARGETS if target.group in groups]
    if chosen:
        lines += ["", "targets"]
        lines += [target_line(target, verdict(target, entries)) for target in chosen]
    missing = [f"{group}: {why}" for group, why in left_out.items()]
    for entry in entries:
        for kind in ("left_out", "failed"):
            missing += [
                f"{entry['group']}, {name}: {'FAILED: ' if kind == 'failed' else ''}{why}"
                for name, why in entry.get(kind, {}).items()
            ]
    if missing:
        lines += ["", "left out", *missing]
    return lines
