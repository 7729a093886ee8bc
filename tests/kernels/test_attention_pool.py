"""The attention-pooling kernels against float64. Without a CUDA device they are interpreted."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hsta_fast.kernels.attention_pool import attention_pool_fwd
from tests.kernels.pool_checks import EPS, check, inputs, kernels, randn, specified
from tests.tolerance import DEVICE, DTYPES, assert_close

LENGTHS = (1, 17, 324, 588, 1568)


@pytest.fixture(autouse=True)
def nan_filled_outputs() -> Iterator[None]:
    """In this mode torch fills uninitialised memory with NaN, so a missing write is detected."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


CASES = [
    # B, R, N, C, dtype, extra
    (3, 5, 1, 96, torch.float32, True),
    (1, 1, 1, 8, torch.float16, False),
    (2, 3, 17, 384, torch.float32, False),
    (1, 12, 17, 768, torch.float16, True),
    (1, 16, 324, 96, torch.float16, False),
    (1, 7, 324, 48, torch.float32, True),
    (1, 3, 588, 40, torch.float16, True),
    (1, 2, 1568, 24, torch.float16, False),
    (3, 17, 33, 64, torch.float16, True),
    (1, 35, 20, 72, torch.float32, False),
    (2, 4, 0, 96, torch.float32, True),
    (3, 19, 0, 8, torch.float16, True),
    (1, 2, 19, 1024, torch.float16, True),
    (1, 3, 9, 1000, torch.float32, True),
    (2, 12, 50, 96, torch.bfloat16, True),
    (1, 3, 324, 40, torch.bfloat16, False),
]


@pytest.mark.parametrize(("B", "R", "N", "C", "dtype", "extra"), CASES)
def test_shapes(B: int, R: int, N: int, C: int, dtype: torch.dtype, extra: bool) -> None:
    torch.manual_seed(N)
    check(*inputs(B, R, N, C, dtype, extra=extra))


@pytest.mark.full
@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [8, 96, 384, 640, 768, 1024])
@pytest.mark.parametrize("N", LENGTHS)
def test_whole_matrix(N: int, C: int, dtype: torch.dtype, extra: bool) -> None:
    torch.manual_seed(N)
    check(*inputs(1, 12, N, C, dtype, extra=extra))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    random_case(data)


@pytest.mark.full
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_more_random_shapes(data: st.DataObject) -> None:
    random_case(data)


def random_case(data: st.DataObject) -> None:
    extra = data.draw(st.booleans())
    B, R = data.draw(st.integers(1, 2)), data.draw(st.sampled_from((1, 2, 3, 7, 12, 16, 17)))
    N = data.draw(st.integers(0 if extra else 1, 33))
    C = data.draw(st.sampled_from((1, 2, 8, 24, 40, 64, 96, 130)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    dtype, normalize = data.draw(st.sampled_from(DTYPES)), C > 1 and data.draw(st.booleans())
    size = data.draw(st.sampled_from((0.0, 1.0, 4.0)))
    check(*inputs(B, R, N, C, dtype, extra=extra, size=size), normalize=normalize)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [30.0, 1e4])
def test_tokens_with_a_mean(mean: float, dtype: torch.dtype) -> None:
    """With one sign or alternating signs; at 1e4, 16-bit rounding makes whole tokens constant."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(1, 5, 33, 40, dtype)
    assert extra is not None
    check(query, (tokens.float() + mean).to(dtype), (extra.float() + mean).to(dtype))
    sign = torch.where(torch.arange(33, device=DEVICE) % 2 == 0, 1.0, -1.0)[None, :, None]
    check(query, (tokens.float() + sign * mean).to(dtype), extra)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_outlier_channel_first(dtype: torch.dtype) -> None:
    """Subtracting a first channel of 300 deviations would cost precision."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(1, 5, 33, 40, dtype)
    tokens[..., 0] = 300.0
    check(query, tokens, extra)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_constant_tokens(value: float, dtype: torch.dtype) -> None:
    """Their z is exactly zero, whether all tokens are constant or a few."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(1, 5, 33, 40, dtype)
    dpooled = randn(1, 5, 40, dtype=dtype)
    pooled, dquery, *_ = kernels(query, torch.full_like(tokens, value), None, True, dpooled)
    assert not pooled.any()
    assert not dquery.any()
    tokens[:, ::3] = value
    check(query, tokens, extra, dpooled=dpooled)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [100.0, 4e3])
def test_large_scores(size: float, dtype: torch.dtype, normalize: bool) -> None:
    """Up to 1e4 and more; one query's largest score is the extra row's, another's the last token's."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(1, 4, 40, 64, dtype, size=size)
    assert extra is not None
    query[:, 0] = extra * (size / 64)
    query[:, 1] = tokens[:, -1] * (size / 64)
    check(query, tokens, extra, normalize=normalize)


def test_equal_scores() -> None:
    """Weights are equal: the output is the mean."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(2, 3, 50, 96, torch.float32, size=0.0)
    assert extra is not None
    pooled = attention_pool_fwd(query, tokens, extra, False, EPS)[0]
    mean = torch.cat([extra.unsqueeze(1), tokens], 1).double().mean(1, keepdim=True).expand(-1, 3, -1)
    torch.testing.assert_close(pooled.double(), mean, rtol=0, atol=1e-6)


def strided(x: Tensor) -> Tensor:
    """A view with the same values, whose batch and row strides are not products of sizes."""
    B, N, C = x.shape
    room = torch.full((B, N + 3, C + 5), torch.nan, dtype=x.dtype, device=x.device)
    room[:, 2:-1, 3:-2] = x
    return room[:, 2:-1, 3:-2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [40, 64])
def test_strides_change_nothing(C: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, tokens, extra = inputs(2, 5, 33, C, dtype)
    dpooled = randn(2, 5, C, dtype=dtype)
    expected = kernels(query, tokens, extra, True, dpooled)
    outside = strided(torch.zeros_like(tokens))
    assert extra is not None
    state = torch.cat([extra.unsqueeze(1), tokens], 1)
    views = [
        kernels(strided(query), strided(tokens), strided(extra.unsqueeze(1))[:, 0], True, strided(dpooled)),
        kernels(query, state[:, 1:], state[:, 0], True, dpooled, outside),
        kernels(query, tokens.transpose(0, 1).contiguous().transpose(0, 1), extra, True, dpooled),
    ]
    for came in views:
        assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))
    assert outside._base is not None
    assert outside._base.isnan().sum() == outside._base.numel() - outside.numel()


@pytest.mark.parametrize("R", [5, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate(dtype: torch.dtype, R: int) -> None:
    """dtokens = accumulate + gradient, into memory of its own or into the same."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(2, R, 33, 40, dtype)
    dpooled, base = randn(2, R, 40, dtype=dtype), randn(2, 33, 40, dtype=dtype)
    exact = specified(query, tokens, extra, True, dpooled, torch.float64)[2] + base.double()
    plain = specified(query, tokens, extra, True, dpooled, dtype)[2] + base
    apart = kernels(query, tokens, extra, True, dpooled, accumulate=strided(base))[2]
    assert_close([apart], [plain], [exact], band=4 * torch.finfo(dtype).eps)
    same = strided(base)
    kernels(query, tokens, extra, True, dpooled, same, same)
    assert torch.equal(same, apart)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("R", "N"), [(3, 49), (20, 33), (2, 0)])
def test_results_saved_for_the_backward(R: int, N: int, normalize: bool) -> None:
    """Scores, their log-sum-exp, means and reciprocal deviations; the last two only with `normalize`."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(2, R, N, 96, torch.float32)
    assert extra is not None
    scores = torch.empty(2, R, N + 1, device=DEVICE)
    pooled, lse, mean, rstd = attention_pool_fwd(query, tokens, extra, normalize, EPS, scores=scores)
    rows = torch.cat([extra.unsqueeze(1), tokens], 1).double()
    z = torch.nn.functional.layer_norm(rows, (96,), eps=EPS) if normalize else rows
    expected = query.double() @ z.transpose(1, 2)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected.logsumexp(-1), rtol=1e-6, atol=1e-5)
    assert torch.equal(pooled, attention_pool_fwd(query, tokens, extra, normalize, EPS)[0])
    if mean is None or rstd is None:
        assert not normalize
        assert mean is rstd is None
    else:
        torch.testing.assert_close(mean.double(), rows.mean(-1), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            rstd.double(), (rows.var(-1, correction=0) + EPS).rsqrt(), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeats_are_bit_equal(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given_inputs = inputs(2, 17, 40, 40, dtype)
    dpooled = randn(2, 17, 40, dtype=dtype)
    first, again = (kernels(*given_inputs, True, dpooled) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("place", [0, 15, 16, 48])
def test_a_nan_in_a_token_reaches_every_query(place: int) -> None:
    torch.manual_seed(0)
    query, tokens, extra = inputs(1, 3, 49, 40, torch.float32)
    tokens[:, place, 7] = torch.nan
    assert attention_pool_fwd(query, tokens, extra, True, EPS)[0].isnan().all()


def test_scores_of_minus_infinity_have_no_weight() -> None:
    """A whole split at -inf gives no NaN if there is another row."""
    query = torch.full((1, 1, 16), 1e20, device=DEVICE)
    tokens = torch.full((1, 80, 16), -1e25, device=DEVICE)
    tokens[:, -1] = 1e-20
    pooled = attention_pool_fwd(query, tokens, None, False, EPS)[0]
    torch.testing.assert_close(pooled, tokens[:, -1:])
    extra = torch.full((1, 16), 2e-20, device=DEVICE)
    pooled = attention_pool_fwd(query, tokens[:, :-1], extra, False, EPS)[0]
    torch.testing.assert_close(pooled, extra.unsqueeze(1))


@pytest.mark.parametrize(
    ("B", "N", "batch_stride", "row_stride"), [(3, 5, 2**30 + 16, 16), (1, 5, 1, 2**29 + 16)]
)
def test_beyond_two_to_the_31_elements(B: int, N: int, batch_stride: int, row_stride: int) -> None:
    """Strides that fit 32 bits and offsets that do not, in a buffer of 4 GiB that nothing else touches."""
    torch.use_deterministic_algorithms(False)
    C = 16
    buffer = torch.empty(2**31 + 200, dtype=torch.float16, device=DEVICE)
    query, near, _ = inputs(B, 3, N, C, torch.float16, extra=False)
    tokens = buffer.as_strided((B, N, C), (batch_stride, row_stride, 1))
    tokens.copy_(near)
    dpooled = randn(B, 3, C, dtype=torch.float16)
    expected = kernels(query, near, None, True, dpooled)
    came = kernels(query, tokens, None, True, dpooled, tokens)  # the gradient overwrites the tokens
    assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))
