"""Space-time self-attention in Triton: the forward, and a deterministic backward split into dq and dk/dv.

B batch, N queries, M keys, H heads, D head width. Tensors are (B, N, H, D) or (B, M, H, D), read and written
by stride with a last stride of 1: the packed projection (B, N, 3, H, D) and its packed gradient need no copy.

Logarithms have base 2: weights are exp2(c s - lse) with s = q k', c = scale log2(e), lse = log2(sum exp2(c
s)). q is not multiplied by the scale, which would round it (errors of 7e-3 against 3e-4 at peaked logits): c
goes into the exponent's fused multiply-add.

Only one of the tiles that a loop runs over is ragged, with 1 to all of its rows in use, and it is handled
outside the loop: inside, loads and weights need no mask.
"""

import math
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of, launch_within, made_current, precision_of
from .space_time_attention_configs import Config, backward_kernels, config_for, smaller
from .tiles import advance, dot, dot_transposed, exp2, finite, in_registers, load, pointers, store

_LOG2_E = math.log2(math.e)
_FLT_MAX = tl.constexpr(3.4028234663852886e38)
# Largest sums of weights for which the frozen maximum is trusted. Weights in float16 end at 65504; otherwise
# 2^40 leaves room for values up to 2^87, and costs one rounding.
_LIMITS = {torch.float16: 2.0**15, torch.bfloat16: 2.0**40, torch.float32: 2.0**40}


# Do not specialise on lengths: a length of 1 or a multiple of 16 then needs no new compilation. With
# specialisation one token with one head does not build in Triton 3.6 for sm_100.
_jit = triton.jit(do_not_specialize=("N", "M", "H"))


@triton.jit
def _place(length, heads, BLOCK: tl.constexpr):
    """(batch, head, first row) of this program; blocks of one head are neighbours: they share the L2."""
    blocks = tl.cdiv(length, BLOCK)
    owner = tl.program_id(0) // blocks
    return owner // heads, owner % heads, tl.program_id(0) % blocks * BLOCK


@triton.jit
def _ragged(length, BLOCK: tl.constexpr):
    """The rows of the ragged tile, 1 to BLOCK."""
    return length - (length - 1) // BLOCK * BLOCK


@triton.jit
def _rescale(acc, total, m, tile_max):
    """(acc, total, m) with the running maximum raised to that of one more tile."""
    raised = tl.maximum(m, tile_max)
    factor = tl.exp2(m - finite(raised))
    return acc * factor[:, None], total * factor, raised


@triton.jit
def _weigh(
    acc, total, s, shift, v_ptrs, c, keys,
    D: tl.constexpr, WHOLE: tl.constexpr, POLYNOMIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(acc + p v, total + sum p) over one tile of keys, of which `keys` count; p = exp2(c s - shift)."""
    p = exp2(c * s - shift[:, None], POLYNOMIAL)  # [BLOCK_N, BLOCK_M]
    if not WHOLE:
        p = tl.where((tl.arange(0, s.shape[1]) < keys)[None, :], p, 0.0)
    v = load(v_ptrs, keys, D, WHOLE)
    return dot(p.to(v.dtype), v, acc, PRECISION), total + tl.sum(p, 1)


@triton.jit
def _tile_max(s, c, keys):
    """The row maximum of c s over the first `keys` keys of a tile; c >= 0."""
    return c * tl.max(tl.where((tl.arange(0, s.shape[1]) < keys)[None, :], s, -float("inf")), 1)


@triton.jit
def _attend(
    q, k_ptrs, v_ptrs, k_stride, v_stride, c, M,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
    FROZEN: tl.constexpr, POLYNOMIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Unnormalised output [BLOCK_N, BLOCK_D], sum of weights and maximum of c s [BLOCK_N] of a block; c >= 0.

    FROZEN keeps the maximum of the first BLOCK_M keys, so nothing in the loop waits for a maximum or
    rescales; the caller checks what came of it. It takes the ragged tile first, the online form last: were
    their first tiles alike, the compiler would compute one for both and keep it alive across the fast loop.
    """
    ragged = _ragged(M, BLOCK_M)
    acc = tl.zeros([q.shape[0], q.shape[1]], tl.float32)
    total = tl.zeros([q.shape[0]], tl.float32)
    if FROZEN:
        s = dot_transposed(q, load(k_ptrs, M, D, False), PRECISION)
        m = finite(_tile_max(s, c, M))
        acc, total = _weigh(acc, total, s, m, v_ptrs, c, ragged, D, False, POLYNOMIAL, PRECISION)
        begin, end = ragged, M
    else:
        m = tl.full([q.shape[0]], -float("inf"), tl.float32)
        begin, end = 0, M - ragged
    for start in range(begin, end, BLOCK_M):
        s = dot_transposed(q, load(advance(k_ptrs, start, k_stride), BLOCK_M, D, True), PRECISION)
        if not FROZEN:
            acc, total, m = _rescale(acc, total, m, c * tl.max(s, 1))
        v_tile, shift = advance(v_ptrs, start, v_stride), m if FROZEN else finite(m)
        acc, total = _weigh(acc, total, s, shift, v_tile, c, BLOCK_M, D, True, POLYNOMIAL, PRECISION)
    if not FROZEN:
        s = dot_transposed(q, load(advance(k_ptrs, end, k_stride), ragged, D, False), PRECISION)
        acc, total, m = _rescale(acc, total, m, _tile_max(s, c, ragged))
        v_tile = advance(v_ptrs, end, v_stride)
        acc, total = _weigh(acc, total, s, finite(m), v_tile, c, ragged, D, False, POLYNOMIAL, PRECISION)
    return acc, total, m


@triton.jit
def _untrusted(acc, total, limit):
    """Whether any row left the range of a frozen maximum. Written so that NaN counts as having left it.

    An ordinary row has a sum >= 1, up to rounding: its maximum is one of its weights. Less means a maximum
    of -inf.
    """
    rows = tl.min(((total >= 0.5) & (total <= limit)).to(tl.int32), 0)
    # Over both axes at once: a reduction by axis here stops Triton 3.6 and 3.7 from building for sm_100.
    finite = tl.min((tl.abs(acc) <= _FLT_MAX).to(tl.int32))
    return (rows & finite) == 0


@_jit
def _space_time_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, q_strides, k_strides, v_strides, out_strides, c, limit, N, M, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    FROZEN: tl.constexpr, POLYNOMIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head."""
    batch, head, start = _place(N, H, BLOCK_N)
    q = load(pointers(q_ptr, q_strides, batch, head, start, BLOCK_N, BLOCK_D), N - start, D, WHOLE=False)
    # Changing signs rounds nothing; the maximum of c s is then c times that of s, whatever the scale's sign.
    q = (q.to(tl.float32) * tl.where(c < 0, -1.0, 1.0)).to(q.dtype)
    c = tl.abs(c)
    k_ptrs = pointers(k_ptr, k_strides, batch, head, 0, BLOCK_M, BLOCK_D)
    v_ptrs = pointers(v_ptr, v_strides, batch, head, 0, BLOCK_M, BLOCK_D)
    acc, total, m = _attend(
        q, k_ptrs, v_ptrs, k_strides[1], v_strides[1], c, M, D, BLOCK_M, FROZEN, POLYNOMIAL, PRECISION
    )
    if FROZEN:  # noqa: SIM102 - the outer one is decided when compiling
        if _untrusted(acc, total, limit):
            acc, total, m = _attend(
                q, k_ptrs, v_ptrs, k_strides[1], v_strides[1], c, M, D, BLOCK_M, False, False, PRECISION
            )
    out_ptrs = pointers(out_ptr, out_strides, batch, head, start, BLOCK_N, BLOCK_D)
    store(out_ptrs, acc / total[:, None], N - start, D)
    rows = start + tl.arange(0, BLOCK_N)
    lse_ptr += (batch * H + head).to(tl.int64) * N
    tl.store(lse_ptr + rows, finite(m) + tl.log2(total), mask=rows < N)


@triton.jit
def _dq_tile(
    acc, q, dout, lse, delta, k_ptrs, v_ptrs, c, keys,
    D: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc + ds k` over one tile of keys, of which `keys` count."""
    k = load(k_ptrs, keys, D, WHOLE)
    p = tl.exp2(c * dot_transposed(q, k, PRECISION) - lse[:, None])  # [BLOCK_N, BLOCK_M]
    if not WHOLE:
        p = tl.where((tl.arange(0, k.shape[0]) < keys)[None, :], p, 0.0)
    dp = dot_transposed(dout, load(v_ptrs, keys, D, WHOLE), PRECISION)
    ds = p * (dp - delta[:, None])
    return dot(ds.to(k.dtype), k, acc, PRECISION)


@_jit
def _space_time_attention_bwd_dq_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, dout_ptr, dq_ptr, lse_ptr, delta_ptr,
    q_strides, k_strides, v_strides, out_strides, dout_strides, dq_strides, c, scale, N, M, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries, and delta = rowsum(dout * out) for the kernel of dk and dv."""
    batch, head, start = _place(N, H, BLOCK_N)
    left = N - start
    q = load(pointers(q_ptr, q_strides, batch, head, start, BLOCK_N, BLOCK_D), left, D, WHOLE=False)
    out = load(pointers(out_ptr, out_strides, batch, head, start, BLOCK_N, BLOCK_D), left, D, WHOLE=False)
    dout = load(pointers(dout_ptr, dout_strides, batch, head, start, BLOCK_N, BLOCK_D), left, D, WHOLE=False)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    rows = start + tl.arange(0, BLOCK_N)
    offset = (batch * H + head).to(tl.int64) * N
    lse = tl.load(lse_ptr + offset + rows, mask=rows < N, other=0.0)
    tl.store(delta_ptr + offset + rows, delta, mask=rows < N)
    k_ptrs = pointers(k_ptr, k_strides, batch, head, 0, BLOCK_M, BLOCK_D)
    v_ptrs = pointers(v_ptr, v_strides, batch, head, 0, BLOCK_M, BLOCK_D)
    ragged = _ragged(M, BLOCK_M)
    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc = _dq_tile(acc, q, dout, lse, delta, k_ptrs, v_ptrs, c, ragged, D, False, PRECISION)
    for key in range(ragged, M, BLOCK_M):
        k_tile, v_tile = advance(k_ptrs, key, k_strides[1]), advance(v_ptrs, key, v_strides[1])
        acc = _dq_tile(acc, q, dout, lse, delta, k_tile, v_tile, c, BLOCK_M, D, True, PRECISION)
    store(pointers(dq_ptr, dq_strides, batch, head, start, BLOCK_N, BLOCK_D), acc * scale, left, D)


@triton.jit
def _dkv_tile(
    dk, dv, k, v, q_ptrs, dout_ptrs, lse_ptrs, delta_ptrs, c, rows,
    D: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """(dk + ds' q, dv + p' dout), each if asked for, over one tile of queries, of which `rows` count."""
    q = load(q_ptrs, rows, D, WHOLE)
    dout = load(dout_ptrs, rows, D, WHOLE)
    if WHOLE:
        lse, delta = tl.load(lse_ptrs), tl.load(delta_ptrs)
    else:  # a log-sum-exp of infinity makes a weight of 0
        within = tl.arange(0, q.shape[0]) < rows
        lse = tl.load(lse_ptrs, mask=within, other=float("inf"))
        delta = tl.load(delta_ptrs, mask=within, other=0.0)
    # Transposed from the start, [BLOCK_M, BLOCK_N]: Triton 3.4 to 3.7.0 gets tl.trans of a product wrong.
    p = tl.exp2(c * dot_transposed(k, q, PRECISION) - lse[None, :])
    if DK:  # issued before dv, which waits for p: the exponentials then overlap with dp, and ds with dv
        dp = dot_transposed(v, dout, PRECISION)
    if DV:
        dv = dot(p.to(dout.dtype), dout, dv, PRECISION)
    if DK:
        ds = p * (dp - delta[None, :])
        dk = dot(ds.to(q.dtype), q, dk, PRECISION)
    return dk, dv


@_jit
def _space_time_attention_bwd_dkv_kernel(
    q_ptr, k_ptr, v_ptr, dout_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr,
    q_strides, k_strides, v_strides, dout_strides, dk_strides, dv_strides, c, scale, N, M, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of keys and values, or that of the two which has a pointer."""
    DK: tl.constexpr = dk_ptr is not None
    DV: tl.constexpr = dv_ptr is not None
    batch, head, start = _place(M, H, BLOCK_M)
    left = M - start
    k = load(pointers(k_ptr, k_strides, batch, head, start, BLOCK_M, BLOCK_D), left, D, WHOLE=False)
    v = load(pointers(v_ptr, v_strides, batch, head, start, BLOCK_M, BLOCK_D), left, D, WHOLE=False)
    if HELD:
        k, v = in_registers(k), in_registers(v)
    q_ptrs = pointers(q_ptr, q_strides, batch, head, 0, BLOCK_N, BLOCK_D)
    dout_ptrs = pointers(dout_ptr, dout_strides, batch, head, 0, BLOCK_N, BLOCK_D)
    offsets = (batch * H + head).to(tl.int64) * N + tl.arange(0, BLOCK_N)
    lse_ptrs, delta_ptrs = lse_ptr + offsets, delta_ptr + offsets
    ragged = _ragged(N, BLOCK_N)
    dk = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dk, dv = _dkv_tile(
        dk, dv, k, v, q_ptrs, dout_ptrs, lse_ptrs, delta_ptrs, c, ragged, D, False, PRECISION, DK, DV
    )
    for row in range(ragged, N, BLOCK_N):
        q_tile, dout_tile = advance(q_ptrs, row, q_strides[1]), advance(dout_ptrs, row, dout_strides[1])
        lse_tile, delta_tile = lse_ptrs + row, delta_ptrs + row
        dk, dv = _dkv_tile(
            dk, dv, k, v, q_tile, dout_tile, lse_tile, delta_tile, c, BLOCK_N, D, True, PRECISION, DK, DV
        )
    if DK:
        store(pointers(dk_ptr, dk_strides, batch, head, start, BLOCK_M, BLOCK_D), dk * scale, left, D)
    if DV:
        store(pointers(dv_ptr, dv_strides, batch, head, start, BLOCK_M, BLOCK_D), dv, left, D)


JITTED = {
    "fwd": _space_time_attention_fwd_kernel,
    "dq": _space_time_attention_bwd_dq_kernel,
    "dkv": _space_time_attention_bwd_dkv_kernel,
    "dk": _space_time_attention_bwd_dkv_kernel,
    "dv": _space_time_attention_bwd_dkv_kernel,
}


def padded(width: int) -> int:
    """The head width of the tiles: a power of two, at least 16 as matrix products require."""
    return max(16, triton.next_power_of_2(width))


def meta(kernel: str, width: int, config: Config, precision: str) -> dict[str, Any]:
    """The constants and launch options of one kernel, by keyword."""
    owns_keys = kernel in ("dkv", "dk", "dv")
    shared = {
        "D": width,
        "BLOCK_D": padded(width),
        "BLOCK_N": config.cols if owns_keys else config.rows,
        "BLOCK_M": config.rows if owns_keys else config.cols,
        "PRECISION": precision,
        "num_warps": config.warps,
        "num_stages": config.stages,
        "maxnreg": config.registers,
        "enable_fp_fusion": True,  # Triton 3.10 turns it off by default
    }
    if kernel == "fwd":
        return shared | {"FROZEN": config.frozen, "POLYNOMIAL": config.polynomial}
    return shared if kernel == "dq" else shared | {"HELD": config.held}


def _strides(*tensors: Tensor) -> tuple[tuple[int, ...], ...]:
    """(batch, row, head) strides of each tensor; the last stride is 1."""
    return tuple(tensor.stride()[:3] for tensor in tensors)


def space_time_attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """For q (B, N, H, D), k, v (B, M, H, D): out (B, N, H, D) contiguous, lse (B, H, N) float32 of base 2."""
    B, N, H, D = q.shape
    device, precision = device_of(q.device), precision_of(q.dtype)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((B, H, N), dtype=torch.float32, device=q.device)

    def launch(config: Config) -> None:
        _space_time_attention_fwd_kernel[(triton.cdiv(N, config.rows) * B * H,)](
            q, k, v, out, lse, *_strides(q, k, v, out), scale * _LOG2_E, _LIMITS[q.dtype], N, k.shape[1], H,
            **meta("fwd", D, config, precision),
        )  # fmt: skip

    config = config or config_for("fwd", padded(D), q.dtype, precision=precision, device=device)
    with made_current(q):
        launch_within(device, f"space_time_attention fwd, D={D}", config, smaller(config), launch)
    return out, lse


def space_time_attention_bwd(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
    dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Fill dq (B, N, H, D), dk, dv (B, M, H, D), which may be views of one packed gradient. Deterministic."""
    B, N, H, D = q.shape
    M = k.shape[1]
    device, precision = device_of(q.device), precision_of(q.dtype)
    delta = torch.empty_like(lse)
    sizes = (scale * _LOG2_E, scale, N, M, H)

    def launch_dq(config: Config) -> None:
        _space_time_attention_bwd_dq_kernel[(triton.cdiv(N, config.rows) * B * H,)](
            q, k, v, out, dout, dq, lse, delta, *_strides(q, k, v, out, dout, dq), *sizes,
            **meta("dq", D, config, precision),
        )  # fmt: skip

    def launch_dkv(kernel: str, config: Config) -> None:
        _space_time_attention_bwd_dkv_kernel[(triton.cdiv(M, config.rows) * B * H,)](
            q, k, v, dout, dk if "k" in kernel else None, dv if "v" in kernel else None, lse, delta,
            *_strides(q, k, v, dout, dk, dv), *sizes, **meta(kernel, D, config, precision),
        )  # fmt: skip

    with made_current(q):
        for kernel in backward_kernels(padded(D), precision):
            launch = launch_dq if kernel == "dq" else partial(launch_dkv, kernel)
            config = config_for(kernel, padded(D), q.dtype, precision=precision, device=device)
            launch_within(device, f"space_time_attention {kernel}, D={D}", config, smaller(config), launch)
