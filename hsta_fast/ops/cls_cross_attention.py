"""cls_cross_attention: checks and choice of implementation. The specification is in `reference`."""

import torch
from torch import Tensor

from .. import reference
from .checks import want, want_shape
from .choice import Choice, resolve

_OP = "cls_cross_attention"
IMPLS = ("torch",)


def auto_choice(device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation that `impl="auto"` takes for inputs of this device and dtype."""
    return Choice("torch", "plain PyTorch")


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

    Args:
        cls: (B, C), already projected to the tokens' width (Eq. 8).
        tokens: (B, N, C), the patch tokens of the other modality.
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
        impl: "auto" or "torch".

    Returns:
        (B, C): before the output projection and the residual.

    Raises:
        ValueError: shapes that do not belong together, or an unknown `impl`.
    """
    want_shape(_OP, "tokens", tokens, (None, None, None), "(B, N, C)")
    B, _, C = tokens.shape
    want_shape(_OP, "cls", cls, (B, C), "(B, C)")
    want(num_heads > 0 and C % num_heads == 0, _OP, f"num_heads that divides C = {C}", num_heads)
    vectors = {"norm_weight": norm_weight, "norm_bias": norm_bias, "q_bias": q_bias}
    for name, vector in (vectors | {"k_bias": k_bias, "v_bias": v_bias}).items():
        want_shape(_OP, name, vector, (C,), "(C,)")
    for name, matrix in {"q_weight": q_weight, "k_weight": k_weight, "v_weight": v_weight}.items():
        want_shape(_OP, name, matrix, (C, C), "(C, C)")
    resolve(_OP, impl, auto_choice(tokens.device, tokens.dtype), IMPLS)
    return reference.cls_cross_attention(
        cls,
        tokens,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        q_weight=q_weight,
        q_bias=q_bias,
        k_weight=k_weight,
        k_bias=k_bias,
        v_weight=v_weight,
        v_bias=v_bias,
        num_heads=num_heads,
        eps=eps,
    )
