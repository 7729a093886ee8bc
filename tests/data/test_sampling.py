import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsta_fast.data.sampling import (
    Sampling,
    flow_positions,
    needed_positions,
    random_frames,
    special_positions,
    uniform_frames,
    video_positions,
)


def test_uniform_frames_are_those_of_the_paper() -> None:
    assert uniform_frames(10, 20, 6).tolist() == [10, 12, 14, 16, 18, 20]
    assert uniform_frames(1, 100, 4).tolist() == [1, 34, 67, 100]
    assert uniform_frames(5, 6, 4).tolist() == [5, 5, 6, 6]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3000), st.integers(1, 40), st.integers(0, 99))
def test_drawn_frames_lie_in_the_clip_and_are_sorted(onset: int, length: int, num: int, seed: int) -> None:
    offset = onset + length - 1
    uniform = uniform_frames(onset, offset, num)
    drawn = random_frames(onset, offset, num, np.random.default_rng(seed))
    for frames in (uniform, drawn):
        assert frames.shape == (num,) and frames.dtype == np.int64
        assert (np.diff(frames) >= 0).all() and frames.min() >= onset and frames.max() <= offset
    assert uniform[0] == onset and (num == 1 or uniform[-1] == offset)
    if num <= length:
        assert len(set(drawn.tolist())) == num


def test_random_frames_reach_every_frame() -> None:
    rng = np.random.default_rng(0)
    seen = {int(frame) for _ in range(200) for frame in random_frames(3, 9, 2, rng)}
    assert seen == set(range(3, 10))


def test_offset_cap_holds_for_video_frames_only() -> None:
    sampling = Sampling(num_frames=3, offset_cap=50, special=("apex", "offset"))
    assert video_positions(sampling, 200).tolist() == [0, 25, 50]
    assert video_positions(sampling, 21).tolist() == [0, 10, 20]
    assert special_positions(sampling, 200, 120).tolist() == [120, 199]
    drawn = dataclasses.replace(sampling, video="random")
    assert video_positions(drawn, 200, np.random.default_rng(0)).max() <= 50


def test_special_frames_are_the_named_pair() -> None:
    assert special_positions(Sampling(), 11, 7).tolist() == [0, 7]
    assert special_positions(Sampling(special=("offset", "middle")), 11, 7).tolist() == [10, 5]


def test_flow_goes_from_onset_to_apex_to_offset() -> None:
    sampling = Sampling(num_frames=2, flow="dis", offset_cap=3, special=("middle", "middle"))
    assert flow_positions(sampling, 11, 7).tolist() == [[0, 7], [7, 10]]
    assert needed_positions(sampling, 11, 7).tolist() == [0, 3, 7, 10]
    still = dataclasses.replace(sampling, onset_only=True)
    assert flow_positions(still, 11, 7).tolist() == [[0, 0], [0, 0]]
    assert needed_positions(still, 11, 7).tolist() == [0]


@pytest.mark.parametrize("video", ["uniform", "random"])
def test_the_control_sees_only_the_onset_frame(video: Any) -> None:
    sampling = Sampling(video=video, special=("apex", "offset"), onset_only=True)
    assert video_positions(sampling, 30, np.random.default_rng(0)).tolist() == [0] * 6
    assert special_positions(sampling, 30, 12).tolist() == [0, 0]
    assert needed_positions(sampling, 30, 12).tolist() == [0]


@pytest.mark.parametrize("video", ["uniform", "random"])
@pytest.mark.parametrize("cap", [None, 5])
def test_needed_positions_include_all_sampled_ones(video: Any, cap: int | None) -> None:
    sampling = Sampling(num_frames=4, video=video, offset_cap=cap, special=("apex", "offset"))
    needed = needed_positions(sampling, 40, 20).tolist()
    assert needed == sorted(set(needed)) and {20, 39} <= set(needed)
    for seed in range(20):
        assert set(video_positions(sampling, 40, np.random.default_rng(seed)).tolist()) <= set(needed)
    if video == "uniform":
        assert len(needed) <= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames expected at least 1, got 0"),
        ({"video": "every"}, "video expected .* got 'every'"),
        ({"offset_cap": 0}, "offset_cap expected .* got 0"),
        ({"special": ("onset", "peak")}, "special expected two of .* 'peak'"),
        ({"special": ("onset",)}, "special expected two of"),
        ({"flow": "lucas-kanade"}, "flow expected None or one of .* got 'lucas-kanade'"),
    ],
)
def test_wrong_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


def test_random_frames_without_a_generator_raise() -> None:
    with pytest.raises(ValueError, match="rng expected a random generator"):
        video_positions(Sampling(video="random"), 10)
