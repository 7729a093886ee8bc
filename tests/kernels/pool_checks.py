"""Compare the attention-pooling kernels with float64; shared by tests with and without a CUDA device."""

import math

import torch
from torch import Tensor

from hsta_fast import reference
from hsta_fast.kernels.attention_pool import attention_pool_bwd, attention_pool_fwd
from tests.tolerance import DEVICE, assert_close

EPS = 1e-6


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def inputs(
    B: int, R: int, N: int, C: int, dtype: torch.dtype, *, extra: bool = True, size: float = 2.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(query, tokens, extra); scores of deviation `size`."""
    query = randn(B, R, C) * (size / math.sqrt(C))
    return query.to(dtype), randn(B, N, C, dtype=dtype), randn(B, C, dtype=dtype) if extra else None


def specified(
    query: Tensor, tokens: Tensor, extra: Tensor | None, normalize: bool, dpooled: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """[pooled, dquery, dtokens, dextra] of the reference in `dtype`, through autograd."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (query, tokens, extra) if x is not None]
    row = leaves[2] if extra is not None else None
    pooled = reference.attention_pool(leaves[0], leaves[1], extra=row, normalize=normalize, eps=EPS)
    assert isinstance(pooled, Tensor)
    return [pooled.detach(), *torch.autograd.grad(pooled, leaves, dpooled.to(dtype))]


def kernels(
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    normalize: bool,
    dpooled: Tensor,
    dtokens: Tensor | None = None,
    accumulate: Tensor | None = None,
) -> list[Tensor]:
    """The same, of the kernels."""
    saved = attention_pool_fwd(query, tokens, extra, normalize, EPS)
    dtokens = torch.empty_like(tokens) if dtokens is None else dtokens
    dquery, dextra = attention_pool_bwd(
        dpooled, query, tokens, extra, normalize, EPS, *saved, dtokens=dtokens, accumulate=accumulate
    )
    gradients = [dquery, dtokens] if dextra is None else [dquery, dtokens, dextra]
    return [saved[0], *gradients]


def sizes(query: Tensor, z: Tensor, rstd: Tensor, pooled: Tensor, dpooled: Tensor) -> list[float]:
    """The scale of rounding errors in dquery and in the rows' gradient, whose own terms may cancel.

    delta = dpooled . pooled is rounded by eps times the norm of its terms, and t - delta may vanish, as where
    one row has all the weight: ds is left with that, and ds z and ds u rstd with it. All in float64.
    """
    p = (query @ z.transpose(1, 2)).softmax(-1)
    delta = (dpooled * pooled).norm(dim=-1, keepdim=True)
    dz = dpooled.abs().amax(-1, keepdim=True) + delta * query.abs().amax(-1, keepdim=True)  # (B, R, 1)
    return [float((delta * (p @ z.abs())).max()), float((rstd * (p * dz).sum(1)).max())]


def check(
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    *,
    normalize: bool = True,
    dpooled: Tensor | None = None,
) -> None:
    """Forward and every gradient within the tolerance."""
    dpooled = randn(*query.shape, dtype=query.dtype) if dpooled is None else dpooled
    exact = specified(query, tokens, extra, normalize, dpooled, torch.float64)
    plain = specified(query, tokens, extra, normalize, dpooled, query.dtype)
    came = kernels(query, tokens, extra, normalize, dpooled)
    rows = (tokens if extra is None else torch.cat([extra.unsqueeze(1), tokens], 1)).double()
    z = torch.nn.functional.layer_norm(rows, rows.shape[-1:], eps=EPS) if normalize else rows
    rstd = (rows.var(-1, correction=0) + EPS).rsqrt() if normalize else torch.ones_like(rows[..., 0])
    scores = float((query.double() @ z.transpose(1, 2)).abs().max())
    eps, rounding = torch.finfo(query.dtype).eps, 4 * scores * torch.finfo(torch.float32).eps
    forward = (4 if query.dtype == torch.float32 else 1) * eps + rounding
    assert_close(came[:1], plain[:1], exact[:1], band=forward)
    dquery_size, rows_size = sizes(query.double(), z, rstd, exact[0], dpooled.double())
    assert_close(came[1:2], plain[1:2], exact[1:2], band=4 * eps + rounding, terms=dquery_size)
    given_rows = [i for i in range(2, len(exact)) if exact[i].numel()]
    assert_close(
        *([x[i] for i in given_rows] for x in (came, plain, exact)), band=4 * eps + rounding, terms=rows_size
    )
