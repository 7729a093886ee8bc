"""space_time_attention on Triton against float64. Without a CUDA device the kernels are interpreted."""

import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsta_fast import reference, space_time_attention
from hsta_fast.ops.space_time_attention import _bwd, _fwd
from tests.ops.attention_checks import LAYOUTS, check, inputs
from tests.tolerance import DEVICE, DTYPES, with_gradients

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 197, 325, 589)
WIDTHS = (16, 32, 64, 128)


@pytest.fixture(autouse=True)
def nan_filled_outputs() -> Iterator[None]:
    """In this mode torch fills uninitialised memory with NaN, so a missing write is detected."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pairwise() -> list[tuple[int, int, torch.dtype, str]]:
    """Every length, and every combination of head width, dtype and layout; four short lengths occur twice."""
    lengths = (*LENGTHS, 2, 16, 17, 63)
    rest = [
        (D, DTYPES[(i + j) % len(DTYPES)], layout)
        for j, layout in enumerate(LAYOUTS)
        for i, D in enumerate(WIDTHS)
    ]
    return [(n, *others) for n, others in zip(lengths, rest, strict=True)]


@pytest.mark.parametrize(("N", "D", "dtype", "layout"), pairwise())
def test_lengths(N: int, D: int, dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(N)
    B, H = (1, 1) if N > 197 else (1, 3) if N > 65 else (3, 3)
    check(inputs(layout, B, N, max(1, 130 - N), H, D, dtype))


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [*WIDTHS, 8, 48, 80])
@pytest.mark.parametrize("N", LENGTHS)
def test_whole_matrix(N: int, D: int, dtype: torch.dtype, layout: str) -> None:
    torch.manual_seed(N)
    check(inputs(layout, 3 if N <= 65 else 1, N, 70, 5 if N <= 65 else 2, D, dtype))


@pytest.mark.parametrize("D", [1, 8, 24, 48, 80])
def test_odd_head_widths(D: int) -> None:
    torch.manual_seed(D)
    check(inputs("packed", 1, 33, 33, 3, D, torch.float16))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    random_case(data)


@pytest.mark.full
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_more_random_shapes(data: st.DataObject) -> None:
    random_case(data)


def random_case(data: st.DataObject) -> None:
    B, H = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    N, M = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 140))
    D = data.draw(st.sampled_from((16, 20, 32, 64, 128)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    given_inputs = inputs(
        data.draw(st.sampled_from(LAYOUTS)), B, N, M, H, D, data.draw(st.sampled_from(DTYPES))
    )
    check(given_inputs, scale=data.draw(st.sampled_from((None, 1.0, -0.3, 0.0))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [10.0, 1e3, 1e4])
def test_large_scores(largest: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = inputs("separate", 1, 70, 150, 2, 32, dtype)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * 32**-0.5
    check([(q * (largest / scores.abs().max()).to(dtype)), k, v])


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits(dtype: torch.dtype) -> None:
    """The output is the mean of v, and only v has a gradient."""
    torch.manual_seed(0)
    q, k, v = inputs("separate", 1, 66, 130, 1, 32, dtype)
    check([torch.zeros_like(q), k, v])
    check([q, torch.zeros_like(k), v])
    check([q, k[:, :1].expand_as(k), v])


def test_the_same_tensor_as_q_k_and_v() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 20, 2, 16, device=DEVICE, requires_grad=True)
    dout = torch.randn_like(x)
    results = {}
    for impl in ("triton", "torch"):
        out = space_time_attention(x, x, x, impl=impl)
        results[impl] = out, *torch.autograd.grad(out, x, dout)
    for came, expected in zip(results["triton"], results["torch"], strict=True):
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", [c for n in (1, 2) for c in itertools.combinations(range(3), n)])
def test_partial_requires_grad(needed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensors = inputs("separate", 1, 9, 21, 2, 16, torch.float32)
    for i in needed:
        tensors[i].requires_grad_()
    gradients = {}
    for impl in ("triton", "torch"):
        out = space_time_attention(*tensors, impl=impl)
        gradients[impl] = torch.autograd.grad(out.square().sum(), [tensors[i] for i in needed])
    for came, expected in zip(gradients["triton"], gradients["torch"], strict=True):
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)


def test_last_stride_other_than_one() -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 19, 3, 2, 32, device=DEVICE)[..., ::2]
    check([packed])
    q, k, v = inputs("separate", 1, 9, 21, 2, 16, torch.float32)
    check([q.transpose(1, 3).contiguous().transpose(1, 3), k, v])


def test_gradient_without_strides() -> None:
    """The gradient of a sum is one expanded number."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 12, 3, 2, 16, device=DEVICE, requires_grad=True)
    gradients = [
        torch.autograd.grad(space_time_attention(qkv, impl=impl).sum(), qkv)[0]
        for impl in ("triton", "torch")
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("B", "N", "M"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_to_attend(B: int, N: int, M: int) -> None:
    q, k, v = (torch.randn(B, n, 2, 16, device=DEVICE, requires_grad=True) for n in (N, M, M))
    out = space_time_attention(q, k, v, impl="triton")
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert torch.equal(out, torch.zeros(B, N, 2, 16, device=DEVICE))
    assert all(torch.equal(g, torch.zeros_like(x)) for g, x in zip(gradients, (q, k, v), strict=True))


def test_repeats_are_bit_equal() -> None:
    torch.manual_seed(0)
    [qkv] = inputs("packed", 2, 130, 130, 2, 32, torch.float16)
    dout = torch.randn(2, 130, 2, 32, device=DEVICE).half()
    runs = [with_gradients(lambda x: space_time_attention(x, impl="triton"), [qkv], dout) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("packed", [True, False])
def test_opcheck(packed: bool) -> None:
    torch.manual_seed(0)
    given_inputs = inputs("packed" if packed else "separate", 1, 9, 12, 2, 16, torch.float32)
    arguments = [x.requires_grad_() for x in given_inputs] + [None] * (3 - len(given_inputs))
    torch.library.opcheck(_fwd, (*arguments, 0.25))
    with torch.no_grad():
        out, lse = _fwd(*arguments, 0.25)
        detached = [None if x is None else x.detach() for x in arguments]
        torch.library.opcheck(_bwd, (torch.randn_like(out), *detached, out, lse, 0.25))


def test_one_graph() -> None:
    torch.manual_seed(0)
    [qkv] = inputs("packed", 1, 20, 20, 2, 16, torch.float32)
    dout = torch.randn(1, 20, 2, 16, device=DEVICE)
    compiled = torch.compile(
        lambda x: space_time_attention(x * 2, impl="triton") + 1, fullgraph=True, backend="aot_eager"
    )
    eager = with_gradients(lambda x: space_time_attention(x * 2, impl="triton") + 1, [qkv], dout)
    for came, expected in zip(with_gradients(compiled, [qkv], dout), eager, strict=True):
        torch.testing.assert_close(came, expected, rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_autocast(impl: str) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 20, 3, 2, 16, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = space_time_attention(qkv, impl=impl)
    expected = space_time_attention(qkv.half(), impl=impl)
    assert out.dtype == torch.float16
    assert torch.equal(out, expected)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), qkv)
    assert gradient.dtype == torch.float32


def test_activation_checkpointing() -> None:
    torch.manual_seed(0)
    [qkv] = inputs("packed", 1, 20, 20, 2, 16, torch.float32)
    dout = torch.randn(1, 20, 2, 16, device=DEVICE)
    straight = with_gradients(lambda x: space_time_attention(x.sin(), impl="triton"), [qkv], dout)
    stored = with_gradients(
        lambda x: checkpoint(lambda y: space_time_attention(y.sin(), impl="triton"), x, use_reentrant=False),
        [qkv],
        dout,
    )
    assert all(torch.equal(a, b) for a, b in zip(straight, stored, strict=True))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [((1, 4, 3, 1, 16), torch.float64, "float64"), ((1, 4, 3, 1, 160), torch.float32, "160")],
)
def test_unsupported_inputs_are_named(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    qkv = torch.randn(shape, device=DEVICE, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        space_time_attention(qkv, impl="triton")
    exact = reference.space_time_attention(qkv)
    torch.testing.assert_close(space_time_attention(qkv), exact, rtol=1e-5, atol=1e-5)  # auto chooses torch


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="on the CPU"):
        space_time_attention(torch.randn(1, 4, 3, 1, 16), impl="triton")


def test_works_without_triton() -> None:
    """A process in which Triton cannot be imported."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, hsta_fast\n"
        "print(hsta_fast.space_time_attention(torch.ones(1, 2, 3, 1, 16)).sum().item())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "32.0"


def test_arguments_of_a_wrong_type_are_named_in_one_line() -> None:
    qkv = torch.randn(1, 4, 3, 1, 16)
    calls = {
        "qkv expected a tensor .*, got list": lambda: space_time_attention([1.0]),  # type: ignore[arg-type]
        "scale expected a number .*, got Tensor": lambda: space_time_attention(qkv, scale=torch.ones(())),  # type: ignore[arg-type]
        "qkv expected a head width D >= 1, got 0": lambda: space_time_attention(qkv[..., :0]),
        "qkv expected float16, .* or float64, got torch.int64": lambda: space_time_attention(qkv.long()),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            call()


def test_meta_tensors() -> None:
    qkv = torch.randn(2, 4, 3, 2, 16, device="meta")
    assert space_time_attention(qkv).shape == (2, 4, 2, 16)


def test_autocast_accepts_mixed_dtypes() -> None:
    """Such as normalised queries and keys in float32 with values in bfloat16."""
    q, k, v = (torch.randn(1, 4, 2, 16, device=DEVICE) for _ in range(3))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert space_time_attention(q, k, v.bfloat16()).dtype == torch.bfloat16


def test_exported_with_any_length() -> None:
    class Attention(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return space_time_attention(qkv)

    lengths = {"qkv": {1: torch.export.Dim("N", min=2)}}
    program = torch.export.export(Attention(), (torch.randn(1, 65, 3, 2, 16),), dynamic_shapes=lengths)
    qkv = torch.randn(1, 33, 3, 2, 16)
    torch.testing.assert_close(program.module()(qkv), reference.space_time_attention(qkv))
