"""The page of a profile, and its summary for the terminal, both made of the results as plain values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..protocol import page
from .config import OURS
from .results import PEER_NAMES, percent

_TEMPLATE = Path(__file__).with_name("profile.html.j2")
_HOW_CELLS = (
    "Medians over rounds in which all models take turns, after one round that is not counted. A forward is "
    "without gradients; a training step is batch, forward, loss, backward and AdamW. Memory: weights, in a "
    "training step the optimiser's state, and all tensors at the peak. Times ours: the median over the "
    "rounds of a model's time over this package's in the same round."
)
_HOW_ROOF = (
    "A point is a part of a training step, forward and backward together. Operations are those of the "
    "equations; bytes are the least that must move if each step of a part reads its inputs and writes its "
    "results once. Norms, GELU, sums and the optimiser have nominal operations: bytes bind them, and how "
    "far they are below the slanted line does not depend on the operations. Of the ceiling: the shortest "
    "time that the ceilings permit over the time taken. It can pass 100 % where data stay in a cache."
)


def render(facts: dict[str, Any], figures: Mapping[str, bytes]) -> str:
    """One page of HTML that needs no other file; `figures` are PNG bytes by name."""
    machine = facts["machine"]
    calls = [_call(call) for call in facts["parts"]]
    first = facts["parts"][0]
    kernels = [(name, str(number), _ms(seconds)) for name, number, seconds in first["kernels"]]
    return page.render(
        _TEMPLATE,
        title=f"Profile of {facts['model']}",
        extent=f"{machine['name']}, {facts['dtype']}, {facts['image_size']} x {facts['image_size']} pixels; "
        f"batches: {facts['data']}.",
        sentences=facts["summary"],
        notes=facts["notes"],
        cards=_cards(facts),
        parts_png=figures["parts.png"],
        scaling_png=figures.get("scaling.png"),
        roofline_png=figures["roofline.png"],
        calls=calls,
        how_parts=_how_parts(facts),
        kernels=kernels,
        cells=[_cell(cell) for cell in facts["cells"]],
        how_cells=_HOW_CELLS,
        ceilings=_ceilings(facts["ceilings"]),
        how_roof=_HOW_ROOF,
        machine=[(name, str(value)) for name, value in machine.items()],
    )


def _how_parts(facts: dict[str, Any]) -> str:
    overheads = [call["profiling_overhead"] for call in facts["parts"]]
    low, high = min(overheads), max(overheads)
    return (
        "From torch's profiler, one call each. Parts of the backward are those of the forward operations "
        "that it differentiates. Other is the rest: Python between the operations, and on CUDA the time in "
        f"which the device waits. The profiled calls took {100 * low:+.1f} to {100 * high:+.1f} % longer "
        "than the median without the profiler (noise of the machine included); the times are scaled to that "
        "median. trace.json.gz has the first call; open it on ui.perfetto.dev."
    )


def _call(call: dict[str, Any]) -> dict[str, Any]:
    shape = f"{call['frames']} frames, batch {call['batch']}"
    return {
        "title": f"{PEER_NAMES[call['peer']]}, {call['what']}, {shape}: {_ms(call['seconds'])} ms",
        "rows": [_part(row) for row in call["parts"]],
    }


def _part(row: dict[str, Any]) -> tuple[str, ...]:
    rate = ceiling = ""
    if "reached" in row:
        products = row["bound"] == "matrix product"
        per_second, unit = ("flops_per_second", "GFLOP/s") if products else ("bytes_per_second", "GB/s")
        rate = f"{row[per_second] / 1e9:,.3g} {unit}"
        ceiling = f"{percent(row['reached'])} of the {row['bound']}"
    ways = [_ms(row[way]) if way in row else "" for way in ("forward", "backward")]
    return row["part"], _ms(row["seconds"]), f"{100 * row['share']:.1f} %", *ways, rate, ceiling


def _cell(cell: dict[str, Any]) -> tuple[str, ...]:
    return (
        PEER_NAMES[cell["peer"]],
        cell["what"],
        str(cell["frames"]),
        str(cell["batch"]),
        _ms(cell["seconds"]),
        f"{_ms(cell['fastest'])} to {_ms(cell['slowest'])}",
        f"{cell['clips_per_second']:.3g}",
        f"{cell['memory_bytes'] / 1e9:.2f}",
        "" if cell["peer"] == OURS else f"{cell['times_ours']:.2f}",
    )


def _cards(facts: dict[str, Any]) -> list[dict[str, str]]:
    cards = []
    for what, name in (("training step", "Training"), ("forward", "Forward")):
        rows = [c for c in facts["cells"] if (c["peer"], c["what"]) == (OURS, what)]
        best = max(rows, key=lambda c: c["clips_per_second"])
        meaning = f"clips/s at batch {best['batch']}, {best['frames']} frames"
        cards.append({"name": name, "value": f"{best['clips_per_second']:.3g}", "meaning": meaning})
    step = facts["parts"][0]
    products = next((row for row in step["parts"] if row["part"] == "USTA products"), None)
    if products is not None and "reached" in products:
        meaning = f"of the machine's {products['bound']}, in the products of USTA"
        cards.append(
            {"name": "Of the ceiling", "value": f"{percent(products['reached'])}", "meaning": meaning}
        )
    cards.extend(
        {
            "name": "Largest batch",
            "value": str(row["batch"]),
            "meaning": f"at {row['frames']} frames; {row['how']}",
        }
        for row in facts["largest_batch"][:1]
    )
    return cards


def _ceilings(ceilings: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (f"matrix product, {name}", f"{rate / 1e9:,.4g} GFLOP/s")
        for name, rate in ceilings["products"].items()
    ]
    return [*rows, ("memory, read and written", f"{ceilings['memory'] / 1e9:,.3g} GB/s")]


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def as_text(facts: dict[str, Any]) -> str:
    """The results in lines: times, parts of the first call, and what they say."""
    cells = [_cell(cell) for cell in facts["cells"]]
    heads = ("model", "what", "frames", "batch", "ms", "", "clips/s", "GB", "times ours")
    wide = max(len(row[0]) for row in cells)
    lines = []
    for name, what, frames, batch, ms, _, speed, memory, ratio in (heads, *cells):
        line = f"{name:<{wide}}  {what:<13} {frames:>6} {batch:>6} {ms:>7} {speed:>8} {memory:>6}"
        lines.append(f"{line} {ratio if facts['compared_with'] else '':>10}".rstrip())
    call = facts["parts"][0]
    lines += ["", f"a {call['what']} of {call['frames']} frames, batch {call['batch']}, by part:"]
    for row in call["parts"]:
        part, ms, share, _, _, rate, ceiling = _part(row)
        lines.append(f"  {part:<14} {ms:>7} ms {share:>7}  {rate:>13}  {ceiling}".rstrip())
    return "\n".join([*lines, "", *facts["summary"]])
