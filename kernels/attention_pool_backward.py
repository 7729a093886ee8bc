"""The kernels of attention pooling's backward, which `attention_pool` describes and launches."""

# @triton.jit functions build tuples chunk by chunk.
# mypy: disable-error-code="assignment, misc"

import triton.language as tl

from .attention_pool_tiles import (
    LOG2_E,
    QUERIES,
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
)
from .tiles import dot, rounded


@jit
def attention_pool_bwd_rows_kernel(
    query_ptr, dpooled_ptr, pooled_ptr, lse_ptr, extra_ptr, dextra_ptr, rows_ptr,
    query_strides, dpooled_strides, extra_stride, eps, R,
    C: tl.constexpr, BLOCK_C: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """One sample: delta and the means of dpooled and of u per query, the extra row's gradient and its ds.

    rows_ptr is (B, 4, R): delta = dpooled . pooled, mean of dpooled, mean of u, ds of the extra row.
    """
    batch = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    within = (columns < C)[None, :]
    rows_ptr += batch * 4 * R
    z = tl.zeros([BLOCK_C], tl.float32)
    dz = tl.zeros([BLOCK_C], tl.float32)
    rstd = 1.0
    if extra_ptr is not None:
        x = load_row(extra_ptr + batch * extra_stride, C, BLOCK_C)
        mean, remainder, rstd = row_statistics(x, eps, C, NORMALIZE)
        z = (x - mean - remainder) * rstd
    for start in range(0, R, QUERIES):
        queries = start + tl.arange(0, QUERIES)
        mask = (queries < R)[:, None] & within
        place = queries.to(tl.int64)[:, None]
        u_ptrs = query_ptr + batch * query_strides[0] + place * query_strides[1] + columns[None, :]
        d_ptrs = dpooled_ptr + batch * dpooled_strides[0] + place * dpooled_strides[1] + columns[None, :]
        u = tl.load(u_ptrs, mask=mask, other=0.0).to(tl.float32)  # [16, BLOCK_C]
        d = tl.load(d_ptrs, mask=mask, other=0.0).to(tl.float32)
        pooled = tl.load(pooled_ptr + (batch * R + place) * C + columns[None, :], mask=mask, other=0.0)
        delta = tl.sum(d * pooled.to(tl.float32), 1)
        tl.store(rows_ptr + queries, delta, mask=queries < R)
        tl.store(rows_ptr + R + queries, tl.sum(d, 1) / C, mask=queries < R)
        tl.store(rows_ptr + 2 * R + queries, tl.sum(u, 1) / C, mask=queries < R)
        if extra_ptr is not None:
            s = tl.sum(u * z[None, :], 1)
            lse = tl.load(lse_ptr + batch * R + queries, mask=queries < R, other=0.0)
            p = tl.exp2(s * LOG2_E - lse * LOG2_E)
            ds = p * (tl.sum(d * z[None, :], 1) - delta)
            tl.store(rows_ptr + 3 * R + queries, ds, mask=queries < R)
            dz += tl.sum(p[:, None] * d + ds[:, None] * u, 0)
    if extra_ptr is not None:
        dx = dz
        if NORMALIZE:
            z = tl.where(columns < C, z, 0.0)
            dx = rstd * (dz - tl.sum(dz, 0) / C - z * (tl.sum(dz * z, 0) / C))
        tl.store(dextra_ptr + batch * C + columns, rounded(dx, dextra_ptr.dtype.element_ty), mask=columns < C)


@jit
def attention_pool_bwd_kernel(
    query_ptr, dpooled_ptr, tokens_ptr, dtokens_ptr, accumulate_ptr, partial_ptr, weights_ptr, remainder_ptr,
    rows_ptr, lse_ptr, mean_ptr, rstd_ptr,
    query_strides, dpooled_strides, tokens_strides, dtokens_strides, accumulate_strides,
    N, M, R, splits, share, group,
    C: tl.constexpr, CHUNK: tl.constexpr, SLICES: tl.constexpr, TOKENS: tl.constexpr, HOLD: tl.constexpr,
    NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of `share` tokens from one group of queries, and these tokens' part of the group's own.

    dz = sum_r p d + ds u and dx = rstd (dz - mean(dz) - z mean(dz z)), d = dpooled, ds = p (t - delta), t =
    d . z. Both means come without a sum over columns: mean(dz z) = sum_r (p t + ds s) / C, and mean(dz) is
    that of what goes into the products, rounded as it does. Without `partial_ptr` the tokens' part of the
    queries' gradient is left to `attention_pool_sums`, which takes weights_ptr, (B, R, M).
    """
    # Of queries beyond the last, u and dpooled are 0, and with them ds and all that their weights multiply.
    CHUNKS: tl.constexpr = (C + CHUNK - 1) // CHUNK
    DTYPE: tl.constexpr = tokens_ptr.dtype.element_ty
    split = tl.program_id(0) % splits
    batch = (tl.program_id(0) // splits).to(tl.int64)
    queries = group * QUERIES + tl.arange(0, QUERIES)
    query_ptr += batch * query_strides[0]
    dpooled_ptr += batch * dpooled_strides[0]
    tokens_ptr += batch * tokens_strides[0]
    dtokens_ptr += batch * dtokens_strides[0]
    if accumulate_ptr is not None:
        accumulate_ptr += batch * accumulate_strides[0]
    rows_ptr += batch * 4 * R
    us, ds, accs = (), (), ()
    for k in tl.static_range(CHUNKS):
        us += (load_queries(query_ptr, query_strides[1], queries, R, k, C, CHUNK, SLICES),)
        ds += (load_queries(dpooled_ptr, dpooled_strides[1], queries, R, k, C, CHUNK, SLICES),)
        if partial_ptr is not None:
            accs += (tl.zeros([SLICES, CHUNK // SLICES, QUERIES], tl.float32),)
    begin = split * share
    for start in range(begin, tl.minimum(begin + share, N), TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        within = tokens < N
        rows = tl.minimum(tokens, N - 1)
        zs = ()
        for k in tl.static_range(CHUNKS):
            zs += (load_chunk(tokens_ptr, tokens_strides[1], rows, k, C, CHUNK, SLICES),)
        rstd = tl.full([TOKENS], 1.0, tl.float32)
        if NORMALIZE:
            mean = tl.load(mean_ptr + batch * M + (M - N) + rows)
            rstd = tl.load(rstd_ptr + batch * M + (M - N) + rows)
            remainder = remainder_of(zs, mean, C, CHUNK)
            xs, zs = zs, ()
            for k in tl.static_range(CHUNKS):
                zs += (normalised(xs[k], mean, remainder, rstd, k, C, CHUNK),)
        # Scores come with tokens as rows, as the products below take them: no product is ever transposed,
        # which Triton 3.4 to 3.7.0 get wrong.
        s = tl.zeros([SLICES, TOKENS, QUERIES], tl.float32)
        t = tl.zeros([SLICES, TOKENS, QUERIES], tl.float32)
        for k in tl.static_range(CHUNKS):
            u = held(us[k], query_ptr, query_strides[1], queries, R, k, C, CHUNK, HOLD)
            d = held(ds[k], dpooled_ptr, dpooled_strides[1], queries, R, k, C, CHUNK, HOLD)
            s = dot(zs[k], tl.permute(u, (0, 2, 1)), s, PRECISION)
            t = dot(zs[k], tl.permute(d, (0, 2, 1)), t, PRECISION)
        s, t = tl.sum(s, 0), tl.sum(t, 0)  # [TOKENS, 16]
        # Numbers per query are read anew for every tile: held, they cost the registers that then spill.
        real = queries < R
        lse = tl.load(lse_ptr + batch * R + queries, mask=real, other=0.0)
        delta = tl.load(rows_ptr + queries, mask=real, other=0.0)
        p = tl.where(within[:, None], tl.exp2(s * LOG2_E - (lse * LOG2_E)[None, :]), 0.0)
        g = p * (t - delta[None, :])
        along_z = tl.sum(p * t + g * s, 1) / C
        p, g = rounded(p, DTYPE), rounded(g, DTYPE)
        d_mean = tl.load(rows_ptr + R + queries, mask=real, other=0.0)
        u_mean = tl.load(rows_ptr + 2 * R + queries, mask=real, other=0.0)
        dz_mean = tl.sum(p.to(tl.float32) * d_mean[None, :] + g.to(tl.float32) * u_mean[None, :], 1)
        if partial_ptr is None:
            place = (batch * R + queries)[None, :] * M + (M - N) + tokens[:, None]
            tl.store(weights_ptr + place, g.to(tl.float32), mask=within[:, None] & real[None, :])
            if remainder_ptr is not None:
                tl.store(remainder_ptr + batch * M + (M - N) + tokens, remainder, mask=within)
        p, g = over_slices(p, SLICES), over_slices(g, SLICES)
        before, accs = accs, ()
        for k in tl.static_range(CHUNKS):
            if partial_ptr is not None:
                accs += (dot(tl.permute(zs[k], (0, 2, 1)), g, before[k], PRECISION),)
            u = held(us[k], query_ptr, query_strides[1], queries, R, k, C, CHUNK, HOLD)
            d = held(ds[k], dpooled_ptr, dpooled_strides[1], queries, R, k, C, CHUNK, HOLD)
            dx = dot(p, d, tl.zeros(zs[k].shape, tl.float32), PRECISION)
            dx = dot(g, u, dx, PRECISION)
            if NORMALIZE:
                dx -= dz_mean[None, :, None] + zs[k].to(tl.float32) * along_z[None, :, None]
                dx *= rstd[None, :, None]
            if accumulate_ptr is not None:
                dx += load_chunk(accumulate_ptr, accumulate_strides[1], rows, k, C, CHUNK, SLICES).to(
                    tl.float32
                )
            columns = columns_of(k, CHUNK, SLICES)
            ptrs = dtokens_ptr + rows.to(tl.int64)[None, :, None] * dtokens_strides[1] + columns
            tl.store(ptrs, rounded(dx, DTYPE), mask=within[None, :, None] & (columns < C))
    if partial_ptr is not None:
        rows = (batch * splits + split) * R + queries
        for k in tl.static_range(CHUNKS):
            columns = tl.permute(columns_of(k, CHUNK, SLICES), (0, 2, 1))
            ptrs = partial_ptr + rows[None, None, :] * C + columns
            tl.store(ptrs, accs[k], mask=(queries < R)[None, None, :] & (columns < C))


@jit
def attention_pool_bwd_combine_kernel(
    extra_ptr, partial_ptr, rows_ptr, dquery_ptr, extra_stride, eps, R, splits,
    C: tl.constexpr, BLOCK_C: tl.constexpr, SPLITS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """One query's gradient: the splits' sums and the extra row's."""
    row = tl.program_id(0).to(tl.int64)  # batch * R + query
    batch = row // R
    columns = tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_C], tl.float32)
    if extra_ptr is not None:
        x = load_row(extra_ptr + batch * extra_stride, C, BLOCK_C)
        mean, remainder, rstd = row_statistics(x, eps, C, NORMALIZE)
        acc = tl.load(rows_ptr + (batch * 4 + 3) * R + row % R) * ((x - mean - remainder) * rstd)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        ptrs = partial_ptr + ((batch * splits + split) * R + row % R)[:, None] * C + columns[None, :]
        tile = tl.load(ptrs, mask=(split < splits)[:, None] & (columns < C)[None, :], other=0.0)
        acc += tl.sum(tile, 0)
    tl.store(dquery_ptr + row * C + columns, rounded(acc, dquery_ptr.dtype.element_ty), mask=columns < C)
