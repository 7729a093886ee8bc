"""One image or video file decoded to uint8 RGB, and the key of its content."""

import functools
import hashlib
import math
import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ...files import inside, open_plain
from .cache import Made
from .chunks import digest
from .video import read_video, split_video

# An image that declares more is refused before decoding: 64 megapixels are 192 MB of RGB, and a file of a few
# kilobytes may declare 50,000 x 50,000, which would be 7.5 GB.
MAX_PIXELS = 64_000_000
# The next JPEG marker in entropy-coded data, where FF 00 is a byte of data and FF D0..D7 a restart.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_FILE = "an image or video file"
_CHANGED = "wanted a file that stays as it is, it changed while it was read"


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


def resize_to_planes(image: np.ndarray, size: int) -> np.ndarray:
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
