"""Spotted intervals refined by a classifier: here one that knows the truth."""

from collections.abc import Sequence

import numpy as np
import pytest

from hsta_fast.spotting.intervals import Interval
from hsta_fast.spotting.refine import refine

COUNT = 1000
TRUTH = ((100, 130), (400, 480))


def truth_score(windows: Sequence[Interval]) -> np.ndarray:
    """The probability of an expression is the overlap (IoU) with a true one; two classes, and nothing."""
    found = []
    for window in windows:
        overlaps = [
            max(0, min(window.offset, b) - max(window.onset, a) + 1)
            / (max(window.offset, b) - min(window.onset, a) + 1)
            for a, b in TRUTH
        ]
        found.append([0.75 * max(overlaps), 0.25 * max(overlaps), 1 - max(overlaps)])
    return np.array(found)


def test_false_intervals_are_dropped_and_borders_move_where_that_is_surer() -> None:
    good = Interval(100, 115, 130, 2.0)
    short = Interval(420, 440, 460, 1.5)  # IoU 41 / 81; 1.4 times as long 57 / 81
    false = Interval(700, 710, 720, 1.1)
    kept = refine([good, short, false], truth_score, COUNT, surer=0.15)
    assert [one.interval for one in kept] == [good, Interval(412, 440, 468, 1.5)]
    assert kept[1].probabilities[-1] == pytest.approx(1 - 57 / 81)
    assert [one.interval for one in refine([short], truth_score, COUNT, surer=0.3)] == [short]
    assert refine([good, short, false], truth_score, COUNT, least=0.8)[0].interval == good


def test_windows_stay_in_the_recording_and_the_classifier_is_asked_once() -> None:
    asked: list[list[Interval]] = []

    def score(windows: Sequence[Interval]) -> np.ndarray:
        asked.append(list(windows))
        return np.tile([0.9, 0.1], (len(windows), 1))

    first, last = Interval(2, 10, 30, 1.0), Interval(980, 990, 998, 1.0)
    assert [one.interval for one in refine([first, last], score, COUNT)] == [first, last]
    (windows,) = asked
    assert len(windows) == 6
    assert min(one.onset for one in windows) == 0 and max(one.offset for one in windows) == COUNT - 1


def test_a_window_that_cannot_be_shown_counts_as_nothing() -> None:
    nan = np.full(2, np.nan)
    one = Interval(100, 115, 130, 2.0)
    assert refine([one], lambda windows: np.array([nan] * len(windows)), COUNT) == []
    assert refine([], truth_score, COUNT) == []
    with pytest.raises(ValueError, match="score expected 3 rows, got an array of"):
        refine([one], lambda windows: np.zeros((1, 2)), COUNT)
