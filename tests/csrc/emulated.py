"""Build the CUDA kernels' source for the host: csrc/ with emulated_device.cuh replacing device.cuh."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

CSRC = Path(__file__).parents[2] / "csrc"
HERE = Path(__file__).parent
TYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32]  # in the order of `enum class Type`
LONG, POINTER, FLOAT, TYPE = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float, ctypes.c_int32


class Video(ctypes.Structure):
    _fields_ = [
        ("data", POINTER),
        ("type", TYPE),
        ("sizes", LONG * 5),
        ("strides", LONG * 5),
        ("patch", LONG * 3),
    ]


class Tokens(ctypes.Structure):
    _fields_ = [
        ("video", Video),
        ("type", TYPE),
        ("width", LONG),
        ("weight", POINTER),
        ("pitch", LONG),
        ("bias", POINTER),
        ("cls", POINTER),
        ("pos", POINTER),
        ("out", POINTER),
    ]


class Patches(ctypes.Structure):
    _fields_ = [("video", Video), ("shift", FLOAT), ("type", TYPE), ("out", POINTER)]


class Counts(ctypes.Structure):
    """Cycles of shared memory by matrix loads, stores and copies, the fewest possible, mma.sync, blocks."""

    _fields_ = [("wavefronts", LONG * 3), ("least", LONG * 3), ("products", LONG), ("blocks", LONG)]


class FaultError(RuntimeError):
    """An error that the emulated device detected."""


def sources(folder: Path, mistake: tuple[str, str] | None = None) -> None:
    """csrc/ and the emulated device, copied; `mistake`: a text that occurs once, and its replacement."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in CSRC.iterdir():
        shutil.copy(source, folder / source.name)
    shutil.copy(HERE / "emulated_device.cuh", folder / "device.cuh")
    shutil.copy(HERE / "emulator.h", folder / "emulator.h")
    if mistake is not None:
        right, wrong = mistake
        names = ("tubelet_embed.cu", "video_gather.cuh", "tubelet_embed_cuda.cpp")
        holding = [folder / name for name in names if right in (folder / name).read_text()]
        assert len(holding) == 1, right
        assert holding[0].read_text().count(right) == 1, right
        holding[0].write_text(holding[0].read_text().replace(right, wrong))


def compile_host(library: Path, *arguments: str | Path) -> None:
    """A shared library of the emulated kernels, `arguments` among them."""
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command = [
        "g++",
        *flags,
        "-I",
        library.parent,
        "-o",
        library,
        HERE / "emulated_tubelet_embed.cpp",
        *arguments,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]


def compile_kernels(folder: Path, mistake: tuple[str, str] | None = None) -> "Device":
    sources(folder, mistake)
    compile_host(folder / "emulated.so")
    return Device(folder / "emulated.so")


class Device:
    """Launches the CUDA kernels on CPU tensors."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.emulated_sizes.restype = LONG
        self.library.emulated_error.restype = ctypes.c_char_p
        for which, mirror in enumerate((Tokens, Patches)):
            assert self.library.emulated_sizes(which) == ctypes.sizeof(mirror)
        self.counts = Counts()

    def tokens(
        self,
        video: Tensor,
        weight: Tensor,
        bias: Tensor,
        cls_token: Tensor | None = None,
        pos_embed: Tensor | None = None,
        *,
        out: Tensor | None = None,
        blocks: tuple[int, int] | None = None,
    ) -> Tensor:
        """The tokens (B, N (+ 1), C); `blocks` limits the launch to blocks first <= i < last."""
        described = describe(video, weight.shape[2:])
        B, N, C = video.shape[0], tokens_of(video, weight.shape[2:]), weight.shape[0]
        if video.stride(1) == 1 and video.stride(4) == 3:
            weight = weight.permute(0, 2, 3, 4, 1)
        rows = weight.reshape(C, -1)
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8)).contiguous()
        if out is None:
            out = torch.full((B, N + (cls_token is not None), C), torch.nan, dtype=weight.dtype)
        self.allow([video, rows, bias, cls_token, pos_embed], out)
        if blocks is not None:
            self.library.emulated_only_blocks(LONG(blocks[0]), LONG(blocks[1]))
        tokens = Tokens(
            video=described,
            type=TYPES.index(weight.dtype),
            width=C,
            weight=rows.data_ptr(),
            pitch=rows.shape[1],
            bias=bias.data_ptr(),
            cls=pointer(cls_token),
            pos=pointer(pos_embed),
            out=out.data_ptr(),
        )
        self.check(self.library.emulated_tokens(ctypes.byref(tokens)))
        return out

    def patches(self, video: Tensor, patch: Sequence[int], dtype: torch.dtype, shift: float) -> Tensor:
        """(B, 3, T, H, W) -> (B N, 3 t p p)."""
        rows, columns = video.shape[0] * tokens_of(video, patch), 3 * patch[0] * patch[1] * patch[2]
        out = torch.full((rows, columns), torch.nan, dtype=dtype)
        self.allow([video], out)
        patches = Patches(
            video=describe(video, patch), shift=shift, type=TYPES.index(dtype), out=out.data_ptr()
        )
        self.check(self.library.emulated_patches(ctypes.byref(patches)))
        return out

    def allow(self, read: Sequence[Tensor | None], write: Tensor) -> None:
        self.library.emulated_reset()
        for tensor in (*read, write):
            if tensor is not None and tensor.numel():
                extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
                self.library.emulated_allow(
                    POINTER(tensor.data_ptr()), LONG(extent * tensor.element_size()), int(tensor is write)
                )

    def check(self, error: int) -> None:
        if error != 0:
            raise FaultError(self.library.emulated_error(error).decode())
        self.library.emulated_counts(ctypes.byref(self.counts))


def describe(video: Tensor, patch: Sequence[int]) -> Video:
    return Video(
        data=video.data_ptr(),
        type=TYPES.index(video.dtype),
        sizes=(LONG * 5)(*video.shape),
        strides=(LONG * 5)(*video.stride()),
        patch=(LONG * 3)(*patch),
    )


def tokens_of(video: Tensor, patch: Sequence[int]) -> int:
    return (video.shape[2] // patch[0]) * (video.shape[3] // patch[1]) * (video.shape[4] // patch[2])


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
