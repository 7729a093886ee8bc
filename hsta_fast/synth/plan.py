"""What happens in rendered clips and when, drawn at random: everything but the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .face import Array, Variation
from .settings import SynthConfig

REFERENCE_SIZE = 112  # strengths and drifts are given in pixels of this picture size
CLIPS_PER_RECORDING = 6
FPS = 200  # frames a second of all clips; recordings of minutes may have others
SHORTEST, LONGEST = 8, 67  # frames of a clip: 1/25 s and 1/3 s


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


def wander(rng: np.random.Generator, frames: range, fps: float = FPS) -> Array:
    """A smooth curve over the frames with about unit variance: three waves of 0.6 to 4.5 seconds."""
    period = np.exp(rng.uniform(np.log(120), np.log(900), 3)) * (fps / FPS)
    phase = rng.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * np.array(frames)[:, None] / period + phase)
    return np.asarray(np.sqrt(2 / 3) * waves.sum(axis=1))


def plan_clip(rng: np.random.Generator, cfg: SynthConfig, recording: str, onset: int) -> ClipPlan:
    """Draw one clip that begins with the frame `onset`; lengths are those of 200 frames a second."""
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
            clips.append(plan_clip(rng, cfg, name, at + int(rng.integers(2, 5))))
            at = clips[-1].offset + 1
        frames = range(start, at + int(rng.integers(2, 5)))
        place = np.clip(rng.normal(0, 1.2, 2), -3, 3) / REFERENCE_SIZE
        pose = np.stack([wander(rng, frames) for _ in range(4)], axis=1)
        pose = cfg.drift * pose * (restless, restless, 0.5 * restless, 0.35 * restless) + (
            *place,
            rng.normal(0, 0.01),
            0.0,
        )
        lamp = np.stack([wander(rng, frames) for _ in range(3)], axis=1) * (0.008, 0.01, 0.01)
        lamp += (rng.normal(1, 0.03), 0.0, 0.0)
        plans.append(
            RecordingPlan(
                name=name, frames=frames, clips=tuple(clips), pose=pose, lamp=lamp, camera_noise=camera_noise
            )
        )
    return plans


def shuffled_labels(cfg: SynthConfig, rng: np.random.Generator) -> list[str]:
    """One emotion word for each clip of a subject: as balanced as possible, in random order."""
    return shuffled_words(cfg.emotions, cfg.clips_per_subject, rng)


def shuffled_words(emotions: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` of these words, as balanced as possible, in random order."""
    each, left = divmod(count, len(emotions))
    extra = rng.choice(len(emotions), left, replace=False)
    words = [*(word for word in emotions for _ in range(each)), *(emotions[i] for i in extra)]
    return [words[i] for i in rng.permutation(len(words))]
