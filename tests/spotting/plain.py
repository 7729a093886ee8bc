"""The curves of `energy_of` written plainly, in float64, for even steps without a gap."""

import math

import numpy as np
import pandas as pd

from hsta_fast.spotting.intervals import AROUND, EYES_CHANGE, GROUPS, JAW, REST, SPEAKS, TALK, TURN
from hsta_fast.spotting.movement import LAG, Movement
from hsta_fast.spotting.regions import REGIONS
from hsta_fast.spotting.settings import SpotSettings


def rolling(values: np.ndarray, width: float) -> pd.api.typing.Rolling:
    return pd.DataFrame(values).rolling(max(3, round(width) | 1), center=True, min_periods=1)


def widened(mask: np.ndarray, before: float, after: float) -> np.ndarray:
    before, after = max(0, round(before)), max(0, round(after))
    ahead = [mask[max(0, k - after) : k + before + 1].any() for k in range(len(mask))]
    return np.array(ahead)


def plain_energy(
    movement: Movement, settings: SpotSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """rest (n, R, 2), energy (n,), threshold (n,), groups (n, G)."""
    step = float(np.median(np.diff(movement.seconds)))
    first, last = movement.seconds[[0, -1]]
    even = first + step * np.arange(math.floor((last - first) / step + 1e-6) + 1)

    def at_even_steps(values: np.ndarray) -> np.ndarray:
        columns = values.reshape(len(values), -1).astype(np.float64).T
        return np.stack([np.interp(even, movement.seconds, column) for column in columns], axis=1)

    moved = at_even_steps(movement.moved)
    rest = moved - rolling(moved, REST * settings.longest / step).median().to_numpy()
    rest = rest.reshape(len(even), len(REGIONS), 2)
    names = list(REGIONS)

    def length_of(group: tuple[str, ...]) -> np.ndarray:
        squares = (rest[:, [names.index(name) for name in group]] ** 2).sum(axis=2)
        return np.asarray(np.sqrt(squares.mean(axis=1)))

    length = np.stack([length_of(group) for group in GROUPS.values()], axis=1)
    eyes = at_even_steps(movement.eyes)[:, 0]
    usual = np.median(eyes)
    closing = eyes > max(EYES_CHANGE, usual + 8 * np.median(np.abs(eyes - usual)))
    length[widened(closing, LAG / 2 / step, 0), 0] = np.nan
    moving = length_of(("chin",)) > JAW
    share = rolling(moving, TALK / step).mean().to_numpy()[:, 0]
    strokes = rolling(np.diff(moving, prepend=False) & moving, TALK / step).sum().to_numpy()[:, 0]
    talking = (share > SPEAKS) & (strokes >= 2)
    length[widened(talking, TALK / 2 / step, TALK / 2 / step), 1:] = np.nan
    lag = max(1, round(LAG / step))
    head = np.pad(at_even_steps(movement.head), ((lag, lag), (0, 0)), mode="edge")
    fast = np.linalg.norm(head[2 * lag :] - head[: -2 * lag], axis=1) > TURN
    length[widened(fast, lag, lag)] = np.nan
    energy = np.fmax.reduce(length, axis=1)
    median = rolling(energy, AROUND / step).median().to_numpy()[:, 0]
    spread = rolling(np.abs(energy - median), AROUND / step).median().to_numpy()[:, 0]
    return rest, np.nan_to_num(energy), np.fmax(settings.floor, median + settings.factor * spread), length
