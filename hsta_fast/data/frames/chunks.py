"""The files of the cache. One line, a JSON header, then arrays of one shape and dtype from the next page on.

The line has the length and the digest of the header. The header has the digest of the fingerprint, and the
key and the checksum of each array.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT = 1
_PAGE = 4096  # the arrays of a chunk begin at a multiple of it, so that they are aligned


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """What the arrays of one cache folder are.

    `fingerprint`: plain values, everything except the key that the bytes of an array depend on.
    """

    name: str
    fingerprint: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str

    @property
    def digest(self) -> str:
        """Identifies format, fingerprint, shape and dtype; 16 hexadecimal digits."""
        text = json.dumps([FORMAT, self.fingerprint, self.shape, self.dtype], sort_keys=True)
        return digest(text.encode())[:16]

    @property
    def bytes_each(self) -> int:
        """Bytes of one array."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def digest(data: bytes) -> str:
    """The key of some bytes: 128 bits of BLAKE2b, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def chunk_head(spec: ArraySpec, keys: list[str], part: np.ndarray) -> tuple[bytes, str]:
    """Everything in front of the arrays `part` (n, *shape) with these keys, and the name of their file."""
    header = {"recipe": spec.digest, "keys": keys, "sums": [zlib.crc32(array) for array in part]}
    text = json.dumps(header).encode()
    start = f"hsta-fast cache {digest(text)} {len(text)}\n".encode() + text
    return start + b"\0" * (-len(start) % _PAGE), f"{digest(text)}.chunk"


def open_chunk(path: Path, spec: ArraySpec, wanted: set[str]) -> tuple[np.ndarray, dict[str, int]]:
    """A chunk's arrays (n, *shape), mapped read-only, and the row of each wanted key in it.

    Raises:
        ValueError: the header or a wanted array is not what was written, or the file is no chunk of `spec`.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        words = file.readline(200).split()
        if len(words) != 4 or words[:2] != [b"hsta-fast", b"cache"] or not words[3].isdigit():
            raise ValueError("it does not begin as a chunk does")
        text = file.read(min(int(words[3]), size))
        begin = file.tell() + -file.tell() % _PAGE
    if digest(text).encode() != words[2]:
        raise ValueError("its header is damaged")
    fingerprint, keys, sums = _read_header(text)
    if fingerprint != spec.digest:
        raise ValueError("it has another fingerprint")
    if size != begin + len(keys) * spec.bytes_each:
        raise ValueError("its length is wrong")
    part = map_arrays(path, spec, begin, len(keys))
    rows = {key: row for row, key in enumerate(keys) if key in wanted}
    for key, row in rows.items():
        if zlib.crc32(part[row]) != sums[row]:
            raise ValueError(f"array {row} ({key}) is damaged")
    return part, rows


def _read_header(text: bytes) -> tuple[str, list[str], list[int]]:
    """The fingerprint's digest, the keys and the checksums; ValueError for any other content."""
    try:
        header = json.loads(text)
        fingerprint, keys, sums = header["recipe"], header["keys"], header["sums"]
        valid = isinstance(fingerprint, str) and all(isinstance(key, str) for key in keys)
        valid = valid and all(isinstance(number, int) for number in sums)
        if valid and len(set(keys)) == len(keys) == len(sums) > 0:
            return fingerprint, keys, sums
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError("its header is not of this format")


def map_arrays(path: Path, spec: ArraySpec, begin: int, count: int) -> np.ndarray:
    """The arrays (count, *shape) that begin at byte `begin` of a file, mapped read-only.

    The map is private, so nothing can write to the file through it; under a limit on a process's data
    (RLIMIT_DATA) or without overcommit the system counts it as memory that could be written. It holds no file
    open, unlike `np.memmap`: a large cache has more chunks than a process may have open files.

    Raises:
        OSError: the file cannot be mapped.
    """
    size = begin + count * spec.bytes_each
    try:
        with path.open("rb") as file:  # torch takes names in UTF-8 only, and paths may be others
            name = f"/dev/fd/{file.fileno()}"
            whole = torch.from_file(name, shared=False, size=size, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:  # torch ends its message with the system's error number
        code = re.search(r"\(([0-9]+)\)\s*$", str(error))
        raise OSError(int(code[1]) if code else 0, f"cannot be mapped: {error}") from error
    part = whole.numpy()[begin:].view(spec.dtype).reshape(count, *spec.shape)
    part.flags.writeable = False
    return part
