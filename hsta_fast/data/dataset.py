"""Batches of clips from decoded frames.

All randomness comes from the seed given, so a resumed run repeats what an unbroken one does. It is drawn
before any picture is touched, so it is the same wherever the pictures are put together (see `loading`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..clips import KEY, identity, subject_ids
from . import loading
from .clips import ClipTable
from .frames.cache import Items
from .frames.store import FrameStore
from .loading import Batch, Draw
from .sampling import Sampling, special_positions, video_positions

Balance = Literal["matched", "even", "weighted", "none"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What changes at random in training, the same for all frames of a clip.

    flip: mirror left and right, half of the time.
    crop: shift by up to so many pixels in each direction; the edge is repeated outwards.
    """

    flip: bool = True
    crop: int = 4

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop must be at least 0 pixels, got {self.crop}")


def steps(num_clips: int, batch_size: int) -> int:
    """The number of batches in a pass over `num_clips` clips; the last one may be smaller."""
    return -(-num_clips // batch_size)


class ClipData:
    """The clips of a labelled table as batches.

    `labels` int64 (n,) and `subjects` str (n,), "dataset/subject", are in the table's order. `flow`: where
    the sampling wants optical flow, the one of pair k of clip i as item 2 i + k, as `flow_pairs` orders them.
    """

    def __init__(
        self, table: ClipTable, store: FrameStore, sampling: Sampling, flow: Items | None = None
    ) -> None:
        clips = table.clips
        if "label" not in clips:
            raise ValueError("wanted a table with labels (see apply_labels), it has no column 'label'")
        if (flow is None) != (sampling.flow is None):
            raise ValueError(f"wanted flow items where the sampling wants flow, it wants {sampling.flow}")
        self.table = table
        self.store = store
        self.sampling = sampling
        self.flow = flow
        self.labels: np.ndarray = clips["label"].to_numpy(dtype=np.int64)
        # A subject's number means another person in another data set.
        self.subjects: np.ndarray = subject_ids(clips).to_numpy(dtype=str)

        self._names: list[str] = []
        self._rows: list[np.ndarray] = []  # a clip's rows in the store, -1 for a frame that is not decoded
        self._special = np.empty((len(clips), 2), dtype=np.int64)  # positions in the clip
        for i, clip in enumerate(clips.to_dict("records")):
            frames = clip["frames"]
            self._names.append(identity(*(clip[key] for key in KEY)))
            self._rows.append(np.array([store.rows.get(path, -1) for path in frames], dtype=np.int64))
            self._special[i] = special_positions(sampling, len(frames), clip["apex"] - clip["onset"])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        seed: Sequence[int],
        train: bool,
        augment: Augment | None = None,
        balance: Balance = "none",
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """One pass over the clips at `indices` (rows of the table): as many clips as there are indices.

        train=True: in random order, with `augment` and `balance`. "even" shows every class about equally
        often, a class's clips in shuffled passes, one after another; "weighted" draws with replacement with
        weight 1 / (clips of the class); "none" shows each clip once.
        train=False: each clip once, in the order given; `augment` and `balance` are of no effect. Random
        video frames then depend on `seed` and the clip alone, not on the clips around it.
        `seed`: any number of non-negative integers, such as (seed, fold, epoch).
        `device`: on CUDA the batches are there already, loaded ahead by a thread; their bytes are the same.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or len(wanted) == 0 or wanted.min() < 0 or wanted.max() >= len(self):
            raise ValueError(f"indices must be one or more rows in 0..{len(self) - 1}, got {_short(indices)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if any(number < 0 for number in seed):
            raise ValueError(f"seed must be non-negative integers, got {tuple(seed)}")
        draws = self._draws(wanted, batch_size, list(seed), train, augment if train else None, balance)
        where = torch.device(device)
        if where.type == "cuda":
            return loading.ahead_on_cuda(self, draws, where)
        return (loading.on_cpu(self, draw) for draw in draws)

    def _draws(
        self,
        wanted: np.ndarray,
        batch_size: int,
        seed: list[int],
        train: bool,
        augment: Augment | None,
        balance: Balance,
    ) -> Iterator[Draw]:
        """What is random about each batch."""
        rng = np.random.default_rng(seed)
        order = wanted
        if train:
            order = epoch_order(wanted, self.labels[wanted], self.subjects[wanted], balance, rng)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            frames = np.stack([self._frames_of(i, rng if train else self._clip_rng(i, seed)) for i in chosen])
            yield Draw(chosen, frames, np.array([_move(augment, rng) for _ in chosen]))

    def _clip_rng(self, index: int, seed: list[int]) -> np.random.Generator:
        return np.random.default_rng([*seed, zlib.crc32(self._names[index].encode())])

    def _frames_of(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """The rows in the store of a clip's T video and 2 special frames, (T + 2,)."""
        rows = self._rows[index]
        video = video_positions(self.sampling, len(rows), rng)
        # With flow there are no special frames to show; the onset is there in any case.
        special = np.zeros(2, dtype=np.int64) if self.sampling.flow else self._special[index]
        positions = np.concatenate([video, special])
        picked = rows[positions]
        if (picked < 0).any():
            path = self.table.clips["frames"].iloc[index][positions[picked < 0][0]]
            raise ValueError(f"{self._names[index]}: frame {path} is not in the frame store")
        return picked


def epoch_order(
    indices: np.ndarray, labels: np.ndarray, subjects: np.ndarray, balance: str, rng: np.random.Generator
) -> np.ndarray:
    """A training epoch's order of `indices` (n,), whose classes and people are `labels` and `subjects`.

    See `ClipData.batches` for `balance`.
    """
    n = len(indices)
    if balance == "none":
        return rng.permutation(indices)
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if balance == "weighted":
        weight = 1.0 / counts[members]
        return rng.choice(indices, size=n, p=weight / weight.sum())
    if balance not in ("even", "matched"):
        raise ValueError(f"balance must be 'matched', 'even', 'weighted' or 'none', got {balance!r}")
    # n // classes of each class, and one more of some classes, other ones in each epoch.
    quotas = np.full(len(classes), n // len(classes))
    quotas[rng.permutation(len(classes))[: n % len(classes)]] += 1
    shown: list[int] = []  # positions in `indices`
    for number, quota in enumerate(quotas):
        own = np.flatnonzero(members == number)
        passes = [rng.permutation(own) for _ in range(steps(quota, len(own)))]
        shown.extend(np.concatenate(passes)[:quota] if passes else [])
    order = rng.permutation(np.array(shown, dtype=np.int64))
    return indices[_side_by_side(order, members, subjects, rng) if balance == "matched" else order]


def _side_by_side(
    order: np.ndarray, classes: np.ndarray, subjects: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Reorder positions: clips of one subject and different classes in groups, the groups in random order."""
    waiting: dict[str, dict[int, list[int]]] = {}
    for i in order.tolist():
        waiting.setdefault(subjects[i], {}).setdefault(classes[i], []).append(i)
    groups = []
    for stacks in waiting.values():
        rounds = max(len(stack) for stack in stacks.values())
        groups += [[stack[j] for stack in stacks.values() if j < len(stack)] for j in range(rounds)]
    return np.array([i for g in rng.permutation(len(groups)) for i in groups[g]], dtype=np.int64)


def _move(augment: Augment | None, rng: np.random.Generator) -> tuple[int, int, int]:
    """(mirrored, pixels down, pixels right) of one clip."""
    if augment is None:
        return 0, 0, 0
    flip = augment.flip and bool(rng.random() < 0.5)
    down, right = rng.integers(-augment.crop, augment.crop, size=2, endpoint=True)
    return int(flip), int(down), int(right)


def _short(values: object) -> str:
    text = str(values)
    return text if len(text) <= 80 else f"{text[:77]}..."
