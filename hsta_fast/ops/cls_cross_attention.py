"""cls_cross_attention, rewritten to read the tokens once. The specification is in `reference`.

With normed rows y_j = g * z_j + b (g, b: affine of the norm) and one query q_h per head, for head h

    q_h . (W_k y_j + b_k)_h = (g * W_k,h' q_h) . z_j + a constant, which cancels in the softmax
    sum_j p_j (W_v y_j + b_v)_h = W_v,h (g * (sum_j p_j z_j) + b) + b_v,h, because the weights p_j sum to 1

so keys and values are never computed. `attention_pool` does the work on the tokens; the rest are small matrix
products in plain PyTorch.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_pool import attention_pool, auto_choice, choose
from .attention_pool_torch import accumulation_dtype
from .checks import autocast_dtype, check_floating, check_same, check_shape, no_autocast, unexpected

__all__ = ["attend", "auto_choice", "cls_cross_attention"]


def attend(
    cls: Tensor,
    pool: Callable[[Tensor, Tensor], Tensor],
    dtype: torch.dtype,
    *,
    norm_weight: Tensor,
    norm_bias: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    num_heads: int,
    eps: float,
) -> Tensor:
    """`cls_cross_attention`, given a function that pools tokens of this dtype: (query, extra) -> pooled.

    The small products are computed in float32 at least: 16 bits would save little and round each of them. But
    a model in 16 bits on a GPU would spend most of its time on casts of its weights: there they are computed
    in its dtype, as its other products.
    """
    autocast = autocast_dtype(cls)
    wide = accumulation_dtype(norm_weight.dtype)
    if cls.is_cuda and autocast is None:
        wide = norm_weight.dtype
    with no_autocast(cls):
        g, b = norm_weight.to(wide), norm_bias.to(wide)
        y = F.layer_norm(cls.to(wide), cls.shape[-1:], g, b, eps)
        # Not unflatten: torch.compile cannot trace it under a default device, which is a mode of functions.
        B, C = cls.shape
        heads = num_heads, C // num_heads
        q = F.linear(y, q_weight.to(wide), q_bias.to(wide)).view(B, *heads)
        k_heads, v_heads = (w.to(wide).view(*heads, C) for w in (k_weight, v_weight))
        u = torch.einsum("bhd,hdc->bhc", q * q.shape[-1] ** -0.5, k_heads) * g
        pooled = pool(u.to(dtype), cls.to(dtype)).to(wide) * g + b
        values = torch.einsum("bhc,hdc->bhd", pooled, v_heads).flatten(1)
        # A sum over zero elements of k_bias adds nothing, but makes its gradient zeros instead of None.
        out = values + v_bias.to(wide) + k_bias[:0].sum()
    return out.to(norm_weight.dtype if autocast is None or wide == torch.float64 else autocast)


def cls_cross_attention(
    cls: Tensor,
    tokens: Tensor,
    *,
    norm_weight: Tensor,
    norm_bias: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    num_heads: int,
    eps: float = 1e-6,
    impl: str = "auto",
) -> Tensor:
    """softmax(q k' / sqrt(D)) v with y = LN([cls ; tokens]), q = Wq y_0, k = Wk y, v = Wv y (Eq. 9, 10).

    Computes none of [cls ; tokens], y, k or v: 4 H N C operations per sample instead of 4 N C^2.

    Args:
        cls: (B, C), already projected to the tokens' width (Eq. 8).
        tokens: (B, N, C), the patch tokens of the other modality; N may be 0.
        norm_weight: (C,), affine scale of the layer norm.
        norm_bias: (C,), affine shift of the layer norm.
        q_weight: (C, C).
        q_bias: (C,).
        k_weight: (C, C).
        k_bias: (C,); it cancels in the softmax, so its gradient is zero.
        v_weight: (C, C).
        v_bias: (C,).
        num_heads: H, a divisor of C.
        eps: added to the variance in the layer norm.
        impl: implementation of the pooling, as in `attention_pool`.

    Returns:
        (B, C): before the output projection and the residual. Under autocast in its dtype; the tokens are
        not cast.

    Raises:
        ValueError: shapes, dtypes or devices that do not match, an unknown `impl`, or one that cannot run.
        BuildError: impl="extension", and it cannot be built or loaded.
    """
    check_shape("tokens", tokens, (None, None, None), "(B, N, C)")
    B, _, C = tokens.shape
    check_shape("cls", cls, (B, C), "(B, C)")
    if type(num_heads) is not int or num_heads <= 0 or C % num_heads:
        raise unexpected("num_heads", f"a divisor of the width {C}", repr(num_heads))
    vectors = {"norm_weight": norm_weight, "norm_bias": norm_bias, "q_bias": q_bias}
    vectors |= {"k_bias": k_bias, "v_bias": v_bias}
    matrices = {"q_weight": q_weight, "k_weight": k_weight, "v_weight": v_weight}
    for name, vector in vectors.items():
        check_shape(name, vector, (C,), "(C,)")
    for name, matrix in matrices.items():
        check_shape(name, matrix, (C, C), "(C, C)")
    if autocast_dtype(tokens) is None:
        check_same({"cls": cls, "tokens": tokens} | vectors | matrices)
    else:
        check_floating({"cls": cls, "tokens": tokens} | vectors | matrices)
    chosen = choose(impl, tokens)

    def pool(query: Tensor, extra: Tensor) -> Tensor:
        return cast(Tensor, attention_pool(query, tokens, extra=extra, eps=eps, impl=chosen))

    return attend(cls, pool, tokens.dtype, num_heads=num_heads, eps=eps, **vectors, **matrices)
