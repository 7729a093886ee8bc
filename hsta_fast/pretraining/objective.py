"""Masked tube reconstruction (VideoMAE, Tong et al. 2022): what is hidden, what is to be predicted, the loss.

B batch, T frames, t and p the depth and side of a tubelet, N = (T / t) P tokens in the order (time, line,
column), P = (H / p)(W / p) positions in the image, of which M are hidden, at every time.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Target = Literal["difference", "pixels"]
_EPS = 1e-6


def tube_masks(batch: int, positions: int, ratio: float, seed: Sequence[int]) -> Tensor:
    """Which positions of the image are hidden, at every time: bool (batch, positions) on the CPU.

    Args:
        batch: B.
        positions: P, at least 2.
        ratio: the share to hide, in (0, 1). Every clip has as many hidden positions, the nearest whole
            number; at least one is hidden and one visible.
        seed: equal masks for equal numbers, on every machine.
    """
    hidden = min(max(1, round(ratio * positions)), positions - 1)
    order = np.random.default_rng(list(seed)).random((batch, positions)).argsort(axis=1, kind="stable")
    return torch.from_numpy(order < hidden)


def token_order(hidden: Tensor, times: int) -> tuple[Tensor, int]:
    """The numbers of all tokens, int64 (B, times P), ascending, first the visible ones; how many those are.

    hidden: bool (B, P), with the same number M in each row.
    """
    order = hidden.repeat(1, times).to(torch.uint8).argsort(dim=1, stable=True)
    return order, times * int((~hidden[0]).sum())


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, n) int64 of x (B, N, C) or (1, N, C): (B, n, C)."""
    return x.expand(len(rows), -1, -1).gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))


def cell_size(patch: int) -> int:
    """The side of the squares that "difference" is averaged over: the largest divisor of p up to 4."""
    return max(side for side in range(1, 5) if patch % side == 0)


def num_outputs(target: Target, depth: int, patch: int) -> int:
    """How many numbers of a token are predicted."""
    return depth * (3 * patch**2 if target == "pixels" else (patch // cell_size(patch)) ** 2)


def targets(frames: Tensor, target: Target, depth: int, patch: int) -> Tensor:
    """What is to be predicted of each token: (B, N, `num_outputs`), in float32 or float64.

    Args:
        frames: (B, 3, T, H, W), uint8, or floating on the scale 0..1. Pixels outside whole patches are no
            part of any token.
        target: "pixels": the values of a tubelet, each colour with mean 0 and variance 1 over the tubelet
            (VideoMAE). "difference": that of each frame from the first, in grey, averaged over squares of
            `cell_size` pixels, which takes out the noise of the camera; without its mean over the image,
            which is that of the light, and divided by its root mean square over the clip.
        depth: t.
        patch: p.
    """
    x = frames.float() / 255 if frames.dtype == torch.uint8 else frames
    H, W = (size - size % patch for size in x.shape[3:])
    x = x[..., :H, :W]
    if target == "pixels":
        pattern = "b c (gt t) (gh p) (gw q) -> b (gt gh gw) c (t p q)"
        patches = rearrange(x, pattern, t=depth, p=patch, q=patch)
        deviation = patches.var(3, keepdim=True).sqrt()
        return ((patches - patches.mean(3, keepdim=True)) / (deviation + _EPS)).flatten(2)
    grey = F.avg_pool2d(x.mean(1), cell_size(patch))
    moved = grey - grey[:, :1]
    moved = moved - moved.mean((2, 3), keepdim=True)
    moved = moved / (moved.square().mean((1, 2, 3), keepdim=True).sqrt() + _EPS)
    cells = patch // cell_size(patch)
    return rearrange(moved, "b (gt t) (gh p) (gw q) -> b (gt gh gw) (t p q)", t=depth, p=cells, q=cells)


def reconstruction_loss(predicted: Tensor, wanted: Tensor, num_visible: int, visible_weight: float) -> Tensor:
    """The mean squared error over the hidden tokens, plus `visible_weight` times that over the visible ones.

    predicted, wanted: (B, N, outputs), the visible tokens first.
    """
    errors = (predicted.to(wanted.dtype) - wanted).square()
    loss = errors[:, num_visible:].mean()
    return loss + visible_weight * errors[:, :num_visible].mean() if visible_weight else loss
