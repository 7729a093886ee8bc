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
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.frames.video import import_av
from ..files import make_folder, write_text
from .face import Array, grid, margin_pixels, movement_field, random_face
from .faults import chosen_faults, inject_faults
from .layouts import EXPRESSIONS, LAYOUTS, RenderedClip
from .painter import paint_face
from .plan import REFERENCE_SIZE, ClipPlan, plan_subject, shuffled_labels
from .processes import in_processes
from .recordings import RECORDINGS_TABLE, render_recordings, write_tables
from .scene import Scene, grain, grain_size
from .settings import SETTINGS_FILE, SynthConfig, is_finished

FINE = 3  # texture pixels per picture pixel


class Camera:
    """Turns the texture of one subject, (P, P, 3) with P = FINE * size + margins, into frames."""

    def __init__(self, size: int, texture: Array) -> None:
        self.size, self.fine, self.texture = size, size * FINE, texture
        steps = np.arange(self.fine, dtype=np.float32)
        self.column, self.row = steps[None, :], steps[:, None]
        line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        self.x, self.y = line[None, :, None], line[:, None, None]
        self.grid = grid(self.fine)

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
        picture += noise * grain(picture.shape[:2], rng) * grain_size(picture)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def subject_frames(
    cfg: SynthConfig, subject: int, labels: list[str] | None = None
) -> Iterator[tuple[str, int, NDArray[np.uint8], ClipPlan, str]]:
    """Every frame of subject 1, 2, ...: (recording, frame number, picture, clip it is in or near, label).

    Pictures are (size, size, 3) uint8 RGB, or as large as the scene. `labels`, one for each clip, replace the
    shuffled ones: only the movement changes.
    """
    if labels is not None and len(labels) != cfg.clips_per_subject:
        raise ValueError(f"labels expected {cfg.clips_per_subject}, one for each clip, got {len(labels)}")
    streams = np.random.SeedSequence((cfg.seed, subject)).spawn(6)
    face_rng, paint_rng, plan_rng, label_rng, noise_rng, place_rng = map(np.random.default_rng, streams)
    face = random_face(face_rng)
    camera: Camera | Scene
    if cfg.scene_size is None:
        camera = Camera(cfg.size, paint_face(face, cfg.size * FINE, paint_rng))
    else:
        camera = Scene(face, cfg.scene_size, paint_rng)
    words = iter(labels or shuffled_labels(cfg, label_rng))
    for plan in plan_subject(cfg, plan_rng):
        if isinstance(camera, Scene):
            camera.place(place_rng)
        clips = iter(plan.clips)
        clip: ClipPlan | None = None
        for frame, pose, lamp in zip(plan.frames, plan.pose, plan.lamp, strict=True):
            if clip is None or (frame > clip.offset and clip is not plan.clips[-1]):
                clip, word = next(clips), next(words)
                field = movement_field(face, EXPRESSIONS[word][0], clip.how, *camera.grid)
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


def render(cfg: SynthConfig) -> Path:
    """Render the dataset that `cfg` describes into `cfg.out`, and return that folder.

    A folder that already has this dataset is kept as it is; if its rendering was interrupted, it is rendered
    again. Nothing is ever deleted.

    Raises:
        ValueError: a setting is out of range, or the folder has anything else in it.
        OSError: a file cannot be written.
        ImportError: recordings of minutes need the package av.
    """
    cfg.check()
    if is_finished(cfg, RECORDINGS_TABLE if cfg.long else LAYOUTS[cfg.layout].annotation):
        print(f"{cfg.out}: already rendered with these settings, kept")
        return cfg.out
    if cfg.long:
        import_av()
    make_folder(cfg.out, "--out", cfg.out)
    # Written first: it marks the folder as ours if rendering is interrupted.
    write_text(cfg.out / SETTINGS_FILE, cfg.as_text())
    numbers = range(1, cfg.faces + 1)
    work = partial(render_recordings if cfg.long else _render_subject, cfg)
    done: dict[int, Any] = {}
    bar = tqdm(total=len(numbers), desc=f"render {cfg.out}", unit="subject", dynamic_ncols=True)
    with bar, contextlib.closing(in_processes(work, numbers, cfg.processes)) as rendered:
        for number, own in rendered:
            done[number] = own
            bar.update()
    ordered = [clip for number in numbers for clip in done[number]]
    if cfg.long:
        write_tables(cfg, ordered)
        return cfg.out
    rows = inject_faults(cfg.out, cfg.layout, ordered, chosen_faults(cfg.layout, cfg.faults))
    LAYOUTS[cfg.layout].write(cfg.out, rows)
    return cfg.out
