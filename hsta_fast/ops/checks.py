"""Checks at the public boundary of the ops: one clear line with what was wanted and what came."""

import torch
from torch import Tensor


def want(condition: bool, op: str, wanted: str, came: object) -> None:
    """Raise ValueError(`op` wants `wanted`, got `came`) unless `condition` holds."""
    if not condition:
        raise ValueError(f"{op} wants {wanted}, got {came}")


def want_shape(op: str, name: str, tensor: Tensor, shape: tuple[int | None, ...], letters: str) -> None:
    """Raise ValueError unless `tensor` has `shape`; None stands for any size; `letters` names the sizes."""
    fits = tensor.dim() == len(shape) and all(
        s is None or s == t for s, t in zip(shape, tensor.shape, strict=True)
    )
    sizes = ", ".join("*" if s is None else str(s) for s in shape)
    want(fits, op, f"{name} of shape {letters} = ({sizes})", tuple(tensor.shape))


def want_alike(op: str, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless all tensors are of one floating dtype and on one device."""
    kinds = {name: (t.dtype, t.device) for name, t in tensors.items()}
    first = next(iter(tensors.values()))
    want(first.is_floating_point(), op, "a floating dtype", first.dtype)
    if len(set(kinds.values())) > 1:
        listing = ", ".join(f"{name} {dtype} on {device}" for name, (dtype, device) in kinds.items())
        want(False, op, "one dtype and one device", listing)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the tensor's device; None outside autocast."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
