"""What the backward computes a second time, so that the forward leaves less in memory.

For the gradients of a USTA layer on x (B, N, C) the backward needs, per token: x and x + attention (C numbers
each), both normed (C each), q, k, v (3 C), the attended values (C), fc1's result and its GELU (4 C each).

    fast      keeps all of them: 16 C
    balanced  keeps x, the attended values, and each product that is not narrower than its input (q, k, v;
              proj; fc1): 10 C. Norms, GELU, dropout and sums are computed again, no product is.
    small     keeps x and the attended values: 2 C. Of the products fc2 alone is not computed again: no
              gradient needs its result.

Attention is never computed again: it costs most, and more with every frame, and its result is small. The
numbers are the same in all three where the same implementation multiplies: torch.utils.checkpoint repeats
dropout's draws and autocast's dtypes. On a CPU, balanced and small multiply with torch's product
where fast may take the C++ one (`ops.linear`), whose last bits differ: its GELU is part of the product, so
that fc1's result cannot be kept without it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .ops.checks import check, short
from .ops.choice import exporting, transformed

Memory = Literal["fast", "balanced", "small"]

# Ours, and those to which torch's scaled_dot_product_attention leads.
_ATTENTION = ("hsta_fast::space_time_attention", "aten::_scaled_dot_product")
_PRODUCTS = ("aten::mm", "aten::addmm")


def _is_kept(memory: Memory, _: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether the result of `op` is kept for the backward, as `create_selective_checkpoint_contexts` asks."""
    name = op._schema.name if isinstance(op, torch._ops.OpOverload) else ""
    keep = name.startswith(_ATTENTION)
    if memory == "balanced" and name in _PRODUCTS:
        width_in, width_out = args[-1].shape  # of the weight, transposed
        keep = width_out >= width_in
    elif memory == "balanced" and name == "hsta_fast::linear_compiled":
        width_out, width_in = args[1].shape
        keep = width_out >= width_in
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


_CONTEXTS = {
    memory: partial(create_selective_checkpoint_contexts, partial(_is_kept, memory))
    for memory in ("balanced", "small")
}


class Recomputed(nn.Module):
    """A module whose forward can keep less for the backward; see `set_memory`."""

    memory: Memory = "fast"

    def recomputed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x), of which the backward computes again what `memory` says."""
        # Checkpoints work with hooks on what autograd saves, which torch.func and exported programs lack.
        without_hooks = transformed() or exporting()
        if self.memory == "fast" or not torch.is_grad_enabled() or without_hooks:
            return function(x)
        contexts = _CONTEXTS[self.memory]
        return checkpoint(
            function, x, use_reentrant=False, preserve_rng_state=self.training, context_fn=contexts
        )


def set_memory(model: nn.Module, memory: Memory) -> None:
    """Choose what the USTA layers of `model` keep in memory for the backward.

    The numbers stay the same, except for rounding on a CPU: where "fast" multiplies in C++
    (`info()` says so), the others multiply with torch.

    Args:
        model: an HSTA, also in wrappers such as torch.compile's or DistributedDataParallel.
        memory: "fast": everything that the backward needs, as without this function; "balanced": norms and
            activations are computed again, about two thirds of the memory; "small": all but the attention,
            about a quarter of it, for 19 % (6 frames) to 6 % (128 frames) more operations in a step of
            hsta_base. With "balanced" and "small" there is one backward for each forward: not retain_graph
            and a second one.

    Raises:
        ValueError: a model without USTA layers, such as one that was rounded to int8, or another `memory`.
    """
    expected = "a model with USTA layers to train, such as an HSTA"
    check(isinstance(model, nn.Module), "model", expected, short(model))
    known = get_args(Memory)
    check(isinstance(memory, str) and memory in known, "memory", f"one of {', '.join(known)}", short(memory))
    found = apply_memory(model, memory)
    check(found > 0, "model", expected, f"{type(model).__name__} without any")


def apply_memory(model: nn.Module, memory: Memory) -> int:
    """As `set_memory`, for a model that may have no USTA layers; returns how many it has."""
    layers = [module for module in model.modules() if isinstance(module, Recomputed)]
    for layer in layers:
        layer.memory = memory
    return len(layers)
