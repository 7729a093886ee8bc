"""Loss, learning rate and parameter groups of the two recipes."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import HSTA
from .config import TrainConfig


class Loss(nn.Module):
    """Cross entropy, or squared error of the raw outputs against the one-hot label (Eq. 16).

    Args:
        kind: "ce" or "mse".
        smoothing: label smoothing, in [0, 1).
        counts: training clips of each class, by whose inverse a clip's loss is weighted; None: no weights.
    """

    weight: Tensor | None

    def __init__(self, kind: str, *, smoothing: float = 0.0, counts: np.ndarray | None = None) -> None:
        super().__init__()
        self.kind, self.smoothing = kind, smoothing
        weight = None
        if counts is not None:
            weight = torch.tensor(counts.sum() / np.maximum(counts, 1) / len(counts), dtype=torch.float32)
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """(B, classes), (B,) int64 -> (): the weighted mean over the clips."""
        if self.kind == "ce":
            return F.cross_entropy(logits, label, self.weight, label_smoothing=self.smoothing)
        classes = logits.shape[1]
        target = F.one_hot(label, classes) * (1 - self.smoothing) + self.smoothing / classes
        errors = (logits - target).square().mean(1)
        if self.weight is None:
            return errors.mean()
        weight = self.weight[label]
        return (errors * weight).sum() / weight.sum()


def parameter_groups(model: HSTA, cfg: TrainConfig) -> list[dict[str, Any]]:
    """Groups of one weight decay and one learning-rate scale each, for an optimiser.

    The scale is layer_decay to the number of steps down from the head: head and last norms 0, HSTA layers
    1 to K from the top, embedding and CLS K + 1. Weight decay spares biases, norms, CLS unless `decay_all`.
    """
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    top = model.config.num_layers + 1
    for name, parameter in model.named_parameters():
        part, number = name.split(".")[:2]
        steps = (
            top if part in ("patch_embed", "cls_token") else top - 1 - int(number) if part == "blocks" else 0
        )
        decays = cfg.decay_all or (parameter.dim() > 1 and part != "cls_token")
        groups.setdefault((decays, steps), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": cfg.weight_decay if decays else 0.0,
            "lr_scale": cfg.layer_decay**steps,
        }
        for (decays, steps), parameters in groups.items()
    ]


def learning_rate(cfg: TrainConfig, epoch: float) -> float:
    """Linear warm-up, then a cosine down to min_lr at the end; `epoch` counts from 0, with its fraction."""
    if epoch < cfg.warmup_epochs:
        return cfg.warmup_lr + (cfg.lr - cfg.warmup_lr) * epoch / cfg.warmup_epochs
    share = (epoch - cfg.warmup_epochs) / max(1, cfg.epochs - cfg.warmup_epochs)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * (1 + math.cos(math.pi * share)) / 2
