"""The kernels at random shapes: lengths that end anywhere in a tile, every layout, one and two steps."""

import pytest
import torch

from tests.gpu.shapes import SEEDS, attention_draws, pool_draws
from tests.kernels import pool_checks
from tests.ops import attention_checks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", SEEDS)
def test_space_time_attention(seed: int) -> None:
    torch.manual_seed(seed)
    for shape in attention_draws(seed):
        attention_checks.check(attention_checks.inputs(*shape))


@pytest.mark.parametrize("seed", SEEDS)
def test_attention_pool(seed: int) -> None:
    torch.manual_seed(seed)
    for B, R, N, kind in pool_draws(seed):
        given = pool_checks.inputs(B, R, N, kind.C, kind.dtype, extra=kind.extra)
        pool_checks.check(*given, normalize=kind.normalize)
