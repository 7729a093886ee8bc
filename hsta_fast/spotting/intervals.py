"""From the movement of a face's regions to the intervals of micro-expressions.

1. *Displacement from rest.* Of each region's displacement the moving median over `REST` times the longest
   micro-expression is taken off: what comes and goes quickly is left, what stays (a pose, a mood) is rest.
2. *Energy.* The length of it in the brows, the nose and the corners of the mouth, left and right together;
   of the three the largest.
3. *Threshold.* Median + factor x median absolute deviation of the energy in the `AROUND` seconds about, and
   at least a fixed length: peaks above it are candidates. That is the usual way to spot from a curve of
   movement.
4. *Borders.* The displacement of all regions is projected onto its direction at the peak: a curve that
   rises from rest, and falls back. Where it passes 20 and 80 % of its peak, the rise and the fall are
   lengthened as a smooth step to where they begin and end.
5. *What is no micro-expression*: too short or too long; both eyes closing (blink); a mouth that moves again
   and again (talking); a head that moves fast (turn).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .movement import LAG, Movement
from .regions import REGIONS
from .settings import SpotSettings

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
    """The curves over n equal steps of time, of which `seconds` float64 (n,) are the times.

    rest: displacement of the regions from rest, float64 (n, R, 2); energy, threshold: (n,); all in
    hundredths of the face's height. The energy is 0 where there was no face, or nothing but a distractor.
    groups: the part of each of `GROUPS` in the energy, (n, G); not a number where a distractor hides it.
    """

    seconds: np.ndarray
    rest: np.ndarray
    energy: np.ndarray
    threshold: np.ndarray
    groups: np.ndarray


def energy_of(movement: Movement, settings: SpotSettings) -> Energy:
    """The energy of the movement, and its threshold; needs at least 2 frames."""
    step = float(np.median(np.diff(movement.seconds)))
    first, last = movement.seconds[[0, -1]]
    even = first + step * np.arange(math.floor((last - first) / step + 1e-6) + 1)

    def at_even_steps(values: np.ndarray) -> np.ndarray:
        """(n, C) float64; a value that is not a number spoils those about it."""
        columns = values.reshape(len(values), -1).astype(np.float64).T
        return np.stack([np.interp(even, movement.seconds, column) for column in columns], axis=1)

    moved = at_even_steps(movement.moved)
    rest = moved - _rolling(moved, REST * settings.longest / step).median().to_numpy()
    rest = rest.reshape(len(even), len(REGIONS), 2)
    length = np.stack([_length(rest, names) for names in GROUPS.values()], axis=1)
    length[_blinks(at_even_steps(movement.eyes)[:, 0], step), 0] = np.nan
    length[_talking(_length(rest, ("chin",)), step), 1:] = np.nan
    length[_turning(at_even_steps(movement.head), step)] = np.nan
    energy = np.fmax.reduce(length, axis=1)
    median = _rolling(energy, AROUND / step).median().to_numpy()[:, 0]
    spread = _rolling(np.abs(energy - median), AROUND / step).median().to_numpy()[:, 0]
    threshold = np.fmax(settings.floor, median + settings.factor * spread)
    return Energy(even, rest, np.nan_to_num(energy), threshold, length)


def _rolling(values: np.ndarray, width: float) -> pd.api.typing.Rolling:
    frame = pd.DataFrame(values.reshape(len(values), -1))
    return frame.rolling(max(3, round(width) | 1), center=True, min_periods=1)


def _length(rest: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Root mean square over regions of the length of their displacement, (n,)."""
    squares = (rest[:, [_NAMES.index(name) for name in names]] ** 2).sum(axis=2)
    return np.asarray(np.sqrt(squares.mean(axis=1)))


def _widened(mask: np.ndarray, before: float, after: float) -> np.ndarray:
    """The mask, true from `before` steps ahead of its stretches to `after` steps behind them."""
    before, after = max(0, round(before)), max(0, round(after))
    sums = np.cumsum(np.concatenate((np.zeros(after + 1, int), mask, np.zeros(before, int))))
    return np.asarray(sums[before + after + 1 :] > sums[: len(mask)])


def _blinks(eyes: np.ndarray, step: float) -> np.ndarray:
    """Where both eyes change far more than usual: the lids then pull at the brows."""
    usual = np.median(eyes)
    closing = eyes > max(EYES_CHANGE, usual + 8 * np.median(np.abs(eyes - usual)))
    return _widened(closing, LAG / 2 / step, 0)


def _talking(chin: np.ndarray, step: float) -> np.ndarray:
    """Where the chin moves again and again."""
    window = TALK / step
    moving = chin > JAW
    share = _rolling(moving, window).mean().to_numpy()[:, 0]
    strokes = _rolling(np.diff(moving, prepend=False) & moving, window).sum().to_numpy()[:, 0]
    return _widened((share > SPEAKS) & (strokes >= 2), window / 2, window / 2)


def _turning(head: np.ndarray, step: float) -> np.ndarray:
    """Where the head moves faster than its movement can be taken off."""
    lag = max(1, round(LAG / step))
    padded = np.pad(head, ((lag, lag), (0, 0)), mode="edge")
    return _widened(np.linalg.norm(padded[2 * lag :] - padded[: -2 * lag], axis=1) > TURN, lag, lag)


def intervals_of(curves: Energy, settings: SpotSettings) -> list[tuple[float, float, float, float]]:
    """Onset, apex, offset in seconds, and score of each interval, in the order of time."""
    found = []
    step = curves.seconds[1] - curves.seconds[0]
    over = np.flatnonzero(curves.energy > curves.threshold)
    if not len(over):
        return []
    runs = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1)
    for run in runs:
        peak = int(run[curves.energy[run].argmax()])
        borders = _borders(curves, peak, settings, step)
        if borders is None or not settings.shortest <= borders[1] - borders[0] <= settings.longest:
            continue
        onset, offset = borders
        inside = slice(*np.searchsorted(curves.seconds, (onset, offset)))
        if np.isnan(curves.groups[inside, np.nanargmax(curves.groups[peak])]).any():
            continue  # a part of a blink, of talking or of a turn
        score = float(curves.energy[peak] / curves.threshold[peak])
        found.append((onset, float(curves.seconds[peak]), offset, score))
    return _apart(found)


def _borders(curves: Energy, peak: int, settings: SpotSettings, step: float) -> tuple[float, float] | None:
    """Where the movement at a peak begins and ends, in seconds; None if that is too far away."""
    reach = math.ceil(settings.longest / step)
    first, last = max(0, peak - reach), min(len(curves.energy), peak + reach + 1)
    part = curves.rest[first:last, _MOVED].reshape(last - first, -1)
    at = peak - first
    direction = part[max(0, at - 1) : at + 2].mean(axis=0)
    along = part @ direction / np.linalg.norm(direction) ** 2
    rise = _edge(along[at::-1])
    fall = _edge(along[at:])
    if rise is None or fall is None:
        return None
    return curves.seconds[peak] - rise * step, curves.seconds[peak] + fall * step


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
