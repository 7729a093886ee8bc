"""One step of the optimiser: forward, loss, backward, update."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ..model import HSTA
from .config import TrainConfig
from .optim import parameter_groups


@dataclass
class TrainStep:
    """What a step trains, and with what.

    Attributes:
        model: called with the frames of its branches.
        loss: (logits (B, classes) in float32, labels (B,) int64) -> ().
        optimizer: its groups have a factor "lr_scale" on the learning rate.
        scaler: scales the loss in float16; in other dtypes it does nothing.
        autocast: gives the context of the forward.
        clip_grad: largest norm of the gradient; None: no limit.
    """

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    autocast: Callable[[], AbstractContextManager[object]]
    clip_grad: float | None = None

    def forward(self, inputs: Mapping[str, Tensor], label: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and labels (B,) int64 -> (logits (B, classes) in the dtype of autocast, loss ())."""
        with self.autocast():
            logits = self.model(**inputs)
        return logits, self.loss(logits.float(), label)

    def update(self, loss: Tensor, lr: float) -> None:
        """The backward, and one step of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)  # skips a step whose gradients overflowed
        self.scaler.update()  # and then halves the scale


def make_optimizer(model: HSTA, cfg: TrainConfig) -> torch.optim.Optimizer:
    """AdamW in one fused kernel, with the parameter groups of `cfg`."""
    return torch.optim.AdamW(parameter_groups(model, cfg), lr=cfg.lr, betas=(0.9, 0.999), fused=True)
