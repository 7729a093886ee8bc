"""The timeline of a video as a figure: movement, its threshold, the intervals and their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from ..protocol.plots import GREY, INK, as_shipped, new_figure, plain_axes, png
from ..spotting.spotter import drawn
from .result import PredictedInterval, Prediction

# The Okabe-Ito palette differs in every common form of colour blindness.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
ROW_SECONDS = 120.0  # of the video in one row of the figure
MOST_ROWS = 10
_COLUMNS = 1500  # points of a curve in a row: more than its pixels show
_NARROWEST = 0.006  # of a row: a bar of probabilities is at least as wide


def color_of(classes: Sequence[str], name: str) -> str:
    """The colour of a class, by its place among the classes."""
    return COLORS[list(classes).index(name) % len(COLORS)]


@as_shipped
def timeline(prediction: Prediction) -> bytes:
    """The figure of a spotted video as PNG."""
    seconds = prediction.times
    assert seconds is not None and prediction.energy is not None and prediction.threshold is not None
    whole = float(seconds[-1]) if len(seconds) else 0.0
    rows = min(MOST_ROWS, max(1, math.ceil(whole / ROW_SECONDS)))
    figure = new_figure(10.5, 2.5 * rows + 0.6, "")
    heights = [3.0, 0.8] * rows
    axes = figure.subplots(2 * rows, 1, height_ratios=heights, squeeze=False)[:, 0]
    highest = float(prediction.energy.max(initial=0)), 2 * float(np.median(prediction.threshold))
    top = 1.08 * max(*highest, 1e-6)
    for row in range(rows):
        start, end = whole * row / rows, whole * (row + 1) / rows
        energy, shares = axes[2 * row], axes[2 * row + 1]
        inside = [one for one in prediction.intervals if one.seconds and start <= one.seconds[1] <= end]
        _energy(energy, prediction, (start, end), inside)
        energy.set_ylim(0, top)
        draw_shares(shares, prediction.classes, (start, end), inside)
        for axis in (energy, shares):
            axis.set_xlim(start, max(end, start + 1e-3))
    axes[-1].set_xlabel("time", color=GREY)
    handles = [Patch(color=color_of(prediction.classes, name), label=name) for name in prediction.classes]
    if any(one.unsure for one in prediction.intervals):
        handles.append(Patch(facecolor="white", edgecolor=GREY, hatch="////", label="unsure"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, labelcolor=INK)
    return png(figure)


def energy_drawn(prediction: Prediction) -> np.ndarray:
    """The movement at each frame, (frames,); not a number, a gap, where no face was seen."""
    assert prediction.energy is not None and prediction.seen is not None
    return np.where(prediction.seen, prediction.energy, np.nan)


def _energy(
    axes: Axes,
    prediction: Prediction,
    span: tuple[float, float],
    inside: Sequence[PredictedInterval],
) -> None:
    seconds, energy, threshold = prediction.times, prediction.energy, prediction.threshold
    assert seconds is not None and energy is not None and threshold is not None
    part = slice(*np.searchsorted(seconds, span, side="left").tolist())
    for one in inside:
        assert one.seconds is not None
        color = color_of(prediction.classes, one.predicted)
        axes.axvspan(
            one.seconds[0],
            one.seconds[2],
            facecolor=color,
            alpha=0.35,
            hatch="////" if one.unsure else None,
            edgecolor=color if one.unsure else "none",
            linewidth=0,
        )
    if len(seconds[part]):
        axes.plot(*_thinned(seconds[part], energy_drawn(prediction)[part]), color=INK, linewidth=0.9)
        axes.plot(*_thinned(seconds[part], threshold[part]), color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    for one in inside:
        assert one.seconds is not None
        place = (one.seconds[1], float(energy[one.apex]))
        color = color_of(prediction.classes, one.predicted)
        axes.plot(*place, marker="o", markersize=4, color=color, clip_on=False)
    axes.set_ylabel("movement", color=GREY)
    plain_axes(axes)
    axes.tick_params(labelbottom=False)


def draw_shares(
    axes: Axes, classes: Sequence[str], span: tuple[float, float], inside: Sequence[PredictedInterval]
) -> None:
    """Stacked bars of the probabilities, one from the onset of each interval to its offset."""
    least = _NARROWEST * max(span[1] - span[0], 1e-3)
    for one in inside:
        assert one.seconds is not None
        shares = one.calibrated or one.probabilities
        width = max(one.seconds[2] - one.seconds[0], least)
        bottom = 0.0
        for name in classes:
            color = color_of(classes, name)
            axes.bar(one.seconds[0], shares[name], width, bottom=bottom, color=color, align="edge")
            bottom += shares[name]
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1], ["0", "1"])
    axes.set_ylabel("classes", color=GREY)
    plain_axes(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _clock(value)))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{int(minutes)}:{rest:05.2f}".removesuffix(".00")


def _thinned(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve with at most `_COLUMNS` points: the largest of each stretch, so that no peak is lost."""
    if len(times) > _COLUMNS:
        starts = np.linspace(0, len(times), _COLUMNS, endpoint=False).astype(np.int64)
        times, values = times[starts], np.fmax.reduceat(values, starts)
    return times, drawn(values, np.ones(len(values), bool), times)
