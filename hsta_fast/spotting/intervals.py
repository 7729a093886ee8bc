"""From the movement of a face's regions to the intervals of micro-expressions.

1. *Displacement from rest.* Of each region's displacement the moving median over `REST` times the longest
   micro-expression is taken off: what comes and goes quickly is left, what stays (a pose, a mood) is rest.
2. *Energy.* The length of it in the brows, the nose and the corners of the mouth, left and right together;
   of the three the largest.
3. *Threshold.* Median + factor x median absolute deviation of the energy in the `AROUND` seconds about, and
   at least a fixed length: peaks above it are candidates. That is the usual way to spot from a curve of
   movement.
4. *Borders.* The displacement of these five regions is projected onto its direction at the peak: a curve
   that rises from rest, and falls back. Where it passes 20 and 80 % of its peak, the rise and the fall are
   lengthened as a smooth step to where they begin and end.
5. *What is no micro-expression*: too short or too long; both eyes closing (blink); a mouth that moves again
   and again (talking); a head that moves fast (turn).

A gap in the times (`Movement.gaps`) parts the curves into stretches: nothing is interpolated across it, rest
and borders are of one stretch, and it counts neither in the median nor in the deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .movement import LAG, Movement
from .regions import REGIONS
from .settings import SpotSettings
from .steps import Steps, Window

REST = 2.5  # of the longest micro-expression: it is less than half of what the median sees
AROUND = 20.0  # seconds
GROUPS = {
    "brows": ("left brow", "right brow"),
    "nose": ("nose",),
    "mouth": ("left mouth corner", "right mouth corner"),
}
EYES_CHANGE = 0.05  # least change of both eyes (`changed_eyes`) in a blink
JAW = 0.35  # hundredths of the face: a chin that moves farther speaks or chews
TALK = 1.0  # seconds
SPEAKS = 0.22  # of that time
TURN = 6.0  # hundredths of the face in 2 x LAG
_NAMES = list(REGIONS)
_MOVED = [_NAMES.index(name) for names in GROUPS.values() for name in names]
_LOW, _HIGH = 0.2, 0.8  # parts of the peak between which the rise and the fall are measured
# Time from the beginning of a smooth step 3 t^2 - 2 t^3 to its 20 %, over the time from 20 to 80 %.
_BEFORE = 0.287 / 0.426


@dataclass(frozen=True)
class Interval:
    """A spotted movement: frame numbers, all of them inclusive.

    score: the energy at its peak over the threshold there, more than 1.
    """

    onset: int
    apex: int
    offset: int
    score: float


@dataclass(frozen=True)
class Energy:
    """The curves over equal steps of time without its gaps, n steps, at most `GAP` for each frame looked at.

    steps: the times.
    rest: displacement of the regions from rest, float32 (n, R, 2); energy, threshold: (n,); all in
    hundredths of the face's height. The energy is 0 where there was no face, or nothing but a distractor.
    groups: the part of each of `GROUPS` in the energy, (n, G); not a number where a distractor hides it.
    """

    steps: Steps
    rest: np.ndarray
    energy: np.ndarray
    threshold: np.ndarray
    groups: np.ndarray


def energy_of(movement: Movement, settings: SpotSettings) -> Energy:
    """The energy of the movement, and its threshold; needs at least 2 frames."""
    steps = Steps.of(movement)
    rest = np.empty((len(steps.seconds), len(REGIONS), 2), dtype=np.float32)
    pose = steps.about(REST * settings.longest, across=False)
    columns = movement.moved.reshape(len(movement.moved), -1).T
    for column, curve in zip(columns, rest.reshape(len(rest), -1).T, strict=True):  # one at a time: memory
        moved = steps.interpolated(movement, column)
        curve[:] = moved - _rolling(moved, pose).median().to_numpy()
    length = np.stack([_length(rest, names) for names in GROUPS.values()], axis=1)
    length[_blinks(steps.interpolated(movement, movement.eyes), steps), 0] = np.nan
    length[_talking(_length(rest, ("chin",)), steps), 1:] = np.nan
    head = np.stack([steps.interpolated(movement, column) for column in movement.head.T], axis=1)
    length[_turning(head, steps)] = np.nan
    energy = np.fmax.reduce(length, axis=1)
    around = steps.about(AROUND)
    median = _rolling(energy, around).median().to_numpy()
    spread = _rolling(np.abs(energy - median), around).median().to_numpy()
    threshold = np.fmax(settings.floor, median + settings.factor * spread)
    return Energy(steps, rest, np.nan_to_num(energy, copy=False), threshold, length)


def _rolling(values: np.ndarray, window: Window) -> pd.api.typing.Rolling:
    return pd.Series(values).rolling(window, min_periods=1)


def _length(rest: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Root mean square over regions of the length of their displacement, float64 (n,)."""
    places = [_NAMES.index(name) for name in names]
    squares = sum(np.einsum("nc,nc->n", rest[:, i], rest[:, i], dtype=np.float64) for i in places)
    return np.asarray(np.sqrt(squares / len(places)))


def _widened(mask: np.ndarray, steps: Steps, before: float, after: float) -> np.ndarray:
    """The mask, true from `before` seconds ahead of its stretches to `after` seconds behind them."""
    window = steps.window(round(after / steps.step), round(before / steps.step))
    sums = np.cumsum(np.concatenate(([0], mask)))
    return np.asarray(sums[window.end] > sums[window.start])


def _blinks(eyes: np.ndarray, steps: Steps) -> np.ndarray:
    """Where both eyes change far more than usual: the lids then pull at the brows."""
    usual = np.median(eyes)
    closing = eyes > max(EYES_CHANGE, usual + 8 * np.median(np.abs(eyes - usual)))
    return _widened(closing, steps, LAG / 2, 0)


def _talking(chin: np.ndarray, steps: Steps) -> np.ndarray:
    """Where the chin moves again and again."""
    window = steps.about(TALK)
    moving = chin > JAW
    share = _rolling(moving, window).mean().to_numpy()
    strokes = _rolling(np.diff(moving, prepend=False) & moving, window).sum().to_numpy()
    return _widened((share > SPEAKS) & (strokes >= 2), steps, TALK / 2, TALK / 2)


def _turning(head: np.ndarray, steps: Steps) -> np.ndarray:
    """Where the head moves faster than its movement can be taken off."""
    lag = max(1, round(LAG / steps.step))
    window = steps.window(lag, lag, across=False)
    fast = np.linalg.norm(head[window.end - 1] - head[window.start], axis=1) > TURN
    return _widened(fast, steps, lag * steps.step, lag * steps.step)


def intervals_of(curves: Energy, settings: SpotSettings) -> list[tuple[float, float, float, float]]:
    """Onset, apex, offset in seconds, and score of each interval, in the order of time."""
    found = []
    steps = curves.steps
    over = np.flatnonzero(curves.energy > curves.threshold)
    if not len(over):
        return []
    parted = (np.diff(over) > 1) | (steps.stretch[over[1:]] > steps.stretch[over[:-1]])
    for run in np.split(over, np.flatnonzero(parted) + 1):
        peak = int(run[curves.energy[run].argmax()])
        borders = _borders(curves, peak, settings)
        if borders is None or not settings.shortest <= borders[1] - borders[0] <= settings.longest:
            continue
        onset, offset = np.clip(borders, *steps.seconds[list(steps.ends(peak))])  # not in a gap
        inside = slice(*np.searchsorted(steps.seconds, (onset, offset)))
        if np.isnan(curves.groups[inside, np.nanargmax(curves.groups[peak])]).any():
            continue  # a part of a blink, of talking or of a turn
        score = float(curves.energy[peak] / curves.threshold[peak])
        found.append((float(onset), float(steps.seconds[peak]), float(offset), score))
    return _apart(found)


def _borders(curves: Energy, peak: int, settings: SpotSettings) -> tuple[float, float] | None:
    """Where the movement at a peak begins and ends, in seconds; None if that is too far away."""
    steps = curves.steps
    reach = math.ceil(settings.longest / steps.step)
    start, end = steps.ends(peak)
    first, last = max(start, peak - reach), min(end, peak + reach) + 1
    part = curves.rest[first:last, _MOVED].reshape(last - first, -1).astype(np.float64)
    at = peak - first
    direction = part[max(0, at - 1) : at + 2].mean(axis=0)
    along = part @ direction / np.linalg.norm(direction) ** 2
    rise = _edge(along[at::-1])
    fall = _edge(along[at:])
    if rise is None or fall is None:
        return None
    return steps.seconds[peak] - rise * steps.step, steps.seconds[peak] + fall * steps.step


def _edge(curve: np.ndarray) -> float | None:
    """Steps from the start of a curve, where it is near 1, to where it comes to rest; None if it does not."""
    below = np.flatnonzero(~(curve > _LOW))
    if not len(below) or np.isnan(curve[below[0]]):
        return None
    low = int(below[0])
    high = int(np.flatnonzero(curve[:low] > _HIGH)[-1]) if (curve[:low] > _HIGH).any() else 0
    at_low = low - 1 + (curve[low - 1] - _LOW) / (curve[low - 1] - curve[low]) if low else 0.0
    after = curve[high + 1]
    at_high = high + (curve[high] - _HIGH) / (curve[high] - after) if curve[high] > _HIGH else 0.0
    return float(at_low + _BEFORE * (at_low - at_high))


def _apart(found: list[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    """Of intervals that overlap, the one with the highest score."""
    kept: list[tuple[float, float, float, float]] = []
    for one in sorted(found, key=lambda f: -f[3]):
        if all(one[2] < other[0] or one[0] > other[2] for other in kept):
            kept.append(one)
    return sorted(kept)
