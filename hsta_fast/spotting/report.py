"""What was spotted, as a table, as text, as JSON and as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..clips import counted
from ..data.frames.stream import FrameStream
from ..protocol.plots import GREY, GRID, INK, as_shipped, new_figure
from .sources import Source
from .spotter import Spotted

COLUMNS = ("subject", "video", "onset", "apex", "offset", "onset_s", "apex_s", "offset_s", "score")
_ROW = 20.0  # seconds in one line of the picture
_MOST = 12  # lines of it
_COLOR = "#D55E00"


def rows(source: Source, stream: FrameStream, spotted: Spotted) -> list[dict[str, Any]]:
    """A row (COLUMNS) for each interval: frames are counted from 0, and inclusive; `_s` are seconds."""
    return [
        {
            "subject": source.subject,
            "video": source.video,
            **{name: getattr(one, name) for name in ("onset", "apex", "offset")},
            **{f"{n}_s": round(stream.seconds(getattr(one, n)), 4) for n in ("onset", "apex", "offset")},
            "score": round(one.score, 3),
        }
        for one in spotted.intervals
    ]


def table(found: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of all recordings as a table that `hsta-fast audit --spotting` reads."""
    return pd.DataFrame(found, columns=list(COLUMNS))


def as_json(source: Source, stream: FrameStream, spotted: Spotted) -> dict[str, Any]:
    """One recording as JSON values."""
    own = [
        {name: value for name, value in row.items() if name not in ("subject", "video")}
        for row in rows(source, stream, spotted)
    ]
    return {
        "subject": source.subject,
        "video": source.video,
        "frames": stream.count,
        "rate": stream.rate,
        "intervals": own,
        "remarks": list(spotted.remarks),
    }


def as_text(source: Source, stream: FrameStream, spotted: Spotted) -> str:
    """One recording in a few lines."""
    length = stream.seconds(stream.count - 1)
    name = " ".join(filter(None, (source.subject, source.video)))
    rate = f"{stream.rate:.4g} frames a second" if stream.rate else "one frame"
    found = counted(len(spotted.intervals), "interval")
    a_minute = f", {60 * len(spotted.intervals) / length:.1f} a minute" if length >= 30 else ""
    lines = [f"{name}: {length:.1f} s at {rate}: {found}{a_minute}"]
    for row in rows(source, stream, spotted):
        times = f"{row['onset_s']:.2f} to {row['offset_s']:.2f} s"
        frames = f"frames {row['onset']} {row['apex']} {row['offset']}"
        lines.append(f"  {times}  {frames}  score {row['score']:.1f}")
    return "\n".join([*lines, *(f"  remark: {remark}" for remark in spotted.remarks)])


@as_shipped
def figure(source: Source, stream: FrameStream, spotted: Spotted) -> Figure:
    """The energy over time, its threshold and the intervals, in lines of 20 s; of a long one the first 12."""
    times = np.array([stream.seconds(number) for number in range(stream.count)])
    shown = min(_MOST, max(1, int(np.ceil((times[-1] + 1e-9) / _ROW))))
    cut = f", the first {shown * _ROW:.0f} s" if times[-1] > shown * _ROW else ""
    made = new_figure(11, 0.4 + 1.35 * shown, f"Movement in {source.video}{cut}")
    lines = np.atleast_1d(made.subplots(shown, 1, sharey=True))
    for number, axes in enumerate(lines):
        _draw(axes, spotted, times, number * _ROW)
    lines[-1].set_xlabel("seconds", color=GREY)
    made.supylabel("hundredths of the face's height", color=GREY, fontsize=9)
    return made


def _draw(axes: Axes, spotted: Spotted, times: np.ndarray, start: float) -> None:
    part = slice(*np.searchsorted(times, (start, start + _ROW)))
    axes.plot(times[part], spotted.energy[part], color=INK, linewidth=0.8)
    axes.plot(times[part], spotted.threshold[part], color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    for one in spotted.intervals:
        axes.axvspan(times[one.onset], times[one.offset], color=_COLOR, alpha=0.35, linewidth=0)
    axes.set_xlim(start, start + min(_ROW, max(times[-1] - start, 1e-3)))
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize=8)
