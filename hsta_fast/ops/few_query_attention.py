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
from .checks import autocast_dtype, check, check_floating, check_same, check_shape, no_autocast, unexpected

__all__ = ["auto_choice", "few_query_attention", "pays"]

# Queries of all heads together, up to which it pays: every 16 of them read the tokens once.
_MOST_QUERIES = 64


def pays(queries: int, num_heads: int, tokens: int) -> bool:
    """Whether `few_query_attention` is known to be faster than keys and values of all tokens."""
    return queries * num_heads <= _MOST_QUERIES and tokens > 4 * queries


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
    wide = accumulation_dtype(q_weight.dtype)
    if tokens.is_cuda and autocast is None:
        wide = q_weight.dtype
    with no_autocast(tokens):
        # reshape, not unflatten: torch.compile cannot trace that under a default device.
        E, R = q_weight.shape[0], query.shape[1]
        D = E // num_heads
        scale = D**-0.5 if scale is None else scale
        q = F.linear(query.to(wide), q_weight.to(wide), None if q_bias is None else q_bias.to(wide)) * scale
        k_heads = k_weight.to(wide).view(num_heads, D, C)
        v_heads = v_weight.to(wide).view(num_heads, -1, C)
        absorbed = torch.einsum("brhd,hdc->brhc", q.reshape(-1, R, num_heads, D), k_heads)
        absorbed = absorbed.reshape(-1, R * num_heads, C).to(tokens.dtype)
        pooled = cast(Tensor, attention_pool(absorbed, tokens, normalize=False, impl=chosen)).to(wide)
        values = torch.einsum("brhc,hdc->brhd", pooled.view(B, R, num_heads, C), v_heads).flatten(2)
        if v_bias is not None:
            values = values + v_bias.to(wide)
        if k_bias is not None:  # a sum over none of its elements: its gradient is zeros instead of None
            values = values + k_bias[:0].sum()
    return values.to(q_weight.dtype if autocast is None or wide == torch.float64 else autocast)
