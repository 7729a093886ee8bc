"""Inputs of the GPU tests, and the launches that follow from them, so that kernels can be compiled ahead.

A kernel is compiled again for another width, dtype, extra row and the like, but not for another length: draws
take these properties from small fixed sets, and batches, lengths, heads and layouts freely. `launches` covers
every kernel that smoke, tests and draws launch; `tests/benchmarks/test_compile_ahead.py` checks the draws.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from hsta_fast import space_time_attention
from hsta_fast.crossmodal import CrossAttentionBlock
from hsta_fast.layers import SpaceTimeAttention
from hsta_fast.presets import create_model
from tests.kernels.pool_checks import inputs as pool_inputs
from tests.kernels.pool_checks import kernels as pool_kernels
from tests.kernels.pool_checks import randn
from tests.ops.attention_checks import LAYOUTS
from tests.ops.attention_checks import inputs as attention_inputs
from tests.tolerance import DEVICE, with_gradients

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HALVES = (BF16, FP16)
DTYPES = (BF16, FP16, FP32)
SEEDS, DRAWS = range(8), 50

# Head width, dtype. 48 fills no tile.
ATTENTION = [(64, BF16), (32, BF16), (128, BF16), (48, BF16), (64, FP16), (32, FP16), (64, FP32)]


class Pool(NamedTuple):
    """The properties that attention pooling is compiled for."""

    C: int
    dtype: torch.dtype
    extra: bool = True
    normalize: bool = True


POOLS = [
    Pool(384, BF16),
    Pool(768, BF16),
    Pool(384, FP16),
    Pool(384, FP32),
    Pool(208, BF16, extra=False),
    Pool(400, BF16, normalize=False),
]
ACCUMULATING = 17  # queries from which the backward adds to what an earlier group of 16 wrote


class AttentionShape(NamedTuple):
    """The arguments of `attention_inputs`."""

    layout: str
    B: int
    N: int
    M: int
    H: int
    D: int
    dtype: torch.dtype


def attention_draws(seed: int) -> Iterator[AttentionShape]:
    """Random shapes, half of them at D = 32, where Triton 3.6 and 3.7 have made illegal accesses."""
    draw = random.Random(seed)
    narrow = [kind for kind in ATTENTION if kind[0] == 32]
    for _ in range(DRAWS):
        D, dtype = draw.choice(narrow if draw.random() < 0.5 else ATTENTION)
        N, M = draw.randint(1, 700), draw.randint(1, 700)
        yield AttentionShape(draw.choice(LAYOUTS), draw.randint(1, 5), N, M, draw.randint(1, 7), D, dtype)


class PoolShape(NamedTuple):
    """Samples, queries, tokens, and the properties that are compiled for."""

    B: int
    R: int
    N: int
    kind: Pool


def pool_draws(seed: int) -> Iterator[PoolShape]:
    """The widths of HSTA in bfloat16 in one step and two, in groups of queries; the others in two steps."""
    draw = random.Random(seed)
    for _ in range(DRAWS):
        kind = draw.choice((*POOLS[:2], *POOLS))
        model = kind in POOLS[:2]
        N = draw.randint(1 if model else 100, 900)
        B = draw.randint(1, 40 if model and N < 400 else 2)
        yield PoolShape(B, draw.randint(1, 20 if model else 16), N, kind)


def attention_launch(D: int, dtype: torch.dtype) -> None:
    [qkv] = attention_inputs("packed", 1, 20, 20, 2, D, dtype)
    dout = torch.randn(1, 20, 2, D, device=DEVICE).to(dtype)
    with_gradients(lambda x: space_time_attention(x, impl="triton"), [qkv], dout)


def pool_launch(B: int, R: int, N: int, kind: Pool) -> None:
    given = pool_inputs(B, R, N, kind.C, kind.dtype, extra=kind.extra)
    pool_kernels(*given, kind.normalize, randn(B, R, kind.C, dtype=kind.dtype))


def layer_launch(dtype: torch.dtype, lengths: tuple[int, int]) -> None:
    """A layer of HSTA with both head widths, forward and backward: in 16 bits by autocast, or in float32.

    The paper's widths in 16 bits; in float32 384 twice, as in the test of logits and gradients. Tubelets are
    omitted, because the extension is still being built when this runs.
    """
    widths, heads = ((384, 768), (12, 12)) if dtype in HALVES else ((384, 384), (12, 6))
    layer = create_model("hsta_base", widths=widths, num_heads=heads, num_layers=1).blocks[0].to(DEVICE)
    on_triton = (CrossAttentionBlock,) if dtype == FP32 else (CrossAttentionBlock, SpaceTimeAttention)
    for module in layer.modules():
        if isinstance(module, on_triton) and DEVICE == "cpu":
            module.impl = "triton"  # on the CPU stand-in, where "auto" chooses another
    shapes = zip(lengths, widths, strict=True)
    states = {str(d): torch.randn(2, N, C, device=DEVICE).to(dtype) for d, (N, C) in enumerate(shapes)}
    with torch.autocast(DEVICE, FP16 if dtype == FP16 else BF16, enabled=dtype in HALVES):
        special, video = layer(states).values()
    (special.float().sum() + video.float().sum()).backward()


def launches() -> Iterator[Callable[[], None]]:
    """At least one launch, with few rows, of each kernel that is launched."""
    for D, dtype in ATTENTION:
        yield partial(attention_launch, D, dtype)
    for kind in POOLS:
        yield partial(pool_launch, 1, 12, 600, kind)
    for kind in POOLS[:2]:
        yield partial(pool_launch, 2, ACCUMULATING, 600, kind)
        yield partial(pool_launch, 40, ACCUMULATING, 400, kind)
    # Training with 48 pixels, and the test of logits and gradients with 112.
    yield partial(layer_launch, BF16, (17, 28))
    yield partial(layer_launch, FP16, (17, 28))
    yield partial(layer_launch, FP32, (82, 148))
