"""Predictions while a camera runs: the last seconds are searched again and again."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch

from ..data.frames.stream import Convert, FrameStream, open_frames, usual_rate
from ..data.frames.video import shrunk
from ..spotting import Spotted, spot
from ..threads import prefetch
from .cautions import cautions
from .ensemble import Ensemble
from .recording import Failed, predict_clips, spotted_clips
from .request import Request
from .result import PredictedInterval, clock

EVERY = 1.0  # seconds between two searches
EDGE = 0.3  # seconds before the last picture, in which a movement may not be over
AHEAD = 64  # pictures that are read while others are searched
MOST_AHEAD = 400_000_000  # bytes of these
MOST_BYTES = 600_000_000  # of the pictures that are kept

Taken = tuple[float, np.ndarray]  # seconds from the start, RGB picture


class RecentFrames(FrameStream):
    """The last pictures of a camera as a recording; `start`: when the first of them was taken."""

    def __init__(self, taken: Sequence[Taken]) -> None:
        self._taken = list(taken)
        self.start = self._taken[0][0]
        height, width = self._taken[0][1].shape[:2]
        steps = np.diff([seconds for seconds, _ in self._taken])
        super().__init__("camera", len(self._taken), (width, height), usual_rate(steps))

    def seconds(self, number: int) -> float:
        """See `FrameStream.seconds`: when the picture was taken."""
        return self._taken[number][0] - self.start

    def chosen(
        self, numbers: Collection[int], convert: Convert | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameStream.chosen`."""
        for number in sorted(number for number in set(numbers) if 0 <= number < self.count):
            picture = self._taken[number][1]
            yield number, convert(picture) if convert else picture

    def small_grey(self, side: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `FrameStream.small_grey`."""
        return self.pictures(lambda picture: shrunk(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), side))

    def read(self, numbers: Sequence[int], convert: Convert) -> list[np.ndarray | ValueError]:
        """See `FrameStream.read`."""
        return [convert(self._taken[number][1]) for number in numbers]


def camera_frames(source: str, *, fps: float | None = None, wait: bool = True) -> Iterator[Taken]:
    """The pictures of a camera, or of a video file in its place, with the seconds since the first.

    Args:
        source: the number of a camera, 0 for the first; or a video file or a folder of images.
        fps: frames a second of the file, where it does not tell them.
        wait: show a file at its own rate; False: as fast as it is read.

    Raises:
        ValueError: there is no such camera, or it gives no picture; the file cannot be read.
    """
    if not source.isdecimal():
        stream = open_frames(Path(source), fps=fps)
        stream.check_moves()
        begin = time.monotonic()
        for number, picture in stream.pictures():
            seconds = stream.seconds(number)
            if wait:
                time.sleep(max(0.0, begin + seconds - time.monotonic()))
            yield seconds, picture
        return
    missing = ValueError(f"--camera expected a camera of this machine, got {source}: it gives no picture")
    if sys.platform == "linux" and not Path(f"/dev/video{source}").exists():
        raise missing  # OpenCV would say so in lines of its own
    camera = cv2.VideoCapture(int(source))
    try:
        is_there, picture = camera.read()
        if not is_there:
            raise missing
        begin = time.monotonic()
        while is_there:
            yield time.monotonic() - begin, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            is_there, picture = camera.read()
    finally:
        camera.release()


def watch_camera(
    ensemble: Ensemble,
    frames: Iterator[Taken],
    request: Request,
    device: torch.device,
    *,
    seconds: float,
    warn: Callable[[str], None],
) -> Iterator[PredictedInterval]:
    """Each movement that is spotted, once; times and frame numbers count from the camera's first picture.

    Args:
        ensemble: the models.
        frames: of the camera; a thread of its own reads them while others are searched.
        request: how faces are found and shown.
        device: where the models run.
        seconds: how much is kept and searched; less where the pictures would take more than `MOST_BYTES`.
        warn: gets what a reader must know, once a face was seen; whenever there is none any more; and of each
            movement that cannot be predicted.

    Raises:
        ValueError: as in `camera_frames`.
    """
    kept: deque[Taken] = deque()
    searched, number = 0.0, -1
    search = _Search(ensemble, request, device, warn)
    if (first := next(frames, None)) is None:
        return
    ahead = max(1, min(AHEAD, MOST_AHEAD // first[1].nbytes))
    for number, taken in enumerate(prefetch(chain([first], frames), ahead)):
        kept.append(taken)
        now = taken[0]
        while now - kept[0][0] > seconds or len(kept) * taken[1].nbytes > MOST_BYTES:
            kept.popleft()
        if now - searched >= EVERY:
            searched = now
            yield from search(kept, number, now - EDGE)
    yield from search(kept, number, kept[-1][0])  # the end of a file


class _Search:
    """Searches the pictures that are kept, tells each movement once, and warns."""

    def __init__(
        self, ensemble: Ensemble, request: Request, device: torch.device, warn: Callable[[str], None]
    ) -> None:
        self.ensemble, self.device, self.warn = ensemble, device, warn
        self.recipe = request.recipe(ensemble.inputs, ensemble.sampling)
        self.settings = request.spot_settings(neutral=ensemble.inputs.neutral)
        self.has_warned, self.saw_face = False, True
        self.told = -1.0  # until when

    def __call__(self, kept: Sequence[Taken], last: int, until: float) -> list[PredictedInterval]:
        """The movements that were not told, until this time; last: the number of the last picture."""
        if len(kept) < 2 or kept[-1][0] <= kept[0][0]:
            return []
        stream, first = RecentFrames(list(kept)), last + 1 - len(kept)
        spotted = spot(stream, settings=self.settings)
        self._warn(stream, spotted)

        def time_of(place: int) -> float:
            return stream.start + stream.seconds(place)

        inside = tuple(
            one
            for one in spotted.intervals
            if time_of(one.onset) > self.told and time_of(one.offset) <= until
        )
        failed: list[Failed] = []
        clips = spotted_clips(
            self.ensemble, stream, replace(spotted, intervals=inside), self.recipe, self.device
        )
        found = predict_clips(self.ensemble, stream, clips, self.recipe, self.device, failed)
        for clip, error in failed:
            self.warn(f"not predicted: frames {first + clip.onset} to {first + clip.offset}: {error}")
        self.told = max([self.told, *(time_of(clip.offset) for clip in clips)])
        return [
            replace(
                one,
                onset=first + one.onset,
                apex=first + one.apex,
                offset=first + one.offset,
                seconds=(time_of(one.onset), time_of(one.apex), time_of(one.offset)),
            )
            for one in found
        ]

    def _warn(self, stream: RecentFrames, spotted: Spotted) -> None:
        if spotted.boxes and not self.has_warned:
            self.has_warned = True
            for text in cautions(self.ensemble, stream, [], spotted.boxes, self.recipe):
                self.warn(text)
        if self.saw_face and not spotted.boxes:
            until = stream.start + stream.seconds(stream.count - 1)
            self.warn(f"no face was found from {clock(stream.start)} to {clock(until)}")
        self.saw_face = bool(spotted.boxes)


def line_of(one: PredictedInterval) -> str:
    """What is printed of a movement."""
    when = clock(one.seconds[0]) if one.seconds else f"frame {one.onset}"
    long = f"{1000 * (one.seconds[2] - one.seconds[0]):.0f} ms" if one.seconds else ""
    shares = one.calibrated or one.probabilities
    others = "  ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return f"{when}  {long}  {one.predicted}{', unsure' * bool(one.unsure)}  ({others})"
