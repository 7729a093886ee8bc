"""Frames in memory: every frame that a run needs, decoded once, in parallel, as uint8 RGB."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .clips import LEFT_OUT, ClipTable, Fault, FaultLog, inside
from .sampling import Sampling, needed_positions

# An image that declares more is refused before decoding: 64 megapixels are 192 MB of RGB, and a file of a few
# kilobytes may declare 50,000 x 50,000, which would be 7.5 GB.
MAX_PIXELS = 64_000_000

# The next JPEG marker in entropy-coded data, where FF 00 is a byte of data and FF D0..D7 a restart.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


@dataclass(frozen=True)
class FrameStore:
    """Decoded frames: `pixels` uint8 RGB (n, size, size, 3), and the row of each path in it."""

    pixels: np.ndarray
    rows: dict[str, int]

    @property
    def size(self) -> int:
        """Height and width of the frames in pixels."""
        return int(self.pixels.shape[1])

    def __len__(self) -> int:
        return len(self.rows)


def load_frames(
    table: ClipTable, sampling: Sampling, size: int, *, strict: bool = False, progress: bool = True
) -> tuple[ClipTable, FrameStore]:
    """Decode the frames that `sampling` can ask for, resized to (size, size), which ignores the aspect.

    A clip with a frame that is missing, unreadable, truncated or too large is left out of the returned table
    and listed in its faults; with `strict` the first such clip raises ValueError.
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
    store, errors = _decode_all(table.root, paths, size, progress=progress)

    log = FaultLog(strict=strict)
    kept = np.ones(len(clips), dtype=bool)
    for position, (clip, row) in enumerate(zip(needed, clips.to_dict("records"), strict=True)):
        broken = [path for path in clip if path in errors]
        if broken:
            more = f" (and {len(broken) - 1} more of its frames)" if len(broken) > 1 else ""
            what = f"{broken[0]}: {errors[broken[0]]}{more}"
            log.add(Fault(row["dataset"], row["subject"], row["clip"], row["onset"], what, LEFT_OUT))
            kept[position] = False
    if not kept.any():
        first = f"; the first fault is: {log.faults[0]}" if log.faults else ""
        raise ValueError(f"{table.root}: wanted a clip with readable frames, got none of {len(clips)}{first}")
    left = clips[kept].reset_index(drop=True)
    return replace(table, clips=left, faults=(*table.faults, *log.faults)), store


def _decode_all(
    root: Path, paths: Sequence[str], size: int, *, progress: bool
) -> tuple[FrameStore, dict[str, str]]:
    """The store of all readable `paths`, and path -> what is wrong with each of the others."""
    pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)

    def decode(job: tuple[int, str]) -> str | None:
        row, path = job
        try:
            _fit(read_image(inside(root, path)), pixels[row])
        except ValueError as error:
            return str(error)
        return None

    # Threads, not processes: OpenCV lets go of the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(decode, enumerate(paths))
        bar = tqdm(results, total=len(paths), desc="decode frames", unit="frame", disable=not progress)
        errors = {path: error for path, error in zip(paths, bar, strict=True) if error is not None}
    rows = {path: row for row, path in enumerate(paths) if path not in errors}
    return FrameStore(pixels, rows), errors


def _fit(image: np.ndarray, out: np.ndarray) -> None:
    """Resize the RGB `image` (h, w, 3) into `out` (size, size, 3)."""
    height, width = out.shape[:2]
    if image.shape == out.shape:
        out[:] = image
        return
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    out[:] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def read_image(path: Path) -> np.ndarray:
    """The JPEG, PNG or BMP image at `path`, uint8 RGB (height, width, 3); grey becomes three equal channels.

    Raises ValueError where it is missing, empty, truncated, damaged, of another format, or declares more than
    `MAX_PIXELS`, which is checked before decoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"wanted an image file, {error.strerror or error}") from error
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
    """Walks the markers to the end of the image; what follows it is ignored."""
    position, size = 2, (0, 0)
    while (marker := _JPEG_MARKER.search(data, position)) is not None:
        code, position = marker[1][0], marker.end()
        if code == 0xD9:
            return size
        if code in (0x01, 0xD8):  # markers without a length
            continue
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = width, height
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
