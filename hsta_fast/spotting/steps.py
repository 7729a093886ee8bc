"""Equal steps of time over the frames that were looked at, without the gaps between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .movement import Movement

_SAME = 1e-6  # of a step


class Window(pd.api.indexers.BaseIndexer):
    """Of each step the steps about it, from `start` up to but not `end`, int64 (n,): a window for pandas."""

    start: np.ndarray
    end: np.ndarray

    def __init__(self, start: np.ndarray, end: np.ndarray) -> None:
        super().__init__(start=start, end=end)

    def get_window_bounds(
        self,
        num_values: int = 0,
        min_periods: int | None = None,
        center: bool | None = None,
        closed: str | None = None,
        step: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As pandas asks for it: it checks the names of the arguments."""
        return self.start, self.end


def _snapped(steps: np.ndarray, seconds: np.ndarray, step: float) -> np.ndarray:
    """The steps, those at a frame but for rounding exactly there: the frame beside it then does not count."""
    nearest = seconds[np.minimum(np.searchsorted(seconds, steps - _SAME * step), len(seconds) - 1)]
    return np.where(np.abs(nearest - steps) <= _SAME * step, nearest, steps)


@dataclass(frozen=True)
class Steps:
    """n steps: equal within a stretch of frames without a gap, and none in a gap.

    seconds: their times, float64 (n,), ascending; step: seconds from one to the next of a stretch; stretch:
    which one each is of, int32 (n,), from 0.
    """

    seconds: np.ndarray
    step: float
    stretch: np.ndarray

    @classmethod
    def of(cls, movement: Movement) -> Steps:
        """Those of a movement, by its usual step."""
        stretches = []
        for seconds in np.split(movement.seconds, movement.gaps):
            first, last = seconds[[0, -1]]
            count = math.floor((last - first) / movement.step + _SAME) + 1
            stretches.append(_snapped(first + movement.step * np.arange(count), seconds, movement.step))
        counts = [len(stretch) for stretch in stretches]
        of_each = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return cls(np.concatenate(stretches), movement.step, of_each)

    def interpolated(self, movement: Movement, values: np.ndarray) -> np.ndarray:
        """Values of the frames (m,) at the steps, float64 (n,); what lies beside a NaN is NaN, too."""
        return np.interp(self.seconds, movement.seconds, values)

    def about(self, seconds: float, *, across: bool = True) -> Window:
        """The window of so many seconds, and of at least 3 steps, with the step in its middle."""
        half = max(1, round(seconds / self.step) // 2)
        return self.window(half, half, across=across)

    def window(self, before: int, after: int, *, across: bool = True) -> Window:
        """The window by time from so many steps before each step to so many after it.

        across: also what lies behind a gap; else it ends at the gap.
        """
        start = np.searchsorted(self.seconds, self.seconds - (before + 0.5) * self.step)
        end = np.searchsorted(self.seconds, self.seconds + (after + 0.5) * self.step)
        if not across:
            start = np.maximum(start, np.searchsorted(self.stretch, self.stretch))
            end = np.minimum(end, np.searchsorted(self.stretch, self.stretch, side="right"))
        return Window(start, end)

    def ends(self, place: int) -> tuple[int, int]:
        """The first and the last step of the stretch that a step is of."""
        first, behind = (
            np.searchsorted(self.stretch, self.stretch[place], side) for side in ("left", "right")
        )
        return int(first), int(behind) - 1
