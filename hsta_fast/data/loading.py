"""Builds batches from the frame and flow stores, on the CPU or in advance on a CUDA device.

Frames are stored as planes, so an unshifted frame is three plain copies. Mirroring and shifting only move
bytes, so the CPU and the device give the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from ..threads import prefetch
from .frames.cache import CachedArrays
from .frames.store import FrameStore


@dataclass(frozen=True, eq=False)
class Batch:
    """video uint8 (B, 3, T, H, W), special (B, 3, 2, H, W), label int64 (B,) or, of action units,
    (B, units), index int64 (B,).

    special is uint8 frames or, with optical flow, float32. `index` is the clip's row in the table. Frames
    are RGB; all tensors are contiguous. Of a share of a batch (see `BatchPlan.share`), `whole` are the labels
    of the whole batch; `counts` is False if the share has no clip but another rank's.
    """

    video: Tensor
    special: Tensor
    label: Tensor
    index: Tensor
    whole: Tensor
    counts: bool = True


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Everything that is random about a batch.

    chosen: int64 (B,), rows of the table. frames: int64 (B, T + 2), rows of the store. moves: int64 (B, 3),
    mirrored (0 or 1), pixels down, pixels right. whole: `chosen` of the batch of which this is a share.
    """

    chosen: np.ndarray
    frames: np.ndarray
    moves: np.ndarray
    whole: np.ndarray | None = None
    counts: bool = True

    def share(self, rank: int, size: int) -> BatchPlan:
        """The clips of rank `rank` of `size`: the same number for each, and one more for the first ranks.

        A rank without a clip gets the first one, which does not count: it has to take part in the step.
        """
        rows = np.array_split(np.arange(len(self.chosen)), size)[rank]
        counts = len(rows) > 0
        rows = rows if counts else np.zeros(1, dtype=np.int64)
        return BatchPlan(self.chosen[rows], self.frames[rows], self.moves[rows], self.chosen, counts)


class Source(Protocol):
    """The data that batches are made of; `ClipData` is one."""

    store: FrameStore
    flow: CachedArrays | None
    labels: np.ndarray


def on_cpu(source: Source, plan: BatchPlan) -> Batch:
    """The batch that `plan` describes, on the CPU."""
    batch = _empty(source, plan, pinned=False)
    _fill(source, plan, batch, plan.moves)
    return batch


def prefetch_on_cuda(
    source: Source, plans: Iterator[BatchPlan], device: torch.device, depth: int = 2
) -> Iterator[Batch]:
    """The batches of the plans on a CUDA device, made up to `depth` batches in advance by a thread.

    The thread copies frames into pinned memory; its own stream copies them to the device, mirrors and shifts
    them. The stream that uses a batch waits for that batch only.
    """
    stream = _stream(device)

    def load() -> Iterator[tuple[Batch, torch.cuda.Event]]:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            for plan in plans:
                batch = _empty(source, plan, pinned=True)
                _fill(source, plan, batch, np.zeros_like(plan.moves))
                video, special, label, index, whole = (
                    tensor.to(device, non_blocking=True) for tensor in _tensors(batch)
                )
                there = Batch(video, special, label, index, whole, batch.counts)
                if plan.moves.any():
                    moves = torch.from_numpy(plan.moves).pin_memory().to(device, non_blocking=True)
                    video, special = shift_and_flip(there.video, there.special, moves)
                    there = replace(there, video=video, special=special)
                ready = torch.cuda.Event()
                ready.record(stream)
                yield there, ready

    for batch, ready in prefetch(load(), depth):
        current = torch.cuda.current_stream(device)
        current.wait_event(ready)
        for tensor in _tensors(batch):
            tensor.record_stream(current)  # its memory is not reused before this stream is done with it
        yield batch


@functools.cache  # the allocator has separate memory for each stream, so a new stream each pass would add up
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def shift_and_flip(video: Tensor, special: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Shift clips (B, 3, T, H, W) by `moves` (B, 3, see `BatchPlan`), edges repeated, then mirror them.

    Works on any device. Mirroring flow (float) also changes the sign of its first channel, the movement to
    the right.
    """
    flip, down, right = moves.unbind(1)
    height, width = video.shape[-2:]
    lines = (torch.arange(height, device=moves.device) - down[:, None]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=moves.device) - right[:, None]).clamp(0, width - 1)  # (B, W)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    places = (lines[:, :, None] * width + columns[:, None, :]).flatten(1)  # (B, H W)
    out = []
    for clips in (video, special):
        planes = clips.flatten(1, 2).flatten(2)  # (B, 3 T, H W)
        out.append(planes.gather(2, places[:, None].expand(-1, planes.shape[1], -1)).view(clips.shape))
    if special.is_floating_point():
        out[1][:, 0] *= 1 - 2 * flip[:, None, None, None]
    return out[0], out[1]


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return batch.video, batch.special, batch.label, batch.index, batch.whole


def _empty(source: Source, plan: BatchPlan, *, pinned: bool) -> Batch:
    """A batch with labels and indices, and uninitialised video and special."""
    count, num, size = len(plan.chosen), plan.frames.shape[1] - 2, source.store.size
    special = torch.uint8 if source.flow is None else torch.float32
    label, index = torch.from_numpy(source.labels[plan.chosen]), torch.from_numpy(plan.chosen.copy())
    whole = torch.from_numpy(source.labels[plan.chosen if plan.whole is None else plan.whole])
    return Batch(
        _empty_tensor((count, 3, num, size, size), torch.uint8, pinned=pinned),
        _empty_tensor((count, 3, 2, size, size), special, pinned=pinned),
        label.pin_memory() if pinned else label,
        index.pin_memory() if pinned else index,
        whole.pin_memory() if pinned else whole,
        plan.counts,
    )


def _empty_tensor(shape: tuple[int, ...], dtype: torch.dtype, *, pinned: bool) -> Tensor:
    if pinned:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
    # numpy asks for huge pages; with small ones, copying would take twice as long.
    return torch.from_numpy(np.empty(shape, "uint8" if dtype == torch.uint8 else "float32"))


def _fill(source: Source, plan: BatchPlan, batch: Batch, moves: np.ndarray) -> None:
    """Copy the frames and flows of a plan into the batch, moved by `moves` (B, 3)."""
    video, special = batch.video.numpy(), batch.special.numpy()
    pixels, flow = source.store.pixels, source.flow
    num = video.shape[2]
    for i, (clip, rows) in enumerate(zip(plan.chosen, plan.frames.tolist(), strict=True)):
        _place([pixels[row] for row in rows[:num]], video[i], moves[i])
        if flow is None:
            _place([pixels[row] for row in rows[num:]], special[i], moves[i])
        else:
            _place([flow[2 * clip], flow[2 * clip + 1]], special[i], moves[i])
            if moves[i, 0]:
                np.negative(special[i, 0], out=special[i, 0])


def _place(planes: Sequence[np.ndarray], out: np.ndarray, move: np.ndarray) -> None:
    """Write frames (3, H, W) into `out` (3, T, H, W): shifted down and right, edges repeated, mirrored."""
    height, width = out.shape[-2:]
    flip, down, right = move.tolist()
    if flip:
        right = -right  # shifted first, then mirrored in place
    down, right = max(1 - height, min(height - 1, down)), max(1 - width, min(width - 1, right))
    # Copy each plane as one flat slice; wrapped pixels land in the border, overwritten below.
    whole, offset = height * width, down * width + right
    to, start = slice(max(offset, 0), whole + min(offset, 0)), slice(max(-offset, 0), whole - max(offset, 0))
    flat = out.reshape(3, len(planes), whole)
    for t, frame in enumerate(planes):
        flat[:, t, to] = frame.reshape(3, whole)[:, start]
    if down > 0:
        out[:, :, :down] = out[:, :, down : down + 1]
    elif down < 0:
        out[:, :, down:] = out[:, :, down - 1 : down]
    lines = out.reshape(-1, width)
    # Column by column: copying the few bytes at the end of each line separately would be slow.
    for column in range(right) if right > 0 else range(width + right, width):
        lines[:, column] = lines[:, right if right > 0 else width + right - 1]
    if flip:
        cv2.flip(lines, 1, lines)
