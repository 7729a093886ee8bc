"""Spotted intervals judged by models that know the class "nothing" (`train --with-neutral`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..spotting import Interval, Spotted
from ..spotting.refine import Score, refine
from .clip_inputs import Clip
from .result import PredictedInterval

# Clips -> what the models say of them, without those that cannot be shown.
Say = Callable[[Sequence[Clip]], Sequence[PredictedInterval]]


def score_by(say: Say, classes: Sequence[str]) -> Score:
    """The probabilities of the classes for windows of a recording; not a number where one cannot be shown."""

    def score(windows: Sequence[Interval]) -> np.ndarray:
        apexes = {(one.onset, one.offset): one.apex for one in windows}
        clips = [Clip(onset, offset, apex) for (onset, offset), apex in apexes.items()]
        found = {(one.onset, one.offset): [one.probabilities[name] for name in classes] for one in say(clips)}
        unknown = [float("nan")] * len(classes)
        return np.array([found.get((one.onset, one.offset), unknown) for one in windows])

    return score


def refined(spotted: Spotted, say: Say, count: int, classes: Sequence[str]) -> list[Clip]:
    """The spotted intervals that the models take for expressions, with the borders that they prefer.

    Those that cannot be shown to them stay, too (see `refine`).

    Args:
        spotted: candidates, found with a low threshold.
        say: the models.
        count: frames of the recording.
        classes: "nothing" is the last one.
    """
    kept = [one.interval for one in refine(spotted.intervals, score_by(say, classes), count)]
    return [Clip(one.onset, one.offset, one.apex, one.score) for one in kept]
