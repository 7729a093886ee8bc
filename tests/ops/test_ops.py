"""The public ops: equality with the reference, and every error at their boundary."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hsta_fast
from hsta_fast import extension, reference
from tests.compiler import needs_compiler


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cross_weights(C: int) -> dict[str, Any]:
    vectors = {
        name: rand(C, seed=i)
        for i, name in enumerate(("norm_weight", "norm_bias", "q_bias", "k_bias", "v_bias"))
    }
    return vectors | {name: rand(C, C, seed=i) for i, name in enumerate(("q_weight", "k_weight", "v_weight"))}


CALLS: dict[str, tuple[tuple[Tensor, ...], dict[str, Any]]] = {
    "space_time_attention": ((rand(2, 5, 3, 2, 4),), {"scale": 0.3}),
    "attention_pool": ((rand(2, 3, 8), rand(2, 6, 8)), {"extra": rand(2, 8), "eps": 1e-5}),
    "cls_cross_attention": ((rand(2, 8), rand(2, 6, 8)), {**cross_weights(8), "num_heads": 4}),
    "few_query_attention": (
        (rand(2, 2, 6), rand(2, 7, 8)),
        {
            "q_weight": rand(12, 6),
            "q_bias": rand(12),
            "k_weight": rand(12, 8, seed=1),
            "k_bias": rand(12, seed=1),
            "v_weight": rand(9, 8, seed=2),
            "v_bias": rand(9, seed=2),
            "num_heads": 3,
        },
    ),
    "tubelet_embed": (
        (rand(2, 3, 4, 9, 9), rand(5, 3, 2, 4, 4), rand(5)),
        {"cls_token": rand(1, 1, 5), "pos_embed": rand(1, 9, 5)},
    ),
}


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_op_equals_its_reference_with_every_gradient(op: str, impl: str) -> None:
    args, kwargs = CALLS[op]
    results = []
    for function, extra in ((getattr(hsta_fast, op), {"impl": impl}), (getattr(reference, op), {})):
        leaves = [x.clone().requires_grad_() for x in args]
        named = {k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        out = function(*leaves, **named, **extra)
        out.backward(rand(*out.shape, seed=9))
        tensors = [*leaves, *(v for v in named.values() if isinstance(v, Tensor))]
        results.append([out, *(t.grad for t in tensors)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("op", CALLS)
def test_unknown_implementation(op: str) -> None:
    args, kwargs = CALLS[op]
    with pytest.raises(ValueError, match="impl expected one of .* got 'cuda'"):
        getattr(hsta_fast, op)(*args, **kwargs, impl="cuda")


@pytest.mark.parametrize(
    ("op", "args", "changes", "message"),
    [
        (
            "space_time_attention",
            (rand(2, 5, 2, 2, 4),),
            {},
            r"qkv expected shape \(B, N, 3, H, D\) = .* got \(2, 5, 2, 2, 4\)",
        ),
        ("space_time_attention", (rand(2, 5, 2, 4), rand(2, 5, 2, 4)), {}, "only one of k and v"),
        (
            "space_time_attention",
            (rand(2, 5, 2, 4), rand(2, 6, 2, 4), rand(2, 5, 2, 4)),
            {},
            "v expected shape",
        ),
        (
            "space_time_attention",
            (torch.zeros(1, 2, 3, 1, 4, dtype=torch.int64),),
            {},
            "expected float16, bfloat16, float32 or float64",
        ),
        (
            "space_time_attention",
            (rand(1, 2, 1, 4), rand(1, 2, 1, 4), rand(1, 2, 1, 4).float()),
            {},
            "inputs expected one dtype",
        ),
        ("attention_pool", (rand(2, 3, 8), rand(3, 6, 8)), {}, "query expected shape"),
        (
            "attention_pool",
            (rand(2, 3, 8), rand(2, 0, 8)),
            {"extra": None},
            "tokens expected at least one row",
        ),
        ("attention_pool", (rand(2, 3, 8), rand(2, 6, 8)), {"extra": rand(2, 7)}, "extra expected shape"),
        ("cls_cross_attention", (rand(2, 7), rand(2, 6, 8)), {}, "cls expected shape"),
        (
            "cls_cross_attention",
            (rand(2, 8), rand(2, 6, 8)),
            {"num_heads": 3},
            "num_heads expected a divisor of the width 8, got 3",
        ),
        (
            "cls_cross_attention",
            (rand(2, 8), rand(2, 6, 8)),
            {"k_weight": rand(8, 7)},
            "k_weight expected shape",
        ),
        (
            "few_query_attention",
            (rand(3, 2, 6), rand(2, 7, 8)),
            {},
            "query expected a batch of 2 or 1, got 3",
        ),
        (
            "few_query_attention",
            (rand(2, 2, 6), rand(2, 7, 8)),
            {"num_heads": 4},
            r"num_heads expected a divisor of the widths \(12, 9\), got 4",
        ),
        (
            "few_query_attention",
            (rand(2, 2, 6), rand(2, 7, 8)),
            {"k_weight": rand(11, 8)},
            r"k_weight expected shape \(E, C\) = \(12, 8\)",
        ),
        ("tubelet_embed", (rand(2, 4, 4, 9, 9), rand(5, 3, 2, 4, 4), rand(5)), {}, "video expected shape"),
        (
            "tubelet_embed",
            (rand(2, 3, 1, 9, 9), rand(5, 3, 2, 4, 4), rand(5)),
            {},
            "video expected T, H, W of at least one tubelet",
        ),
        ("tubelet_embed", (rand(2, 3, 4, 9, 9), rand(5, 3, 2, 4, 4), rand(4)), {}, "bias expected shape"),
        (
            "tubelet_embed",
            (rand(2, 3, 4, 9, 9), rand(5, 3, 2, 4, 4), rand(5)),
            {"mean": (1, 1, 1)},
            "mean and std expected both or neither",
        ),
        (
            "tubelet_embed",
            (rand(2, 3, 4, 9, 9), rand(5, 3, 2, 4, 4), rand(5)),
            {"mean": (1, 1, 1), "std": (1, 1, 1)},
            "mean and std expected None for float video",
        ),
        (
            "tubelet_embed",
            (rand(2, 3, 4, 9, 9), rand(5, 3, 2, 4, 4), rand(5)),
            {"pos_embed": rand(1, 8, 5)},
            "pos_embed expected shape",
        ),
        (
            "tubelet_embed",
            (rand(2, 3, 4, 9, 9), rand(5, 3, 2, 4, 4), rand(5)),
            {"layout": "BTCHW"},
            "layout expected",
        ),
    ],
)
def test_bad_input_is_named(op: str, args: tuple[Tensor, ...], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(hsta_fast, op)(*args, **{**CALLS[op][1], **changes})


def test_info_names_the_implementation_of_every_op() -> None:
    facts = hsta_fast.info()
    assert set(facts["ops"]["cpu"]) == {*CALLS, "int8_linear", "linear"}
    for choice in facts["ops"]["cpu"].values():
        assert choice["impl"] and choice["reason"]


# Argument -> what it is called in an error.
TENSORS = [
    (op, place, name)
    for op, (args, kwargs) in CALLS.items()
    for place, name in [
        *enumerate(
            {
                "space_time_attention": ["qkv"],
                "attention_pool": ["query", "tokens"],
                "cls_cross_attention": ["cls", "tokens"],
                "few_query_attention": ["query", "tokens"],
                "tubelet_embed": ["video", "weight", "bias"],
            }[op]
        ),
        *((key, key) for key, value in kwargs.items() if isinstance(value, Tensor)),
    ]
]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("op", "place", "name"), TENSORS)
def test_arguments_that_are_not_floating_tensors_are_named(
    op: str, place: int | str, name: str, autocast: bool
) -> None:
    args, kwargs = CALLS[op]
    for change, got in {
        "array": "a tensor .*, got ndarray$",
        "list": "a tensor .*, got list$",
        "integers": "torch.int64",
    }.items():
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        x = given[place]
        given[place] = {"array": x.numpy(), "list": x.tolist(), "integers": x.long()}[change]
        positional = [given.pop(i) for i in range(len(args))]
        subject = "|".join((name, "inputs")) if change == "integers" else name
        with (
            pytest.raises(ValueError, match=f"^({subject}) expected .*{got}"),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            getattr(hsta_fast, op)(*positional, **given)


@needs_compiler
def test_the_extension_refuses_what_has_no_elements() -> None:
    """The ops of Python do not pass such inputs on."""
    assert extension.usable("cpu", "extension")
    ops = torch.ops.hsta_fast
    for query in (torch.ones(1, 0, 4), torch.ones(1, 2, 0)):
        with pytest.raises(RuntimeError, match="query expected elements, got"):
            ops.attention_pool_fwd(query, torch.ones(1, 3, query.shape[2]), None, True, 1e-6, scores=None)
    small, weight = torch.ones(1, 3, 2, 3, 3), torch.ones(5, 3, 2, 4, 4)
    with pytest.raises(RuntimeError, match="video expected at least one patch"):
        ops.tubelet_tokens(small, weight, torch.ones(5), torch.ones(5), None)
