"""Spotted intervals refined by a classifier that knows the class "nothing" (`train --with-neutral`).

Candidates are spotted with a low threshold. Of each, windows of several lengths about its apex are
classified: an interval in which every window is probably nothing is dropped, and the borders move to
another window where the classifier is clearly surer of it. A window goes at most half the way to the next
candidate, so that no two overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
    """An interval that was kept, and the probabilities of the classes (classes,), "nothing" the last one.

    They are not numbers where none of its windows can be shown.
    """

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

    One that cannot be shown to it stays as it is: nothing is known of it.

    Args:
        candidates: spotted intervals, in the order of time, none overlapping.
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
    middles = [(one.offset + after.onset) // 2 for one, after in pairwise(candidates)]
    firsts, lasts = [0, *(frame + 1 for frame in middles)], [*middles, count - 1]
    windows = [
        _window(one, size, first, last)
        for one, first, last in zip(candidates, firsts, lasts, strict=True)
        for size in sizes
    ]
    probabilities = np.asarray(score(windows), dtype=np.float64)
    if probabilities.ndim != 2 or len(probabilities) != len(windows):
        raise ValueError(f"score expected {len(windows)} rows, got an array of {probabilities.shape}")
    kept: list[Refined] = []
    for number in range(len(candidates)):
        part = slice(number * len(sizes), (number + 1) * len(sizes))
        is_shown = ~np.isnan(probabilities[part, -1])
        shown = np.where(is_shown, 1 - probabilities[part, -1], 0.0)
        best = int(shown.argmax())
        if is_shown.any() and shown[best] < least:
            continue
        if shown[best] < shown[0] + surer:
            best = 0
        kept.append(Refined(windows[part][best], probabilities[part][best]))
    return kept


def _window(one: Interval, size: float, first: int, last: int) -> Interval:
    """The interval, lengthened or shortened on both sides of its apex, within the frames first to last."""
    before, after = (max(1, round(size * part)) for part in (one.apex - one.onset, one.offset - one.apex))
    if size == 1:
        return one
    return replace(one, onset=max(first, one.apex - before), offset=min(last, one.apex + after))
