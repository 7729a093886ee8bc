"""Batches of clips from decoded frames.

All randomness comes from the given seed, so a resumed run repeats an uninterrupted one. It is drawn before
any frame is read, so it is the same on the CPU and on a CUDA device (see `loading`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np
import torch

from ..clips import KEY, identity, subject_ids
from ..faces import Framing, framing_of
from . import loading
from .clips import ClipTable
from .frames.cache import CachedArrays
from .frames.store import FrameStore
from .labels.units import rarest_unit, unit_targets
from .loading import Batch, BatchPlan
from .sampling import Sampling, special_positions, video_positions

FRAMED = 50  # onset frames in which the face is looked for
Balance = Literal["matched", "even", "weighted", "none"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes in training, the same for all frames of a clip.

    flip: mirror left and right with probability 1/2.
    crop: shift by up to this many pixels in each direction; the edge pixels are repeated.
    """

    flip: bool = True
    crop: int = 4

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop expected at least 0 pixels, got {self.crop}")


def steps(num_clips: int, batch_size: int) -> int:
    """The number of batches in one pass over `num_clips` clips; the last batch may be smaller."""
    return -(-num_clips // batch_size)


class ClipData:
    """The clips of a labelled table as batches.

    `labels` int64 (n,) and `subjects` str (n,), "dataset/subject", are in the table's order. Of action units,
    which `units` then names, labels are int64 (n, units), 1 where a clip shows a unit. `flow` is given if the
    sampling has optical flow: `flow[2*i + k]` is flow k of clip i (see `flow_pairs`).
    """

    def __init__(
        self,
        table: ClipTable,
        store: FrameStore,
        sampling: Sampling,
        flow: CachedArrays | None = None,
        units: Sequence[str] = (),
    ) -> None:
        clips = table.clips
        if "label" not in clips:
            raise ValueError("table expected a column 'label' (see apply_labels), got none")
        if (flow is None) != (sampling.flow is None):
            needed, given = ("none", "some") if sampling.flow is None else ("arrays", "none")
            raise ValueError(f"flow expected {needed} for a sampling with flow {sampling.flow}, got {given}")
        self.table = table
        self.store = store
        self.sampling = sampling
        self.flow = flow
        self.labels: np.ndarray = (
            unit_targets(clips["label"], units) if units else clips["label"].to_numpy(dtype=np.int64)
        )
        # The same subject name in another dataset is another person.
        self.subjects: np.ndarray = subject_ids(clips).to_numpy(dtype=str)

        self._names: list[str] = []
        self._rows: list[np.ndarray] = []  # each clip's rows in the store, -1 for a frame that is not there
        self._special = np.empty((len(clips), 2), dtype=np.int64)  # positions in the clip
        for i, clip in enumerate(clips.to_dict("records")):
            frames = clip["frames"]
            name = identity(*(clip[key] for key in KEY))
            self._names.append(name)
            self._rows.append(
                np.array([store.rows.get(store.name(name, path), -1) for path in frames], dtype=np.int64)
            )
            self._special[i] = special_positions(sampling, len(frames), clip["apex"] - clip["onset"])

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int, position: int) -> np.ndarray | None:
        """The frame at a position of a clip as it is shown, uint8 (3, H, W); None if it is not decoded."""
        row = self._rows[index][position]
        return None if row < 0 else np.asarray(self.store.pixels[row])

    @cached_property
    def framing(self) -> Framing | None:
        """Where the face lies in the onset frames as they are shown; None: not known (see `framing_of`)."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(FRAMED, len(self))).round().astype(int))
        onsets = (self.picture(row, 0) for row in rows.tolist())
        return framing_of(
            np.ascontiguousarray(planes.transpose(1, 2, 0)) for planes in onsets if planes is not None
        )

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
        share: tuple[int, int] = (0, 1),
        first: int = 0,
    ) -> Iterator[Batch]:
        """One pass over the clips at `indices` (rows of the table): as many clips as there are indices.

        Args:
            indices: rows of the table.
            batch_size: clips in a batch; the last batch may be smaller.
            seed: any number of non-negative integers, such as (seed, fold, epoch).
            train: True shows the clips in random order, with `augment` and `balance`. False shows each clip
                once, in the given order, and ignores `augment` and `balance`; random video frames then depend
                on `seed` and the clip alone, not on the other clips.
            augment: random changes; None for none.
            balance: "even" shows every class about equally often, the clips of a class in shuffled passes;
                "matched" also puts clips of one subject and different classes next to each other; "weighted"
                draws with replacement and weight 1 / (clips of the class); "none" shows each clip once. Of
                action units, a clip's class is its rarest one (`rarest_unit`).
            device: on CUDA a thread loads the batches in advance; their bytes are the same as on the CPU.
            share: (rank, size): of each batch, the clips of one of `size` processes (see `BatchPlan.share`),
                as they are in the whole batch.
            first: leave out this many batches.

        Raises:
            ValueError: an argument is out of range, or a frame that is needed is not in the frame store.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.ndim != 1 or len(rows) == 0 or rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(
                f"indices expected one or more rows in 0..{len(self) - 1}, got {_short(indices)}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size expected a positive integer, got {batch_size}")
        if any(number < 0 for number in seed):
            raise ValueError(f"seed expected non-negative integers, got {tuple(seed)}")
        plans = self._plans(rows, batch_size, list(seed), train, augment if train else None, balance)
        plans = islice(plans, first, None)
        if share != (0, 1):
            plans = (plan.share(*share) for plan in plans)
        where = torch.device(device)
        if where.type == "cuda":
            return loading.prefetch_on_cuda(self, plans, where)
        return (loading.on_cpu(self, plan) for plan in plans)

    def _plans(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: list[int],
        train: bool,
        augment: Augment | None,
        balance: Balance,
    ) -> Iterator[BatchPlan]:
        """Everything that is random about each batch."""
        rng = np.random.default_rng(seed)
        order = rows
        if train:
            order = epoch_order(rows, self.labels[rows], self.subjects[rows], balance, rng)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            frames = np.stack([self._frames_of(i, rng if train else self._clip_rng(i, seed)) for i in chosen])
            yield BatchPlan(chosen, frames, np.array([_random_move(augment, rng) for _ in chosen]))

    def test_positions(self, index: int, seed: Sequence[int]) -> np.ndarray:
        """The positions in a clip of the video frames that `batches` shows with train=False; int64 (T,)."""
        return video_positions(self.sampling, len(self._rows[index]), self._clip_rng(index, list(seed)))

    def _clip_rng(self, index: int, seed: list[int]) -> np.random.Generator:
        return np.random.default_rng([*seed, zlib.crc32(self._names[index].encode())])

    def _frames_of(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Rows in the store of a clip's T video frames and 2 special frames, (T + 2,)."""
        rows = self._rows[index]
        video = video_positions(self.sampling, len(rows), rng)
        # With flow there are no special frames to show; position 0, the onset, is always in the store.
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
    """The order of `indices` (n,) in a training epoch; `labels` and `subjects` are their classes and people.

    See `ClipData.batches` for `balance`; labels (n, units) are those of action units.
    """
    n, labels = len(indices), classes_of(labels)
    if balance == "none":
        return rng.permutation(indices)
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if balance == "weighted":
        weight = 1.0 / counts[members]
        return rng.choice(indices, size=n, p=weight / weight.sum())
    if balance not in ("even", "matched"):
        raise ValueError(f"balance expected 'matched', 'even', 'weighted' or 'none', got {balance!r}")
    # n // classes of each class, and one more of some classes, which change from epoch to epoch.
    quotas = np.full(len(classes), n // len(classes))
    quotas[rng.permutation(len(classes))[: n % len(classes)]] += 1
    shown: list[int] = []  # positions in `indices`
    for number, quota in enumerate(quotas):
        own = np.flatnonzero(members == number)
        passes = [rng.permutation(own) for _ in range(steps(quota, len(own)))]
        shown.extend(np.concatenate(passes)[:quota] if passes else [])
    order = rng.permutation(np.array(shown, dtype=np.int64))
    return indices[_side_by_side(order, members, subjects, rng) if balance == "matched" else order]


def classes_of(labels: np.ndarray) -> np.ndarray:
    """Labels as one class a clip, int64 (n,): of action units, (n, units), the `rarest_unit`."""
    return labels if labels.ndim == 1 else rarest_unit(labels)


def times_shown(labels: np.ndarray, balance: str) -> np.ndarray:
    """How often an epoch shows each clip on average, float64 (n,); see `ClipData.batches` for `balance`."""
    _, members, counts = np.unique(classes_of(labels), return_inverse=True, return_counts=True)
    if balance == "none":
        return np.ones(len(labels))
    return len(labels) / len(counts) / counts[members]


def _side_by_side(
    order: np.ndarray, classes: np.ndarray, subjects: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Reorder positions: group clips of one subject and different classes; the groups in random order."""
    waiting: dict[str, dict[int, list[int]]] = {}
    for i in order.tolist():
        waiting.setdefault(subjects[i], {}).setdefault(classes[i], []).append(i)
    groups = []
    for stacks in waiting.values():
        rounds = max(len(stack) for stack in stacks.values())
        groups += [[stack[j] for stack in stacks.values() if j < len(stack)] for j in range(rounds)]
    return np.array([i for g in rng.permutation(len(groups)) for i in groups[g]], dtype=np.int64)


def _random_move(augment: Augment | None, rng: np.random.Generator) -> tuple[int, int, int]:
    """(mirrored, pixels down, pixels right) of one clip."""
    if augment is None:
        return 0, 0, 0
    flip = augment.flip and bool(rng.random() < 0.5)
    down, right = rng.integers(-augment.crop, augment.crop, size=2, endpoint=True)
    return int(flip), int(down), int(right)


def _short(values: object) -> str:
    text = str(values)
    return text if len(text) <= 80 else f"{text[:77]}..."
