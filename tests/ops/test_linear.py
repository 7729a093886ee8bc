"""linear in C++ against float64, after every kind of change to a weight, and where torch must run."""

import copy
import pickle
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hsta_fast import cpu_speed, reference
from hsta_fast.cpu_speed import CpuSpeed, Rates
from hsta_fast.layers import USTA, Mlp, product
from hsta_fast.ops import linear
from hsta_fast.ops.linear import _unsupported_reason, auto_choice
from hsta_fast.ops.linear_compiled import _bwd, _fwd
from tests.compiler import needs_compiler
from tests.tolerance import assert_close, with_gradients

TWICE = Rates(torch=100.0, panels=200.0, bfloat16=100.0)
FAST = CpuSpeed(TWICE, TWICE, None)


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the extension for products of any size."""
    monkeypatch.setattr(sys.modules["hsta_fast.ops.linear"], "_LEAST_WORK", 0)
    monkeypatch.setattr(cpu_speed, "_found", {torch.get_num_threads(): FAST})


def inputs(*shape: int, M: tuple[int, ...] = (), bias: bool = True) -> list[Tensor]:
    """x (*M, K), weight and bias of `shape` (N, K); a bias far from 0, so that leaving it out is seen."""
    N, K = shape
    given = [torch.randn(*M, K), torch.randn(N, K) * K**-0.5]
    return [*given, torch.randn(N) + 1] if bias else given


def gelu_error(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return (function(x).double() - F.gelu(x.double())).abs()


@needs_compiler
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("M", "N", "K", "bias"),
    [
        ((1,), 1, 1, True),
        ((5,), 3, 2, False),
        ((2, 49), 64, 48, True),
        ((97,), 70, 33, True),  # tails of every block
        ((1, 193), 130, 1100, True),  # K in two parts
        ((200,), 24, 2049, False),
        ((600,), 72, 20, True),  # two threads share a panel, or have one each
    ],
)
@pytest.mark.usefixtures("two_threads")
def test_value_and_gradients(M: tuple[int, ...], N: int, K: int, bias: bool, gelu: bool) -> None:
    torch.manual_seed(0)
    given, dout = inputs(N, K, M=M, bias=bias), torch.randn(*M, N)
    exact = with_gradients(
        lambda *x: reference.linear(*x, gelu=gelu), [x.double() for x in given], dout.double()
    )
    plain = with_gradients(lambda *x: linear(*x, gelu=gelu, impl="torch"), given, dout)
    came = with_gradients(lambda *x: linear(*x, gelu=gelu, impl="extension"), given, dout)
    eps = torch.finfo(torch.float32).eps
    for triple in zip(came, plain, exact, strict=True):
        assert_close(*[[x] for x in triple], band=8 * eps)
    with torch.inference_mode():
        assert torch.equal(linear(*given, gelu=gelu, impl="extension"), came[0])


@needs_compiler
def test_gelu_is_exact() -> None:
    """To rounding over its whole range, in relative terms where it is tiny; infinities and NaN as torch."""

    def ours(x: Tensor) -> Tensor:
        return linear(x.unsqueeze(1), torch.ones(1, 1), gelu=True, impl="extension").squeeze(1)

    x = torch.linspace(-12, 12, 20001)
    assert float((gelu_error(ours, x) / x.abs().clamp(min=1)).max()) < 2e-7
    near = torch.linspace(-5, -0.01, 2001)
    assert float((gelu_error(ours, near) / F.gelu(near.double()).abs()).max()) < 3e-6
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e30, -1e30, 1e-40])
    expected = F.gelu(odd.double()).float()  # in float32 torch gives NaN for infinity
    torch.testing.assert_close(ours(odd), expected, equal_nan=True)


def swap_data(weight: Tensor) -> None:
    """The old memory is freed before the new is allocated: it may get the same address."""
    new = (weight.detach() * 2).numpy().copy()
    weight.data = torch.empty(0)
    weight.data = torch.from_numpy(new).clone()


def resize_storage(weight: Tensor) -> None:
    """As FSDP frees and fills the memory of a parameter, without a new version."""
    new, storage = weight.detach() * 2, weight.untyped_storage()
    size = storage.nbytes()
    with torch.no_grad(), _unsafe_preserve_version_counter(weight):
        storage.resize_(0)
        storage.resize_(size)
        weight.copy_(new)


def step(weight: Tensor) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


def double(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(2)


def double_in_inference_mode(weight: Tensor) -> None:
    with torch.inference_mode():
        weight.mul_(2)


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "no_grad": double,
    "inference mode": double_in_inference_mode,
    "data": lambda weight: weight.data.mul_(2),
    "numpy": lambda weight: weight.detach().numpy().__imul__(2),
    "new data": swap_data,
    "storage": resize_storage,
    "optimizer": step,
}


@needs_compiler
@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("grad", [False, True])
def test_no_result_is_out_of_date(change: str, grad: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 80), torch.randn(7, 48)
    with torch.set_grad_enabled(grad):
        before = linear(x, layer.weight, layer.bias)
        CHANGES[change](layer.weight)
        after = linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(after, layer(x))
    assert not torch.allclose(after, before)


@needs_compiler
@pytest.mark.usefixtures("panels")
def test_a_layer_that_is_copied_loaded_or_moved() -> None:
    torch.manual_seed(0)
    mlp, other, x = Mlp(24, hidden=40), Mlp(24, hidden=40), torch.randn(5, 24)

    def called(module: Any) -> Tensor:
        return module.fc2(F.gelu(module.fc1(x)))

    with torch.no_grad():
        mlp(x)
        twins = [copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))]
        assert mlp.state_dict().keys() == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
        mlp.load_state_dict(other.state_dict())
        for module in (mlp, *twins):
            torch.testing.assert_close(module(x), called(module))
        assert torch.equal(twins[0](x), twins[1](x)) and not torch.allclose(twins[0](x), mlp(x))
        assert mlp.double()(x.double()).dtype == torch.float64
        torch.testing.assert_close(mlp.float()(x), called(mlp))
        assert mlp.to("meta")(x.to("meta")).is_meta
        functional = torch.func.functional_call(other, {"fc1.bias": torch.ones(40)}, x)
        torch.testing.assert_close(
            functional, other.fc2(F.gelu(F.linear(x, other.fc1.weight, torch.ones(40))))
        )
    with torch.inference_mode():
        weight = torch.randn(40, 24)  # has no version
        for _ in range(2):
            torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
            weight.mul_(2)


class Doubled(Tensor):
    """A weight with a product of its own."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return 2 * out if func is F.linear else out


def autocast_to_float16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.float16)


@needs_compiler
@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize(
    ("change", "context"),
    [
        (lambda x, w, b: (x.double(), w.double(), b.double()), nullcontext),
        (lambda x, w, b: (x.half(), w.half(), b.half()), nullcontext),
        (lambda x, w, b: (x[:0], w, b), nullcontext),
        (lambda x, w, b: (x[..., :0], w[:, :0], b), nullcontext),
        (lambda x, w, b: (x, w[:0], b[:0]), nullcontext),
        (lambda x, w, b: (x, w.t().contiguous().t(), b), nullcontext),
        (lambda x, w, b: (x, w, b.repeat(2)[::2]), nullcontext),
        (lambda x, w, b: (x, w.as_subclass(Doubled), b), nullcontext),
        (lambda x, w, b: (x, w, b), autocast_to_float16),
        (lambda x, w, b: (x, w, b), lambda: FlopCounterMode(display=False)),
    ],
)
def test_torch_runs_where_the_extension_cannot(change: Any, context: Any) -> None:
    x, weight, bias = change(*inputs(12, 8, M=(3, 5)))
    with context():
        came, expected = linear(x, weight, bias, gelu=True), F.gelu(F.linear(x, weight, bias))
        reason = _unsupported_reason(x, weight, bias)
        with pytest.raises(ValueError, match='impl expected one that supports these inputs, got "extension"'):
            linear(x, weight, bias, impl="extension")
    assert reason is not None
    assert came.dtype == expected.dtype and torch.equal(came, expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("panels")
def test_torch_runs_where_the_processor_does_not_multiply_bfloat16(
    autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_speed, "has_bfloat16_instruction", lambda: False)
    given = inputs(12, 8, M=(3, 5))
    given = given if autocast else [x.bfloat16() for x in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(linear(*given), F.linear(*given))
        assert _unsupported_reason(*given) == "this processor has no instruction for bfloat16"
        with pytest.raises(ValueError, match='impl expected one that supports these inputs, got "extension"'):
            linear(*given, impl="extension")
    choice = auto_choice(torch.device("cpu"), torch.bfloat16)
    assert choice == ("torch", "torch's own product: this processor has no instruction for bfloat16")
    assert cpu_speed._measure()[0]["narrow"].autocast_panels == 0


def strided(x: Tensor) -> list[Tensor]:
    """The same numbers with other strides, offsets and a negative bit."""
    wide = torch.randn(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    negative = torch.complex(torch.zeros_like(x), -x).conj().imag
    return [x.transpose(0, 1).contiguous().transpose(0, 1), wide[..., ::2], negative]


@needs_compiler
@pytest.mark.usefixtures("panels")
def test_strides_of_x_and_of_the_gradient() -> None:
    x, weight, bias = inputs(12, 8, M=(3, 5))
    expected = linear(x, weight, bias, gelu=True)
    for view in strided(x):
        assert torch.equal(linear(view, weight, bias, gelu=True), expected)
    assert torch.equal(linear(x[0, 0], weight, bias, gelu=True), expected[0, 0])
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    dout = torch.randn(12, 5, 3).permute(2, 1, 0)
    came = torch.autograd.grad(linear(*leaves), leaves, dout)
    torch.testing.assert_close(came, torch.autograd.grad(F.linear(*leaves), leaves, dout))


@needs_compiler
@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("gelu", [False, True])
def test_transforms_and_second_derivatives(gelu: bool) -> None:
    x, weight, bias = inputs(6, 4, M=(3, 5))

    def ours(*given: Tensor) -> Tensor:
        return linear(*given, gelu=gelu)

    def plain(*given: Tensor) -> Tensor:
        return reference.linear(*given, gelu=gelu)

    def second(function: Any) -> Any:
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        once = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(torch.stack([(g**2).sum() for g in once]).sum(), leaves)

    def batched(function: Any) -> Any:
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        dout = torch.stack([torch.full((3, 5, 6), float(i)) for i in range(2)])
        return torch.autograd.grad(function(*leaves), leaves, dout, is_grads_batched=True)

    def tangent(function: Any) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x + 1), weight, bias))[:]

    def recomputed(function: Any) -> Any:
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        return torch.autograd.grad(checkpoint(function, *leaves, use_reentrant=False).pow(2).sum(), leaves)

    for use in (
        second,
        batched,
        tangent,
        recomputed,
        lambda f: torch.func.vmap(f, in_dims=(0, None, None))(x, weight, bias),
        lambda f: torch.func.grad(lambda w: f(x, w, bias).pow(2).sum())(weight),
        lambda f: make_fx(f)(x, weight, bias)(x, weight, bias),
    ):
        torch.testing.assert_close(use(ours), use(plain), rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.usefixtures("panels")
def test_only_the_gradients_that_are_needed() -> None:
    """Frozen weights, as in fine-tuning, cost nothing; a result that nobody uses has no gradient."""
    for needed in ([0], [1], [2], [1, 2]):
        given = inputs(12, 8, M=(5,))
        leaves = [t.requires_grad_(i in needed) for i, t in enumerate(given)]
        asked = [given[i] for i in needed]
        came = torch.autograd.grad(linear(*leaves, gelu=True).sum(), asked)
        torch.testing.assert_close(came, torch.autograd.grad(F.gelu(F.linear(*leaves)).sum(), asked))


@needs_compiler
@pytest.mark.usefixtures("panels")
def test_exported_code_and_narrow_compiled_code_have_torchs_own_ops() -> None:
    mlp, x = Mlp(8, hidden=12), torch.randn(3, 8)
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(mlp, backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(x), mlp(x))
    exported = torch.export.export(mlp, (x,)).module()
    torch.testing.assert_close(exported(x), mlp(x))
    assert "hsta_fast" not in "".join(graph.code for graph in (*graphs, exported))
    wide = Mlp(192, hidden=192)
    assert "hsta_fast" not in torch.export.export(wide, (torch.randn(3, 192),)).module().code


@needs_compiler
@pytest.mark.usefixtures("panels")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_wide_compiled_code_multiplies_in_c(gelu: bool, bias: bool) -> None:
    """Where it was measured to be faster, in one graph for any number of rows; value and gradients."""
    graphs = 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += "linear_compiled" in graph.code
        return graph.forward

    x, weight, *rest = inputs(200, 256, M=(5,), bias=bias)
    layer = nn.Linear(256, 200, bias=bias)
    layer.weight = nn.Parameter(weight)
    if bias:
        layer.bias = nn.Parameter(rest[0])
    compiled = torch.compile(
        lambda x: product(layer, x, gelu=gelu), backend=count, fullgraph=True, dynamic=True
    )
    for M in ((5,), (2, 7), (3, 9)):
        x, dout = torch.randn(*M, 256), torch.randn(*M, 200)
        given = [x, *(p.detach() for p in layer.parameters())]
        plain, exact = (
            with_gradients(partial(reference.linear, gelu=gelu), [t.to(dtype) for t in given], dout.to(dtype))
            for dtype in (torch.float32, torch.float64)
        )
        y = compiled(x.requires_grad_())
        came = [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dout)]
        assert_close(came, plain, exact, band=1e-6)
    assert graphs == 2  # of two and of three dimensions


@needs_compiler
@pytest.mark.usefixtures("panels")
def test_wide_compiled_code_under_transforms_and_with_a_strided_bias() -> None:
    mlp = Mlp(192, hidden=192).requires_grad_(False)
    x, d = torch.randn(2, 3, 192)

    def tangent(x: Tensor, d: Tensor) -> Tensor:
        return torch.func.jvp(mlp, (x,), (d,))[1]

    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(x, d), tangent(x, d))
    weight, bias = torch.randn(192, 192), torch.randn(384)[::2]
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias), F.linear(x, weight, bias))


@needs_compiler
@pytest.mark.parametrize("rates", [TWICE, Rates(torch=200.0, panels=100.0, bfloat16=100.0)])
def test_compiled_code_takes_what_was_measured_to_be_faster(
    rates: Rates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_speed, "_found", {torch.get_num_threads(): CpuSpeed(rates, rates, None)})
    torch.compiler.reset()
    code = ""

    def keep(graph: Any, _: Any) -> Any:
        nonlocal code
        code += graph.code
        return graph.forward

    given = inputs(192, 192, M=(3,))
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        code = ""
        with context:
            torch.compile(linear, backend=keep, fullgraph=True)(*given)
        in_c = "linear_compiled" in code
        assert in_c == (rates is TWICE and isinstance(context, nullcontext))


@needs_compiler
@pytest.mark.parametrize("gelu", [False, True])
def test_opcheck(gelu: bool) -> None:
    given = inputs(24, 24, M=(2, 3))
    torch.library.opcheck(_fwd, (*given, gelu, False))  # without gradients
    x, weight, bias = (t.requires_grad_() for t in given)
    torch.library.opcheck(_fwd, (x, weight, bias, gelu, True))
    torch.library.opcheck(_bwd, (torch.randn(2, 3, 24), weight.detach()))


def test_compiled_code_runs_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it was compiled with a compiler, and runs later without one."""
    monkeypatch.setattr("hsta_fast.extension.usable", lambda part, impl: False)
    x, weight, bias = inputs(6, 5, M=(3,))
    y, before = _fwd(x, weight, bias, True, True)
    torch.testing.assert_close(before, F.linear(x, weight, bias))
    torch.testing.assert_close(y, F.gelu(before))
    torch.testing.assert_close(_bwd(before, weight), before @ weight)
    assert _fwd(x, weight, None, True, False)[1].numel() == 0


@needs_compiler
@pytest.mark.usefixtures("panels")
def test_a_transformer_block_in_float32_is_as_near_to_float64() -> None:
    torch.manual_seed(0)
    block = USTA(48, num_heads=3)
    x, dout = torch.randn(2, 33, 48), torch.randn(2, 33, 48)

    def with_parameters(module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        module = copy.deepcopy(module).to(dtype)
        parameters = list(module.parameters())
        leaf = x.to(dtype).requires_grad_()
        out = module(leaf)
        return [out.detach(), *torch.autograd.grad(out, [leaf, *parameters], dout.to(dtype))]

    exact, came = with_parameters(block, torch.float64), with_parameters(block, torch.float32)
    for a, b in zip(came, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * float(b.abs().max()))


def test_errors_name_the_argument() -> None:
    x, weight, bias = inputs(12, 8, M=(3,))
    with pytest.raises(ValueError, match=r"weight expected shape \(N, K\) = \(\*, 8\), got \(8, 12\)"):
        linear(x, weight.t(), bias)
    with pytest.raises(ValueError, match=r"bias expected shape \(N,\) = \(12\), got \(8,\)"):
        linear(x, weight, bias[:8])
    with pytest.raises(ValueError, match=r"x expected shape \(..., K\), got \(\)"):
        linear(torch.tensor(1.0), weight)
    with pytest.raises(ValueError, match="impl expected one of .*, got 'triton'"):
        linear(x, weight, impl="triton")
