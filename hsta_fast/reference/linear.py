"""A linear layer, optionally followed by exact GELU.

M rows, K columns of the input, N columns of the output.
"""

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """The product x W' + b; with `gelu` y Phi(y) of it, Phi(y) = (1 + erf(y / sqrt 2)) / 2.

    Args:
        x: (..., K).
        weight: W (N, K).
        bias: b (N,).
        gelu: apply GELU.

    Returns:
        (..., N).
    """
    y = x @ weight.transpose(0, 1)
    if bias is not None:
        y = y + bias
    return y * (1 + torch.erf(y * 0.5**0.5)) / 2 if gelu else y
