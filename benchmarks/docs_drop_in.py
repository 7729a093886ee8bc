"""The tables of models of other libraries before and after `accelerate`, from the results files."""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench_drop_in import BEFORE
from benchmarks.compare import OURS
from benchmarks.record import Record
from benchmarks.summary import ms_text
from benchmarks.table import timed_entries

PREFIX = "drop-in, "
FORWARD, STEP = "forward", "training step"


class Timed(NamedTuple):
    """One direction of one model: milliseconds, MiB at the peak, and the ratio of the times, as measured.

    python: whether Python may have taken longer to launch the kernels than they took.
    """

    before: float
    after: float
    ratio: float
    peak_before: float
    peak_after: float
    python: bool = False


Rows = dict[str, dict[str, Timed]]  # model with its batch -> direction -> figures


def _placed(rows: Rows, group: str, timed: Timed) -> None:
    name, _, direction = group.removeprefix(PREFIX).rpartition(", ")
    rows.setdefault(name, {})[direction] = timed


def of_cpu(record: Record) -> Rows:
    """Medians; the ratio is the median of those of the rounds."""
    rows: Rows = {}
    for entry in record["groups"]:
        if entry["group"].startswith(PREFIX) and BEFORE in entry["ms"]:
            before, after = entry["ms"][BEFORE], entry["ms"][OURS]
            ratio = statistics.median(b / a for b, a in zip(before, after, strict=True))
            peak = entry["peak MiB"]
            times = statistics.median(before), statistics.median(after)
            _placed(rows, entry["group"], Timed(*times, ratio, peak[BEFORE], peak[OURS]))
    return rows


def of_cuda(folder: Path) -> Iterator[tuple[str, Rows]]:
    """(device, its rows) of every results file of `make gpu` with this stage."""
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        timed = timed_entries(found.get("stages", {}))
        entries = [entry for entry in timed if entry.get("group", "").startswith(PREFIX)]
        rows: Rows = {}
        for before in (e for e in entries if e["peer"] and "ms" in e):
            for after in entries:
                if after["group"] == before["group"] and not after["peer"] and "ms" in after:
                    ratio = before["ms"] / after["ms"]
                    peaks = before["peak MiB"], after["peak MiB"]
                    slow = any(
                        e["dispatch ms"] > 0.9 * e["ms"] for e in (before, after) if "dispatch shows" in e
                    )
                    _placed(rows, after["group"], Timed(before["ms"], after["ms"], ratio, *peaks, slow))
        if rows:
            yield found["device"], rows


def table(rows: Rows) -> list[tuple[str, ...]]:
    """A line for each model: both directions in milliseconds, the memory of the step."""
    lines: list[tuple[str, ...]] = []
    for name, found in rows.items():
        cells = []
        for direction in (FORWARD, STEP):
            x = found.get(direction)
            star = "\\*" if x and x.python else ""
            cells.append(f"{ms_text(x.before)} -> {ms_text(x.after)} ({x.ratio:.2f} x){star}" if x else "")
        x = found.get(STEP, found.get(FORWARD))
        lines.append((name, *cells, f"{x.peak_before:.0f} -> {x.peak_after:.0f}" if x else ""))
    return lines


def verdict(rows: Rows, *, layers: float, everything: float | None = None) -> str:
    """Whether the goals are met: of cross-attention layers forward, and of everything. The worst counts."""

    def said(what: str, bound: float, ratios: Sequence[float]) -> str:
        worst = min(ratios, default=0.0)
        return f"{what} at least {bound:g} x: {'met' if worst >= bound else 'missed'}, {worst:.2f} x"

    crossing = [f[FORWARD].ratio for name, f in rows.items() if "cross-attention" in name and FORWARD in f]
    parts = [said("cross-attention layers forward", layers, crossing)]
    if everything is not None:
        parts.append(said("everything", everything, [x.ratio for f in rows.values() for x in f.values()]))
    return f"Asked: {'; '.join(parts)}.\n"


HEADER = ("model", "forward, ms", "training step, ms", "peak, MiB")


def sentence(cpu: Sequence[Record], folder: Path) -> str:
    """The README's: a whole model and the cross-attention layers, on each machine."""
    places = [
        (f"on {r['machine']['cores']} cores of an {r['machine']['name']} in float32", of_cpu(r)) for r in cpu
    ]
    places += [(f"on one {device} in bfloat16", rows) for device, rows in of_cuda(folder)]
    parts = []
    for place, rows in places:
        name = next((name for name in rows if name.startswith("VideoMAE-base")), "")
        model = rows.get(name, {})
        layers = [f[FORWARD].ratio for name, f in rows.items() if "cross-attention" in name and FORWARD in f]
        if FORWARD in model and STEP in model and layers:
            parts.append(
                f"{place}, {name}, is {model[FORWARD].ratio:.2f} times as fast forward and "
                f"{model[STEP].ratio:.2f} times in training, and cross-attention layers {min(layers):.1f} to "
                f"{max(layers):.1f} times forward"
            )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}.\n" if text else "Not measured.\n"
