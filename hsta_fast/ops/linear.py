"""linear: the product of a linear layer, bias and GELU included. The specification is in `reference`.

On the CPU in float32 the extension multiplies (csrc/linear.cpp) where that was measured to be faster than
torch (`hsta_fast.cpu_speed`). It copies the weight in every call, panel by panel, and keeps nothing: a weight
may change in any way between two calls. While torch.export traces, torch's own ops run, which quantisers
recognise; for torch.compile see `linear_compiled`.

M rows, K columns of the input, N columns of the output.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .. import cpu_speed, extension, reference
from .checks import autocast_dtype, check_shape, unexpected
from .choice import Choice, check_supported, resolve, transformed
from .linear_compiled import linear_compiled, taken
from .registration import plain_backward, plain_gradients

IMPLS = ("extension", "torch")
_PLAIN = (Tensor, nn.Parameter)  # subclasses have products of their own
_LEAST_WORK = 1 << 25  # M K N from which on the time of the call itself does not matter


def auto_choice(device: torch.device, dtype: torch.dtype, width: int = 768) -> Choice:
    """The implementation that `impl="auto"` takes for many rows of `width` columns. Measures nothing."""
    reason = None
    if device.type != "cpu":
        reason = f"{device.type} is not a CPU"
    elif dtype != torch.float32:
        reason = f"{dtype} is not float32"
    else:
        reason = extension.unsupported_reason("cpu")
    if reason is not None:
        return Choice("torch", f"torch's own product: {reason}")
    speed = cpu_speed.known()
    if speed is None:
        return Choice("extension", "if it is the faster one here, which is measured at the first product")
    rates = speed.rates(width)
    measured = f"{rates.panels:.0f} GFLOP/s in C++, {rates.torch:.0f} in torch at width {width}"
    return Choice("extension" if rates.panels_pay() else "torch", measured)


def _unsupported_reason(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the extension cannot take such inputs; None if it can."""
    given = (x, weight) if bias is None else (x, weight, bias)
    for tensor in given:
        if type(tensor) not in _PLAIN:
            return f"{type(tensor).__name__} is a class of its own"
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or tensor.layout != torch.strided:
            return f"{tensor.dtype} on {tensor.device} is not float32 on the CPU"
    if autocast_dtype(x) not in (None, torch.float32):
        return "autocast multiplies in another dtype"
    if not weight.is_contiguous() or (bias is not None and not bias.is_contiguous()):
        return "weight or bias is not contiguous"
    if x.numel() == 0 or weight.numel() == 0:
        return "there is nothing to multiply"
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return "the call is being traced, or watched by a mode"
    return extension.unsupported_reason("cpu")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        y, before = torch.ops.hsta_fast.linear_product(x, weight, bias, False, gelu, gelu)
        ctx.gelu = gelu
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, before if gelu else None)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None
        x, weight, bias, before = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        if plain_backward(dy):
            inputs = [x, weight] if bias is None else [x, weight, bias]

            def plain(*given: Tensor) -> Tensor:
                return reference.linear(*given, gelu=ctx.gelu)

            gradients = plain_gradients(plain, inputs, ctx.needs_input_grad[: len(inputs)], dy)
            return *gradients, *[None] * (4 - len(inputs))
        dy = dy.contiguous()
        if ctx.gelu:
            dy = torch.ops.aten.gelu_backward(dy, before)
        rows = dy.view(-1, dy.shape[-1])
        dx = torch.ops.hsta_fast.linear_product(dy, weight, None, True, False, False)[0] if need_x else None
        dweight = rows.t() @ x.view(-1, x.shape[-1]) if need_weight else None
        return dx, dweight, rows.sum(0) if need_bias else None, None


def _extension(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    x = x.contiguous()
    given = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return _Linear.apply(x, weight, bias, gelu)
    return torch.ops.hsta_fast.linear_product(x, weight, bias, False, gelu, False)[0]


def _auto(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    if torch.compiler.is_compiling() or x.numel() * weight.shape[0] < _LEAST_WORK or transformed():
        return "torch"
    if _unsupported_reason(x, weight, bias) is not None or not extension.usable("cpu", "auto"):
        return "torch"
    return "extension" if cpu_speed.measured().rates(min(weight.shape)).panels_pay() else "torch"


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, impl: str = "auto"
) -> Tensor:
    """The product x W' + b, as torch.nn.functional.linear; with `gelu`, exact GELU of it.

    Args:
        x: (..., K).
        weight: W (N, K).
        bias: b (N,).
        gelu: apply x Phi(x), Phi the normal distribution.
        impl: "auto", "extension" or "torch". The extension takes contiguous float32 weights on the CPU and
            any strides of `x`, outside of autocast, torch.func, forward mode, torch.compile and dispatch
            modes. "auto" is the extension for large products where it takes the inputs and was measured to
            be faster here, else torch.

    Returns:
        (..., N).

    Raises:
        ValueError: shapes that do not match, an unknown `impl`, or "extension" where it cannot run.
        BuildError: "extension", and it cannot be built.
    """
    if x.dim() == 0:
        raise unexpected("x", "shape (..., K)", tuple(x.shape))
    check_shape("weight", weight, (None, x.shape[-1]), "(N, K)")
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],), "(N,)")
    if impl == "auto" and torch.compiler.is_compiling() and taken(x, weight, bias):
        return linear_compiled(x, weight, bias, gelu)
    if impl == "auto":
        chosen = _auto(x, weight, bias)
    else:
        chosen = resolve(impl, Choice("torch", ""), IMPLS)
        if chosen == "extension":
            check_supported("extension", _unsupported_reason(x, weight, bias))
            extension.usable("cpu", impl)
    if chosen == "extension":
        return _extension(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y
