"""Recordings in memory: one rendered face, whose skin, lids, mouth and head are moved by cv2.remap."""

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from hsta_fast.data.frames.stream import Convert, FrameStream, usual_rate
from hsta_fast.synth import SynthConfig
from hsta_fast.synth.render import subject_frames

SIDE = 160  # pixels of the face's picture
WIDTH, HEIGHT = 200, 176
# Middles of regions in parts of SIDE, as the renderer places them, for this face.
BROWS, MOUTH, EYES = ((0.40, 0.37), (0.60, 0.37)), ((0.39, 0.72), (0.61, 0.72)), ((0.36, 0.46), (0.64, 0.46))
CHIN = (0.5, 0.84)


class MemoryStream(FrameStream):
    """Frames (n, h, w) uint8 grey held in memory, at these times in seconds."""

    def __init__(self, frames: np.ndarray, times: np.ndarray) -> None:
        rate = usual_rate(np.diff(times))
        super().__init__("memory", len(frames), (frames.shape[2], frames.shape[1]), rate)
        self.frames, self.times = frames, times

    def seconds(self, number: int) -> float:
        return float(self.times[number])

    def pictures(self, convert: Convert | None = None) -> Iterator[tuple[int, np.ndarray]]:
        for number, frame in enumerate(self.frames):
            picture = cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)
            yield number, convert(picture) if convert else picture

    def chosen(
        self, numbers: Collection[int], convert: Convert | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        wanted = set(numbers)
        return ((number, picture) for number, picture in self.pictures(convert) if number in wanted)

    def small_grey(self, side: int) -> Iterator[tuple[int, np.ndarray]]:
        scale = side / max(self.size)
        for number, frame in enumerate(self.frames):
            yield number, frame if scale >= 1 else cv2.resize(frame, None, fx=scale, fy=scale)

    def read(self, numbers: Sequence[int], convert: Convert) -> list[np.ndarray | ValueError]:
        return [convert(cv2.cvtColor(self.frames[number], cv2.COLOR_GRAY2RGB)) for number in numbers]


@cache
def face() -> np.ndarray:
    """A rendered face in the middle of a grey picture, (HEIGHT, WIDTH) uint8."""
    cfg = SynthConfig(out=Path("none"), subjects=2, clips_per_subject=1, size=SIDE)
    picture = cv2.cvtColor(next(iter(subject_frames(cfg, 1)))[2], cv2.COLOR_RGB2GRAY)
    scene = np.full((HEIGHT, WIDTH), picture[:5, :5].mean(), np.uint8)
    top, left = (HEIGHT - SIDE) // 2, (WIDTH - SIDE) // 2
    scene[top : top + SIDE, left : left + SIDE] = picture
    return scene


def bump(times: np.ndarray, onset: float, apex: float, offset: float) -> np.ndarray:
    """A smooth rise from 0 at the onset to 1 at the apex, and back to 0 at the offset."""
    part = np.interp(times, [onset, apex, offset], [0, 1, 0])
    return part * part * (3 - 2 * part)


def film(
    times: np.ndarray,
    *,
    brows: np.ndarray | float = 0.0,
    mouth: np.ndarray | float = 0.0,
    chin: np.ndarray | float = 0.0,
    lids: np.ndarray | float = 0.0,
    head: np.ndarray | float = 0.0,
    noise: float = 1.5,
) -> MemoryStream:
    """A recording: brows and corners of the mouth up, chin down, head to the right, all in pixels; lids
    0..1."""
    rng, scene = np.random.default_rng(0), face()
    bank = rng.normal(0, noise, (2 * HEIGHT, 2 * WIDTH)).astype(np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)

    def field(middles: Sequence[tuple[float, float]], width: float) -> np.ndarray:
        total = np.zeros((HEIGHT, WIDTH), np.float32)
        for fx, fy in middles:
            cx, cy = (WIDTH - SIDE) / 2 + fx * SIDE, (HEIGHT - SIDE) / 2 + fy * SIDE
            total += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * (width * SIDE) ** 2))
        return total

    up_brows, up_mouth, down_chin = field(BROWS, 0.06), field(MOUTH, 0.06), field([CHIN], 0.08)
    lid = np.clip(1.6 * field(EYES, 0.04), 0, 1)
    closed = (1 - lid) * scene + lid * cv2.GaussianBlur(scene, (0, 0), 20)
    curves = [np.broadcast_to(curve, times.shape) for curve in (brows, mouth, chin, lids, head)]
    frames = np.empty((len(times), HEIGHT, WIDTH), np.uint8)
    for number, (brow, corner, jaw, shut, shift) in enumerate(zip(*curves, strict=True)):
        picture = scene + np.float32(shut) * (closed - scene)
        down = brow * up_brows + corner * up_mouth - jaw * down_chin
        moved = cv2.remap(
            picture.astype(np.float32),
            x - np.float32(shift),
            y + down.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        row, column = rng.integers(HEIGHT), rng.integers(WIDTH)
        moved += bank[row : row + HEIGHT, column : column + WIDTH]
        frames[number] = np.clip(np.rint(moved), 0, 255)
    return MemoryStream(frames, times)
