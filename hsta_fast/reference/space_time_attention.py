"""Space-time self-attention: every token of a clip attends to every other one (HSTA, Eq. 3).

B batch, N tokens, H heads, D head width.
"""

import torch
from torch import Tensor


def space_time_attention(
    qkv: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    scale: float | None = None,
    layout: str = "BNHD",
) -> Tensor:
    """softmax(scale * q k') v per head: full attention, no mask, no dropout (Eq. 3).

    Args:
        qkv: (B, N, 3, H, D), the packed projection; or q (B, N, H, D) when `k` and `v` are given.
        k: (B, M, H, D); M may differ from N.
        v: (B, M, H, D).
        scale: factor of the scores; D ** -0.5 when None.
        layout: "BNHD"; or "BHND", where q, k, v and the result are (B, H, N, D).

    Returns:
        (B, N, H, D) or (B, H, N, D), in the dtype of the input.
    """
    q, k, v = qkv.unbind(2) if k is None or v is None else (qkv, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if layout == "BHND":
        scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * scale
        return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * scale
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
