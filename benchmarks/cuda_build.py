"""`make cuda-build`: build and load both parts of the extension against a CUDA build of torch; needs no GPU.

Prints build times, the architectures in the library, the registers of each kernel, and the dispatch keys that
torch has registered.
"""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

from hsta_fast import extension, toolchain

_OPS = re.compile(r'm\.def\(\s*"(\w+)\(')
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LEFT_OUT = re.compile(r"hsta_fast::|\(anonymous namespace\)::|^void |, (?:\d+|true|false)\b")
_NO_DRIVER = 35  # cudaErrorInsufficientDriver


def run(*command: str) -> str:
    """What a command prints; raises CalledProcessError if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cuobjdump(*arguments: str) -> str:
    """Run cuobjdump from PATH, else the one in Triton's wheel, a dependency of torch."""
    spec = importlib.util.find_spec("triton")
    folder = Path(str(spec.origin)).parent / "backends/nvidia/bin" if spec else Path()
    return run(str(shutil.which("cuobjdump") or folder / "cuobjdump"), *arguments)


def registers(library: Path) -> str:
    """Registers per kernel and architecture, minimum and maximum over load widths; spilled bytes of all."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    spilled = 0
    for chunk in cuobjdump("--dump-resource-usage", str(library)).split("Fatbin elf code:")[1:]:
        arch = re.search(r"arch = (\w+)", chunk)
        kernels = _USAGE.findall(chunk)
        names = run("c++filt", *(name for name, *_ in kernels)).splitlines()
        for name, (_, count, stack, _, local) in zip(names, kernels, strict=True):
            kernel, _, _ = _LEFT_OUT.sub("", name).partition("(")
            found[kernel][str(arch and arch[1])].append(int(count))
            spilled += int(stack) + int(local)
    columns = sorted(
        {arch for row in found.values() for arch in row}, key=lambda arch: (len(arch.rstrip("a")), arch)
    )
    lines = [f"{'registers':44}" + "".join(f"{arch:>10}" for arch in columns)]
    for kernel, row in sorted(found.items()):
        cells = [f"{min(row[arch])}-{max(row[arch])}" for arch in columns]
        lines.append(f"{kernel:44}" + "".join(f"{cell:>10}" for cell in cells))
    per_arch = [sum(len(row[arch]) for row in found.values()) for arch in columns]
    lines.append(f"{'kernels':44}" + "".join(f"{count:10}" for count in per_arch))
    return "\n".join([*lines, f"bytes of stack and local memory over all of them: {spilled}"])


def main() -> int:
    """Build, load, print; returns the exit status."""
    tools = toolchain.find_tools()
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}; device: {torch.cuda.is_available()}")
    for tool in tools:
        versions = re.findall(r".*\d+\.\d+.*", toolchain.output(str(tool), "--version"))
        print(f"{tool}: {(versions or ['not found'])[0]}")
    libraries = {}
    for part in extension.PARTS:
        start = time.perf_counter()
        try:
            libraries[part] = extension.load(part, again=True)
        except extension.BuildError as error:
            print(f"error: {error}\n{error.tail()}")
            return 1
        size = libraries[part].stat().st_size / 2**20
        print(f"{part}: {libraries[part]}, {size:.1f} MiB, {time.perf_counter() - start:.1f} s")
    if tools.nvcc is not None:
        print("CUDA runtime:", *toolchain.link_cudart(tools.nvcc))
    cuda = libraries["cuda"]
    error_text = ctypes.CDLL(str(cuda))["_ZN9hsta_fast13tubelet_errorEi"]  # tubelet_error(int)
    error_text.restype = ctypes.c_char_p
    print("a call into it:", error_text(_NO_DRIVER).decode())
    print(cuobjdump("--list-elf", str(cuda)).strip(), cuobjdump("--list-ptx", str(cuda)).strip(), sep="\n")
    print(registers(cuda))
    for op in _OPS.findall((extension.SOURCES / "schemas.cpp").read_text()):
        keys = re.findall(r"^([A-Z]\w+): registered at", torch._C._dispatch_dump(f"hsta_fast::{op}"), re.M)
        print(f"{op:28}{', '.join(keys)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
