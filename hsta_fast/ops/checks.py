"""Checks at the public boundary of the ops. Each error is one line: `name` expected X, got Y.

A message is formatted only once its check has failed: a call costs less, and torch.compile need not format
sizes that it does not know.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Asked for once: torch.compile of torch 2.11 cannot ask. Devices such as meta have no autocast.
_HAVE_AUTOCAST = frozenset(
    kind
    for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla")
    if torch.amp.is_autocast_available(kind)
)


def unexpected(name: str, expected: str, got: object) -> ValueError:
    """The error "`name` expected `expected`, got `got`", to raise."""
    return ValueError(f"{name} expected {expected}, got {got}")


def check(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError unless `condition` holds. For arguments that are at hand: else raise `unexpected`."""
    if not condition:
        raise unexpected(name, expected, got)


def short(value: object) -> str:
    """A value in an error's one line: numbers, strings and dtypes as they are written, else its class."""
    plain = value is None or isinstance(value, bool | int | float | str | torch.dtype)
    return repr(value) if plain else type(value).__name__


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...], letters: str) -> None:
    """Raise ValueError unless `tensor` has `shape`. None allows any size; `letters` names the sizes."""
    if not isinstance(tensor, Tensor):
        raise unexpected(name, f"a tensor {letters}", type(tensor).__name__)
    got = tensor.shape
    if len(got) != len(shape) or any(s is not None and s != g for s, g in zip(shape, got, strict=True)):
        sizes = ", ".join("*" if s is None else str(s) for s in shape)
        raise unexpected(name, f"shape {letters} = ({sizes})", tuple(got))


def check_heads(num_heads: int, width: int) -> None:
    """Raise ValueError unless `num_heads` is a divisor of `width`."""
    if num_heads <= 0 or width % num_heads:
        raise unexpected("num_heads", f"a divisor of the width {width}", num_heads)


def check_same(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless all tensors have the same dtype, one of `DTYPES`, and the same device."""
    name, first = next(iter(tensors.items()))
    check(first.dtype in DTYPES, name, "float16, bfloat16, float32 or float64", first.dtype)
    if any(t.dtype != first.dtype or t.device != first.device for t in tensors.values()):
        listing = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
        raise unexpected("inputs", "one dtype and one device", listing)


def check_floating(tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless every tensor has a floating dtype: autocast would cast integers silently."""
    for name, tensor in tensors.items():
        check(tensor.is_floating_point(), name, "a floating dtype", tensor.dtype)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the tensor's device; None outside autocast."""
    kind = tensor.device.type
    if kind not in _HAVE_AUTOCAST or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off on the tensor's device, if it has any."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if kind in _HAVE_AUTOCAST else nullcontext()


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which to multiply tensors of `dtype`: on CPUs torch multiplies float16 very slowly."""
    return torch.float32 if device.type == "cpu" and dtype == torch.float16 else dtype
