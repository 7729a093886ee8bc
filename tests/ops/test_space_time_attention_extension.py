"""space_time_attention in C++ on the CPU against float64."""

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hsta_fast
from hsta_fast import extension, reference, space_time_attention
from hsta_fast.ops.space_time_attention import _bwd, _fwd, auto_choice
from tests.compiler import needs_compiler
from tests.ops.attention_checks import LAYOUTS, check, inputs
from tests.tolerance import DEVICE, with_gradients

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(DEVICE != "cpu", reason="the shared helpers make tensors on the CUDA device"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = ((1, 1), (2, 130), (15, 16), (95, 17), (97, 96), (197, 64), (325, 325), (96, 400), (13, 800))
WIDTHS = (64, 32, 16, 128, 24, 1, 80, 17, 48)


@pytest.fixture(autouse=True)
def nan_filled_outputs() -> Iterator[None]:
    """In this mode torch fills uninitialised memory with NaN, so a missing write is detected."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def attend(*x: Tensor) -> Tensor:
    return space_time_attention(*x, impl="extension")


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize(("i", "length"), list(enumerate(LENGTHS)))
def test_lengths(i: int, length: tuple[int, int], shift: int) -> None:
    """Every length in every layout, with four widths and every dtype."""
    torch.manual_seed(i)
    N, M = length
    D = WIDTHS[(i + 2 * shift) % len(WIDTHS)]
    check(inputs(LAYOUTS[shift], 2, N, M, 3, D, DTYPES[(i + shift) % 3]), impl="extension")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    B, H, D = (data.draw(st.integers(1, n)) for n in (3, 20, 130))
    N, M = (data.draw(st.integers(1, 150)) for _ in range(2))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    layout, dtype = data.draw(st.sampled_from(LAYOUTS)), data.draw(st.sampled_from(DTYPES))
    scale = data.draw(st.sampled_from((None, 1.0, -0.3, 0.0)))
    check(inputs(layout, B, N, M, H, D, dtype), scale=scale, impl="extension")


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("largest", [10.0, 1e3, 1e4])
def test_large_scores(largest: float, dtype: torch.dtype) -> None:
    """Also where the largest score lies in the last tile of keys, and where most weights vanish."""
    torch.manual_seed(0)
    q, k, v = inputs("separate", 1, 40, 450, 2, 32, dtype)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * 32**-0.5
    q = q * (largest / scores.abs().max()).to(dtype)
    check([q, k, v], impl="extension")
    for scale in (32**-0.5, -(32**-0.5)):
        rising = k * torch.linspace(0.01, 1, 450)[:, None, None].to(dtype)
        check([q, rising, v], impl="extension", scale=scale)


@pytest.mark.parametrize("size", [1e10, 1e15, 1e30])
def test_huge_scores(size: float) -> None:
    """One unit in the last place is above the range of the exponential: the largest score still weighs 1."""
    torch.manual_seed(0)
    q, k, v = inputs("separate", 1, 40, 300, 2, 16, torch.float32)
    given_inputs = [q * size, k, v]
    came = with_gradients(attend, given_inputs, torch.ones_like(q))
    exact = with_gradients(
        reference.space_time_attention, [x.double() for x in given_inputs], torch.ones_like(q).double()
    )
    torch.testing.assert_close(came[0].double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(came[3].double(), exact[3], rtol=1e-5, atol=1e-6)  # dv
    assert all(x.isfinite().all() for x in came)


def test_gradients_of_infinite_and_missing_numbers() -> None:
    """NaN is where it is in the plain formula."""
    torch.manual_seed(0)
    for where in itertools.product(range(3), (torch.nan, torch.inf, -torch.inf)):
        given_inputs = inputs("separate", 1, 20, 300, 1, 16, torch.float32)
        given_inputs[where[0]][0, 7, 0, 3] = where[1]
        dout = torch.randn(1, 20, 1, 16)
        came = with_gradients(attend, given_inputs, dout)
        plain = with_gradients(reference.space_time_attention, given_inputs, dout)
        for ours, theirs in zip(came, plain, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan()), where


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(
    ("B", "N", "M", "H", "D"), [(1, 589, 589, 3, 64), (1, 2, 3, 1, 40), (1, 200, 500, 1, 100)]
)
def test_any_number_of_threads(
    two_threads: None, threads: int, B: int, N: int, M: int, H: int, D: int
) -> None:
    """Also more than there is work for, and another number in the backward."""
    torch.manual_seed(0)
    q, k, v = inputs("separate", B, N, M, H, D, torch.float32)
    dout = torch.randn_like(q)
    expected = with_gradients(lambda *x: space_time_attention(*x, impl="torch"), [q, k, v], dout)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.set_num_threads(threads)
    out = attend(*leaves)
    torch.set_num_threads(3 - min(threads, 2))
    came = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
    for a, b in zip(came, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_two_callers_at_once() -> None:
    torch.manual_seed(0)
    given_inputs = [inputs("packed", 1, 200, 200, 2, 32, torch.float32) for _ in range(2)]
    dout = torch.randn(1, 200, 2, 32)

    def run(x: list[Tensor]) -> list[Tensor]:
        return with_gradients(attend, x, dout)

    alone = [run(x) for x in given_inputs]
    with ThreadPoolExecutor(2) as pool:
        for i, came in enumerate(pool.map(run, given_inputs * 4)):
            assert all(torch.equal(a, b) for a, b in zip(came, alone[i % 2], strict=True))


def test_infinite_and_missing_numbers() -> None:
    """As softmax has them: a row of which a score is NaN or +inf is NaN, a score of -inf has weight 0."""
    torch.manual_seed(0)
    q, k, v = inputs("separate", 1, 20, 800, 1, 16, torch.float32)
    q[0, 0, 0, 0] = torch.nan
    q[0, 1] = torch.inf
    q[0, 2:].abs_()
    k[0, :400] = -torch.inf  # whole tiles have no weight
    out, exact = attend(q, k, v), reference.space_time_attention(q.double(), k.double(), v.double())
    assert torch.isnan(out[0, :2]).all() and torch.isfinite(out[0, 2:]).all()
    torch.testing.assert_close(out.double(), exact, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_threads_change_nothing(two_threads: None) -> None:
    torch.manual_seed(0)
    results = []
    for threads in (2, 1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        given_inputs = inputs("packed", 1, 325, 325, 3, 32, torch.float32)
        results.append(with_gradients(attend, given_inputs, torch.randn(1, 325, 3, 32)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("needed", [c for n in (1, 2) for c in itertools.combinations(range(3), n)])
def test_partial_requires_grad(needed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensors = inputs("separate", 1, 9, 21, 2, 16, torch.float32)
    for i in needed:
        tensors[i].requires_grad_()
    gradients = [
        torch.autograd.grad(
            space_time_attention(*tensors, impl=impl).square().sum(), [tensors[i] for i in needed]
        )
        for impl in ("extension", "torch")
    ]
    for came, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)


def test_strides_other_than_one() -> None:
    """Of the inputs, and of the gradient of a sum, which is one expanded number."""
    torch.manual_seed(0)
    check([torch.randn(2, 19, 3, 2, 32)[..., ::2]], impl="extension")
    q, k, v = inputs("separate", 1, 9, 21, 2, 16, torch.float32)
    check([q.transpose(1, 3).contiguous().transpose(1, 3), k, v], impl="extension")
    check([q, k[:, :1].expand_as(k), v], impl="extension")
    x = torch.randn(1, 12, 2, 16, requires_grad=True)
    gradients = [
        torch.autograd.grad(space_time_attention(x, x, x, impl=impl).sum(), x)[0]
        for impl in ("extension", "torch")
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("B", "N", "M"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_to_attend(B: int, N: int, M: int) -> None:
    q, k, v = (torch.randn(B, n, 2, 16, requires_grad=True) for n in (N, M, M))
    out = attend(q, k, v)
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert torch.equal(out, torch.zeros(B, N, 2, 16))
    assert all(torch.equal(g, torch.zeros_like(x)) for g, x in zip(gradients, (q, k, v), strict=True))


@pytest.mark.parametrize("packed", [True, False])
def test_opcheck(packed: bool) -> None:
    torch.manual_seed(0)
    given_inputs = inputs("packed" if packed else "separate", 1, 9, 12, 2, 16, torch.float32)
    arguments = [x.requires_grad_() for x in given_inputs] + [None] * (3 - len(given_inputs))
    torch.library.opcheck(_fwd, (*arguments, 0.25, "extension"))
    with torch.no_grad():
        out, stats = _fwd(*arguments, 0.25, "extension")
        detached = [None if x is None else x.detach() for x in arguments]
        torch.library.opcheck(_bwd, (torch.randn_like(out), *detached, out, stats, 0.25, "extension"))


def test_one_graph_of_any_length() -> None:
    def function(x: Tensor) -> Tensor:
        return space_time_attention(x * 2) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for N in (20, 33):
        torch.manual_seed(N)
        [qkv] = inputs("packed", 1, N, N, 2, 16, torch.float32)
        dout = torch.randn(1, N, 2, 16)
        eager = with_gradients(lambda x: attend(x * 2) + 1, [qkv], dout)
        for came, expected in zip(with_gradients(compiled, [qkv], dout), eager, strict=True):
            torch.testing.assert_close(came, expected, rtol=0, atol=0)


def test_autocast_and_checkpointing() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 200, 3, 2, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(qkv)
        stored = checkpoint(attend, qkv, use_reentrant=False)
    assert torch.equal(out, attend(qkv.bfloat16())) and torch.equal(out, stored)
    gradients = [torch.autograd.grad(x.float().square().sum(), qkv)[0] for x in (out, stored)]
    assert gradients[0].dtype == torch.float32 and torch.equal(*gradients)


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 9, 3, 2, 4, requires_grad=True)
    second = []
    for function in (attend, reference.space_time_attention):
        (first,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)


def test_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def spy(part: str, impl: str) -> bool:
        ran.append(impl)
        return True

    cpu = torch.device("cpu")
    assert auto_choice(cpu, torch.float32).impl == "extension"
    assert hsta_fast.info()["ops"]["cpu"]["space_time_attention"]["impl"] == "extension"
    assert "float64" in auto_choice(cpu, torch.float64).reason
    extension.load("cpu")
    monkeypatch.setattr(extension, "usable", spy)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        space_time_attention(torch.randn(1, 9, 3, 2, 16, dtype=dtype))
    assert ran == ["auto", "auto"]
    q, k = torch.randn(1, 1, 2, 16), torch.randn(1, 50, 2, 16)
    space_time_attention(q, k, k)
    assert ran == ["auto"] * 3
    space_time_attention(q.requires_grad_(), k, k)  # few queries, many keys and a gradient: torch
    assert ran == ["auto"] * 3
    monkeypatch.setattr(sys.modules[auto_choice.__module__], "_VECTORS", "SVE256")
    assert auto_choice(cpu, torch.float32).impl == "torch"
    with pytest.raises(ValueError, match="float64"):
        attend(torch.randn(1, 4, 3, 1, 16, dtype=torch.float64))


@pytest.mark.parametrize("packed", [True, False])
def test_a_build_that_fails_when_the_op_runs(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """A traced graph holds the op already: torch computes the same."""
    torch.manual_seed(0)
    given_inputs = inputs("packed" if packed else "separate", 2, 150, 130, 2, 24, torch.float32)
    dout = torch.randn(2, 150, 2, 24)
    built = with_gradients(attend, given_inputs, dout)
    monkeypatch.setattr(extension, "usable", lambda part, impl: False)
    for came, expected in zip(with_gradients(attend, given_inputs, dout), built, strict=True):
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_NO_COMPILER", "for this test there is no compiler")
    monkeypatch.setattr(extension, "_warned", set())
    qkv = torch.randn(1, 200, 3, 2, 16)
    with pytest.warns(UserWarning, match=r"^hsta_fast runs on torch without .*: for this test"):
        out = space_time_attention(qkv)
    torch.testing.assert_close(out, reference.space_time_attention(qkv))
    with pytest.raises(ValueError, match="there is no compiler"):
        attend(qkv)
