"""Renders recordings of minutes as video files: `synth --long`.

    <out>/long01_a.mp4 ...   H.264; the frames are 0, 1, 2, ...
    <out>/events.csv         blinks, talking and head turns: subject, path, kind, onset, offset
    <out>/clips.csv          the expressions, a table for `--data`; written last: a folder without it is not finished
    <out>/synthetic.json     the settings, and a note that this is rendered data

The onset is the last frame without movement, as in the short clips: at the onset and the offset the movement
is 0, at the apex it is largest. The label of an expression determines the shape of its movement field and
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
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
# A branch of the random streams that no subject of the short clips is on, whatever the seeds.
_OWN_PEOPLE = 0x10CC
_SHIFTS = 96  # pixels by which the bank of noise is shifted
_QUALITY = {"preset": "veryfast", "crf": "18", "threads": "1"}


@dataclass(frozen=True)
class Recording:
    """What the tables say of one rendered recording."""

    subject: str
    path: str
    clips: tuple[tuple[ClipPlan, str], ...]  # with the emotion word of each
    events: tuple[Event, ...]


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


def subject_recordings(cfg: SynthConfig, subject: int) -> Iterator[tuple[Recording, LongPlan, Iterator[NDArray[np.uint8]]]]:
    """Each recording of subject 1, 2, ...: what the tables say, its plan, and its pictures.

    Pictures are (height, width, 3) uint8 RGB; they may be left unread.
    """
    entropy = np.random.SeedSequence((cfg.seed, subject), spawn_key=(_OWN_PEOPLE,))
    face_rng, paint_rng, plan_rng, label_rng, *_ = map(np.random.default_rng, entropy.spawn(4))
    face, scene = random_face(face_rng), None
    plans = plan_recordings(cfg, plan_rng)
    words = iter(shuffled_words(cfg.emotions, sum(len(plan.clips) for plan in plans), label_rng))
    streams = entropy.spawn(len(plans))
    for plan, stream in zip(plans, streams, strict=True):
        own = tuple((clip, next(words)) for clip in plan.clips)
        name = subject_name(subject)
        recording = Recording(name, f"{name}_{plan.name}.mp4", own, plan.events)

        def pictures(
            plan: LongPlan = plan, own: tuple[tuple[ClipPlan, str], ...] = own, stream: np.random.SeedSequence = stream
        ) -> Iterator[NDArray[np.uint8]]:
            nonlocal scene
            if scene is None:
                size = cfg.scene_size
                assert size is not None
                scene = Scene(face, size, paint_rng)
            rng = np.random.default_rng(stream)
            scene.place(rng)
            noise = _Noise(scene, plan.camera_noise, rng)
            moving = iter(own)
            clip, word = next(moving, (None, ""))
            field: Array | None = None
            for frame in range(len(plan.pose)):
                if clip is not None and frame > clip.offset:
                    (clip, word), field = next(moving, (None, "")), None
                displacement = 0.0
                if clip is not None and frame > clip.onset:
                    if field is None:
                        field = movement_field(face, EXPRESSIONS[word][0], clip.how, *scene.grid)
                    displacement = clip.amplitude(frame) * clip.strength
                jaw, lips = plan.mouth[frame]
                view = scene.view(
                    plan.pose[frame], field, displacement, lids=float(plan.lids[frame]), mouth=(float(jaw), float(lips))
                )
                yield noise.added(scene.lit(view, plan.lamp[frame]))

        yield recording, plan, pictures()


def render_recordings(cfg: SynthConfig, subject: int) -> list[Recording]:
    """Write the recordings of subject 1, 2, ... that are not there yet; returns all of them."""
    found = []
    for recording, _, pictures in subject_recordings(cfg, subject):
        found.append(recording)
        path = cfg.out / recording.path
        if not path.exists():  # a file appears once it is whole
            write_atomically(path, lambda file, pictures=pictures: _encode(file, pictures, cfg))
    return found


def _encode(file: BinaryIO, pictures: Iterator[NDArray[np.uint8]], cfg: SynthConfig) -> None:
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
        {
            "subject": recording.subject,
            "clip": f"{Path(recording.path).stem}_{number}",
            "path": recording.path,
            "onset": clip.onset,
            "apex": clip.apex,
            "offset": clip.offset,
            "emotion": word,
            "action units": EXPRESSIONS[word][0],
            "expression type": "micro",
            "fps": cfg.fps,
        }
        for recording in recordings
        for number, (clip, word) in enumerate(recording.clips, 1)
    ]
    columns = ["subject", "clip", "path", "onset", "apex", "offset", "emotion", "action units", "expression type", "fps"]
    events = [
        (recording.subject, recording.path, event.kind, event.onset, event.offset)
        for recording in recordings
        for event in recording.events
    ]
    table = pd.DataFrame(events, columns=["subject", "path", "kind", "onset", "offset"])
    write_text(cfg.out / EVENTS_TABLE, table.to_csv(index=False))
    write_text(cfg.out / RECORDINGS_TABLE, pd.DataFrame(clips, columns=columns).to_csv(index=False))
