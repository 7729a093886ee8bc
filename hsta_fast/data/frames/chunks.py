"""The files of the cache: a line, a header in json, and some arrays of one kind from the next page on.

The line says how long the header is and has its digest; the header has the recipe's digest, and a key and a
check sum for each array.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

FORMAT = 1
_PAGE = 4096  # where the arrays begin in a chunk: a multiple of it, for the memory map


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Arrays of one sort. `recipe`: plain values, everything that their bytes depend on beside the key."""

    name: str
    recipe: dict[str, Any]
    shape: tuple[int, ...]
    dtype: str

    @property
    def digest(self) -> str:
        """Identifies the recipe, 16 hexadecimal digits."""
        text = json.dumps([FORMAT, self.recipe, self.shape, self.dtype], sort_keys=True)
        return digest(text.encode())[:16]

    @property
    def bytes_each(self) -> int:
        """Bytes of one array."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def digest(data: bytes) -> str:
    """The key of some bytes: 128 bits of BLAKE2b, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def chunk_head(kind: Kind, keys: list[str], part: np.ndarray) -> tuple[bytes, str]:
    """All that stands before the arrays `part` (n, *shape) of these keys, and the name of their file."""
    header = {"recipe": kind.digest, "keys": keys, "sums": [zlib.crc32(array) for array in part]}
    text = json.dumps(header).encode()
    start = f"hsta-fast cache {digest(text)} {len(text)}\n".encode() + text
    return start + b"\0" * (-len(start) % _PAGE), f"{digest(text)}.chunk"


def open_chunk(path: Path, kind: Kind, wanted: set[str]) -> tuple[np.ndarray, dict[str, int]]:
    """A chunk's arrays (n, *shape), mapped read-only, and the row of each wanted key in it.

    Raises:
        ValueError: header or a wanted array is not what was written, or the file is no chunk of this kind.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        words = file.readline(200).split()
        if len(words) != 4 or words[:2] != [b"hsta-fast", b"cache"] or not words[3].isdigit():
            raise ValueError("it does not begin as a chunk does")
        text = file.read(min(int(words[3]), size))
        if digest(text).encode() != words[2]:
            raise ValueError("its header is damaged")
        recipe, keys, sums = _read_header(text)
        if recipe != kind.digest:
            raise ValueError("it belongs to another recipe")
        begin = file.tell() + -file.tell() % _PAGE
        if size != begin + len(keys) * kind.bytes_each:
            raise ValueError("its length is wrong")
        part = map_arrays(file, kind, begin, len(keys))
    rows = {key: row for row, key in enumerate(keys) if key in wanted}
    for key, row in rows.items():
        if zlib.crc32(part[row]) != sums[row]:
            raise ValueError(f"array {row} ({key}) is damaged")
    return part, rows


def _read_header(text: bytes) -> tuple[str, list[str], list[int]]:
    """Recipe, keys and check sums; ValueError where they are not such."""
    try:
        header = json.loads(text)
        recipe, keys, sums = header["recipe"], header["keys"], header["sums"]
        whole = isinstance(recipe, str) and all(isinstance(key, str) for key in keys)
        whole = whole and all(isinstance(number, int) for number in sums)
        if whole and len(set(keys)) == len(keys) == len(sums) > 0:
            return recipe, keys, sums
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError("its header is none of this format")


def map_arrays(file: BinaryIO, kind: Kind, begin: int, count: int) -> np.ndarray:
    """The arrays (count, *shape) that begin at byte `begin` of a file, mapped read-only.

    The file may be closed then, where Python's own maps keep it open: a large cache has more chunks than a
    process may have open files. Raises OSError where it cannot be mapped.
    """
    size = begin + count * kind.bytes_each
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot be mapped: {os.strerror(code)}")
    whole = (ctypes.c_ubyte * size).from_address(address)
    # Not at the interpreter's end: other threads may still read.
    weakref.finalize(whole, _libc.munmap, address, size).atexit = False
    part = np.frombuffer(memoryview(whole), kind.dtype, offset=begin).reshape(count, *kind.shape)
    part.flags.writeable = False
    return part


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value
