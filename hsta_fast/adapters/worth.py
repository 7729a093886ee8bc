"""When a fast form is worth its call, for shapes at which the original may be faster."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Queries of all heads together, up to which absorbing them pays: every 16 of them read the tokens once.
MOST_QUERIES = 64
# Operations of the original, above which the fast form saves more than Python takes to call it: on an H100
# that is 0.1 to 0.4 ms more than torch's own functions take, with the backward.
_LEAST = {"cuda": 1e11, "cpu": 3e7}
# Values of a patch, from which a product of patches is as fast as a convolution on a CPU.
_LEAST_PATCH = 256

_always = False


@contextmanager
def always() -> Iterator[None]:
    """Fast forms run at any shape, as when they are compared."""
    global _always
    _always, before = True, _always
    try:
        yield
    finally:
        _always = before


def _hides_python(tensor: Tensor, flop: float) -> bool:
    """Whether a call is long enough to hide Python, or compiled, or captured in a CUDA graph."""
    if torch.compiler.is_compiling() or _always or flop >= _LEAST.get(tensor.device.type, 0.0):
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def absorbing_pays(queries: int, num_heads: int, tokens: Tensor) -> bool:
    """Whether few queries over tokens (B, N, C) are faster without keys and values (4 B N C^2 operations)."""
    if queries * num_heads > MOST_QUERIES:
        return False
    if torch.compiler.is_compiling() or _always:  # a graph would be specialised to the lengths seen
        return True
    B, N, C = tokens.shape
    return 4 * queries < N and _hides_python(tokens, 4.0 * B * N * C * C)


def fusing_pays(tokens: Tensor, length: int, width: int) -> bool:
    """Whether self-attention of length N and width C is faster fused (4 B N^2 C operations)."""
    return _hides_python(tokens, 4.0 * tokens.shape[0] * length * length * width)


def patches_pay(video: Tensor, channels: int, values: int) -> bool:
    """Whether patches of so many values in all channels are multiplied faster than convolved."""
    return _always or video.device.type != "cpu" or patches_pay_on_cpu(channels, values)


def patches_pay_on_cpu(channels: int, values: int) -> bool:
    """The same on a CPU."""
    return channels == 3 and values >= _LEAST_PATCH
