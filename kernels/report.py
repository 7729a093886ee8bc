"""Compile every shipped kernel without a GPU: tables of what each needs, and the checks that must hold.

python -m hsta_fast.kernels.report --write docs/resources.md
python -m hsta_fast.kernels.report --check 80 90 100 120
"""

import argparse
import sys
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

import triton

from .builds import shipped, tried
from .resources import Build, Resources, compile_for, measure

_HEAD = """# What the kernels need

Written by `make resources`: read off the machine code that Triton {version} makes for sm_90, on no GPU.
It ranks variants and shows regressions; it is no timing, and nothing here was measured on a device.

Clocks are those that each pipe of one multiprocessor needs for 128 x 64 scores of the loop, in attention
pooling for 16 tokens. Per clock: 4096 matrix operations; 16 exponentials; 128 multiply-adds; 64 min / max,
shifts and conversions; 32 shuffles; 128 bytes of shared memory, operands of `wgmma` among them; 4 warp
instructions issued; 18 bytes of device memory, counted where it is near. The largest binds. A frozen
forward has two loops: the fast one, and below it the online one that is its way out. The small kernels of
attention pooling (rows, combine) run once over what the loops leave. Spills count instructions.
"""
_PIPES = (
    "matrix",
    "exponential",
    "multiply-add",
    "min/max, shift, convert",
    "shuffle",
    "shared memory",
    "issue",
    "device memory",
)
_COLUMNS = ("kernel", "registers", "spills", "shared, KiB", "CTAs", *_PIPES, "binds")


def binding(resources: Resources) -> tuple[str, float]:
    """The pipe that the first loop waits for, and its clocks."""
    pipe = max(resources.clocks[0], key=resources.clocks[0].__getitem__)
    return pipe, resources.clocks[0][pipe]


def faults(build: Build, resources: Resources) -> list[str]:
    """What must not be: too much shared memory; in bfloat16 at HSTA's widths spills, or no `wgmma`."""
    found = []
    if resources.shared > build.limit:
        found.append(f"{build.name}: {resources.shared} bytes of shared memory, above {build.limit}")
    widths = [build.constants.get(name) for name in ("D", "C")]
    if "*bf16" in build.signature.values() and {32, 64, 384, 768} & set(widths):
        if resources.spills:
            found.append(f"{build.name}: {resources.spills} spills")
        if "D" in build.constants and not resources.wgmma:
            found.append(f"{build.name}: no wgmma")
    return found


def table(rows: Iterable[tuple[Build, Resources]]) -> str:
    """One line per loop."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    for build, resources in rows:
        needs = [build.name, resources.registers, resources.spills, resources.shared // 1024, resources.ctas]
        for i, loop in enumerate(resources.clocks):
            cells = needs if i == 0 else ["way out", "", "", "", ""]
            cells = [
                *cells,
                *(f"{loop[pipe]:.0f}" for pipe in _PIPES),
                binding(resources)[0] if i == 0 else "",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def write(path: Path) -> None:
    """All tables, into a Markdown file."""
    ranked: dict[str, list[tuple[Build, Resources]]] = {}
    for build in tried():
        kind = ", ".join(build.name.split(", ")[:2])
        ranked.setdefault(kind, []).append((build, measure(build)))
    parts = [
        _HEAD.format(version=triton.__version__),
        "## Shipped\n",
        table((b, measure(b)) for b in shipped()),
    ]
    parts.append(
        "\n## Variants weighed, bfloat16, best first: no spills, fewest clocks, most warps that run at once"
    )
    for kind, rows in ranked.items():
        rows.sort(
            key=lambda row: (
                row[1].spills > 0,
                binding(row[1])[1],
                -row[1].ctas * row[0].options["num_warps"],
            )
        )
        parts.append(f"\n### {kind}\n\n{table(rows)}")
    path.write_text("\n".join(parts) + "\n")


def check(capabilities: list[int]) -> list[str]:
    """Faults over all shipped kernels; a kernel that does not compile raises."""
    jobs = [(place, capability) for place in range(len(list(shipped()))) for capability in capabilities]
    # Forked, because a kernel cannot be pickled; nothing here has threads.
    with get_context("fork").Pool() as pool:
        return [fault for found in pool.starmap(check_one, jobs, chunksize=4) for fault in found]


def check_one(place: int, capability: int) -> list[str]:
    """Compile one of `shipped`; its faults, which are looked for on sm_90."""
    build = list(shipped())[place]
    if capability == 90:
        return faults(build, measure(build))
    compile_for(build, capability)
    return []


def main() -> None:
    """Write the tables or check what is shipped; a fault ends with status 1."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--check", type=int, nargs="+", metavar="CAPABILITY", default=[])
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
    found = check(arguments.check)
    if arguments.check:
        count = len(list(shipped()))
        print(
            f"Triton {triton.__version__}: {count} kernels built for {arguments.check}, {len(found)} faults"
        )
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
