"""What the timeline draws."""

from __future__ import annotations

import numpy as np
import pytest

from hsta_fast.predicting.result import PredictedInterval

pytest.importorskip("matplotlib")


def test_bars_lie_on_their_intervals() -> None:
    """An apex is seldom in the middle."""
    from hsta_fast.predicting.timeline import draw_shares
    from hsta_fast.protocol.plots import new_figure

    shares = {"a": 0.25, "b": 0.75}
    one = PredictedInterval(
        onset=10,
        apex=12,
        offset=30,
        seconds=(1.0, 1.2, 3.0),
        score=2.0,
        probabilities=shares,
        calibrated=None,
        answers=("a", "b"),
        votes={"a": 0, "b": 1},
        unsure=None,
        face=None,
    )
    axes = new_figure(4, 2, "").subplots()
    draw_shares(axes, ("a", "b"), (0.0, 10.0), [one])
    bars = [(bar.get_x(), bar.get_width(), bar.get_y(), bar.get_height()) for bar in axes.patches]  # type: ignore[attr-defined]
    assert bars == [(1.0, 2.0, 0.0, 0.25), (1.0, 2.0, 0.25, 0.75)]


@pytest.mark.parametrize("count", [200, 40_000])
def test_a_curve_is_broken_where_no_time_has_a_frame(count: int) -> None:
    """A pause in the middle; also of a curve of more points than are drawn, which keeps its peak."""
    from hsta_fast.predicting.timeline import _thinned

    times = np.arange(count) / 100 + 10.0 * (np.arange(count) >= count // 2)
    values = np.ones(count)
    values[count // 4] = 5.0
    drawn_times, drawn = _thinned(times, values)
    [place] = np.flatnonzero(np.isnan(drawn))
    assert drawn_times[place] - drawn_times[place - 1] > 10 and np.nanmax(drawn) == 5.0
