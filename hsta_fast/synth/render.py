"""Renders micro-expressions to disk in the layout of a dataset (`layouts`).

In that of CAS(ME)3 part A:

    <out>/spNO.1/b/color/175.jpg ...  200 frames a second, several clips in a recording, neutral frames around
    <out>/annotation.csv              written last: a folder without it is not finished
    <out>/synthetic.json              the settings, and a note that this is rendered data
    <out>/planted.json                the requested faults: which clip, and what a reader does about it

The label of a clip determines the shape of its movement field and nothing else. Subject, lamp, drift, noise,
timing, strength, asymmetry and numbering come from random streams that do not depend on the label, and the
amplitude of the field is exactly 0 at the onset, so the bytes of an onset frame do not depend on the label.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..files import make_folder, write_text
from ..threads import ctrl_c_kept_from_children
from .face import Array, Variation, grid, margin_pixels, movement_field, random_face
from .faults import chosen_faults, inject_faults
from .layouts import EXPRESSIONS, LAYOUTS, RenderedClip
from .painter import paint_face

NOTE = "Rendered faces, no recordings: nothing measured on them says anything about people."
RENDERER = 1  # increased whenever the same settings give other frames
REFERENCE_SIZE = 112  # strengths and drifts are given in pixels of this picture size
FINE = 3  # texture pixels per picture pixel
CLIPS_PER_RECORDING = 6
SHORTEST, LONGEST = 8, 67  # frames of a clip: 1/25 s and 1/3 s at 200 frames a second


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """What to render. The number of processes does not change the bytes of a subject with a given seed."""

    out: Path
    """Folder to write; new, empty, or holding the same dataset."""
    layout: Literal[
        "casme2", "samm", "smic", "casme3", "mmew", "dfme", "casme", "4dme", "casme_squared", "samm_long"
    ] = "casme3"
    """Whose names, columns and words: CASME II (raw), SAMM, SMIC-HS (long recordings), CAS(ME)3 part A, MMEW,
    DFME, CASME, 4DME (grey), CAS(ME)^2 or SAMM Long Videos."""
    subjects: int = 40
    """Number of faces."""
    clips_per_subject: int = 24
    """Clips of each subject, the emotions as balanced as possible."""
    size: int = 112
    """Height and width of a frame in pixels."""
    strength: tuple[float, float] = (1.2, 1.5)
    """Lowest and highest peak displacement of a clip, in pixels at 112 x 112 (other sizes in proportion)."""
    emotions: tuple[str, ...] = ("happy", "surprise", "disgust")
    """Emotion words, out of others, disgust, surprise, fear, anger, sad, happy."""
    seed: int = 0
    """Seed of all randomness."""
    quality: int = 95
    """JPEG quality; DFME's frames are PNG."""
    faults: tuple[str, ...] = ()
    """Faults to put into one clip each: names from docs/data.md, or all for those the layout can have."""
    processes: int = 0
    """Processes that render in parallel; 1 = only this one, 0 = one for each processor core."""

    def check(self) -> None:
        """Raise ValueError, naming the flag, for the first setting that is out of range."""
        low, high = self.strength
        words = LAYOUTS[self.layout].words
        unknown = [word for word in self.emotions if word not in words]
        different = len(set(self.emotions)) == len(self.emotions)
        per_subject = self.clips_per_subject
        checks = (
            (self.subjects >= 2, f"--subjects expected at least 2, got {self.subjects}"),
            (per_subject >= 1, f"--clips-per-subject expected at least 1, got {per_subject}"),
            (32 <= self.size <= 1024, f"--size expected 32..1024 pixels, got {self.size}"),
            # Beyond 4 pixels the field would fold the face over itself.
            (0 < low <= high <= 4, f"--strength expected 0 < low <= high <= 4 pixels, got ({low}, {high})"),
            (
                not unknown,
                f"--emotions of {self.layout} expected words out of {', '.join(words)}, "
                f"got {', '.join(unknown)}",
            ),
            (len(self.emotions) >= 2, f"--emotions expected at least 2 words, got {len(self.emotions)}"),
            (different, f"--emotions expected different words, got {self.emotions}"),
            (self.seed >= 0, f"--seed expected 0 or more, got {self.seed}"),
            (1 <= self.quality <= 100, f"--quality expected 1..100, got {self.quality}"),
            (self.processes >= 0, f"--processes expected 0 or more, got {self.processes}"),
        )
        for valid, message in checks:
            if not valid:
                raise ValueError(message)
        clips, faults = self.subjects * per_subject, chosen_faults(self.layout, self.faults)
        if len(faults) >= clips:
            raise ValueError(f"--faults expected fewer than the {clips} clips, got {len(faults)}")


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """Everything about one clip except its label."""

    recording: str
    onset: int
    apex: int
    offset: int
    strength: float  # pixels at 112 x 112
    rise: float  # exponents of the smooth rise and fall: how early the movement comes and goes
    fall: float
    how: Variation

    def amplitude(self, frame: int) -> float:
        """0 up to the onset, 1 at the apex, 0 from the offset on."""
        if frame <= self.apex:
            t, bend = (frame - self.onset) / (self.apex - self.onset), self.rise
        else:
            t, bend = (self.offset - frame) / (self.offset - self.apex), self.fall
        t = min(max(t, 0.0), 1.0)
        return float((t * t * (3 - 2 * t)) ** bend)


@dataclass(frozen=True, kw_only=True)
class RecordingPlan:
    """One recording: its frames, its clips, and the position of head and light in each frame."""

    name: str
    frames: range
    clips: tuple[ClipPlan, ...]
    pose: Array  # (frames, 4): x, y in picture sides, angle in radians, log of the scale
    lamp: Array  # (frames, 3): gain, and its slope over the picture's x and y
    camera_noise: float  # standard deviation at middle grey, in grey levels


def _wander(rng: np.random.Generator, frames: range) -> Array:
    """A smooth curve over the frames with about unit variance: three waves of 0.6 to 4.5 seconds."""
    period = np.exp(rng.uniform(np.log(120), np.log(900), 3))
    phase = rng.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * np.array(frames)[:, None] / period + phase)
    return np.asarray(np.sqrt(2 / 3) * waves.sum(axis=1))


def _plan_clip(rng: np.random.Generator, cfg: SynthConfig, recording: str, onset: int) -> ClipPlan:
    length = SHORTEST + int((LONGEST - SHORTEST + 1) * rng.beta(1.6, 3.2))  # mean about 28 frames
    apex = onset + int(np.clip(round(rng.uniform(0.3, 0.7) * (length - 1)), 2, length - 3))
    weaker, side = rng.uniform(0.65, 1.0), rng.integers(2)
    dx, dy = rng.normal(0, 0.006, 2)
    how = Variation(
        right=weaker if side else 1.0,
        left=1.0 if side else weaker,
        dx=dx,
        dy=dy,
        reach=rng.uniform(0.88, 1.15),
    )
    return ClipPlan(
        recording=recording,
        onset=onset,
        apex=apex,
        offset=onset + length - 1,
        strength=rng.uniform(*cfg.strength),
        rise=rng.uniform(0.75, 1.3),
        fall=rng.uniform(0.75, 1.3),
        how=how,
    )


def plan_subject(cfg: SynthConfig, rng: np.random.Generator) -> list[RecordingPlan]:
    """Plan all recordings of a subject, independent of the labels."""
    restless = rng.uniform(0.15, 0.6) / REFERENCE_SIZE
    camera_noise = rng.uniform(0.8, 2.4)
    plans = []
    for first in range(0, cfg.clips_per_subject, CLIPS_PER_RECORDING):
        index = first // CLIPS_PER_RECORDING
        name = chr(ord("a") + index % 26) + (str(index // 26) if index >= 26 else "")
        start = at = int(rng.integers(1, 400))
        clips = []
        for _ in range(min(CLIPS_PER_RECORDING, cfg.clips_per_subject - first)):
            clips.append(_plan_clip(rng, cfg, name, at + int(rng.integers(2, 5))))
            at = clips[-1].offset + 1
        frames = range(start, at + int(rng.integers(2, 5)))
        place = np.clip(rng.normal(0, 1.2, 2), -3, 3) / REFERENCE_SIZE
        pose = np.stack([_wander(rng, frames) for _ in range(4)], axis=1)
        pose = pose * (restless, restless, 0.5 * restless, 0.35 * restless) + (
            *place,
            rng.normal(0, 0.01),
            0.0,
        )
        lamp = np.stack([_wander(rng, frames) for _ in range(3)], axis=1) * (0.008, 0.01, 0.01)
        lamp += (rng.normal(1, 0.03), 0.0, 0.0)
        plans.append(
            RecordingPlan(
                name=name, frames=frames, clips=tuple(clips), pose=pose, lamp=lamp, camera_noise=camera_noise
            )
        )
    return plans


def shuffled_labels(cfg: SynthConfig, rng: np.random.Generator) -> list[str]:
    """One emotion word for each clip of a subject: as balanced as possible, in random order."""
    each, left = divmod(cfg.clips_per_subject, len(cfg.emotions))
    extra = rng.choice(len(cfg.emotions), left, replace=False)
    words = [*(word for word in cfg.emotions for _ in range(each)), *(cfg.emotions[i] for i in extra)]
    return [words[i] for i in rng.permutation(len(words))]


class Camera:
    """Turns the texture of one subject, (P, P, 3) with P = FINE * size + margins, into frames."""

    def __init__(self, size: int, texture: Array) -> None:
        self.size, self.fine, self.texture = size, size * FINE, texture
        steps = np.arange(self.fine, dtype=np.float32)
        self.column, self.row = steps[None, :], steps[:, None]
        line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        self.x, self.y = line[None, :, None], line[:, None, None]

    def view(self, pose: Array, field: Array, displacement: float) -> Array:
        """The noise-free view, (size, size, 3) float32: the texture moved along the unit field, then posed.

        `displacement` is the largest movement in pixels at 112 x 112; 0 leaves the field out.
        """
        dx, dy, angle, log_scale = pose
        cos, sin = np.cos(angle) * np.exp(-log_scale), np.sin(angle) * np.exp(-log_scale)
        # Frame pixel -> texture pixel: the inverse rotation and shift about the middle of the picture.
        middle = (self.fine - 1) / 2
        turn = np.array(((cos, sin), (-sin, cos)))
        shift = middle + margin_pixels(self.fine) - turn @ (middle + np.array((dx, dy)) * self.fine)
        to_texture = np.concatenate((turn, shift[:, None]), axis=1).astype(np.float32)
        (a, b, c), (d, e, f) = to_texture
        map_x, map_y = a * self.column + (b * self.row + c), d * self.column + (e * self.row + f)
        if displacement > 0:
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            push = cv2.warpAffine(field, to_texture, (self.fine, self.fine), flags=flags)
            map_x -= displacement * self.fine / REFERENCE_SIZE * push[..., 0]
            map_y -= displacement * self.fine / REFERENCE_SIZE * push[..., 1]
        # Linear interpolation moves a ramp exactly by the map (OpenCV's cubic is off by up to 1/20 pixel) and
        # blurs only at the scale of the finer texture. OpenCV rounds the map to 1/32 texture pixel.
        fine = cv2.remap(self.texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(fine, (self.size, self.size), interpolation=cv2.INTER_AREA))

    def shoot(self, view: Array, lamp: Array, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The view with its light and the sensor's noise, (size, size, 3) uint8."""
        gain, slope_x, slope_y = lamp.astype(np.float32)
        picture = view * (gain + slope_x * self.x + slope_y * self.y)
        # Bright pixels have more noise; most of it is common to the three channels.
        grain = rng.standard_normal((*picture.shape[:2], 4), np.float32)
        grain = grain[..., :1] + 0.4 * grain[..., 1:]
        picture += noise * grain * np.sqrt(0.3 + np.clip(picture, 0, 255) / 180)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def subject_frames(
    cfg: SynthConfig, subject: int, labels: list[str] | None = None
) -> Iterator[tuple[str, int, NDArray[np.uint8], ClipPlan, str]]:
    """Every frame of subject 1, 2, ...: (recording, frame number, picture, clip it is in or near, label).

    Pictures are (size, size, 3) uint8 RGB. `labels`, one for each clip, replace the shuffled ones: only the
    movement changes.
    """
    if labels is not None and len(labels) != cfg.clips_per_subject:
        raise ValueError(f"labels expected {cfg.clips_per_subject}, one for each clip, got {len(labels)}")
    streams = np.random.SeedSequence((cfg.seed, subject)).spawn(5)
    face_rng, paint_rng, plan_rng, label_rng, noise_rng = (np.random.default_rng(s) for s in streams)
    face = random_face(face_rng)
    camera = Camera(cfg.size, paint_face(face, cfg.size * FINE, paint_rng))
    words = iter(labels or shuffled_labels(cfg, label_rng))
    x, y = grid(camera.fine)
    for plan in plan_subject(cfg, plan_rng):
        clips = iter(plan.clips)
        clip: ClipPlan | None = None
        for frame, pose, lamp in zip(plan.frames, plan.pose, plan.lamp, strict=True):
            if clip is None or (frame > clip.offset and clip is not plan.clips[-1]):
                clip, word = next(clips), next(words)
                field = movement_field(face, EXPRESSIONS[word][0], clip.how, x, y)
            view = camera.view(pose, field, clip.amplitude(frame) * clip.strength)
            picture = camera.shoot(view, lamp, plan.camera_noise, noise_rng)
            yield plan.name, frame, picture, clip, word


def _render_subject(cfg: SynthConfig, subject: int) -> list[RenderedClip]:
    """Write one subject's frames; returns its clips."""
    layout = LAYOUTS[cfg.layout]
    clips: dict[tuple[str, int], RenderedClip] = {}
    for recording, frame, picture, plan, word in subject_frames(cfg, subject):
        clip = clips.get((recording, plan.onset))
        if clip is None:
            before = list(clips.values())
            clip = clips[recording, plan.onset] = RenderedClip(
                subject=subject,
                recording=recording,
                number=1 + len(before),
                place=1 + sum(other.recording == recording for other in before),
                same=1 + sum(layout.words[other.emotion] == layout.words[word] for other in before),
                onset=plan.onset,
                apex=plan.apex,
                offset=plan.offset,
                emotion=word,
            )
        clip.frames.append(frame)
        path = cfg.out / layout.frame(clip, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if layout.grey else picture[..., ::-1]
        quality = (cv2.IMWRITE_JPEG_QUALITY, cfg.quality) if path.suffix == ".jpg" else ()
        _, data = cv2.imencode(path.suffix, colours, quality)
        try:
            path.write_bytes(data.tobytes())
        except OSError as error:
            raise OSError(f"could not write {path}: {error.strerror}") from error
    return list(clips.values())


def _one_thread() -> None:
    cv2.setNumThreads(1)  # the processes are the parallelism


def _render_subjects(cfg: SynthConfig) -> Generator[tuple[int, list[RenderedClip]]]:
    """Number and clips of each subject, in the order in which they are finished."""
    processes = min(cfg.processes or os.cpu_count() or 1, cfg.subjects)
    numbers = range(1, cfg.subjects + 1)
    if processes == 1:
        for number in numbers:
            yield number, _render_subject(cfg, number)
        return
    # Spawned, not forked: the caller may have threads (torch, OpenCV) that do not survive a fork.
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        try:
            with ctrl_c_kept_from_children():
                waiting = {pool.submit(_render_subject, cfg, number): number for number in numbers}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # a subject takes seconds
            raise


def _is_finished(cfg: SynthConfig, settings: str) -> bool:
    """Whether `out` has this finished dataset; ValueError if it has anything else."""
    if not cfg.out.exists():
        return False
    if not cfg.out.is_dir():
        raise ValueError(f"{cfg.out}: expected a folder to render into, got a file")
    if not any(cfg.out.iterdir()):
        return False
    said = cfg.out / "synthetic.json"
    if not said.is_file():
        raise ValueError(
            f"{cfg.out}: expected a new or empty folder to render into, got one with other files in it"
        )
    if said.read_text(encoding="utf-8") != settings:
        raise ValueError(
            f"{cfg.out}: has a dataset rendered with other settings (see {said}); choose another folder"
        )
    return (cfg.out / LAYOUTS[cfg.layout].annotation).is_file()


def render(cfg: SynthConfig) -> Path:
    """Render the dataset that `cfg` describes into `cfg.out`, and return that folder.

    A folder that already has this dataset is kept as it is; if its rendering was interrupted, it is rendered
    again. Nothing is ever deleted.

    Raises:
        ValueError: a setting is out of range, or the folder has anything else in it.
        OSError: a file cannot be written.
    """
    cfg.check()
    chosen = {key: value for key, value in asdict(cfg).items() if key not in ("out", "processes")}
    # Left out at their defaults, so that datasets rendered before these settings existed still match.
    if cfg.layout == "casme3":
        del chosen["layout"]
    if not cfg.faults:
        del chosen["faults"]
    settings = json.dumps({"note": NOTE, "renderer": RENDERER, **chosen}, indent=2) + "\n"
    if _is_finished(cfg, settings):
        print(f"{cfg.out}: already rendered with these settings, kept")
        return cfg.out
    make_folder(cfg.out, "--out", cfg.out)
    # Written first: it marks the folder as ours if rendering is interrupted.
    write_text(cfg.out / "synthetic.json", settings)
    clips: dict[int, list[RenderedClip]] = {}
    bar = tqdm(total=cfg.subjects, desc=f"render {cfg.out}", unit="subject", dynamic_ncols=True)
    with bar, contextlib.closing(_render_subjects(cfg)) as rendered:
        for number, own in rendered:
            clips[number] = own
            bar.update()
    numbers = range(1, cfg.subjects + 1)
    ordered = [clip for number in numbers for clip in clips[number]]
    rows = inject_faults(cfg.out, cfg.layout, ordered, chosen_faults(cfg.layout, cfg.faults))
    LAYOUTS[cfg.layout].write(cfg.out, rows)
    return cfg.out
