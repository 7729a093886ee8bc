"""The forward with a frozen maximum: one test per rule that keeps it correct."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hsta_fast import reference
from hsta_fast.kernels import space_time_attention as kernel
from hsta_fast.kernels.space_time_attention import (
    meta,
    space_time_attention_bwd,
    space_time_attention_fwd,
)
from hsta_fast.kernels.space_time_attention_configs import Config, backward_kernels, config_for
from tests.tolerance import DEVICE, assert_close, float32_products, with_gradients

LN2 = math.log(2.0)  # with this scale the weights are 2^(q k')
TILE = 16
# float32 tests bfloat16's limit of 2^40, because the interpreter cannot run bfloat16; float16 has its own.
FORMS = [
    pytest.param(torch.float32, False, id="float32"),
    pytest.param(torch.float32, True, id="float32-polynomial"),
    pytest.param(torch.float16, True, id="float16-polynomial"),
    *([pytest.param(torch.bfloat16, True, id="bfloat16-polynomial")] if DEVICE == "cuda" else []),
]
POLYNOMIAL_ERROR = 1.02e-4


@pytest.fixture(autouse=True)
def true_float32() -> Iterator[None]:
    """float32 stands in for bfloat16 here: a single product, which overflows to infinity and not to NaN."""
    with float32_products("ieee"):
        yield


def config(polynomial: bool, *, frozen: bool = True) -> Config:
    return Config(rows=TILE, cols=TILE, stages=2, warps=4, frozen=frozen, polynomial=polynomial)


def check(q: Tensor, k: Tensor, v: Tensor, *, polynomial: bool, scale: float = LN2) -> Tensor:
    """The frozen form's output, after comparing it and its log-sum-exp with float64."""
    out, lse = space_time_attention_fwd(q, k, v, scale, config=config(polynomial))
    plain = reference.space_time_attention(q, k, v, scale=scale)
    exact = reference.space_time_attention(q.double(), k.double(), v.double(), scale=scale)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale
    eps = torch.finfo(q.dtype).eps * (4 if q.dtype == torch.float32 else 1)
    rounding = 4 * float(scores.abs().max()) * torch.finfo(torch.float32).eps
    inexact = 2 * POLYNOMIAL_ERROR if polynomial else 0.0
    assert_close([out], [plain], [exact], band=eps + rounding + inexact)
    expected = scores.logsumexp(-1) / LN2
    torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=1e-5 + rounding / LN2 + inexact)
    return out


def ordinary(dtype: torch.dtype, N: int = 18, M: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys that are zero in the first feature, and values with a mean."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, n, 1, 16, device=DEVICE) * 0.5 for n in (N, M))
    q[..., 0] = k[..., 0] = 0.0
    v = torch.randn(1, M, 1, 16, device=DEVICE) + 1.0
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("excess", [20, 60, 130, 300, 517, 1030])
@pytest.mark.parametrize(("dtype", "polynomial"), FORMS)
def test_excess_over_the_frozen_maximum(dtype: torch.dtype, polynomial: bool, excess: int) -> None:
    """One key 2^excess above the first tile, in every lane of a pack; for a single row, and for all rows."""
    for lane in range(4):
        for rows in (slice(5, 6), slice(None)):
            q, k, v = ordinary(dtype)
            q[:, rows, :, 0] = 1.0
            k[:, 2 * TILE + lane, :, 0] = excess
            check(q, k, v, polynomial=polynomial)


@pytest.mark.parametrize("excess", [20, 60, 130, 300, 517, 1030])
@pytest.mark.parametrize(("dtype", "polynomial"), FORMS)
def test_keys_far_below_the_maximum(dtype: torch.dtype, polynomial: bool, excess: int) -> None:
    """Weights that underflow, in every lane."""
    q, k, v = ordinary(dtype)
    q[:, 5, :, 0] = 1.0
    k[:, TILE:, :, 0] = -excess
    check(q, k, v, polynomial=polynomial)


@pytest.mark.parametrize("shift", [39, 100, 300, 600, 1000])
def test_rising_scores(shift: int) -> None:
    """Each tile's scores exceed those of the previous tile: the sum ends far above that of the first tile."""
    q, k, v = ordinary(torch.float32, M=100)
    q[..., 0] = 1.0
    k[:, :, 0, 0] = torch.linspace(0, shift, 100, device=DEVICE)
    check(q, k, v, polynomial=True)


@pytest.mark.parametrize(("dtype", "polynomial"), FORMS)
def test_huge_values_with_a_small_sum(dtype: torch.dtype, polynomial: bool) -> None:
    """The sum of weights stays within its limit while the products with the values overflow."""
    q, k, v = ordinary(dtype)
    q[..., 0] = 1.0
    k[:, 2 * TILE, :, 0] = 14 if dtype == torch.float16 else 38
    v[:, 2 * TILE] = 6e4 if dtype == torch.float16 else 1e30
    check(q, k, v, polynomial=polynomial)


@pytest.mark.parametrize("later", [0.0, 30.0, 200.0, -50.0, -200.0, -1000.0])
@pytest.mark.parametrize("polynomial", [False, True])
def test_first_tile_of_overflowed_products(later: float, polynomial: bool) -> None:
    """Every product of the first tile is -inf: its maximum cannot serve the other tiles, however low."""
    q, k, v = ordinary(torch.float32)
    q[:, 5, :, 0] = 1e20
    k[:, :TILE, :, 0] = -1e25
    k[:, TILE:, :, 0] = later * 1e-20
    assert torch.isneginf(q[0, 5, 0, 0] * k[0, 0, 0, 0])
    out, lse = space_time_attention_fwd(q, k, v, LN2, config=config(polynomial))
    exact = reference.space_time_attention(q.double(), k[:, TILE:].double(), v[:, TILE:].double(), scale=LN2)
    torch.testing.assert_close(out[:, 5].double(), exact[:, 5], rtol=0, atol=3e-4)
    assert abs(float(lse[0, 0, 5]) - later) < 16


@pytest.mark.parametrize("place", [0, 3, *range(TILE, TILE + 4), 39])
@pytest.mark.parametrize(("dtype", "polynomial"), FORMS)
def test_a_single_nan_key(dtype: torch.dtype, polynomial: bool, place: int) -> None:
    """Every row has a NaN among its scores, so every output is NaN, whichever lane the key falls in."""
    q, k, v = ordinary(dtype)
    k[:, place, :, 3] = torch.nan
    out, lse = space_time_attention_fwd(q, k, v, LN2, config=config(polynomial))
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.parametrize(("dtype", "polynomial"), FORMS)
def test_a_single_nan_query(dtype: torch.dtype, polynomial: bool) -> None:
    """A row of NaN makes the block run again: its other rows stay correct."""
    q, k, v = ordinary(dtype)
    q[:, 5] = torch.nan
    out, _ = space_time_attention_fwd(q, k, v, LN2, config=config(polynomial))
    exact = reference.space_time_attention(q.double(), k.double(), v.double(), scale=LN2)
    assert out[:, 5].isnan().all()
    others = [i for i in range(q.shape[1]) if i != 5]
    torch.testing.assert_close(out[:, others].double(), exact[:, others], rtol=0, atol=3e-3)


@pytest.mark.parametrize("excess", [1, 20, 300])
@pytest.mark.parametrize(("dtype", "polynomial"), FORMS)
def test_negative_scale(dtype: torch.dtype, polynomial: bool, excess: int) -> None:
    """The largest score belongs to the smallest product."""
    q, k, v = ordinary(dtype)
    q[..., 0] = 1.0
    k[:, 2, :, 0] = excess
    k[:, 2 * TILE + 3, :, 0] = -excess
    check(q, k, v, polynomial=polynomial, scale=-LN2)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("excess", [12, 15, 18, 24])
@pytest.mark.parametrize("M", [1569, pytest.param(12545, marks=pytest.mark.full)])
def test_dominant_cls_key_in_float16(M: int, excess: int, place: str) -> None:
    """Many small weights and one 2^excess above them: shifted down, they would become subnormal or 0."""
    q, k, v = ordinary(torch.float16, N=3, M=M)
    q[..., 0] = 1.0
    q[..., 1:] = 0.0
    k[:, 0 if place == "first" else -1, :, 0] = excess
    v[:, 0 if place == "first" else -1] = 0.0
    for width in (32, 64):
        shipped = config_for("fwd", width, torch.float16)
        out, _ = space_time_attention_fwd(q, k, v, LN2, config=shipped)
        plain = reference.space_time_attention(q, k, v, scale=LN2)
        exact = reference.space_time_attention(q.double(), k.double(), v.double(), scale=LN2)
        # Relative to the share of the small weights, not only to the largest output.
        assert_close([out], [plain], [exact], band=torch.finfo(torch.float16).eps)


@pytest.mark.parametrize(("dtype", "polynomial"), FORMS)
def test_the_sum_up_to_which_the_frozen_maximum_is_trusted(dtype: torch.dtype, polynomial: bool) -> None:
    """Above the limit the result equals the online form's bit by bit; below it the fast loop's."""
    limit = 15 if dtype == torch.float16 else 40
    for above in (False, True):
        q, k, v = ordinary(dtype)
        q[..., 1:] *= 0.1
        q[..., 0] = 1.0
        k[:, -8:, :, 0] = limit - 3 + (0.75 if above else -0.75)  # eight equal keys: 2^3 times one in the sum
        frozen, _ = space_time_attention_fwd(q, k, v, LN2, config=config(polynomial))
        online, _ = space_time_attention_fwd(q, k, v, LN2, config=config(False, frozen=False))
        assert torch.equal(frozen, online) == above


def test_the_two_forms_agree_below_the_limit() -> None:
    """The online form computes the same sums in another way."""
    q, k, v = ordinary(torch.float32, M=100)
    frozen, online = (
        space_time_attention_fwd(q, k, v, LN2, config=config(False, frozen=frozen))
        for frozen in (True, False)
    )
    for a, b in zip(frozen, online, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", ["batch", "rows", "heads"])
def test_beyond_two_to_the_31_elements(axis: str) -> None:
    """Three rows 2^30 + 16 elements apart, a stride that fits 32 bits, in 4 GiB that nothing else uses."""
    far, D = 2**30 + 16, 16
    shape, strides = {
        "batch": ((3, 5, 1, D), (far, D, D, 1)),
        "rows": ((1, 3, 2, D), (2 * D, far, D, 1)),
        "heads": ((1, 5, 3, D), (5 * D, D, far, 1)),
    }[axis]
    buffer = torch.empty(2 * far + 8 * 5 * D, dtype=torch.float16, device=DEVICE)
    torch.manual_seed(0)
    q, k, v, dout, dq, dk, dv = (buffer.as_strided(shape, strides, 5 * D * i) for i in range(7))
    for x in (q, k, v, dout):
        x.copy_(torch.randn(shape))
    out, lse = space_time_attention_fwd(q, k, v, 0.25)
    space_time_attention_bwd(dout, q, k, v, out, lse, 0.25, dq, dk, dv)
    q, k, v, dout = (x.contiguous() for x in (q, k, v, dout))
    near, lse = space_time_attention_fwd(q, k, v, 0.25)
    near_dq, near_dk, near_dv = (torch.empty_like(x) for x in (q, k, v))
    space_time_attention_bwd(dout, q, k, v, near, lse, 0.25, near_dq, near_dk, near_dv)
    for a, b in zip((out, dq, dk, dv), (near, near_dq, near_dk, near_dv), strict=True):
        assert torch.equal(a, b)


PRECISIONS = {"none": "bf16x6", "tf32": "tf32", "ieee": "ieee"}  # torch's setting -> ours


@pytest.mark.parametrize("asked", PRECISIONS)
def test_the_precision_of_float32_products_is_torchs_setting(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []

    def recorded(kernel: str, width: int, config: Config, precision: str) -> dict[str, Any]:
        launched.append(precision)
        return meta(kernel, width, config, precision)

    monkeypatch.setattr(kernel, "meta", recorded)
    for dtype, expected in ((torch.float32, PRECISIONS[asked]), (torch.float16, "ieee")):
        q, k, v = ordinary(dtype)
        with float32_products(asked):
            out, lse = space_time_attention_fwd(q, k, v, LN2)
            space_time_attention_bwd(out, q, k, v, out, lse, LN2, *(torch.empty_like(x) for x in (q, k, v)))
        assert launched == [expected] * 3
        launched.clear()


@pytest.mark.parametrize("width", [32, 64])
def test_float32_as_three_bfloat16_parts_is_exact_to_rounding(width: int) -> None:
    """Three bfloat16 parts hold all 24 bits; with two, or in tf32, errors would be 2^-16 and 2^-11."""
    torch.manual_seed(0)
    q, k, v, dout = (torch.randn(1, 70, 2, width, device=DEVICE) * 2 for _ in range(4))
    exact = with_gradients(reference.space_time_attention, [x.double() for x in (q, k, v)], dout)
    plain = with_gradients(reference.space_time_attention, [q, k, v], dout)
    scale = width**-0.5
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    with float32_products("none"):
        out, lse = space_time_attention_fwd(q, k, v, scale)
        space_time_attention_bwd(dout, q, k, v, out, lse, scale, *gradients)
    assert_close([out, *gradients], plain, exact, band=4 * torch.finfo(torch.float32).eps)
    # At the larger width dk and dv take two launches.
    assert ("dk" in backward_kernels(width, "bf16x6")) == (width == 64)


@pytest.mark.parametrize("M", [5, 37])
def test_gradients_where_every_score_is_far_below_zero(M: int) -> None:
    """A missing key has a score of 0 and would weigh 2^400."""
    torch.manual_seed(0)
    q, k, v = ordinary(torch.float32, M=M)
    q[..., 0], k[..., 0] = 20.0, -20.0
    dout = torch.randn_like(q)
    exact = with_gradients(
        lambda *x: reference.space_time_attention(*x, scale=LN2), [x.double() for x in (q, k, v)], dout
    )
    out, lse = space_time_attention_fwd(q, k, v, LN2)
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    space_time_attention_bwd(dout, q, k, v, out, lse, LN2, *gradients)
    largest = max(float(x.abs().max()) for x in exact[1:])
    for came, expected in zip((out, *gradients), exact, strict=True):
        torch.testing.assert_close(came.double(), expected, rtol=0, atol=1e-3 * largest)
