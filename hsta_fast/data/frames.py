"""Every frame that a run needs, decoded once, in parallel, as uint8 RGB, and kept in a cache."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ..files import open_plain
from .cache import Cache, Items, Made, load_items
from .chunks import Kind, digest
from .clips import KEY, LEFT_OUT, ClipTable, FaultLog, fault_of, identity, inside
from .sampling import Sampling, needed_positions
from .video import read_video, split_video

# An image that declares more is refused before decoding: 64 megapixels are 192 MB of RGB, and a file of a few
# kilobytes may declare 50,000 x 50,000, which would be 7.5 GB.
MAX_PIXELS = 64_000_000

# The next JPEG marker in entropy-coded data, where FF 00 is a byte of data and FF D0..D7 a restart.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)

_FILE = "an image or video file"
_CHANGED = "wanted a file that stays as it is, it changed while it was read"


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames: `pixels[row]` is uint8 RGB (3, size, size), `rows` the row of each path.

    `keys`: what identifies the content of each path, from which the keys of what is computed are made.
    """

    pixels: np.ndarray | Items
    rows: dict[str, int]
    keys: dict[str, str]

    @property
    def size(self) -> int:
        """Height and width of the frames in pixels."""
        return int(self.pixels.shape[-1])

    def __len__(self) -> int:
        return len(self.rows)


def frame_recipe(size: int) -> dict[str, object]:
    """All that the bytes of a frame depend on beside its file; version goes up when the code changes them."""
    how = "RGB, resized to a square, cv2.INTER_AREA where it shrinks, else cv2.INTER_LINEAR"
    return {"size": size, "interpolation": how, "version": 1}


def frame_kind(size: int) -> Kind:
    """The cache's folder for frames of this size. Another OpenCV may decode a JPEG to other bytes."""
    recipe = {**frame_recipe(size), "opencv": cv2.__version__}
    return Kind(name="frames", recipe=recipe, shape=(3, size, size), dtype="uint8")


def load_frames(
    table: ClipTable,
    sampling: Sampling,
    size: int,
    *,
    cache: Cache | None = None,
    strict: bool = False,
    progress: bool = True,
) -> tuple[ClipTable, FrameStore]:
    """The frames that `sampling` can ask for, resized to (size, size), which ignores the aspect.

    They come from `cache` where they are in it, and are decoded and put into it otherwise; None keeps them in
    memory. A clip with a frame that is missing, unreadable, truncated or too large is left out of the
    returned table and listed in its faults. So are all clips of a person of whom one has, to the byte, the
    frames of an earlier person's. With `strict` the first such clip raises ValueError.
    Raises ValueError where no clip is left.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    clips = table.clips
    needed = [
        [frames[position] for position in needed_positions(sampling, len(frames), apex - onset)]
        for frames, onset, apex in zip(clips["frames"], clips["onset"], clips["apex"], strict=True)
    ]
    paths = list(dict.fromkeys(path for clip in needed for path in clip))
    store, errors = _load(table.root, paths, size, cache, progress=progress)

    log, records = FaultLog(strict=strict), clips.to_dict("records")
    owners: dict[tuple[str, ...], Mapping[Any, Any]] = {}
    doubles: dict[tuple[str, str], tuple[Mapping[Any, Any], Mapping[Any, Any]]] = {}
    kept = np.ones(len(clips), dtype=bool)
    for position, (clip, row) in enumerate(zip(needed, records, strict=True)):
        broken = [path for path in clip if path in errors]
        if broken:
            more = f" (and {len(broken) - 1} more of its frames)" if len(broken) > 1 else ""
            what = f"{broken[0]}: {errors[broken[0]]}{more}"
            log.add(fault_of(row, what, LEFT_OUT))
            kept[position] = False
            continue
        owner = owners.setdefault(tuple(store.keys[path] for path in clip), row)
        if _person(owner) != _person(row):
            doubles.setdefault(_person(row), (row, owner))
    # One person under two names would be in training and test at once.
    for position, row in enumerate(records):
        if kept[position] and _person(row) in doubles:
            own, other = (identity(*(clip[name] for name in KEY)) for clip in doubles[_person(row)])
            what = f"one person under two names: the frames of {own} are those of {other}"
            log.add(fault_of(row, what, LEFT_OUT))
            kept[position] = False
    if not kept.any():
        first = f"; the first fault is: {log.faults[0]}" if log.faults else ""
        raise ValueError(f"{table.root}: wanted a clip with readable frames, got none of {len(clips)}{first}")
    left = clips[kept].reset_index(drop=True)
    return replace(table, clips=left, faults=(*table.faults, *log.faults)), store


def _person(clip: Mapping[Any, Any]) -> tuple[str, str]:
    return clip["dataset"], clip["subject"]


def _load(
    root: Path, paths: Sequence[str], size: int, cache: Cache | None, *, progress: bool
) -> tuple[FrameStore, dict[str, str]]:
    """The store of all readable `paths`, and path -> what is wrong with each of the others."""
    found = content_keys(root, paths, progress=progress)
    errors = {path: str(key) for path, key in found.items() if isinstance(key, ValueError)}
    keys = {path: key for path, key in found.items() if not isinstance(key, ValueError)}
    names = list(keys)

    def make(numbers: list[int]) -> Iterable[Made]:
        wanted = [names[number] for number in numbers]
        key = keys[wanted[0]].split("#")[0]
        return read_frames(root, wanted, functools.partial(fit, size=size), file_key=key)

    items = load_items(
        frame_kind(size), list(keys.values()), make, groups=by_file(names), cache=cache, progress=progress
    )
    errors |= {names[number]: what for number, what in items.errors.items()}
    rows = {name: number for number, name in enumerate(names) if name not in errors}
    return FrameStore(items, rows, keys), errors


def content_keys(root: Path, paths: Sequence[str], *, progress: bool = False) -> dict[str, str | ValueError]:
    """For each frame what identifies its content: the digest of its file, and the number in a video.

    The whole file is read. Times and sizes would be quicker and can lie: copying tools set them back, and
    some disks count them in seconds. A ValueError takes the place of the key of a file that cannot be read.
    """
    files = list(dict.fromkeys(split_video(path)[0] for path in paths))

    def key(file: str) -> str | ValueError:
        try:
            return _file_digest(inside(root, file))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(
            pool.map(key, files), "read files", len(files), unit="file", disable=not progress, leave=False
        )
        digests = dict(zip(files, bar, strict=True))
    found: dict[str, str | ValueError] = {}
    for path in paths:
        file, number = split_video(path)
        of_file = digests[file]
        found[path] = of_file if number is None or isinstance(of_file, ValueError) else f"{of_file}#{number}"
    return found


def _file_digest(path: Path) -> str:
    with open_plain(path, _FILE) as file:
        return hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=16)).hexdigest()


def read_frames(
    root: Path,
    paths: Sequence[str],
    convert: Callable[[np.ndarray], np.ndarray],
    *,
    file_key: str | None = None,
) -> list[Made]:
    """`convert` of frames of one image or video file, uint8 RGB (height, width, 3); or what is wrong with
    each.

    file_key: the digest of the file; one that is another by now is refused.
    """
    try:
        file, number = split_video(paths[0])
        path = inside(root, file)
        if number is None:
            data = _read(path)
            if file_key is not None and digest(data) != file_key:
                raise ValueError(_CHANGED)
            return [convert(decode_image(data))] * len(paths)
        numbers = [split_video(name)[1] or 0 for name in paths]
        images = read_video(path, numbers, convert, max_pixels=MAX_PIXELS)
        if file_key is not None and _file_digest(path) != file_key:
            raise ValueError(_CHANGED)
        return images
    except ValueError as error:
        return [error] * len(paths)


def by_file(paths: Sequence[str]) -> list[list[int]]:
    """The positions in `paths`, grouped by file: frames of one video are read in one pass."""
    groups: dict[str, list[int]] = {}
    for position, path in enumerate(paths):
        groups.setdefault(split_video(path)[0], []).append(position)
    return list(groups.values())


def _read(path: Path) -> bytes:
    with open_plain(path, _FILE) as file:
        size = os.fstat(file.fileno()).st_size
        if size > 4 * MAX_PIXELS:  # larger than any image that would be decoded
            raise ValueError(f"wanted an image file of at most {4 * MAX_PIXELS} bytes, got {size}")
        return file.read()


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """The RGB `image` (h, w, 3), resized, as planes (3, size, size)."""
    if image.shape[:2] != (size, size):
        shrinks = image.shape[0] >= size and image.shape[1] >= size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def read_image(path: Path) -> np.ndarray:
    """The JPEG, PNG or BMP image at `path`, uint8 RGB (height, width, 3); grey becomes three equal channels.

    Raises ValueError where it is missing, empty, truncated, damaged, of another format, or declares more than
    `MAX_PIXELS`, which is checked before decoding.
    """
    return decode_image(_read(path))


def decode_image(data: bytes) -> np.ndarray:
    """As `read_image`, from the bytes of the file."""
    width, height = _declared_size(data)
    if width * height > MAX_PIXELS:
        raise ValueError(f"wanted an image of at most {MAX_PIXELS} pixels, got {width} x {height}")
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"wanted a readable image, OpenCV says {error.err}") from error
    if image is None:
        raise ValueError(f"wanted a readable image, OpenCV cannot decode it ({len(data)} bytes)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _declared_size(data: bytes) -> tuple[int, int]:
    """(width, height) in the header of a whole JPEG, PNG or BMP file; ValueError for a truncated one.

    Decoders may fill the lost part of a truncated file with grey and report success, so its end is looked
    for here.
    """
    if not data:
        raise ValueError("wanted an image, the file is empty")
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_size(data)
        if data.startswith(b"BM"):
            return _bmp_size(data)
    except struct.error as error:
        raise ValueError(f"wanted a whole image, the file is truncated after {len(data)} bytes") from error
    raise ValueError(f"wanted a JPEG, PNG or BMP image, the file begins with {data[:4].hex(' ')}")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walks the markers to the end of the image; what follows it is ignored.

    Of several sizes that a made-up file declares, the largest: a decoder takes the first that it needs.
    """
    position, size = 2, (0, 0)
    while (marker := _JPEG_MARKER.search(data, position)) is not None:
        code, position = marker[1][0], marker.end()
        if code == 0xD9:
            return size
        if code in (0x01, 0xD8):  # markers without a length
            continue
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = max(size, (width, height), key=math.prod)
        position += struct.unpack_from(">H", data, position)[0]
    raise struct.error("no end of image")


def _png_size(data: bytes) -> tuple[int, int]:
    """Walks the chunks to the last one."""
    width, height = struct.unpack_from(">II", data, 16)
    position, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
    return width, height


def _bmp_size(data: bytes) -> tuple[int, int]:
    start, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    width, height = abs(width), abs(height)
    # The length of an uncompressed image follows from its size; a compressed one is left to the decoder.
    if compression == 0 and len(data) < start + (width * bits + 31) // 32 * 4 * height:
        raise struct.error("no end of image")
    return width, height
