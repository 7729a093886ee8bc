"""How fast this CPU multiplies, measured once in 50 ms, when a product first asks.

Which product is the fastest differs between CPUs in ways that no flag tells. The result is kept in the cache
of the extension, under a hash of the CPU, its threads, torch's version and the extension. Importing this
module measures nothing.
"""

import hashlib
import json
import math
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from . import extension
from .files import lock_file, open_lock, write_text

_SECONDS = 0.040  # of both shapes together, their first calls aside
_SLOW = 0.3  # more, on a slow CPU, until there are enough rounds
_ROUNDS = (3, 9)
_ATTEMPTS = 3
# Nothing disturbed a rate when this many rounds agree with the best one to this factor.
_AGREE = (3, 1.1)
# K = N, and rows per thread: those of a narrow and of a wide model.
_SHAPES = {"narrow": (192, 384), "wide": (768, 192)}
_BETWEEN = 384  # columns from which on a product is wide
# What a product must gain before it is taken: more than the noise. For bfloat16 so much that a training step
# gains 1.2, since about 0.8 of its time scales with the products (docs/performance.md).
_PANELS_GAIN = 1.05
_BFLOAT16_GAIN = 1.3


@cache
def has_bfloat16_instruction() -> bool:
    """Whether this CPU has an instruction for products in bfloat16 (AVX512_BF16)."""
    return torch.cpu._is_avx512_bf16_supported()


def multiplies_bfloat16() -> bool:
    """Whether the extension may use that instruction now; True also where the extension cannot be loaded.

    ONEDNN_MAX_CPU_ISA and torch.backends.mkldnn.flags can forbid it.
    """
    if not has_bfloat16_instruction():
        return False
    return not extension.usable("cpu", "auto") or bool(torch.ops.hsta_fast.multiplies_bfloat16())


class Rates(NamedTuple):
    """GFLOP/s of torch's product and ours ("panels"), 0 where ours cannot run; `bfloat16` is torch's.

    `autocast` and `autocast_panels` are those in bfloat16 of float32 operands, with the time to round them.
    The best of some rounds, in which the products take turns: what runs beside them can only slow them down.
    """

    torch: float
    panels: float
    bfloat16: float
    autocast: float = 0.0
    autocast_panels: float = 0.0

    def panels_pay(self) -> bool:
        """Whether our product in float32 is faster than torch's by more than noise."""
        return self.panels >= _PANELS_GAIN * self.torch

    def autocast_panels_pay(self) -> bool:
        """Whether our product in bfloat16 is faster than torch's by more than noise."""
        return self.autocast_panels > 0 and self.autocast_panels >= _PANELS_GAIN * self.autocast

    def bfloat16_pays(self) -> bool:
        """Whether bfloat16 is so much faster than both float32 products that a whole model gains."""
        return self.bfloat16 >= _BFLOAT16_GAIN * max(self.torch, self.panels)


class CpuSpeed(NamedTuple):
    """Rates at a narrow and a wide shape; `path`: the file with them, None if only this process has them."""

    narrow: Rates
    wide: Rates
    path: Path | None

    def rates(self, width: int) -> Rates:
        """Those that hold for products of `width` columns."""
        return self.wide if width >= _BETWEEN else self.narrow

    def to_json(self) -> dict[str, Any]:
        """As `hsta_fast.info()` shows it."""
        path = None if self.path is None else str(self.path)
        return {name: getattr(self, name)._asdict() for name in _SHAPES} | {"path": path}


def describe(speed: Mapping[str, Any]) -> str:
    """`CpuSpeed.to_json` as text: GFLOP/s, and how to have them measured again."""
    kept = f"kept in {speed['path']} until that is deleted" if speed["path"] else "not kept: measured again"
    lines = [f"GFLOP/s of products, {kept}"]
    for name, (width, _) in _SHAPES.items():
        rates = Rates(**speed[name])
        lines.append(
            f"  width {width:4d}: torch {rates.torch:.0f}, C++ {rates.panels:.0f}, "
            f"torch in bfloat16 {rates.bfloat16:.0f}; "
            f"autocast to bfloat16: torch {rates.autocast:.0f}, C++ {rates.autocast_panels:.0f}"
        )
    return "\n".join(lines)


_mutex = threading.Lock()
_found: dict[int, CpuSpeed] = {}  # by threads


def known() -> CpuSpeed | None:
    """What was measured before, by this process or another; None if nothing was."""
    threads = torch.get_num_threads()
    if threads not in _found and (speed := _read(_path())) is not None:
        _found[threads] = speed
    return _found.get(threads)


def measured() -> CpuSpeed:
    """`known`, or else measured now."""
    speed = _found.get(torch.get_num_threads())  # without the lock, and quick: every product asks
    if speed is not None:
        return speed
    with _mutex:
        speed = known()
        if speed is None:
            speed = _found[torch.get_num_threads()] = _measure_and_keep(_path())
        return speed


def _path() -> Path:
    """Where the result is kept, with a hash of what it depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    facts = [
        *sorted(set(re.findall(r"^(?:model name|CPU part)\s*:.*", lines, re.M) or [lines])),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        torch.__version__,
        extension.library_name("cpu") or "no extension",
    ]
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    return extension.cache_folder() / f"cpu-speed-{digest}.json"


def _read(path: Path) -> CpuSpeed | None:
    """The file's contents; None if there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        rates = {
            name: Rates(*(float(each[field]) for field in Rates._fields))
            for name, each in ((name, found[name]) for name in _SHAPES)
        }
    except (OSError, ValueError, TypeError, KeyError):
        return None
    sound = all(math.isfinite(number) and number >= 0 for each in rates.values() for number in each)
    return CpuSpeed(**rates, path=path) if sound else None


def _measure_and_keep(path: Path) -> CpuSpeed:
    with ExitStack() as stack:
        with suppress(OSError):  # without a lock, processes that start at once disturb each other's timings
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_file(stack.enter_context(open_lock(path.with_suffix(".lock"))))
        speed = _read(path)  # another process may have measured meanwhile
        if speed is not None:
            return speed
        # Kept even if no attempt was quiet: a run that is continued must multiply as it began.
        rates, quiet = _measure()
        for _ in range(_ATTEMPTS - 1):
            if quiet:
                break
            again, quiet = _measure()
            rates = {name: Rates(*map(max, rates[name], again[name])) for name in rates}
        try:
            write_text(
                path, json.dumps({name: each._asdict() for name, each in rates.items()}, indent=1) + "\n"
            )
        except OSError:
            return CpuSpeed(**rates, path=None)
        return CpuSpeed(**rates, path=path)


def _measure() -> tuple[dict[str, Rates], bool]:
    """The rates of each shape, and whether nothing disturbed them."""
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        end = time.perf_counter() + _SECONDS
        narrow, quiet = _rates(*_SHAPES["narrow"], end - 0.8 * _SECONDS)
        wide, quiet_too = _rates(*_SHAPES["wide"], end)
        return {"narrow": narrow, "wide": wide}, quiet and quiet_too


def _rates(width: int, rows: int, end: float) -> tuple[Rates, bool]:
    """Rates of a square weight, timed in turns until `end`, and whether nothing disturbed them."""
    rows *= min(torch.get_num_threads(), 4)
    x, weight, bias = torch.randn(rows, width), torch.randn(width, width) * width**-0.5, torch.randn(width)
    low = [tensor.bfloat16() for tensor in (x, weight, bias)]
    candidates: dict[str, Callable[[], object]] = {
        "torch": lambda: F.linear(x, weight, bias),
        "bfloat16": lambda: F.linear(*low),
    }
    if extension.usable("cpu", "auto"):
        ours = torch.ops.hsta_fast
        candidates["panels"] = lambda: ours.linear_product(x, weight, bias, False, False, False)
        if multiplies_bfloat16():
            candidates["autocast"] = lambda: _under_autocast(x, weight, bias)
            multiply = ours.linear_product_bfloat16
            candidates["autocast_panels"] = lambda: multiply(x, weight, bias, False, False, False)
    with torch.autocast("cpu", enabled=False):
        for run in candidates.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        least, most = _ROUNDS
        done = 0
        # Once at least: a busy machine may have used up the time.
        while done == 0 or (done < most and time.perf_counter() < end + (_SLOW if done < least else 0)):
            done += 1
            for name, run in candidates.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    work, (agreeing, factor) = 2e-9 * rows * width * width, _AGREE
    times = {name: sorted(each) for name, each in seconds.items()}
    quiet = done >= agreeing and all(each[agreeing - 1] <= factor * each[0] for each in times.values())
    return Rates(**{"panels": 0.0} | {name: work / each[0] for name, each in times.items()}), quiet


def _under_autocast(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(x, weight, bias)
