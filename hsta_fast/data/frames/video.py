"""Frames of a video file. "clips/a.mp4#17" names frame 17 of the file, counted from 0."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ...files import open_plain

VIDEO_TYPES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")  # see `check_container`
_FRAME_OF_VIDEO = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, VIDEO_TYPES))}))#([0-9]{{1,9}})", re.IGNORECASE | re.DOTALL
)


def split_video(path: str) -> tuple[str, int | None]:
    """("clips/a.mp4", 17) for "clips/a.mp4#17"; (path, None) for the path of an image."""
    match = _FRAME_OF_VIDEO.fullmatch(path)
    return (match[1], int(match[2])) if match else (path, None)


def read_video(
    path: Path, numbers: Sequence[int], convert: Callable[[np.ndarray], np.ndarray], *, max_pixels: int
) -> list[np.ndarray | ValueError]:
    """`convert` applied to the frames `numbers`, uint8 RGB (height, width, 3); ValueError for a missing one.

    The video is read from its start, frame by frame: seeking lands on other frames in some codecs.
    Raises ValueError if the video cannot be opened or declares frames of more than `max_pixels`.
    """
    check_container(path)
    # The backend is given because others treat a name as a pattern for many files, or as an address.
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise ValueError("expected a readable video, OpenCV cannot open it")
        width, height = (int(video.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            raise ValueError(f"expected frames of at most {max_pixels} pixels, got {width} x {height}")
        wanted, last, at = set(numbers), max(numbers), 0
        found: dict[int, np.ndarray] = {}
        while at <= last and video.grab():
            if at in wanted:
                whole, image = video.retrieve()
                if whole:
                    found[at] = convert(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            at += 1
    except cv2.error as error:
        raise ValueError(f"expected a readable video, OpenCV says {error.err}") from error
    finally:
        video.release()
    end = ValueError(f"expected frames up to {last}, the video ends or is damaged after {at} frames")
    return [found.get(number, end) for number in numbers]


def check_container(path: Path) -> None:
    """Raise ValueError if the file has no pictures itself: FFmpeg would follow a playlist to other places."""
    with open_plain(path, "a video file") as file:
        start = file.read(12)
    if not start:
        raise ValueError("expected a video file, it is empty")
    mp4 = start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
    avi = start[:4] == b"RIFF" and start[8:] == b"AVI "
    if not (mp4 or avi or start[:4] == b"\x1a\x45\xdf\xa3"):
        raise ValueError(
            f"expected an mp4, mov, avi, mkv or webm video, the file begins with {start[:4].hex(' ')}"
        )
