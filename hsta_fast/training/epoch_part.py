"""The part of an epoch that is trained, from which a training that was stopped goes on."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import stopping
from .distributed import Team


@dataclass
class EpochPart:
    """The part of an epoch that is trained.

    totals: this process's summed loss and number of correct predictions, (2,) on the CPU. draws: the states
    of torch's random generators of each rank, after the last step.
    """

    steps: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(2, device="cpu"))
    seconds: float = 0.0
    draws: list[list[Tensor]] = field(default_factory=list)

    def begin(self, team: Team, device: torch.device) -> Tensor:
        """Restore this rank's random draws after the steps done; returns its totals, on the device."""
        if team.rank < len(self.draws):
            set_draws(self.draws[team.rank], device)
        return self.totals.to(device)


def part_if_stopped(steps: int, totals: Tensor, seconds: float, team: Team) -> EpochPart | None:
    """The part that is trained, if SIGUSR1 asked any rank to stop; `totals`: (2,), this rank's."""
    if not team.any(stopping.asked()):
        return None
    return EpochPart(steps, team.sum(totals).cpu(), seconds, team.gather(draws(totals.device)))


def draws(device: torch.device) -> list[Tensor]:
    """The states of the random generators that training draws from: the CPU's, and that of a CUDA device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_draws(states: list[Tensor], device: torch.device) -> None:
    """The inverse of `draws`; a training that goes on on another kind of device draws anew."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
