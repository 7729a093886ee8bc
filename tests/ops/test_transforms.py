"""torch.func, forward mode and second derivatives of every op, against the same of its reference."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_leaves

import hsta_fast
from hsta_fast import reference
from tests.ops.test_ops import cross_weights, rand
from tests.tolerance import assert_close

Function = Callable[..., Any]
B = 3
# The tensors of a batch, the shared ones, and the other arguments.
CALLS: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...], dict[str, Any]]] = {
    "attention_pool": ((rand(B, 2, 8), rand(B, 5, 8)), (), {"eps": 1e-5}),
    "cls_cross_attention": ((rand(B, 8), rand(B, 5, 8)), (), {**cross_weights(8), "num_heads": 4}),
    "space_time_attention": ((rand(B, 5, 3, 2, 4),), (), {"scale": 0.3}),
    "tubelet_embed": ((rand(B, 3, 4, 9, 9),), (rand(5, 3, 2, 4, 4), rand(5)), {"cls_token": rand(1, 1, 5)}),
}
WITH_KERNELS = ("attention_pool", "cls_cross_attention", "space_time_attention")


def loss_of(function: Function) -> Function:
    return lambda *x: (function(*x) ** 3).sum()


def gradients(function: Function, inputs: tuple[Tensor, ...], _: tuple[int | None, ...]) -> Any:
    return grad(loss_of(function), argnums=tuple(range(len(inputs))))(*inputs)


def per_sample_gradients(function: Function, inputs: tuple[Tensor, ...], dims: tuple[int | None, ...]) -> Any:
    def of_one(*x: Tensor) -> Tensor:
        batched = (y if dim is None else y.unsqueeze(0) for y, dim in zip(x, dims, strict=True))
        return loss_of(function)(*batched)

    return vmap(grad(of_one, argnums=tuple(range(len(inputs)))), in_dims=dims)(*inputs)


def tangents(function: Function, inputs: tuple[Tensor, ...], _: tuple[int | None, ...]) -> Any:
    return jvp(function, inputs, tuple(x * 0.5 + 1 for x in inputs))


def dual_numbers(function: Function, inputs: tuple[Tensor, ...], _: tuple[int | None, ...]) -> Any:
    with forward_ad.dual_level():
        out = function(*(forward_ad.make_dual(x, x * 0.5 + 1) for x in inputs))
        return forward_ad.unpack_dual(out)[:]


def second_derivatives(function: Function, inputs: tuple[Tensor, ...], _: tuple[int | None, ...]) -> Any:
    leaves = [x.clone().requires_grad_() for x in inputs]
    once = torch.autograd.grad(loss_of(function)(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(torch.stack([(g**2).sum() for g in once]).sum(), leaves)


def of_dependent_inputs(function: Function, inputs: tuple[Tensor, ...], _: tuple[int | None, ...]) -> Any:
    """Each input depends on one leaf, and only some need a gradient."""
    leaf = torch.ones((), dtype=inputs[0].dtype, requires_grad=True)
    given = [x if i == 1 else x * leaf**2 for i, x in enumerate(inputs)]
    (once,) = torch.autograd.grad(loss_of(function)(*given), leaf, create_graph=True)
    return torch.autograd.grad(once, leaf)


def batched_gradients(function: Function, inputs: tuple[Tensor, ...], _: tuple[int | None, ...]) -> Any:
    return jacobian(function, inputs, vectorize=True)


TRANSFORMS = (
    gradients,
    per_sample_gradients,
    tangents,
    dual_numbers,
    second_derivatives,
    of_dependent_inputs,
    batched_gradients,
)


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_transforms_are_those_of_the_reference(op: str, transform: Function, impl: str) -> None:
    batched, shared, options = CALLS[op]
    inputs = (*batched, *shared)
    dims = tuple(0 if i < len(batched) else None for i in range(len(inputs)))
    fast = functools.partial(getattr(hsta_fast, op), impl=impl, **options)
    exact = functools.partial(getattr(reference, op), **options)
    torch.testing.assert_close(
        transform(fast, inputs, dims), transform(exact, inputs, dims), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("op", WITH_KERNELS)
@pytest.mark.parametrize("transform", [second_derivatives, of_dependent_inputs, batched_gradients])
def test_backwards_of_the_kernels_become_plain(op: str, transform: Function) -> None:
    batched, _, options = CALLS[op]
    inputs = tuple(x.float() for x in batched)
    options = {name: x.float() if isinstance(x, Tensor) else x for name, x in options.items()}
    fast = functools.partial(getattr(hsta_fast, op), impl="triton", **options)
    exact = functools.partial(getattr(reference, op), **options)
    wide = functools.partial(getattr(reference, op), **CALLS[op][2])
    came, plain, want = (
        tree_leaves(transform(function, x, ()))
        for function, x in ((fast, inputs), (exact, inputs), (wide, batched))
    )
    assert_close(came, plain, want, band=64 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("transform", [gradients, per_sample_gradients, tangents, dual_numbers])
@pytest.mark.parametrize(
    ("op", "impl"),
    [
        *((op, "triton") for op in WITH_KERNELS),
        ("attention_pool", "extension"),
        ("tubelet_embed", "extension"),
    ],
)
def test_implementations_without_rules_name_one_that_has_them(
    op: str, impl: str, transform: Function
) -> None:
    batched, shared, options = CALLS[op]
    inputs = (*batched, *shared)
    fast = functools.partial(getattr(hsta_fast, op), impl=impl, **options)
    dims = tuple(0 if i < len(batched) else None for i in range(len(inputs)))
    message = f"""^impl expected "auto" or "torch" under torch.func and in forward mode, got '{impl}'$"""
    with pytest.raises(ValueError, match=message):
        transform(fast, inputs, dims)


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_second_derivatives_of_a_pool(normalize: bool, extra: bool) -> None:
    """With an extra row that needs a gradient, without normalising, and of 16-bit tokens in their dtype."""
    inputs = (rand(B, 2, 8), rand(B, 5, 8), *([rand(B, 8)] if extra else []))

    def pool(function: Function) -> Function:
        return lambda q, x, e=None: function(q, x, extra=e, normalize=normalize)

    fast, exact = pool(hsta_fast.attention_pool), pool(reference.attention_pool)
    came, want = (second_derivatives(f, inputs, ()) for f in (fast, exact))
    torch.testing.assert_close(came, want, rtol=1e-10, atol=1e-10)
    rough = second_derivatives(fast, tuple(x.bfloat16() for x in inputs), ())
    assert all(x.dtype == torch.bfloat16 and x.isfinite().all() for x in rough)


@pytest.mark.parametrize("needed", [(0, 1, 2), (1,)])
@pytest.mark.parametrize(("N", "dtype"), [(2050, torch.float32), (9, torch.bfloat16), (9, torch.float16)])
def test_second_derivatives_of_torchs_fused_attention(
    N: int, dtype: torch.dtype, needed: tuple[int, ...]
) -> None:
    """Of a sequence too long to have all its scores written in an ordinary call, and of 16 bits."""
    rounded = [rand(1, N, 1, 8).to(dtype) for _ in range(3)]
    exact = [x.double() for x in rounded]
    results = []
    for attention, inputs in (
        (hsta_fast.space_time_attention, rounded),
        (reference.space_time_attention, rounded),
        (reference.space_time_attention, exact),
    ):
        leaves = [x.clone().requires_grad_(i in needed) for i, x in enumerate(inputs)]
        asked = [leaves[i] for i in needed]
        once = torch.autograd.grad((attention(*leaves).double() ** 3).sum(), asked, create_graph=True)
        lengths = torch.stack([g.double().square().sum() for g in once])
        twice = torch.autograd.grad(lengths.sum(), asked)
        results.append([g.detach() for g in (*once, *twice)])
    assert_close(*results, band=max(torch.finfo(dtype).eps, 64 * torch.finfo(torch.float32).eps))


def test_batched_gradients_of_torchs_fused_attention() -> None:
    inputs = tuple(rand(1, 3, 2, 8).bfloat16() for _ in range(3))
    came = batched_gradients(hsta_fast.space_time_attention, inputs, ())
    want = batched_gradients(reference.space_time_attention, tuple(x.double() for x in inputs), ())
    for x, y in zip(came, want, strict=True):
        assert (x.double() - y).norm() < 0.02 * y.norm()


def test_weights_under_a_transform() -> None:
    query, tokens = rand(B, 2, 8), rand(B, 5, 8)
    came = vmap(lambda q, x: hsta_fast.attention_pool(q[None], x[None], return_weights=True))(query, tokens)
    want = hsta_fast.attention_pool(query, tokens, return_weights=True)
    torch.testing.assert_close([x.squeeze(1) for x in came], list(want), rtol=1e-12, atol=1e-12)
