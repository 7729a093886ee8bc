"""Loss, learning rate and parameter groups of the two recipes."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import HSTA

if TYPE_CHECKING:  # it needs the packages that read data, which a step does not
    from .config import TrainConfig


# Of the clips that show an action unit: above it, F1 of rare units falls (docs/units.md).
MAX_WEIGHT = 10.0


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; training stopped before the last good checkpoint was overwritten."""


class Loss(nn.Module):
    """Cross entropy, or squared error of the raw outputs against the one-hot label (Eq. 16).

    Args:
        kind: "ce" or "mse".
        smoothing: label smoothing, in [0, 1).
        counts: the number of training clips of each class; a clip's loss is weighted by the inverse of its
            class's count. None: no weights.
    """

    weight: Tensor | None

    def __init__(self, kind: str, *, smoothing: float = 0.0, counts: np.ndarray | None = None) -> None:
        super().__init__()
        self.kind, self.smoothing = kind, smoothing
        weight = None
        if counts is not None:
            weight = torch.tensor(
                counts.sum() / np.maximum(counts, 1) / len(counts), dtype=torch.float32, device="cpu"
            )
        self.register_buffer("weight", weight)

    def total_weight(self, label: Tensor) -> Tensor:
        """(B,) int64 -> (): the sum of the clips' weights, by which a mean over the clips is divided."""
        if self.weight is None:
            return label.new_full((), len(label), dtype=torch.float32)
        return self.weight[label].sum()

    def forward(self, logits: Tensor, label: Tensor, total_weight: Tensor | None = None) -> Tensor:
        """(B, classes), (B,) int64 -> (): the weighted mean over the clips.

        total_weight: that of the whole batch, where the clips are a part of it: the losses of all parts, and
        their gradients, then add up to those of the batch. None: the clips are the batch.
        """
        if self.kind == "ce":
            smoothing = self.smoothing
            if total_weight is None:
                return F.cross_entropy(logits, label, self.weight, label_smoothing=smoothing)
            summed = F.cross_entropy(logits, label, self.weight, reduction="sum", label_smoothing=smoothing)
            return summed / total_weight
        classes = logits.shape[1]
        target = F.one_hot(label, classes) * (1 - self.smoothing) + self.smoothing / classes
        errors = (logits - target).square().mean(1)
        if self.weight is None:
            return errors.mean() if total_weight is None else errors.sum() / total_weight
        total_weight = self.total_weight(label) if total_weight is None else total_weight
        return (errors * self.weight[label]).sum() / total_weight


class UnitLoss(nn.Module):
    """Binary cross entropy of each action unit, the mean over clips and units.

    Args:
        weights: (units,), the weight of clips that show a unit (`positive_weights`); that of others is 1.
        smoothing: label smoothing, in [0, 1): the target is 1 - smoothing / 2, or smoothing / 2.
    """

    weight: Tensor

    def __init__(self, weights: np.ndarray, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weight", torch.tensor(weights, dtype=torch.float32, device="cpu"))

    def total_weight(self, label: Tensor) -> Tensor:
        """(B, units) int64 -> (): the number of clips, by which a mean over the clips is divided."""
        return label.new_full((), len(label), dtype=torch.float32)

    def forward(self, logits: Tensor, label: Tensor, total_weight: Tensor | None = None) -> Tensor:
        """(B, units), (B, units) int64 -> (); for `total_weight` see `Loss`."""
        target = label.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
        of_units = F.binary_cross_entropy_with_logits(
            logits, target, pos_weight=self.weight.to(logits.dtype), reduction="none"
        )
        errors = of_units.mean(1)
        return errors.mean() if total_weight is None else errors.sum() / total_weight


def positive_weights(targets: np.ndarray, times_shown: np.ndarray) -> np.ndarray:
    """The weight of the clips that show each unit, (units,): negatives / positives, at most `MAX_WEIGHT`.

    targets: (clips, units), 1 where a clip shows a unit; times_shown: (clips,), how often an epoch shows it.
    """
    positives = (times_shown[:, None] * targets).sum(0)
    negatives = times_shown.sum() - positives
    return np.minimum(negatives / np.maximum(positives, 1e-9), MAX_WEIGHT)


def decisions(logits: Tensor, label: Tensor) -> Tensor:
    """(B, classes) -> the class of each clip, int64 (B,); of action units 1 for those predicted, (B, units).

    label: the labels, (B,) or, of action units, (B, units).
    """
    return logits.argmax(1) if label.dim() == 1 else (logits >= 0).long()


def share_right(logits: Tensor, label: Tensor) -> Tensor:
    """(B, classes) -> (B,): 1 for a clip of the right class; of action units the share that is right."""
    right = (decisions(logits, label) == label).float()
    return right if label.dim() == 1 else right.mean(1)


def check_finite(loss: float, where: str, checkpoint: Path) -> None:
    """Raise NonFiniteLossError if the loss is NaN or infinite, and say which checkpoint is left."""
    if not math.isfinite(loss):
        exists = checkpoint.exists()
        kept = f"the last good checkpoint is {checkpoint}" if exists else "there is no checkpoint yet"
        raise NonFiniteLossError(f"{where}: loss expected a finite number, got {loss}; {kept}")


def freeze(model: HSTA, layers: int) -> None:
    """Let patch embeddings, CLS and the first `layers` HSTA layers keep their values; 0: none of them."""
    if layers:
        for part in (model.patch_embed, model.cls_token, *model.blocks[:layers]):
            part.requires_grad_(False)


def parameter_groups(model: HSTA, cfg: "TrainConfig") -> list[dict[str, Any]]:
    """The parameters that are trained, in groups with the same weight decay and learning-rate scale.

    The scale is layer_decay to the power of the depth below the head: head and last norms 0, HSTA layers 1 to
    K from the top, embedding and CLS K + 1. Biases, norms and CLS have no weight decay unless `decay_all`.
    """
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    deepest = model.config.num_layers + 1
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, number = name.split(".")[:2]
        if part in ("patch_embed", "cls_token"):
            depth = deepest
        else:
            depth = deepest - 1 - int(number) if part == "blocks" else 0
        decays = cfg.decay_all or (parameter.dim() > 1 and part != "cls_token")
        groups.setdefault((decays, depth), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": cfg.weight_decay if decays else 0.0,
            "lr_scale": cfg.layer_decay**depth,
        }
        for (decays, depth), parameters in groups.items()
    ]


def learning_rate(cfg: "TrainConfig", epoch: float) -> float:
    """Linear warm-up, then a cosine down to min_lr; `epoch` is fractional and counts from 0."""
    if epoch < cfg.warmup_epochs:
        return cfg.warmup_lr + (cfg.lr - cfg.warmup_lr) * epoch / cfg.warmup_epochs
    share = (epoch - cfg.warmup_epochs) / max(1, cfg.epochs - cfg.warmup_epochs)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * (1 + math.cos(math.pi * share)) / 2
