"""The frames of one recording, one after the other: a video file, a folder of images, or a list of images.

Nothing is kept but the time of each frame (8 bytes) and what the caller keeps, so an hour of video needs no
more memory than a second. Frames are numbered from 0 in the order of display.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ...clips import counted, natural_key
from ...files import as_on_disk, inside, reason
from ...threads import prefetch
from .decode import CHANGED, IMAGE_TYPES, read_image
from .video import check_size, numbered_frames, read_timeline, read_video, shrunk, upright, upright_grey

if TYPE_CHECKING:
    from av import VideoFrame

Convert = Callable[[np.ndarray], np.ndarray]

AHEAD = 16  # small frames that are decoded before they are asked for

UNEVEN = 0.25  # a step between frames that differs from the median by more than this part of it is uneven,
UNEVEN_SECONDS = 0.0015  # unless by less than this: clocks of milliseconds round


class FrameStream(ABC):
    """A recording that can be read several times from its start.

    Attributes:
        name: of the file or the folder, without the folders above it.
        count: the number of frames; of a file that is cut or damaged, those whose number is certain.
        size: (width, height) of the upright frames.
        rate: frames a second, by `usual_rate` where the frames have times; None where nothing tells it.
    """

    def __init__(self, name: str, count: int, size: tuple[int, int], rate: float | None) -> None:
        self.name, self.count, self.size, self.rate = name, count, size, rate
        self._remarks: list[str] = []

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is unusual about the recording, one sentence each; a pass over the frames may add to it."""
        return tuple(dict.fromkeys(self._remarks))

    def seconds(self, number: int) -> float:
        """The time from the start of frame 0 to the start of frame `number`.

        Raises ValueError where the rate is not known.
        """
        return number / self.known_rate()

    def known_rate(self) -> float:
        """`rate`; ValueError where it is not known."""
        if self.rate is None:
            raise ValueError(f"rate expected frames a second, {self.name} does not tell: give --fps")
        return self.rate

    def check_moves(self) -> None:
        """Raise ValueError for a single frame: nothing moves in it."""
        if self.count < 2:
            raise ValueError(f"{self.name}: expected at least 2 frames, got {self.count}")

    def pictures(self, convert: Convert | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Every frame with its number: uint8 RGB (height, width, 3), or what `convert` makes of it.

        Frames of a video that damage has spoiled are left out; `remarks` then says how many.

        Raises ValueError where the recording cannot be read any further, or frames differ in size.
        """
        return self.chosen(range(self.count), convert)

    @abstractmethod
    def chosen(
        self, numbers: Collection[int], convert: Convert | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """As `pictures`, of the frames `numbers` alone, in the order of display; only these are converted.

        A video is decoded from its start up to the last of them.
        """

    @abstractmethod
    def small_grey(self, side: int) -> Iterator[tuple[int, np.ndarray]]:
        """Every frame with its number, grey uint8 (h, w), its longer side at most `side` pixels.

        As `pictures` otherwise, in a tenth of its time for a video.
        """

    @abstractmethod
    def read(self, numbers: Sequence[int], convert: Convert) -> list[np.ndarray | ValueError]:
        """`convert` applied to the frames `numbers`, in their order; ValueError for one that is not there."""


def open_frames(source: Path | str | Sequence[Path | str], *, fps: float | None = None) -> FrameStream:
    """Open a recording and check that its first frame can be read.

    Args:
        source: a video file; a folder of images, in natural order (img2 before img10); or a list of images.
        fps: frames a second of the camera, where the recording does not tell it or tells another.

    Raises:
        ValueError: it is not there, no recording, or its first frame cannot be read; one line that names it.
        ImportError: it is a video file, and the package av is not installed.
    """
    if fps is not None and not 0 < fps < 1e6:
        raise ValueError(f"fps expected a positive number of frames a second, got {fps}")
    if not isinstance(source, str | Path):
        return ImageStream([as_on_disk(path) for path in source], fps=fps)
    path = as_on_disk(source)
    if not path.is_dir():
        return VideoStream(path, fps=fps)
    return ImageStream(_images_in(path), fps=fps, name=path.resolve().name)


class VideoStream(FrameStream):
    """A video file; frames are told apart by their timestamps."""

    def __init__(self, path: Path, *, fps: float | None = None) -> None:
        try:
            self._path, self._before = path, _state(path)
            self._timeline = timeline = read_timeline(path)
            with closing(numbered_frames(path, timeline)) as frames:
                first = next(frames, None)
                if first is None:
                    raise ValueError("expected a video, got one whose first frames are all damaged")
                height, width = upright(first[1]).shape[:2]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        count = len(timeline) if timeline.certain is None else timeline.certain
        steps = np.diff(np.asarray(timeline.stamps[:count], dtype=np.int64)) * float(timeline.unit)
        super().__init__(path.name, count, (width, height), fps or usual_rate(steps))
        self._fps = fps
        if timeline.certain is not None:
            self._remarks.append(f"the file is cut or damaged after {counted(count, 'frame')}; they are used")
        uneven = _uneven(steps)
        if uneven and fps is None:
            self._remarks.append(f"variable frame rate: {uneven}; times are those of the file's timestamps")

    def seconds(self, number: int) -> float:
        """See `FrameStream.seconds`: by the timestamps, unless frames a second were given."""
        if self._fps is None and 0 <= number < self.count:
            return self._timeline.seconds(0, number)
        return super().seconds(number)

    def chosen(
        self, numbers: Collection[int], convert: Convert | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameStream.chosen`."""
        return self._each(numbers, lambda frame: convert(upright(frame)) if convert else upright(frame))

    def small_grey(self, side: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameStream.small_grey`."""
        # The decoder works while the caller does: neither holds Python's lock.
        return prefetch(self._each(range(self.count), lambda frame: upright_grey(frame, side)), AHEAD)

    def read(self, numbers: Sequence[int], convert: Convert) -> list[np.ndarray | ValueError]:
        """See `FrameStream.read`: the video is decoded up to the last of the frames."""
        self._check_unchanged()
        return read_video(self._path, numbers, convert, self._timeline)

    def _each(
        self, numbers: Collection[int], convert: Callable[[VideoFrame], np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        self._check_unchanged()
        last, size, shown = max(numbers, default=-1), None, 0
        try:
            with closing(numbered_frames(self._path, self._timeline)) as frames:
                for number, frame in frames:
                    if number > last:
                        break
                    size = size or (frame.width, frame.height)
                    check_size(frame, size)
                    shown += 1
                    if number in numbers:
                        yield number, convert(frame)
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from error
        if shown < last + 1 == self.count:
            lost = counted(self.count - shown, "frame", "are")
            self._remarks.append(f"{lost} damaged and left out")

    def _check_unchanged(self) -> None:
        if _state(self._path) != self._before:
            raise ValueError(f"{self._path}: {CHANGED}")


class ImageStream(FrameStream):
    """Images of one size, each a frame."""

    def __init__(self, paths: Sequence[Path], *, name: str | None = None, fps: float | None = None) -> None:
        if not paths:
            raise ValueError("frames expected a list of images, got none")
        odd = [path for path in paths if path.suffix.lower() not in IMAGE_TYPES]
        if odd:
            raise ValueError(
                f"{odd[0]}: expected a list of images ({', '.join(IMAGE_TYPES)}), got another file"
            )
        self._paths = list(paths)
        height, width = _image(self._paths[0]).shape[:2]
        super().__init__(name or paths[0].absolute().parent.name, len(paths), (width, height), fps)

    def chosen(
        self, numbers: Collection[int], convert: Convert | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameStream.chosen`."""
        for number in sorted(number for number in set(numbers) if 0 <= number < self.count):
            picture = self._picture(number)
            yield number, convert(picture) if convert else picture

    def small_grey(self, side: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameStream.small_grey`."""
        return self.pictures(lambda picture: shrunk(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), side))

    def read(self, numbers: Sequence[int], convert: Convert) -> list[np.ndarray | ValueError]:
        """See `FrameStream.read`."""
        found: dict[int, np.ndarray | ValueError] = {}
        for number in dict.fromkeys(numbers):
            try:
                if not 0 <= number < self.count:
                    raise ValueError(f"expected frames up to {number}, there are {self.count}")
                found[number] = convert(self._picture(number))
            except ValueError as error:
                found[number] = error
        return [found[number] for number in numbers]

    def _picture(self, number: int) -> np.ndarray:
        picture = _image(self._paths[number])
        height, width = picture.shape[:2]
        if (width, height) != self.size:
            wanted = f"{self.size[0]} x {self.size[1]}"
            raise ValueError(f"{self._paths[number]}: expected {wanted} as the first, got {width} x {height}")
        return picture


def _image(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order; a link that leads out of it is refused."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise ValueError(f"{folder}: expected a folder of images, got: {reason(error)}") from error
    images = [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_TYPES]
    if not images:
        raise ValueError(f"{folder}: expected a folder of images ({', '.join(IMAGE_TYPES)}), got none in it")
    try:
        return [inside(folder, name) for name in sorted(images, key=natural_key)]
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _state(path: Path) -> tuple[int, ...]:
    """What differs once a file is replaced or written to; () for one that cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def usual_rate(steps: np.ndarray) -> float | None:
    """Frames a second by the steps between frames in seconds (n,); None where no time passes.

    It is that of the median step: a pause makes no frame rate lower. The mean is taken of the steps that are
    even with it, because a clock of milliseconds shows 60 frames a second as steps of 16 and 17 ms.
    """
    steps = steps[steps > 0]
    return float(1 / steps[_are_even(steps, _median(steps))].mean()) if len(steps) else None


def _median(steps: np.ndarray) -> float:
    """Of an even number of steps the lower middle one: the mean of a usual step and a pause is neither."""
    return float(np.quantile(steps, 0.5, method="lower"))


def _are_even(steps: np.ndarray, usual: float) -> np.ndarray:
    return np.asarray(np.abs(steps - usual) <= max(UNEVEN * usual, UNEVEN_SECONDS))


def _uneven(steps: np.ndarray) -> str:
    """The times between frames, if they are not even; else ""."""
    usual = _median(steps) if len(steps) else 0.0
    if _are_even(steps, usual).all():
        return ""
    shown = 1000 * np.array([steps.min(), steps.max(), usual])
    least, most, median = (f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}" for ms in shown)
    return f"{least} to {most} ms between frames, median {median}"
