"""Recordings as streams of frames: video files, folders and lists of images."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from hsta_fast.data.frames.stream import FrameStream, open_frames, usual_rate
from hsta_fast.data.frames.video import read_video
from tests.data.frames.test_store import encoded
from tests.data.frames.test_video import KINDS
from tests.data.frames.video_files import encode, greys


def same(picture: np.ndarray) -> np.ndarray:
    return picture


def picture_of(read: np.ndarray | ValueError) -> np.ndarray:
    assert isinstance(read, np.ndarray)
    return read


def images(folder: Path, count: int = 12, height: int = 48, width: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, grey in enumerate(greys(count, height, width)):
        (folder / f"img{k + 1}.png").write_bytes(encoded(".png", grey))
    return folder


def check(stream: FrameStream, count: int) -> None:
    """Frame k is a grey of 8 k, in every way of reading."""
    shown = list(stream.pictures())
    assert [number for number, _ in shown] == list(range(count)) and stream.count == count
    small = list(stream.small_grey(32))
    assert [number for number, _ in small] == list(range(count))
    for (k, picture), (_, grey) in zip(shown, small, strict=True):
        assert picture.shape == (*stream.size[::-1], 3) and picture.dtype == np.uint8
        assert max(grey.shape) == 32 and grey.dtype == np.uint8
        assert abs(picture.mean() - 8 * k) < 4 and abs(grey.mean() - 8 * k) < 4, k
    chosen = stream.read([7, 2, 7, count], same)
    for position, number in enumerate((7, 2, 7)):
        assert np.array_equal(picture_of(chosen[position]), shown[number][1])
    assert isinstance(chosen[3], ValueError)
    few = list(stream.chosen({5, 2, count + 3}))
    assert [number for number, _ in few] == [2, 5] and np.array_equal(few[1][1], shown[5][1])
    assert [picture.shape for _, picture in stream.pictures(lambda p: p[:3, :2])] == [(3, 2, 3)] * count


@pytest.mark.parametrize("name", ["b_frames.mp4", "vp9.webm", "stored_order.avi", "ten_bits.mkv", "late.mkv"])
def test_a_video_file(tmp_path: Path, name: str) -> None:
    size = (47, 63) if name == "ten_bits.mkv" else (48, 64)
    path = encode(tmp_path / name, frames=greys(30, *size), **KINDS[name])
    stream = open_frames(path)
    check(stream, 30)
    assert (stream.name, stream.size, stream.remarks) == (name, size[::-1], ())
    rate = 25 if name == "late.mkv" else 30
    assert stream.rate == pytest.approx(rate, rel=1e-3)
    assert stream.seconds(0) == 0 and stream.seconds(15) == pytest.approx(15 / rate, abs=1e-3)
    assert all(
        np.array_equal(picture, picture_of(before))
        for (_, picture), before in zip(stream.pictures(), read_video(path, range(30), same), strict=True)
    )


def test_times_follow_the_timestamps_or_the_given_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", frames=greys(30), **KINDS["variable.mkv"])
    stream = open_frames(path)
    assert stream.seconds(4) == 0.048
    (remark,) = stream.remarks
    assert remark.startswith("variable frame rate: 3 to 171 ms between frames, median 87")
    given = open_frames(path, fps=200)
    assert (given.rate, given.seconds(4), given.remarks) == (200, 0.02, ())
    for fps in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="fps expected a positive number"):
            open_frames(path, fps=fps)


@pytest.mark.parametrize(
    ("steps", "rate"),
    [
        ([10] * 9 + [3000], 100),
        ([10] * 9 + [28_800_000], 100),
        ([10, 28_800_000], 100),
        ([28_800_000, 10], 100),
        ([17, 17, 16] * 20, 60),  # 60 frames a second on a clock of milliseconds
        ([4, 4, 4, 4, 4, 5] * 9, 240),
        ([8, 9, 8] * 9 + [25], 120),
        ([10] * 30 + [20] * 31, 50),
        ([0, 10, 10, 0], 100),
        ([28_800_000], 1 / 28_800),
        ([0], None),
        ([], None),
    ],
)
def test_the_rate_is_that_of_the_usual_step(steps: list[int], rate: float | None) -> None:
    found = usual_rate(np.array(steps) / 1000)
    assert found == (None if rate is None else pytest.approx(rate, rel=2e-3))


def test_a_pause_does_not_lower_the_rate_of_a_video(tmp_path: Path) -> None:
    times = [10 * k + 3000 * (k >= 20) for k in range(30)]
    stream = open_frames(encode(tmp_path / "a.mkv", "ffv1", greys(30), "bgr0", times=times))
    assert stream.rate == pytest.approx(100) and stream.seconds(29) == pytest.approx(3.29)


def test_a_folder_and_a_list_of_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip")
    (folder / "notes.txt").write_text("")
    (folder / "._img3.png").write_bytes(b"")
    stream = open_frames(folder)
    check(stream, 12)  # img2 comes before img10
    assert (stream.name, stream.rate, stream.size) == ("clip", None, (64, 48))
    with pytest.raises(ValueError, match="rate expected frames a second, clip does not tell: give --fps"):
        stream.seconds(3)
    assert open_frames(folder, fps=100).seconds(3) == 0.03
    some = [folder / f"img{k}.png" for k in (3, 1)]
    assert [int(p.mean()) for _, p in open_frames(some).pictures()] == [16, 0]


def test_small_grey_is_the_grey_of_the_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (64, 48)) for _ in range(3)]
    kinds = {
        "a.mp4": ("libx264", "yuv420p", None),
        "full.avi": ("mjpeg", "yuvj420p", None),
        "turned.mov": ("libx264", "yuv420p", (90, False, True)),
        "rgb.mkv": ("ffv1", "bgr0", None),
    }
    for name, (codec, pixels, turn) in kinds.items():
        path = encode(tmp_path / name, codec, frames, pixels, rotation=turn)
        stream = open_frames(path)
        assert stream.size == ((48, 64) if turn else (64, 48))
        for (_, picture), (_, grey) in zip(stream.pictures(), stream.small_grey(64), strict=True):
            assert grey.shape == picture.shape[:2]
            expected = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(int)
            assert abs(grey - expected).mean() < 2, name


def test_what_is_cut_or_damaged_is_used_as_far_as_it_is_sure(tmp_path: Path) -> None:
    noise = list(np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3)).astype(np.uint8))
    options = {"g": "10", "bf": "0", "x264-params": "keyint=10:scenecut=0"}
    path = encode(tmp_path / "a.mkv", "libx264", noise, options=options)
    path.write_bytes(path.read_bytes()[:-3000])
    stream = open_frames(path)
    assert 0 < stream.count < 30
    assert f"the file is cut or damaged after {stream.count} frames; they are used" in stream.remarks
    assert [number for number, _ in stream.pictures()] == list(range(stream.count))


def test_bad_input_is_one_line_that_names_it(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip", 3)
    (folder / "img9.png").write_bytes(encoded(".png", greys(1, 20, 20)[0]))
    with pytest.raises(ValueError, match="img9.png: expected 64 x 48 as the first, got 20 x 20"):
        list(open_frames(folder).pictures())
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(20))
    (tmp_path / "text.mp4").write_text("some text, no video")
    os.mkfifo(tmp_path / "pipe.mp4")
    outside = images(tmp_path / "outside", 1)
    away = tmp_path / "away"
    away.mkdir()
    (away / "img1.png").symlink_to(outside / "img1.png")
    wrong = {
        "none.mp4": "none.mp4: expected a video file, got: no such file",
        "empty": r"empty: expected a folder of images \(.bmp, .jpeg, .jpg, .png\), got none in it",
        "a.gif": "a.gif: expected an mp4, mov, avi, mkv or webm video, it is a GIF",
        "text.mp4": "text.mp4: expected an mp4, mov, avi, mkv or webm video, the file begins with",
        "pipe.mp4": "pipe.mp4: expected a video file, got: not a plain file",
        "away": "away: expected a path inside the root, 'img1.png' leads out of it",
    }
    for name, what in wrong.items():
        with pytest.raises(ValueError, match=what) as error:
            open_frames(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected a list of images, got none"):
        open_frames([])
    with pytest.raises(ValueError, match=r"a.gif: expected a list of images \(.*\), got another file"):
        open_frames([folder / "img1.png", tmp_path / "a.gif"])


def test_a_file_that_changes_between_two_passes_is_an_error(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "libx264", greys(5))
    stream = open_frames(path)
    assert len(list(stream.pictures())) == 5
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="a.mp4: expected a file that stays as it is, it changed"):
        list(stream.pictures())
    with pytest.raises(ValueError, match="it changed"):
        stream.read([1], same)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    used = []
    for count in (100, 2000):
        path = encode(tmp_path / f"{count}.mp4", "mpeg4", [greys(1)[0]] * count)
        tracemalloc.start()
        for number, _ in open_frames(path).small_grey(32):
            last = number
        used.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert last == count - 1
    assert used[1] - used[0] < 1900 * 200


def test_sound_alone_is_refused_and_4k_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        sound: Any = file.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        file.mux(sound.encode(samples))
        file.mux(sound.encode(None))
    with pytest.raises(ValueError, match="sound.mp4: expected a video, got a file without moving pictures"):
        open_frames(tmp_path / "sound.mp4")
    stream = open_frames(encode(tmp_path / "large.mp4", "mpeg4", greys(2, 2160, 3840)))
    assert (stream.count, stream.size) == (2, (3840, 2160))
    assert [grey.shape for _, grey in stream.small_grey(320)] == [(180, 320)] * 2
