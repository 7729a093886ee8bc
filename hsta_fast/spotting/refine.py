"""Spotted intervals refined by a classifier that knows the class "nothing" (`train --with-neutral`).

Candidates are spotted with a low threshold. Of each, windows of several lengths about its apex are
classified: an interval in which every window is probably nothing is dropped, and the borders move to
another window where the classifier is clearly surer of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .intervals import Interval

LENGTHS = (0.7, 1.0, 1.4)  # of a window, in parts of the spotted interval
LEAST = 0.5  # probability of an expression below which an interval is dropped
SURER = 0.2  # by how much another window must be surer

# Windows -> the probabilities of the classes, (windows, classes), "nothing" the last one; not a number in the
# row of a window that cannot be shown.
Score = Callable[[Sequence[Interval]], np.ndarray]


@dataclass(frozen=True)
class Refined:
    """An interval that was kept, and the probabilities of the classes (classes,), "nothing" the last one."""

    interval: Interval
    probabilities: np.ndarray


def refine(
    candidates: Sequence[Interval],
    score: Score,
    count: int,
    *,
    least: float = LEAST,
    lengths: Sequence[float] = LENGTHS,
    surer: float = SURER,
) -> list[Refined]:
    """The candidates that a classifier takes for expressions, with the borders that it prefers.

    Args:
        candidates: spotted intervals, in the order of time.
        score: the classifier; it is called once.
        count: frames of the recording, beyond which no window goes.
        least: the probability of any expression, 1 - that of "nothing", that an interval must have.
        lengths: lengths of the windows, in parts of an interval; 1 is always among them.
        surer: by how much the probability must be larger for the borders to move.

    Raises:
        ValueError: `score` returns another number of rows.
    """
    if not candidates:
        return []
    sizes = sorted({1.0, *lengths}, key=lambda size: abs(size - 1))  # that of the interval first
    windows = [_window(one, size, count) for one in candidates for size in sizes]
    probabilities = np.asarray(score(windows), dtype=np.float64)
    if probabilities.ndim != 2 or len(probabilities) != len(windows):
        raise ValueError(f"score expected {len(windows)} rows, got an array of {probabilities.shape}")
    kept: list[Refined] = []
    for number in range(len(candidates)):
        part = slice(number * len(sizes), (number + 1) * len(sizes))
        shown = np.nan_to_num(1 - probabilities[part, -1], nan=0.0)
        best = int(shown.argmax())
        if shown[best] < least:
            continue
        if shown[best] < shown[0] + surer:
            best = 0
        chosen = windows[part][best]
        if kept and chosen.onset <= kept[-1].interval.offset:  # wider windows may touch
            chosen, best = windows[part][0], 0
        kept.append(Refined(chosen, probabilities[part][best]))
    return kept


def _window(one: Interval, size: float, count: int) -> Interval:
    """The interval, lengthened or shortened on both sides of its apex."""
    before, after = (max(1, round(size * part)) for part in (one.apex - one.onset, one.offset - one.apex))
    if size == 1:
        return one
    return replace(one, onset=max(0, one.apex - before), offset=min(count - 1, one.apex + after))
