"""A small set of clips in memory and its batches, for tests with and without a CUDA device."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsta_fast.data.clips import ClipTable, clip_frame
from hsta_fast.data.dataset import ClipData
from hsta_fast.data.frames.cache import CachedArrays
from hsta_fast.data.frames.store import FrameStore
from hsta_fast.data.loading import Batch
from hsta_fast.data.sampling import Sampling

LENGTH, SIZE = 12, 10


def data_of(labels: list[int], sampling: Sampling, size: int = SIZE, length: int = LENGTH) -> ClipData:
    """Clips of random pictures; frame k of clip i lies in the store at row i * length + k. Flow too."""
    rows = [
        {
            "dataset": "casme3",
            "subject": f"s{i % 3}",
            "clip": str(i),
            "onset": 100 + i,
            "apex": 100 + i + 5,
            "apex_annotated": True,
            "offset": 100 + i + length - 1,
            "frames": tuple(f"{i}/{k}.jpg" for k in range(length)),
            "expression": "micro",
            "emotion": "sad",
            "action_units": "4",
            "objective_class": 3,
        }
        for i in range(len(labels))
    ]
    table = ClipTable(Path("."), clip_frame(rows).assign(label=np.array(labels, dtype=np.int64)))
    shape = (len(labels) * length, 3, size, size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    paths = [path for frames in table.clips["frames"] for path in frames]
    store = FrameStore(pixels, {path: row for row, path in enumerate(paths)}, {path: path for path in paths})
    if sampling.flow is None:
        return ClipData(table, store, sampling)
    values = np.random.default_rng(1).normal(size=(2 * len(labels), 3, size, size)).astype(np.float32)
    places = [(0, item) for item in range(len(values))]
    return ClipData(table, store, sampling, CachedArrays([values], [False], places, {}, values.shape[1:]))


TENSORS = [field.name for field in dataclasses.fields(Batch) if field.name != "counts"]


def everything(batches: list[Batch]) -> Batch:
    joined: dict[str, Any] = {
        name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS
    }
    return Batch(**joined)


def same(left: list[Batch], right: list[Batch]) -> bool:
    one, other = everything(left), everything(right)
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


def epoch(data: ClipData, indices: list[int] | None = None, **arguments: Any) -> list[Batch]:
    settings: dict[str, Any] = {"batch_size": 4, "seed": (1, 2), "train": True, **arguments}
    return list(data.batches(range(len(data)) if indices is None else indices, **settings))
