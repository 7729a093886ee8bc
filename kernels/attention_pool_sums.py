"""The second step of attention pooling when few samples share the device: weighted sums of the rows.

A single pass needs a float32 sum (R, C) for each program that runs at once. With few samples these would take
many times 8 R N numbers per sample. The first step then stores its weights instead, R numbers per token, and
this kernel sums the rows: N is split into few parts, but each program sums some columns only, which makes
enough programs. It reads the tokens again, from the L2: with few samples they fit.
"""

import triton.language as tl

from .attention_pool_tiles import LOG2_E, QUERIES, jit
from .tiles import dot, finite, rounded


@jit
def attention_pool_sums_kernel(
    weights_ptr, tokens_ptr, mean_ptr, rstd_ptr, remainder_ptr, partial_ptr, max_ptr, sum_ptr,
    tokens_strides, N, M, R, splits, share,
    C: tl.constexpr, COLUMNS: tl.constexpr, TOKENS: tl.constexpr, NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_j w_rj z_j over `share` tokens, for a group of queries r and COLUMNS columns.

    weights_ptr is (B, R, M): with `max_ptr` scores, whose exponentials are the weights, unnormalised; then
    maxima (base 2) and sums of weights are stored too.
    """
    DTYPE: tl.constexpr = tokens_ptr.dtype.element_ty
    groups = tl.cdiv(R, QUERIES)
    split = tl.program_id(0) % splits
    batch = (tl.program_id(0) // splits // groups).to(tl.int64)
    queries = tl.program_id(0) // splits % groups * QUERIES + tl.arange(0, QUERIES)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tokens_ptr += batch * tokens_strides[0] + columns[None, :]
    largest = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, COLUMNS], tl.float32)
    begin = split * share
    for start in range(begin, tl.minimum(begin + share, N), TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        within = tokens < N
        real = (queries < R)[:, None] & within[None, :]
        rows = tl.minimum(tokens, N - 1)
        z = tl.load(
            tokens_ptr + rows.to(tl.int64)[:, None] * tokens_strides[1],
            mask=(columns < C)[None, :],
            other=0.0,
        )
        if NORMALIZE:
            place = batch * M + (M - N) + rows
            z = z.to(tl.float32) - tl.load(mean_ptr + place)[:, None]
            if remainder_ptr is not None:
                z -= tl.load(remainder_ptr + place)[:, None]
            z = rounded(z * tl.load(rstd_ptr + place)[:, None], DTYPE)
        place = (batch * R + queries)[:, None] * M + (M - N) + rows[None, :]
        if max_ptr is not None:
            s = tl.load(weights_ptr + place, mask=real, other=-float("inf"))
            raised = tl.maximum(largest, tl.max(s, 1) * LOG2_E)
            shift = finite(raised)
            factor = tl.exp2(largest - shift)
            largest = raised
            w = tl.exp2(s * LOG2_E - shift[:, None])
            total = total * factor + tl.sum(w, 1)
            acc *= factor[:, None]
        else:
            w = tl.load(weights_ptr + place, mask=real, other=0.0)
        acc = dot(rounded(w, DTYPE), z, acc, PRECISION)
    rows = (batch * splits + split) * R + queries
    if max_ptr is not None:
        mask = (queries < R) & (tl.program_id(1) == 0)
        tl.store(max_ptr + rows, largest, mask=mask)
        tl.store(sum_ptr + rows, total, mask=mask)
    mask = (queries < R)[:, None] & (columns < C)[None, :]
    tl.store(partial_ptr + rows[:, None] * C + columns[None, :], acc, mask=mask)
