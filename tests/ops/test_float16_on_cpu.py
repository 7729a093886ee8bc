"""No op of ours multiplies float16 on the CPU, where torch can be a thousand times slower than in float32."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import hsta_fast
from hsta_fast import extension, reference
from tests.tolerance import with_gradients

PRODUCTS = re.compile(r"aten::(\w*m[mv]_?|v?dot|matmul|linear|einsum|\w*conv\w*|\w*scaled_dot_product\w*)")


def half(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


C = 16
VECTORS = ("norm_weight", "norm_bias", "q_bias", "k_bias", "v_bias")
MATRICES = ("q_weight", "k_weight", "v_weight")
CROSS = {name: half(C, seed=i) for i, name in enumerate(VECTORS)}
CROSS |= {name: half(C, C, seed=i) for i, name in enumerate(MATRICES)}
# Name -> op, tensors, other arguments.
CALLS: dict[str, tuple[str, tuple[Tensor, ...], dict[str, Any]]] = {
    "attention": ("space_time_attention", (half(2, 9, 3, 2, 8, seed=0),), {}),
    "attention of three": (
        "space_time_attention",
        (half(1, 5, 2, 8, seed=0), half(1, 9, 2, 8, seed=1), half(1, 9, 2, 8, seed=2)),
        {"scale": 0.5},
    ),
    "pool": ("attention_pool", (half(2, 3, C, seed=0), half(2, 9, C, seed=1)), {}),
    "cross": ("cls_cross_attention", (half(2, C, seed=0), half(2, 9, C, seed=1)), {**CROSS, "num_heads": 2}),
    "embed": (
        "tubelet_embed",
        (half(2, 3, 2, 9, 8, seed=0), half(5, 3, 2, 4, 4, seed=1), half(5, seed=2)),
        {},
    ),
}


def float16_products(folder: Path, run: Any) -> list[str]:
    """The products with a float16 input that `run` computes, in our registered ops and in torch's."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        run()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return [
        event["name"]
        for event in events
        if PRODUCTS.fullmatch(event.get("name", "")) and "c10::Half" in event["args"].get("Input type", [])
    ]


def test_float16_products_are_seen(tmp_path: Path) -> None:
    x = half(4, 4, seed=0)
    assert "aten::mm" in float16_products(tmp_path, lambda: x @ x)
    assert "aten::bmm" in float16_products(tmp_path, lambda: reference.attention_pool(x[None], x[None]))
    assert float16_products(tmp_path, lambda: x.float() @ x.float()) == []


@pytest.fixture(params=[True, False], ids=["extension", "no extension"])
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(extension, "_NO_COMPILER", "for this test there is no compiler")
        monkeypatch.setattr(extension, "warn_of", lambda reason: None)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("call", CALLS)
def test_no_op_multiplies_float16(call: str, impl: str, autocast: bool, built: None, tmp_path: Path) -> None:
    """Neither forward nor backward."""
    op, tensors, more = CALLS[call]

    def ours(*given: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            return getattr(hsta_fast, op)(*given, **more, impl=impl)

    came: list[Tensor] = []
    dout = torch.ones(())
    products = float16_products(
        tmp_path, lambda: came.extend(with_gradients(lambda *x: ours(*x).sum(), tensors, dout))
    )
    assert products == [] and all(x.dtype == torch.float16 for x in came)


@pytest.mark.parametrize("call", ["attention", "attention of three", "pool", "embed"])
def test_the_result_is_rounded_once(call: str) -> None:
    """It is the float64 result rounded to float16, or its neighbour where that lies half-way."""
    op, tensors, more = CALLS[call]
    exact = getattr(reference, op)(*(x.double() for x in tensors), **more)
    came = getattr(hsta_fast, op)(*tensors, **more, impl="torch")
    half_step = exact.abs().clamp(min=2.0**-14).log2().floor().exp2() * 2.0**-11
    assert ((came.double() - exact).abs() <= half_step * (1 + 1e-3)).all()
