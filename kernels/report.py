"""Compile every shipped kernel without a GPU: tables of the resources of each, and checks of them.

python -m hsta_fast.kernels.report --write docs/resources.md
python -m hsta_fast.kernels.report --check 80 86 89 90 100 120
"""

import argparse
import sys
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

import triton

from .builds import of_the_model, shipped, tried
from .launch import SHARED
from .resources import Build, Resources, measure

_HEAD = """# What the kernels need

Written by `make resources`, from the machine code that Triton {version} generates for sm_90, without a GPU.
Use it to rank variants and to find regressions; nothing here was timed or measured on a device.

Clocks: what each pipe of one multiprocessor needs for 128 x 64 scores of the loop, in attention pooling for
16 tokens. Per clock: 4096 matrix operations; 16 exponentials; 128 multiply-adds; 64 min / max, shifts and
conversions; 32 shuffles; 128 bytes of shared memory, including operands of `wgmma`; 4 warp instructions
issued; 26 bytes of the L2 (5.5 to 7 TB/s on an H100 by public measurements), from which all loads are
counted, as if there were no first-level cache; 18 bytes of device memory, counted where they could bind. The
largest binds. A frozen forward has two loops: the fast one and, below it ("way out"), the online fallback.
The small kernels of attention pooling (rows, combine) run once on the results of the loops. Spills count
instructions, inside loops + outside them; those outside run once.
"""
_PIPES = (
    "matrix",
    "exponential",
    "multiply-add",
    "min/max, shift, convert",
    "shuffle",
    "shared memory",
    "issue",
    "L2",
    "device memory",
)
_COLUMNS = ("kernel", "registers", "spills", "shared, KiB", "CTAs", *_PIPES, "binds")


def binding(resources: Resources) -> tuple[str, float]:
    """The pipe that the first loop waits for, and its clocks."""
    pipe = max(resources.clocks[0], key=resources.clocks[0].__getitem__)
    return pipe, resources.clocks[0][pipe]


def faults(build: Build, resources: Resources) -> list[str]:
    """Too much shared memory; for kernels of the model on sm_90 also a spill in a loop or no `wgmma`."""
    found, limit = [], SHARED[build.capability]
    if resources.shared > limit:
        found.append(f"{build.name}: {resources.shared} bytes of shared memory, above {limit}")
    if build.capability == 90 and of_the_model(build):
        if resources.spills:
            found.append(f"{build.name}: {resources.spills} spills in loops")
        if "D" in build.constants and not resources.wgmma:
            found.append(f"{build.name}: no wgmma")
    return found


def table(rows: Iterable[tuple[Build, Resources]]) -> str:
    """One line per loop."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    for build, resources in rows:
        spills = f"{resources.spills} + {resources.spills_outside}"
        needs = [build.name, resources.registers, spills, resources.shared // 1024, resources.ctas]
        for i, loop in enumerate(resources.clocks):
            cells = needs if i == 0 else ["way out", "", "", "", ""]
            cells = [
                *cells,
                *(f"{loop[pipe]:.0f}" for pipe in _PIPES),
                binding(resources)[0] if i == 0 else "",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _measured(place: int, ranked: bool) -> Resources:
    return measure(list(tried() if ranked else shipped())[place])


def _all_measured(*, ranked: bool) -> list[tuple[Build, Resources]]:
    builds = list(tried() if ranked else shipped())
    with get_context("fork").Pool() as pool:
        jobs = [(place, ranked) for place in range(len(builds))]
        return list(zip(builds, pool.starmap(_measured, jobs, chunksize=1), strict=True))


def write(path: Path) -> None:
    """All tables, into a Markdown file."""
    ranked: dict[str, list[tuple[Build, Resources]]] = {}
    for build, resources in _all_measured(ranked=True):
        kind = ", ".join(build.name.split(", ")[:2])
        ranked.setdefault(kind, []).append((build, resources))
    parts = [_HEAD.format(version=triton.__version__), "## Shipped\n", table(_all_measured(ranked=False))]
    parts.append(
        "\n## Variants compared, bfloat16, best first: no spills in loops, fewest clocks, most warps at once"
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


def check(capabilities: list[int], *, model: bool = False) -> tuple[int, list[str]]:
    """How many shipped kernels were built, and their faults; a kernel that does not compile raises."""
    jobs = [
        (place, capability)
        for capability in capabilities
        for place, build in enumerate(shipped(capability))
        if not model or of_the_model(build)
    ]
    # Forked, because a kernel cannot be pickled; nothing here has threads.
    with get_context("fork").Pool() as pool:
        return len(jobs), [fault for found in pool.starmap(check_one, jobs, chunksize=4) for fault in found]


def check_one(place: int, capability: int) -> list[str]:
    """Compile one of `shipped`; its faults."""
    build = list(shipped(capability))[place]
    return [f"sm_{capability}: {fault}" for fault in faults(build, measure(build))]


def main() -> None:
    """Write the tables or check what is shipped; a fault ends with status 1."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--check", type=int, nargs="+", metavar="CAPABILITY", default=[])
    parser.add_argument("--model", action="store_true", help="check only what HSTA's shapes and dtypes take")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
    count, found = check(arguments.check, model=arguments.model)
    if arguments.check:
        print(
            f"Triton {triton.__version__}: {count} kernels built for {arguments.check}, {len(found)} faults"
        )
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main()
