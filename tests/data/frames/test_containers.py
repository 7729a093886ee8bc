"""Video files that are cut or damaged: which frames still have a number that is sure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hsta_fast.data.frames.containers import first_damage
from hsta_fast.data.frames.video import container_format, read_timeline, read_video
from tests.data.frames.test_video import KINDS, write
from tests.data.frames.video_files import encode, greys

NOISE = np.random.default_rng(0).integers(0, 24, (30, 48, 64, 3)).astype(np.uint8)
# Frame k is 8 k with some noise, so that a frame takes more bytes than the headers.
FRAMES = [image + noise for image, noise in zip(greys(30), NOISE, strict=True)]
MORE: dict[str, dict[str, Any]] = {
    "fast.mp4": {"codec": "libx264", "container": {"movflags": "faststart"}},
    "parts.mp4": {
        "codec": "libx264",
        "options": {"g": "8"},
        "container": {"movflags": "frag_keyframe+empty_moov"},
    },
    "plain.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "order.mkv": {"codec": "libx264", "options": {"bf": "3", "x264-params": "b-adapt=0:keyint=10"}},
}
CAN_BE_CUT = [name for name in {**KINDS, **MORE} if not name.endswith(".mp4")] + ["fast.mp4", "parts.mp4"]


def make(folder: Path, name: str) -> bytes:
    return encode(folder / name, frames=FRAMES, **{**KINDS, **MORE}[name]).read_bytes()


def check_numbers(path: Path) -> int:
    """How many frames are certain; each of them must be the right one, and no other may be given."""
    timeline = read_timeline(path)
    assert timeline.certain is not None and timeline.certain <= len(timeline)
    made = read_video(path, range(30), lambda image: image)
    for k, frame in enumerate(made):
        if not isinstance(frame, ValueError):
            assert k < timeline.certain and abs(frame.mean() - FRAMES[k].mean()) < 4, k
    return timeline.certain


@pytest.mark.parametrize("name", [*KINDS, *MORE])
def test_whole_files_have_no_damage(tmp_path: Path, name: str) -> None:
    data = make(tmp_path, name)
    kind = container_format(data[:12])
    assert first_damage(io.BytesIO(data), kind) is None
    assert read_timeline(tmp_path / name).certain is None
    for tail in (bytes(5), bytes(64), b"made by a camera"):  # what some programs leave behind the video
        if name != "live.webm" and name != "parts.mp4":
            assert first_damage(io.BytesIO(data + tail), kind) is None


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mp4", "mp4v")])
def test_files_of_opencv_have_no_damage(tmp_path: Path, name: str, codec: str) -> None:
    write(tmp_path / name, codec)
    assert read_timeline(tmp_path / name).certain is None


@pytest.mark.parametrize("name", CAN_BE_CUT)
def test_a_cut_file_is_told_from_a_shorter_one(tmp_path: Path, name: str) -> None:
    data = make(tmp_path, name)
    for share, least in ((0.8, 4), (0.95, 10)):
        if name == "stored_order.avi":  # whose frames may be shown 16 later than they are stored
            least = 0
        (tmp_path / name).write_bytes(data[: round(len(data) * share)])
        assert least <= check_numbers(tmp_path / name) <= (30 if name == "fine_clock.avi" else 29)


@pytest.mark.parametrize("name", ["variable.mkv", "live.webm", "order.mkv", "plain.avi", "mpeg4.avi"])
def test_a_frame_lost_in_the_middle_makes_later_numbers_uncertain(tmp_path: Path, name: str) -> None:
    data = bytearray(make(tmp_path, name))
    lost = spoil(tmp_path / name, data, 14)
    certain = check_numbers(tmp_path / name)
    assert lost - 4 <= certain <= lost, certain


@pytest.mark.parametrize("name", ["stored_order.avi", "parts.mp4"])
def test_a_picture_that_cannot_be_decoded_ends_frames_that_are_counted(tmp_path: Path, name: str) -> None:
    """Where only their order tells frames apart, a lost one would move all that follow it."""
    data = bytearray(make(tmp_path, name))
    assert not read_timeline(tmp_path / name).by_stamp
    with av.open(str(tmp_path / name)) as file:
        packets = [packet for packet in file.demux(file.streams.video[0]) if packet.size]
    at = data.index(bytes(packets[20]))
    data[at : at + packets[20].size] = bytes(packets[20].size)
    (tmp_path / name).write_bytes(data)
    assert 10 <= check_numbers(tmp_path / name) <= 20


def spoil(path: Path, data: bytearray, number: int) -> int:
    """Overwrites the header of a stored frame, and little before it; returns its number."""
    with av.open(str(path)) as file:
        at = [packet.pos for packet in file.demux(file.streams.video[0]) if packet.size][number + 1]
    assert at is not None
    data[at - 2 : at + 38] = np.random.default_rng(1).integers(0, 256, 40, np.uint8).tobytes()
    path.write_bytes(data)
    return number + 1


def test_a_length_without_its_even_byte_is_no_damage() -> None:
    """Some programs do not fill up a chunk of odd length."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + len(content).to_bytes(4, "little") + content

    for gap in (b"\0", b""):
        frames = chunk(b"00dc", b"123") + gap + chunk(b"00dc", b"1234")
        whole = chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"movi" + frames))
        assert first_damage(io.BytesIO(whole), "avi") is None
        assert first_damage(io.BytesIO(whole[:-1]), "avi") == len(whole) - 12
        assert first_damage(io.BytesIO(whole[:-12]), "avi") == len(whole) - 12
        assert first_damage(io.BytesIO(whole.replace(b"00dc", bytes(4), 1)), "avi") == 24
