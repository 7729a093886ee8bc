"""few_query_attention, rewritten to compute no keys and no values. The specification is in `reference`.

For one query q of head h, and tokens x_j:

    q . (W_k x_j + b_k)_h = (W_k,h' q) . x_j + a constant, which cancels in the softmax
    sum_j p_j (W_v x_j + b_v)_h = W_v,h (sum_j p_j x_j) + b_v,h, because the weights p_j sum to 1

so `attention_pool` with R H queries of width C does the work on the tokens; the rest are small products.
Keys and values would take 4 N C E operations per sample; this takes 4 R H N C, and R C (E + F) twice.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_pool import attention_pool, auto_choice, choose
from .attention_pool_torch import accumulation_dtype
from .checks import (
    autocast_dtype,
    check,
    check_floating,
    check_same,
    check_shape,
    no_autocast,
    short,
    unexpected,
)

__all__ = ["auto_choice", "few_query_attention"]


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
    impl: str = "auto",
) -> Tensor:
    """softmax(scale q k') v per head, with q = Wq query, k = Wk tokens, v = Wv tokens, without k and v.

    Args:
        query: (B, R, Q); or (1, R, Q), the same queries for every sample, which are then projected once.
        tokens: (B, N, C), N >= 1.
        q_weight: (E, Q).
        q_bias: (E,) or None.
        k_weight: (E, C).
        k_bias: (E,) or None; it cancels in the softmax, so its gradient is zero.
        v_weight: (F, C).
        v_bias: (F,) or None.
        num_heads: H, a divisor of E and F.
        scale: factor of the scores; (E / H) ** -0.5 when None.
        impl: implementation of the pooling, as in `attention_pool`.

    Returns:
        (B, R, F): before an output projection, in the dtype of the weights, or under autocast in its dtype.
        The tokens are not cast.

    Raises:
        ValueError: shapes, dtypes or devices that do not match, an unknown `impl`, or one that cannot run.
        BuildError: impl="extension", and it cannot be built or loaded.
    """
    check_shape("tokens", tokens, (None, None, None), "(B, N, C)")
    B, _, C = tokens.shape
    check_shape("query", query, (None, None, None), "(B, R, Q)")
    check(query.shape[0] in (1, B), "query", f"a batch of {B} or 1", query.shape[0])
    check_shape("q_weight", q_weight, (None, query.shape[2]), "(E, Q)")
    check_shape("k_weight", k_weight, (q_weight.shape[0], C), "(E, C)")
    check_shape("v_weight", v_weight, (None, C), "(F, C)")
    widths = q_weight.shape[0], v_weight.shape[0]
    if type(num_heads) is not int or num_heads <= 0 or any(width % num_heads for width in widths):
        raise unexpected("num_heads", f"a divisor of the widths {widths}", repr(num_heads))
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
        raise unexpected("scale", "a number or None", short(scale))
    tensors = {"query": query, "tokens": tokens}
    tensors |= {"q_weight": q_weight, "k_weight": k_weight, "v_weight": v_weight}
    for name, bias, weight in (
        ("q_bias", q_bias, q_weight),
        ("k_bias", k_bias, k_weight),
        ("v_bias", v_bias, v_weight),
    ):
        if bias is not None:
            check_shape(name, bias, (weight.shape[0],), f"({'F' if name == 'v_bias' else 'E'},)")
            tensors[name] = bias
    autocast = autocast_dtype(tokens)
    if autocast is None:
        check_same(tensors)
    else:
        check_floating(tensors)
    chosen = choose(impl, tokens)
    # As in cls_cross_attention: products in float32 at least, but for a model in 16 bits on a GPU.
    dtype = q_weight.dtype
    wide = dtype if tokens.is_cuda and autocast is None else accumulation_dtype(dtype)
    with no_autocast(tokens):
        E, R = q_weight.shape[0], query.shape[1]
        D = E // num_heads
        q_weight, k_weight, v_weight = (w.to(wide) for w in (q_weight, k_weight, v_weight))
        q = F.linear(query.to(wide), q_weight, None if q_bias is None else q_bias.to(wide))
        # Batched products, one per head: (H, B R, D) (H, D, C), and (H, B R, C) (H, C, F / H).
        by_head = q.view(len(query) * R, num_heads, D).transpose(0, 1)
        none = q.new_empty(())  # beta = 0 leaves it out
        absorbed = torch.baddbmm(
            none, by_head, k_weight.view(num_heads, D, C), beta=0, alpha=D**-0.5 if scale is None else scale
        )
        absorbed = absorbed.transpose(0, 1).reshape(len(query), R * num_heads, C).to(tokens.dtype)
        pooled = cast(Tensor, attention_pool(absorbed, tokens, normalize=False, impl=chosen)).to(wide)
        by_head = pooled.view(B * R, num_heads, C).transpose(0, 1)
        v_heads = v_weight.view(num_heads, widths[1] // num_heads, C).transpose(1, 2)
        if v_bias is None:
            values = by_head @ v_heads
        else:
            values = torch.baddbmm(v_bias.to(wide).view(num_heads, 1, -1), by_head, v_heads)
        values = values.transpose(0, 1).reshape(B, R, widths[1])
        if k_bias is not None and k_bias.requires_grad:
            values = values + k_bias[:0].sum()  # of no elements: its gradient is zeros instead of None
    return values.to(dtype if autocast is None or wide == torch.float64 else autocast)
