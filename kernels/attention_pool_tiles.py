"""Tiles of the attention-pooling kernels: rows of any width, in chunks of columns, normalised in float32.

Widths need not be powers of two, but chunks of columns are; a chunk is [slices, rows, columns].
"""

import math

import triton
import triton.language as tl

from .tiles import rounded

QUERIES = tl.constexpr(16)  # per group, and pass over the tokens
LOG2_E = tl.constexpr(math.log2(math.e))

# Do not specialise on lengths: no length needs a new compilation.
jit = triton.jit(do_not_specialize=("N", "M", "R", "splits", "share", "group"))


@triton.jit
def columns_of(chunk, CHUNK: tl.constexpr, SLICES: tl.constexpr):
    """[SLICES, 1, columns]."""
    WIDTH: tl.constexpr = CHUNK // SLICES
    slices = tl.arange(0, SLICES)[:, None, None] * WIDTH
    return chunk * CHUNK + slices + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def load_chunk(ptr, stride, rows, chunk, C: tl.constexpr, CHUNK: tl.constexpr, SLICES: tl.constexpr):
    """Chunk of rows [SLICES, rows, columns], zeros from column C on."""
    columns = columns_of(chunk, CHUNK, SLICES)
    ptrs = ptr + rows.to(tl.int64)[None, :, None] * stride + columns
    return tl.load(ptrs) if C % CHUNK == 0 else tl.load(ptrs, mask=columns < C, other=0.0)


@triton.jit
def load_queries(ptr, stride, queries, R, chunk, C: tl.constexpr, CHUNK: tl.constexpr, SLICES: tl.constexpr):
    """Chunk of a group of queries [SLICES, 16, columns], zeros from query R and column C on."""
    columns = columns_of(chunk, CHUNK, SLICES)
    ptrs = ptr + queries.to(tl.int64)[None, :, None] * stride + columns
    return tl.load(ptrs, mask=(queries < R)[None, :, None] & (columns < C), other=0.0)


@triton.jit
def held(
    tile, ptr, stride, queries, R, chunk, C: tl.constexpr, CHUNK: tl.constexpr, HOLD: tl.constexpr
):  # fmt: skip
    """`tile`, which `load_queries` loaded, or the same loaded again."""
    if not HOLD:
        tile = load_queries(ptr, stride, queries, R, chunk, C, CHUNK, tile.shape[0])
    return tile


@triton.jit
def row_sums(tile):
    """[SLICES, rows, columns] -> [rows]."""
    return tl.sum(tl.sum(tile, 2), 0)


@triton.jit
def centred_chunk(x, mean, chunk, C: tl.constexpr, CHUNK: tl.constexpr):
    """X - mean in float32, and zeros from column C on."""
    centred = x.to(tl.float32) - mean[None, :, None]
    if C % CHUNK != 0:
        centred = tl.where(columns_of(chunk, CHUNK, x.shape[0]) < C, centred, 0.0)
    return centred


@triton.jit
def remainder_of(xs, mean, C: tl.constexpr, CHUNK: tl.constexpr):
    """What rounding left out of the mean, [rows]: of a mean of 1e4 in float32, up to 5e-4.

    In 16 bits z is rounded by more than that.
    """
    remainder = tl.zeros(mean.shape, tl.float32)
    if xs[0].dtype == tl.float32:
        sums = centred_chunk(xs[0], mean, 0, C, CHUNK)
        for k in tl.static_range(1, len(xs)):
            sums += centred_chunk(xs[k], mean, k, C, CHUNK)
        remainder = row_sums(sums) / C
    return remainder


@triton.jit
def normalised(x, mean, remainder, rstd, chunk, C: tl.constexpr, CHUNK: tl.constexpr):
    """Z of a chunk, rounded to the dtype of x."""
    centred = centred_chunk(x, mean, chunk, C, CHUNK)
    if x.dtype == tl.float32:
        centred = centred_chunk(centred, remainder, chunk, C, CHUNK)
    return rounded(centred * rstd[None, :, None], x.dtype)


@triton.jit
def over_slices(tile, SLICES: tl.constexpr):
    """[a, b] -> [SLICES, a, b]."""
    return tl.broadcast_to(tile[None, :, :], [SLICES, tile.shape[0], tile.shape[1]])


@triton.jit
def load_row(ptr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """One row in float32, zeros from column C on."""
    columns = tl.arange(0, BLOCK_C)
    return tl.load(ptr + columns, mask=columns < C, other=0.0).to(tl.float32)


@triton.jit
def row_statistics(x, eps, C: tl.constexpr, NORMALIZE: tl.constexpr):
    """(mean, remainder of the mean, rstd) of a row; 0, 0 and 1 where tokens are taken as they are."""
    if NORMALIZE:
        within = tl.arange(0, x.shape[0]) < C
        mean = tl.div_rn(tl.sum(x, 0), C * 1.0)
        remainder = tl.sum(tl.where(within, x - mean, 0.0), 0) / C
        centred = tl.where(within, x - mean - remainder, 0.0)
        rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, 0) / C + eps)
    else:
        mean, remainder, rstd = 0.0, 0.0, 1.0
    return mean, remainder, rstd
