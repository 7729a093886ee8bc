"""cls_cross_attention, which reorders and cancels terms, against the materialised form in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hsta_fast import cls_cross_attention, reference
from tests.compiler import needs_compiler
from tests.tolerance import DEVICE, DTYPES, assert_close

IMPLS = ("torch", "triton", pytest.param("extension", marks=needs_compiler))
VECTORS = ("norm_weight", "norm_bias", "q_bias", "k_bias", "v_bias")
MATRICES = ("q_weight", "k_weight", "v_weight")


def inputs(impl: str, B: int, N: int, C: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """cls, tokens and every parameter; none is 0 or 1, so that omitting one changes the result."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device="cpu" if impl == "extension" else DEVICE)

    named = {"cls": randn(B, C), "tokens": randn(B, N + 1, C)[:, 1:]}
    named |= {name: 0.3 * randn(C) for name in VECTORS} | {name: randn(C, C) * C**-0.5 for name in MATRICES}
    named["norm_weight"] = named["norm_weight"] + 1
    return {name: x.to(dtype) for name, x in named.items()}


def with_gradients(
    function: Any, named: dict[str, Tensor], dout: Tensor, **options: Any
) -> dict[str, Tensor]:
    """The output and the gradient of every input, by name."""
    leaves = {name: x.detach().requires_grad_() for name, x in named.items()}
    out = function(**leaves, **options)
    out.backward(dout.to(out.dtype))
    gradients = {name: x.grad for name, x in leaves.items()}
    assert all(x is not None for x in gradients.values())
    return {"out": out.detach(), **{name: x for name, x in gradients.items() if x is not None}}


def check(impl: str, named: dict[str, Tensor], num_heads: int) -> None:
    """Compare each tensor within its own tolerance; the gradient of k_bias must be zeros."""
    dout = torch.randn_like(named["cls"])
    double = {name: x.double() for name, x in named.items()}
    exact = with_gradients(reference.cls_cross_attention, double, dout, num_heads=num_heads)
    plain = with_gradients(reference.cls_cross_attention, named, dout, num_heads=num_heads)
    came = with_gradients(cls_cross_attention, named, dout, num_heads=num_heads, impl=impl)
    assert not came.pop("k_bias").any()
    terms = max(float(x.abs().max()) for x in exact.values() if x.numel())
    for name, x in came.items():
        eps = torch.finfo(x.dtype).eps
        # The gradients of q and k depend on differences between rows: with one row they are zero.
        vanishes = name in ("q_weight", "q_bias", "k_weight")
        size = terms if vanishes else 0.0
        assert_close([x], [plain[name]], [exact[name]], band=8 * eps, terms=size)


# tests/kernels covers longer ones, interpreted.
LENGTHS = [
    pytest.param(impl, N, marks=marks if impl != "triton" or N < 588 else pytest.mark.full)
    for impl, marks in (("torch", ()), ("triton", ()), ("extension", needs_compiler))
    for N in (0, 1, 17, 324, 588, 1568)
]


@pytest.mark.parametrize(("impl", "N"), LENGTHS)
def test_values_and_every_gradient(impl: str, N: int) -> None:
    torch.manual_seed(N)
    check(impl, inputs(impl, 2, N, 48), num_heads=3)


@pytest.mark.parametrize(("C", "num_heads"), [(24, 24), (40, 1), (384, 12)])
@pytest.mark.parametrize(
    ("impl", "dtype"),
    [
        *((impl, dtype) for impl in ("torch", "triton") for dtype in DTYPES),
        pytest.param("extension", torch.float32, marks=needs_compiler),
    ],
)
def test_heads_widths_and_dtypes(impl: str, C: int, num_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(C)
    check(impl, inputs(impl, 2, 21, C, dtype), num_heads)


@pytest.mark.parametrize("N", [0, 1, 17, 588])
@pytest.mark.parametrize("impl", ["torch", pytest.param("extension", marks=needs_compiler)])
def test_float64_is_the_materialised_form(impl: str, N: int) -> None:
    """The affine of the norm, both biases and both projections, which the op reorders or cancels."""
    torch.manual_seed(N)
    named = inputs(impl, 2, N, 48, torch.float64)
    dout = torch.randn_like(named["cls"])
    exact = with_gradients(reference.cls_cross_attention, named, dout, num_heads=4)
    came = with_gradients(cls_cross_attention, named, dout, num_heads=4, impl=impl)
    assert not came["k_bias"].any()
    for name, x in came.items():
        torch.testing.assert_close(x, exact[name], rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_bfloat16_is_no_worse_than_the_materialised_path(impl: str, mean: float) -> None:
    """Also with tokens whose mean is 30 deviations, where rounding the query after centring would fail."""
    errors: dict[str, list[Tensor]] = {"came": [], "plain": []}
    for seed in range(5):
        torch.manual_seed(seed)
        named = inputs(impl, 2, 588, 96, torch.bfloat16)
        named["tokens"] = (named["tokens"].float() + mean).bfloat16()
        double = {name: x.double() for name, x in named.items()}
        exact = reference.cls_cross_attention(**double, num_heads=3)
        errors["plain"].append(reference.cls_cross_attention(**named, num_heads=3).double() - exact)
        errors["came"].append(cls_cross_attention(**named, num_heads=3, impl=impl).double() - exact)
    came, plain = (torch.cat(e) for e in (errors["came"], errors["plain"]))
    assert came.square().mean() <= plain.square().mean()
    assert came.abs().max() <= plain.abs().max()


@pytest.mark.parametrize("impl", IMPLS)
def test_the_value_of_k_bias_changes_nothing(impl: str) -> None:
    torch.manual_seed(0)
    named = inputs(impl, 2, 9, 24)
    out = cls_cross_attention(**named, num_heads=3, impl=impl)
    named["k_bias"] = torch.full_like(named["k_bias"], torch.inf)
    assert torch.equal(cls_cross_attention(**named, num_heads=3, impl=impl), out)


def test_frozen_parameters() -> None:
    """Only tensors that require a gradient get one, k_bias included."""
    torch.manual_seed(0)
    named = inputs("auto", 2, 9, 24)
    for name in ("tokens", "k_bias"):
        named[name] = named[name].detach().requires_grad_()
    expected = named | {name: named[name].detach().clone().requires_grad_() for name in ("tokens", "k_bias")}
    cls_cross_attention(**named, num_heads=3).square().sum().backward()
    reference.cls_cross_attention(**expected, num_heads=3).square().sum().backward()
    torch.testing.assert_close(named["tokens"].grad, expected["tokens"].grad, rtol=1e-4, atol=1e-5)
    assert [name for name, x in named.items() if x.grad is not None] == ["tokens", "k_bias"]


def test_one_graph() -> None:
    torch.manual_seed(0)
    named = inputs("auto", 2, 9, 24)
    dout = torch.randn(2, 24, device=DEVICE)
    compiled = torch.compile(cls_cross_attention, fullgraph=True, backend="aot_eager")
    came = with_gradients(compiled, named, dout, num_heads=3)
    for name, x in with_gradients(cls_cross_attention, named, dout, num_heads=3).items():
        torch.testing.assert_close(came[name], x, rtol=1e-6, atol=1e-6, msg=name)


def test_autocast_casts_only_the_result() -> None:
    """The small products stay in float32; tokens keep their dtype, lowered or not."""
    torch.manual_seed(0)
    named = inputs("auto", 2, 9, 24)
    exact = cls_cross_attention(**named, num_heads=3)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = cls_cross_attention(**named, num_heads=3)
        from_low = cls_cross_attention(**named | {"tokens": named["tokens"].bfloat16()}, num_heads=3)
    assert torch.equal(out, exact.bfloat16())
    assert from_low.dtype == torch.bfloat16
    torch.testing.assert_close(from_low.float(), exact, rtol=0.02, atol=0.02)


def test_mixed_dtypes_are_named() -> None:
    named = inputs("auto", 2, 9, 24)
    with pytest.raises(ValueError, match=r"one dtype .* v_bias torch.float64"):
        cls_cross_attention(**named | {"v_bias": named["v_bias"].double()}, num_heads=3)
    with pytest.raises(ValueError, match="impl expected one that supports these inputs, got .triton."):
        cls_cross_attention(**{name: x.double() for name, x in named.items()}, num_heads=3, impl="triton")
