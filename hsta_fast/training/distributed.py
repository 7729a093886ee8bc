"""One fold trained by several processes together: torch's DistributedDataParallel, or FSDP2.

The processes that torchrun starts are the ranks of one team. All draw the same batches, and each computes on
its share of every batch (`BatchPlan.share`); the gradients are those of the whole batch. The main process
alone opens the run, takes folds, and writes; the others follow it. Files on disk are those of a single
process, whole tensors under their usual names, so any number of processes can continue a fold.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from ..layers import USTA
from ..model import HSTA
from ..wrappers import unwrap
from .run_folder import FoldFolder
from .workers import workers

Distribute = Literal["folds", "ddp", "fsdp"]
Result = TypeVar("Result")

_WAITING = timedelta(days=1)  # for the main process, which may be waiting for a fold or writing a report
_ENDED = "another process of this run ended, so this one cannot go on; --resume continues the run"


class Team:
    """The ranks that train a fold together, seen from one of them; by default a process alone.

    Args:
        kind: "ddp" or "fsdp"; anything else in a team of one.
        rank: 0..size - 1; the main process has 0.
        size: the number of ranks.
        talk: the group for what is exchanged on the CPU.
    """

    def __init__(
        self, kind: Distribute = "folds", rank: int = 0, size: int = 1, talk: dist.ProcessGroup | None = None
    ) -> None:
        self.kind, self.rank, self.size, self._talk = kind, rank, size, talk

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """(rank, size), as `ClipData.batches` expects it."""
        return self.rank, self.size

    def wrap(self, model: HSTA, called: nn.Module) -> nn.Module:
        """What a step calls instead of `called`, which calls `model`; FSDP2 shards the parameters."""
        if self.size == 1:
            return called
        device = next(model.parameters()).device
        if self.kind == "ddp":
            return DistributedDataParallel(called, gradient_as_bucket_view=True)
        from torch.distributed.fsdp import fully_shard  # importing it takes most of a second

        mesh = init_device_mesh(device.type, (self.size,))
        for module in [module for module in model.modules() if isinstance(module, USTA)]:
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return called

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is true on any rank."""
        if self.size == 1:
            return here
        flag = torch.tensor(int(here), device="cpu")
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._talk)
        return bool(flag)

    def gather(self, value: Result) -> list[Result]:
        """The values of all ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._talk)
        return values

    def joined(self, batches: list[Tensor]) -> Tensor:
        """The rows of all batches, of which each rank has its shares: (clips, ...)."""
        if self.size == 1:
            return torch.cat(batches)
        shares = self.gather([batch.cpu() for batch in batches])
        rows = [share for batch in zip(*shares, strict=True) for share in batch]
        return torch.cat(rows).to(batches[0].device)

    def from_main(self, function: Callable[[], Result]) -> Result:
        """What `function` returns in the main process, which alone calls it."""
        if self.size == 1:
            return function()
        told: list[Any] = [function() if self.is_main else None]
        dist.broadcast_object_list(told, 0, group=self._talk, device=torch.device("cpu"))
        return cast(Result, told[0])

    def load_weights(self, model: HSTA, weights: dict[str, Tensor]) -> None:
        """Load a whole state dict, which every rank has."""
        ours = dict(model.named_parameters())
        model.load_state_dict({name: _like(value, ours[name]) for name, value in weights.items()})

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimiser's state dict with whole tensors."""
        return cast("dict[str, Any]", tree_map(_whole, optimizer.state_dict()))

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """The inverse of `optimizer_state`."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sharded = {
            number: {name: _like(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict(state | {"state": sharded})

    def whole(self, model: HSTA) -> HSTA:
        """The trained model without shards."""
        if self.size == 1 or self.kind == "ddp":
            return model
        with torch.device("meta"):
            plain = HSTA(model.config)
        plain.load_state_dict(unwrap(model)[1], assign=True)
        return plain

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Inside, an error ends the whole team: the command of this rank, and then, in words, the others.

        Raises:
            OSError: another rank has ended; or a ValueError or MemoryError of this one, which the others
                cannot know, so that `ablate` may not go on to its next row.
        """
        if self.size == 1:
            yield
            return
        try:
            with _end_in_words():
                yield
        except (ValueError, MemoryError) as error:
            raise OSError(str(error)) from error


ALONE = Team()


def team(kind: Distribute, device: torch.device, dtype: torch.dtype) -> Team:
    """The team of the processes that torchrun started; this one alone where they train folds of their own.

    Raises:
        ValueError: more processes than GPUs, or float16 with FSDP2, where each rank would scale its own loss.
        OSError: another process has ended.
    """
    group = workers()
    if kind == "folds" or group.size == 1:
        return ALONE
    if kind == "fsdp" and dtype == torch.float16:
        raise ValueError("--dtype expected bfloat16 or float32 with --distribute fsdp, got float16")
    return _joined_team(kind, device)


@cache  # a second process group at the same address would fail
def _joined_team(kind: Distribute, device: torch.device) -> Team:
    group = workers()
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        here = max(group.local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 0)))
        if here > gpus:
            got = f"{here} processes for the {gpus} of this machine"
            raise ValueError(f"--distribute {kind} expected a GPU for each process, got {got}")
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = PrefixStore(f"hsta_fast/team/{group.restarts}", group.store)
    with _end_in_words():
        dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.size)
        talk = dist.new_group(backend="gloo", timeout=_WAITING)
    return Team(kind, group.rank, group.size, talk)


class FollowedFold(FoldFolder):
    """The folder of a fold in a rank that follows the main process: nothing is read or written."""

    def __init__(self) -> None:
        super().__init__(Path())

    def inner(self, number: int) -> "FollowedFold":
        """That of an inner fold."""
        return self

    def save_state(self, state: dict[str, Any]) -> None:
        """The main process saves."""

    def truncate_metrics(self, epoch: int) -> None:
        """The main process does."""

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """The main process does."""


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def _like(value: Any, parameter: Any) -> Any:
    """`value` in shards if `parameter` is, and has its shape."""
    if not hasattr(parameter, "full_tensor") or not hasattr(value, "shape") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


@contextmanager
def _end_in_words() -> Iterator[None]:
    """Raise OSError, one clear line, where torch reports that another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or _of_connection(str(error)):
            raise OSError(_ENDED) from error
        raise


def _of_connection(message: str) -> bool:
    """Whether torch reports, without a type of its own, that it lost the connection to another process."""
    return "gloo" in message or "Connection" in message or "NCCL" in message
