"""tubelet_embed on the extension against Conv3d in float64: values, gradients, the fold of mean and std."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsta_fast import info, reference, tubelet_embed
from hsta_fast.layers import TubeletEmbed
from hsta_fast.model import IMAGENET_MEAN, IMAGENET_STD
from hsta_fast.ops.tubelet_embed import _dweight, _fwd, auto_choice, fold
from tests.compiler import needs_extension
from tests.ops.tubelet_checks import CASES, NORM, check, make_video, parameters
from tests.tolerance import DEVICE, with_gradients

pytestmark = pytest.mark.usefixtures("two_threads")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, *([torch.float64] if DEVICE == "cpu" else []))
MEAN, STD = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
SHIFT, SCALE = [255 * m for m in IMAGENET_MEAN], [1 / (255 * s) for s in IMAGENET_STD]


@pytest.fixture(autouse=True)
def nan_filled_outputs() -> Iterator[None]:
    """In this mode torch fills uninitialised memory with NaN, so a missing write is detected."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kind, layout, sizes, patch, C, cls, pos = case
    check(kind, layout, sizes, patch, C, dtype, cls=cls, pos=pos)


@needs_extension
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("p", [8, 12, 14, 16, 24])
def test_patches_and_tubelets(p: int, depth: int) -> None:
    torch.manual_seed(p)
    layout = ("BCTHW", "BTHWC", "sliced")[(p // 2 + depth) % 3]
    check("bytes", layout, (2, 2 * depth + 1, 2 * p + 3, 3 * p + p // 2), (depth, p, p), 40, torch.float32)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_many_blocks_of_rows_and_columns(dtype: torch.dtype) -> None:
    """More tokens and columns than one block of either product, and a width that leaves a partial panel."""
    torch.manual_seed(0)
    check("bytes", "BCTHW", (2, 4, 160, 160), (1, 8, 8), 100, dtype)
    check("float", "BCTHW", (1, 8, 72, 48), (8, 24, 24), 72, dtype)


def random_case(data: st.DataObject) -> None:
    t, p = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 26))
    grid = [data.draw(st.integers(1, 4)) for _ in range(3)]
    unused = [data.draw(st.integers(0, n - 1)) for n in (t, p, p)]
    T, H, W = (g * n + u for g, n, u in zip(grid, (t, p, p), unused, strict=True))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    check(
        data.draw(st.sampled_from(("bytes", "raw", "float"))),
        data.draw(st.sampled_from(("BCTHW", "BTHWC", "sliced"))),
        (data.draw(st.integers(1, 3)), T, H, W),
        (t, p, p),
        data.draw(st.integers(1, 140)),
        data.draw(st.sampled_from(DTYPES)),
        cls=data.draw(st.booleans()),
        pos=data.draw(st.booleans()),
    )


@needs_extension
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    random_case(data)


@needs_extension
@pytest.mark.full
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_more_random_shapes(data: st.DataObject) -> None:
    random_case(data)


FRAMES = ("noise", "black", "grey", "white", "dark noise", "half white")


def frames(what: str) -> Tensor:
    """uint8 (4, 3, 4, 64, 64)."""
    shape = (4, 3, 4, 64, 64)
    if what in ("black", "grey", "white"):
        return torch.full(shape, {"black": 0, "grey": 124, "white": 255}[what], dtype=torch.uint8)
    video = torch.randint(0, 16 if what == "dark noise" else 256, shape, dtype=torch.uint8)
    if what == "half white":
        video[..., 32:] = 255
    return video


def bf16(x: Tensor) -> Tensor:
    """Rounded to bfloat16, held in float64."""
    return x.bfloat16().double()


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def columns(video: Tensor) -> Tensor:
    """Patches (rows, 3 * 2 * 16 * 16) of float64 video, by unfold."""
    cut = video.unfold(2, 2, 2).unfold(3, 16, 16).unfold(4, 16, 16)  # b c t h w dt p q
    return cut.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)


@pytest.mark.parametrize("what", FRAMES)
def test_folding_is_no_worse_than_normalising_in_bfloat16(what: str) -> None:
    """Rounded on the CPU with exact products, like matrix units with wide accumulators."""
    torch.manual_seed(0)
    video, weight = frames(what), torch.randn(256, 3, 2, 16, 16) / 40
    bias, dout = torch.randn(256), torch.randn(4 * 2 * 16, 256).bfloat16()
    normalised = columns((video.double() / 255 - MEAN) / STD)
    exact = normalised @ weight.double().flatten(1).T + bias.double()
    rounded = bf16(normalised) @ bf16(weight).flatten(1).T + bias.double()
    folded, less = fold(weight, bias, SHIFT, SCALE, torch.bfloat16)
    assert folded.dtype == torch.bfloat16 and less.dtype == torch.float32
    ours = columns(video.double()) @ folded.double().flatten(1).T + less.double()
    # The two round different numbers, so equally good errors may differ by chance: one part in twenty.
    assert rms(bf16(ours) - exact) <= 1.05 * rms(bf16(rounded) - exact)

    # The weight's gradient: (bytes - 128) exact, the product unrounded, unfolded in float32.
    exact = dout.double().T @ normalised
    rounded = dout.double().T @ bf16(normalised)
    total = (dout.double().T @ (columns(video.double()) - 128)).float().view(-1, 3, 512)
    rest = dout.float().sum(0)[:, None] * (128 - torch.tensor(SHIFT))
    ours = ((total + rest[..., None]) * torch.tensor(SCALE)[:, None]).flatten(1).double()
    assert rms(ours - exact) <= 1e-5 * rms(exact) + rms(rounded - exact)


def test_the_bias_is_made_from_the_rounded_weight() -> None:
    """From the unrounded one, a flat frame equal to the mean would not give the bias."""
    torch.manual_seed(0)
    weight, bias = torch.randn(256, 3, 2, 16, 16) / 40, torch.randn(256)
    folded, less = fold(weight, bias, SHIFT, SCALE, torch.bfloat16)
    flat = torch.tensor(SHIFT, dtype=torch.float64).repeat_interleave(512)
    back = folded.double().flatten(1) @ flat + less.double()
    assert float((back - bias.double()).abs().max()) < 1e-5
    unrounded = bias.double() - (
        weight.double().flatten(2).sum(2) * torch.tensor(SHIFT) * torch.tensor(SCALE)
    ).sum(1)
    assert rms(folded.double().flatten(1) @ flat + unrounded - bias.double()) > 100 * rms(back - bias)


@needs_extension
@pytest.mark.parametrize("what", FRAMES)
def test_bfloat16_is_no_worse_than_normalising_and_conv3d(what: str) -> None:
    torch.manual_seed(0)
    video, weight, bias = frames(what).to(DEVICE), torch.randn(256, 3, 2, 16, 16) / 40, torch.randn(256)
    dout = torch.randn(4, 32, 256).bfloat16().to(DEVICE)
    inputs = [weight.to(DEVICE), bias.to(DEVICE)]
    exact = with_gradients(
        lambda w, b: reference.tubelet_embed(video, w, b, **NORM), [x.double() for x in inputs], dout
    )
    errors = []
    for impl in ("extension", "torch"):

        def run(w: Tensor, b: Tensor, impl: str = impl) -> Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return tubelet_embed(video, w, b, **NORM, impl=impl)

        errors.append(
            [rms(x.double() - y) for x, y in zip(with_gradients(run, inputs, dout), exact, strict=True)]
        )
    for ours, torchs, x in zip(*errors, exact, strict=True):
        assert ours <= 1.05 * torchs + 1e-5 * rms(x)


def small(dtype: torch.dtype = torch.float32, *, floats: bool = False) -> tuple[Any, ...]:
    """The arguments of `_fwd`; those that can require gradients do."""
    torch.manual_seed(0)
    video = make_video("float" if floats else "bytes", "BCTHW", 2, 4, 20, 26, dtype)
    (weight, bias), named = parameters(24, (2, 8, 8), 12, dtype, True, True)
    leaves = [x.requires_grad_() for x in (weight, bias, *named.values())]
    shift, scale = ([0.0] * 3, [1.0] * 3) if floats else (SHIFT, SCALE)
    return video.requires_grad_(floats), *leaves, shift, scale, dtype, "extension"


@needs_extension
@pytest.mark.parametrize("floats", [False, True])
def test_opcheck(floats: bool) -> None:
    arguments = small(floats=floats)
    torch.library.opcheck(_fwd, arguments)
    dout = torch.randn(2, 12, 24, device=DEVICE)
    torch.library.opcheck(_dweight, (dout, arguments[0].detach(), [2, 8, 8], *arguments[5:7], "extension"))


def call(video: Tensor, weight: Tensor, bias: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    norm = NORM if video.dtype == torch.uint8 else {}
    return tubelet_embed(
        video, weight, bias * 2, cls_token=cls_token, pos_embed=pos_embed, impl="extension", **norm
    )


@needs_extension
@pytest.mark.parametrize("floats", [False, True])
def test_one_graph(floats: bool) -> None:
    video, *leaves = small(floats=floats)[:5]
    dout = torch.randn(2, 13, 24, device=DEVICE)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    inputs = [video] * floats + leaves
    both = [
        with_gradients(lambda *x, f=f: f(*x) if floats else f(video, *x), inputs, dout)
        for f in (call, compiled)
    ]
    for eager, came in zip(*both, strict=True):
        torch.testing.assert_close(came, eager, rtol=0, atol=0)


@needs_extension
def test_activation_checkpointing() -> None:
    video, *leaves = small()[:5]
    dout = torch.randn(2, 13, 24, device=DEVICE)
    straight = with_gradients(lambda *x: call(video, *x), leaves, dout)
    stored = with_gradients(lambda *x: checkpoint(call, video, *x, use_reentrant=False), leaves, dout)
    assert all(torch.equal(a, b) for a, b in zip(straight, stored, strict=True))


@needs_extension
@pytest.mark.parametrize("wanted", range(5))
def test_one_gradient_alone(wanted: int) -> None:
    inputs = [x.detach() for x in small(floats=True)[:5]]
    dout = torch.randn(2, 13, 24, device=DEVICE)
    every = with_gradients(call, inputs, dout)[1:]
    inputs[wanted].requires_grad_()
    (alone,) = torch.autograd.grad(call(*inputs), inputs[wanted], dout)
    assert torch.equal(alone, every[wanted])


@needs_extension
@pytest.mark.parametrize("impl", ["extension", "torch"])
def test_autocast(impl: str) -> None:
    video, *leaves = small()[:5]
    named = dict(zip(("weight", "bias", "cls_token", "pos_embed"), leaves, strict=True))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = tubelet_embed(video, **named, **NORM, impl=impl)
        double = tubelet_embed(video, **{k: v.double() for k, v in named.items()}, **NORM, impl="torch")
    assert out.dtype == torch.bfloat16 and double.dtype == torch.float64
    exact = reference.tubelet_embed(video, **{k: v.double() for k, v in named.items()}, **NORM)
    assert rms(out.double() - exact) < 0.01 * rms(exact)
    gradients = torch.autograd.grad(out.float().square().sum(), leaves)
    assert {g.dtype for g in gradients} == {torch.float32}


@needs_extension
@pytest.mark.parametrize("impl", ["extension", "torch"])
def test_second_derivatives(impl: str) -> None:
    torch.manual_seed(0)
    shapes = (1, 3, 2, 3, 5), (2, 3, 2, 2, 2), (2,), (1, 1, 2), (1, 3, 2)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def embed(video: Tensor, weight: Tensor, bias: Tensor, cls: Tensor, positions: Tensor) -> Tensor:
        out = tubelet_embed(video, weight, bias, cls_token=cls, pos_embed=positions, impl=impl)
        return out**2

    assert torch.autograd.gradgradcheck(embed, leaves)


@needs_extension
def test_mean_and_std_as_tensors() -> None:
    video, *leaves = (x.detach() for x in small()[:5])
    args = (video, *leaves[:2])
    expected = tubelet_embed(*args, **NORM, impl="extension")
    tensors: dict[str, Any] = {name: torch.tensor(value, dtype=torch.float64) for name, value in NORM.items()}
    assert torch.equal(tubelet_embed(*args, **tensors, impl="extension"), expected)


@needs_extension
def test_the_layer_uses_the_extension() -> None:
    """`auto` gives the same bits as the extension."""
    torch.manual_seed(0)
    layer = TubeletEmbed(48, patch_size=8, mean=IMAGENET_MEAN, std=IMAGENET_STD).to(DEVICE)
    video = make_video("bytes", "BCTHW", 1, 2, 16, 16, torch.float32)
    weight, bias = layer.proj.weight, layer.proj.bias
    assert bias is not None
    assert torch.equal(layer(video), tubelet_embed(video, weight, bias, **NORM, impl="extension"))
    assert auto_choice(torch.device(DEVICE), torch.float32).impl == "extension"
    assert info()["ops"][DEVICE if DEVICE == "cpu" else "cuda:0"]["tubelet_embed"]["impl"] == "extension"


def test_inputs_that_the_extension_does_not_support_are_named() -> None:
    video, weight, bias = (x.detach().to("meta") for x in small()[:3])
    with pytest.raises(ValueError, match="meta is neither CPU nor CUDA"):
        tubelet_embed(video, weight, bias, impl="extension")
    assert tubelet_embed(video, weight, bias).shape == (2, 12, 24)
    with pytest.raises(ValueError, match="inputs expected one device"):
        tubelet_embed(small()[0], weight, bias)
    with pytest.raises(ValueError, match="bias expected a floating dtype"):
        tubelet_embed(small()[0], small()[1], torch.zeros(24, dtype=torch.int64, device=DEVICE))


def test_works_without_a_compiler(tmp_path: Any) -> None:
    """The op runs on torch with one warning; impl="extension" raises and names what is missing."""
    code = (
        "import torch, hsta_fast\n"
        "model = hsta_fast.create_model('hsta_tiny', num_layers=1)\n"
        "print(model(torch.zeros(1, 3, 6, 32, 32, dtype=torch.uint8)).shape)\n"
        "print(hsta_fast.info()['ops']['cpu']['tubelet_embed'])\n"
        "try:\n"
        "    x = torch.zeros(1, 3, 1, 2, 2)\n"
        "    hsta_fast.tubelet_embed(x, torch.zeros(4, 3, 1, 2, 2), torch.zeros(4), impl='extension')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PATH": "/nowhere", "CXX": "", "HSTA_FAST_CACHE": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stderr.count("UserWarning") == 1 and "without its C++ extension" in ran.stderr
    shape, choice, error = ran.stdout.strip().splitlines()
    assert shape == "torch.Size([1, 7])"
    assert "'impl': 'torch'" in choice and "no C++ compiler" in choice
    assert 'supports these inputs, got "extension": no C++ compiler' in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("impl", ["torch", pytest.param("extension", marks=needs_extension)])
def test_gradients_of_no_clip_and_of_expanded_ones(impl: str) -> None:
    """Such gradients have unusual strides, even if they count as contiguous."""
    for B, C in ((0, 4), (1, 1), (2, 1), (2, 4)):
        video = torch.randint(0, 256, (B, 3, 2, 8, 8), dtype=torch.uint8, device=DEVICE)
        weight = torch.randn(C, 3, 2, 8, 8, device=DEVICE, requires_grad=True)
        tubelet_embed(video, weight, torch.zeros(C, device=DEVICE), impl=impl).sum().backward()
        expected = video.sum(0).float().expand(C, -1, -1, -1, -1)
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": (0.5, 0.0, 0.5)}, "std expected three floats other than 0"),
        ({"mean": 0.5}, "mean expected three floats, got 0.5"),
        ({"mean": "abc"}, "mean expected three floats, got abc"),
        (
            {"weight": torch.ones(4, 3, 2, 8, 8).int()},
            "weight expected a floating dtype, got torch.int32",
        ),
        ({"weight": torch.zeros(4, 3, 2, 0, 8)}, "weight expected at least one element"),
    ],
)
def test_bad_input_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"weight": torch.zeros(4, 3, 2, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    video = torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message) as raised:
        tubelet_embed(video, bias=torch.zeros(4), **(given | changes))
    assert "\n" not in str(raised.value)
