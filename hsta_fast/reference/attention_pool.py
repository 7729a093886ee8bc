"""Attention pooling: a few queries, each a softmax-weighted mean of the (normalised) tokens.

B batch, N tokens, C width, R queries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_pool(
    query: Tensor,
    tokens: Tensor,
    *,
    extra: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """sum_j softmax_j(query . z_j) z_j, with z the layer-normed tokens (no affine) or the tokens themselves.

    Args:
        query: (B, R, C). There is no scale: fold it into the query.
        tokens: (B, N, C).
        extra: (B, C), one more row, standing before the tokens; or None.
        normalize: whether z_j is token j normalised to mean 0 and variance 1 over C.
        eps: added to the variance.
        return_weights: also return the softmax weights, for looking at; they carry no gradient.

    Returns:
        pooled (B, R, C); or (pooled, weights), weights (B, R, N), or (B, R, 1 + N) with the extra row first.
    """
    rows = tokens if extra is None else torch.cat([extra.unsqueeze(1), tokens], dim=1)
    z = F.layer_norm(rows, rows.shape[-1:], eps=eps) if normalize else rows
    weights = (query @ z.transpose(1, 2)).softmax(-1)
    pooled = weights @ z
    return (pooled, weights.detach()) if return_weights else pooled
