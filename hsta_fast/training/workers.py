"""Several processes that train one run: who they are and how they start together.

Started by `torchrun` (or by anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT), the processes
meet through torch.distributed's store once a run, when the lead has made the run's folder. Folds are then
shared by locks on their folders (`run.FoldFolder.take`), which the system gives back however a process ends.
All see one disk.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
from torch.distributed.rendezvous import rendezvous

_PATIENCE = timedelta(days=1)  # the lead may first decode a data set
_LEAD_GONE = "the process of rank 0 ended before it had made the run's folder; --resume continues"
Made = TypeVar("Made")


class Team:
    """The processes started together; a process alone is a team of one.

    rank: 0..size - 1; local_rank: the same among those of this machine; restarts: how often the launcher has
    started the whole team again after a death.
    """

    def __init__(self, rank: int, size: int, local_rank: int, restarts: int) -> None:
        self.rank, self.size, self.local_rank, self.restarts = rank, size, local_rank, restarts
        self._meetings = 0
        if size > 1:
            self._store, _, _ = next(rendezvous("env://"))

    @property
    def leads(self) -> bool:
        """Whether this process speaks for the team and makes what is made once."""
        return self.rank == 0

    def device(self, wish: str) -> str:
        """The device of this process: the workers on a machine go around its GPUs with "auto" and "cuda"."""
        if self.size > 1 and wish in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return wish

    def lead_first(self, make: Callable[[bool], Made]) -> Made:
        """make(True) in the lead, then make(False) in the others; all fail where the lead does.

        Raises:
            ValueError: in the others, what the lead raised.
        """
        if self.size == 1:
            return make(True)
        self._meetings += 1
        key = f"hsta_fast/{self.restarts}/{self._meetings}"
        if self.leads:
            try:
                made = make(True)
            except Exception as error:
                self._store.set(key, str(error) or type(error).__name__)
                raise
            self._store.set(key, "")
            return made
        try:
            self._store.wait([key], _PATIENCE)
            error_of_lead = self._store.get(key).decode()
        except RuntimeError as error:  # of the store, whose host is gone
            raise OSError(_LEAD_GONE) from error
        if error_of_lead:
            raise ValueError(error_of_lead)
        return make(False)


@cache  # the processes can meet at one address once
def team() -> Team:
    """The team that this process was started in."""
    size, restarts = _number("WORLD_SIZE", 1), _number("TORCHELASTIC_RESTART_COUNT", 0)
    if size == 1 or "MASTER_ADDR" not in os.environ:
        return Team(0, 1, 0, restarts)
    rank = _number("RANK", None)
    return Team(rank, size, _number("LOCAL_RANK", rank), restarts)


def _number(name: str, default: int | None) -> int:
    """A number of the environment; ValueError where it is none, or is not there and has to be."""
    word = os.environ.get(name, "" if default is None else str(default))
    if not word.isdecimal():
        raise ValueError(f"{name} in the environment must be a number, got {word!r}")
    return int(word)
