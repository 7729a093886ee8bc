"""torch.compile of the model that a training step calls: for which batches, and when it pays.

The compiled code belongs to the process: all folds, and all seeds, of one configuration share it.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..model import HSTA

BACKEND = "inductor"
# Seconds of training left from which `auto` compiles on a CUDA device. On an H100 and 16 cores, compiling
# hsta_base took 66 s and saved 11 % of a step of 32 frames to 25 % of one of 6 frames.
PAYS_FROM = 10 * 60.0

# The configurations that this process has compiled code of, that `auto` decided to leave as it is, and that
# could not be compiled.
_compiled_for: object = None
_declined_for: object = None
_failed_for: object = None


class CompiledModel(nn.Module):
    """Calls `model`: as it is, or, once `switch_on` was called, as one compiled graph without dynamic sizes.

    The last batch of an epoch, which has fewer clips, always runs as it is: another size would be another
    compilation, and one step of an epoch gains too little. If the model cannot be compiled, as without a C++
    compiler, a warning says so once in a process, and it runs as it is.

    Args:
        model: its state dict is the one to save: here the keys would have a prefix.
        sizes: numbers of clips B of the batches to compile for.
        configuration: equal for models that may share compiled code; compared with ==.
    """

    def __init__(self, model: HSTA, *, sizes: frozenset[int], configuration: object) -> None:
        super().__init__()
        self.model = model
        self.on = False
        self._sizes, self._configuration = sizes, (configuration, sizes)

    def forward(self, **frames: Tensor) -> Tensor:
        """As `HSTA.forward`, with every argument by name."""
        global _failed_for
        if self.on and {len(x) for x in frames.values()} <= self._sizes:
            try:
                return _compiler(BACKEND)(self.model, frames)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.on, _failed_for = False, self._configuration
                warnings.warn(f"the model is not compiled: {_reason(error)}", stacklevel=2)
        return self.model(**frames)

    def switch_on(self) -> None:
        """Compile from the next batch on; code that was compiled for another configuration is dropped."""
        global _compiled_for
        if _compiled_for != self._configuration:
            torch.compiler.reset()  # it would count towards dynamo's limit of compilations
            _compiled_for = self._configuration
        self.on = True

    def start(self, setting: str) -> None:
        """Training starts or continues; setting: "on", "off", or "auto", which keeps what is compiled."""
        if _failed_for == self._configuration:
            return  # it takes as long to fail again
        if setting == "on" or (setting == "auto" and _compiled_for == self._configuration):
            self.switch_on()

    def decide(self, setting: str, device: torch.device, seconds_left: float) -> str | None:
        """With "auto", after the first epoch, which took part in the estimate `seconds_left` of what is left.

        Returns:
            What was decided and why, in words; None if there was nothing to decide.
        """
        global _declined_for
        if setting != "auto" or device.type != "cuda" or self.on:
            return None
        if self._configuration in (_declined_for, _failed_for):
            return None
        if seconds_left >= PAYS_FROM:
            self.switch_on()
        else:
            _declined_for = self._configuration
        left, least = (f"{seconds / 60:.0f} min" for seconds in (seconds_left, PAYS_FROM))
        does = "is compiled from now on" if self.on else "is not compiled"
        return f"the model {does}: about {left} of training are left, and compiling pays from {least}"


def batch_sizes(batch_size: int, accumulate: int, ranks: int = 1) -> frozenset[int]:
    """The numbers of clips of the micro-batches of a whole batch: one, or more if they do not divide it."""
    shares = {batch_size // ranks, -(-batch_size // ranks)}
    return frozenset(size for share in shares for size in (share // accumulate, -(-share // accumulate)))


def _call(model: HSTA, frames: Mapping[str, Tensor]) -> Tensor:
    return model(**frames)


@functools.cache
def _compiler(backend: str) -> Callable[..., Any]:
    """`_call`, compiled: one function for all models, so that equal ones share the code."""
    return torch.compile(_call, fullgraph=True, dynamic=False, backend=backend)


def _reason(error: BaseException) -> str:
    """The cause of a failed compilation in one line."""
    cause = getattr(error, "inner_exception", None) or error
    lines = str(cause).strip().splitlines() or ["no message"]
    return f"{type(cause).__name__}: {lines[0]}"
