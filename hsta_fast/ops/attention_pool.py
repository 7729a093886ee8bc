"""attention_pool: checks and choice of implementation. The specification is in `reference`."""

import torch
from torch import Tensor

from .. import reference
from .checks import want_alike, want_shape
from .choice import Choice, resolve

_OP = "attention_pool"
IMPLS = ("torch",)


def auto_choice(device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation that `impl="auto"` takes for inputs of this device and dtype."""
    return Choice("torch", "plain PyTorch")


def attention_pool(
    query: Tensor,
    tokens: Tensor,
    *,
    extra: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
    return_weights: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """sum_j softmax_j(query . z_j) z_j, with z the layer-normed tokens (no affine) or the tokens themselves.

    Args:
        query: (B, R, C). There is no scale: fold it into the query.
        tokens: (B, N, C); N may be 0 where `extra` is given.
        extra: (B, C), one more row, standing before the tokens; or None.
        normalize: whether z_j is token j normalised to mean 0 and variance 1 over C.
        eps: added to the variance.
        return_weights: also return the softmax weights, for looking at; they carry no gradient.
        impl: "auto" or "torch".

    Returns:
        pooled (B, R, C); or (pooled, weights), weights (B, R, N), or (B, R, 1 + N) with the extra row first.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, or an unknown `impl`.
    """
    want_shape(_OP, "tokens", tokens, (None, None, None), "(B, N, C)")
    B, N, C = tokens.shape
    want_shape(_OP, "query", query, (B, None, C), "(B, R, C)")
    given = {"query": query, "tokens": tokens}
    if extra is not None:
        want_shape(_OP, "extra", extra, (B, C), "(B, C)")
        given["extra"] = extra
    elif N == 0:
        raise ValueError(f"{_OP} wants at least one row: tokens (B, N, C) with N >= 1 or extra, got N = 0")
    want_alike(_OP, given)
    resolve(_OP, impl, auto_choice(tokens.device, tokens.dtype), IMPLS)
    return reference.attention_pool(
        query, tokens, extra=extra, normalize=normalize, eps=eps, return_weights=return_weights
    )
