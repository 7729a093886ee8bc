"""Frames of video files, "clips/a.mp4#17"."""

from __future__ import annotations

import hashlib
import itertools
import struct
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
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


def decoded(path: Path, numbers: Sequence[int]) -> list[np.ndarray]:
    """The frames as RGB; none may be missing."""
    return [np.asarray(frame) for frame in read_video(path, numbers, lambda image: image)]


def faulty(path: Path, count: int) -> list[int]:
    """The numbers of the frames that cannot be read."""
    made = read_video(path, range(count), lambda image: image)
    return [number for number, frame in enumerate(made) if isinstance(frame, ValueError)]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_its_frames_in_the_order_of_display(tmp_path: Path, name: str) -> None:
    size = (47, 63) if name == "ten_bits.mkv" else (48, 64)
    path = encode(tmp_path / name, frames=greys(30, *size), **KINDS[name])
    timeline = read_timeline(path)
    assert len(timeline) == 30 and timeline.by_stamp == (name != "stored_order.avi")
    frames = decoded(path, range(30))
    for k, frame in enumerate(frames):
        assert frame.shape == (*size, 3) and abs(frame.astype(int) - 8 * k).mean() < 4, k
    assert np.array_equal(decoded(path, [17])[0], frames[17])
    if name == "variable.mkv":
        assert timeline.seconds(0, 4) == 0.048 and timeline.rate(1, 3) == pytest.approx(2 / 0.024)
    elif name not in ("late.mkv", "fine_clock.avi"):
        assert timeline.rate(0, 29) == pytest.approx(30, rel=1e-3)


def test_a_time_names_the_frame_that_starts_nearest(tmp_path: Path) -> None:
    times = [5000, 5040, 5100, 5101, 5300]  # the first frame is at 0, whatever the file calls it
    timeline = read_timeline(encode(tmp_path / "a.mkv", "ffv1", greys(5), "bgr0", times=times))
    found = {
        0.0: 0,
        0.019: 0,
        0.02: 0,
        0.021: 1,
        0.07: 1,
        0.1: 2,
        0.1006: 3,
        0.2: 3,
        0.21: 4,
        0.3: 4,
        0.37: 4,
    }
    assert {time: timeline.at(time) for time in found} == found
    with pytest.raises(ValueError, match=r"time expected at most 0.375 s, where the video ends, got 0.4 s"):
        timeline.at(0.4)


def test_a_picture_that_is_never_shown_has_no_number(tmp_path: Path) -> None:
    """VP8 stores pictures that others refer to: here frame 12 is made one."""
    path = encode(tmp_path / "a.webm", "libvpx", greys(30), options={"error-resilient": "1"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(file.streams.video[0]) if packet.size]
        content = bytes(packets[12])
        assert content[0] & 0x10
    at = data.index(content)
    data[at] &= ~0x10
    path.write_bytes(data)
    assert len(read_timeline(path)) == 29 and not faulty(path, 29)
    assert abs(decoded(path, [13])[0].astype(int) - 8 * 14).mean() < 4


@pytest.mark.parametrize("matrix", list(itertools.product((0, 90, 180, 270), (False, True), (False, True))))
def test_frames_are_turned_and_mirrored_as_players_show_them(
    tmp_path: Path, matrix: tuple[int, bool, bool]
) -> None:
    stored = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 24, 0), 24, 1)
    image = np.stack([stored] * 3, axis=-1)
    path = encode(tmp_path / "a.mov", "libx264", [image] * 2, "yuv444p", options={"qp": "0"}, rotation=matrix)
    degrees, across, down = matrix  # first turned against the clock, then mirrored
    shown = np.rot90(image, degrees // 90)
    shown = shown[:, ::-1] if across else shown
    shown = shown[::-1] if down else shown
    (frame,) = decoded(path, [1])
    assert frame.shape == shown.shape and abs(frame.astype(int) - shown).max() <= 2


WEIGHTS = {"bt709": (1, 0.2126, 0.0722), "bt601": (6, 0.299, 0.114), "unnamed": (2, 0.299, 0.114)}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [*WEIGHTS, "unnamed, large"])
def test_colours_follow_the_matrix_and_the_range_of_the_file(tmp_path: Path, matrix: str, full: bool) -> None:
    large = matrix == "unnamed, large"  # players take it for BT.709
    code, red, blue = (2, *WEIGHTS["bt709"][1:]) if large else WEIGHTS[matrix]
    shape = (578, 64) if large else (48, 64)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    r, g, b = np.moveaxis(image / 255.0, -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    scale, offset, spread = (255, 0, 255) if full else (219, 16, 224)
    planes = [luma * scale + offset, *(part * spread + 128 for part in chroma)]
    yuv = np.stack([np.clip(np.rint(plane), 0, 255) for plane in planes]).astype(np.uint8)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("ffv1", rate=30)
        stream.height, stream.width = shape
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = code, 2 if full else 1
        for k in range(2):
            frame = av.VideoFrame.from_ndarray(yuv, format="yuv444p")
            frame.colorspace, frame.color_range, frame.pts = code, 2 if full else 1, k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    difference = abs(decoded(path, [1])[0].astype(int) - image)
    # Rounding of Y, Cb and Cr to bytes: at most 2 with the limited range, 1 with the full one.
    assert difference.max() <= (1 if full else 2) and difference.mean() < 0.5


def test_lossless_rgb_comes_back_exactly(tmp_path: Path) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (3, 47, 63, 3)).astype(np.uint8))
    path = encode(tmp_path / "a.mkv", "ffv1", images, "bgr0")
    assert all(np.array_equal(a, b) for a, b in zip(decoded(path, range(3)), images, strict=True))


def test_transparent_frames_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream: Any = file.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgra"
        for k in range(2):
            image = np.full((48, 64, 4), 255, np.uint8)
            image[:k, :5, 3] = 0
            frame = av.VideoFrame.from_ndarray(image, format="rgba").reformat(format="bgra")
            frame.pts = k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    opaque, clear = read_video(tmp_path / "a.mkv", [0, 1], lambda image: image)
    assert isinstance(opaque, np.ndarray) and (opaque == 255).all()
    assert "expected an opaque picture, got 5 of 3072 pixels with transparency" in str(clear)


def test_the_moving_pictures_are_read_beside_sound_and_a_cover(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        sound: Any = file.add_stream("aac", rate=8000)
        small: Any = file.add_stream("libx264", rate=30)
        main: Any = file.add_stream("libx264", rate=30)
        small.height = small.width = 32
        main.height, main.width = 48, 64
        small.pix_fmt = main.pix_fmt = "yuv420p"
        small.disposition, main.disposition = 0, av.stream.Disposition.default
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        file.mux(sound.encode(samples))
        for k, image in enumerate(greys(6)):
            for stream, picture in ((small, image[:32, :32] * 0), (main, image)):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts = k
                file.mux(stream.encode(frame.reformat(format="yuv420p")))
        for stream in (sound, small, main):
            file.mux(stream.encode(None))
    assert len(read_timeline(path)) == 6
    (last,) = decoded(path, [5])
    assert last.shape == (48, 64, 3) and abs(last.astype(int) - 40).max() < 4


def test_damage_costs_the_frames_that_it_may_have_spoiled(tmp_path: Path) -> None:
    """A group of pictures is ten frames; frames 3 and 23 are overwritten, and the file is cut in frame 28."""
    noise = list(np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3)).astype(np.uint8))
    options = {"g": "10", "bf": "0", "x264-params": "keyint=10:scenecut=0"}
    path = encode(tmp_path / "a.mkv", "libx264", noise, options=options)
    whole = decoded(path, range(30))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(file.streams.video[0]) if packet.size]
    for number in (3, 23):
        at = data.index(packets[number])
        data[at : at + len(packets[number])] = bytes(len(packets[number]))
    path.write_bytes(data[: data.index(packets[28]) + 20])
    assert len(read_timeline(path)) == 28
    assert faulty(path, 30) == [*range(3, 10), *range(23, 30)]
    for number in (2, 10, 22):
        assert np.array_equal(decoded(path, [number])[0], whole[number])


def test_what_is_no_video_by_content_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        sound: Any = file.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        file.mux(sound.encode(samples))
        file.mux(sound.encode(None))
    (tmp_path / "text.mp4").write_text("https://example.org/a.mp4")
    (tmp_path / "list.mkv").write_text("#EXTM3U\n#EXTINF:1,\na.mp4\n")
    (tmp_path / "image.mp4").write_bytes(encoded(".png"))
    (tmp_path / "image.mov").write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
    (tmp_path / "image.avi").write_bytes(b"RIFF\x20\0\0\0WEBPVP8 " + bytes(100))
    (tmp_path / "junk.mp4").write_bytes(b"\0\0\0\x1cftypisom" + bytes(1000))
    begins = "expected an mp4, mov, avi, mkv or webm video, the file begins with"
    wrong = {
        "sound.mp4": "expected a video, got a file without moving pictures",
        "text.mp4": begins,
        "list.mkv": begins,
        "image.mp4": begins,
        "image.mov": "expected a video, got an image of type heic",
        "image.avi": begins,
        "junk.mp4": "expected a ",
    }
    for name, what in wrong.items():
        for read in (read_timeline, lambda path: read_video(path, [0], lambda image: image)):
            with pytest.raises(ValueError, match=what) as error:
                read(tmp_path / name)
            assert "\n" not in str(error.value)


def test_nothing_is_written_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = list(np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3)).astype(np.uint8))
    damaged = {}
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")):
        data = bytearray(encode(tmp_path / name, codec, noise).read_bytes())
        for at in range(2000, len(data) - 2000, 3000):
            data[at : at + 50] = b"\x55" * 50
        damaged[name] = bytes(data)
    damaged["junk.mp4"] = b"\0\0\0\x1cftypisom" + bytes(1000)
    capfd.readouterr()  # what the encoders said
    found = {}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        try:
            found[name] = len(faulty(tmp_path / name, 20))
        except ValueError:
            found[name] = 20
    assert capfd.readouterr() == ("", "")
    assert found["a.avi"] and found["junk.mp4"]  # H.264 and VP8 conceal the damage


def test_without_av_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.avi", "MJPG")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ImportError, match=r"^video files expected the package av, got none: pip install 'hsta"
    ):
        load(tmp_path, [["a.avi#0", "a.avi#1"]])


def test_cached_frames_name_their_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.avi", "MJPG")
    (tmp_path / "a.png").write_bytes(encoded(".png"))
    keys = content_keys(tmp_path, ["a.avi#3", "a.png"])
    digest = hashlib.blake2b((tmp_path / "a.avi").read_bytes(), digest_size=16).hexdigest()
    assert str(keys["a.avi#3"]).startswith(f"{digest}#3 av1 6")
    assert keys["a.png"] == hashlib.blake2b((tmp_path / "a.png").read_bytes(), digest_size=16).hexdigest()
    monkeypatch.setitem(av.library_versions, "libavcodec", (99, 0, 0))
    assert content_keys(tmp_path, ["a.avi#3"])["a.avi#3"] != keys["a.avi#3"]


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    small: Any = av.CodecContext.create("mjpeg", "w")
    small.height, small.width, small.pix_fmt, small.time_base = 32, 32, "yuvj420p", Fraction(1, 30)
    with av.open(str(tmp_path / "a.avi"), "w") as file:
        stream: Any = file.add_stream("mjpeg", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for k, image in enumerate(greys(6)):
            picture = np.ascontiguousarray(image[:32, :32]) if k == 4 else image
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = k, Fraction(1, 30)
            for packet in (small if k == 4 else stream).encode(frame):
                packet.stream, packet.pts, packet.dts = stream, k, k
                file.mux(packet)
    made = read_video(tmp_path / "a.avi", range(6), lambda image: image)
    assert [number for number, frame in enumerate(made) if isinstance(frame, ValueError)] == [4]
    assert "expected frames of one size, 64 x 48, got 32 x 32" in str(made[4])
