"""Compile every kernel that the GPU tests will launch, in one process per core.

    python -m tests.gpu.compile_ahead --entries FILE

Triton's own hook reports what the launches in `shapes` would compile, with the binder's specialisation of the
arguments; nothing is launched. Each kernel is then compiled in a process without a driver, into the cache on
disk that the launches read.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from benchmarks.entries import append

MOST = 90  # specialisations of all tests together: a compilation is about a second of one core


class NoLaunch:
    """A driver that only compiles: it has a target, and launches nothing."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def fix_keys() -> None:
    """Hash all kernels in a fixed order, so that each has the same key on disk in every process.

    Up to at least 3.7, Triton's hash of a kernel includes a helper's constants only if the helper was hashed
    before, for another kernel: the key depends on what the process launched first.
    """
    from hsta_fast.kernels import attention_pool, space_time_attention

    for module in (space_time_attention, attention_pool):
        for kernel in module.JITTED.values():
            assert kernel.cache_key


def gather(launches: Iterable[Callable[[], object]]) -> dict[str, Any]:
    """{specialisation: its kernel and arguments} of all that `launches` would launch; launches nothing.

    The results of the launches are uninitialised. Kernels that this process has launched before are omitted.
    """
    found: dict[str, Any] = {}

    def note(*, compile: dict[str, Any], **_: Any) -> bool:
        found[compile["specialization_data"]] = json.loads(compile["specialization_data"])
        return True  # neither compiled nor launched

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = note
    try:
        for launch in launches:
            launch()
    finally:
        triton.knobs.runtime.jit_cache_hook = before
    return found


def each(launches: Iterable[Callable[[], None]], failures: list[str]) -> Iterator[Callable[[], None]]:
    """`launches`; if one raises, this is noted in `failures`, and the others are still compiled."""

    def caught(launch: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                launch()
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}"[:400])

        return run

    return map(caught, launches)


def _compile(job: tuple[GPUTarget, str]) -> float:
    """Compile one specialisation; returns the seconds it took."""
    target, data = job
    start = time.perf_counter()
    driver.set_active(NoLaunch(target))
    fix_keys()
    module, _, name = json.loads(data)["name"].rpartition(".")
    with contextlib.suppress(Exception):
        getattr(importlib.import_module(module), name).preload(data)
    return time.perf_counter() - start


def compile_all(
    specialisations: Iterable[str], target: GPUTarget, processes: int, limit: float | None = None
) -> list[float]:
    """Compile for `target`; returns the seconds of each. Compilation errors are left to the launches.

    Raises:
        multiprocessing.TimeoutError: it takes more than `limit` seconds; compiled kernels stay in the cache.
    """
    jobs = [(target, data) for data in specialisations]
    interpreted = os.environ.pop("TRITON_INTERPRET", None)  # set for a stand-in, prevents compilation
    try:
        # Spawned, not forked: this process may have a CUDA context.
        with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
            return pool.map_async(_compile, jobs, chunksize=1).get(limit)
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted


def stand_in(capability: int, processors: int) -> GPUTarget:
    """From now on prepare launches of CPU tensors as for such a device, without launching."""
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(NoLaunch(target))
    from hsta_fast.kernels import attention_pool, space_time_attention
    from hsta_fast.kernels.launch import of_capability

    device = of_capability(capability)._replace(processors=processors)
    for module in (attention_pool, space_time_attention):
        vars(module)["device_of"] = lambda _: device
    os.environ["TRITON_INTERPRET"] = "1"  # the ops accept CPU tensors; kernels imported before compile
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=Path, required=True, help="file to append entries to")
    parser.add_argument(
        "--stand-in", action="store_true", help="count the kernels for sm_90 without a device"
    )
    arguments = parser.parse_args()
    start = time.perf_counter()
    if arguments.stand_in:
        os.environ.pop("TRITON_INTERPRET", None)
        from hsta_fast.kernels import space_time_attention  # noqa: F401 - before kernels are interpreted

        stand_in(90, 132)
    from tests.gpu.shapes import launches

    failures: list[str] = []
    found = gather(each(launches(), failures))
    note = f"{len(found)} kernel specialisations"
    if not arguments.stand_in:
        seconds = compile_all(found, driver.active.get_current_target(), len(os.sched_getaffinity(0)))
        note += f", compiled in {time.perf_counter() - start:.1f} s, {sum(seconds):.0f} s of all cores"
    print(note, *failures, sep="\n", flush=True)
    append(arguments.entries, {"case": "kernels compiled ahead", "note": note})
    for failure in failures:
        append(arguments.entries, {"case": "a launch", "failed": failure})
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
