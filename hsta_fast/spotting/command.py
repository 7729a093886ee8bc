"""The command `spot`: recordings one after the other, and where their results go."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np

from ..clips import counted, of_recording
from ..data.frames.stream import FrameStream, open_frames
from ..files import check_outputs, one_line, write_bytes, write_text
from ..protocol.plots import png
from .refine import Score, refine
from .report import Found, as_json, as_text, figure, rows, table
from .settings import SpotSettings
from .sources import Source, sources
from .spotter import spot


def spot_all(
    paths: Sequence[Path],
    settings: SpotSettings,
    *,
    fps: float | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    json: bool = False,
    score: Callable[[FrameStream], Score] | None = None,
    classes: Sequence[str] = (),
) -> int:
    """Spot in each recording, print what was found and write it; returns how many could not be read.

    A recording that cannot be read is one line on the standard error, and the others follow.

    score: what classifies windows of a recording, by which intervals are refined; classes: its answers,
        "nothing" the last one.

    Raises:
        ValueError: a folder holds no recording, or there are several and one picture is asked for.
        OSError: a result cannot be written.
    """
    check_outputs((("--out", out), ("--plot", plot)), paths)
    found = sources(paths)
    if plot is not None and len(found) != 1:
        raise ValueError(f"--plot expected one recording, got {len(found)}")
    all_rows: list[dict[str, Any]] = []

    def write_rows() -> None:
        if out is not None:
            text = table(all_rows, classified=score is not None).to_csv(index=False, lineterminator="\n")
            write_text(out, text)

    write_rows()  # one of an earlier call would be taken for this one's
    recordings: list[dict[str, Any]] = []
    failed = 0
    for source in found:
        try:
            stream = open_frames(
                source.frames, fps=fps or (source.rate if _lacks_rate(source.frames) else None)
            )
            if score is None:
                one = Found(source, stream, spot(stream, settings=settings, progress=not json))
            else:
                one = classified(source, stream, settings, score(stream), classes, progress=not json)
        except ValueError as error:
            failed += 1
            print(f"error: {one_line(of_recording(source.video, error))}", file=sys.stderr)
            continue
        all_rows += rows(one)
        recordings.append(as_json(one))
        write_rows()
        if plot is not None:
            write_bytes(plot, png(figure(one)))
        if not json:
            print(as_text(one))
    if json:
        print(dumps({"recordings": recordings}, indent=2, ensure_ascii=False))
    elif len(found) > 1:
        print(f"{counted(len(all_rows), 'interval')} in {counted(len(found) - failed, 'recording')}")
    return failed


def classified(
    source: Source,
    stream: FrameStream,
    settings: SpotSettings,
    score: Score,
    classes: Sequence[str],
    *,
    progress: bool = False,
) -> Found:
    """Candidates (`settings_for`), refined by a classifier, with the class that it gives each."""
    spotted = spot(stream, settings=settings, progress=progress)
    kept = refine(spotted.intervals, score, stream.count)
    shown = [one.probabilities[:-1] for one in kept]
    answers = [
        None if np.isnan(one).any() else (classes[int(one.argmax())], float(one.max())) for one in shown
    ]
    return Found(source, stream, replace(spotted, intervals=tuple(one.interval for one in kept)), answers)


def _lacks_rate(frames: Path | list[Path]) -> bool:
    """Whether a recording is images, which do not tell their frames a second."""
    return isinstance(frames, list) or frames.is_dir()
