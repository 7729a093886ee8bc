"""linear: the product of a linear layer, bias and GELU included. The specification is in `reference`.

On the CPU the extension multiplies where that was measured to be faster than torch (`hsta_fast.cpu_speed`):
in float32 (csrc/linear.cpp), and on processors with AVX512_BF16 in bfloat16 (csrc/bfloat16_linear.cpp).
Under autocast to bfloat16 it rounds float32 operands as it copies them, and adds up in float32. It copies
the weight in every call, panel by panel, and keeps nothing: a weight may change in any way between two
calls. While torch.export traces, torch's own ops run, which quantisers recognise; for torch.compile see
`linear_compiled`.

M rows, K columns of the input, N columns of the output.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .. import cpu_speed, extension, reference
from .checks import autocast_dtype, check_shape, unexpected
from .choice import Choice, check_supported, resolve, transformed
from .linear_compiled import PLAIN, linear_compiled, taken
from .registration import plain_backward, plain_gradients

IMPLS = ("extension", "torch")
_NO_BFLOAT16 = "this processor has no instruction for bfloat16"
_LEAST_WORK = 1 << 25  # M K N from which on the time of the call itself does not matter


def auto_choice(device: torch.device, dtype: torch.dtype, width: int = 768) -> Choice:
    """The implementation that `impl="auto"` takes for many rows of `width` columns. Measures nothing."""
    reason = None
    if device.type != "cpu":
        reason = f"{device.type} is not a CPU"
    elif dtype not in (torch.float32, torch.bfloat16):
        reason = f"{dtype} is neither float32 nor bfloat16"
    elif dtype == torch.bfloat16 and not cpu_speed.has_bfloat16_instruction():
        reason = _NO_BFLOAT16
    else:
        reason = extension.unsupported_reason("cpu")
    if reason is not None:
        return Choice("torch", f"torch's own product: {reason}")
    speed = cpu_speed.known()
    if speed is None:
        return Choice("extension", "if it is the faster one here, which is measured at the first product")
    rates = speed.rates(width)
    pays, ours, torchs = rates.panels_pay(), rates.panels, rates.torch
    if dtype == torch.bfloat16:
        pays, ours, torchs = rates.autocast_panels_pay(), rates.autocast_panels, rates.autocast
    measured = f"{ours:.0f} GFLOP/s in C++, {torchs:.0f} in torch at width {width}"
    return Choice("extension" if pays else "torch", measured)


def _dtype(x: Tensor) -> torch.dtype:
    """Of the product: that of autocast, else of x."""
    return autocast_dtype(x) or x.dtype


def _unsupported_reason(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the extension cannot take such inputs; None if it can."""
    given = (x, weight) if bias is None else (x, weight, bias)
    dtype = _dtype(x)
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the product is in {dtype}, not in float32 or bfloat16 on the CPU"
    if dtype == torch.bfloat16 and not cpu_speed.has_bfloat16_instruction():
        return _NO_BFLOAT16
    taken = {dtype, torch.float32} if autocast_dtype(x) == torch.bfloat16 else {dtype}
    for tensor in given:
        if type(tensor) not in PLAIN:
            return f"{type(tensor).__name__} is a class of its own"
        if tensor.device.type != "cpu" or tensor.dtype not in taken or tensor.layout != torch.strided:
            return f"{tensor.dtype} on {tensor.device} is not {dtype} on the CPU"
    if not weight.is_contiguous() or (bias is not None and not bias.is_contiguous()):
        return "weight or bias is not contiguous"
    if x.numel() == 0 or weight.numel() == 0:
        return "there is nothing to multiply"
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return "the call is being traced, or watched by a mode"
    unsupported = extension.unsupported_reason("cpu")
    if unsupported is None and dtype == torch.bfloat16 and not cpu_speed.multiplies_bfloat16():
        return "oneDNN is turned off, or limited to other instructions"
    return unsupported


def _multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    turned: bool,
    gelu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    ops = torch.ops.hsta_fast
    product = ops.linear_product if dtype == torch.float32 else ops.linear_product_bfloat16
    return product(x, weight, bias, turned, gelu, keep)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        y, before = _multiply(x, weight, bias, x.dtype, turned=False, gelu=gelu, keep=gelu)
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
                return reference.linear(*(t.to(x.dtype) for t in given), gelu=ctx.gelu)

            gradients = plain_gradients(plain, inputs, ctx.needs_input_grad[: len(inputs)], dy)
            return *gradients, *[None] * (4 - len(inputs))
        dy = dy.contiguous()
        if ctx.gelu:
            dy = torch.ops.aten.gelu_backward(dy, before)
        rows = dy.view(-1, dy.shape[-1])
        dx = dweight = dbias = None
        if need_x:
            dx, _ = _multiply(dy, weight, None, x.dtype, turned=True, gelu=False, keep=False)
        if need_weight:
            dweight = (rows.t() @ x.view(-1, x.shape[-1])).to(weight.dtype)
        if bias is not None and need_bias:
            dbias = rows.sum(0).to(bias.dtype)
        return dx, dweight, dbias, None


def _extension(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    x, dtype = x.contiguous(), _dtype(x)
    given = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        # Rounded before: so the backward keeps x in `dtype`, as autocast would.
        return _Linear.apply(x.to(dtype), weight, bias, gelu)
    return _multiply(x, weight, bias, dtype, turned=False, gelu=gelu, keep=False)[0]


def _auto(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    if torch.compiler.is_compiling() or x.numel() * weight.shape[0] < _LEAST_WORK or transformed():
        return "torch"
    if _unsupported_reason(x, weight, bias) is not None or not extension.usable("cpu", "auto"):
        return "torch"
    rates = cpu_speed.measured().rates(min(weight.shape))
    pays = rates.autocast_panels_pay() if _dtype(x) == torch.bfloat16 else rates.panels_pay()
    return "extension" if pays else "torch"


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, impl: str = "auto"
) -> Tensor:
    """The product x W' + b, as torch.nn.functional.linear; with `gelu`, exact GELU of it.

    Args:
        x: (..., K).
        weight: W (N, K).
        bias: b (N,).
        gelu: apply x Phi(x), Phi the normal distribution.
        impl: "auto", "extension" or "torch". The extension takes contiguous weights on the CPU and any
            strides of `x`, in float32, in bfloat16, and in float32 under autocast to bfloat16, outside of
            torch.func, forward mode, torch.compile and dispatch modes. "auto" is the extension for large
            products where it takes the inputs and was measured to be faster here, else torch.

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
