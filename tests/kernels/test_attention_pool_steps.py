"""Attention pooling in two steps, used for small batches on devices with many multiprocessors; its memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from hsta_fast.kernels import attention_pool as module
from hsta_fast.kernels.attention_pool import attention_pool_bwd, attention_pool_fwd
from hsta_fast.kernels.attention_pool_configs import config_for
from hsta_fast.kernels.attention_pool_plan import plan
from hsta_fast.kernels.launch import of_capability
from tests.kernels.pool_checks import EPS, check, inputs, kernels, randn, specified
from tests.kernels.test_attention_pool import (
    strided,
    test_a_nan_in_a_token_reaches_every_query,  # noqa: F401
    test_constant_tokens,  # noqa: F401
    test_large_scores,  # noqa: F401
    test_repeats_are_bit_equal,  # noqa: F401
    test_results_saved_for_the_backward,  # noqa: F401
    test_scores_of_minus_infinity_have_no_weight,  # noqa: F401
    test_tokens_with_a_mean,  # noqa: F401
)
from tests.memory import peak_bytes
from tests.tolerance import DEVICE, DTYPES, assert_close, float32_products

HOPPER = of_capability(90)
PROCESSORS = HOPPER.processors


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split N as on such a device, whatever runs the kernels."""
    monkeypatch.setattr(module, "device_of", lambda device: HOPPER)


def first_of_two(kernel: str) -> str:
    """The configuration of the first of two steps."""
    return "bwd, two steps" if kernel == "bwd" else kernel


def steps(B: int, R: int, N: int, C: int, kernel: str = "fwd", dtype: torch.dtype = torch.bfloat16) -> int:
    """The number of steps, 1 or 2, after checking both against the bounds that decide."""
    tokens = torch.empty((B, N, C), dtype=dtype, device="meta")
    config, of_two = (config_for(name, C, dtype) for name in (kernel, first_of_two(kernel)))
    owners = B * (-(-R // 16) if kernel == "fwd" else 1)
    (splits, share), second = plan(config, of_two, tokens, owners, PROCESSORS)
    assert splits * share >= N > (splits - 1) * share
    if second is None:
        assert splits * C <= max(6 * N, C)
        return 1
    assert second[0] * second[1] >= N > (second[0] - 1) * second[1]
    assert second[0] * C <= max(6 * N, C)
    # The tokens that are read again fit in the L2 of every such device.
    assert tokens.numel() * dtype.itemsize <= 27 * 2**20
    return 2


@pytest.mark.parametrize("kernel", ["fwd", "bwd"])
@pytest.mark.parametrize(("N", "C"), [(324, 384), (588, 768), (1568, 768), (3136, 768), (12544, 768)])
def test_one_step_or_two(N: int, C: int, kernel: str) -> None:
    """Large batches read the tokens once; a batch of 1 fills the device, if it has enough tiles."""
    assert steps(32, 12, N, C, kernel) == 1
    for B in range(1, 65):
        tokens = torch.empty((B, N, C), dtype=torch.bfloat16, device="meta")
        config, of_two = (config_for(name, C, torch.bfloat16) for name in (kernel, first_of_two(kernel)))
        (splits, _), _ = plan(config, of_two, tokens, B, PROCESSORS)
        steps(B, 12, N, C, kernel)
        assert 2 * B * splits >= min(PROCESSORS, B * -(-N // config.tokens))


CASES = [
    # B, R, N, C, dtype, extra, normalize
    (1, 1, 65, 200, torch.float16, False, True),
    (2, 12, 35, 384, torch.float16, True, True),
    (1, 16, 65, 96, torch.float32, False, False),
    (2, 17, 49, 130, torch.float32, True, True),
    (1, 12, 100, 768, torch.float32, True, True),
    (1, 3, 588, 200, torch.float16, False, True),
    (1, 2, 324, 160, torch.float32, True, False),
    (1, 5, 100, 200, torch.bfloat16, True, True),
]


@pytest.mark.parametrize(("B", "R", "N", "C", "dtype", "extra", "normalize"), CASES)
def test_shapes(B: int, R: int, N: int, C: int, dtype: torch.dtype, extra: bool, normalize: bool) -> None:
    assert steps(B, R, N, C, dtype=dtype) == steps(B, R, N, C, "bwd", dtype) == 2
    torch.manual_seed(N)
    check(*inputs(B, R, N, C, dtype, extra=extra), normalize=normalize)


@pytest.mark.full
@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [8, 96, 384, 640, 768, 1024])
@pytest.mark.parametrize("N", [1, 17, 324, 588, 1568])
def test_whole_matrix(N: int, C: int, dtype: torch.dtype, extra: bool) -> None:
    torch.manual_seed(N)
    check(*inputs(1, 12, N, C, dtype, extra=extra))


@pytest.mark.parametrize("R", [5, 17])
def test_accumulate_and_strides(R: int) -> None:
    torch.manual_seed(0)
    query, tokens, extra = inputs(2, R, 65, 40, torch.float32)
    dpooled, base = randn(2, R, 40), randn(2, 65, 40)
    exact = specified(query, tokens, extra, True, dpooled, torch.float64)
    plain = specified(query, tokens, extra, True, dpooled, torch.float32)
    exact[2], plain[2] = exact[2] + base.double(), plain[2] + base
    same = strided(base)
    came = kernels(query, strided(tokens), extra, True, dpooled, same, same)
    assert_close(came, plain, exact, band=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("tokens", [16, 32])
def test_the_first_step_may_have_another_tile_size(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after tuning: no row may belong to two programs, which would add to it twice."""
    tiles = replace(config_for("bwd, two steps", 96, torch.float16), tokens=tokens)

    def tuned(kernel: str, *arguments: Any, **rest: Any) -> Any:
        return tiles if kernel == "bwd, two steps" else config_for(kernel, *arguments, **rest)

    monkeypatch.setattr(module, "config_for", tuned)
    torch.manual_seed(0)
    check(*inputs(1, 17, 130, 96, torch.float16))


def nbytes(*tensors: torch.Tensor | None) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


MODEL = [(324, 384, 12), (588, 768, 12), (1568, 768, 12)]


@pytest.mark.skipif(DEVICE == "cuda", reason="what is counted are allocations on the CPU")
@pytest.mark.parametrize(
    ("B", "N", "C", "R"),
    [
        (1, *MODEL[0]),
        *(pytest.param(B, *shape, marks=pytest.mark.full) for B in (1, 2, 8) for shape in MODEL),
    ],
)
def test_memory(B: int, N: int, C: int, R: int) -> None:
    """8 B R N float32 at most beyond what is returned, at the shapes of the model."""
    torch.use_deterministic_algorithms(False)
    query, tokens, extra = inputs(B, R, N, C, torch.float32)
    allowed = 8 * B * R * N * 4
    saved: list[torch.Tensor | None] = []
    gradients: list[torch.Tensor | None] = []
    dpooled, dtokens = randn(B, R, C), torch.empty_like(tokens)

    def forward() -> None:
        saved.extend(attention_pool_fwd(query, tokens, extra, True, EPS))

    def backward() -> None:
        gradients.extend(
            attention_pool_bwd(dpooled, query, tokens, extra, True, EPS, *saved, dtokens=dtokens)  # type: ignore[arg-type]
        )

    with float32_products("ieee"):  # "bf16x6" would take three times as long and use the same memory
        assert peak_bytes(forward) <= nbytes(*saved) + allowed
        assert peak_bytes(backward) <= nbytes(*gradients) + allowed
