"""Standard output and error on which no command fails, whatever the letter, the disk or the reader.

A training may run for days. Its results are files, so that what it prints cannot be written must not end it.
"""

import io
import os
import select
import sys
from typing import Any, TextIO


class _Console(io.FileIO):
    """A file descriptor to write to; drops what cannot be written, and keeps the first reason in `error`."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a pipe that is full and does not block
                select.select([], [self], [])
            return written
        except OSError as error:
            self.error = self.error or error
            return len(data)


def use_utf8() -> None:
    """Start this command again in Python's UTF-8 mode if file names would be read in another encoding.

    Names on disk are UTF-8. In a locale such as C or Latin-1 those with other letters than ASCII would not be
    found, and their clips would be left out.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            os.environ.setdefault("PYTHONIOENCODING", stream.encoding)  # that of the terminal stays
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def protect() -> None:
    r"""Replace sys.stdout and sys.stderr of this process by streams that never raise.

    A letter that the stream's encoding lacks is written as in Python, \xe9 or \u4e2d. A stream that was
    closed when the process started becomes the null device. So does its descriptor: the next file to be
    opened would get it, and whatever a library prints would end up in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, this one
    sys.stdout = _protected(sys.stdout, 1)
    sys.stderr = _protected(sys.stderr, 2)


def lost() -> OSError | None:
    """Why a part of the standard output could not be written; None if nothing was lost."""
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", None)
    if not isinstance(raw, _Console):
        return None
    sys.stdout.flush()
    return raw.error


def _protected(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # it was closed
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", None), _Console):
        return stream
    try:
        number = stream.fileno()
    except OSError:  # in memory
        number = -1
    stream.flush()
    if number != descriptor:
        stream.reconfigure(errors="backslashreplace")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Console(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )
