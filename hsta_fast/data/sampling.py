"""Which frames of a clip the model sees: T video frames, and two special frames or optical flows.

All positions are indices of a clip's `frames` tuple: 0 is the onset, length - 1 the offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SpecialFrame = Literal["onset", "apex", "offset", "middle"]
FlowMethod = Literal["dis", "farneback", "tvl1"]
_SPECIAL = ("onset", "apex", "offset", "middle")
_FLOW = ("dis", "farneback", "tvl1")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How frames are selected.

    num_frames: T, the number of video frames.
    video: "uniform" is the paper's, "random" the published code's (sorted random frames, also in test).
    offset_cap: video frames are at most this many frames after the onset (the published code: 50).
    special: the two special frames, in this order.
    flow: the method of the optical flow that replaces the special frames: the first from onset to apex, the
        second from apex to offset.
    onset_only: a control: every video and special frame is the onset frame, which shows no movement, so a
        model that still scores above chance gets the label from elsewhere.
    """

    num_frames: int = 6
    video: Literal["uniform", "random"] = "uniform"
    offset_cap: int | None = None
    special: tuple[SpecialFrame, SpecialFrame] = ("onset", "apex")
    flow: FlowMethod | None = None
    onset_only: bool = False

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames expected at least 1, got {self.num_frames}")
        if self.video not in ("uniform", "random"):
            raise ValueError(f"video expected 'uniform' or 'random', got {self.video!r}")
        if self.offset_cap is not None and self.offset_cap < 1:
            raise ValueError(f"offset_cap expected None or at least 1 frame, got {self.offset_cap}")
        if len(self.special) != 2 or any(name not in _SPECIAL for name in self.special):
            raise ValueError(f"special expected two of {_SPECIAL}, got {self.special!r}")
        if self.flow is not None and self.flow not in _FLOW:
            raise ValueError(f"flow expected None or one of {_FLOW}, got {self.flow!r}")


def uniform_frames(onset: int, offset: int, num: int) -> np.ndarray:
    """`num` frame numbers round(linspace(onset, offset, num)), both ends included; int64 (num,).

    Frames repeat if the clip has fewer than `num`.
    """
    return np.rint(np.linspace(onset, offset, num)).astype(np.int64)


def random_frames(onset: int, offset: int, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` sorted random frame numbers of onset..offset; int64 (num,).

    Frames repeat only if the clip has fewer than `num`.
    """
    length = offset - onset + 1
    return onset + np.sort(rng.choice(length, size=num, replace=length < num)).astype(np.int64)


def video_last(sampling: Sampling, length: int) -> int:
    """The last position that a video frame may have in a clip of `length` frames."""
    if sampling.onset_only:
        return 0
    return length - 1 if sampling.offset_cap is None else min(length - 1, sampling.offset_cap)


def video_positions(sampling: Sampling, length: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """The positions of the video frames in a clip of `length` frames; int64 (T,). "random" needs `rng`."""
    last = video_last(sampling, length)
    if sampling.video == "uniform" or sampling.onset_only:
        return uniform_frames(0, last, sampling.num_frames)
    if rng is None:
        raise ValueError("rng expected a random generator for random video frames, got None")
    return random_frames(0, last, sampling.num_frames, rng)


def special_positions(sampling: Sampling, length: int, apex: int) -> np.ndarray:
    """The positions of the two special frames of a clip with its apex at position `apex`; int64 (2,)."""
    if sampling.onset_only:
        return np.zeros(2, dtype=np.int64)
    where = {"onset": 0, "apex": apex, "offset": length - 1, "middle": (length - 1) // 2}
    return np.array([where[name] for name in sampling.special], dtype=np.int64)


def flow_positions(sampling: Sampling, length: int, apex: int) -> np.ndarray:
    """The positions (from, to) of the two flows of a clip; int64 (2, 2)."""
    if sampling.onset_only:
        return np.zeros((2, 2), dtype=np.int64)
    return np.array([(0, apex), (apex, length - 1)], dtype=np.int64)


def needed_positions(sampling: Sampling, length: int, apex: int) -> np.ndarray:
    """Every position that a clip's samples may use, sorted, each once; int64 (n,). Only these are decoded."""
    if sampling.video == "uniform":
        video = video_positions(sampling, length)
    else:
        video = np.arange(video_last(sampling, length) + 1)
    special = flow_positions if sampling.flow else special_positions
    return np.union1d(video, special(sampling, length, apex)).astype(np.int64)
