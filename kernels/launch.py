"""What a launch depends on: the device, torch's precision, tuned configurations; and a smaller fallback.

Importing this module needs no driver.
"""

import contextlib
import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

TUNED = Path(__file__).parent / "tuned"
TRITON = ".".join(triton.__version__.split(".")[:2])
# Which attention is fastest depends on both.
TORCH_AND_TRITON = f"torch {'.'.join(torch.__version__.split('.')[:2])}, Triton {TRITON}"
# Bytes of shared memory that one program may take, by compute capability, as CUDA documents it.
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}

Config = TypeVar("Config")
Result = TypeVar("Result")


class Device(NamedTuple):
    """The properties of a device that launches depend on.

    Attributes:
        name: from the driver; "" for a device to compile for.
        capability: compute capability times ten: 90 for 9.0.
        processors: number of multiprocessors.
        shared: bytes of shared memory that one program may take.
    """

    name: str
    capability: int
    processors: int
    shared: int

    @property
    def small(self) -> bool:
        """Whether shared memory is that of a consumer card (99 KiB)."""
        return self.shared < SHARED[80]


def of_capability(capability: int) -> Device:
    """A device to compile for: a compute capability in `SHARED`, with the multiprocessors of an H100."""
    return Device("", capability, 132, SHARED[capability])


@cache
def device_of(device: torch.device) -> Device:
    """The properties of `device`; for the CPU, where kernels are interpreted, an sm_90 of two processors."""
    if device.type != "cuda":
        return of_capability(90)._replace(processors=2)
    found = torch.cuda.get_device_properties(device)
    return Device(
        found.name,
        10 * found.major + found.minor,
        found.multi_processor_count,
        found.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # the stubs lack it
    )


def made_current(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the tensor's device current, because Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def tuned_path(name: str) -> Path:
    """The file of tuned configurations of the device with this name."""
    return TUNED / f"{name.lower().replace(' ', '-').replace('/', '-')}.json"


@cache
def tuned_table(name: str) -> dict[str, dict[str, Any]]:
    """The configurations that `benchmarks/tune.py` found fastest with this Triton, by `tuned_key`, or {}."""
    path = tuned_path(name)
    if not name or not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text())["triton"].get(TRITON, {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _ignored(path, "a table", repr(error))
        return {}


@cache
def fastest_attention(name: str) -> dict[str, tuple[tuple[int, str], ...]]:
    """What `benchmarks/tune.py` found fastest with this torch and this Triton, or {}.

    By direction and head width, as in "forward 64": (N, "triton" or the name of torch's backend), by N.
    """
    path = tuned_path(name)
    if not name or not path.exists():
        return {}
    try:
        held = json.loads(path.read_text()).get("attention", {}).get(TORCH_AND_TRITON, {})
        return {
            key: tuple(sorted((int(length), str(fastest)) for length, fastest in timed.items()))
            for key, timed in held.items()
        }
    except (ValueError, AttributeError) as error:
        _ignored(path, "a table of attention", repr(error))
        return {}


def _ignored(path: Path, expected: str, got: object) -> None:
    warnings.warn(
        f"expected {expected} of benchmarks/tune.py in {path}, got {got}: ignored; tune again, or delete it",
        stacklevel=4,
    )


def tuned_config(kind: type[Config], name: str, key: str) -> Config | None:
    """The configuration tuned for a kernel on a device; None without one that this version can launch."""
    entry = tuned_table(name).get(key)
    if entry is None:
        return None
    try:
        config = kind(**entry)
        sizes = [
            entry[field] for field in ("rows", "cols", "tokens", "chunk", "slices", "warps") if field in entry
        ]
        if not all(type(size) is int and size > 0 and size & (size - 1) == 0 for size in sizes):
            raise TypeError("a size that is not a power of two")
    except TypeError as error:
        _ignored(tuned_path(name), f'a configuration under "{key}"', error)
        tuned_table(name).pop(key)
        return None
    return config


def tuned_key(op: str, kernel: str, width: int) -> str:
    """The key of an entry, the same for both 16-bit dtypes: "space_time_attention fwd 64"."""
    return f"{op} {kernel} {width}"


def precision_of(dtype: torch.dtype) -> str:
    """How products of this dtype are computed; for float32 this follows torch's setting.

    "bf16x6" computes float32 as six bfloat16 products of three parts: exact to float32 rounding, on tensor
    cores. Torch's "tf32" is one product of rounded operands, its "ieee" true float32 without tensor cores.
    """
    if dtype != torch.float32:
        return "ieee"
    # Reading the setting under its older name raises if it was set under the newer one.
    asked = torch.backends.cuda.matmul.fp32_precision
    return asked if asked in ("tf32", "ieee") else "bf16x6"


_smaller: dict[tuple[object, ...], Any] = {}


def launch_within(
    device: Device, what: str, config: Config, smaller: Config, launch: Callable[[Config], Result]
) -> Result:
    """`launch(config)`. If the device has too little shared memory, `launch(smaller)` now and from then on.

    Raises:
        OutOfResources: the device has too little for `smaller`, too.
    """
    key = (device, what, config)
    if key not in _smaller:
        try:
            return launch(config)
        except OutOfResources as error:
            if smaller == config:
                raise
            warnings.warn(
                f"{what} does not fit {device.name or 'this device'} as configured ({error}); it runs with "
                f"{smaller} instead, slower (benchmarks/tune.py finds what fits)",
                stacklevel=2,
            )
            _smaller[key] = smaller
    return launch(_smaller[key])
