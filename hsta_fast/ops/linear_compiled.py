"""linear in code that torch.compile makes on a CPU: a registered op in each direction, with the C++ product.

The compiler does not see into it, so that it is taken only where it was measured to be faster than torch's
product. GELU is part of the forward; its derivative is left to the compiler, which fuses it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import cpu_speed, extension
from .checks import autocast_dtype
from .choice import exporting, transformed
from .registration import register

PLAIN = (Tensor, nn.Parameter)  # subclasses have products of their own
# Of both sides of the weight: narrower products were not timed. The number of rows does not count: a graph
# would be compiled again for few rows.
_LEAST_WIDTH = 192


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    if x.numel() and extension.usable("cpu", "auto"):
        bias = None if bias is None else bias.contiguous()
        made: tuple[Tensor, Tensor] = torch.ops.hsta_fast.linear_product(
            x.contiguous(), weight.contiguous(), bias, turned, gelu, keep
        )
        return made
    y = F.linear(x, weight.t() if turned else weight, bias)
    return (F.gelu(y) if gelu else y), (y.clone() if gelu and keep else y.new_empty(0))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """(y, what GELU was applied to if the backward will need it: `keep`)."""
    return _product(x, weight, bias, False, gelu, keep)


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:-1], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape if gelu and keep else 0)


def _input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    return _product(dy, weight, None, True, False, False)[0]


def _fake_input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    return dy.new_empty((*dy.shape[:-1], weight.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.gelu, _ = inputs
    ctx.has_bias = bias is not None
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def _autograd(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 5
    x, weight, before = ctx.saved_tensors
    if ctx.gelu:
        dy = torch.ops.aten.gelu_backward(dy, before)
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    rows = dy.reshape(-1, dy.shape[-1])
    dx = _bwd(dy, weight) if need_x else None
    dweight = rows.t() @ x.reshape(-1, x.shape[-1]) if need_weight else None
    return dx, dweight, rows.sum(0) if ctx.has_bias and need_bias else None, None, None


_fwd = register("linear_compiled", _forward, _fake_forward, backward=_autograd, setup_context=_setup_context)
_bwd = register("linear_compiled_backward", _input_gradient, _fake_input_gradient)


def _pays(width: int) -> bool:
    return extension.unsupported_reason("cpu") is None and cpu_speed.measured().rates(width).panels_pay()


# What torch.compiler.assume_constant_result does, which imports Triton.
_pays._dynamo_marked_constant = True  # type: ignore[attr-defined]


def taken(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether compiled code calls the product in C++; called while torch.compile traces."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if any(type(t) not in PLAIN for t in given):
        return False
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in given):
        return False
    if exporting() or transformed() or autocast_dtype(x) not in (None, torch.float32):
        return False
    N, K = weight.shape
    return isinstance(N, int) and isinstance(K, int) and min(N, K) >= _LEAST_WIDTH and _pays(min(N, K))


def linear_compiled(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """The product x W' + b, and with `gelu` GELU of it, for code that `taken` was asked for."""
    keep = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    y: Tensor = _fwd(x, weight, bias, gelu, keep)[0]
    return y
