"""The recording with what was predicted drawn into it, as an mp4 file: `--video-out`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..data.frames.stream import FrameStream
from ..data.frames.video import import_av
from ..faces import Face
from ..files import write_atomically
from ..protocol.report import import_matplotlib
from .result import PredictedInterval, Prediction, clock

LARGEST = 1280  # pixels of the longer side; a larger recording is shrunk
HELD = 1.0  # seconds that a label stays: a micro-expression is over in a third of a second
USUAL_RATE = 25.0  # frames a second of images whose rate is not known
_CLOCK = 90_000  # of timestamps, a second
_BAR = 14  # pixels; height of the bar with the intervals
_GROUND, _LINE = (24, 24, 24), (255, 255, 255)


@dataclass(frozen=True)
class _Label:
    """A strip with the words about an interval, RGB (h, w, 3), and the frames that show it."""

    first: int
    last: int
    strip: np.ndarray
    color: tuple[int, int, int]
    is_over: int  # the frame after its offset


def write_video(path: Path, stream: FrameStream, prediction: Prediction, boxes: dict[int, Face]) -> None:
    """Write the annotated recording: the face's box, the label of an interval, and a bar of all of them.

    Args:
        path: the file, .mp4.
        stream: the recording; it is read once.
        prediction: what is drawn.
        boxes: the face at some of the frames; each is drawn until the next one, or until the face is gone.

    Raises:
        ValueError: the recording cannot be read.
        OSError: the file cannot be written.
    """
    write_atomically(path, lambda file: _write(file, stream, prediction, boxes))


def _write(file: BinaryIO, stream: FrameStream, prediction: Prediction, boxes: dict[int, Face]) -> None:
    av = import_av()
    width, height = stream.size
    scale = min(1.0, LARGEST / max(width, height))
    size = tuple(max(2, round(side * scale) // 2 * 2) for side in (width, height))
    drawing = _Drawing(stream, prediction, boxes, size)
    rate = stream.rate or USUAL_RATE
    with av.open(file, "w", format="mp4") as container:
        # The frames have times of their own; the header's rate is not 0, however rare they are.
        video: Any = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001) or 1)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.options = {"preset": "veryfast", "crf": "20"}
        video.codec_context.time_base = Fraction(1, _CLOCK)
        for number, picture in stream.pictures(lambda picture: _resized(picture, size)):
            frame = av.VideoFrame.from_ndarray(drawing.on(number, picture), format="rgb24")
            seconds = number / rate if stream.rate is None else stream.seconds(number)
            frame.pts, frame.time_base = round(seconds * _CLOCK), Fraction(1, _CLOCK)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def _resized(picture: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if picture.shape[1::-1] == size:
        return np.ascontiguousarray(picture)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


class _Drawing:
    """Draws onto one frame after the other."""

    def __init__(
        self, stream: FrameStream, prediction: Prediction, boxes: dict[int, Face], size: tuple[int, ...]
    ) -> None:
        self.scale = size[0] / stream.size[0]
        self.count = stream.count
        self.labels = list(_labels(stream, prediction, size[0]))
        self.places = sorted(boxes)
        self.boxes = boxes
        self.seen = np.zeros(stream.count, bool) if prediction.seen is None else prediction.seen
        if prediction.seen is None:  # of a clip that was given, a face is known within it alone
            for one in prediction.intervals:
                self.seen[one.onset : one.offset + 1] = True
        self.bar = self._drawn_bar(size[0])

    def _drawn_bar(self, width: int) -> np.ndarray:
        bar = np.full((_BAR, width, 3), _GROUND, np.uint8)
        for label in self.labels:
            start, end = (round(width * number / self.count) for number in (label.first, label.is_over))
            bar[2:-2, start : max(end, start + 3)] = label.color
        return bar

    def _box(self, number: int) -> Face | None:
        """The last box before the frame, or the first one; None where no face was seen."""
        if not self.places or not self.seen[number]:
            return None
        return self.boxes[self.places[max(0, int(np.searchsorted(self.places, number, "right")) - 1)]]

    def on(self, number: int, picture: np.ndarray) -> np.ndarray:
        """The frame `number`, RGB (h, w, 3), with all that is drawn on it."""
        shown = next((one for one in self.labels if one.first <= number <= one.last), None)
        box = self._box(number)
        if box is not None:
            corners = (box.x, box.y, box.x + box.width, box.y + box.height)
            left, top, right, bottom = (round(value * self.scale) for value in corners)
            moves = shown is not None and number < shown.is_over
            color = shown.color if shown is not None and moves else _LINE
            cv2.rectangle(picture, (left, top), (right, bottom), color, 3 if moves else 1, cv2.LINE_AA)
        if shown is not None:
            strip = shown.strip if number < shown.is_over else shown.strip // 2  # dark once it is over
            rows, columns = strip.shape[:2]
            picture[:rows, :columns] = strip[: picture.shape[0], : picture.shape[1]]
        picture[-_BAR:] = self.bar[-picture.shape[0] :]
        cursor = round((picture.shape[1] - 1) * number / max(1, self.count - 1))
        picture[-_BAR:, max(0, cursor - 1) : cursor + 1] = _LINE
        return picture


def _labels(stream: FrameStream, prediction: Prediction, width: int) -> Iterator[_Label]:
    for one in prediction.intervals:
        last = max(one.offset, _held(stream, one.onset))
        later = [other.onset - 1 for other in prediction.intervals if other.onset > one.onset]
        color = _color(prediction, one)
        strip = _strip(_words(one), color, width)
        yield _Label(one.onset, min([last, *later]), strip, color, one.offset + 1)


def _held(stream: FrameStream, onset: int) -> int:
    """The last frame within `HELD` seconds of an onset, by the times of the frames."""
    if stream.rate is None:
        return onset + round(HELD * USUAL_RATE)
    end, number = stream.seconds(onset) + HELD + 1e-9, onset
    while number + 1 < stream.count and stream.seconds(number + 1) <= end:
        number += 1
    return number


def _words(one: PredictedInterval) -> str:
    time = f"{clock(one.seconds[0])}  " if one.seconds else ""
    return f"{time}{one.predicted}  {one.confidence:.2f}" + "  unsure" * bool(one.unsure)


def _color(prediction: Prediction, one: PredictedInterval) -> tuple[int, int, int]:
    from .timeline import color_of

    red, green, blue = ImageColor.getrgb(color_of(prediction.classes, one.predicted))[:3]
    return red, green, blue


def _strip(words: str, color: tuple[int, int, int], width: int) -> np.ndarray:
    """White words on the colour, RGB (h, w, 3), at most `width` wide."""
    import_matplotlib()
    from matplotlib import get_data_path

    # matplotlib's own font has the letters of most class names.
    size = max(12, min(24, width // 26))
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    left, top, right, bottom = font.getbbox(words)
    image = Image.new("RGB", (min(width, round(right - left) + 16), round(bottom - top) + 12), color)
    ImageDraw.Draw(image).text((8 - left, 6 - top), words, (255, 255, 255), font)
    return np.asarray(image)
