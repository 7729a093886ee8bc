"""Spotted intervals judged by models that know the class "nothing" (`train --with-neutral`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..spotting import Interval, Spotted
from ..spotting.refine import refine
from .clip_inputs import Clip
from .result import PredictedInterval

LOWER = 0.5  # of the usual factor of spotting: the models decide what is none

# Clips -> what the models say of them, without those that cannot be shown.
Say = Callable[[Sequence[Clip]], Sequence[PredictedInterval]]


def refined(spotted: Spotted, say: Say, count: int, classes: int) -> list[Clip]:
    """The spotted intervals that the models take for expressions, with the borders that they prefer.

    Args:
        spotted: candidates, found with a low threshold.
        say: the models.
        count: frames of the recording.
        classes: how many there are, "nothing" the last one.
    """

    def score(windows: Sequence[Interval]) -> np.ndarray:
        clips = [Clip(one.onset, one.offset, one.apex, one.score) for one in windows]
        found = {(one.onset, one.offset): list(one.probabilities.values()) for one in say(clips)}
        unknown = [np.nan] * classes
        return np.array([found.get((one.onset, one.offset), unknown) for one in windows])

    kept = [one.interval for one in refine(spotted.intervals, score, count)]
    return [Clip(one.onset, one.offset, one.apex, one.score) for one in kept]
