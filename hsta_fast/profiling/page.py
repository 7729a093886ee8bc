"""The page of a profile, and its summary for the terminal, both made of the results as plain values."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..protocol import page
from .config import OURS
from .results import PEER_NAMES, ms, percent, rate_text

_OTHERS = 3  # kernels that no part claims, named on the terminal
_FUNCTOR = re.compile(r"\w+(?:Functor|KernelImpl|kernel_cuda|sum_functor|Optimizer)\w*")
_TEMPLATE = Path(__file__).with_name("profile.html.j2")
_HOW_CELLS = (
    "Medians over rounds in which all models take turns, after one round that is not counted. A forward is "
    "without gradients; a training step is batch, forward, loss, backward and AdamW. Memory: weights, in a "
    "training step the optimiser's state, and all tensors at the peak. Times ours: the median over the "
    "rounds of a model's time over this package's in the same round."
)
_IN_A_GRAPH = (
    " CUDA graph: forward and backward run as one, as in `hsta-fast train`; the memory is that of a step "
    "without it, and the graph keeps as much for itself."
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
    kernels = [
        (short_name(k["name"]), k["part"], str(k["number"]), ms(k["seconds"])) for k in first["kernels"]
    ]
    return page.render(
        _TEMPLATE,
        title=f"Profile of {facts['model']}",
        extent=f"{_extent(facts)}; batches: {facts['data']}.",
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
        how_cells=_HOW_CELLS + _IN_A_GRAPH * any(cell["graph"] for cell in facts["cells"]),
        ceilings=_ceilings(facts["ceilings"]),
        how_roof=_HOW_ROOF,
        machine=[(name, str(value)) for name, value in machine.items()],
    )


def _extent(facts: dict[str, Any]) -> str:
    machine, size = facts["machine"], facts["image_size"]
    number = machine["threads"]
    threads = f", {number} thread{'s' * (number > 1)}" if machine["device"] == "cpu" else ""
    return f"{machine['name']}{threads}, {facts['dtype']}, {size} x {size} pixels"


def _how_parts(facts: dict[str, Any]) -> str:
    first = (
        "From torch's profiler, one call each. Parts of the backward are those of the forward operations "
        "that it differentiates."
    )
    last = "trace.json.gz has the first call; open it on ui.perfetto.dev."
    if facts["parts"][0]["of_kernels"]:
        return (
            f"{first} The times are those of the kernels on the device, launched one by one. Other: kernels "
            "that no part claims. Launching: the rest of the call's median without the profiler, in which "
            "the device waits for Python to launch kernels; a step in a CUDA graph has almost none of it. "
            f"{last}"
        )
    overheads = [call["profiling_overhead"] for call in facts["parts"]]
    low, high = min(overheads), max(overheads)
    return (
        f"{first} Other is the rest: Python between the operations. "
        f"The profiled calls took {100 * low:+.1f} to {100 * high:+.1f} % longer than the median without the "
        f"profiler (noise of the machine included); the times are scaled to that median. {last}"
    )


def _call(call: dict[str, Any]) -> dict[str, Any]:
    shape = f"{call['frames']} frames, batch {call['batch']}"
    return {
        "title": f"{PEER_NAMES[call['peer']]}, {call['what']}, {shape}{_launched(call)}: "
        f"{ms(call['seconds'])} ms",
        "rows": [_part(row) for row in call["parts"]],
    }


def _launched(call: dict[str, Any]) -> str:
    """Of a call that a training would run as a CUDA graph: how it ran here."""
    return ", launched kernel by kernel" if call["graph_seconds"] is not None else ""


def _part(row: dict[str, Any]) -> tuple[str, ...]:
    rate = ceiling = ""
    if "reached" in row:
        products = row["bound"] == "matrix product"
        per_second, unit = ("flops_per_second", "FLOP/s") if products else ("bytes_per_second", "B/s")
        rate = rate_text(row[per_second], unit)
        ceiling = f"{percent(row['reached'])} of the {row['bound']}"
    ways = [ms(row[way]) if way in row else "" for way in ("forward", "backward")]
    return row["part"], ms(row["seconds"]), f"{100 * row['share']:.1f} %", *ways, rate, ceiling


def _cell(cell: dict[str, Any]) -> tuple[str, ...]:
    return (
        PEER_NAMES[cell["peer"]],
        cell["what"] + (", CUDA graph" if cell["graph"] else ""),
        str(cell["frames"]),
        str(cell["batch"]),
        ms(cell["seconds"]),
        f"{ms(cell['fastest'])} to {ms(cell['slowest'])}",
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
        (f"matrix product, {name}", rate_text(rate, "FLOP/s")) for name, rate in ceilings["products"].items()
    ]
    return [*rows, ("memory, read and written", rate_text(ceilings["memory"], "B/s"))]


def as_text(facts: dict[str, Any]) -> str:
    """The results in lines: times, parts of the first call, and what they say."""
    cells = [_cell(cell) for cell in facts["cells"]]
    heads = ("model", "what", "frames", "batch", "ms", "", "clips/s", "GB", "times ours")
    wide, what_wide = (max(len(row[column]) for row in cells) for column in (0, 1))
    lines = [f"{facts['model']} on {_extent(facts)}", ""]
    for name, what, frames, batch, time, _, speed, memory, ratio in (heads, *cells):
        line = f"{name:<{wide}}  {what:<{what_wide}} {frames:>6} {batch:>6} {time:>7} {speed:>8} {memory:>6}"
        lines.append(f"{line} {ratio if facts['compared_with'] else '':>10}".rstrip())
    call = facts["parts"][0]
    shape = f"{call['frames']} frames, batch {call['batch']}{_launched(call)}"
    lines += ["", f"a {call['what']} of {shape}, by part:"]
    for row in call["parts"]:
        part, time, share, _, _, rate, ceiling = _part(row)
        lines.append(f"  {part:<14} {time:>7} ms {share:>7}  {rate:>13}  {ceiling}".rstrip())
    lines += [f"  other: {short_name(k['name'])}" for k in call["kernels"] if k["part"] == "other"][:_OTHERS]
    return "\n".join([*lines, "", *facts["summary"], *facts["notes"]])


def short_name(kernel: str) -> str:
    """The name of a CUDA kernel in a line: functors inside torch's templates, but no arguments."""
    if "<" not in kernel:
        return kernel
    outer = kernel.removeprefix("void ").split("<", 1)[0].rsplit("::", 1)[-1]
    inner = _FUNCTOR.search(kernel.split("<", 1)[1])
    return outer if inner is None else f"{outer}: {inner[0]}"
