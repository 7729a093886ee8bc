"""few_query_attention: shared queries, dtypes, autocast, no keys and values in memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hsta_fast import few_query_attention, reference
from tests.tolerance import assert_close, with_gradients

B, N, C, H, D = 2, 33, 24, 3, 8
NAMES = ("q_weight", "k_weight", "v_weight", "q_bias", "k_bias", "v_bias")


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """In the order of NAMES."""
    return [0.3 * torch.randn(H * D, C, dtype=dtype) for _ in range(3)] + [
        torch.randn(H * D, dtype=dtype) for _ in range(3)
    ]


def call(function: object, query: Tensor, tokens: Tensor, *given: Tensor, **keywords: object) -> Tensor:
    return function(query, tokens, **dict(zip(NAMES, given, strict=True)), num_heads=H, **keywords)  # type: ignore[operator]


@pytest.mark.parametrize("impl", ["triton", "extension", "torch"])
@pytest.mark.parametrize(("batch", "R"), [(1, 1), (B, 1), (1, 3), (B, 7)])
def test_every_implementation_and_gradient(impl: str, batch: int, R: int) -> None:
    torch.manual_seed(R)
    given = [torch.randn(batch, R, C), torch.randn(B, N, C), *weights()]
    dout = torch.randn(B, R, H * D)
    exact = with_gradients(
        lambda *x: call(reference.few_query_attention, *x), [x.double() for x in given], dout
    )
    plain = with_gradients(lambda *x: call(reference.few_query_attention, *x), given, dout)
    came = with_gradients(lambda *x: call(few_query_attention, *x, impl=impl), given, dout)
    k_bias = 1 + 2 + NAMES.index("k_bias")
    assert not came[k_bias].any(), "it cancels in the softmax"
    for x, y, z in zip(came, plain, exact, strict=True):
        assert_close([x], [y], [z], band=1e-5, terms=1.0)


@pytest.mark.parametrize("without", ["q_bias", "k_bias", "v_bias"])
def test_a_bias_may_be_missing(without: str) -> None:
    torch.manual_seed(0)
    query, tokens = torch.randn(1, 1, C).double(), torch.randn(B, N, C).double()
    named: dict[str, Any] = {
        name: x for name, x in zip(NAMES, weights(torch.float64), strict=True) if name != without
    }
    came = few_query_attention(query, tokens, **named, num_heads=H, scale=0.2)
    exact = reference.few_query_attention(query, tokens, **named, num_heads=H, scale=0.2)
    torch.testing.assert_close(came, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["model in bfloat16", "autocast"])
def test_sixteen_bits(how: str) -> None:
    """At most twice the error of keys and values in bfloat16."""
    torch.manual_seed(0)
    given = [torch.randn(1, 1, C), torch.randn(B, N, C), *weights()]
    exact = call(reference.few_query_attention, *(x.double() for x in given))
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            plain = call(reference.few_query_attention, *given)
            came = call(few_query_attention, *given)
    else:
        half = [x.bfloat16() for x in given]
        plain, came = call(reference.few_query_attention, *half), call(few_query_attention, *half)
    assert came.dtype == plain.dtype == torch.bfloat16
    assert_close([came], [plain], [exact], band=torch.finfo(torch.bfloat16).eps)


def test_one_graph() -> None:
    torch.manual_seed(0)
    given = [torch.randn(1, 1, C), torch.randn(B, N, C), *weights()]
    compiled = torch.compile(lambda *x: call(few_query_attention, *x), fullgraph=True, backend="aot_eager")
    dout = torch.randn(B, 1, H * D)
    came = with_gradients(compiled, given, dout)
    expected = with_gradients(lambda *x: call(few_query_attention, *x), given, dout)
    torch.testing.assert_close(came, expected)
