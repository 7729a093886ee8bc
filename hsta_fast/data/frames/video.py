"""Frames of a video file. "clips/a.mp4#17" names its frame 17, counted from 0 in the order of display.

Frames are told apart by their timestamps, not counted from what the container declares: live recordings
declare nothing, and an avi with a fine time base declares more frames than it has.
"""

from __future__ import annotations

import itertools
import re
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from ...files import open_plain
from .containers import first_damage

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

T = TypeVar("T")

# A picture that declares more is refused before decoding: 64 megapixels are 192 MB of RGB, and a file of a
# few kilobytes may declare 50,000 x 50,000, which would be 7.5 GB.
MAX_PIXELS = 64_000_000
VIDEO_TYPES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")  # see `container_format`
_FRAME_OF_VIDEO = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, VIDEO_TYPES))}))#([0-9]{{1,9}})", re.IGNORECASE | re.DOTALL
)
_STILL = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")  # brands of images in the container of mp4
_MOST_REORDERED = 16  # frames that may be stored before one that is shown earlier; the limit of H.264, HEVC
_BT601_LINES = (
    576  # a taller or wider (1280) video that does not name its colours is BT.709, as players assume
)

_LUMA_FIRST = ("420p", "422p", "444p")  # formats yuv... of 8 bits whose first plane is the luma
_FULL_RANGE = 2  # FFmpeg's number; luma of the limited range is 16 to 235
_FROM_LIMITED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


def split_video(path: str) -> tuple[str, int | None]:
    """("clips/a.mp4", 17) for "clips/a.mp4#17"; (path, None) for the path of an image."""
    match = _FRAME_OF_VIDEO.fullmatch(path)
    return (match[1], int(match[2])) if match else (path, None)


def import_av() -> Any:
    """The package av; ImportError naming the extra that brings it where it is missing."""
    try:
        import av
    except ImportError as error:
        what = "video files expected the package av, got none: pip install 'hsta_fast[video]'"
        raise ImportError(what) from error
    return av


def decoder_version() -> str:
    """Identifies what turns a video into pixels: part of the key of its frames in the cache."""
    numbers = import_av().library_versions
    of = {name: ".".join(map(str, numbers[name])) for name in ("libavcodec", "libavformat", "libswscale")}
    return "av1 " + " ".join(of.values())  # av1: this module; raise it where other bytes come out


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown.

    stamps: timestamps in units of `unit` seconds, ascending; 8 bytes each.
    by_stamp: whether a decoded frame's own timestamp tells which one it is; else their order does.
    certain: of a file that is cut or damaged, how many frames surely come before the lost ones; the numbers
        of the others are not known. None for a whole file.
    """

    stamps: Sequence[int]
    unit: Fraction
    by_stamp: bool = True
    certain: int | None = None

    def __len__(self) -> int:
        return len(self.stamps)

    def number(self, stamp: int | None) -> int:
        """The number of the frame with this timestamp; -1 if there is none."""
        place = -1 if stamp is None else bisect_left(self.stamps, stamp)
        return place if 0 <= place < len(self.stamps) and self.stamps[place] == stamp else -1

    def seconds(self, first: int, last: int) -> float:
        """From the start of frame `first` to the start of frame `last`."""
        return float((self.stamps[last] - self.stamps[first]) * self.unit)

    def rate(self, first: int, last: int) -> float | None:
        """Frames a second between two frames; None where their timestamps do not differ."""
        span = self.seconds(first, last)
        return (last - first) / span if span > 0 else None

    def at(self, seconds: float) -> int:
        """The frame whose start is nearest to a time from the first frame's, of two the earlier one.

        Raises ValueError for a time after the last frame was shown.
        """
        whole = self.seconds(0, len(self) - 1)
        end = whole + whole / max(1, len(self) - 1)  # the last frame is shown as long as an average one
        if seconds > end:
            raise ValueError(f"time expected at most {end:.3f} s, where the video ends, got {seconds:g} s")
        wanted = seconds / self.unit + self.stamps[0]
        return min(range(len(self)), key=lambda number: abs(self.stamps[number] - wanted))


def read_timeline(path: Path) -> Timeline:
    """The timeline of a video file, from its packets: the whole file is read, almost never decoded.

    Raises ValueError if it is no video, has no frame, or declares frames of more than `MAX_PIXELS`.
    """
    timeline = _stored_timeline(path)
    if not timeline.by_stamp:  # packets without a picture cannot be told from others here
        count, certain = 0, timeline.certain
        with _opened(path) as (container, stream):
            for frame in _decoded(container, stream, by_stamp=False):
                if frame is None:  # the frames from here on are lost
                    certain = count if certain is None else min(certain, count)
                else:
                    count += 1
        timeline = replace(timeline, stamps=timeline.stamps[:count], certain=certain)
    if not timeline.stamps:
        raise ValueError("expected a video, got a file without a whole frame")
    return timeline


def read_video(
    path: Path,
    numbers: Sequence[int],
    convert: Callable[[np.ndarray], T] | Sequence[Callable[[np.ndarray], T]],
    timeline: Timeline | None = None,
) -> list[T | ValueError]:
    """`convert` applied to the frames `numbers`, uint8 RGB (height, width, 3); ValueError for a missing one.

    The video is decoded from its start: seeking lands on other frames in some codecs. Frames are upright, as
    players show them. One decoded frame at a time is held.

    convert: one for all, or one for each of `numbers`.
    timeline: that of the file, where it is known.

    Raises ValueError if it is no video, or declares frames of more than `MAX_PIXELS`.
    """
    converts = [convert] * len(numbers) if callable(convert) else convert
    places: dict[int, list[int]] = {}  # of each number
    for place, number in enumerate(numbers):
        places.setdefault(number, []).append(place)
    found: dict[int, T | ValueError] = {}  # by place
    last, count = max(numbers, default=0), 0
    size: tuple[int, int] | None = None
    with closing(numbered_frames(path, timeline or _stored_timeline(path))) as frames:
        for number, frame in frames:
            count += 1
            size = size or (frame.width, frame.height)
            for place in places.pop(number, ()):
                try:
                    check_size(frame, size)
                    found[place] = converts[place](upright(frame))
                except ValueError as error:
                    found[place] = error
            if not places:
                break
    end = ValueError(f"expected frames up to {last}, the video ends or is damaged after {count} frames")
    return [found.get(place, end) for place in range(len(numbers))]


def numbered_frames(path: Path, timeline: Timeline) -> Generator[tuple[int, VideoFrame]]:
    """The decoded frames of a video with their numbers, in the order of display, one held at a time.

    Left out are those that damage has spoiled, or whose number is not certain.

    Raises ValueError if it is no video, or declares frames of more than `MAX_PIXELS`.
    """
    certain = len(timeline) if timeline.certain is None else timeline.certain
    with _opened(path) as (container, stream):
        decoded = filter(None, _decoded(container, stream, by_stamp=timeline.by_stamp))
        for count, frame in enumerate(decoded):
            number = timeline.number(frame.pts) if timeline.by_stamp else count
            if 0 <= number < certain:
                yield number, frame


def check_size(frame: VideoFrame, size: tuple[int, int]) -> None:
    """Raise ValueError unless a frame, as it is stored, has this (width, height)."""
    if (frame.width, frame.height) != size:
        now = f"{frame.width} x {frame.height}"
        raise ValueError(f"expected frames of one size, {size[0]} x {size[1]}, got {now}")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the video stream that a player would show.

    Raises ValueError if the file is no video or FFmpeg fails, also while it is used.
    """
    av = import_av()
    with open_plain(path, "a video file") as file:
        kind = container_format(file.read(12))
        file.seek(0)
        # The format and the open file are given, and no protocol is allowed: FFmpeg can follow neither a
        # playlist nor a reference to another file or address.
        options = {"protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
        try:
            with av.open(file, format=kind, options=options, metadata_errors="replace") as container:
                stream = container.streams.best("video")
                if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                    raise ValueError("expected a video, got a file without moving pictures")
                # FFmpeg sets the size to 0 if it cannot tell it, or if it is more than the limit.
                if not 0 < stream.codec_context.width * stream.codec_context.height <= MAX_PIXELS:
                    raise ValueError(f"expected frames of at most {MAX_PIXELS} pixels, got more or none")
                stream.codec_context.thread_count = 1  # files are read in parallel
                yield container, stream
        except av.FFmpegError as error:
            raise ValueError(f"expected a readable video, FFmpeg says: {error.strerror}") from error


def container_format(start: bytes) -> str:
    """FFmpeg's name of the container that begins with these 12 bytes; ValueError if it is none of a video."""
    if not start:
        raise ValueError("expected a video file, it is empty")
    if start[4:8] == b"ftyp" and start[8:12] in _STILL:
        raise ValueError(f"expected a video, got an image of type {start[8:12].decode()}")
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mov"
    if start[:4] == b"RIFF" and start[8:] == b"AVI ":
        return "avi"
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    what = "it is a GIF" if start[:4] == b"GIF8" else f"the file begins with {start[:4].hex(' ')}"
    raise ValueError(f"expected an mp4, mov, avi, mkv or webm video, {what}")


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet | None]:
    """The packets of the stream; None for one that is not there whole, and where FFmpeg can go no further."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield None if packet.is_corrupt else packet
    except import_av().error.InvalidDataError:
        yield None


def _stored_timeline(path: Path) -> Timeline:
    """The timeline as the packets tell it."""
    with open_plain(path, "a video file") as file:
        kind = container_format(file.read(12))
        damage = first_damage(file, kind)
    with _opened(path) as (container, stream):
        return _timeline(container, stream, damage)


def _timeline(container: InputContainer, stream: VideoStream, damage: int | None) -> Timeline:
    """damage: the position in the file where it is cut or damaged, None for a whole one."""
    is_vp8, has_b_frames = stream.codec_context.name in ("vp8", "libvpx"), stream.codec_context.has_b_frames
    stored: list[int | None] = []
    before: int | None = None  # frames stored before the damage
    reached: int | None = None  # lost frames are shown after this time: not earlier than they are decoded
    for packet in _packets(container, stream):
        if before is None and (packet is None or (damage is not None and (packet.pos or 0) >= damage)):
            before = len(stored)
        # An edit list hides packets of an mp4. A VP8 packet may hold a picture that is only referred to.
        if packet is None or packet.is_discard or (is_vp8 and not bytes(packet)[0] & 0x10):
            continue
        stored.append(packet.pts)
        time = packet.dts if has_b_frames else packet.pts
        if before is None and time is not None:
            reached = time if reached is None else max(reached, time)
    if before is None and damage is not None:
        before = len(stored)
    certain = None if before is None else max(0, before - _MOST_REORDERED * has_b_frames)
    stamps = sorted({stamp for stamp in stored if stamp is not None})
    if len(stamps) < len(stored):  # times that are missing or there twice: even steps
        step = 1 / Fraction(stream.average_rate or 25)
        return Timeline(range(len(stored)), step, by_stamp=False, certain=certain)
    # An avi has no times of display: where frames are stored in another order, these are times of storage.
    by_stamp = not (has_b_frames and stamps == stored)
    if before is not None and (by_stamp or container.format.name != "avi"):
        certain = 0 if reached is None else bisect_right(stamps, reached)
    return Timeline(array("q", stamps), Fraction(stream.time_base or 1), by_stamp, certain)


def _decoded(
    container: InputContainer, stream: VideoStream, *, by_stamp: bool
) -> Iterator[VideoFrame | None]:
    """The frames in the order of display, without those that damage has spoiled.

    After a packet that cannot be decoded, frames may show what it left up to the next one that stands alone.
    Where only their order tells frames apart, none after it is known, and None ends them.
    """
    damage = import_av().error.InvalidDataError
    spoiled = False
    whole = (packet for packet in _packets(container, stream) if packet is not None)
    for packet in itertools.chain(whole, [None]):  # None: what the decoder still holds
        try:
            frames = stream.codec_context.decode(packet)
        except damage:
            frames, spoiled = [], True
        for frame in frames:
            spoiled = spoiled and not frame.key_frame
            if not spoiled and not frame.is_corrupt:
                yield frame
            elif not by_stamp:
                spoiled = True
                break
        if spoiled and not by_stamp:
            yield None
            return


def upright(frame: VideoFrame) -> np.ndarray:
    """The frame as uint8 RGB (height, width, 3), turned and mirrored as its display matrix says."""
    return _turned(_rgb(frame), frame)


def upright_grey(frame: VideoFrame, side: int) -> np.ndarray:
    """The frame grey, uint8 (h, w), upright, shrunk so that its longer side is at most `side` pixels.

    Of the usual formats only the luma is read: a tenth of the time that the conversion to RGB takes.
    """
    plane = frame.planes[0]
    if frame.format.name.removeprefix("yuvj").removeprefix("yuv") in _LUMA_FIRST and plane.line_size > 0:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        luma = shrunk(rows[: frame.height, : frame.width], side)
        full = frame.format.name.startswith("yuvj") or frame.color_range == _FULL_RANGE
        grey = luma if full else cv2.LUT(luma, _FROM_LIMITED)
    else:
        grey = shrunk(cv2.cvtColor(_rgb(frame), cv2.COLOR_RGB2GRAY), side)
    return _turned(grey, frame)


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture with a longer side of at most `side` pixels, by means over areas."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    return cv2.resize(
        picture, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


def _turned(image: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """The picture of a frame, turned and mirrored as the frame's display matrix says."""
    matrix: Any = frame.side_data.get(import_av().sidedata.sidedata.Type.DISPLAYMATRIX)
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y, in 65536ths.
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    turned = abs(b) > abs(a)
    right, down = (c, b) if turned else (a, d)
    image = image.swapaxes(0, 1) if turned else image
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def _rgb(frame: VideoFrame) -> np.ndarray:
    """The frame's pixels as uint8 RGB (height, width, 3), by the matrix and range of its colours."""
    from av.video.reformatter import ColorRange, Colorspace

    clear = any(component.is_alpha for component in frame.format.components)
    source = Colorspace(frame.colorspace) if frame.colorspace in set(Colorspace) else None
    if source is None and not frame.format.is_rgb:
        large = frame.width >= 1280 or frame.height > _BT601_LINES
        source = Colorspace.ITU709 if large else Colorspace.ITU601
    pixels = frame.to_ndarray(
        format="rgba" if clear else "rgb24", src_colorspace=source, dst_color_range=ColorRange.JPEG
    )
    if clear:
        check_opaque(pixels[..., 3])
    return pixels[..., :3]


def check_opaque(alpha: np.ndarray) -> None:
    """Raise ValueError if pixels are transparent: what is below them is not what people saw."""
    hidden = int((alpha < np.iinfo(alpha.dtype).max).sum())
    if hidden:
        raise ValueError(
            f"expected an opaque picture, got {hidden} of {alpha.size} pixels with transparency, "
            "whose colours are hidden: save it without an alpha channel"
        )
