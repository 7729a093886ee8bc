"""Linear layers of a transformer block on int8, for inference on the CPU.

Activations are rounded as they come (dynamic quantisation): each row x (K) to bytes u with a step s and a
zero point z of its own, x ~ s (u - z), over the row's range with zero included. Weights are rounded once:
each output's row to integers w in [-127, 127] with a step t of its own. The products are exact integers:

    y = s t (sum_k u_k w_k - z sum_k w_k) + bias

The two ops are registered, so that torch.compile sees each as one node. They have no gradient.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import extension
from .choice import Choice
from .registration import register

PANEL, DEEP = 64, 4  # as in csrc/int8_linear.cpp


def auto_choice() -> Choice:
    """The implementation that runs on this CPU."""
    reason = "the CPU lacks AVX-512 VNNI" if not torch.cpu._is_vnni_supported() else None
    if not torch.backends.mkldnn.enabled:
        reason = "oneDNN is switched off"
    reason = reason or extension.unsupported_reason("cpu")
    if reason is None:
        return Choice("extension", "one pass in C++ from norm to residual")
    return Choice("torch", f"torch's int8 matrix product: {reason}")


def pack(weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The four tensors that the ops take as a linear layer, from its weight (O, K) and bias (O,), float32.

    Returns:
        weight (ceil(O / 64), ceil(K / 4), 64, 4) int8, zero where padded; step (O,) float32; sums (O,) int32
        of each output's integers; bias (O,) float32.
    """
    outputs, inputs = weight.shape
    step = F.pad(weight.abs(), (0, 1)).amax(1) / 127  # 0 without inputs
    rounded = (weight / torch.where(step > 0, step, 1)[:, None]).round().clamp(-127, 127).to(torch.int8)
    padded = F.pad(rounded, (0, -inputs % DEEP, 0, -outputs % PANEL))
    packed = (
        padded.view(padded.shape[0] // PANEL, PANEL, padded.shape[1] // DEEP, DEEP)
        .transpose(1, 2)
        .contiguous()
    )
    bias = torch.zeros_like(step) if bias is None else bias.clone()
    return [packed, step, rounded.sum(1, dtype=torch.int32), bias]


def _round_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows x (R, K) -> u - 128 (R, K) int8, step (R, 1), zero point minus 128 (R, 1) int32."""
    low, high = (bound[:, None] for bound in torch.aminmax(F.pad(x, (0, 1)), dim=1))  # zero included
    step = high / 255 - low / 255
    inverse = torch.where(step >= torch.finfo(torch.float32).tiny, 1 / step, 0)
    zero = (-low * inverse).round()
    rounded = (x * inverse + zero).round().clamp(0, 255) - 128
    finite = step.isfinite()
    zero = torch.where(finite, zero - 128, 0).to(torch.int32)
    return torch.where(finite, rounded, 0).to(torch.int8), torch.where(finite, step, torch.nan), zero


def _product(x: Tensor, linear: list[Tensor]) -> Tensor:
    """(..., K) -> (..., O)."""
    packed, step, sums, bias = linear
    matrix = packed.permute(1, 3, 0, 2).reshape(
        packed.shape[1] * DEEP, packed.shape[0] * PANEL
    )  # (K, O), padded
    rounded, row_step, zero = _round_rows(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
    products = torch._int_mm(F.pad(rounded, (0, matrix.shape[0] - x.shape[-1])), matrix)[:, : bias.numel()]
    y = (products - zero * sums).float() * (row_step * step) + bias
    return y.view(*x.shape[:-1], bias.numel())


def _normed(x: Tensor, norm: list[Tensor], eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm[0], norm[1], eps) if norm else x


def _linear(
    x: Tensor, norm: list[Tensor], eps: float, linear: list[Tensor], residual: Tensor | None, impl: str
) -> Tensor:
    if _in_extension(impl):
        residual = None if residual is None else residual.contiguous()
        return torch.ops.hsta_fast.int8_linear_fwd(x.contiguous(), norm, eps, linear, residual)
    y = _product(_normed(x, norm, eps), linear)
    return y if residual is None else residual + y


def _fake_linear(
    x: Tensor, norm: list[Tensor], eps: float, linear: list[Tensor], residual: Tensor | None, impl: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], linear[3].numel()))


def _mlp(
    x: Tensor, norm: list[Tensor], eps: float, fc1: list[Tensor], fc2: list[Tensor], impl: str
) -> Tensor:
    if _in_extension(impl):
        return torch.ops.hsta_fast.int8_mlp_fwd(x.contiguous(), norm, eps, fc1, fc2)
    return x + _product(F.gelu(_product(_normed(x, norm, eps), fc1)), fc2)


def _fake_mlp(
    x: Tensor, norm: list[Tensor], eps: float, fc1: list[Tensor], fc2: list[Tensor], impl: str
) -> Tensor:
    return x.new_empty(x.shape)


def _in_extension(impl: str) -> bool:
    if impl == "auto" and auto_choice().impl == "torch":
        return False
    return impl != "torch" and extension.usable("cpu", impl)


#: x (..., K) -> residual + linear(norm(x)) (..., O); `norm` is [weight, bias] of a layer norm, or [].
int8_linear = register("int8_linear", _linear, _fake_linear)
#: x (..., K) -> x + fc2(gelu(fc1(norm(x)))) (..., K).
int8_mlp = register("int8_mlp", _mlp, _fake_mlp)
