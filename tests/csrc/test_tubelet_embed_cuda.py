"""csrc/tubelet_embed.cu: no spills in its machine code; its source, emulated, equals the convolution."""

import itertools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.csrc.emulated import CSRC, Device, FaultError, compile_kernels
from tests.csrc.exact import FLOATS, as_layout, assert_rounded, convolved, make_video, make_weight

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return compile_kernels(tmp_path_factory.mktemp("emulated"))


def check(device: Device, video: Tensor, C: int, t: int, p: int, cls: bool = True, pos: bool = True) -> None:
    weight = make_weight(C, t, p, video.dtype if video.dtype in FLOATS[:2] else torch.bfloat16)
    N = (video.shape[2] // t) * (video.shape[3] // p) * (video.shape[4] // p)
    operands = (
        torch.randn(C),
        torch.randn(C) if cls else None,
        torch.randn(N + cls, C) if pos else None,
    )
    assert_rounded(device.tokens(video, weight, *operands), convolved(video, weight, *operands))


@needs_gxx
@pytest.mark.parametrize("layout", ["BCTHW", "BTHWC"])
@pytest.mark.parametrize("width", [5, 0])  # columns beyond three patches: rows misaligned, and aligned
@pytest.mark.parametrize(("p", "t"), [*itertools.product([8, 12, 14, 16, 24], [1, 2, 4])])
def test_patches_and_tubelets(device: Device, p: int, t: int, width: int, layout: str) -> None:
    video = as_layout(make_video((2, 3, 2 * t + t // 2, 2 * p + 3, 3 * p + width)), layout)
    check(device, video, C=40, t=t, p=p)


@needs_gxx
@pytest.mark.parametrize("layout", ["BCTHW", "BTHWC"])
def test_224_by_12(device: Device, layout: str) -> None:
    check(device, as_layout(make_video((1, 3, 1, 224, 224)), layout), C=24, t=1, p=12)


@needs_gxx
@pytest.mark.parametrize("layout", ["BCTHW", "BTHWC"])
@pytest.mark.parametrize("p", [5, 12, 14, 16])
@pytest.mark.parametrize("width", [6, 0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_float_video(device: Device, dtype: torch.dtype, p: int, width: int, layout: str) -> None:
    check(device, as_layout(make_video((2, 3, 2, 2 * p + 2, 2 * p + width), dtype), layout), C=24, t=1, p=p)


@needs_gxx
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_fp16_and_bf16_products_are_exact_on_whole_numbers(device: Device, dtype: torch.dtype) -> None:
    """Weights of -1, 0, 1 and all bytes: every sum is exact in float32, so the result is its one rounding."""
    video = torch.arange(256, dtype=torch.uint8).repeat(2 * 3 * 3).view(2, 3, 1, 48, 16)
    video[1] = 255
    weight = torch.randint(-1, 2, (130, 3, 1, 16, 16)).to(dtype)
    came = device.tokens(video, weight, torch.zeros(130))
    assert torch.equal(came, convolved(video, weight, torch.zeros(130)).to(dtype))


STRIDED = {
    "cropped by 3": lambda v: v[..., 1:, 3:],
    "cropped by 4": lambda v: v[..., 2:, 4:],
    "every second frame": lambda v: v[:, :, ::2],
    "every second column": lambda v: v[..., ::2],
    "sides swapped": lambda v: v.transpose(3, 4),
    "one sample thrice": lambda v: v[:1].expand(3, -1, -1, -1, -1),
    "pixels of four": lambda v: torch.stack([*v.unbind(1), v[:, 0]], dim=-1).permute(0, 4, 1, 2, 3)[:, :3],
}


@needs_gxx
@pytest.mark.parametrize("p", [8, 14])
@pytest.mark.parametrize("view", STRIDED)
def test_views(device: Device, view: str, p: int) -> None:
    video = STRIDED[view](make_video((2, 3, 4, 64, 64)))
    check(device, video, C=24, t=2, p=p)
    assert_patches(device, video, (2, p, p), torch.bfloat16, 128.0)


@needs_gxx
@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("C", [1, 7, 8, 127, 128, 130, 136])
def test_widths(device: Device, C: int, cls: bool) -> None:
    check(device, make_video((2, 3, 1, 33, 32)), C=C, t=1, p=8, cls=cls)


@needs_gxx
@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("pos", [False, True])
def test_cls_and_positions(device: Device, cls: bool, pos: bool) -> None:
    check(device, make_video((2, 3, 1, 16, 24)), C=24, t=1, p=8, cls=cls, pos=pos)


@needs_gxx
@pytest.mark.parametrize(("B", "tokens"), [(0, 4), (1, 4), (150, 1), (64, 4), (5, 100), (1, 256)])
def test_samples_and_tiles_of_tokens(device: Device, B: int, tokens: int) -> None:
    """Many samples in a tile; tiles that begin within a sample, at its first token, or after its last."""
    check(device, make_video((B, 3, 1, 2, 2 * tokens)), C=9, t=1, p=2)


@needs_gxx
def test_one_patch_of_one_pixel(device: Device) -> None:
    check(device, make_video((3, 3, 1, 1, 1)), C=8, t=1, p=1)


def sparse(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in a sparse file: they take memory only where they are used."""
    size = torch.Size(shape).numel()
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(size * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(shape)


@needs_gxx
def test_offsets_beyond_31_bits(device: Device) -> None:
    """Frames 3 GiB apart; then rows of the result, and of patches in the video, beyond 2^31."""
    video = sparse((2, 3, 2, 3 << 22, 256), torch.uint8)[:, :, :, :8, :16]
    video.copy_(make_video(tuple(video.shape)))
    check(device, video, C=8, t=2, p=8)
    assert_patches(device, video, (2, 8, 8), torch.float16, 0.0)

    B, C = 1 << 20, 520
    weight, bias = make_weight(C, 1, 8), torch.randn(C)
    video = sparse((B, 3, 1, 32, 32), torch.uint8)
    video[-8:].copy_(make_video((8, 3, 1, 32, 32)))
    out = sparse((B, 16, C), torch.bfloat16)
    assert out.numel() > 1 << 32
    assert B * 16 % 128 == 0
    blocks = B * 16 // 128 * 5
    device.tokens(video, weight, bias, out=out, blocks=(blocks - 5, blocks))
    assert_rounded(out[-8:], convolved(video[-8:], weight, bias))


def assert_patches(
    device: Device, video: Tensor, patch: tuple[int, int, int], dtype: torch.dtype, shift: float
) -> None:
    t, p, _ = patch
    cut = video.unfold(2, t, t).unfold(3, p, p).unfold(4, p, p)
    expected = (cut.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, 3 * t * p * p).float() - shift).to(dtype)
    assert torch.equal(device.patches(video, patch, dtype, shift), expected)


@needs_gxx
@pytest.mark.parametrize("layout", ["BCTHW", "BTHWC"])
@pytest.mark.parametrize("p", [5, 8, 12, 14, 16])
@pytest.mark.parametrize(("came", "out"), [*itertools.product([torch.uint8, *FLOATS], FLOATS)])
def test_patches(device: Device, came: torch.dtype, out: torch.dtype, p: int, layout: str) -> None:
    for B, width in ((0, 0), (3, 0), (3, 2)):
        video = as_layout(make_video((B, 3, 3, 2 * p + 1, 3 * p + width), came), layout)
        assert_patches(device, video, (2, p, p), out, 128.0)


@needs_gxx
@pytest.mark.parametrize("p", [8, 12, 14, 16])
def test_no_bank_conflicts(device: Device, p: int) -> None:
    check(device, make_video((1, 3, 1, 2 * p, 2 * p)), C=24, t=1, p=p)
    assert list(device.counts.wavefronts) == list(device.counts.least)
    steps = -(-3 * p * p // 32)
    assert device.counts.products == steps * 256


MISTAKES = {
    "no wait": ("    wait_copies<kStages - 2>();\n", ""),
    "a group too few": ("wait_copies<kStages - 2>()", "wait_copies<kStages - 1>()"),
    "no barrier": ("    barrier();  // this step's", "    // this step's"),
    "no first barrier": ("  barrier();  // origins", "  // origins"),
    "weights over those in use": ("stage == 0 ? kStages - 1 : stage - 1", "stage"),
    "pixels over those in use": (
        "store<Compute>(shared.pixels[(step + 1) % 2])",
        "store<Compute>(shared.pixels[step % 2])",
    ),
    "swizzle of weights": ("(chunk ^ (row >> 3))", "(chunk ^ (row >> 1))"),
    "swizzle of pixels": ("(chunk ^ (row >> 1))", "(chunk ^ row)"),
    "columns of a thread": ("(n >> 1) * 8 + (j & 3) * 2", "(n >> 1) * 2 + (j & 3) * 8"),
    "tail of K, pixels": ("if (k < video.columns) {", "if (k <= video.columns) {"),
    "tail of K, weights": ("% 4 * 8 < a.video.columns;", "% 4 * 8 < a.video.columns + kStep;"),
    "tail of C, weights": ("(row < last ? row : last)", "(row <= last ? row : last + 1)"),
    "tail of C, result": ("if (column + i >= a.width) return;", "if (column >= a.width) return;"),
    "tail of the tokens": ("row < a.rows ? row : a.rows - 1", "row"),
    "a result beyond the last": ("if (first_row + row >= a.rows) break;", ""),
    "CLS of a tile's first sample": ("if (b * tokens < first_row) ++b;", ""),
    "rows without the CLS": ("(b + 1) * a.has_cls", "b * a.has_cls"),
    "position of the CLS": ("n + a.has_cls", "n"),
    "a byte": ("0x7440 + which", "0x7440 + which / 2 * 2"),
    "offsets of 32 bits": ("(origin + place)", "static_cast<int>(origin + place)"),
    "rows of 32 bits": (
        "row * a.width + column;\n  const float",
        "static_cast<int>(row * a.width) + column;\n  const float",
    ),
    "aligned loads of what is not": ("if (stride_x != 1) return 1;", "return 2;"),
    "division": ("divisor - 1) / divisor", "divisor / 2) / divisor"),
}


def probe(device: Device) -> None:
    """Calls that the mistakes above break."""
    test_no_bank_conflicts(device, 12)
    test_no_bank_conflicts(device, 8)
    test_widths(device, 130, True)
    test_samples_and_tiles_of_tokens(device, 5, 100)
    test_patches_and_tubelets(device, 14, 1, 0, "BCTHW")
    test_views(device, "cropped by 3", 8)
    test_offsets_beyond_31_bits(device)


@needs_gxx
def test_the_probe_finds_no_mistake(device: Device) -> None:
    probe(device)


@needs_gxx
@pytest.mark.full
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(tmp_path: Path, mistake: str) -> None:
    wrong = compile_kernels(tmp_path, MISTAKES[mistake])
    with pytest.raises((AssertionError, FaultError)) as seen:
        probe(wrong)
    print(mistake, "->", str(seen.value).splitlines()[0])


REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stored>\d+) bytes spill stores, (?P<loaded>\d+) bytes spill loads",
    re.DOTALL,
)


def spills(arch: str, folder: Path) -> dict[str, int]:
    """Bytes that each kernel spills, as the assembler reports them."""
    flags = [
        "-std=c++20",
        "-O3",
        f"-arch={arch}",
        "-Xptxas=-v",
        "-Werror=all-warnings",
        "-Xcompiler=-Wall,-Wextra",
    ]
    files = ["-c", "-o", str(folder / "kernels.o"), str(CSRC / "tubelet_embed.cu")]
    ran = subprocess.run(["nvcc", *flags, *files], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {m["name"]: int(m["stored"]) + int(m["loaded"]) for m in REPORT.finditer(ran.stderr)}


@needs_nvcc
@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(f"sm_{a}", marks=pytest.mark.full) for a in ("80", "90a", "100", "120"))]
)
def test_compiles_without_spills(tmp_path: Path, arch: str) -> None:
    kernels = spills(arch, tmp_path)
    assert sum("tokens_kernel" in name for name in kernels) == 20
    assert sum("patches_kernel" in name for name in kernels) == 66
    assert {name: spilled for name, spilled in kernels.items() if spilled} == {}
