"""Frames of video files, "clips/a.mp4#17"."""

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hsta_fast.data.frames import store as store_module
from hsta_fast.data.frames.cache import Cache
from hsta_fast.data.frames.decode import content_keys
from hsta_fast.data.frames.store import load_frames
from hsta_fast.data.frames.video import read_timeline, read_video, split_video
from hsta_fast.data.sampling import Sampling
from tests.data.frames.test_store import encoded, table_of
from tests.data.frames.video_files import encode, greys

FORMATS = [("a.avi", "MJPG"), ("a.mp4", "mp4v")]


def write(path: Path, codec: str, count: int = 20, side: int = 64) -> None:
    """Frame k is a grey of 12 k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (side, side))
    for k in range(count):
        writer.write(np.full((side, side, 3), 12 * k, np.uint8))
    writer.release()


def load(root: Path, clips: list[list[str]], cache: Cache | None = None, **more: Any) -> Any:
    return load_frames(table_of(root, clips), Sampling(num_frames=4), 16, cache=cache, progress=False, **more)


def test_names() -> None:
    assert split_video("clips/a.mp4#17") == ("clips/a.mp4", 17)
    assert split_video("a#3/b.MKV#0") == ("a#3/b.MKV", 0)
    for image in ("a#3/4.jpg", "a.mp4", "a.mp4#", "a.mp4#x", "a.jpg#3", ".mp4#-1"):
        assert split_video(image) == (image, None)


@pytest.mark.parametrize(("name", "codec"), FORMATS)
@pytest.mark.parametrize("cached", [False, True])
def test_each_frame_is_the_one_that_is_named(tmp_path: Path, name: str, codec: str, cached: bool) -> None:
    write(tmp_path / "clips" / name, codec)
    (tmp_path / "still.png").write_bytes(encoded(".png", np.full((20, 20, 3), 99, np.uint8)))
    clips = [[f"clips/{name}#{k}" for k in numbers] for numbers in ((9, 10, 11, 12), (0, 3, 17, 19))]
    cache = Cache(folder=tmp_path / "cache", limit=10**9) if cached else None
    for _ in range(2):
        left, store = load(tmp_path, [*clips, ["still.png", f"clips/{name}#1"]], cache)
        assert len(left) == 3
        for path, row in store.rows.items():
            value = 99 if path == "still.png" else 12 * int(path.split("#")[1])
            assert abs(store.pixels[row].astype(int) - value).max() < 6, path  # nearer than the next frame's


def test_bad_videos_are_faults(tmp_path: Path) -> None:
    write(tmp_path / "good.avi", "MJPG")
    whole = (tmp_path / "good.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.avi").write_bytes(whole[:40])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile good.avi\n")
    names = [
        "good.avi#20",
        "cut.avi#19",
        "header.avi#1",
        "empty.mp4#1",
        "list.mp4#1",
        "none.mkv#1",
        "../x.avi#1",
    ]
    left, _ = load(tmp_path, [*([name, name] for name in names), ["good.avi#0", "good.avi#19"]])
    assert left.clips["subject"].tolist() == ["s7"]
    wrong = [
        *("ends or is damaged after 20 frames", "a readable video", "a readable video"),
        *("is empty", "begins with 66 66 63 6f", "got: no such file", "inside the root"),
    ]
    for word, fault in zip(wrong, left.faults, strict=True):
        assert word in fault.what, fault


def test_a_video_that_changes_while_it_is_read_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.avi", "MJPG")
    keys = content_keys

    def and_then_changed(*args: Any, **more: Any) -> Any:
        found = keys(*args, **more)
        (tmp_path / "a.avi").write_bytes((tmp_path / "a.avi").read_bytes() + b"\0")
        return found

    monkeypatch.setattr(store_module, "content_keys", and_then_changed)
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    with pytest.raises(ValueError, match="changed while it was read"):
        load(tmp_path, [["a.avi#0", "a.avi#1"]], cache)


def test_a_video_of_huge_frames_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "huge.avi", "ffv1", greys(2), "bgr0")
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12
    assert data[at : at + 8] == struct.pack("<II", 64, 48)
    for width, height in ((8000, 8001), (50_000, 50_000)):
        data[at : at + 8] = struct.pack("<II", width, height)
        path.write_bytes(data)
        with pytest.raises(ValueError, match="expected frames of at most 64000000 pixels, got more or none"):
            load(tmp_path, [["huge.avi#0", "huge.avi#1"]], strict=True)


KINDS: dict[str, dict[str, Any]] = {
    "b_frames.mp4": {"codec": "libx264", "options": {"bf": "3", "x264-params": "b-adapt=0"}},
    "live.webm": {"codec": "libvpx", "container": {"live": "1"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "variable.mkv": {"codec": "ffv1", "pixels": "bgr0", "times": [3 * k * k for k in range(30)]},
    "late.mkv": {"codec": "ffv1", "pixels": "bgr0", "times": [5000 + 40 * k for k in range(30)]},
    "fine_clock.avi": {
        "codec": "mjpeg",
        "pixels": "yuvj420p",
        "times": [33 * k for k in range(30)],
        "rate": 1000,
    },
    "stored_order.avi": {"codec": "libx264", "options": {"bf": "3", "x264-params": "b-adapt=0"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "qmin": "1", "qmax": "1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "ten_bits.mkv": {"codec": "ffv1", "pixels": "yuv420p10le"},
    "interlaced.mp4": {"codec": "libx264", "options": {"x264-params": "tff=1"}},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_its_frames_in_the_order_of_display(tmp_path: Path, name: str) -> None:
    size = (47, 63) if name == "ten_bits.mkv" else (48, 64)
    path = encode(tmp_path / name, frames=greys(30, *size), **KINDS[name])
    timeline = read_timeline(path)
    assert len(timeline) == 30
    frames = [np.asarray(frame) for frame in read_video(path, range(30), lambda image: image)]
    for k, frame in enumerate(frames):
        assert frame.shape == (*size, 3) and abs(frame.astype(int) - 8 * k).mean() < 4, k
    assert np.array_equal(np.asarray(read_video(path, [17], lambda image: image)[0]), frames[17])
    assert timeline.by_stamp == (name != "stored_order.avi")
