"""What the choice of implementation of every op shares.

The choice itself is made in `auto_choice` of ops/<op>.py.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from .checks import unexpected

_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MIN_TRITON = (3, 6)  # the oldest release that the kernels are compiled and checked with
_MIN_MAJOR = 8


class Choice(NamedTuple):
    """The implementation that runs, and why, as `hsta_fast.info()` shows them."""

    impl: str
    reason: str


_without_data: str | None = None


@contextmanager
def without_data(kind: str) -> Iterator[None]:
    """Tensors here are fakes on the CPU, whose memory is accounted; choose as on a device of this type.

    kind: "cpu", or "cuda": a device of compute capability >= 8.0.
    """
    global _without_data
    _without_data, before = kind, _without_data
    try:
        yield
    finally:
        _without_data = before


def accounted() -> str | None:
    """The type of device inside `without_data`; None outside."""
    return _without_data


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active.

    Registered ops have no rules for these: some raise torch's error, others silently return no tangent.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def exporting() -> bool:
    """Whether torch.export traces.

    In torch 2.11 torch.compiler.is_exporting() is True while torch.compile traces, too.
    """
    return torch.compiler._is_exporting_flag


def resolve(impl: str, auto: Choice, known: tuple[str, ...]) -> str:
    """The implementation to run for the argument `impl` of an op.

    "auto" is "torch" where `transformed`, and where `exporting`: an exported program has torch's own
    operations alone, so that it runs where hsta_fast is not installed.

    Raises:
        ValueError: `impl` is neither "auto" nor in `known`, or not "auto" or "torch" where `transformed`.
    """
    if impl not in ("auto", *known):
        raise unexpected("impl", f"one of {('auto', *known)}", repr(impl))
    if not transformed():
        if impl != "auto":
            return impl
        return "torch" if exporting() else auto.impl
    if impl not in ("auto", "torch"):
        raise unexpected("impl", '"auto" or "torch" under torch.func and in forward mode', repr(impl))
    return "torch"


def check_supported(impl: str, unsupported_reason: str | None) -> None:
    """Raise ValueError if there is a reason why `impl` cannot take the inputs."""
    if unsupported_reason is not None:
        raise unexpected("impl", "one that supports these inputs", f'"{impl}": {unsupported_reason}')


def _triton_version() -> tuple[int, int] | None:
    for package in ("triton", "pytorch-triton"):
        try:
            found = re.match(r"(\d+)\.(\d+)", version(package))
        except PackageNotFoundError:
            continue
        return None if found is None else (int(found[1]), int(found[2]))
    return None


_TRITON = _triton_version()


def triton_unsupported_reason(
    device: torch.device, dtype: torch.dtype, *, interpret: bool = True
) -> str | None:
    """Why Triton kernels do not support inputs of this device and dtype; None if they do.

    `interpret`: allow Triton's interpreter on the CPU (tests), where TRITON_INTERPRET=1 turns it on.
    """
    if _TRITON is None or _TRITON < _MIN_TRITON:
        found = "none" if _TRITON is None else ".".join(map(str, _TRITON))
        return f"Triton >= {'.'.join(map(str, _MIN_TRITON))} is not installed (found: {found})"
    if dtype not in _TRITON_DTYPES:
        return f"{dtype} is not float32, float16 or bfloat16"
    if accounted() == "cuda":
        return None
    if device.type == "cpu":
        interpreted = interpret and os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "the inputs are on the CPU"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"{device.type} is not a CUDA device"
    # torch.compile treats the properties as constants, but not torch.cuda.get_device_capability.
    properties = torch.cuda.get_device_properties(device)
    if properties.major < _MIN_MAJOR:
        return f"compute capability {properties.major}.{properties.minor} is below {_MIN_MAJOR}.0"
    return None
