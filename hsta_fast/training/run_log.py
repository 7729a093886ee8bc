"""The log of a run, run.log: one line for each event, from all workers, with its time."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

NAME = "run.log"


class RunLog:
    """Appends lines to run.log in the folder of a run; nothing that goes wrong here ends the run.

    Lines are kept in memory until the folder is there (`open`).

    Args:
        worker: the name of this process on each line; "" if it is the only one.
    """

    def __init__(self, worker: str = "") -> None:
        self._worker = worker
        self._path: Path | None = None
        self._waiting: list[bytes] = []

    def open(self, folder: Path) -> None:
        """Write to the log in `folder` from now on, first the lines so far."""
        self._path = folder / NAME
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self._append(line)

    def event(self, text: str) -> None:
        """Append one line: the time in UTC, the worker, and `text` with its line breaks as spaces."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        words = [now, self._worker, *text.split()]
        self._append((" ".join(filter(None, words)) + "\n").encode(errors="backslashreplace"))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, warnings become lines too, and so does the error that ends the run, Ctrl-C included."""
        before = warnings.showwarning

        def show(message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
            self.event(f"warning: {category.__name__}: {message}")
            before(message, category, *args, **kwargs)

        warnings.showwarning = show
        try:
            yield
        except BaseException as error:
            self.event(f"ended by {describe_error(error)}")
            raise
        finally:
            warnings.showwarning = before

    def _append(self, line: bytes) -> None:
        if self._path is None:
            self._waiting.append(line)
            return
        with suppress(OSError):  # a full disk; what matters is written elsewhere, with an error
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(file, line)  # in one call, so that the lines of several workers do not mix
            finally:
                os.close(file)


def describe_error(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
