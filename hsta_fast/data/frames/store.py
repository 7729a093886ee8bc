"""Every frame that a run needs as uint8 RGB, decoded once, in parallel, and kept in a cache."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from ...clips import KEY, identity
from ...faces import ClipView, magnify
from ...faces.magnify import magnify_fingerprint
from ..clips import LEFT_OUT, ClipTable, FaultLog, fault_of
from ..duplicates import duplicate_people
from ..sampling import Sampling, needed_positions
from .cache import Cache, CachedArrays, Made, load_arrays
from .chunks import ArraySpec, digest
from .decode import by_file, content_keys, odd_size, read_files, resize_to_planes
from .views import WHOLE, Views


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames: `pixels[row]` is uint8 RGB (3, size, size), `rows` has the row of each picture.

    A picture is named by its path; where clips are shown in views of their own, by path and view: see `name`.

    `keys`: picture -> key of its content, from which the cache keys of flow are made. `views`: how the clips
    are shown.
    """

    pixels: np.ndarray | CachedArrays
    rows: dict[str, int]
    keys: dict[str, str]
    views: Views = WHOLE

    def name(self, clip: str, path: str) -> str:
        """The name of the picture that the clip `clip` (`identity`) shows of the frame at `path`."""
        return picture_name(self.views, clip, path)

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


def picture_name(views: Views, clip: str, path: str) -> str:
    """See `FrameStore.name`."""
    return f"{path} [{views.keys[clip]}]" if clip in views.keys else path


def frame_spec(size: int, shown: Mapping[str, object] | None = None) -> ArraySpec:
    """The cached arrays for frames of this size. Another OpenCV may decode a JPEG to other bytes.

    shown: the fingerprint of the views; None: frames are shown whole.
    """
    fingerprint = {**frame_fingerprint(size), "opencv": cv2.__version__, **(shown or {})}
    return ArraySpec(name="frames", fingerprint=fingerprint, shape=(3, size, size), dtype="uint8")


def load_frames(
    table: ClipTable,
    sampling: Sampling,
    size: int,
    *,
    views: Views = WHOLE,
    cache: Cache | None = None,
    strict: bool = False,
    progress: bool = True,
) -> tuple[ClipTable, FrameStore]:
    """The frames that `sampling` can ask for, resized to (size, size), which ignores the aspect ratio.

    Frames that are not in `cache` are decoded and added to it; None keeps them in memory. A clip with a frame
    that is missing, unreadable, truncated, too large, or of another size than its first one, is left out of
    the returned table and listed in its faults. So are all clips of a person who is also in the table under
    an earlier name (`duplicate_people`).

    views: how the clips are shown (`clip_views`).

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
    names = [identity(*(clip[key] for key in KEY)) for clip in clips.to_dict("records")]
    shown = {  # picture -> its frame, its clip, the clip's onset
        picture_name(views, name, path): (path, name, picture_name(views, name, frames[0]))
        for name, clip, frames in zip(names, needed, clips["frames"], strict=True)
        for path in clip
    }
    contents, sizes = _contents(table.root, shown, progress=progress)
    store, errors = _load(table.root, shown, contents, size, views, cache, progress=progress)

    log, kept = FaultLog(strict=strict), np.ones(len(clips), dtype=bool)
    of_clips: list[list[str] | None] = []
    for row, (clip, record) in enumerate(zip(needed, clips.to_dict("records"), strict=True)):
        wrong_frames = {path: errors.get(store.name(names[row], path)) for path in clip}
        broken = [path for path, what in wrong_frames.items() if what is not None]
        more = f" (and {len(broken) - 1} more of its frames)" if len(broken) > 1 else ""
        wrong = f"{broken[0]}: {wrong_frames[broken[0]]}{more}" if broken else odd_size(clip, sizes)
        of_clips.append(None if wrong else [str(contents[path]) for path in clip])
        if wrong:
            log.add(fault_of(record, wrong, LEFT_OUT))
            kept[row] = False
    for row, fault in duplicate_people(clips, of_clips):
        log.add(fault)
        kept[row] = False
    if not kept.any():
        first = f"; the first fault is: {log.faults[0]}" if log.faults else ""
        raise ValueError(
            f"{table.root}: expected a clip with readable frames, got none of {len(clips)}{first}"
        )
    left = clips[kept].reset_index(drop=True)
    return replace(table, clips=left, faults=(*table.faults, *log.faults)), store


Shown = Mapping[str, tuple[str, str, str]]


def _contents(
    root: Path, shown: Shown, *, progress: bool
) -> tuple[dict[str, str | ValueError], dict[str, tuple[int, int]]]:
    """The keys of the content of all frames, and path -> size of an image."""
    sizes: dict[str, tuple[int, int]] = {}
    paths = list(dict.fromkeys(path for path, _, _ in shown.values()))
    return content_keys(root, paths, sizes=sizes, progress=progress), sizes


def _load(
    root: Path,
    shown: Shown,
    contents: Mapping[str, str | ValueError],
    size: int,
    views: Views,
    cache: Cache | None,
    *,
    progress: bool,
) -> tuple[FrameStore, dict[str, str]]:
    """The store of all readable pictures, and picture -> message for each of the others."""
    errors: dict[str, str] = {}
    keys: dict[str, str] = {}
    for name, (path, clip, _) in shown.items():
        content = contents[path]
        if isinstance(content, ValueError):
            errors[name] = str(content)
        else:
            keys[name] = f"{content} {views.keys[clip]}" if clip in views.keys else content
    names = list(keys)
    paths = [shown[name][0] for name in names]

    def make(numbers: list[int]) -> Iterable[Made]:
        converts = [
            functools.partial(planes_of, views.of.get(shown[names[number]][1]), size) for number in numbers
        ]
        return read_files(root, [paths[number] for number in numbers], converts, contents)

    spec = frame_spec(size, views.fingerprint())
    items = load_arrays(
        spec, list(keys.values()), make, groups=by_file(paths), cache=cache, progress=progress
    )
    errors |= {names[number]: what for number, what in items.errors.items()}
    rows = {name: number for number, name in enumerate(names) if name not in errors}
    store = FrameStore(items, rows, keys, views)
    if not views.recipe.magnify:
        return store, errors
    return _magnified(store, {name: shown[name][2] for name in rows}, errors, cache, progress=progress)


def planes_of(view: ClipView | None, size: int, image: np.ndarray) -> np.ndarray:
    """The frame `image`, RGB (h, w, 3), as the model is shown it in a view: planes (3, size, size)."""
    if view is None:
        return resize_to_planes(image, size)
    return np.ascontiguousarray(view.show(image, size).transpose(2, 0, 1))


def _magnified(
    store: FrameStore,
    onsets: Mapping[str, str],
    errors: Mapping[str, str],
    cache: Cache | None,
    *,
    progress: bool,
) -> tuple[FrameStore, dict[str, str]]:
    """The store with the movement since the onset enlarged; onsets: picture -> that of its clip's onset."""
    factor = store.views.recipe.magnify
    lost = {name: errors[onset] for name, onset in onsets.items() if onset in errors}
    names = [name for name in onsets if name not in lost]
    keys = {name: digest(f"{store.keys[onsets[name]]} -> {store.keys[name]}".encode()) for name in names}

    def make(numbers: list[int]) -> Iterable[Made]:
        for name in (names[number] for number in numbers):
            now, onset = (store.pixels[store.rows[one]].transpose(1, 2, 0) for one in (name, onsets[name]))
            yield np.ascontiguousarray(magnify(now, onset, factor).transpose(2, 0, 1))

    fingerprint = {**magnify_fingerprint(factor), "opencv": cv2.__version__}
    frames = frame_fingerprint(store.size) | store.views.fingerprint()
    spec = ArraySpec(
        name="magnified",
        fingerprint={**fingerprint, "frames": frames},
        shape=(3, store.size, store.size),
        dtype="uint8",
    )
    items = load_arrays(spec, list(keys.values()), make, cache=cache, progress=progress)
    rows = {name: number for number, name in enumerate(names)}
    return FrameStore(items, rows, keys, store.views), {**errors, **lost}
