"""What a kernel needs, from its machine code: registers, spills, and clocks per pipe in its loops.

Needs no GPU. It ranks variants and shows regressions, but times nothing. Rates are Hopper's, per
multiprocessor and clock.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import SHARED

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_REGISTERS = 65536  # of one multiprocessor
_THREADS = {86: 1536, 89: 1536, 120: 1536}  # likewise, 2048 elsewhere
_RESERVED_SHARED = 1024  # bytes of shared memory that the device reserves per CTA

# Clocks that one warp instruction occupies its pipe: 32 lanes / lanes of the pipe per clock.
_PIPES = {
    "exponential": (2.0, r"MUFU"),
    "multiply-add": (0.25, r"FADD|FMUL|FFMA|IMAD|FSWZADD|HFMA2|HADD2|HMUL2"),
    "min/max, shift, convert": (
        0.5,
        r"FMNMX|FSETP|FSEL|SHF|LEA|ISETP|IADD3|LOP3|SEL|PRMT|F2FP|F2F|I2F|F2I|VIADD|IMNMX|VIMNMX|PLOP3|IABS",
    ),
    "shuffle": (1.0, r"SHFL"),
}
_ISSUED = 4  # warp instructions per clock
# The L2 of an H100 gives 5.5 to 7 TB/s by public measurements: 26 bytes a clock on 132 multiprocessors are 6.
_MATRIX_FLOP, _SHARED_BYTES, _L2_BYTES, _DEVICE_BYTES = 4096, 128, 26, 18


@dataclass(frozen=True, kw_only=True)
class Build:
    """A kernel and everything that its compilation depends on.

    Attributes:
        name: its name in tables.
        kernel: the @triton.jit function.
        signature: the type of each argument that is not a constant; a tuple of types for a tuple.
        constants: the compile-time arguments.
        divisible: arguments (name, index in the tuple or None) known to be multiples of 16.
        options: launch options such as num_warps.
        tile: scores or tokens that a program processes per iteration of its loop.
        unit: number of scores or tokens that the table's clocks are for.
        traffic: bytes of device memory per tile, if they could bind.
        capability: compute capability times ten of the target device.
    """

    name: str
    kernel: Any
    signature: Mapping[str, Any]
    constants: Mapping[str, Any]
    divisible: tuple[tuple[str, int | None], ...]
    options: Mapping[str, Any]
    tile: int
    unit: int = 128 * 64
    traffic: int = 0
    capability: int = 90


@dataclass(frozen=True, kw_only=True)
class Resources:
    """`clocks` has one entry (pipe -> clocks) per innermost loop with arithmetic, in the order of the code.

    Spills count instructions inside loops, and outside, where they run once and cost next to nothing.
    """

    registers: int
    spills: int
    spills_outside: int
    shared: int
    ctas: int
    wgmma: bool
    clocks: tuple[dict[str, float], ...]


def compiled(build: Build) -> Any:
    """The compiled kernel; no driver and no GPU needed."""
    names = build.kernel.arg_names
    signature = {name: build.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in build.constants.items()}
    attrs = {
        (names.index(name),) if place is None else (names.index(name), place): [["tt.divisibility", 16]]
        for name, place in build.divisible
    }
    source = ASTSource(fn=build.kernel, signature=signature, constexprs=constants, attrs=attrs)
    return triton.compile(source, target=GPUTarget("cuda", build.capability, 32), options=dict(build.options))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_BIN / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _loops(code: str) -> list[list[str]]:
    """The instructions of each innermost loop, from its label to the branch back."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1])
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if target and target[1] in labels:
                spans.append((labels[target[1]], len(lines)))
    inner = [(a, b) for a, b in spans if not any(a <= x and y <= b and (x, y) != (a, b) for x, y in spans)]
    return [lines[a:b] for a, b in inner]


def _access_bytes(modifiers: str) -> int:
    """Bytes per thread: .64 and .128 bits, .U16 and .U8, or .2 and .4 matrices of 4 bytes each; else 4."""
    size = re.search(r"\.(128|64|4|2|[US]16|[US]8)(?:\.|$)", modifiers)
    return {"128": 16, "64": 8, "4": 16, "2": 8, "16": 2, "8": 1}[size[1].lstrip("US")] if size else 4


def _halved(product: str) -> int:
    """2 for a product in tf32, which has half the rate of 16 bits."""
    return 2 if "TF32" in product else 1


def _clocks(loop: list[str], warps: int, per_tile: float) -> dict[str, float]:
    """Clocks per pipe of one iteration, times `per_tile`."""
    opcodes = [re.sub(r"^@!?U?P\w+\s+", "", line) for line in loop]
    clocks = {
        pipe: rate * warps * sum(bool(re.match(pattern, op)) for op in opcodes)
        for pipe, (rate, pattern) in _PIPES.items()
    }
    flop = shared = read = 0.0
    for op in opcodes:
        if product := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.\S+ \S+, (\S+),", op):
            m, n, k = (int(size) for size in product.groups()[:3])
            flop += 2 * m * n * k * warps / 4 * _halved(op)  # four warps work on one product
            size = 4 if "TF32" in op else 2
            shared += size * (n * k + (m * k if product[4].startswith("gdesc") else 0)) * warps / 4
        elif product := re.match(r"HMMA\.168(\d+)\.", op):
            flop += 2 * 16 * 8 * int(product[1]) * warps * _halved(op)
        elif access := re.match(r"(LDS|STS|LDSM|STSM|LDGSTS|LDG)\b(\S*)", op):
            moved = 32 * warps * _access_bytes(access[2])
            shared += moved if access[1] != "LDG" else 0
            read += moved if access[1] in ("LDG", "LDGSTS") else 0
    clocks |= {"matrix": flop / _MATRIX_FLOP, "shared memory": shared / _SHARED_BYTES, "L2": read / _L2_BYTES}
    clocks["issue"] = len(opcodes) * warps / _ISSUED
    return {pipe: count * per_tile for pipe, count in clocks.items()}


def _spills(lines: Iterable[str]) -> int:
    return sum(bool(re.search(r"\b(?:STL|LDL)\b", line)) for line in lines)


def measure(build: Build) -> Resources:
    """Compile the kernel and read its resources; clocks are per `build.unit`, at the rates of Hopper."""
    kernel = compiled(build)
    warps = build.options["num_warps"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", cubin.name)
        code = _run("nvdisasm", "-c", cubin.name)
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    shared = kernel.metadata.shared
    allocated = -(-registers // 8) * 8 * 32 * warps
    threads = _THREADS.get(build.capability, 2048)
    room = SHARED[build.capability] + _RESERVED_SHARED
    ctas = min(_REGISTERS // allocated, threads // (32 * warps), room // (shared + _RESERVED_SHARED))
    loops = _loops(code)
    spilling = sum(_spills(loop) for loop in loops)
    working = [loop for loop in loops if any(re.search(r"HGMMA|HMMA|FFMA|FADD|UTC", line) for line in loop)]
    memory = {"device memory": build.traffic * build.unit / build.tile / _DEVICE_BYTES}
    return Resources(
        registers=registers,
        spills=spilling,
        spills_outside=_spills(code.splitlines()) - spilling,
        shared=shared,
        ctas=ctas,
        wgmma="HGMMA" in code,
        clocks=tuple(_clocks(loop, warps, build.unit / build.tile) | memory for loop in working),
    )
