"""attention_pool in every implementation against float64; without a CUDA device kernels are interpreted."""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsta_fast import attention_pool, extension, reference
from hsta_fast.ops.attention_pool import _bwd, _fwd, auto_choice
from tests.compiler import needs_compiler
from tests.tolerance import DEVICE, DTYPES, assert_close, with_gradients

pytestmark = pytest.mark.usefixtures("two_threads")

EXTENSION = pytest.param("extension", marks=needs_compiler)
IMPLS = ("torch", "triton", EXTENSION)
# Implementation -> the dtypes that it is checked in.
KINDS = [
    *((impl, dtype) for impl in ("torch", "triton") for dtype in DTYPES),
    pytest.param("extension", torch.float32, marks=needs_compiler),
]
LENGTHS = (0, 1, 17, 324, 588, 1568)
LAYOUTS = ("whole", "state", "sliced", "last stride", "one for all")
EPS32 = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def nan_filled_outputs() -> Iterator[None]:
    """In this mode torch fills uninitialised memory with NaN, so a missing write is detected."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def device_of(impl: str) -> str:
    """The device to test an implementation on: the CPU for the extension, a GPU, if any, for kernels."""
    return "cpu" if impl == "extension" else DEVICE


def dtypes_of(impl: str) -> tuple[torch.dtype, ...]:
    """The dtypes that an implementation is checked in."""
    return (torch.float32,) if impl == "extension" else DTYPES


def inputs(
    impl: str, B: int, R: int, N: int, C: int, dtype: torch.dtype = torch.float32, *,
    extra: bool = True, layout: str = "whole",
) -> list[Tensor]:  # fmt: skip
    """[query, tokens] or [query, tokens, extra]; scores of deviation 1."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device_of(impl)).to(dtype)

    tokens = {
        "whole": lambda: randn(B, N, C),
        "state": lambda: randn(B, N + 1, C)[:, 1:],
        "sliced": lambda: randn(2 * B, N + 2, C + 3)[::2, 1:-1, 2:-1],
        "last stride": lambda: randn(B, C, N).transpose(1, 2),
        "one for all": lambda: randn(1, N, C).expand(B, N, C),
    }[layout]()
    return [randn(B, R, C) * C**-0.5, tokens, *([randn(B, C)] if extra else [])]


def pool(impl: str, **options: Any) -> Any:
    """The op or its reference as a function of (query, tokens) or (query, tokens, extra)."""

    def run(query: Tensor, tokens: Tensor, extra: Tensor | None = None) -> Tensor:
        if impl == "reference":
            return cast(Tensor, reference.attention_pool(query, tokens, extra=extra, **options))
        return cast(Tensor, attention_pool(query, tokens, extra=extra, impl=impl, **options))

    return run


def check(impl: str, tensors: list[Tensor], **options: Any) -> None:
    """Forward and every gradient within the tolerance."""
    query, tokens = tensors[:2]
    dout = torch.randn(query.shape, device=query.device).to(query.dtype)
    exact = with_gradients(pool("reference", **options), [x.double() for x in tensors], dout)
    plain = with_gradients(pool("reference", **options), tensors, dout)
    came = with_gradients(pool(impl, **options), tensors, dout)
    rows = tokens if len(tensors) == 2 else torch.cat([tensors[2].unsqueeze(1), tokens], 1)
    rows = rows.double()
    if options.get("normalize", True):
        rows = torch.nn.functional.layer_norm(rows, rows.shape[-1:], eps=options.get("eps", 1e-6))
    scores = (query.double() @ rows.transpose(1, 2)).abs().max()
    t = (dout.double().abs() @ rows.abs().transpose(1, 2)).max()  # its terms may cancel too
    eps, rounding = torch.finfo(query.dtype).eps, 4 * float(scores) * EPS32
    assert_close(came[:1], plain[:1], exact[:1], band=4 * eps + rounding)
    # dquery = sum_j p_j (t_j - t . p) z_j: zero if one row has all the weight, or all rows are equal.
    assert_close(came[1:2], plain[1:2], exact[1:2], band=eps + rounding, terms=float(t * rows.abs().max()))
    assert_close(came[2:], plain[2:], exact[2:], band=4 * eps + rounding)


def pairwise() -> list[Any]:
    """Every implementation with every length; dtype, layout, extra row and normalisation alternate."""
    cases = []
    for shift, impl in enumerate(("torch", "triton", "extension")):
        for i, N in enumerate(LENGTHS):
            turn = i + shift
            dtypes = dtypes_of(impl)
            dtype, layout = dtypes[turn % len(dtypes)], LAYOUTS[turn % len(LAYOUTS)]
            marks = needs_compiler if impl == "extension" else ()
            if impl == "triton" and N > 324:  # tests/kernels covers these lengths
                marks = pytest.mark.full
            cases.append(
                pytest.param(impl, N, dtype, layout, N == 0 or turn % 2 == 0, turn % 3 != 2, marks=marks)
            )
    return cases


@pytest.mark.parametrize(("impl", "N", "dtype", "layout", "extra", "normalize"), pairwise())
def test_lengths(impl: str, N: int, dtype: torch.dtype, layout: str, extra: bool, normalize: bool) -> None:
    torch.manual_seed(N)
    B, C = (1, 48) if N > 324 else (3, 40)
    check(impl, inputs(impl, B, 3, N, C, dtype, extra=extra, layout=layout), normalize=normalize)


@pytest.mark.full
@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("N", LENGTHS[1:])
@pytest.mark.parametrize(("impl", "dtype"), KINDS)
def test_whole_matrix(impl: str, N: int, dtype: torch.dtype, layout: str, extra: bool) -> None:
    torch.manual_seed(N)
    B, R, C = (2, 12, 192) if N <= 17 or impl != "triton" else (1, 2, 64)
    check(impl, inputs(impl, B, R, N, C, dtype, extra=extra, layout=layout))


@pytest.mark.parametrize("C", [1, 2, 24, 100, 384, 768, 1024])
@pytest.mark.parametrize("impl", IMPLS)
def test_widths(impl: str, C: int) -> None:
    torch.manual_seed(C)
    check(impl, inputs(impl, 2, 3, 21, C), normalize=C > 1)


@pytest.mark.parametrize("R", [1, 2, 12, 16, 17, 40])
@pytest.mark.parametrize("impl", IMPLS)
def test_numbers_of_queries(impl: str, R: int) -> None:
    torch.manual_seed(R)
    check(impl, inputs(impl, 2, R, 35, 24))


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_shapes(impl: str, data: st.DataObject) -> None:
    random_case(impl, data)


@pytest.mark.full
@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_more_random_shapes(impl: str, data: st.DataObject) -> None:
    random_case(impl, data)


def random_case(impl: str, data: st.DataObject) -> None:
    B, R, N = (data.draw(st.integers(1, most)) for most in (2, 18, 80 if impl == "triton" else 400))
    C = data.draw(st.sampled_from((8, 20, 64, 96, 200)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    dtype, layout = data.draw(st.sampled_from(dtypes_of(impl))), data.draw(st.sampled_from(LAYOUTS))
    tensors = inputs(impl, B, R, N, C, dtype, extra=data.draw(st.booleans()), layout=layout)
    check(impl, tensors, normalize=data.draw(st.booleans()), eps=data.draw(st.sampled_from((1e-6, 1e-3))))


@pytest.mark.parametrize("largest", [10.0, 1e3, 1e4])
@pytest.mark.parametrize(("impl", "dtype"), KINDS)
def test_large_scores(impl: str, largest: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, tokens, extra = inputs(impl, 1, 2, 150, 32, dtype)
    z = torch.nn.functional.layer_norm(tokens.double(), (32,))
    query = (query * (largest / float((query.double() @ z.transpose(1, 2)).abs().max()))).to(dtype)
    check(impl, [query, tokens, extra])


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.7, 1e4])
@pytest.mark.parametrize("impl", IMPLS)
def test_constant_tokens(impl: str, constant: float) -> None:
    """Rows without variance have z = 0 and equal weights; alone, and together with rows that vary."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(impl, 2, 3, 19, 24)
    check(impl, [query, torch.full_like(tokens, constant), torch.full_like(extra, constant)])
    mixed = tokens.clone()
    mixed[:, ::3] = constant
    check(impl, [query, mixed, extra])


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e4, -1e4])
@pytest.mark.parametrize("impl", IMPLS)
def test_a_large_mean_of_the_tokens_adds_no_error(impl: str, mean: float) -> None:
    """Scores must not pick up mean times sum(query), 1e6 here, nor mean times what rounding leaves of it.

    Held to float32's own rounding: the plain path is wrong by up to 1e-2 here, which would hide any fault.
    """
    torch.manual_seed(0)
    query, tokens, extra = inputs(impl, 2, 3, 50, 384)
    query, tokens, extra = query + 0.25, tokens + mean, extra + mean
    dout = torch.randn_like(query) + 0.25
    exact = with_gradients(pool("reference"), [x.double() for x in (query, tokens, extra)], dout)
    came = with_gradients(pool(impl), [query, tokens, extra], dout)
    for came_x, exact_x in zip(came, exact, strict=True):
        assert (came_x.double() - exact_x).abs().max() <= 48 * EPS32 * exact_x.abs().max()


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_logits(impl: str) -> None:
    """The result is the mean of the rows, with a query of zeros and with rows that are all the same."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(impl, 2, 3, 35, 24)
    check(impl, [torch.zeros_like(query), tokens, extra])
    check(impl, [query, tokens[:, :1].expand_as(tokens), tokens[:, 0]])


@pytest.mark.parametrize("impl", ["torch", EXTENSION])
def test_float64_is_exact(impl: str) -> None:
    torch.manual_seed(0)
    tensors = inputs(impl, 2, 5, 400, 700, torch.float64)  # several blocks of rows
    dout = torch.randn_like(tensors[0])
    exact = with_gradients(pool("reference"), tensors, dout)
    for came, expected in zip(with_gradients(pool(impl), tensors, dout), exact, strict=True):
        torch.testing.assert_close(came, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("extra", [True, False])
def test_weights(impl: str, extra: bool) -> None:
    torch.manual_seed(0)
    query, tokens, *more = inputs(impl, 2, 18, 37, 24, extra=extra)
    query.requires_grad_()
    row = more[0] if extra else None
    pooled, weights = attention_pool(query, tokens, extra=row, return_weights=True, impl=impl)
    expected = reference.attention_pool(query, tokens, extra=row, return_weights=True)
    torch.testing.assert_close((pooled, weights), expected, rtol=1e-5, atol=1e-6)
    assert pooled.requires_grad and not weights.requires_grad
    assert weights.shape == (2, 18, 37 + extra)


@pytest.mark.parametrize("needed", [c for n in (1, 2) for c in itertools.combinations(range(3), n)])
@pytest.mark.parametrize("impl", IMPLS)
def test_partial_requires_grad(impl: str, needed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensors = inputs(impl, 2, 2, 21, 16)
    for i in needed:
        tensors[i].requires_grad_()
    gradients = {}
    for which in (impl, "reference"):
        loss = pool(which)(*tensors).square().sum()
        gradients[which] = torch.autograd.grad(loss, [tensors[i] for i in needed])
    for came, expected in zip(gradients[impl], gradients["reference"], strict=True):
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_without_strides(impl: str) -> None:
    """The gradient of a sum is one expanded number."""
    torch.manual_seed(0)
    tensors = inputs(impl, 2, 2, 21, 16)
    gradients = []
    for which in (impl, "reference"):
        leaves = [x.detach().requires_grad_() for x in tensors]
        gradients.append(torch.autograd.grad(pool(which, normalize=False)(*leaves).sum(), leaves))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_tensor_in_several_places(impl: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16, device=device_of(impl), requires_grad=True)
    results = []
    for which in (impl, "reference"):
        out = pool(which)(x / 4, x, x[:, 0])
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("B", "R"), [(0, 3), (2, 0)])
@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_to_pool(impl: str, B: int, R: int) -> None:
    tensors = [x.requires_grad_() for x in inputs(impl, B, R, 4, 16)]
    out = pool(impl)(*tensors)
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert out.shape == (B, R, 16)
    assert all(torch.equal(g, torch.zeros_like(x)) for g, x in zip(gradients, tensors, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_repeats_are_bit_equal(impl: str) -> None:
    torch.manual_seed(0)
    tensors = inputs(impl, 2, 5, 300, 32)
    dout = torch.randn_like(tensors[0])
    runs = [with_gradients(pool(impl), tensors, dout) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_opcheck(impl: str, extra: bool, every: bool) -> None:
    """Every pair of an extra row, normalising and a gradient of the tokens, or everything with everything."""
    torch.manual_seed(0)
    query, tokens, *more = (x.requires_grad_() for x in inputs(impl, 2, 3, 9, 16, extra=extra))
    row = more[0] if extra else None
    for normalize, scores in ((True, True), (False, False)):
        torch.library.opcheck(_fwd, (query, tokens, row, normalize, 1e-6, scores, impl))
        with torch.no_grad():
            saved = [_fwd(query, tokens, row, normalize, 1e-6, False, impl)[i] for i in (0, 2, 3, 4)]
            detached = [None if x is None else x.detach() for x in (query, tokens, row)]
            for wanted in (True, False) if every else (extra != normalize,):
                arguments = (torch.randn_like(query), *detached, *saved, normalize, 1e-6, wanted, impl)
                torch.library.opcheck(_bwd, arguments)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_graph(impl: str) -> None:
    torch.manual_seed(0)
    tensors = inputs(impl, 1, 2, 20, 16)
    dout = torch.randn(1, 2, 16, device=device_of(impl))

    def function(*x: Tensor) -> Tensor:
        return pool(impl)(x[0] * 2, *x[1:]) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager = with_gradients(function, tensors, dout)
    for came, expected in zip(with_gradients(compiled, tensors, dout), eager, strict=True):
        torch.testing.assert_close(came, expected, rtol=0, atol=0)


@pytest.mark.parametrize("extra", [False, True])
def test_one_graph_for_all_sizes(extra: bool) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(attention_pool, fullgraph=True, dynamic=True, backend=count)
    for B, N in ((4, 10), (5, 12), (7, 20)):
        query, tokens, *more = inputs("torch", B, 3, N, 16, extra=extra)
        row = more[0] if extra else None
        for weights in (False, True):
            came, want = (
                f(query, tokens, extra=row, return_weights=weights) for f in (compiled, attention_pool)
            )
            torch.testing.assert_close(came, want, rtol=0, atol=0)
    assert len(graphs) == 2  # with and without weights


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_keeps_the_dtype_of_the_tokens(impl: str) -> None:
    """Casting them would copy them; query and extra row follow, and products are not rounded further."""
    torch.manual_seed(0)
    query, tokens, extra = inputs(impl, 2, 3, 30, 32)
    with torch.autocast(query.device.type, dtype=torch.float16):
        whole = pool(impl)(query, tokens, extra)
        rounded = pool(impl)(query.half(), tokens, extra.half())
    assert torch.equal(whole, pool(impl)(query, tokens, extra))
    assert torch.equal(rounded, pool(impl)(query.half().float(), tokens, extra.half().float()))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_checkpointing(impl: str, reentrant: bool) -> None:
    torch.manual_seed(0)
    tensors = inputs(impl, 2, 3, 30, 16)
    results = []
    for stored in (False, True):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = checkpoint(pool(impl), *leaves, use_reentrant=reentrant) if stored else pool(impl)(*leaves)
        out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_one_set_of_queries_for_all_samples(dims: int, queries: int) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(4, 9, 16, dtype=torch.float64, requires_grad=True)
    shared = torch.randn((1, queries, 16)[3 - dims :], dtype=torch.float64, requires_grad=True)
    expanded = shared.expand(4, -1, -1)
    results = []
    for query in (shared, expanded):
        out = cast(Tensor, attention_pool(query, tokens))
        results.append([out, *torch.autograd.grad(out.square().sum(), (shared, tokens))])
    for came, expected in zip(*results, strict=True):
        assert torch.equal(came, expected)


@pytest.mark.parametrize("shape", [(2, 3, 16), (3, 5), (4, 3, 5), (16,), (1, 4, 3, 16)])
def test_queries_of_another_shape_are_named_as_given(shape: tuple[int, ...]) -> None:
    known = r"shape \(B, R, C\), \(1, R, C\) or \(R, C\) with B = 4 and C = 16"
    with pytest.raises(ValueError, match=f"^query expected {known}, got {re.escape(str(shape))}$"):
        attention_pool(torch.zeros(shape), torch.zeros(4, 9, 16))
    with pytest.raises(ValueError, match=r"^query expected a tensor \(B, R, C\), .*, got list$"):
        attention_pool([1.0], torch.zeros(4, 9, 16))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("impl", "C", "dtype", "message"),
    [
        ("triton", 16, torch.float64, "float64"),
        ("triton", 1032, torch.float32, "width 1032"),
        pytest.param("extension", 16, torch.float16, "float16", marks=needs_compiler),
    ],
)
def test_unsupported_inputs_are_named(impl: str, C: int, dtype: torch.dtype, message: str) -> None:
    query, tokens = inputs(impl, 1, 2, 4, C, dtype, extra=False)
    with pytest.raises(ValueError, match=message):
        attention_pool(query, tokens, impl=impl)
    exact = reference.attention_pool(query.double(), tokens.double())
    came = attention_pool(query, tokens)  # auto chooses another
    torch.testing.assert_close(came.double(), exact, rtol=1e-2, atol=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1e-6}, "eps expected a number >= 0, got -1e-06"),
        ({"eps": "small"}, "eps expected .*, got 'small'"),
        ({"eps": torch.tensor(1e-6)}, "eps expected .*, got tensor"),
        ({"normalize": 1}, "normalize expected True or False, got 1"),
    ],
)
def test_invalid_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_pool(torch.randn(1, 2, 4), torch.randn(1, 3, 4), **options)


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="on the CPU"):
        attention_pool(torch.randn(1, 2, 4), torch.randn(1, 3, 4), impl="triton")


def test_auto_on_the_cpu() -> None:
    """The extension if it can be built; never the interpreter, although the tests turn it on."""
    choice = auto_choice(torch.device("cpu"), torch.float32)
    assert choice.impl == ("torch" if extension.missing("cpu") else "extension")
    choice = auto_choice(torch.device("cpu"), torch.float16)
    assert choice.impl == "torch" and choice.reason


def test_works_without_triton() -> None:
    """A process in which Triton cannot be imported."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, hsta_fast\n"
        "x = torch.ones(1, 2, 16)\n"
        "print(hsta_fast.attention_pool(x, x, normalize=False).sum().item())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "32.0"
