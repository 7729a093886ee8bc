"""One step of the optimiser: forward, loss, backward, update."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from ..model import HSTA
from .optim import Loss, UnitLoss, parameter_groups
from .step_graph import StepGraph

if TYPE_CHECKING:  # it needs the packages that read data, which a step does not
    from .config import TrainConfig


@dataclass
class TrainStep:
    """What a step trains, and with what.

    Attributes:
        model: called with the frames of its branches.
        loss: (logits (B, classes) in float32 at least, labels (B,) int64, total weight) -> ().
        optimizer: its groups have a factor "lr_scale" on the learning rate.
        scaler: scales the loss in float16; in other dtypes it does nothing.
        autocast: gives the context of the forward.
        clip_grad: largest norm of the gradient; None: no limit.
        ranks: processes that each take a share of the batch; `model` averages their gradients.
        graph: runs forward and backward of a batch that is neither shared nor split; None: they run as they
            are.
        accumulate: micro-batches of a batch. They go through the model one after the other, and the gradients
            are those of the batch (but for other draws of dropout). A batch of fewer clips has one of each.
    """

    model: nn.Module
    loss: Loss | UnitLoss
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    autocast: Callable[[], AbstractContextManager[object]]
    clip_grad: float | None = None
    accumulate: int = 1
    ranks: int = 1
    graph: StepGraph | None = None

    def forward(
        self, inputs: Mapping[str, Tensor], label: Tensor, total_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames and labels (B,) int64 -> (logits (B, classes) in the dtype of autocast, loss ()).

        total_weight: as in `Loss`, where the clips are a part of a batch.
        """
        with self.autocast():
            logits = self.model(**inputs)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, self.loss(wide, label, total_weight)

    def backward(
        self,
        inputs: Mapping[str, Tensor],
        label: Tensor,
        whole: Tensor | None = None,
        *,
        counts: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward of a batch; the parameters have its gradients, times the loss scale.

        Args:
            inputs: the frames.
            label: int64 (B,).
            whole: the labels of the whole batch, if this is the share of one of several ranks; its loss is a
                part of that of the whole batch.
            counts: False: the share has loss and gradients 0.

        Returns:
            (logits (B, classes), loss ()) of the batch, as `forward`, but without their graph.
        """
        self.optimizer.zero_grad(set_to_none=True)
        whole = label if whole is None else whole
        parts = max(1, min(self.accumulate, len(whole) // self.ranks))  # the same number on every rank
        alone = parts == self.ranks == 1
        if alone and self.graph is not None:
            return self.graph(self._backward_of_part, inputs, label)
        total_weight = None if alone else self.loss.total_weight(whole)
        if not counts:
            total_weight = torch.full_like(self.loss.total_weight(whole), torch.inf)
        split = {name: frames.tensor_split(parts) for name, frames in inputs.items()}
        done = []
        for i, label_part in enumerate(label.tensor_split(parts)):
            part = {name: frames[i] for name, frames in split.items()}
            with nullcontext() if i + 1 == parts else no_sync(self.model):
                done.append(self._backward_of_part(part, label_part, total_weight))
        return torch.cat([logits for logits, _ in done]), torch.stack([loss for _, loss in done]).sum()

    def _backward_of_part(
        self, inputs: Mapping[str, Tensor], label: Tensor, total_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(logits, loss) of a micro-batch, without their graph; adds its gradients to the parameters'."""
        logits, loss = self.forward(inputs, label, total_weight)
        self.scaler.scale(loss * self.ranks).backward()
        return logits.detach(), loss.detach()

    def update(self, lr: float) -> None:
        """One step of the optimiser with the gradients of `backward`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)  # skips a step whose gradients overflowed
        self.scaler.update()  # and then halves the scale


def no_sync(model: nn.Module) -> AbstractContextManager[object]:
    """Inside, DistributedDataParallel adds up gradients without averaging them over its processes."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def make_optimizer(model: HSTA, cfg: "TrainConfig") -> torch.optim.Optimizer:
    """AdamW in one fused kernel, with the parameter groups of `cfg`."""
    return torch.optim.AdamW(parameter_groups(model, cfg), lr=cfg.lr, betas=(0.9, 0.999), fused=True)


@contextmanager
def out_of_memory_in_words(cfg: "TrainConfig") -> Iterator[None]:
    """Raise MemoryError, with what can be done about it, where the device runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        more = {"fast": "--memory balanced or small", "balanced": "--memory small"}.get(cfg.memory)
        parts = min(2 * cfg.accumulate, cfg.batch_size)
        ways = [more, f"--accumulate {parts}" if parts > cfg.accumulate else None]
        what = " or ".join(filter(None, ways)) or "fewer --num-frames or a smaller --model"
        raise MemoryError(
            f"--batch-size {cfg.batch_size} expected a device with more memory (--accumulate "
            f"{cfg.accumulate}, --memory {cfg.memory}), got {' '.join(str(error).split())[:200]}: give {what}"
        ) from error
