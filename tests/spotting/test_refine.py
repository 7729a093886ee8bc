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


def test_neighbours_that_both_grow_do_not_overlap() -> None:
    """The longest window is surest of both; neither is kept with a window below the least probability."""
    first, second = Interval(10, 20, 30, 1.0), Interval(32, 42, 52, 1.0)

    def score(windows: Sequence[Interval]) -> np.ndarray:
        shown = np.array([0.9 if one.offset - one.onset > 21 else 0.3 for one in windows])
        return np.stack([shown, 1 - shown], axis=1)

    kept = [one.interval for one in refine([first, second], score, COUNT)]
    assert kept == [Interval(6, 20, 31, 1.0), Interval(32, 42, 56, 1.0)]
    touching = Interval(31, 42, 52, 1.0)
    kept = [one.interval for one in refine([first, touching], score, COUNT)]
    assert kept == [Interval(6, 20, 30, 1.0), Interval(31, 42, 56, 1.0)]


def test_a_window_that_cannot_be_shown_counts_as_nothing() -> None:
    nan = np.full(2, np.nan)
    one = Interval(100, 115, 130, 2.0)
    assert refine([one], lambda windows: np.array([nan, [0.2, 0.8], nan]), COUNT) == []
    [kept] = refine([one], lambda windows: np.array([nan, [0.2, 0.8], [0.9, 0.1]]), COUNT)
    assert kept.probabilities.tolist() == [0.9, 0.1]


def test_an_interval_that_cannot_be_shown_at_all_stays_as_it_is() -> None:
    """Also one whose apex lies in a window of its neighbour that can be shown, and is nothing."""
    shown, not_shown = Interval(10, 30, 50, 1.0), Interval(52, 56, 60, 1.0)

    def score(windows: Sequence[Interval]) -> np.ndarray:
        return np.array([[0.1, 0.9] if one.apex == 30 else [np.nan] * 2 for one in windows])

    [kept] = refine([shown, not_shown], score, COUNT)
    assert kept.interval == not_shown and np.isnan(kept.probabilities).all()
    assert refine([], truth_score, COUNT) == []
    with pytest.raises(ValueError, match="score expected 3 rows, got an array of"):
        refine([shown], lambda windows: np.zeros((1, 2)), COUNT)
