"""When a fast form is worth its call, for shapes at which the original may be faster."""

import torch
from torch import Tensor

# Queries of all heads together, up to which absorbing them pays: every 16 of them read the tokens once.
_MOST_QUERIES = 64
# Operations of the original on a CUDA device, above which the fast form saves more than Python takes to call
# it: about 0.1 ms more than torch's own functions, in which an H100 does so many.
_LEAST_ON_CUDA = 5e10


def _hides_python(tensor: Tensor, flop: float) -> bool:
    """Whether the call is compiled, captured, on the CPU, or long enough to hide Python."""
    if not tensor.is_cuda or flop >= _LEAST_ON_CUDA:
        return True
    return torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()


def absorbing_pays(queries: int, num_heads: int, tokens: Tensor) -> bool:
    """Whether few queries over tokens (B, N, C) are faster without keys and values (4 B N C^2 operations)."""
    B, N, C = tokens.shape
    few = queries * num_heads <= _MOST_QUERIES and 4 * queries < N
    return few and _hides_python(tokens, 4.0 * B * N * C * C)


def fusing_pays(tokens: Tensor, length: int, width: int) -> bool:
    """Whether self-attention of length N and width C is faster fused (4 B N^2 C operations)."""
    return _hides_python(tokens, 4.0 * tokens.shape[0] * length * length * width)
