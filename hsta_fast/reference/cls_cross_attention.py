"""CLS-to-token cross-attention: the CLS of one modality attends to the tokens of the other (HSTA, Eq. 8-10).

B batch, N tokens, C width, H heads, D = C / H head width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


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

    Returns:
        (B, C): before the output projection and the residual.
    """
    rows = torch.cat([cls.unsqueeze(1), tokens], dim=1)
    y = F.layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, eps)
    q = rearrange(F.linear(y[:, 0], q_weight, q_bias), "b (h d) -> b h d", h=num_heads)
    k = rearrange(F.linear(y, k_weight, k_bias), "b n (h d) -> b h n d", h=num_heads)
    v = rearrange(F.linear(y, v_weight, v_bias), "b n (h d) -> b h n d", h=num_heads)
    scores = torch.einsum("bhd,bhnd->bhn", q, k) * q.shape[-1] ** -0.5
    return rearrange(torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), v), "b h d -> b (h d)")
