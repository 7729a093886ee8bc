"""Checks at the public boundary of the ops: one clear line with what was wanted and what came."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def want(condition: bool, op: str, wanted: str, came: object) -> None:
    """Raise ValueError(`op` wants `wanted`, got `came`) unless `condition` holds."""
    if not condition:
        raise ValueError(f"{op} wants {wanted}, got {came}")


def want_shape(op: str, name: str, tensor: Tensor, shape: tuple[int | None, ...], letters: str) -> None:
    """Raise ValueError unless `tensor` has `shape`; None stands for any size; `letters` names the sizes."""
    if not isinstance(tensor, Tensor):
        want(False, op, f"a tensor {letters} as {name}", type(tensor).__name__)
    came = tuple(tensor.shape)
    if len(came) != len(shape) or any(s is not None and s != c for s, c in zip(shape, came, strict=True)):
        sizes = ", ".join("*" if s is None else str(s) for s in shape)
        want(False, op, f"{name} of shape {letters} = ({sizes})", came)


def want_alike(op: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless all tensors are of one dtype in `DTYPES` and on one device."""
    first = next(iter(tensors.values()))
    want(first.dtype in DTYPES, op, "float16, bfloat16, float32 or float64", first.dtype)
    if any(t.dtype != first.dtype or t.device != first.device for t in tensors.values()):
        listing = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in tensors.items())
        want(False, op, "one dtype and one device", listing)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the tensor's device; None outside autocast."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Products in the dtypes given, on the tensor's device; some devices, such as meta, know no autocast."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
