"""The figures of a profile. They are made of its results as plain values (`results`)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from ..protocol.plots import GREY, GRID, INK, as_shipped, new_figure, plain_axes
from .config import OURS
from .results import PARTS, PEER_NAMES, percent, rate_text

# Okabe-Ito, whose colours differ in every common form of colour blindness, and greys.
COLORS = {
    "USTA products": "#0072B2",
    "USTA attention": "#D55E00",
    "USTA pointwise": "#56B4E9",
    "norms": "#009E73",
    "CSTA": "#CC79A7",
    "embedding": "#F0E442",
    "head and loss": "#8c6d31",
    "optimiser": "#E69F00",
    "data": "#1f2328",
    "other": "#8a939e",
    "launching": "#dfe3e8",
}
_MEANING = {
    "USTA pointwise": "USTA pointwise (GELU, sums, copies)",
    "launching": "launching (the device waits for Python)",
}
_DARK = ("USTA products", "USTA attention", "norms", "head and loss", "data")
_Mark = tuple[float, float, float]  # x and y as data, radius in points
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@as_shipped
def parts_figure(facts: dict[str, Any]) -> Figure:
    """Where the time goes: a stacked bar for each profiled call, its backward lighter than its forward."""
    calls = facts["parts"]
    groups = [[c for c in calls if c["frames"] == n] for n in dict.fromkeys(c["frames"] for c in calls)]
    height = 1.1 + sum(0.75 + 0.62 * len(group) for group in groups)
    figure = new_figure(10.5, height, _title(facts, "where the time goes"))
    ratios = [0.3 + len(group) for group in groups]
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        _bars(axes, group)
    shown = [p for p in PARTS if any(row["part"] == p for c in calls for row in c["parts"])]
    meaning = {**_MEANING, "other": f"other ({'kernels of no part' if calls[0]['of_kernels'] else 'Python'})"}
    handles = [Patch(color=COLORS[p], label=meaning.get(p, p)) for p in shown]
    handles.append(Patch(facecolor="#ffffff", edgecolor=GREY, hatch="////", label="hatched: backward"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK, fontsize=9
    )
    return figure


def _bars(axes: Axes, calls: Sequence[dict[str, Any]]) -> None:
    scale = 1e3 / calls[0]["batch"]  # milliseconds per clip
    longest = max(call["seconds"] for call in calls) * scale
    several = len({call["peer"] for call in calls}) > 1
    for y, call in enumerate(calls):
        left = 0.0
        for row in call["parts"]:
            start = left
            for direction in ("forward", "backward", "update"):
                width = row.get(direction, 0.0) * scale
                style: dict[str, Any] = {"hatch": "////"} if direction == "backward" else {}
                face = COLORS[row["part"]]
                axes.barh(
                    y, width, left=left, height=0.66, color=face, edgecolor="#ffffff", linewidth=0.4, **style
                )
                left += width
            _label(axes, row, (start + left) / 2, y, (left - start) / longest)
        axes.text(left + 0.008 * longest, y, f"{left:,.4g} ms", va="center", fontsize=9, color=INK)
    names = [_name(call, several) for call in calls]
    axes.set_yticks(range(len(calls)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.11)
    axes.set_title(
        f"{calls[0]['frames']} frames, batch {calls[0]['batch']}: milliseconds per clip",
        loc="left",
        color=INK,
        fontsize=10,
        fontweight="bold",
    )
    plain_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", colors=INK)


def _name(call: dict[str, Any], several: bool) -> str:
    """Of a bar: what was called and, of `several` models, which; without the graph that a training has."""
    lines = [call["what"], PEER_NAMES[call["peer"]] if several else ""]
    lines.append("without its CUDA graph" if call["graph_seconds"] is not None else "")
    return "\n".join(filter(None, lines))


def _label(axes: Axes, row: dict[str, Any], x: float, y: float, width: float) -> None:
    """The share of a part, and its name where there is room: `width` is a share of the longest bar."""
    if width < 0.045:
        return
    name = row["part"]
    words = percent(row["share"])
    words = f"{name} {words}" if width > 0.012 * (len(name) + len(words)) else words
    box = {"facecolor": COLORS[name], "edgecolor": "none", "pad": 1.2}
    text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold", "bbox": box}
    axes.text(x, y, words, color="white" if name in _DARK else INK, **text)


def has_scaling(facts: dict[str, Any]) -> bool:
    """Whether there is more than one shape to draw."""
    return len({(cell["batch"], cell["frames"]) for cell in facts["cells"]}) > 1


@as_shipped
def scaling_figure(facts: dict[str, Any]) -> Figure:
    """Clips per second, and memory, over batch sizes: a line for each number of frames."""
    cells = [cell for cell in facts["cells"] if cell["peer"] == OURS]
    figure = new_figure(10.5, 4.4, _title(facts, "throughput and memory"))
    panels = figure.subplots(1, 3)
    frames = list(dict.fromkeys(cell["frames"] for cell in cells))
    batches = sorted({cell["batch"] for cell in cells})
    kinds = (("training step", "clips_per_second", 1.0), ("forward", "clips_per_second", 1.0))
    titles = ("Training, clips/s", "Forward, clips/s", "Memory of training, GB")
    for axes, (what, key, scale), title in zip(
        panels, (*kinds, ("training step", "memory_bytes", 1e-9)), titles, strict=True
    ):
        for color, count in zip(_SERIES * len(frames), frames, strict=False):
            rows = sorted(
                (c for c in cells if (c["what"], c["frames"]) == (what, count)), key=lambda c: c["batch"]
            )
            x, y = [c["batch"] for c in rows], np.array([c[key] for c in rows]) * scale
            axes.plot(x, y, color=color, marker="o", markersize=5, linewidth=2, label=f"{count} frames")
            if key == "clips_per_second":
                low, high = ([c["batch"] / c[end] for c in rows] for end in ("slowest", "fastest"))
                axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            axes.annotate(
                f"{y[-1]:.3g}",
                (x[-1], y[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=color,
            )
        axes.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
        axes.set_xlabel("clips in a batch", color=GREY)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(b) for b in batches])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.16, y=0.12)
        axes.set_ylim(bottom=0)
        plain_axes(axes)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(frames), frameon=False, labelcolor=INK
    )
    return figure


@as_shipped
def roofline_figure(facts: dict[str, Any]) -> Figure:
    """The parts of a training step under what the machine reaches: its products, and its memory."""
    figure = new_figure(10.5, 5.6, _title(facts, "training under the roof"))
    axes = figure.subplots()
    calls = [c for c in facts["parts"] if c["peer"] == OURS and c["what"] == "training step"]
    parts = [p for p in PARTS if all(_has_work(_row(call, p)) for call in calls)]
    intensities = [row["flops"] / row["bytes"] for call in calls for p in parts if (row := _row(call, p))]
    low, high = min(0.3, *intensities) / 1.6, max(300.0, *intensities) * 4
    _roof(axes, facts, low, high)
    heights: list[float] = []
    marks: dict[str, list[_Mark]] = {}
    for part in parts:
        rows = [(_row(call, part), call) for call in calls]
        x = [row["flops"] / row["bytes"] for row, _ in rows]
        y = [row["flops_per_second"] for row, _ in rows]
        heights += y
        axes.plot(x, y, color=COLORS[part], linewidth=1.5, zorder=2)
        for number, (row, call) in enumerate(rows):
            size = 40 + 900 * row["seconds"] / call["seconds"]
            face = "#ffffff" if number else COLORS[part]
            style: dict[str, Any] = {"edgecolors": COLORS[part], "linewidths": 2, "zorder": 3}
            axes.scatter(x[number], y[number], s=size, color=face, **style)
        marks[part] = [
            (at_x, at_y, 20 * (row["seconds"] / call["seconds"]) ** 0.5 + 5)
            for at_x, at_y, (row, call) in zip(x, y, rows, strict=True)
        ]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(heights) / 3, max(facts["ceilings"]["products"].values()) * 2.2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_text(value, "FLOP/s")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("operations per byte that must move", color=GREY)
    kinds = ", ".join(f"{'hollow' if i else 'filled'}: {c['frames']} frames" for i, c in enumerate(calls))
    title = f"{kinds}; a larger point takes more of the time"
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    plain_axes(axes)
    axes.grid(which="minor", color=GRID, linewidth=0.4)
    figure.draw_without_rendering()  # the layout decides where the marks are
    rate, peak = facts["ceilings"]["memory"], facts["ceilings"]["products"][facts["dtype"]]
    across = [float(x) for x in np.geomspace(low, high, 200)]
    roof = [(x, min(x * rate, peak)) for x in across]
    slanted = [(x, y, 3.0) for x, y in roof[::8] if y < peak]
    if slanted:  # else no part moves so many bytes that memory binds it
        marks[f"memory: {rate_text(rate, 'B/s')}"] = slanted
    for name, height in facts["ceilings"]["products"].items():
        level = [(x, height) for x in across if x * rate >= height]
        words = f"matrix product, {name}: {rate_text(height, 'FLOP/s')}"
        marks[words] = [(x, y, 1.0) for x, y in level[::4]]
        roof += level
    _name_marks(figure, axes, marks, roof)
    return figure


_AROUND = ((0, -1), (1, 0), (-1, 0), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))


def _name_marks(
    figure: Figure, axes: Axes, marks: dict[str, list[_Mark]], roof: Sequence[tuple[float, float]]
) -> None:
    """Write the name of each part beside one of its marks, where it covers least of marks, names and roof."""
    point = figure.dpi / 72  # in pixels, as all that follows
    frame = axes.bbox

    def to_pixels(at: tuple[float, float]) -> tuple[float, float]:
        x, y = axes.transData.transform(at)
        return float(x), float(y)

    taken = [(*to_pixels((x, y)), r * point, r * point) for own in marks.values() for x, y, r in own]
    taken += [(*to_pixels(at), 2 * point, 2 * point) for at in roof]  # centre, half of width and height

    for words in axes.texts:
        box = words.get_window_extent()
        taken.append(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, box.width / 2, box.height / 2))

    def covered(x: float, y: float, wide: float, high: float) -> float:
        if abs(x - (frame.x0 + frame.x1) / 2) > frame.width / 2 - wide:
            return math.inf
        if abs(y - (frame.y0 + frame.y1) / 2) > frame.height / 2 - high:
            return math.inf
        over = ((wide + w - abs(x - at_x), high + h - abs(y - at_y)) for at_x, at_y, w, h in taken)
        return sum(dx * dy for dx, dy in over if dx > 0 and dy > 0)

    for part, own in marks.items():
        wide, high = 2.7 * len(part) * point, 6 * point
        places: list[tuple[float, float]] = []
        for x, y, r in sorted(own, key=lambda mark: mark[1]):
            (at_x, at_y), away = to_pixels((x, y)), (r + 3) * point
            for dx, dy in _AROUND:
                near = 0.7 * away if dx and dy else away
                places.append((at_x + dx * (wide + near), at_y + dy * (high + near)))
        best = min(places, key=lambda at: covered(at[0], at[1], wide, high))
        taken.append((*best, wide, high))
        x, y = axes.transData.inverted().transform(best)
        axes.text(x, y, part, fontsize=9, color=INK, zorder=4, ha="center", va="center")


def _row(call: dict[str, Any], part: str) -> dict[str, Any]:
    return next((row for row in call["parts"] if row["part"] == part), {})


def _has_work(row: dict[str, Any]) -> bool:
    return bool(row.get("flops") and row.get("bytes"))


def _roof(axes: Axes, facts: dict[str, Any], low: float, high: float) -> None:
    """The slanted line of memory and the level ones of the products, from `low` to `high` on the x axis."""
    ceilings, rate = facts["ceilings"], facts["ceilings"]["memory"]
    for name, peak in ceilings["products"].items():
        own = name == facts["dtype"]
        color = INK if own else GREY
        dashes: Any = "-" if own else (0, (4, 2))
        x, y = [low, peak / rate, high], [low * rate, peak, peak]
        axes.plot(x, y, color=color, linewidth=2 if own else 1, linestyle=dashes)


def _title(facts: dict[str, Any], what: str) -> str:
    return f"{facts['model']}, {facts['dtype']}, {facts['machine']['name']}: {what}"
