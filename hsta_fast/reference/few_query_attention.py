"""Attention of a few queries over many tokens, with the projections of queries, keys and values.

B batch, R queries, N tokens, C width of the tokens, H heads, D head width, E = H D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def few_query_attention(
    query: Tensor,
    tokens: Tensor,
    *,
    q_weight: Tensor,
    q_bias: Tensor | None = None,
    k_weight: Tensor,
    k_bias: Tensor | None = None,
    v_weight: Tensor,
    v_bias: Tensor | None = None,
    num_heads: int,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q k') v per head, with q = Wq query, k = Wk tokens, v = Wv tokens.

    Args:
        query: (B, R, Q); or (1, R, Q), the same queries for every sample.
        tokens: (B, N, C).
        q_weight: (E, Q).
        q_bias: (E,) or None.
        k_weight: (E, C).
        k_bias: (E,) or None.
        v_weight: (F, C).
        v_bias: (F,) or None.
        num_heads: H, a divisor of E and F.
        scale: factor of the scores; (E / H) ** -0.5 when None.

    Returns:
        (B, R, F): before an output projection.
    """
    q = F.linear(query, q_weight, q_bias).expand(len(tokens), -1, -1)
    rows = {"q": q, "k": F.linear(tokens, k_weight, k_bias), "v": F.linear(tokens, v_weight, v_bias)}
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in rows.values())
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = (q @ k.transpose(2, 3) * scale).softmax(-1)
    return torch.flatten((weights @ v).transpose(1, 2), 2)
