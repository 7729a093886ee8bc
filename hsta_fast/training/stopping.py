"""SIGUSR1, by which a batch system says that time is nearly up: save, and end so that the job is requeued."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ..interrupt import IF_BEGUN

SAVED = "saved: --resume or --join continues the run"


class Stopped(Exception):  # noqa: N818, it is no error
    """The process was asked to end by SIGUSR1: when, and how to go on. All that is trained is saved."""


class _Request:
    asked = False
    deferred = False


def _handle(number: int, frame: object) -> None:
    _Request.asked = True
    if not _Request.deferred:
        raise Stopped(f"SIGUSR1; {IF_BEGUN}")


def listen() -> None:
    """Let SIGUSR1 raise `Stopped` from now on, or, inside `deferred`, be told by `asked`."""
    if hasattr(signal, "SIGUSR1"):  # Windows has none
        signal.signal(signal.SIGUSR1, _handle)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, SIGUSR1 raises nothing: who trains asks for it where it can save."""
    before, _Request.deferred = _Request.deferred, True
    try:
        yield
    finally:
        _Request.deferred = before


def asked() -> bool:
    """Whether SIGUSR1 has come."""
    return _Request.asked
