"""The worker processes that train one run together: which one this is, and how they start.

`torchrun` starts them (or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT). They communicate
through torch.distributed's store: the main process says whether the command may start, and for each run
whether it may be decoded and when its folder is there. After that, locks on the folders of the folds
(`FoldFolder.try_acquire`) decide who trains which fold; the operating system releases a lock however the
process ends. All processes must see the same disk.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from torch.distributed.rendezvous import rendezvous

from .stopping import Stopped

_TIMEOUT = timedelta(days=1)  # the main process may have to decode a dataset first
_MAIN_ENDED = "the process of rank 0 ended before it had created the run's folder: start the run again"
_STOPPED, _FAILED = "stopped ", "failed "  # how the words of the main process begin
Result = TypeVar("Result")


class Workers:
    """The processes that were started together, seen from one of them; a single process has size 1.

    rank: 0..size - 1; local_rank: its number on this machine; restarts: how often the launcher has
    restarted all of them after one ended.
    """

    def __init__(self, rank: int, size: int, local_rank: int, restarts: int) -> None:
        self.rank, self.size, self.local_rank, self.restarts = rank, size, local_rank, restarts
        self._num_rounds = 0
        if size > 1:
            self.store, _, _ = next(rendezvous("env://"))

    @property
    def is_main(self) -> bool:
        """Whether this process prints, and writes what is written once per run."""
        return self.rank == 0

    def device(self, requested: str) -> str:
        """This process's device: with "auto" and "cuda" the workers of a machine take its GPUs in turn."""
        if self.size > 1 and requested in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return requested

    def main_process_first(self, function: Callable[[bool], Result]) -> Result:
        """function(True) in the main process, then function(False) in the others; if it fails, all fail.

        Raises:
            ValueError: in the others: the message of the error in the main process.
            Stopped: in the others, if it was raised in the main process.
            OSError: the main process ended; or function(False) raised ValueError, which the rest cannot know.
        """
        if self.size == 1:
            return function(True)
        self._num_rounds += 1
        key = f"hsta_fast/{self.restarts}/{self._num_rounds}"
        if self.is_main:
            try:
                result = function(True)
            except Exception as error:
                how = _STOPPED if isinstance(error, Stopped) else _FAILED
                self.store.set(key, how + (str(error) or type(error).__name__))
                raise
            self.store.set(key, "")
            return result
        try:
            self.store.wait([key], _TIMEOUT)
            told = self.store.get(key).decode()
        except RuntimeError as error:  # the store runs in the main process
            raise OSError(_MAIN_ENDED) from error
        if told.startswith(_STOPPED):
            raise Stopped(told.removeprefix(_STOPPED))
        if told:
            raise ValueError(told.removeprefix(_FAILED))
        try:
            return function(False)
        except ValueError as error:  # `ablate` goes on after one, here it would go on alone
            raise OSError(str(error)) from error


@cache  # a second rendezvous at the same address would fail
def workers() -> Workers:
    """The workers that this process was started with."""
    size, restarts = _number("WORLD_SIZE", 1), _number("TORCHELASTIC_RESTART_COUNT", 0)
    if size == 1 or "MASTER_ADDR" not in os.environ:
        return Workers(0, 1, 0, restarts)
    rank = _number("RANK", None)
    return Workers(rank, size, _number("LOCAL_RANK", rank), restarts)


def _number(name: str, default: int | None) -> int:
    """A number from an environment variable.

    Raises:
        ValueError: it is not a number, or is not set and has no default.
    """
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ValueError(f"environment variable {name} expected a number, got {text!r}")
    return int(text)
