"""Decodes one image or video file to uint8 RGB, and computes the key of its content."""

import functools
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path

import cv2
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from tqdm import tqdm

from ...faces import resize
from ...files import inside, open_plain
from ...threads import thread_pool
from .chunks import digest
from .video import MAX_PIXELS, T, check_opaque, decoder_version, read_video, split_video


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Read nothing: the resolution is not needed, and Pillow warns of damaged EXIF data."""


# First bytes of a file -> Pillow's reader of its header.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8": _Jpeg,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"BM": BmpImageFile,
}
IMAGE_TYPES = (".bmp", ".jpeg", ".jpg", ".png")  # endings of file names, in lower case
_FILE = "an image or video file"
CHANGED = "expected a file that stays as it is, it changed while it was read"


def content_keys(
    root: Path,
    paths: Sequence[str],
    *,
    sizes: dict[str, tuple[int, int]] | None = None,
    progress: bool = False,
) -> dict[str, str | ValueError]:
    """Path -> key of the frame's content: the digest of its file, with frame number and decoder for a video.

    The whole file is read. Times and sizes would be quicker but are not reliable: copying tools set them
    back, and some disks count them in seconds. For a file that cannot be read the value is a ValueError.
    `sizes` gets path -> (width, height) of the images; the decoder sees to it that a video has one size.
    """
    files = list(dict.fromkeys(split_video(path)[0] for path in paths))

    def key(name: str) -> str | ValueError:
        try:
            with open_plain(inside(root, name), _FILE) as file:
                found = _digest(file)
                size = _declared_size(file) if sizes is not None else None
        except ValueError as error:
            return error
        if sizes is not None and size is not None:
            sizes[name] = size
        return found

    with thread_pool() as pool:
        bar = tqdm(
            pool.map(key, files), "read files", len(files), unit="file", disable=not progress, leave=False
        )
        digests = dict(zip(files, bar, strict=True))
    found: dict[str, str | ValueError] = {}
    for path in paths:
        file, number = split_video(path)
        of_file = digests[file]
        still = number is None or isinstance(of_file, ValueError)
        found[path] = of_file if still else f"{of_file}#{number} {decoder_version()}"
    return found


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=16)).hexdigest()


def _declared_size(file: BufferedReader) -> tuple[int, int] | None:
    """(width, height) that the header of an image declares; None for a damaged one, and for a video."""
    file.seek(0)
    reader = _reader(file.read(8))
    file.seek(0)
    try:
        return reader(file).size if reader else None
    except (SyntaxError, OSError, ValueError, OverflowError):
        return None


def read_frames(
    root: Path,
    paths: Sequence[str],
    convert: Callable[[np.ndarray], T] | Sequence[Callable[[np.ndarray], T]],
    *,
    file_key: str | None = None,
) -> list[T | ValueError]:
    """`convert` applied to frames of one image or video file, uint8 RGB (height, width, 3).

    The result has a ValueError in the place of each frame that cannot be read. convert: one for all, or one
    for each of `paths`. file_key: the expected digest of the file; a file that has changed is an error.
    """
    try:
        file, number = split_video(paths[0])
        path = inside(root, file)
        if number is None:
            data = _read(path)
            if file_key is not None and digest(data) != file_key:
                raise ValueError(CHANGED)
            image = decode_image(data)
            return [_made(image, one) for one in ([convert] * len(paths) if callable(convert) else convert)]
        numbers = [split_video(name)[1] or 0 for name in paths]
        images = read_video(path, numbers, convert)
        with open_plain(path, _FILE) as video:
            if file_key is not None and _digest(video) != file_key:
                raise ValueError(CHANGED)
        return images
    except ValueError as error:
        return [error] * len(paths)


def _made(image: np.ndarray, convert: Callable[[np.ndarray], T]) -> T | ValueError:
    try:
        return convert(image)
    except ValueError as error:
        return error


def read_files(
    root: Path,
    paths: Sequence[str],
    converts: Sequence[Callable[[np.ndarray], T]],
    keys: Mapping[str, str | ValueError] | None = None,
) -> list[T | ValueError]:
    """`read_frames` of frames of any files, each file read once; keys: `content_keys` of the paths."""
    found: dict[int, T | ValueError] = {}
    for group in by_file(paths):
        names, key = [paths[position] for position in group], keys and keys[paths[group[0]]]
        if isinstance(key, ValueError):
            found |= dict.fromkeys(group, key)
            continue
        file_key = key.split("#")[0] if key else None
        own = [converts[position] for position in group]
        found |= zip(group, read_frames(root, names, own, file_key=file_key), strict=True)
    return [found[position] for position in range(len(paths))]


def by_file(paths: Sequence[str]) -> list[list[int]]:
    """Positions in `paths`, grouped by file, so that the frames of one video are read in one pass."""
    groups: dict[str, list[int]] = {}
    for position, path in enumerate(paths):
        groups.setdefault(split_video(path)[0], []).append(position)
    return list(groups.values())


def read_image(path: Path) -> np.ndarray:
    """The image file as uint8 RGB (height, width, 3); ValueError as in `decode_image`, or it is no file."""
    return decode_image(_read(path))


def _read(path: Path) -> bytes:
    with open_plain(path, _FILE) as file:
        size = os.fstat(file.fileno()).st_size
        if size > 4 * MAX_PIXELS:  # larger than any image that would be decoded
            raise ValueError(f"expected an image file of at most {4 * MAX_PIXELS} bytes, got {size}")
        return file.read()


def resize_to_planes(image: np.ndarray, size: int) -> np.ndarray:
    """The RGB `image` (h, w, 3), resized to planes (3, size, size)."""
    return np.ascontiguousarray(resize(image, size, size).transpose(2, 0, 1))


def decode_image(data: bytes) -> np.ndarray:
    """The JPEG, PNG or BMP file in `data` as uint8 RGB (height, width, 3); grey becomes three equal channels.

    Of 16 bits the upper 8 are taken.

    Raises:
        ValueError: the file is empty, truncated, damaged, of another format, or declares more than
            `MAX_PIXELS`; each is found before decoding, except damage inside the picture. Or its pixels are
            not what people saw: some are transparent, or of 16 bits at most the lower 12 are used.
    """
    header = _header(data)
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"expected an image of at most {MAX_PIXELS} pixels, got {width} x {height}")
    pixels = np.frombuffer(data, dtype=np.uint8)
    try:
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR)
        if image is not None and isinstance(header, PngImageFile):
            deep, clear = data[24] == 16, data[25] in (4, 6) or "transparency" in header.info
            stored = cv2.imdecode(pixels, cv2.IMREAD_UNCHANGED) if deep or clear else None
            if stored is not None:
                _check_values(stored)
    except cv2.error as error:
        raise ValueError(f"expected a readable image, OpenCV says {error.err}") from error
    if image is None:
        raise ValueError(f"expected a readable image, OpenCV cannot decode it ({len(data)} bytes)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _check_values(image: np.ndarray) -> None:
    """Raise ValueError if the values of a PNG, with their depth and alpha, are not what people saw."""
    most = int(image[..., :3].max()) if image.ndim == 3 else int(image.max())
    if image.dtype == np.uint16 and most < 2**12:
        raise ValueError(
            f"expected 16-bit values over the whole range, got at most {most}: data of 12 bits or fewer "
            "would be nearly black, save them with 8 bits"
        )
    if image.ndim == 3 and image.shape[2] == 4:
        check_opaque(image[..., 3])


def odd_size(paths: Sequence[str], sizes: Mapping[str, tuple[int, int]]) -> str:
    """What is wrong with a clip whose frames differ in size: resized to one, its face would jump; else ""."""
    known = [path for path in paths if path in sizes]
    odd = [path for path in known if sizes[path] != sizes[known[0]]]
    if not odd:
        return ""
    (width, height), (first_width, first_height) = sizes[odd[0]], sizes[known[0]]
    more = f" (and {len(odd) - 1} more of its frames)" if len(odd) > 1 else ""
    return f"{odd[0]}: expected the clip's size, {first_width} x {first_height}, got {width} x {height}{more}"


def _reader(start: bytes) -> type[ImageFile] | None:
    return next((reader for magic, reader in _READERS.items() if start.startswith(magic)), None)


def _header(data: bytes) -> ImageFile:
    """The header of a whole JPEG, PNG or BMP file; ValueError for a truncated one.

    Decoders may fill the lost part of a truncated file with grey and report success, so its end is looked
    for here. Bytes after the end are ignored.
    """
    if not data:
        raise ValueError("expected an image, the file is empty")
    reader = _reader(data)
    if reader is None:
        raise ValueError(f"expected a JPEG, PNG or BMP image, the file begins with {data[:4].hex(' ')}")
    file = io.BytesIO(data)
    try:
        # Pillow reads the header alone. The format's class, because Image.open has its own limit, which comes
        # first and hides the size.
        image = reader(file)
        whole = _has_end(image, data, file.tell())
    except (SyntaxError, OSError, ValueError, OverflowError) as error:  # a header that ends or makes no sense
        what = f"its header or metadata are damaged or truncated after {len(data)} bytes"
        raise ValueError(f"expected a whole image, {what} ({error})") from error
    if not whole:
        raise ValueError(f"expected a whole image, the file is truncated after {len(data)} bytes")
    return image


def _has_end(image: ImageFile, data: bytes, position: int) -> bool:
    """Whether the file is there to its end; Pillow has read its header, up to `position`."""
    if isinstance(image, BmpImageFile):
        codec, _, start, layout = image.tile[0]
        # The length of an uncompressed image follows from its size; a compressed one is left to the decoder.
        return (
            codec != "raw" or not isinstance(layout, tuple) or len(data) >= start + layout[1] * image.height
        )
    # Searched behind the header, because a thumbnail in it has an end marker too.
    # The coded data of a JPEG have none.
    return data.rfind(b"\xff\xd9" if isinstance(image, JpegImageFile) else b"\0\0\0\0IEND", position) >= 0
