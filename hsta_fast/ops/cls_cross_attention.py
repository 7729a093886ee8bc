"""cls_cross_attention: the algebra that leaves one pass over the tokens. The specification is in `reference`.

With y_j = g * z_j + b the normed rows (g, b the affine of the norm) and one query q_h a head, for head h

    q_h . (W_k y_j + b_k)_h = (g * W_k,h' q_h) . z_j + a constant, which the softmax does not see
    sum_j p_j (W_v y_j + b_v)_h = W_v,h (g * (sum_j p_j z_j) + b) + b_v,h, for the weights p_j sum to 1

so keys and values need not exist: `attention_pool` does what touches the tokens, and the rest are small
matrix products in plain PyTorch.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .attention_pool import attention_pool, auto_choice, choose
from .attention_pool_torch import accumulation_dtype
from .checks import autocast_dtype, no_autocast, want, want_alike, want_shape

__all__ = ["attend", "auto_choice", "cls_cross_attention"]

_OP = "cls_cross_attention"


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
    """What `cls_cross_attention` returns, for a `pool` of tokens of this dtype: (query, extra) -> pooled.

    The small products are computed in float32 at least: little is to be gained by less, and each would round.
    """
    autocast = autocast_dtype(cls)
    wide = accumulation_dtype(norm_weight.dtype)
    with no_autocast(cls):
        g, b = norm_weight.to(wide), norm_bias.to(wide)
        y = F.layer_norm(cls.to(wide), cls.shape[-1:], g, b, eps)
        q = rearrange(F.linear(y, q_weight.to(wide), q_bias.to(wide)), "b (h d) -> b h d", h=num_heads)
        k_heads, v_heads = (
            rearrange(w.to(wide), "(h d) c -> h d c", h=num_heads) for w in (k_weight, v_weight)
        )
        u = torch.einsum("bhd,hdc->bhc", q * q.shape[-1] ** -0.5, k_heads) * g
        pooled = pool(u.to(dtype), cls.to(dtype)).to(wide) * g + b
        values = rearrange(torch.einsum("bhc,hdc->bhd", pooled, v_heads), "b h d -> b (h d)")
        # The sum over no element of k_bias: it adds nothing, and its gradient is zeros instead of none.
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

    Neither [cls ; tokens] nor y, k or v is made: 4 H N C operations a sample instead of 4 N C^2.

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
        impl: how the tokens are pooled, as `attention_pool` takes it.

    Returns:
        (B, C): before the output projection and the residual. Under autocast in its dtype; the tokens are
        read as they come.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an unknown `impl`, or one that
            cannot run.
        BuildError: impl="extension", and it cannot be built or loaded.
    """
    want_shape(_OP, "tokens", tokens, (None, None, None), "(B, N, C)")
    B, _, C = tokens.shape
    want_shape(_OP, "cls", cls, (B, C), "(B, C)")
    want(type(num_heads) is int, _OP, "an int as num_heads", repr(num_heads))
    want(num_heads > 0 and C % num_heads == 0, _OP, f"num_heads that divides C = {C}", num_heads)
    vectors = {"norm_weight": norm_weight, "norm_bias": norm_bias, "q_bias": q_bias}
    vectors |= {"k_bias": k_bias, "v_bias": v_bias}
    matrices = {"q_weight": q_weight, "k_weight": k_weight, "v_weight": v_weight}
    for name, vector in vectors.items():
        want_shape(_OP, name, vector, (C,), "(C,)")
    for name, matrix in matrices.items():
        want_shape(_OP, name, matrix, (C, C), "(C, C)")
    if autocast_dtype(tokens) is None:
        want_alike(_OP, {"cls": cls, "tokens": tokens} | vectors | matrices)
    chosen = choose(_OP, impl, tokens)

    def pool(query: Tensor, extra: Tensor) -> Tensor:
        return cast(Tensor, attention_pool(query, tokens, extra=extra, eps=eps, impl=chosen))

    return attend(cls, pool, tokens.dtype, num_heads=num_heads, eps=eps, **vectors, **matrices)
