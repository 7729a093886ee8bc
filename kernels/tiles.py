"""Tile helpers that the kernels share: loads and stores with ragged edges, products, exponentials.

Importing this module does not use the Triton driver, so it needs no GPU.
"""

import triton
import triton.language as tl

# TRITON_INTERPRET=1 when this module was first imported: kernels run on CPU tensors.
IS_INTERPRETED: bool = triton.knobs.runtime.interpret
INTERPRETED = tl.constexpr(IS_INTERPRETED)

# 2^r over [-1/2, 1/2] by 1 + r (C1 + r (C2 + r C3)): relative error 1.02e-4, exact at 0 so that a lone key
# keeps the weight 1. One weight in four takes it; bfloat16 rounds every weight by up to 3.9e-3, float16 by
# 4.9e-4.
_C1 = tl.constexpr(0.6932829)  # 0f3F317AFD
_C2 = tl.constexpr(0.24221096)  # 0f3E780627
_C3 = tl.constexpr(0.055008932)  # 0f3D61510C
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23, 0f4B400000: adding it leaves an integer in the low bits

# Three of four on the exponential unit, the fourth as `_exp2_polynomial`, clamped to [-126, 128]: beyond, the
# exponent shift would wrap round to negative or small weights. A NaN passes the clamp, and the shift turns it
# into FLT_MAX: more than any sum of weights may be, so the block is redone and becomes NaN.
_EXP2_PACK = tl.constexpr("""{
.reg .f32 x, n, r, p;
.reg .b32 i, j;
max.NaN.f32 x, $7, 0fC2FC0000;
min.NaN.f32 x, x, 0f43000000;
add.rn.f32 n, x, 0f4B400000;
sub.rn.f32 r, n, 0f4B400000;
sub.rn.f32 r, x, r;
fma.rn.f32 p, r, 0f3D61510C, 0f3E780627;
fma.rn.f32 p, p, r, 0f3F317AFD;
fma.rn.f32 p, p, r, 0f3F800000;
mov.b32 i, n;
mov.b32 j, p;
shl.b32 i, i, 23;
add.s32 i, i, j;
mov.b32 $3, i;
ex2.approx.ftz.f32 $0, $4;
ex2.approx.ftz.f32 $1, $5;
ex2.approx.ftz.f32 $2, $6;
}""")


@triton.jit
def pointers(ptr, strides, batch, head, start, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pointers to BLOCK rows of one head from row `start`, in int64: right beyond 2^31 elements."""
    rows = (tl.arange(0, BLOCK) + start).to(tl.int64)
    ptr += batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[2]
    return ptr + rows[:, None] * strides[1] + tl.arange(0, BLOCK_D)[None, :]  # [BLOCK, BLOCK_D]


@triton.jit
def advance(ptrs, rows, stride):
    """`ptrs`, `rows` rows further on."""
    return ptrs + tl.cast(rows, tl.int64) * stride


@triton.jit
def _within(ptrs, rows, D: tl.constexpr):
    return (tl.arange(0, ptrs.shape[0]) < rows)[:, None] & (tl.arange(0, ptrs.shape[1]) < D)[None, :]


@triton.jit
def load(ptrs, rows, D: tl.constexpr, WHOLE: tl.constexpr):
    """A tile with zeros from row `rows` and column D on; WHOLE: no row is missing."""
    if WHOLE:
        if ptrs.shape[1] == D:
            tile = tl.load(ptrs)
        else:
            tile = tl.load(ptrs, mask=_within(ptrs, ptrs.shape[0], D), other=0.0)
    else:
        tile = tl.load(ptrs, mask=_within(ptrs, rows, D), other=0.0)
    return tile


@triton.jit
def store(ptrs, tile, rows, D: tl.constexpr):
    """Write the first `rows` rows and D columns of a tile in the dtype of the memory."""
    tl.store(ptrs, tile.to(ptrs.dtype.element_ty), mask=_within(ptrs, rows, D))


@triton.jit
def _bfloat16(x):
    """float32 rounded to the nearest number of bfloat16, still in float32. For the interpreter alone."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """float32 in DTYPE, to nearest even. Interpreted, the cast to bfloat16 cuts bits off: round before it."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        x = _bfloat16(x)
    return x.to(DTYPE)


@triton.jit
def _parts(x):
    """float32 as a sum of three numbers of bfloat16's 8 bits, in float32."""
    high = _bfloat16(x)
    middle = _bfloat16(x - high)
    return high, middle, _bfloat16(x - high - middle)


@triton.jit
def _dot_in_parts(a, b, acc):
    """What the compiler makes of "bf16x6": the products of parts above 2^-24 of the whole, smallest first.

    Of an infinite part the others are NaN, and count for nothing.
    """
    ah, am, al = _parts(a)
    bh, bm, bl = _parts(b)
    low = tl.dot(am, bm, input_precision="ieee")
    low = tl.dot(al, bh, low, input_precision="ieee")
    low = tl.dot(ah, bl, low, input_precision="ieee")
    low = tl.dot(am, bh, low, input_precision="ieee")
    low = tl.dot(ah, bm, low, input_precision="ieee")
    return acc + tl.dot(ah, bh, tl.where(low == low, low, 0.0), input_precision="ieee")


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """`acc + a b` in fp32. Interpreted, bfloat16 products are garbage (Triton 3.6 to 3.9): upcast there."""
    if INTERPRETED:
        if PRECISION == "bf16x6" and a.dtype == tl.float32:
            acc = _dot_in_parts(a, b, acc)
        else:
            acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def dot_transposed(a, b, PRECISION: tl.constexpr):
    """`a b'` in fp32, [rows of a, rows of b]; b comes from memory, never from another product."""
    return dot(a, tl.trans(b), tl.zeros([a.shape[0], b.shape[0]], tl.float32), PRECISION)


@triton.jit
def in_registers(x):
    """A 16-bit tile as it is, but kept in registers: a plain loaded tile is the left operand of `wgmma` from
    shared memory, which then is read again for every product.
    """
    if not INTERPRETED:
        # The compiler sees a computed value, so it leaves the tile where it is; the move itself vanishes.
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=True, pack=2)
    return x


@triton.jit
def finite(m):
    """What to subtract for a maximum: 0 for -inf (all products so far overflowed), as -inf - -inf is NaN."""
    return tl.where(m == -float("inf"), 0.0, m)


@triton.jit
def _exp2_polynomial(x):
    """The fourth lane of `_EXP2_PACK` in plain operations."""
    x = tl.maximum(x, -126.0, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, 128.0, propagate_nan=tl.PropagateNan.ALL)
    n = x + _ROUND
    r = x - (n - _ROUND)
    p = 1.0 + r * (_C1 + r * (_C2 + r * _C3))
    shifted = (n.to(tl.int32, bitcast=True) << 23) + p.to(tl.int32, bitcast=True)
    return shifted.to(tl.float32, bitcast=True)


@triton.jit
def exp2(x, POLYNOMIAL: tl.constexpr):
    """2^x of a tile; POLYNOMIAL takes a quarter off the exponential unit, to a relative error of 1.02e-4."""
    if not POLYNOMIAL:
        y = tl.exp2(x)
    elif INTERPRETED:
        fourth = (tl.arange(0, x.shape[1]) % 4 == 3)[None, :]
        y = tl.where(fourth, _exp2_polynomial(x), tl.exp2(x))
    else:
        y = tl.inline_asm_elementwise(
            _EXP2_PACK, "=&f,=&f,=&f,=&f,f,f,f,f", [x], dtype=tl.float32, is_pure=True, pack=4
        )
    return y
