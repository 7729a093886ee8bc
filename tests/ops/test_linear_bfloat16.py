"""linear in C++ in bfloat16, and under autocast to it, against float64 and exact rounding."""

import copy
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsta_fast import cpu_speed, reference, space_time_attention
from hsta_fast.cpu_speed import CpuSpeed, Rates
from hsta_fast.extension import cache_folder, load
from hsta_fast.layers import USTA
from hsta_fast.ops import linear
from hsta_fast.ops.linear import auto_choice
from tests.compiler import needs_compiler
from tests.tolerance import assert_close, with_gradients

LOW = torch.bfloat16
EPS = torch.finfo(LOW).eps
FASTER, SLOWER = (
    Rates(100.0, 100.0, bfloat16=100.0, autocast=100.0, autocast_panels=rate) for rate in (200.0, 101.0)
)
pytestmark = [
    needs_compiler,
    pytest.mark.skipif(not cpu_speed.has_bfloat16_instruction(), reason="the CPU lacks AVX512_BF16"),
]
in_bfloat16 = pytest.mark.parametrize("autocast", [False, True])


def context(autocast: bool) -> Any:
    return torch.autocast("cpu", LOW) if autocast else nullcontext()


def inputs(N: int, K: int, M: tuple[int, ...], *, autocast: bool) -> list[Tensor]:
    """x (*M, K), weight (N, K), bias (N,), float32 under autocast."""
    given = [torch.randn(*M, K), torch.randn(N, K) * K**-0.5, torch.randn(N) + 1]
    return given if autocast else [x.to(LOW) for x in given]


def use(monkeypatch: pytest.MonkeyPatch, rates: Rates) -> None:
    """Products of any size are decided by these rates."""
    monkeypatch.setattr(sys.modules["hsta_fast.ops.linear"], "_LEAST_WORK", 0)
    monkeypatch.setattr(cpu_speed, "_found", {torch.get_num_threads(): CpuSpeed(rates, rates, None)})


@in_bfloat16
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [
        ((1,), 1, 1),
        ((5,), 3, 2),
        ((2, 49), 64, 48),
        ((97,), 70, 33),  # tails of every block, and half a pair
        ((200,), 24, 2049),
        ((600,), 72, 20),  # two threads share a panel, or have one each
    ],
)
@pytest.mark.usefixtures("two_threads")
def test_value_and_gradients(M: tuple[int, ...], N: int, K: int, gelu: bool, autocast: bool) -> None:
    torch.manual_seed(0)
    given, dout = inputs(N, K, M, autocast=autocast), torch.randn(*M, N).to(LOW)
    exact = with_gradients(
        lambda *x: reference.linear(*x, gelu=gelu), [x.double() for x in given], dout.double()
    )
    with context(autocast):
        plain = with_gradients(lambda *x: linear(*x, gelu=gelu, impl="torch"), given, dout)
        came = with_gradients(lambda *x: linear(*x, gelu=gelu, impl="extension"), given, dout)
        for triple in zip(came, plain, exact, strict=True):
            assert_close(*[[x] for x in triple], band=EPS)
        with torch.inference_mode():
            assert torch.equal(linear(*given, gelu=gelu, impl="extension"), came[0])


@pytest.mark.parametrize("bias", [False, True])
def test_sums_are_rounded_once(bias: bool) -> None:
    """Integers whose sums float32 holds: the result is the nearest bfloat16, of odd depths too."""
    for K in (7, 768):
        x = torch.randint(-9, 10, (101, K)).float()
        weight, b = torch.randint(-9, 10, (130, K)).float(), torch.randint(-999, 999, (130,)).float()
        exact = F.linear(x.double(), weight.double(), b.double() if bias else None)
        with torch.autocast("cpu", LOW):
            came = linear(x, weight, b if bias else None, impl="extension")
        assert torch.equal(came, exact.to(LOW))


def test_operands_are_rounded_to_the_nearest() -> None:
    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(0x3F80, 0x4080, dtype=torch.int32) << 16) + 0x8000
    odd = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan, 3.39e38, 3.4e38, -3.4e38])
    x = torch.cat([bits.view(torch.float32), ties.view(torch.float32), odd])
    x = x[~(x.abs() < torch.finfo(LOW).tiny) | (x == 0)]  # the instruction takes smaller ones as 0
    one = torch.ones(1, 1)
    with torch.autocast("cpu", LOW):
        as_x = linear(x.unsqueeze(1), one, impl="extension").squeeze(1)
        as_weight = linear(one, x.unsqueeze(1), impl="extension").squeeze(0)
    for came in (as_x, as_weight):
        torch.testing.assert_close(came, x.to(LOW), rtol=0, atol=0, equal_nan=True)


def test_gradients_have_the_dtype_of_the_parameters() -> None:
    """And the backward keeps x in bfloat16, as under autocast without the extension."""
    given = [x.requires_grad_() for x in inputs(12, 8, (3, 5), autocast=True)]
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autocast("cpu", LOW), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y = linear(*given, gelu=True, impl="extension")
    assert y.dtype == LOW
    assert [x.dtype for x in kept if x.shape[-1] == 8 and x.dim() == 3] == [LOW]
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), given))


@in_bfloat16
def test_second_derivatives(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(6, 4, (3, 5), autocast=autocast)

    def second() -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in given]
        with context(autocast):
            once = torch.autograd.grad(linear(*leaves).float().pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(torch.stack([(g.float() ** 2).sum() for g in once]).sum(), leaves)

    use(monkeypatch, FASTER)
    ours = second()
    use(monkeypatch, SLOWER)
    for came, plain in zip(ours, second(), strict=True):
        torch.testing.assert_close(came, plain, rtol=0, atol=8 * EPS * float(plain.abs().max()))


@in_bfloat16
def test_auto_takes_what_was_measured_to_be_faster(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(72, 40, (50,), autocast=autocast)
    with context(autocast):
        results = {impl: linear(*given, gelu=True, impl=impl) for impl in ("extension", "torch")}
        assert not torch.equal(results["extension"], results["torch"])  # GELU of what is rounded, or not
        for rates, taken in ((FASTER, "extension"), (SLOWER, "torch")):
            use(monkeypatch, rates)
            assert torch.equal(linear(*given, gelu=True), results[taken])
            assert auto_choice(torch.device("cpu"), LOW).impl == taken


def test_a_transformer_block_is_as_near_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = USTA(48, num_heads=3)
    x, dout = torch.randn(2, 33, 48), torch.randn(2, 33, 48)

    def run(module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        parameters = list(module.parameters())
        leaf = x.to(dtype).requires_grad_()
        out = module(leaf)
        return [out.detach(), *torch.autograd.grad(out, [leaf, *parameters], dout.to(dtype))]

    exact = run(copy.deepcopy(block).double(), torch.float64)
    with torch.autocast("cpu", LOW):
        use(monkeypatch, SLOWER)
        plain = run(block, torch.float32)
        use(monkeypatch, FASTER)
        came = run(block, torch.float32)
    for triple in zip(came, plain, exact, strict=True):
        assert_close(*[[x] for x in triple], band=EPS)


def test_torch_multiplies_where_onednn_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's small product, which ours consists of, needs oneDNN."""
    use(monkeypatch, FASTER)
    given = inputs(40, 32, (5,), autocast=False)
    qkv = torch.randn(1, 70, 3, 2, 32).to(LOW)
    expected = space_time_attention(qkv, impl="torch")
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(*given), F.linear(*given))
        with pytest.raises(ValueError, match="oneDNN is turned off"):
            linear(*given, impl="extension")
        torch.testing.assert_close(space_time_attention(qkv), expected, rtol=0, atol=2 * EPS)
    linear(*given, impl="extension")


def test_where_onednn_is_limited_to_other_instructions(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom hsta_fast import cpu_speed\nfrom hsta_fast.ops import linear\n"
        "x = torch.randn(64, 256)\nlinear(x, x)\n"
        "print(cpu_speed.multiplies_bfloat16(), cpu_speed.measured().wide.autocast_panels)"
    )
    load("cpu")
    names = [f.name for f in cache_folder().glob("hsta_fast-cpu-*")]
    for name in names:
        (tmp_path / name).symlink_to(cache_folder() / name)
    settings = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "HSTA_FAST_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["False", "0.0"], done.stderr
