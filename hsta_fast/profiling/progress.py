"""How far a profile is, and the time left: a line on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..training.progress import duration, is_terminal

_INTERVAL = 15.0  # seconds between two lines where there is no terminal


class ProfileProgress:
    """Jobs done of those planned, by their cost in operations; the time left at the rate so far."""

    def __init__(self) -> None:
        self.planned = self.done = self.seconds = 0.0
        self._last = time.monotonic()
        self._width = 0

    @contextmanager
    def job(self, title: str, cost: float) -> Iterator[None]:
        """A job of this cost, inside the context; 0: it says nothing of the time that others take."""
        self._show(title)
        start = time.monotonic()
        yield
        if cost:
            self.seconds += time.monotonic() - start
            self.done += cost

    def text(self) -> str:
        """The time left; empty before anything is done."""
        if not self.done:
            return ""
        left = max(0.0, self.planned - self.done) * self.seconds / self.done
        return f", about {duration(left)} left"

    def _show(self, title: str) -> None:
        line = f"profile: {title}{self.text()}"
        if is_terminal():
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
        elif time.monotonic() - self._last > _INTERVAL:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the line, so that others can print."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0
