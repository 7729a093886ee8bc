"""Int8 linear layers: exact where nothing is rounded, else within the error of the two roundings."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hsta_fast.extension import missing
from hsta_fast.ops.int8_linear import auto_choice, int8_linear, int8_mlp, pack

EPS = 1e-6
no_extension = missing("cpu") or (None if torch.cpu._is_vnni_supported() else "the CPU lacks AVX-512 VNNI")
IMPLS = [
    "torch",
    pytest.param("extension", marks=pytest.mark.skipif(no_extension is not None, reason=str(no_extension))),
]
# Rows, inputs, outputs: whole panels of 64 outputs and not, whole fours of inputs and not, several blocks.
SHAPES = [(2, 64, 128), (7, 30, 70), (1, 3, 1), (101, 96, 65)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def linear(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(outputs, inputs) / math.sqrt(inputs), torch.randn(outputs)


def norm(width: int) -> list[Tensor]:
    return [1 + 0.2 * torch.randn(width), 0.2 * torch.randn(width)]


def normed(x: Tensor, parts: list[Tensor]) -> Tensor:
    weight, bias = (part.double() for part in parts)
    return F.layer_norm(x.double(), x.shape[-1:], weight, bias, EPS)


def largest_error(x: Tensor, given: Tensor | float, weight: Tensor) -> Tensor:
    """Largest error (R, O) of the product of rows x (R, K), themselves off by up to `given`, in float64.

    A byte is off by up to half a step, or a whole one where the rounded zero point leaves the row's ends out.
    """
    x, weight = x.double(), weight.double()
    widest = x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)
    off = given + (widest / 255 * 1.01)[:, None]
    of_weight = weight.abs().amax(1) / 254
    return off.expand_as(x) @ weight.abs().T + (x.abs() + off).sum(1, keepdim=True) * of_weight + 1e-5


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("low", [0, -100])
def test_integers_are_multiplied_exactly(impl: str, low: int) -> None:
    """A row over 255 steps of 1 and weights up to 127 need no rounding."""
    x = torch.randint(low, low + 256, (60, 37)).float()
    weight = torch.randint(-127, 128, (67, 37)).float()
    x[:, 0], x[:, 1], weight[:, 2] = low, low + 255, -127
    packed = pack(weight, None)
    assert packed[0].shape == (2, 10, 64, 4) and torch.equal(packed[1], torch.ones(67))
    came = int8_linear(x, [], EPS, packed, None, impl)
    if low == 0:
        assert torch.equal(came, x @ weight.T)
    else:  # the step is 1 up to the rounding of two quotients
        torch.testing.assert_close(came, x @ weight.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_linear(impl: str, rows: int, inputs: int, outputs: int) -> None:
    x, around, (weight, bias) = 3 * torch.randn(rows, inputs) + 1, norm(inputs), linear(inputs, outputs)
    residual = torch.randn(rows, outputs)
    packed = pack(weight, bias)
    for parts, added in (([], None), (around, None), (around, residual), ([], residual)):
        steps = normed(x, parts) if parts else x
        exact = steps.double() @ weight.T.double() + bias + (0 if added is None else added)
        came = int8_linear(x, parts, EPS, packed, added, impl)
        allowed = largest_error(steps, 1e-6, weight)
        assert ((came - exact).abs() <= allowed).all()
        # The bound is the worst case; roundings that are independent come to far less.
        rms = (came - exact).square().mean().sqrt()
        assert rms <= 0.02 * exact.square().mean().sqrt() or rows * outputs < 100


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("rows", "width", "hidden"), [(2, 64, 256), (7, 30, 70), (101, 24, 97)])
def test_mlp(impl: str, rows: int, width: int, hidden: int) -> None:
    x, around = torch.randn(rows, width), norm(width)
    (weight1, bias1), (weight2, bias2) = linear(width, hidden), linear(hidden, width)
    steps = normed(x, around)
    before = steps @ weight1.T.double() + bias1
    activations = F.gelu(before)
    exact = x + activations @ weight2.T.double() + bias2
    off = 1.13 * largest_error(steps, 1e-6, weight1)  # the steepest slope of GELU
    came = int8_mlp(x, around, EPS, pack(weight1, bias1), pack(weight2, bias2), impl)
    # The range of a row of activations is off, too.
    allowed = largest_error(activations.abs() + off, off, weight2)
    assert ((came - exact).abs() <= allowed).all()
    rms = (came - exact).square().mean().sqrt()
    assert rms <= 0.02 * exact.square().mean().sqrt()


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_that_are_not_finite_and_rows_and_weights_of_zero(impl: str) -> None:
    weight, bias = linear(20, 66)
    weight[3] = 0
    x = torch.randn(50, 20)
    x[1, 2], x[2, 0], x[3, 19], x[4] = torch.nan, torch.inf, -torch.inf, 0
    packed = pack(weight, bias)
    for parts in ([], norm(20)):
        came = int8_linear(x, parts, EPS, packed, None, impl)
        assert came[1:4].isnan().all() and came[4:].isfinite().all() and came[0].isfinite().all()
        torch.testing.assert_close(came[:1, 3], bias[3:4])
    torch.testing.assert_close(int8_linear(x, [], EPS, packed, None, impl)[4], bias)
    fc2 = pack(*linear(66, 20))
    came = int8_mlp(x, norm(20), EPS, packed, fc2, impl)
    assert came[1:4].isnan().all() and came[4:].isfinite().all()
    assert int8_linear(x[:0], [], EPS, packed, None, impl).shape == (0, 66)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("threads", [2, 7])
def test_fewer_rows_than_threads_and_any_number_of_them(impl: str, threads: int, two_threads: None) -> None:
    fc1, fc2, around = pack(*linear(3, 70)), pack(*linear(70, 3)), norm(3)
    x = torch.randn(60, 3)

    def both(rows: Tensor) -> tuple[Tensor, Tensor]:
        return int8_linear(rows, [], EPS, fc1, None, impl), int8_mlp(rows, around, EPS, fc1, fc2, impl)

    torch.set_num_threads(1)
    exact = both(x)
    torch.set_num_threads(threads)
    for rows in (0, 1, 2, 3, 6, 7, 8, 49, 60):
        for came, expected in zip(both(x[:rows]), exact, strict=True):
            assert torch.equal(came, expected[:rows])


@pytest.mark.parametrize("impl", IMPLS)
def test_no_inputs_or_no_outputs(impl: str) -> None:
    residual, bias = torch.randn(2, 5, 66), torch.randn(66)
    nothing = pack(torch.randn(66, 0), bias)
    assert nothing[0].shape == (2, 0, 64, 4)
    for _ in range(3):  # memory that was not written would hold this
        torch.full((2, 5, 66), torch.nan)
    assert torch.equal(int8_linear(residual[..., :0], [], EPS, nothing, None, impl), bias.expand(2, 5, 66))
    assert torch.equal(int8_linear(residual[..., :0], [], EPS, nothing, residual, impl), residual + bias)
    empty = int8_linear(residual, [], EPS, pack(torch.randn(0, 66), None), None, impl)
    assert empty.shape == (2, 5, 0)
    # An MLP without hidden units adds its second bias.
    hidden = (pack(torch.randn(0, 66), None), pack(torch.randn(66, 0), bias))
    assert torch.equal(int8_mlp(residual, norm(66), EPS, *hidden, impl), residual + bias)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_does_not_depend_on_the_others(impl: str) -> None:
    x, packed = torch.randn(2, 60, 16), pack(*linear(16, 64))
    mlp = (norm(16), EPS, packed, pack(*linear(64, 16)))
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    for run in (lambda y: int8_linear(y, [], EPS, packed, None, impl), lambda y: int8_mlp(y, *mlp, impl)):
        whole = run(x)
        assert torch.equal(run(x[1:, 7:50]), whole[1:, 7:50]) and torch.equal(run(strided), whole)


@pytest.mark.parametrize("impl", IMPLS)
def test_opcheck(impl: str) -> None:
    x, around, fc1, fc2 = torch.randn(2, 3, 8), norm(8), pack(*linear(8, 12)), pack(*linear(12, 8))
    torch.library.opcheck(int8_linear, (x, around, EPS, fc1, None, impl))
    torch.library.opcheck(int8_mlp, (x, around, EPS, fc1, fc2, impl))


def test_no_gradient() -> None:
    x = torch.randn(2, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="hsta_fast::int8_linear has no derivative"):
        int8_linear(x, [], EPS, pack(*linear(8, 12)), None, "torch").sum().backward()


def test_the_choice_and_its_reason() -> None:
    expected: tuple[Any, ...] = (
        ("extension", "one pass in C++ from norm to residual")
        if no_extension is None
        else ("torch", f"torch's int8 matrix product: {no_extension}")
    )
    assert auto_choice() == expected
    with torch.backends.mkldnn.flags(enabled=False):
        assert auto_choice() == ("torch", "torch's int8 matrix product: oneDNN is switched off")
        x, packed = torch.randn(2, 8), pack(*linear(8, 12))
        own = int8_linear(x, [], EPS, packed, None, "auto")
    torch.testing.assert_close(own, int8_linear(x, [], EPS, packed, None, "torch"))
