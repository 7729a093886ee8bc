"""Checks of the frames that a model is given. While something traces, values are not read."""

import math

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .inputs import ModelInputs
from .ops.checks import DTYPES
from .ops.choice import transformed

# Frames normalised by ImageNet's mean and std lie in -2.2..2.7, other normalisations near that.
LARGEST_NORMALISED = 32.0


def check_tensor(name: str, frames: object, letters: str) -> None:
    """Raise ValueError unless `frames` is a tensor of bytes or floats with the five dimensions `letters`."""
    if not isinstance(frames, Tensor):
        raise ValueError(f"{name} expected a tensor {letters}, got {type(frames).__name__}")
    if frames.dim() != 5 or frames.shape[1] != 3:
        raise ValueError(f"{name} expected shape {letters}, got {tuple(frames.shape)}")
    if frames.dtype not in (torch.uint8, *DTYPES):
        raise ValueError(f"{name} expected uint8, float16, bfloat16, float32 or float64, got {frames.dtype}")


def check_packed(length: int, num_special: int, depth: int, inputs: ModelInputs | None) -> None:
    """Raise ValueError unless `length` frames without `special` can be T video and then the special frames.

    T is a multiple of `depth`, that of the tubelets. If the model was trained on exactly `length` video
    frames, the special frames were forgotten.
    """
    packing = f"video without special expected T + {num_special} frames, the last ones onset and apex"
    if length < depth + num_special or (length - num_special) % depth:
        raise ValueError(f"{packing}, T a positive multiple of {depth}, got {length} frames")
    if inputs is not None and not torch.compiler.is_compiling() and length == inputs.num_frames:
        raise ValueError(f"{packing}, got only the {length} video frames that the model was trained with")


def may_read(frames: Tensor) -> bool:
    """Whether Python may read values of `frames`: nothing traces, transforms or captures this call."""
    return not (
        torch.compiler.is_compiling()
        or type(frames) not in (Tensor, nn.Parameter)
        or frames.is_meta
        or transformed()
        or _get_current_dispatch_mode() is not None
        or (frames.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def check_values(name: str, frames: Tensor, *, or_flow: bool) -> None:
    """Raise ValueError for float frames with the values of bytes, 0..255.

    or_flow: the frames may be optical flow, whose large values have both signs.
    """
    if frames.numel() == 0:
        return
    largest = frames.detach().amax().item()
    if LARGEST_NORMALISED < largest < math.inf and not (or_flow and frames.detach().amin().item() < 0):
        raise ValueError(
            f"{name} expected uint8, or floats normalised by ImageNet's mean and std, got values up to "
            f"{largest:g}: pass the bytes as uint8, which the model normalises"
        )


def other_size(name: str, frames: Tensor, inputs: ModelInputs) -> str | None:
    """How `frames` (B, 3, T, H, W) differ from what the model was trained on; None if they do not."""
    size = tuple(frames.shape[2:])
    T = inputs.num_frames if name == "video" else size[0]
    if size == (T, inputs.image_size, inputs.image_size):
        return None
    trained = f"{T} frames of {inputs.image_size} x {inputs.image_size}"
    return f"{name} has {size[0]} frames of {size[1]} x {size[2]}; the model was trained with {trained}"
