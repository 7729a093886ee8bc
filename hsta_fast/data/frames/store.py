"""Every frame that a run needs as uint8 RGB, decoded once, in parallel, and kept in a cache."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from ..clips import LEFT_OUT, ClipTable, FaultLog, fault_of
from ..duplicates import duplicate_people
from ..sampling import Sampling, needed_positions
from .cache import Cache, CachedArrays, Made, load_arrays
from .chunks import ArraySpec
from .decode import by_file, content_keys, odd_size, read_frames, resize_to_planes


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames: `pixels[row]` is uint8 RGB (3, size, size), `rows` has the row of each path.

    `keys`: path -> key of its content, from which the cache keys of flow are made.
    """

    pixels: np.ndarray | CachedArrays
    rows: dict[str, int]
    keys: dict[str, str]

    @property
    def size(self) -> int:
        """Height and width of the frames in pixels."""
        return int(self.pixels.shape[-1])

    def __len__(self) -> int:
        return len(self.rows)


def frame_fingerprint(size: int) -> dict[str, object]:
    """Everything that a frame's bytes depend on besides its file.

    Raise `version` whenever a change of the code changes the bytes.
    """
    how = "RGB, resized to a square, cv2.INTER_AREA where it shrinks, else cv2.INTER_LINEAR"
    return {"size": size, "interpolation": how, "version": 1}


def frame_spec(size: int) -> ArraySpec:
    """The cached arrays for frames of this size. Another OpenCV may decode a JPEG to other bytes."""
    fingerprint = {**frame_fingerprint(size), "opencv": cv2.__version__}
    return ArraySpec(name="frames", fingerprint=fingerprint, shape=(3, size, size), dtype="uint8")


def load_frames(
    table: ClipTable,
    sampling: Sampling,
    size: int,
    *,
    cache: Cache | None = None,
    strict: bool = False,
    progress: bool = True,
) -> tuple[ClipTable, FrameStore]:
    """The frames that `sampling` can ask for, resized to (size, size), which ignores the aspect ratio.

    Frames that are not in `cache` are decoded and added to it; None keeps them in memory. A clip with a frame
    that is missing, unreadable, truncated, too large, or of another size than its first one, is left out of
    the returned table and listed in its faults. So are all clips of a person who is also in the table under
    an earlier name (`duplicate_people`).

    Raises:
        ValueError: no clip is left; or, if `strict`, a clip would be left out.
    """
    if size < 1:
        raise ValueError(f"size expected at least 1 pixel, got {size}")
    clips = table.clips
    needed = [
        [frames[position] for position in needed_positions(sampling, len(frames), apex - onset)]
        for frames, onset, apex in zip(clips["frames"], clips["onset"], clips["apex"], strict=True)
    ]
    paths = list(dict.fromkeys(path for clip in needed for path in clip))
    store, errors, sizes = _load(table.root, paths, size, cache, progress=progress)

    log, kept = FaultLog(strict=strict), np.ones(len(clips), dtype=bool)
    contents: list[list[str] | None] = []
    for row, (clip, record) in enumerate(zip(needed, clips.to_dict("records"), strict=True)):
        broken = [path for path in clip if path in errors]
        more = f" (and {len(broken) - 1} more of its frames)" if len(broken) > 1 else ""
        wrong = f"{broken[0]}: {errors[broken[0]]}{more}" if broken else odd_size(clip, sizes)
        contents.append(None if wrong else [store.keys[path] for path in clip])
        if wrong:
            log.add(fault_of(record, wrong, LEFT_OUT))
            kept[row] = False
    for row, fault in duplicate_people(clips, contents):
        log.add(fault)
        kept[row] = False
    if not kept.any():
        first = f"; the first fault is: {log.faults[0]}" if log.faults else ""
        raise ValueError(
            f"{table.root}: expected a clip with readable frames, got none of {len(clips)}{first}"
        )
    left = clips[kept].reset_index(drop=True)
    return replace(table, clips=left, faults=(*table.faults, *log.faults)), store


def _load(
    root: Path, paths: Sequence[str], size: int, cache: Cache | None, *, progress: bool
) -> tuple[FrameStore, dict[str, str], dict[str, tuple[int, int]]]:
    """The store of all readable `paths`, path -> message for each of the others, path -> size of an image."""
    sizes: dict[str, tuple[int, int]] = {}
    found = content_keys(root, paths, sizes=sizes, progress=progress)
    errors = {path: str(key) for path, key in found.items() if isinstance(key, ValueError)}
    keys = {path: key for path, key in found.items() if not isinstance(key, ValueError)}
    names = list(keys)

    def make(numbers: list[int]) -> Iterable[Made]:
        wanted = [names[number] for number in numbers]
        key = keys[wanted[0]].split("#")[0]
        return read_frames(root, wanted, functools.partial(resize_to_planes, size=size), file_key=key)

    items = load_arrays(
        frame_spec(size), list(keys.values()), make, groups=by_file(names), cache=cache, progress=progress
    )
    errors |= {names[number]: what for number, what in items.errors.items()}
    rows = {name: number for number, name in enumerate(names) if name not in errors}
    return FrameStore(items, rows, keys), errors, sizes
