"""What a profile found, as plain values: profile.json, and what its figures and its page are made of."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, get_args

from .ceilings import Ceilings
from .config import OURS
from .measure import Cell, Measurement, Traced
from .parts import Kernels
from .work import Part, Work, work_of

PARTS: tuple[Part, ...] = get_args(Part)
PEER_NAMES = {
    "eager": "this package",
    "compiled": "this package, torch.compile",
    "published": "published model",
    "published-sdpa": "published model, torch's fused attention",
}
# Other parts have no work that would bind them.
_WITH_RATES = tuple(part for part in PARTS if part not in ("head and loss", "other", "launching"))
_KERNELS = 12  # in the list
_MUCH = 0.1  # of a step, in which the device waits
_16_BITS = ("bfloat16", "float16")


def cell_facts(measured: Measurement) -> list[dict[str, Any]]:
    """Times and memory of each model at each shape; of the others also how much slower they are than ours."""
    return [
        _cell_facts(cell, measured.cell(OURS, cell.what, cell.batch, cell.frames)) for cell in measured.cells
    ]


def _cell_facts(cell: Cell, ours: Cell) -> dict[str, Any]:
    return {
        "peer": cell.peer,
        "what": cell.what,
        "batch": cell.batch,
        "frames": cell.frames,
        "seconds": cell.seconds,
        "fastest": min(cell.times),
        "slowest": max(cell.times),
        "rounds": len(cell.times),
        "clips_per_second": cell.clips_per_second,
        "memory_bytes": cell.memory,
        "compile_seconds": cell.compile_seconds,
        "graph": cell.graph,
        "times_ours": cell.slower_than(ours),
    }


def part_facts(measured: Measurement, traced: Traced, ceilings: Ceilings) -> dict[str, Any]:
    """Seconds of each part of a call, which add up to the median of those without the profiler.

    On the CPU the times of the profiled call are scaled to it. Kernels take the same time with the profiler,
    but Python launches them more slowly: on CUDA what they leave of the median is "launching", in which the
    device had none to run.

    The parts of this package's model also have their operations and bytes, and `reached`: the shortest time
    that the machine's ceilings permit over the time taken.
    """
    cell = measured.cell(traced.peer, traced.what, traced.batch, traced.frames)
    times, total = traced.times, traced.seconds
    scale = total / times.busy
    if times.on_device:
        scale = min(1.0, scale)  # below 1 by the noise of the clock
    dtype = str(measured.dtype).removeprefix("torch.")
    work = work_of(
        measured.architecture,
        traced.batch,
        traced.frames,
        measured.config.image_size,
        itemsize=2 if dtype in _16_BITS else 4,
        gelu_apart=times.gelu_apart,
    )
    seconds: dict[Part, dict[str, float]] = defaultdict(dict)
    for (part, direction), value in times.seconds.items():
        seconds[part][direction] = value * scale
    if times.on_device:
        seconds["launching"]["update"] = total - times.busy * scale
    rows = []
    for part in PARTS:
        if part not in seconds:
            continue
        own = seconds[part]
        whole = sum(own.values())
        row: dict[str, Any] = {"part": part, "seconds": whole, "share": whole / total, **own}
        did = {direction: w for (name, direction), w in work.items() if name == part and direction in own}
        if part in _WITH_RATES and did and whole and traced.peer == OURS:
            row |= _reached(did, whole, ceilings, dtype)
        rows.append(row)
    return {
        "peer": traced.peer,
        "what": traced.what,
        "batch": traced.batch,
        "frames": traced.frames,
        "seconds": total,
        "graph_seconds": cell.seconds if cell.graph else None,
        "profiled_seconds": times.total,
        "profiling_overhead": times.total / total - 1,
        "of_kernels": times.on_device,
        "kernels": [kernel._asdict() for kernel in _listed(times.kernels)],
        "parts": rows,
    }


def _listed(kernels: Sequence[Kernels]) -> list[Kernels]:
    """Those that took longest, and all that no part claims."""
    return [k for rank, k in enumerate(kernels) if rank < _KERNELS or k.part == "other"]


def _reached(did: dict[Any, Work], seconds: float, ceilings: Ceilings, dtype: str) -> dict[str, Any]:
    """Operations, bytes and rates of a part, and the share of what the machine reaches."""
    products = ceilings.products[dtype]
    whole = sum(did.values(), Work())
    by_products = sum(w.flops / products for w in did.values())
    by_memory = sum(w.bytes / ceilings.memory for w in did.values())
    least = sum(max(w.flops / products, w.bytes / ceilings.memory) for w in did.values())
    return {
        "flops": whole.flops,
        "bytes": whole.bytes,
        "flops_per_second": whole.flops / seconds,
        "bytes_per_second": whole.bytes / seconds,
        "bound": "matrix product" if by_products > by_memory else "memory",
        "reached": least / seconds,
    }


def find(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The first row with these values."""
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def sentences(facts: dict[str, Any]) -> list[str]:
    """The findings in words: where the time goes, how fast it is, and what fits."""
    found = _of_step(facts["parts"][0])  # of ours, the largest batch, the fewest frames
    for frames in dict.fromkeys(cell["frames"] for cell in facts["cells"]):
        best = {}
        for what in ("training step", "forward"):
            rows = [c for c in facts["cells"] if (c["peer"], c["what"], c["frames"]) == (OURS, what, frames)]
            best[what] = max(rows, key=lambda c: c["clips_per_second"])
        train, forward = best["training step"], best["forward"]
        found.append(
            f"At {frames} frames it trains {train['clips_per_second']:.3g} clips/s (batch {train['batch']}) "
            f"and predicts {forward['clips_per_second']:.3g} clips/s (batch {forward['batch']})."
        )
    for peer in facts["compared_with"]:
        slower_step, slower_forward = (
            _range([c["times_ours"] for c in facts["cells"] if (c["peer"], c["what"]) == (peer, what)])
            for what in ("training step", "forward")
        )
        found.append(
            f"{PEER_NAMES[peer].capitalize()}: a training step takes {slower_step} times as long as this "
            f"package's, a forward {slower_forward} times."
        )
    for row in facts["largest_batch"]:
        how = row["how"]
        if row["graph_batch"]:
            how += f"; up to about {row['graph_batch']} run as a CUDA graph"
        found.append(f"Largest batch of a training step at {row['frames']} frames: {row['batch']} ({how}).")
    return found


def _of_step(step: dict[str, Any]) -> list[str]:
    """Where the time of a training step goes and, if the device waits for much of it, what to do about it."""
    rest = ("other", "launching")
    parts = [row for row in step["parts"] if row["part"] not in rest]
    first, second, *_ = sorted(parts, key=lambda row: -row["seconds"])
    waiting = find(step["parts"], part="launching")
    waits = 0.0 if waiting is None else waiting["seconds"]
    work = step["seconds"] - waits
    where = f"batch {step['batch']}, {step['frames']} frames"
    of = f"a training step ({where})"
    if waiting is not None:
        of = f"the {ms(work)} ms in which the device works on {of}"
    found = [
        f"{percent(first['seconds'] / work)} of {of} is {first['part']}{_at(first)}; "
        f"next is {second['part']} with {percent(second['seconds'] / work)}{_at(second)}."
    ]
    if waits > _MUCH * step["seconds"]:
        if step["graph_seconds"] is None:
            advice = "a larger batch keeps it busy"
        else:
            advice = "`hsta-fast train` runs forward and backward as one CUDA graph, with which a step takes "
            advice += f"{ms(step['graph_seconds'])} ms"
        found.append(
            f"In {percent(waits / step['seconds'])} of the step's {ms(step['seconds'])} ms the device waits "
            f"for Python, which launches the kernels one by one: {advice}."
        )
    return found


def ms(seconds: float) -> str:
    """Milliseconds with three digits or all before the point."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate_text(value: float, unit: str) -> str:
    """A rate with three digits and a prefix: 1.2 TB/s."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def percent(share: float) -> str:
    """A share as 54 %."""
    return f"{100 * share:.0f} %" if share > 0.0095 else f"{100 * share:.1f} %"


def _range(ratios: Sequence[float]) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"


def _at(row: dict[str, Any]) -> str:
    """How far a part is from what the machine reaches, in words."""
    if "reached" not in row:
        return ""
    return f", at {percent(row['reached'])} of what this machine's {row['bound']} reaches"
