"""Renders recordings of minutes as video files: `synth --long`.

    <out>/long01_a.mp4 ...   H.264; the frames are 0, 1, 2, ...
    <out>/events.csv         blinks, talking and head turns: subject, path, kind, onset, offset
    <out>/clips.csv          the expressions, a table for `--data`; written last: without it, not finished
    <out>/synthetic.json     the settings, and a note that this is rendered data

As in the short clips, the amplitude is 0 at the onset and at the offset and largest at the apex, and the
label of an expression determines the shape of its movement field and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..data.frames.video import import_av
from ..files import write_atomically, write_text
from .face import Array, movement_field, random_face
from .layouts import EXPRESSIONS
from .long_plan import Event, LongPlan, plan_recordings
from .plan import ClipPlan, shuffled_words
from .scene import Scene, grain, grain_size
from .settings import SynthConfig

RECORDINGS_TABLE, EVENTS_TABLE = "clips.csv", "events.csv"
_EVENTS = ["subject", "path", "kind", "onset", "offset"]
_CLIPS = [
    *("subject", "clip", "path", "onset", "apex", "offset", "emotion"),
    *("action units", "expression type", "fps"),
]
# A branch of the random streams that no subject of the short clips is on, whatever the seeds.
_OWN_PEOPLE = 0x10CC
_SHIFTS = 96  # pixels by which the bank of noise is shifted
# Slower presets at the same factor smooth small movements away: veryfast left 86 to 94 % of an expression's
# change of the picture, this one 96 to 98 %, in a third of the time and 10 to 20 MB a minute.
_QUALITY = {"preset": "ultrafast", "crf": "18", "threads": "1"}


@dataclass(frozen=True)
class Recording:
    """What the tables say of one rendered recording."""

    subject: str
    path: str
    clips: tuple[tuple[ClipPlan, str], ...]  # with the emotion word of each
    events: tuple[Event, ...]


def person(cfg: SynthConfig, subject: int) -> np.random.SeedSequence:
    """What all random numbers of subject 1, 2, ... come from; `random_face` takes the first child."""
    return np.random.SeedSequence((cfg.seed, subject), spawn_key=(_OWN_PEOPLE,))


def subject_name(number: int) -> str:
    """The name of subject 1, 2, ... of the long recordings."""
    return f"long{number:02d}"


class _Noise:
    """The sensor's noise, from a bank that is shifted and mirrored at random for each frame."""

    def __init__(self, scene: Scene, level: float, rng: np.random.Generator) -> None:
        self.rng, self.shape = rng, (scene.height, scene.width)
        self.bank = level * grain((scene.height + _SHIFTS, scene.width + _SHIFTS), rng)
        self.size = grain_size(scene.background)

    def added(self, picture: Array) -> NDArray[np.uint8]:
        down, right, flip, sign = self.rng.integers((_SHIFTS, _SHIFTS, 2, 2))
        (height, width), step = self.shape, -1 if flip else 1
        part = self.bank[down : down + height, right : right + width][:, ::step]
        noise = part * (self.size if sign else -self.size)
        return np.asarray(cv2.add(picture, noise, dtype=cv2.CV_8U))


def subject_recordings(
    cfg: SynthConfig, subject: int
) -> Iterator[tuple[Recording, Iterator[NDArray[np.uint8]]]]:
    """Each recording of subject 1, 2, ...: what the tables say, and its pictures.

    Pictures are (height, width, 3) uint8 RGB; they may be left unread.
    """
    entropy = person(cfg, subject)
    face_rng, paint_rng, plan_rng, label_rng, *_ = map(np.random.default_rng, entropy.spawn(4))
    face, size = random_face(face_rng), cfg.scene_size
    assert size is not None
    scene = cache(lambda: Scene(face, size, paint_rng))  # painting takes a second, the plans none
    plans = plan_recordings(cfg, plan_rng)
    words = iter(shuffled_words(cfg.emotions, sum(len(plan.clips) for plan in plans), label_rng))
    streams = entropy.spawn(len(plans))
    for plan, stream in zip(plans, streams, strict=True):
        own = tuple((clip, next(words)) for clip in plan.clips)
        name = subject_name(subject)
        recording = Recording(name, f"{name}_{plan.name}.mp4", own, plan.events)

        yield recording, _pictures(scene, plan, recording.clips, np.random.default_rng(stream))


def _pictures(
    scene: Callable[[], Scene],
    plan: LongPlan,
    clips: Sequence[tuple[ClipPlan, str]],
    rng: np.random.Generator,
) -> Iterator[NDArray[np.uint8]]:
    """The frames of one recording, at a new place; clips: its expressions with their words, in order."""
    camera = scene()
    camera.place(rng)
    noise = _Noise(camera, plan.camera_noise, rng)
    coming = iter(clips)
    clip, word = next(coming, (None, ""))
    field: Array | None = None
    for frame, (pose, lids, mouth, lamp) in enumerate(
        zip(plan.pose, plan.lids, plan.mouth, plan.lamp, strict=True)
    ):
        if clip is not None and frame > clip.offset:
            (clip, word), field = next(coming, (None, "")), None
        amplitude = clip.amplitude(frame) if clip is not None else 0.0
        if clip is not None and amplitude > 0 and field is None:
            field = movement_field(camera.face, EXPRESSIONS[word][0], clip.how, *camera.grid)
        displacement = amplitude * clip.strength if clip is not None else 0.0
        jaw, lips = (float(value) for value in mouth)
        view = camera.view(pose, field, displacement, lids=float(lids), mouth=(jaw, lips))
        yield noise.added(camera.lit(view, lamp))


def render_recordings(cfg: SynthConfig, subject: int) -> list[Recording]:
    """Write the recordings of subject 1, 2, ... that are not there yet; returns all of them."""
    found = []
    for recording, pictures in subject_recordings(cfg, subject):
        found.append(recording)
        path = cfg.out / recording.path
        if not path.exists():  # a file appears once it is whole
            write_atomically(path, partial(_encode, cfg, pictures))
    return found


def _encode(cfg: SynthConfig, pictures: Iterator[NDArray[np.uint8]], file: BinaryIO) -> None:
    """Write the pictures as an mp4 of constant rate."""
    av = import_av()
    rate = Fraction(cfg.fps).limit_denominator(1001)
    width, height = cfg.scene_size or (0, 0)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, picture in enumerate(pictures):
            planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_tables(cfg: SynthConfig, recordings: Sequence[Recording]) -> None:
    """Write the tables of the events and, last, of the expressions."""
    clips = [
        (
            recording.subject,
            f"{Path(recording.path).stem}_{number}",
            *(recording.path, clip.onset, clip.apex, clip.offset, word),
            *(EXPRESSIONS[word][0], "micro", cfg.fps),
        )
        for recording in recordings
        for number, (clip, word) in enumerate(recording.clips, 1)
    ]
    events = [
        (recording.subject, recording.path, event.kind, event.onset, event.offset)
        for recording in recordings
        for event in recording.events
    ]
    write_text(cfg.out / EVENTS_TABLE, pd.DataFrame(events, columns=_EVENTS).to_csv(index=False))
    write_text(cfg.out / RECORDINGS_TABLE, pd.DataFrame(clips, columns=_CLIPS).to_csv(index=False))
