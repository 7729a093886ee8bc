"""Measured figures in README.md and docs/, written from benchmarks/results between markers: `make docs`.

A block begins with the line `<!-- measured: NAME -->` and ends with `<!-- end -->`; the names are the keys of
`BLOCKS`, and "op: PREFIX" for the groups whose names start with it. Text outside the blocks is left alone.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import docs_drop_in, docs_faces, docs_spotting
from benchmarks.compare import PRODUCT
from benchmarks.entries import Entry
from benchmarks.processes import ROOT
from benchmarks.record import RESULTS, Record, records
from benchmarks.summary import ms_text
from benchmarks.table import GOALS, goal_line, timed_entries
from benchmarks.targets import TARGETS, Target, Verdict, median_ms, ratio, verdict
from hsta_fast.files import write_text

PAGES = (
    *("README.md", "docs/performance.md", "docs/performance-gpu.md", "docs/data.md", "docs/drop-in.md"),
    "docs/faces.md",
    "docs/spotting.md",
)
_BLOCK = re.compile(r"(<!-- measured: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
Results = Sequence[Record]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def caption(record: Record) -> str:
    """The machine in a few words."""
    machine = record["machine"]
    return f"{machine['name']}, {machine['cores']} cores ({machine['simd']})"


def machines(results: Results) -> str:
    rows = []
    for record in results:
        dates = sorted(entry["date"][:10] for entry in record["groups"])
        loads = [entry["load"] for entry in record["groups"]]
        rows.append(
            (
                caption(record),
                str(record["machine"]["threads"]),
                ", ".join(f"{name} {record['versions'].get(name, '-')}" for name in ("python", "torch")),
                dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
                f"{min(loads)} to {max(loads)}",
            )
        )
    return markdown(("machine", "threads", "versions", "date", "load before a group"), rows)


def per_machine(results: Results, table: Callable[[Record], str]) -> str:
    """One table for each machine, under its name if there are several."""
    if len(results) == 1:
        return table(results[0])
    return "\n".join(f"{caption(record)}:\n\n{table(record)}" for record in results)


def target_row(target: Target, found: Verdict) -> list[str]:
    row = [target.text, f"{'<=' if target.per_flop else '>='} {target.bound:g} x"]
    if found.ratio is None or found.ms is None:
        return [*row, "", found.word, "", "", ""]
    row += [f"{found.ratio.median:.2f} x ({found.ratio.low:.2f} to {found.ratio.high:.2f})", found.word]
    row.append(ms_text(found.ms))
    if found.floor_ms is None or target.per_flop:
        return [*row, "", ""]
    return [*row, ms_text(found.floor_ms), f"{found.ratio.median * found.ms / found.floor_ms:.2f} x"]


def targets(results: Results) -> str:
    header = ("target", "asked", "measured", "", "ms", "floor, ms", "most by arithmetic")
    return per_machine(
        results,
        lambda record: markdown(header, [target_row(t, verdict(t, record["groups"])) for t in TARGETS]),
    )


def _alike(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Groups with the same members stand in one table."""
    found: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        members = tuple(name for name in entry["ms"] if name != PRODUCT)
        found.setdefault(members, []).append(entry)
    return list(found.values())


def figures(entries: Sequence[Entry], prefix: str) -> str:
    """Milliseconds of every member, and those of a peer over ours."""
    members = [name for name in entries[0]["ms"] if name != PRODUCT]
    ours = members[0]
    rows = []
    for entry in entries:
        row = [entry["group"].removeprefix(prefix).lstrip(", ")]
        for name in members:
            cell = ms_text(median_ms(entry, name))
            times = None if name == ours else ratio(entry, name, ours)
            row.append(cell if times is None else f"{cell} ({times.median:.2f} x)")
        rows.append(row)
    return markdown([prefix, *members], rows)


def op(results: Results, prefix: str) -> str:
    def tables(record: Record) -> str:
        chosen = [entry for entry in record["groups"] if entry["group"].startswith(f"{prefix},")]
        return "\n".join(figures(alike, prefix) for alike in _alike(chosen)) or "Not measured.\n"

    return per_machine(results, tables)


def data(results: Results) -> str:
    """Clips per second."""

    def table(record: Record) -> str:
        rows = []
        for entry in record["groups"]:
            if not entry["group"].startswith("data, ") or "decoding" not in entry["ms"]:
                continue
            ours, *peers = entry["ms"]
            row = [entry["group"].removeprefix("data, ")]
            row += [f"{1e3 * entry['clips'] / median_ms(entry, name):.0f}" for name in (*peers, ours)]
            times = [ratio(entry, name, ours) for name in peers]
            row += [f"{found.median:.0f} x" for found in times if found is not None]
            rows.append([*row, str(entry["first_start_ms_per_clip"]), str(entry["later"])])
        header = ["frames on disk to input", "decoding each time", "OpenCV alone", "from the cache"]
        more = ["over decoding", "over OpenCV", "first start, ms per clip", "later start"]
        return markdown([*header, *more], rows)

    return per_machine(results, table)


# op, shape, group (forward; then with the backward), what it stands for, the peer's member
README_ROWS = (
    (
        "`space_time_attention`",
        "B 1, N 1569, H 12, D 64",
        "space_time_attention, N 1569, D 64",
        ("forward", "forward + backward"),
        "softmax(q k^T) v written out",
    ),
    (
        "`tubelet_embed`",
        "B 1, T 16, 224 x 224, C 768",
        "tubelet_embed, video, B 1, T 16",
        ("forward", "forward + weight gradient"),
        "normalise, Conv3d",
    ),
    (
        "`cls_cross_attention`, its projections included",
        "B 2, N 1568, C 768",
        "cls_cross_attention, B 2, C 768, N 1568",
        ("forward", "forward + backward"),
        "norm, keys and values of all tokens, attention",
    ),
    *(
        (
            "`hsta_base`, forward / training step",
            f"B 2, T {T}, 224 x 224",
            f"model, hsta_base, B 2, T {T}",
            ("forward", "training step"),
            "the published formulation",
        )
        for T in (6, 16)
    ),
)


def readme(results: Results) -> str:
    """The few rows of the README, of the machine that was measured last."""
    record = max(results, key=lambda record: max(entry["date"] for entry in record["groups"]))
    entries = {entry["group"]: entry for entry in record["groups"]}
    rows = []
    for name, shape, group, parts, instead in README_ROWS:
        found = [entries.get(f"{group}, {part}") for part in parts]
        times = [
            " / ".join(ms_text(median_ms(entry, member)) if entry else "-" for entry in found)
            for member in ("hsta_fast", "published")
        ]
        rows.append((name, shape, times[0], instead, times[1]))
    head = (
        f"{caption(record)}, torch {record['versions']['torch']}, float32, milliseconds (medians of "
        "`make bench`), forward / with\nbackward:\n\n"
    )
    return head + markdown(("op", "shape", "time", "instead of", "time"), rows)


def cuda(folder: Path = RESULTS) -> str:
    """The goals of CUDA devices, for every results file of `make gpu`."""
    texts = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        if "stages" in found:
            entries = timed_entries(found["stages"])
            lines = [f"    {goal_line(goal, entries)}" for goal in GOALS]
            texts.append(f"{found.get('device', path.stem)}:\n\n" + "\n".join(lines) + "\n")
    nothing = "\n".join(f"    {goal_line(goal, [])}" for goal in GOALS)
    return "\n".join(texts) or f"No CUDA device was at hand:\n\n{nothing}\n"


# The first word of a group, and the heading of its table.
_CUDA_TABLES = {
    "attention": "attention, H 12, bfloat16",
    "csta": "CSTA with its projections, bfloat16",
    "tubelets": "tubelet embedding of uint8 frames, bfloat16",
    "hsta_base": "model, bfloat16",
}


def _cell(entry: Entry | None, ours: Entry) -> str:
    """Milliseconds, and a peer's over ours; a star where Python's dispatch may be what was timed."""
    if entry is None:
        return ""
    if "ms" not in entry:
        return next(word for word in ("refuses", "skipped", "failed") if word in entry)
    text = ms_text(entry["ms"]) + ("\\*" if entry.get("dispatch shows") else "")
    if entry is ours:
        return f"{text} ({entry['TFLOP/s']:.0f} TFLOP/s)" if "TFLOP/s" in entry else text
    return f"{text} ({entry['ms'] / ours['ms']:.2f} x)"


def cuda_figures(folder: Path = RESULTS) -> str:
    """Milliseconds of ours and of every peer on CUDA devices, and those of a peer over ours."""
    texts = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        timed = [e for e in timed_entries(found.get("stages", {})) if "group" in e]
        for word, heading in _CUDA_TABLES.items():
            groups: dict[str, dict[str, Entry]] = {}
            for entry in timed:
                if entry["group"].split()[0] == word:
                    groups.setdefault(entry["group"], {})[entry["name"]] = entry
            ours = {group: next(e for e in by.values() if not e["peer"]) for group, by in groups.items()}
            ours = {group: entry for group, entry in ours.items() if "ms" in entry}
            peers = list(dict.fromkeys(name for g in ours for name, e in groups[g].items() if e["peer"]))
            rows = [
                [
                    group.removeprefix(f"{word} "),
                    *(_cell(e, ours[group]) for e in (ours[group], *map(groups[group].get, peers))),
                ]
                for group in ours
            ]
            if rows:
                texts.append(f"{found['device']}:\n\n{markdown((heading, 'hsta_fast', *peers), rows)}")
    return "\n".join(texts) or "Not measured.\n"


def drop_in(results: Results, folder: Path) -> str:
    """Models of other libraries before and after `accelerate`, on every machine."""
    verdict, tables = docs_drop_in.verdict, []
    places = [(caption(record), docs_drop_in.of_cpu(record), 5.0, 0.95) for record in results]
    cuda = [(device, rows, 8.0, None) for device, rows in docs_drop_in.of_cuda(folder)]
    for place, rows, layers, everything in (*places, *cuda):
        if rows:
            asked = verdict(rows, layers=layers, everything=everything)
            shown = markdown(docs_drop_in.HEADER, docs_drop_in.table(rows))
            tables.append(f"{place}:\n\n{shown}\n{asked}")
    return "\n".join(tables) or "Not measured.\n"


BLOCKS: dict[str, Callable[[Results], str]] = {
    "machines": machines,
    "targets": targets,
    "data": data,
    "readme": readme,
}


def block(name: str, results: Results, folder: Path) -> str:
    if name == "cuda":
        return cuda(folder)
    if name == "cuda figures":
        return cuda_figures(folder)
    if name == "drop-in":
        return drop_in(results, folder)
    if name == "drop-in, in short":
        return docs_drop_in.sentence(results, folder)
    if name.startswith("faces: "):
        rows = docs_faces.rows(folder, name.removeprefix("faces: "))
        return markdown(docs_faces.HEADER, rows) if rows else "Not measured.\n"
    if name == "spotting":
        rows = docs_spotting.rows(folder)
        return markdown(docs_spotting.HEADER, rows) if rows else "Not measured.\n"
    if not results:
        return "Not measured.\n"
    return op(results, name.removeprefix("op: ")) if name.startswith("op: ") else BLOCKS[name](results)


def regenerated(page: str, folder: Path = RESULTS) -> str:
    """The text of a page with every block made anew.

    Raises:
        KeyError: a block without a known name.
    """
    results = records(folder)
    return _BLOCK.sub(lambda found: f"{found[1]}\n{block(found[2], results, folder)}\n{found[3]}", page)


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        write_text(path, regenerated(path.read_text()))
        print(page)


if __name__ == "__main__":
    main()
