"""attention_pool in plain PyTorch, forward and backward, block of rows by block of rows.

The interface is that of the kernels. No tensor of the tokens' size is allocated: a block of normalised rows
uses one scratch buffer, which stays in the cache. float16 and bfloat16 are computed in float32.

B batch, R queries, N tokens, C width; a block has b samples and n rows. The extra row, if any, is row 0.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a block: 1 MiB in float32, which the caches of two CPU cores hold; elsewhere to fill the device.
_BLOCK = {"cpu": 1 << 18}
_BLOCK_ELSEWHERE = 1 << 23
_ROWS = 128  # at least, before a block includes a second sample


class _Block(NamedTuple):
    samples: slice
    rows: slice  # counted with the extra row
    x: Tensor  # (b, n, C), a view of the input
    tokens: slice | None  # the rows of `tokens` in the block; None for the extra row


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, scores and the row statistics that the backward needs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(tokens: Tensor, extra: Tensor | None) -> Iterator[_Block]:
    B, N, C = tokens.shape
    shift = 0 if extra is None else 1
    if extra is not None:
        yield _Block(slice(0, B), slice(0, 1), extra.unsqueeze(1), None)
    budget = _BLOCK.get(tokens.device.type, _BLOCK_ELSEWHERE)
    samples = max(1, budget // max(1, min(N, _ROWS) * C))
    n = max(1, budget // max(1, min(samples, B) * C))
    for b in range(0, B, samples):
        for first in range(0, N, n):
            place = slice(first, min(first + n, N))
            rows = slice(place.start + shift, place.stop + shift)
            yield _Block(slice(b, b + samples), rows, tokens[b : b + samples, place], place)


def _scratch(tokens: Tensor, extra: Tensor | None) -> Tensor:
    """A buffer for the largest block; allocating one per block would cost page faults."""
    largest = max((block.x.numel() for block in _blocks(tokens, extra)), default=0)
    return tokens.new_empty(largest, dtype=accumulation_dtype(tokens.dtype))


def _room(scratch: Tensor, x: Tensor) -> Tensor:
    return scratch[: x.numel()].view(x.shape)


def _centred(x: Tensor, normalize: bool) -> Tensor:
    """A query, or its gradient, without its mean. Normalised rows have mean 0, so the products do not change.

    Otherwise the rounding error in a row's mean, times the sum of the query, would enter the products.
    """
    return x - x.mean(-1, keepdim=True) if normalize else x


def _subtract_first(x: Tensor, *, out: Tensor) -> Tensor:
    """Rows (b, n, C) minus the first element of each: removes a large common offset without rounding."""
    if x.dtype == out.dtype:
        return torch.sub(x, x[..., :1], out=out)
    return out.copy_(x).sub_(out[..., :1].clone())


def attention_pool_fwd(
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    normalize: bool,
    eps: float,
    *,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(pooled (B, R, C), lse (B, R), mean, rstd (B, N or N + 1)), the last two None without `normalize`.

    All have the accumulation dtype; `mean` is relative to the first element of its row. Fills `scores`
    (B, R, N or N + 1), if given.
    """
    B, R, C = query.shape
    rows = tokens.shape[1] + int(extra is not None)
    u = _centred(query.to(accumulation_dtype(query.dtype)), normalize)
    scratch = _scratch(tokens, extra)
    mean, rstd = (u.new_empty(B, rows) for _ in range(2)) if normalize else (None, None)
    m, total, acc = u.new_full((B, R), -torch.inf), u.new_zeros(B, R), torch.zeros_like(u)
    for block in _blocks(tokens, extra):
        b, x = block.samples, block.x
        z = _room(scratch, x)
        if mean is not None and rstd is not None:
            _subtract_first(x, out=z)
            mean_x = z.mean(-1, keepdim=True)
            deviation = torch.linalg.vector_norm(z.sub_(mean_x), dim=-1, keepdim=True)
            rstd_x = (deviation * deviation / C + eps).rsqrt_()
            z.mul_(rstd_x)
            mean[b, block.rows], rstd[b, block.rows] = mean_x.squeeze(-1), rstd_x.squeeze(-1)
        else:
            z.copy_(x)
        s = torch.bmm(u[b], z.transpose(1, 2))
        if scores is not None:
            scores[b, :, block.rows] = s
        highest = torch.maximum(m[b], s.amax(-1))
        shrink = torch.exp(m[b] - highest)
        p = s.sub_(highest.unsqueeze(-1)).exp_()
        m[b], total[b] = highest, total[b] * shrink + p.sum(-1)
        acc[b] = torch.baddbmm(acc[b] * shrink.unsqueeze(-1), p, z)
    return acc.div_(total.unsqueeze(-1)), m + total.log(), mean, rstd


def attention_pool_bwd(
    dpooled: Tensor,
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    normalize: bool,
    eps: float,
    pooled: Tensor,
    lse: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    *,
    dtokens: Tensor | None,
    accumulate: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(dquery (B, R, C), dextra (B, C) or None); fills dtokens (B, N, C), if given.

    dtokens is `accumulate`, if given, plus the gradient of the pooling.

    With u and d = dpooled centred, t = d . z and ds = p (t - d . pooled),
    dx = sum_r (rstd p_r d_r + rstd ds_r u_r) - rstd z (1 / C) sum_r (p_r t_r + ds_r s_r).
    """
    R, C = query.shape[1:]
    dtype = accumulation_dtype(query.dtype)
    u, d = (_centred(x.to(dtype), normalize) for x in (query, dpooled))
    delta = (d * pooled).sum(-1, keepdim=True)
    both = torch.cat([u, d], dim=1)  # (B, 2 R, C)
    scratch = _scratch(tokens, extra)
    dquery, dextra = torch.zeros_like(u), None
    for block in _blocks(tokens, extra):
        b, x = block.samples, block.x
        z = _room(scratch, x)
        if mean is not None and rstd is not None:
            r = rstd[b, block.rows]
            _subtract_first(x, out=z).sub_(mean[b, block.rows].unsqueeze(-1)).mul_(r.unsqueeze(-1))
        else:
            z.copy_(x)
        s, t = torch.bmm(both[b], z.transpose(1, 2)).split(R, dim=1)  # (b, R, n)
        p = torch.exp(s - lse[b].unsqueeze(-1))
        ds = p * (t - delta[b])
        dquery[b] += torch.bmm(ds, z)
        if dtokens is None and block.tokens is not None:
            continue
        w = torch.cat([ds, p], dim=1)
        if mean is not None:
            along = (p * t + ds * s).sum(1) / -C
            z.mul_((along * r).unsqueeze(-1)).baddbmm_((w * r.unsqueeze(1)).transpose(1, 2), both[b])
        else:
            torch.bmm(w.transpose(1, 2), both[b], out=z)
        if block.tokens is None or dtokens is None:
            dextra = z.squeeze(1).to(query.dtype, copy=True)
        elif accumulate is None:
            dtokens[b, block.tokens] = z
        else:
            torch.add(accumulate[b, block.tokens], z, out=dtokens[b, block.tokens])
    return dquery.to(query.dtype), dextra
