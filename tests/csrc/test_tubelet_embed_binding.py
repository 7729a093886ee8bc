"""csrc/tubelet_embed_cuda.cpp, compiled against the installed torch, on the emulated device."""

import ctypes
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.csrc.emulated import HERE, compile_host, sources
from tests.csrc.exact import FLOATS, as_layout, assert_rounded, convolved, make_video, make_weight

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")

OURS = 0x57  # the stream that emulated_binding.cpp calls the current one


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    from torch.utils import cpp_extension

    folder = tmp_path_factory.mktemp("binding")
    # Make the float32 path's slices so small that a few samples need several.
    sources(folder, ("int64_t{1} << 28", "int64_t{1} << 14"))
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch_cpu", "-lc10"]
    # Under another name, so that the extension itself can be loaded too.
    compile_host(
        folder / "binding.so",
        "-Dhsta_fast=hsta_fast_under_test",
        HERE / "emulated_binding.cpp",
        *includes,
        *libraries,
    )
    torch.ops.load_library(folder / "binding.so")
    library = ctypes.CDLL(str(folder / "binding.so"))
    library.emulated_stream.restype = ctypes.c_void_p
    library.emulated_reset()
    library.emulated_allow(ctypes.c_void_p(0), ctypes.c_int64(1 << 62), 1)
    return library


def tokens(*operands: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.hsta_fast_emulated.tubelet_tokens(*operands)
    return out


@pytest.mark.parametrize("layout", ["BCTHW", "BTHWC"])
@pytest.mark.parametrize("p", [7, 8, 14])
@pytest.mark.parametrize("came", [torch.uint8, *FLOATS, torch.float64])
@pytest.mark.parametrize("dtype", FLOATS)
def test_tokens(emulated: ctypes.CDLL, dtype: torch.dtype, came: torch.dtype, p: int, layout: str) -> None:
    video = as_layout(make_video((3, 3, 2, 2 * p + 1, 3 * p + 2), came), layout)
    weight, bias, cls_token = make_weight(20, 1, p, dtype), torch.randn(20), torch.randn(20)
    pos_embed = torch.randn(13, 20)
    out = tokens(video, weight, bias, cls_token, pos_embed)
    assert out.dtype == dtype
    seen = video.to(dtype)  # the operand of the product; exact for bytes
    assert_rounded(out, convolved(seen, weight, bias, cls_token, pos_embed))
    assert emulated.emulated_stream() == OURS


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", FLOATS)
def test_cls_and_positions_of_any_float(emulated: ctypes.CDLL, dtype: torch.dtype, kind: torch.dtype) -> None:
    video, weight, bias = make_video((2, 3, 1, 8, 16)), make_weight(9, 1, 8, dtype), torch.randn(9)
    cls_token, pos_embed = torch.randn(9).to(kind), torch.randn(3, 9).to(kind)
    for cls, pos in [(None, None), (cls_token, None), (None, pos_embed[1:]), (cls_token, pos_embed)]:
        assert_rounded(tokens(video, weight, bias, cls, pos), convolved(video, weight, bias, cls, pos))


@pytest.mark.parametrize("dtype", FLOATS)
def test_weight_that_is_a_view(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    flat = make_weight(9, 1, 8, dtype).flatten()
    weight = torch.cat([flat.new_zeros(1), flat])[1:].view(9, 3, 1, 8, 8)
    assert weight.data_ptr() % 16 != 0
    video, bias = make_video((2, 3, 1, 8, 16)), torch.randn(9)
    assert_rounded(tokens(video, weight, bias, None, None), convolved(video, weight, bias))


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_samples_and_no_width(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    for B, C in [(0, 9), (2, 0)]:
        video, weight = make_video((B, 3, 1, 8, 16)), make_weight(C, 1, 8, dtype)
        assert tokens(video, weight, torch.zeros(C), torch.zeros(C), None).shape == (B, 3, C)


@pytest.mark.parametrize("came", [torch.uint8, *FLOATS, torch.float64])
@pytest.mark.parametrize("dtype", FLOATS)
def test_patches(emulated: ctypes.CDLL, dtype: torch.dtype, came: torch.dtype) -> None:
    video = make_video((2, 3, 2, 9, 17), came)
    cut = video.unfold(2, 2, 2).unfold(3, 8, 8).unfold(4, 8, 8).permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(4, -1)
    expected = ((cut.to(dtype) if came == torch.float64 else cut).float() - 128).to(dtype)
    out = torch.ops.hsta_fast_emulated.tubelet_patches(video, [2, 8, 8], dtype, 128.0)
    assert torch.equal(out, expected)
    assert emulated.emulated_stream() == OURS


VIDEO, WEIGHT, BIAS = (
    torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8),
    torch.zeros(4, 3, 1, 8, 8),
    torch.zeros(4),
)
ERRORS = {
    "video expected shape (B, 3, T, H, W), got [3, 1, 1, 8, 8]": lambda: tokens(
        VIDEO[0, :, None], WEIGHT, BIAS, None, None
    ),
    "video expected at least one patch [1, 8, 8]": lambda: tokens(VIDEO[..., 1:], WEIGHT, BIAS, None, None),
    "weight expected shape (C, 3, t, p, p), contiguous": lambda: tokens(
        VIDEO, WEIGHT.transpose(3, 4), BIAS, None, None
    ),
    "weight expected float16, bfloat16 or float32, got Double": lambda: tokens(
        VIDEO, WEIGHT.double(), BIAS, None, None
    ),
    "bias expected shape (C,), got [3]": lambda: tokens(VIDEO, WEIGHT, BIAS[1:], None, None),
    "cls_token expected C elements, got [3]": lambda: tokens(VIDEO, WEIGHT, BIAS, BIAS[1:], None),
    "pos_embed expected 2 rows, got [1, 4]": lambda: tokens(VIDEO, WEIGHT, BIAS, BIAS, BIAS[None]),
    "inputs expected one device, got cpu and meta": lambda: tokens(
        VIDEO, WEIGHT, BIAS, BIAS.to("meta"), None
    ),
    "dtype expected float16, bfloat16 or float32, got Byte": lambda: (
        torch.ops.hsta_fast_emulated.tubelet_patches(VIDEO, [1, 8, 8], torch.uint8, 0.0)
    ),
    "patch expected three sizes (t, p, p) > 0, got [0, 8, 8]": lambda: (
        torch.ops.hsta_fast_emulated.tubelet_patches(VIDEO, [0, 8, 8], torch.float32, 0.0)
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(emulated: ctypes.CDLL, message: str) -> None:
    call: Callable[[], Tensor] = ERRORS[message]
    with pytest.raises((RuntimeError, NotImplementedError)) as raised:
        call()
    assert message in str(raised.value)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_failed_launch_is_an_error(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    emulated.emulated_reset()  # no operand may be touched
    try:
        with pytest.raises(RuntimeError, match="tubelet_embed on CUDA: .* outside"):
            tokens(VIDEO, WEIGHT.to(dtype), BIAS, None, None)
    finally:
        emulated.emulated_allow(ctypes.c_void_p(0), ctypes.c_int64(1 << 62), 1)
