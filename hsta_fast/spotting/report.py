"""What was spotted, as a table, as text, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..clips import counted
from ..data.frames.stream import FrameStream
from ..files import one_line
from ..protocol.plots import GREY, GRID, INK, as_shipped, new_figure
from .sources import Source
from .spotter import Spotted, drawn

COLUMNS = ("subject", "video", "onset", "apex", "offset", "onset_s", "apex_s", "offset_s", "score")
OF_MODEL = ("class", "probability")  # further columns of intervals that a model has classified
_ROW = 20.0  # seconds in one line of the picture
_MOST = 12  # lines of it
_COLOR = "#D55E00"


@dataclass(frozen=True)
class Found:
    """What was spotted in a recording.

    answers: class and probability of each interval by a model, if there is one; None for an interval that
        cannot be shown to it.
    """

    source: Source
    stream: FrameStream
    spotted: Spotted
    answers: Sequence[tuple[str, float] | None] = ()


def rows(found: Found) -> list[dict[str, Any]]:
    """A row for each interval (COLUMNS, OF_MODEL): frames from 0, inclusive; `_s` are seconds."""
    source, stream, intervals = found.source, found.stream, found.spotted.intervals
    made = [
        {
            "subject": source.subject,
            "video": source.video,
            **{name: getattr(one, name) for name in ("onset", "apex", "offset")},
            **{f"{n}_s": round(stream.seconds(getattr(one, n)), 4) for n in ("onset", "apex", "offset")},
            "score": round(one.score, 3),
        }
        for one in intervals
    ]
    for row, answer in zip(made, found.answers, strict=False):
        row |= dict(zip(OF_MODEL, (answer[0], round(answer[1], 4)) if answer else ("", None), strict=True))
    return made


def table(found: list[dict[str, Any]], *, classified: bool) -> pd.DataFrame:
    """The rows of all recordings as a table that `hsta-fast audit --spotting` reads."""
    return pd.DataFrame(found, columns=[*COLUMNS, *OF_MODEL] if classified else list(COLUMNS))


def as_json(found: Found) -> dict[str, Any]:
    """One recording as JSON values."""
    own = [
        {name: value for name, value in row.items() if name not in ("subject", "video")}
        for row in rows(found)
    ]
    return {
        "subject": found.source.subject,
        "video": found.source.video,
        "frames": found.stream.count,
        "rate": found.stream.rate,
        "intervals": own,
        "remarks": list(found.spotted.remarks),
    }


def as_text(found: Found) -> str:
    """One recording in a few lines."""
    source, stream, spotted = found.source, found.stream, found.spotted
    length = stream.seconds(stream.count - 1)
    name = " ".join(filter(None, (source.subject, source.video)))
    rate = f"{stream.known_rate():.4g} frames a second"
    intervals = counted(len(spotted.intervals), "interval")
    a_minute = f", {60 * len(spotted.intervals) / length:.1f} a minute" if length >= 30 else ""
    lines = [f"{one_line(name)}: {length:.1f} s at {rate}: {intervals}{a_minute}"]
    for row in rows(found):
        times = f"{row['onset_s']:.2f} to {row['offset_s']:.2f} s"
        frames = f"frames {row['onset']} {row['apex']} {row['offset']}"
        answer = f"  {row['class']} {row['probability']:.2f}" if row.get("class") else ""
        lines.append(f"  {times}  {frames}  score {row['score']:.1f}{answer}")
    return "\n".join([*lines, *(f"  remark: {remark}" for remark in spotted.remarks)])


@as_shipped
def figure(found: Found) -> Figure:
    """The energy over time, its threshold and the intervals, in lines of 20 s; of a long one the first 12."""
    source, stream, spotted = found.source, found.stream, found.spotted
    times = np.array([stream.seconds(number) for number in range(stream.count)])
    shown = min(_MOST, max(1, int(np.ceil((times[-1] + 1e-9) / _ROW))))
    cut = f", the first {shown * _ROW:.0f} s" if times[-1] > shown * _ROW else ""
    made = new_figure(11, 0.4 + 1.35 * shown, f"Movement in {source.video}{cut}")
    lines = np.atleast_1d(made.subplots(shown, 1, sharey=True))
    for number, axes in enumerate(lines):
        _draw(axes, spotted, times, number * _ROW)
    lines[0].set_ylim(0, 1.05 * float(max(spotted.energy.max(), 2 * np.median(spotted.threshold))))
    lines[-1].set_xlabel("seconds", color=GREY)
    made.supylabel("hundredths of the face's height", color=GREY, fontsize=9)
    return made


def _draw(axes: Axes, spotted: Spotted, times: np.ndarray, start: float) -> None:
    part = slice(*np.searchsorted(times, (start, start + _ROW)))
    energy = drawn(spotted.energy, spotted.seen, times)
    threshold = drawn(spotted.threshold, np.ones_like(spotted.seen), times)
    axes.plot(times[part], energy[part], color=INK, linewidth=0.8)
    axes.plot(times[part], threshold[part], color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    for one in spotted.intervals:
        axes.axvspan(times[one.onset], times[one.offset], color=_COLOR, alpha=0.35, linewidth=0)
    axes.set_xlim(start, start + min(_ROW, max(times[-1] - start, 1e-3)))
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize=8)
