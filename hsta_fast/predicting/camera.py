"""Predictions while a camera runs: the last seconds are searched again and again."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ..data.frames.stream import Convert, FrameStream, open_frames, usual_rate
from ..data.frames.video import shrunk
from ..spotting import spot
from ..threads import prefetch
from .ensemble import Ensemble
from .recording import predict_clips, spotted_clips
from .request import Request
from .result import PredictedInterval, clock

EVERY = 1.0  # seconds between two searches
EDGE = 0.3  # seconds before the last picture, in which a movement may not be over
AHEAD = 64  # pictures that are read while others are searched
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
) -> Iterator[PredictedInterval]:
    """Each movement that is spotted, once; times and frame numbers count from the camera's first picture.

    Args:
        ensemble: the models.
        frames: of the camera; a thread of its own reads them while others are searched.
        request: how faces are found and shown.
        device: where the models run.
        seconds: how much is kept and searched; less where the pictures would take more than `MOST_BYTES`.

    Raises:
        ValueError: as in `camera_frames`.
    """
    kept: deque[Taken] = deque()
    searched, reported, number = 0.0, -1.0, -1
    for number, taken in enumerate(prefetch(frames, AHEAD)):
        kept.append(taken)
        now = taken[0]
        while now - kept[0][0] > seconds or len(kept) * taken[1].nbytes > MOST_BYTES:
            kept.popleft()
        if now - searched >= EVERY:
            searched = now
            for one in _search(ensemble, kept, number, request, device, (reported, now - EDGE)):
                reported = one.seconds[2] if one.seconds else reported
                yield one
    if kept:  # the end of a file
        yield from _search(ensemble, kept, number, request, device, (reported, kept[-1][0]))


def _search(
    ensemble: Ensemble,
    kept: Sequence[Taken],
    last: int,
    request: Request,
    device: torch.device,
    span: tuple[float, float],
) -> list[PredictedInterval]:
    """The movements in the pictures that are kept, from after to until the times of `span`.

    last: the number of the last picture.
    """
    if len(kept) < 2 or kept[-1][0] <= kept[0][0]:
        return []
    stream, first = RecentFrames(list(kept)), last + 1 - len(kept)
    spotted = spot(stream, settings=request.spot_settings(neutral=ensemble.inputs.neutral))

    def time_of(place: int) -> float:
        return stream.start + stream.seconds(place)

    inside = tuple(
        one for one in spotted.intervals if time_of(one.onset) > span[0] and time_of(one.offset) <= span[1]
    )
    recipe, failed = request.recipe(ensemble.inputs, ensemble.sampling), list[str]()
    clips = spotted_clips(ensemble, stream, replace(spotted, intervals=inside), recipe, device)
    found = predict_clips(ensemble, stream, clips, recipe, device, failed)
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


def line_of(one: PredictedInterval) -> str:
    """What is printed of a movement."""
    when = clock(one.seconds[0]) if one.seconds else f"frame {one.onset}"
    long = f"{1000 * (one.seconds[2] - one.seconds[0]):.0f} ms" if one.seconds else ""
    shares = one.calibrated or one.probabilities
    others = "  ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return f"{when}  {long}  {one.predicted}{', unsure' * bool(one.unsure)}  ({others})"
