"""space_time_attention: checks and choice of implementation. The specification is in `reference`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import want, want_alike, want_shape
from .choice import Choice, resolve

_OP = "space_time_attention"
IMPLS = ("torch",)


def auto_choice(device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation that `impl="auto"` takes for inputs of this device and dtype."""
    return Choice("torch", "torch's scaled_dot_product_attention")


def space_time_attention(
    qkv: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """softmax(scale * q k') v per head: every space-time token attends to every other (HSTA, Eq. 3).

    Called as `space_time_attention(qkv)` or `space_time_attention(q, k, v)`.

    Args:
        qkv: (B, N, 3, H, D), the packed projection; or q (B, N, H, D) when `k` and `v` are given.
        k: (B, M, H, D); M may differ from N.
        v: (B, M, H, D).
        scale: factor of the scores; D ** -0.5 when None.
        impl: "auto" or "torch".

    Returns:
        (B, N, H, D), in the dtype of the input (float16, bfloat16, float32 or float64).

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or an unknown `impl`.
    """
    want((k is None) == (v is None), _OP, "(qkv) or (q, k, v)", "only one of k and v")
    if k is None or v is None:
        want_shape(_OP, "qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
        want_alike(_OP, {"qkv": qkv})
        q, k, v = qkv.unbind(2)
    else:
        q = qkv
        want_shape(_OP, "q", q, (None, None, None, None), "(B, N, H, D)")
        B, _, H, D = q.shape
        want_shape(_OP, "k", k, (B, None, H, D), "(B, M, H, D)")
        want_shape(_OP, "v", v, (B, k.shape[1], H, D), "(B, M, H, D)")
        want_alike(_OP, {"q": q, "k": k, "v": v})
    resolve(_OP, impl, auto_choice(q.device, q.dtype), IMPLS)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # torch's function takes (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
