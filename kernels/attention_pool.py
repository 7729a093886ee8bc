"""Attention pooling in Triton: pooled_r = sum_j softmax_j(u_r . z_j) z_j, z the layer-normed tokens.

B batch, N tokens, C width, R queries; M rows: the extra row, if there is one, and the tokens. Forward and
backward each read the tokens once and keep nothing of their size. N is split over programs; a second kernel
combines their partial results in a fixed order: no atomics, the same bits every time. That kernel also adds
the extra row. The backward's kernels are in `attention_pool_backward`.

Partial results take at most 6 R N float32 numbers per sample. If so few programs would leave most of the
device idle (small B), the pass stores R numbers per token instead, and `attention_pool_sums` sums the rows.

A token is normalised in float32, in registers, and rounded before the products, as a layer norm would do: its
mean is subtracted before anything is rounded. Widths need not be powers of two, so columns are processed in
chunks [slices, tokens, columns], one slice per warp: each warp multiplies its own columns for all queries,
and only the scores, 16 per token, are summed over warps.

Softmax weights are computed with base 2: log2(e) goes into the exponent's fused multiply-add.
"""

# @triton.jit functions build tuples chunk by chunk.
# mypy: disable-error-code="assignment, misc"

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import attention_pool_backward as backward
from .attention_pool_configs import SUMS, Config, chunk_for, config_for, smaller
from .attention_pool_plan import plan
from .attention_pool_sums import attention_pool_sums_kernel
from .attention_pool_tiles import (
    LOG2_E,
    QUERIES,
    centred_chunk,
    columns_of,
    held,
    jit,
    load_chunk,
    load_queries,
    load_row,
    normalised,
    over_slices,
    remainder_of,
    row_statistics,
    row_sums,
)
from .launch import device_of, launch_within, made_current, precision_of
from .tiles import dot, finite, rounded

_SPLITS = 4  # of one tile of the combining kernels


@jit
def _attention_pool_fwd_kernel(
    query_ptr, tokens_ptr, partial_ptr, max_ptr, sum_ptr, mean_ptr, rstd_ptr, remainder_ptr, scores_ptr,
    query_strides, tokens_strides, eps, N, M, R, splits, share,
    C: tl.constexpr, CHUNK: tl.constexpr, SLICES: tl.constexpr, TOKENS: tl.constexpr, HOLD: tl.constexpr,
    NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A group of queries over `share` tokens: unnormalised sums, and maxima (base 2) and sums of weights.

    Without `partial_ptr` the scores alone, and what normalising takes.
    """
    CHUNKS: tl.constexpr = (C + CHUNK - 1) // CHUNK
    groups = tl.cdiv(R, QUERIES)
    split = tl.program_id(0) % splits
    batch = (tl.program_id(0) // splits // groups).to(tl.int64)
    group = tl.program_id(0) // splits % groups
    queries = group * QUERIES + tl.arange(0, QUERIES)
    query_ptr += batch * query_strides[0]
    tokens_ptr += batch * tokens_strides[0]
    us, accs = (), ()
    for k in tl.static_range(CHUNKS):
        us += (load_queries(query_ptr, query_strides[1], queries, R, k, C, CHUNK, SLICES),)
        accs += (tl.zeros([SLICES, QUERIES, CHUNK // SLICES], tl.float32),)
    largest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    begin = split * share
    for start in range(begin, tl.minimum(begin + share, N), TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        within = tokens < N
        # Beyond the last token stands the last token again, with a weight of 0: no load carries a mask.
        rows = tl.minimum(tokens, N - 1)
        xs = ()
        for k in tl.static_range(CHUNKS):
            xs += (load_chunk(tokens_ptr, tokens_strides[1], rows, k, C, CHUNK, SLICES),)
        zs = xs
        if NORMALIZE:
            # Chunks are added up before the one reduction over threads. Two passes, as the tile is in
            # registers: constant tokens become exact zeros.
            sums = xs[0].to(tl.float32)
            for k in tl.static_range(1, CHUNKS):
                sums += xs[k].to(tl.float32)
            mean = tl.div_rn(row_sums(sums), C * 1.0)
            remainder = remainder_of(xs, mean, C, CHUNK)
            centred = centred_chunk(xs[0], mean, 0, C, CHUNK)
            squares = centred * centred
            for k in tl.static_range(1, CHUNKS):
                centred = centred_chunk(xs[k], mean, k, C, CHUNK)
                squares += centred * centred
            rstd = 1.0 / tl.sqrt_rn(row_sums(squares) / C - remainder * remainder + eps)
            place = batch * M + (M - N) + tokens
            tl.store(mean_ptr + place, mean, mask=within & (group == 0))
            tl.store(rstd_ptr + place, rstd, mask=within & (group == 0))
            if remainder_ptr is not None:
                tl.store(remainder_ptr + place, remainder, mask=within & (group == 0))
            zs = ()
            for k in tl.static_range(CHUNKS):
                zs += (normalised(xs[k], mean, remainder, rstd, k, C, CHUNK),)
        s = tl.zeros([SLICES, QUERIES, TOKENS], tl.float32)
        for k in tl.static_range(CHUNKS):
            u = held(us[k], query_ptr, query_strides[1], queries, R, k, C, CHUNK, HOLD)
            s = dot(u, tl.permute(zs[k], (0, 2, 1)), s, PRECISION)
        s = tl.sum(s, 0)  # [16, TOKENS]
        if scores_ptr is not None:
            place = (batch * R + queries)[:, None] * M + (M - N) + tokens[None, :]
            tl.store(scores_ptr + place, s, mask=(queries < R)[:, None] & within[None, :])
        if partial_ptr is not None:
            s = tl.where(within[None, :], s, -float("inf"))
            raised = tl.maximum(largest, tl.max(s, 1) * LOG2_E)
            shift = finite(raised)
            factor = tl.exp2(largest - shift)
            largest = raised
            p = tl.exp2(s * LOG2_E - shift[:, None])
            total = total * factor + tl.sum(p, 1)
            p = over_slices(rounded(p, tokens_ptr.dtype.element_ty), SLICES)
            before, accs = accs, ()
            for k in tl.static_range(CHUNKS):
                accs += (dot(p, zs[k], before[k] * factor[None, :, None], PRECISION),)
    if partial_ptr is not None:
        rows = (batch * splits + split) * R + queries
        tl.store(max_ptr + rows, largest, mask=queries < R)
        tl.store(sum_ptr + rows, total, mask=queries < R)
        for k in tl.static_range(CHUNKS):
            columns = columns_of(k, CHUNK, SLICES)
            ptrs = partial_ptr + rows[None, :, None] * C + columns
            tl.store(ptrs, accs[k], mask=(queries < R)[None, :, None] & (columns < C))


@jit
def _attention_pool_combine_kernel(
    query_ptr, extra_ptr, partial_ptr, max_ptr, sum_ptr, pooled_ptr, lse_ptr, mean_ptr, rstd_ptr, scores_ptr,
    query_strides, extra_stride, eps, M, R, splits,
    C: tl.constexpr, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """One query: the splits' sums and the extra row, brought to one maximum."""
    row = tl.program_id(0).to(tl.int64)  # batch * R + query
    batch = row // R
    columns = tl.arange(0, BLOCK_C)
    largest = tl.full([SPLITS], -float("inf"), tl.float32)
    rows_ptr = batch * splits * R + row % R
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        place = rows_ptr + split.to(tl.int64) * R
        largest = tl.maximum(largest, tl.load(max_ptr + place, mask=split < splits, other=-float("inf")))
    top = tl.max(largest, 0)
    score = 0.0
    z = tl.zeros([BLOCK_C], tl.float32)
    if extra_ptr is not None:
        x = load_row(extra_ptr + batch * extra_stride, C, BLOCK_C)
        mean, remainder, rstd = row_statistics(x, eps, C, NORMALIZE)
        u = load_row(query_ptr + batch * query_strides[0] + row % R * query_strides[1], C, BLOCK_C)
        z = (x - mean - remainder) * rstd
        score = tl.sum(u * z, 0)  # u is 0 from column C on
        top = tl.maximum(top, score * LOG2_E)
        if NORMALIZE:
            tl.store(mean_ptr + batch * M, mean, mask=row % R == 0)
            tl.store(rstd_ptr + batch * M, rstd, mask=row % R == 0)
        if scores_ptr is not None:
            tl.store(scores_ptr + row * M, score)
    total = 0.0
    acc = tl.zeros([BLOCK_C], tl.float32)
    if extra_ptr is not None:
        total = tl.exp2(score * LOG2_E - top)
        acc = total * z
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        place = rows_ptr + split.to(tl.int64) * R
        weight = tl.exp2(tl.load(max_ptr + place, mask=split < splits, other=-float("inf")) - top)
        total += tl.sum(weight * tl.load(sum_ptr + place, mask=split < splits, other=0.0), 0)
        ptrs = partial_ptr + place[:, None] * C + columns[None, :]
        tile = tl.load(ptrs, mask=(split < splits)[:, None] & (columns < C)[None, :], other=0.0)
        acc += tl.sum(weight[:, None] * tile, 0)
    tl.store(
        pooled_ptr + row * C + columns, rounded(acc / total, pooled_ptr.dtype.element_ty), mask=columns < C
    )
    tl.store(lse_ptr + row, (top + tl.log2(total)) / LOG2_E)


JITTED = {
    "fwd": _attention_pool_fwd_kernel,
    "sums": attention_pool_sums_kernel,
    "combine": _attention_pool_combine_kernel,
    "bwd rows": backward.attention_pool_bwd_rows_kernel,
    "bwd": backward.attention_pool_bwd_kernel,
    "bwd combine": backward.attention_pool_bwd_combine_kernel,
}


# For float32. "tf32" would gain little over "bf16x6", which device memory already binds for the most part.
PRECISIONS = ("bf16x6", "ieee")


def _precision(tokens: Tensor) -> str:
    """How products are computed; torch's "tf32" permits, and here gets, the more exact "bf16x6"."""
    asked = precision_of(tokens.dtype)
    return PRECISIONS[0] if asked == "tf32" else asked


def meta(kernel: str, width: int, config: Config, *, normalize: bool, precision: str) -> dict[str, Any]:
    """The constants and launch options of one kernel, by keyword."""
    shared: dict[str, Any] = {"C": width, "NORMALIZE": normalize, "enable_fp_fusion": True}
    if kernel in ("fwd", "bwd"):
        return shared | {
            "PRECISION": precision,
            "CHUNK": chunk_for(width, config),
            "SLICES": config.slices,
            "TOKENS": config.tokens,
            "HOLD": config.hold,
            "num_warps": config.warps,
            "num_stages": config.stages,
        }
    if kernel == "sums":
        return shared | SUMS | {"PRECISION": precision}
    shared |= {"BLOCK_C": triton.next_power_of_2(width)}
    if kernel == "bwd rows":
        return shared | {"num_warps": 8}
    return shared | {"SPLITS": _SPLITS, "num_warps": 4}


def _strides(*tensors: Tensor) -> tuple[tuple[int, int], ...]:
    """(batch, row) strides of each tensor; the last stride is 1."""
    return tuple((tensor.stride(0), tensor.stride(1)) for tensor in tensors)


def _sums(query: Tensor, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate each split's sums (B, splits, R, C), maxima and sums of weights (B, splits, R)."""
    B, R, C = query.shape
    partial = query.new_empty((B, splits, R, C), dtype=torch.float32)
    return partial, partial.new_empty((B, splits, R)), partial.new_empty((B, splits, R))


def _remainder(tokens: Tensor, mean: Tensor | None) -> Tensor | None:
    """Allocate the rounding errors (B, M) of the means, if they can exceed z's own rounding (float32)."""
    return None if mean is None or tokens.dtype != torch.float32 else torch.empty_like(mean)


def attention_pool_fwd(
    query: Tensor, tokens: Tensor, extra: Tensor | None, normalize: bool, eps: float, *,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(pooled, lse, mean, rstd) of the extra row, if there is one, and the tokens after it.

    Args:
        query: (B, R, C), last stride 1.
        tokens: (B, N, C), last stride 1; N may be 0 if `extra` is given.
        extra: (B, C), last stride 1, or None.
        normalize: whether tokens are normalised to mean 0 and variance 1 over C.
        eps: added to the variance.
        scores: (B, R, M) float32, contiguous, M = N + (extra is not None): filled with u . z.

    Returns:
        pooled (B, R, C) in the query's dtype; lse (B, R) float32, natural logarithm; mean and rstd (B, M)
        float32, or None without `normalize`.
    """
    B, R, C = query.shape
    N = tokens.shape[1]
    M = N + (extra is not None)
    device, precision = device_of(tokens.device), _precision(tokens)
    chosen: dict[str, Any] = {"normalize": normalize, "precision": precision, "device": device}
    config = config_for("fwd", C, tokens.dtype, **chosen)
    groups = triton.cdiv(R, QUERIES.value)
    (splits, share), second = plan(config, config, tokens, B * groups, device.processors)
    pooled = query.new_empty((B, R, C))
    lse = query.new_empty((B, R), dtype=torch.float32)
    mean, rstd = (query.new_empty((B, M), dtype=torch.float32) if normalize else None for _ in range(2))
    partial = largest = total = remainder = None
    if second is None:
        partial, largest, total = _sums(query, splits)
    else:
        scores = query.new_empty((B, R, M), dtype=torch.float32) if scores is None else scores
        remainder = _remainder(tokens, mean)

    def launch(config: Config) -> None:
        _attention_pool_fwd_kernel[(B * groups * splits,)](
            query, tokens, partial, largest, total, mean, rstd, remainder, scores,
            *_strides(query, tokens), eps, N, M, R, splits, share,
            **meta("fwd", C, config, normalize=normalize, precision=precision),
        )  # fmt: skip

    with made_current(tokens):
        if splits:
            launch_within(device, f"attention_pool fwd, C={C}", config, smaller(config), launch)
        combined = splits
        if second is not None:
            combined, share_of_sums = second
            partial, largest, total = _sums(query, combined)
            attention_pool_sums_kernel[(B * groups * combined, triton.cdiv(C, SUMS["COLUMNS"]))](
                scores, tokens, mean, rstd, remainder, partial, largest, total, *_strides(tokens),
                N, M, R, combined, share_of_sums,
                **meta("sums", C, config, normalize=normalize, precision=precision),
            )  # fmt: skip
        _attention_pool_combine_kernel[(B * R,)](
            query, extra, partial, largest, total, pooled, lse, mean, rstd, scores, *_strides(query),
            0 if extra is None else extra.stride(0), eps, M, R, combined,
            **meta("combine", C, config, normalize=normalize, precision=precision),
        )  # fmt: skip
    return pooled, lse, mean, rstd


def attention_pool_bwd(
    dpooled: Tensor, query: Tensor, tokens: Tensor, extra: Tensor | None, normalize: bool, eps: float,
    pooled: Tensor, lse: Tensor, mean: Tensor | None, rstd: Tensor | None, *,
    dtokens: Tensor, accumulate: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return (dquery, dextra) and fill `dtokens`. Deterministic.

    Args:
        dpooled: (B, R, C), last stride 1.
        query: as passed to the forward, like the arguments up to `eps`.
        tokens: see query.
        extra: see query.
        normalize: see query.
        eps: see query.
        pooled: as the forward returned it, contiguous, like the arguments up to `rstd`.
        lse: see pooled.
        mean: see pooled.
        rstd: see pooled.
        dtokens: (B, N, C), last stride 1: filled with the tokens' gradient.
        accumulate: (B, N, C), last stride 1, added to that gradient; it may be `dtokens` itself.
    """
    B, R, C = query.shape
    N = tokens.shape[1]
    M = N + (extra is not None)
    device, precision = device_of(tokens.device), _precision(tokens)
    chosen: dict[str, Any] = {"normalize": normalize, "precision": precision, "device": device}
    config = config_for("bwd", C, tokens.dtype, **chosen)
    groups = triton.cdiv(R, QUERIES.value)
    of_two = config_for("bwd, two steps", C, tokens.dtype, **chosen)
    (splits, share), second = plan(config, of_two, tokens, B, device.processors)
    dquery = query.new_empty((B, R, C))
    dextra = None if extra is None else query.new_empty((B, C))
    rows = query.new_empty((B, 4, R), dtype=torch.float32)
    partial = weights = remainder = None
    if second is None:
        partial = _sums(query, splits)[0]
    else:
        config = of_two
        weights = query.new_empty((B, R, M), dtype=torch.float32)
        remainder = _remainder(tokens, mean)
    extra_stride = 0 if extra is None else extra.stride(0)

    def launch(group: int, config: Config) -> None:
        base = accumulate if group == 0 else dtokens
        backward.attention_pool_bwd_kernel[(B * splits,)](
            query, dpooled, tokens, dtokens, base, partial, weights, remainder, rows, lse, mean, rstd,
            *_strides(query, dpooled, tokens, dtokens, dtokens if base is None else base),
            N, M, R, splits, share, group,
            **meta("bwd", C, config, normalize=normalize, precision=precision),
        )  # fmt: skip

    with made_current(tokens):
        backward.attention_pool_bwd_rows_kernel[(B,)](
            query, dpooled, pooled, lse, extra, dextra, rows, *_strides(query, dpooled), extra_stride, eps, R,
            **meta("bwd rows", C, config, normalize=normalize, precision=precision),
        )  # fmt: skip
        for group in range(groups if splits else 0):
            what = f"attention_pool bwd{'' if second is None else ', two steps'}, C={C}"
            launch_within(device, what, config, smaller(config), functools.partial(launch, group))
        combined = splits
        if second is not None:
            combined, share_of_sums = second
            partial = _sums(query, combined)[0]
            attention_pool_sums_kernel[(B * groups * combined, triton.cdiv(C, SUMS["COLUMNS"]))](
                weights, tokens, mean, rstd, remainder, partial, None, None, *_strides(tokens),
                N, M, R, combined, share_of_sums,
                **meta("sums", C, config, normalize=normalize, precision=precision),
            )  # fmt: skip
        backward.attention_pool_bwd_combine_kernel[(B * R,)](
            extra, partial, rows, dquery, extra_stride, eps, R, combined,
            **meta("bwd combine", C, config, normalize=normalize, precision=precision),
        )  # fmt: skip
    return dquery, dextra
