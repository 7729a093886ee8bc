"""Time the configurations of every kernel on this device, and torch's attention; the fastest are then used.

    PYTHONPATH=. python benchmarks/tune.py --limit 150

Writes kernels/tuned/<device>.json, keyed by Triton's version; it takes precedence over the shipped tables.
The launcher itself runs each configuration in place of its own choice, so what is timed is what will run. A
configuration must give the same numbers as the shipped one, and must be faster by more than noise.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.runtime.driver import driver

from benchmarks.cases import FLUSH, round_on_cuda
from benchmarks.entries import append
from benchmarks.tune_attention import time_backends
from hsta_fast.files import write_text
from hsta_fast.kernels import attention_pool_configs as pool_configs
from hsta_fast.kernels import space_time_attention_configs as attention_configs
from hsta_fast.kernels.attention_pool import attention_pool_bwd, attention_pool_fwd
from hsta_fast.kernels.builds import attention_variants, pool_variants
from hsta_fast.kernels.launch import TRITON, Device, device_of, tuned_key, tuned_path, tuned_table
from hsta_fast.kernels.space_time_attention import space_time_attention_bwd, space_time_attention_fwd

HEADS = 12
GAIN = 1.03  # a configuration must be this much faster than the shipped one
_ROUNDS = 10
_BACKENDS_SECONDS = 20.0  # of the limit, for torch's backends of attention

Run = Callable[[], Sequence[Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel at a width, and the configurations to try.

    Attributes:
        key: its key in the tuned table.
        configs: what is tried, the shipped configuration first.
        make: allocates, and returns a step that launches the kernel; its results are compared.
    """

    key: str
    configs: Sequence[Any]
    make: Callable[[], Run]


def _attention(kernel: str, D: int, B: int, N: int, device: str) -> Run:
    torch.manual_seed(0)
    q, k, v = torch.randn(B, N, 3, HEADS, D, device=device).bfloat16().unbind(2)
    forward = partial(space_time_attention_fwd, q, k, v, D**-0.5)
    if kernel == "fwd":
        return forward
    out, lse = forward()
    dout = torch.randn_like(out)

    def backward() -> Sequence[Tensor]:
        gradients = [torch.empty_like(out) for _ in range(3)]
        space_time_attention_bwd(dout, q, k, v, out, lse, D**-0.5, *gradients)
        return gradients

    return backward


def _pool(kernel: str, C: int, B: int, N: int, device: str) -> Run:
    torch.manual_seed(0)
    query, dpooled = (torch.randn(B, HEADS, C, device=device).bfloat16() / C**0.5 for _ in range(2))
    tokens, extra = (torch.randn(B, *shape, device=device).bfloat16() for shape in ((N, C), (C,)))
    forward = partial(attention_pool_fwd, query, tokens, extra, True, 1e-6)
    if kernel == "fwd":
        return lambda: [x for x in forward() if x is not None]
    saved = forward()

    def backward() -> Sequence[Tensor]:
        dtokens = torch.empty_like(tokens)
        dquery, dextra = attention_pool_bwd(
            dpooled, query, tokens, extra, True, 1e-6, *saved, dtokens=dtokens
        )
        return [dquery, dtokens, *([] if dextra is None else [dextra])]

    return backward


def cases(device: Device, place: str = "cuda") -> Iterator[Case]:
    """The kernels of HSTA in bfloat16 at its widths; a batch of 32 clips of 16 frames."""
    for D, N in ((64, 1569), (32, 325)):
        for kernel in ("fwd", "dq", "dkv"):
            yield Case(
                key=tuned_key(attention_configs.OP, kernel, D),
                configs=attention_variants(kernel, D, device),
                make=partial(_attention, kernel, D, 32, N, place),
            )
    for C, N in ((768, 1568), (384, 324)):
        # With a batch of 1 a second step sums the rows, if the device has many multiprocessors.
        for kernel, B in (("fwd", 32), ("bwd", 32), ("bwd, two steps", 1)):
            yield Case(
                key=tuned_key(pool_configs.OP, kernel, C),
                configs=pool_variants(kernel, C, device),
                make=partial(_pool, kernel, C, B, N, place),
            )


def tried(name: str, case: Case, config: Any, run: Run) -> Sequence[Tensor]:
    """The results of `run` with `config` instead of what the launcher would choose.

    Raises:
        Exception: it does not compile, or does not fit the device.
    """
    table = tuned_table(name)
    before = table.get(case.key)
    table[case.key] = dataclasses.asdict(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as the one that it does not fit
            return run()
    finally:
        if before is None:
            del table[case.key]
        else:
            table[case.key] = before


def alike(came: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether two configurations gave the same numbers up to the order of bfloat16 roundings."""
    return all(
        float((a.double() - b.double()).abs().max()) <= 0.02 * float(b.double().abs().max())
        for a, b in zip(came, expected, strict=True)
    )


def seconds_of(run: Run) -> float:
    """Median seconds of a step on the device, with caches overwritten and dispatch hidden.

    Without a device, the processor's seconds of one interpreted step, which other programs change little.
    """
    if not torch.cuda.is_available():
        began = time.process_time()
        run()
        return time.process_time() - began
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    return statistics.median(round_on_cuda(run, flush)[0] for _ in range(_ROUNDS)) / 1e3


def noted(entries: Path | None, case: str, **what: Any) -> None:
    """Print what was found, and add it to the entries of `make gpu`."""
    print(f"{case}: {', '.join(f'{name} {value}' for name, value in what.items())}", flush=True)
    if entries is not None:
        append(entries, {"case": f"tune {case}"} | what)


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"


def best(name: str, case: Case, until: float) -> tuple[Any, dict[str, float]]:
    """The fastest configuration and {configuration: seconds} of those that run and give the right numbers.

    The right numbers are those of the first that runs: the shipped one, unless it does not fit the device.

    Raises:
        RuntimeError: no configuration runs.
    """
    run = case.make()
    times: dict[Any, float] = {}
    expected: Sequence[Tensor] = []
    for config in case.configs:
        if times and time.monotonic() > until:
            break
        try:
            # Fill freed memory with NaN: a value that a kernel fails to write must not be an older result.
            poison = [torch.full_like(x, torch.nan) for x in expected]
            del poison
            came = tried(name, case, config, run)
            if times and not alike(came, expected):
                print(f"  {config}: results differ from those of {next(iter(times))}", flush=True)
                continue
            expected = expected if times else came
            times[config] = seconds_of(lambda config=config: tried(name, case, config, run))  # type: ignore[misc]
        except Exception as error:
            print(f"  {config}: {said(error)}", flush=True)
    if not times:
        raise RuntimeError("no configuration runs")
    first, fastest = next(iter(times)), min(times, key=times.__getitem__)
    return fastest if times[fastest] * GAIN < times[first] else first, times


def write(folder: Path, name: str, key: str, found: dict[str, Any], times: dict[Any, float]) -> Path:
    """Add the result to the device's file; entries for other versions of Triton are kept."""
    path = folder / tuned_path(name).name
    held: dict[str, Any] = {"device": name, "triton": {}, "milliseconds": {}}
    held |= json.loads(path.read_text()) if path.exists() else {}
    held["triton"].setdefault(TRITON, {})[key] = found
    milliseconds = {str(config): round(seconds * 1e3, 4) for config, seconds in times.items()}
    held["milliseconds"].setdefault(TRITON, {})[key] = milliseconds
    write_text(path, json.dumps(held, indent=1) + "\n")
    tuned_table.cache_clear()
    return path


def tune(
    name: str, given: Sequence[Case], limit: float, *, folder: Path | None = None, entries: Path | None = None
) -> dict[str, Any]:
    """Time the cases in order for at most `limit` seconds; returns {key: fastest configuration}.

    Each result is written at once, into the device's file in `folder` (None: the folder that launchers read)
    and into `entries`, the entries of `make gpu`.
    """

    def note(case: Case, **what: Any) -> None:
        noted(entries, case.key, **what)

    until = time.monotonic() + limit
    found: dict[str, Any] = {}
    for case in given:
        if time.monotonic() > until:
            note(case, skipped=f"not reached in {limit:.0f} s")
            continue
        try:
            winner, times = best(name, case, until)
        except Exception as error:  # one failing kernel must not stop the others
            note(case, failed=said(error))
            continue
        found[case.key] = dataclasses.asdict(winner)
        path = write(folder or tuned_path(name).parent, name, case.key, found[case.key], times)
        before = times.get(case.configs[0])
        shipped_ms = "does not run" if before is None else round(before * 1e3, 4)
        note(case, ms=round(times[winner] * 1e3, 4), shipped_ms=shipped_ms, config=str(winner))
    if found:
        print(path)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=float, default=150.0, help="seconds, compilation included")
    parser.add_argument(
        "--folder", type=Path, help="folder to write to (default: the one that launchers read)"
    )
    parser.add_argument("--entries", type=Path, help="file to append entries to")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"tune.py expected a CUDA device, got none (torch {torch.__version__})", file=sys.stderr)
        return 1
    start = time.monotonic()
    device = device_of(torch.device("cuda"))
    given = list(cases(device))
    compile_ahead(device.name, given, limit=arguments.limit / 2)
    left = arguments.limit - (time.monotonic() - start) - _BACKENDS_SECONDS
    found = tune(device.name, given, left, folder=arguments.folder, entries=arguments.entries)
    tuned_table(device.name).update(found)  # also if it was written elsewhere
    until, note = start + arguments.limit, partial(noted, arguments.entries)
    time_backends(device.name, until, seconds_of=seconds_of, alike=alike, note=note, folder=arguments.folder)
    return int(not found)


def launches(name: str, given: Sequence[Case]) -> Iterator[Callable[[], object]]:
    """A launch of each configuration that will be tried."""
    for case in given:
        try:
            run = case.make()
        except Exception as error:  # such as too little memory
            print(f"{case.key}: {said(error)}", flush=True)
            continue
        for config in case.configs:
            yield partial(tried, name, case, config, run)


def compile_ahead(name: str, given: Sequence[Case], limit: float) -> None:
    """Compile everything that will be tried, in one process per core."""
    from tests.gpu.compile_ahead import compile_all, fix_keys, gather

    fix_keys()
    found = gather(launches(name, given))
    try:
        compile_all(found, driver.active.get_current_target(), os.cpu_count() or 1, limit=limit)
    except multiprocessing.TimeoutError:
        print(f"not all of {len(found)} kernels were compiled ahead in {limit:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
