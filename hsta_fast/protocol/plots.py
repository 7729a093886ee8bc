"""The figures of a run, learning curves and confusion matrices, as PNG and SVG.

Figures are created as objects, never through pyplot, so no global state changes and no display is needed.
They are drawn with the settings that matplotlib ships: a user's matplotlibrc (LaTeX, fonts) changes none.

`report.import_matplotlib` comes first: MPLBACKEND can make matplotlib's import fail.
"""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Blue and vermilion of the Okabe-Ito palette differ in every common form of colour blindness; dashes tell the
# means apart without colour.
_COLORS = {"train": "#0072B2", "test": "#D55E00"}
_DASHES: dict[str, Any] = {"train": (0, (4, 1.5)), "test": "-"}
_LEAKY = "LEAKY: not a score to go by"
_LETTERS_PER_INCH = 6.5  # of a title, however wide the letters are
INK, GREY, GRID = "#1f2328", "#57606a", "#e4e7eb"

as_shipped = rc_context({name: value for name, value in rcParamsDefault.items() if name != "backend"})


@as_shipped
def learning_curves(metrics: pd.DataFrame, *, title: str = "", leaky: bool = False) -> Figure:
    """Loss and accuracy per epoch, train and test: one thin line per fold and their mean as a thick line.

    metrics: columns fold, epoch, train_loss, test_loss, train_acc, test_acc; one row per (fold, epoch).
    The mean is over the folds that reached the last epoch, so that it does not jump where a fold ends.
    title: of the figure. leaky: say so in front of the title.
    """
    figure = new_figure(10.5, 4.2, title, leaky)
    left, right = figure.subplots(1, 2)
    _curves(left, metrics, "loss")
    _curves(right, metrics, "acc")
    left.set_title("Loss", loc="left", color=INK, fontweight="bold")
    left.set_ylim(bottom=0)
    right.set_title("Accuracy", loc="left", color=INK, fontweight="bold")
    right.set_ylim(0, 1.02)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    return figure


def _curves(axes: Axes, metrics: pd.DataFrame, quantity: str) -> None:
    by_fold = [part.sort_values("epoch") for _, part in metrics.groupby("fold", sort=False)]
    last = metrics["epoch"].max()
    complete = [part for part in by_fold if part["epoch"].iloc[-1] == last]
    unlike = len(complete) < len(by_fold)  # some were ended, or chose an earlier epoch
    of_folds = f"{len(complete)} of {len(by_fold)} folds" if unlike else f"{len(by_fold)} folds"
    mean = pd.concat(complete).groupby("epoch").mean(numeric_only=True)
    faint = max(0.15, 0.5 - len(by_fold) / 100)
    for name, color in _COLORS.items():  # a single epoch has no line, so it gets a dot
        column = f"{name}_{quantity}"
        if len(by_fold) > 1:
            for part in by_fold:
                marker = "o" if len(part) == 1 else ""
                thin: dict[str, Any] = {"linewidth": 0.8, "alpha": faint, "marker": marker, "markersize": 3.5}
                axes.plot(part["epoch"], part[column], color=color, **thin)
        marker = "o" if len(mean) == 1 else ""
        style = {"color": color, "linestyle": _DASHES[name], "linewidth": 2.4, "marker": marker}
        words = f"{name}, mean of {of_folds}" if len(by_fold) > 1 else name
        axes.plot(mean.index, mean[column], label=words, **style)
    axes.margins(x=0.02)
    axes.set_xlabel("epoch", color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes)


def plain_axes(axes: Axes) -> None:
    """A faint grid, and no frame but the line below."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


@as_shipped
def confusion_matrix(
    confusion: np.ndarray, classes: Sequence[str], *, title: str = "", leaky: bool = False
) -> Figure:
    """Counts and, below each, its share of the row, which also gives the shade.

    confusion: (K, K) integers, rows the truth, columns the prediction; classes: K names. A row without clips
    shows counts only. title: of the figure. leaky: say so in front of the title.
    """
    return _matrices([confusion], classes, title, leaky)


@as_shipped
def confusion_matrices(
    matrices: Mapping[str, np.ndarray], classes: Sequence[str], *, title: str = "", leaky: bool = False
) -> Figure:
    """`confusion_matrix` of several datasets side by side, each under its name."""
    figure = _matrices(list(matrices.values()), classes, title, leaky)
    for axes, name in zip(figure.axes, matrices, strict=True):
        axes.set_title(name, loc="left", color=INK, fontweight="bold", parse_math=False)
    return figure


def _matrices(matrices: Sequence[np.ndarray], classes: Sequence[str], title: str, leaky: bool) -> Figure:
    for matrix in matrices:
        if matrix.shape != (len(classes), len(classes)):
            raise ValueError(f"confusion expected shape {(len(classes), len(classes))}, got {matrix.shape}")
    side = 2.4 + 0.82 * len(classes)
    figure = new_figure((side + 0.6) * len(matrices), side, title, leaky)
    for axes, matrix in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices, strict=True):
        _matrix(axes, matrix, classes)
    return figure


def _matrix(axes: Axes, confusion: np.ndarray, classes: Sequence[str]) -> None:
    support = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(support, 1)
    axes.imshow(share, cmap=colormaps["Blues"], vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*confusion.shape):
        # Above this shade white has more contrast than the dark ink.
        ink = "white" if share[row, column] > 0.68 else INK
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": ink, "textcoords": "offset points"}
        weight = "bold" if row == column else "normal"
        count = str(int(confusion[row, column]))
        axes.annotate(count, (column, row), xytext=(0, 6), fontsize=13, fontweight=weight, **style)
        if support[row, 0]:
            percent = f"{share[row, column]:.0%}"
            axes.annotate(percent, (column, row), xytext=(0, -10), fontsize=9, **style)
    # parse_math off: a class name is text, whatever it contains.
    long = max(len(name) for name in classes) > 11
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(classes)), classes, parse_math=False, **slant)
    rows = [f"{name}\n{int(n)} clips" for name, n in zip(classes, support[:, 0], strict=True)]
    axes.set_yticks(range(len(classes)), rows, parse_math=False)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", color=GREY, labelpad=8)
    axes.set_ylabel("truth", color=GREY, labelpad=8)


def new_figure(width: float, height: float, title: str, leaky: bool = False) -> Figure:
    """A figure of this width and height in inches, and above it a title; that of a leaky one says so."""
    lines = [_LEAKY] * leaky + textwrap.wrap(title, int(_LETTERS_PER_INCH * width))
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    figure = Figure(figsize=(width, height + 0.2 * len(lines)), dpi=130, layout=layout)
    if lines:
        # parse_math off: the name of a run is text, whatever it contains.
        color = "#a40e26" if leaky else INK
        figure.suptitle("\n".join(lines), color=color, fontsize=10, fontweight="bold", parse_math=False)
    return figure


@as_shipped
def png(figure: Figure) -> bytes:
    """The figure on a white ground as the bytes of a PNG file; a letter that its font lacks is a box."""
    return _saved(figure, "png")


@as_shipped
def png_and_svg(figure: Figure) -> dict[str, bytes]:
    """The same as "png", and as "svg", whose words are text, not outlines, in the same places.

    The bytes of a figure are the same each time: the SVG file has no date.
    """
    picture = _saved(figure, "png")
    figure.set_layout_engine("none")  # all parts stay where they are
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hsta_fast"}):
        return {"png": picture, "svg": _saved(figure, "svg", metadata={"Date": None})}


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format=kind, facecolor="white", **options)
    return buffer.getvalue()
