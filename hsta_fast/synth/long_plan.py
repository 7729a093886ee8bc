"""What happens in rendered recordings of minutes, and when: expressions, blinks, talking, head turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .face import Array
from .plan import FPS, REFERENCE_SIZE, ClipPlan, plan_clip, wander
from .settings import SynthConfig

EXPRESSION, TALKING, TURN, BLINK = "expression", "talking", "head turn", "blink"
APART = 1.0  # seconds at least between two expressions
NEAR = 0.4  # seconds at least between any other two, blinks aside
TALKS, TURNS = 3.0, 5.0  # a minute
JAW = (0.012, 0.030)  # how far the jaw goes down in a syllable, in sides of the face


@dataclass(frozen=True)
class Event:
    """A distractor: movement of the face that is no expression; frames are inclusive."""

    kind: str
    onset: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class LongPlan:
    """One recording: its expressions, its distractors, and the state of head, lids, mouth and light."""

    name: str
    clips: tuple[ClipPlan, ...]
    events: tuple[Event, ...]
    pose: Array  # (frames, 5): see `Scene.view`
    lids: Array  # (frames,)
    mouth: Array  # (frames, 2)
    lamp: Array  # (frames, 3): gain, and its slope over the frame's x and y
    camera_noise: float


def _smooth(frames: int) -> Array:
    """From 0 to 1 in a smooth step, both included."""
    t = np.linspace(0, 1, frames)
    return t * t * (3 - 2 * t)


def _expression(rng: np.random.Generator, cfg: SynthConfig, recording: str) -> ClipPlan:
    """An expression from frame 0 on, as long in seconds as one of the short clips."""
    clip = plan_clip(rng, cfg, recording, 0)
    offset = max(2, round((clip.offset + 1) * cfg.fps / FPS) - 1)
    apex = min(max(1, round(clip.apex * cfg.fps / FPS)), offset - 1)
    return replace(clip, apex=apex, offset=offset)


def _at(clip: ClipPlan, onset: int) -> ClipPlan:
    return replace(clip, onset=onset, apex=onset + clip.apex, offset=onset + clip.offset)


def _timeline(
    rng: np.random.Generator, cfg: SynthConfig, frames: int, clips: Sequence[ClipPlan]
) -> list[tuple[str, int, int]]:
    """(kind, first frame, last frame) of everything but blinks, in order of time; none overlap.

    There are as many expressions as `clips`, each as long as its clip, in their order. Talking and head turns
    that do not fit are left out; the expressions that `SynthConfig.check` allows always do.
    """
    kinds = [TALKING] * round(TALKS * cfg.minutes) + [TURN] * round(TURNS * cfg.minutes)
    lengths = [clip.offset + 1 for clip in clips]
    lengths += [
        round((rng.uniform(2, 6) if kind == TALKING else rng.uniform(0.5, 2)) * cfg.fps) for kind in kinds
    ]
    kinds = [EXPRESSION] * len(clips) + kinds
    while True:
        order = rng.permutation(len(kinds))
        gaps = np.full(len(kinds) + 1, NEAR)
        for place in range(1, len(kinds)):
            if kinds[order[place - 1]] == kinds[order[place]] == EXPRESSION:
                gaps[place] = APART
        least = np.ceil(gaps * cfg.fps).astype(int)
        free = frames - sum(lengths) - least.sum()
        if free >= 0:
            break
        del kinds[-1], lengths[-1]
    cuts = np.sort(rng.integers(0, free + 1, len(kinds)))
    extra = np.diff(np.concatenate(([0], cuts)))
    found, at, clip = [], 0, 0
    for place, number in enumerate(order):
        at += int(least[place] + extra[place])
        if kinds[number] == EXPRESSION:
            length, clip = lengths[clip], clip + 1
        else:
            length = lengths[number]
        found.append((kinds[number], at, at + length - 1))
        at += length
    return found


def _blinks(
    rng: np.random.Generator, cfg: SynthConfig, frames: int, clips: Sequence[ClipPlan]
) -> list[Event]:
    """A blink every 2 to 6 s, each 0.1 to 0.3 s; one that would touch an expression comes after it."""
    found: list[Event] = []
    at = round(rng.uniform(0.5, 4) * cfg.fps)
    near = round(0.05 * cfg.fps)
    while True:
        length = max(3, round(rng.uniform(0.1, 0.3) * cfg.fps))
        for clip in clips:
            if at <= clip.offset + near and at + length - 1 >= clip.onset - near:
                at = clip.offset + near + 1
        if at + length >= frames:
            return found
        found.append(Event(BLINK, at, at + length - 1))
        at += length + round(rng.uniform(2, 6) * cfg.fps)


def _lids(rng: np.random.Generator, length: int) -> Array:
    """How far the lids are closed in each frame of a blink: down faster than up."""
    down = max(2, round(0.38 * length))
    up = max(2, length - down + 1)
    course = np.concatenate((_smooth(down), _smooth(up)[::-1][1:]))[:length]
    course[-1] = 0.0
    return rng.uniform(0.9, 1.0) * course


def _speech(rng: np.random.Generator, fps: float, length: int) -> Array:
    """Jaw and roundness of the lips in each frame of talking, (length, 2): 3 to 6 syllables a second."""
    seconds = np.arange(length) / fps
    phase = np.cumsum(rng.uniform(3.5, 5.5) + 0.8 * np.sin(rng.uniform(2, 5) * seconds)) / fps
    syllable = np.floor(phase).astype(int)
    strength = rng.uniform(*JAW, syllable[-1] + 1)[syllable]
    ends = np.clip(np.minimum(seconds, seconds[::-1]) / 0.15, 0, 1)
    jaw = strength * ends * 0.5 * (1 - np.cos(2 * np.pi * phase))
    lips = ends * 0.5 * (1 - np.cos(2 * np.pi * rng.uniform(0.8, 1.6) * seconds))
    return np.stack((jaw, lips), axis=1)


def _turn(rng: np.random.Generator, now: Array) -> Array:
    """The head's next posture: elsewhere than now; (5,)."""
    while True:
        x = float(rng.choice((-1, 1)) * rng.uniform(0.0, 0.06))
        if abs(x - now[0]) >= 0.03:
            angle, y = rng.normal(0, 0.03), rng.normal(0, 0.012)
            return np.array((x, y, np.clip(angle, -0.07, 0.07), 0.0, abs(x)))


def plan_recording(
    cfg: SynthConfig, rng: np.random.Generator, name: str, restless: float, camera_noise: float
) -> LongPlan:
    """Draw one recording, independent of the labels of its expressions."""
    frames = round(60 * cfg.minutes * cfg.fps)
    clips = [_expression(rng, cfg, name) for _ in range(round(cfg.expressions * cfg.minutes))]
    timeline = _timeline(rng, cfg, frames, clips)
    onsets = [first for kind, first, _ in timeline if kind == EXPRESSION]
    clips = [_at(clip, onset) for clip, onset in zip(clips, onsets, strict=True)]
    blinks = _blinks(rng, cfg, frames, clips)
    lids = np.zeros(frames)
    for blink in blinks:
        lids[blink.onset : blink.offset + 1] = _lids(rng, blink.offset - blink.onset + 1)
    mouth, turned = np.zeros((frames, 2)), np.zeros((frames, 5))
    now: Array = np.zeros(5)
    for kind, first, last in timeline:
        if kind == TALKING:
            mouth[first : last + 1] = _speech(rng, cfg.fps, last - first + 1)
        elif kind == TURN:
            then = _turn(rng, now)
            turned[first : last + 1] = now + _smooth(last - first + 1)[:, None] * (then - now)
            turned[last + 1 :] = now = then
    drift = np.stack([wander(rng, range(frames), cfg.fps) for _ in range(4)], axis=1)
    drift = cfg.drift * drift * (restless, restless, 0.5 * restless, 0.35 * restless)
    pose = turned + np.concatenate((drift, np.zeros((frames, 1))), axis=1) + (0, 0, rng.normal(0, 0.01), 0, 0)
    lamp = np.stack([wander(rng, range(frames), cfg.fps) for _ in range(3)], axis=1) * (0.008, 0.01, 0.01)
    lamp += (rng.normal(1, 0.03), 0.0, 0.0)
    others = [Event(kind, first, last) for kind, first, last in timeline if kind != EXPRESSION]
    return LongPlan(
        name=name,
        clips=tuple(clips),
        events=tuple(sorted([*blinks, *others], key=lambda event: event.onset)),
        pose=pose,
        lids=lids,
        mouth=mouth,
        lamp=lamp,
        camera_noise=camera_noise,
    )


def plan_recordings(cfg: SynthConfig, rng: np.random.Generator) -> list[LongPlan]:
    """Draw all recordings of a subject: a, b, ..."""
    restless = rng.uniform(0.15, 0.6) / REFERENCE_SIZE
    camera_noise = rng.uniform(0.8, 2.4)
    names = [chr(ord("a") + number) for number in range(cfg.recordings)]
    return [plan_recording(cfg, rng, name, restless, camera_noise) for name in names]
