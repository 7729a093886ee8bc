"""space_time_attention: checks, autograd and choice of implementation. The specification is in `reference`.

The Triton and C++ paths are two registered ops, forward and backward, so that torch.compile sees each as one
node. Triton, the kernels and the extension are loaded when such an op first runs.
"""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from .. import extension
from .attention_backends import forced_order, timed_backend
from .attention_pool_torch import accumulation_dtype
from .checks import (
    autocast_dtype,
    check,
    check_floating,
    check_same,
    check_shape,
    no_autocast,
    product_dtype,
    unexpected,
)
from .choice import Choice, check_supported, resolve, transformed, triton_unsupported_reason
from .registration import plain_backward, plain_gradients, register

_OP = "space_time_attention"
IMPLS = ("triton", "extension", "torch")
_MAX_WIDTH = 128
# Number of scores (B H N M) up to which computing them all is faster than torch's fused attention, whose
# blocks are larger than a short sequence; without and with a gradient. Measured on 2 AVX-512 cores at D = 16
# to 128.
_SHORT = (2_000_000, 4_000_000)
# With a gradient, the extension is not faster for fewer queries than these that meet more keys than these: it
# copies every key and value, in both directions.
_FEW = (4, 16)
_VECTORS = torch.backends.cpu.get_cpu_capability()  # once, so that torch.compile sees a constant
_EXACT = (torch.float32, torch.float64)  # in 16 bits, scores written to memory would be rounded


def _extension_unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the extension does not support such inputs; None if it does."""
    if device.type != "cpu":
        return f"the inputs are on {device.type}, not on the CPU"
    if dtype == torch.float64:
        return "it computes in float32, and the inputs are float64"
    return extension.unsupported_reason("cpu")


def _unsupported_reason(
    device: torch.device, dtype: torch.dtype, width: int, *, interpret: bool = True
) -> str | None:
    """Why the Triton kernels do not support such inputs; None if they do."""
    too_wide = f"head width {width} is above {_MAX_WIDTH}" if width > _MAX_WIDTH else None
    return triton_unsupported_reason(device, dtype, interpret=interpret) or too_wide


def auto_choice(device: torch.device, dtype: torch.dtype, width: int = 64) -> Choice:
    """The implementation that `impl="auto"` takes for inputs of this device, dtype and head width."""
    if device.type == "cpu":
        reason = _extension_unsupported_reason(device, dtype)
        if reason is None and _VECTORS not in ("AVX2", "AVX512"):
            reason = f"with {_VECTORS} the extension is not known to be faster"
        if reason is None:
            return Choice("extension", "fused blocks in C++, forward and backward")
        return Choice("torch", f"torch's own attention: {reason}")
    reason = _unsupported_reason(device, dtype, width, interpret=False)
    if reason is None and dtype == torch.float32:
        reason = "in float32 the kernels are not known to be faster"
    if reason is None:
        return Choice("triton", "fused kernels, forward and backward")
    return Choice("torch", f"torch's own attention: {reason}")


def _unpacked(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Views (B, N, H, D), (B, M, H, D), (B, M, H, D) of the packed projection or of three tensors."""
    return q.unbind(2) if k is None or v is None else (q, k, v)  # type: ignore[return-value]


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _lse_shape(q: Tensor, impl: str) -> tuple[int, ...]:
    """(B, H, N) of Triton; (B, H, 2, N) of the extension: the largest score, and the sum of the weights."""
    B, N, H, _ = q.shape
    return (B, H, N) if impl == "triton" else (B, H, 2, N)


def _forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, scale: float, impl: str = "triton"
) -> tuple[Tensor, Tensor]:
    """(out, log-sum-exp to base 2). Without `k` and `v`, `q` is the packed projection."""
    q, k, v = (_unit_stride(x) for x in _unpacked(q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        return out, q.new_zeros(_lse_shape(q, impl), dtype=torch.float32)
    if impl != "triton":
        if extension.usable("cpu", impl):
            return cast(tuple[Tensor, Tensor], torch.ops.hsta_fast.space_time_attention_fwd(q, k, v, scale))
        return _forward_on_torch(q, k, v, scale)
    from ..kernels.space_time_attention import space_time_attention_fwd

    return space_time_attention_fwd(q, k, v, scale)


def _fake_forward(
    q: Tensor, k: Tensor | None, v: Tensor | None, scale: float, impl: str = "triton"
) -> tuple[Tensor, Tensor]:
    first = _unpacked(q, k, v)[0]
    return q.new_empty(first.shape), q.new_empty(_lse_shape(first, impl), dtype=torch.float32)


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    impl: str = "triton",
) -> list[Tensor]:
    """[dqkv], packed as `q`, or [dq, dk, dv]."""
    inputs = [x for x in (q, k, v) if x is not None]
    if out.numel() == 0 or _unpacked(q, k, v)[1].numel() == 0:
        return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    dq, dk, dv = _unpacked(*grads, *[None] * (3 - len(grads)))
    q, k, v = (_unit_stride(x) for x in _unpacked(q, k, v))
    dout = _unit_stride(dout)
    if impl != "triton":
        if extension.usable("cpu", impl):
            bwd = torch.ops.hsta_fast.space_time_attention_bwd
            bwd(dout, q, k, v, out, lse, scale, dq=dq, dk=dk, dv=dv)
        else:
            _backward_on_torch(dout, q, k, v, out, lse, scale, (dq, dk, dv))
        return grads
    from ..kernels.space_time_attention import space_time_attention_bwd

    space_time_attention_bwd(dout, q, k, v, out, lse, scale, dq, dk, dv)
    return grads


def _fake_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    impl: str = "triton",
) -> list[Tensor]:
    inputs = [x for x in (q, k, v) if x is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _forward_on_torch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What the extension returns, where it could not be built."""
    by_head = [x.transpose(1, 2) for x in (q, k, v)]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*by_head, scale=scale)
    stats = torch.stack((lse.float() / math.log(2), torch.ones_like(lse, dtype=torch.float32)), 2)
    return out.transpose(1, 2).contiguous(), stats


def _backward_on_torch(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    into: tuple[Tensor, ...],
) -> None:
    by_head = [x.transpose(1, 2) for x in (dout, q, k, v, out)]
    natural = (lse[:, :, 0] + lse[:, :, 1].log2()) * math.log(2)
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *by_head, natural, 0.0, False, scale=scale
    )
    for to, x in zip(into, grads, strict=True):
        to.copy_(x.transpose(1, 2))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, ctx.impl = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _plain_gradients(ctx: Any, inputs: list[Tensor], dout: Tensor) -> list[Tensor | None]:
    """The gradients of the first arguments, [qkv] or [q, k, v], that torch can differentiate again."""

    def attended(*x: Tensor) -> Tensor:
        wide = [y.to(accumulation_dtype(y.dtype)) for y in x]
        return _products(*_unpacked(*wide, *[None] * (3 - len(wide))), ctx.scale).to(dout.dtype)

    return plain_gradients(attended, inputs, ctx.needs_input_grad[: len(inputs)], dout)


def _autograd(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 5
    q, k, v, *results = ctx.saved_tensors
    if plain_backward(dout):
        grads = _plain_gradients(ctx, [x for x in (q, k, v) if x is not None], dout)
    else:
        grads = _bwd(dout, q, k, v, *results, ctx.scale, ctx.impl)
    return *grads, *[None] * (5 - len(grads))


_fwd = register(_OP, _forward, _fake_forward, backward=_autograd, setup_context=_setup_context)
_bwd = register(f"{_OP}_backward", _backward, _fake_backward)


def _warn_without_extension() -> None:
    if not torch.compiler.is_compiling() and (reason := extension.unsupported_reason("cpu")) is not None:
        extension.warn_of(reason)


def _products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Two products and a softmax; all scores are written to memory."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return ((q * scale @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2)


class _PlainWhenDifferentiatedTwice(torch.autograd.Function):
    """`out` of torch's fused attention, whose backward torch cannot differentiate.

    An ordinary backward hands the gradient on to `out`. Any other computes those of q, k and v by the plain
    formula, and hands on nothing.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None or not plain_backward(dout):
            return None, None, None, dout, None
        return *_plain_gradients(ctx, list(ctx.saved_tensors), dout), None, None


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _few_queries(q: Tensor, k: Tensor, v: Tensor | None) -> bool:
    """Whether torch is faster on the CPU because few queries meet many keys."""
    if torch.compiler.is_compiling() or v is None or q.dtype not in _EXACT:
        return False  # a graph would be specialised to the lengths seen
    queries, keys = _FEW
    return q.shape[1] < queries and k.shape[1] > keys and _needs_grad(q, k, v)


def _torch(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str | None = None) -> Tensor:
    """Torch's fused attention, by a backend; for short sequences on the CPU, two products and a softmax."""
    dtype = product_dtype(q.device, q.dtype)
    if dtype != q.dtype:
        with no_autocast(q):
            return _torch(q.to(dtype), k.to(dtype), v.to(dtype), scale, backend).to(q.dtype)
    if transformed():  # torch's fused attention has no forward mode and no second derivatives
        return _products(q, k, v, scale)
    # Not while tracing: the graph would be specialised to the lengths seen.
    compiling = torch.compiler.is_compiling()
    needs_grad = _needs_grad(q, k, v)
    if q.device.type == "cpu" and q.dtype in _EXACT and not compiling:
        short = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1] <= _SHORT[needs_grad]
        if short:
            return _products(q, k, v, scale)
    by_head = [x.transpose(1, 2) for x in (q, k, v)]  # torch's function takes (B, H, N, D)
    if backend is None:
        out = F.scaled_dot_product_attention(by_head[0], by_head[1], by_head[2], scale=scale).transpose(1, 2)
    else:
        with sdpa_kernel(forced_order(backend), set_priority=True):
            out = F.scaled_dot_product_attention(by_head[0], by_head[1], by_head[2], scale=scale)
        out = out.transpose(1, 2)
    if needs_grad and not compiling:
        return cast(Tensor, _PlainWhenDifferentiatedTwice.apply(q, k, v, out, scale))
    return out


def space_time_attention(
    qkv: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    scale: float | None = None,
    layout: str = "BNHD",
    impl: str = "auto",
) -> Tensor:
    """softmax(scale * q k') v per head: every space-time token attends to every other (HSTA, Eq. 3).

    Called as `space_time_attention(qkv)` or `space_time_attention(q, k, v)`.

    Args:
        qkv: (B, N, 3, H, D), the packed projection; or q (B, N, H, D) when `k` and `v` are given. Any
            strides: a last one other than 1 costs a copy, others that are not multiples of 16 are slower.
        k: (B, M, H, D); M may differ from N.
        v: (B, M, H, D).
        layout: "BNHD", or "BHND" for q, k, v and the result with heads before tokens, (B, H, N, D), as
            scaled_dot_product_attention has them. No tensor is copied for it. The shapes alone do not say
            which one is meant: with the wrong one heads would attend to heads, without an error.
        scale: factor of the scores, a number of either sign; D ** -0.5 when None.
        impl: "auto", "triton", "extension" or "torch". Triton supports float32, float16 and bfloat16 with
            D <= 128 on CUDA devices of compute capability >= 8.0, and on the CPU under TRITON_INTERPRET=1.
            The extension supports the same dtypes on the CPU, with float32 arithmetic inside, if a C++
            compiler can build it. "auto" is Triton in 16 bits on CUDA devices where it can run, except at
            lengths where benchmarks/tune.py timed one of torch's backends faster on it; the extension
            on CPUs with AVX2 or AVX-512 where it can run, except in float64, and in float32 with a gradient
            for fewer than 4 queries against more than 16 keys; else torch's own attention
            ("torch": on the CPU two matrix products and a softmax for short sequences, else
            scaled_dot_product_attention; float16 in float32 there, rounded once). Second derivatives are
            those of the plain formula, which writes all scores to memory; compiled code has none.
            Triton's float32 is exact to float32 rounding, on tensor cores, unless
            torch.backends.cuda.matmul.fp32_precision is "ieee" or "tf32".

    Returns:
        (B, N, H, D), in the dtype of the input (float16, bfloat16, float32 or float64) or autocast's. In
        layout "BHND" (B, H, N, D), with the strides of a transposed (B, N, H, D).

    Raises:
        ValueError: shapes, dtypes or devices that do not match, an unknown `layout` or `impl`, "BHND" with
            the packed projection, or "triton" or "extension" where it cannot run.
        BuildError: impl="extension", and it cannot be built or loaded.
    """
    check((k is None) == (v is None), "arguments", "(qkv) or (q, k, v)", "only one of k and v")
    if layout not in ("BNHD", "BHND"):
        raise unexpected("layout", '"BNHD" or "BHND"', repr(layout))
    if k is None or v is None:
        check_shape("qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
        check(layout == "BNHD", "layout", '"BNHD" for the packed projection', repr(layout))
    elif layout == "BHND":
        check_shape("q", qkv, (None, None, None, None), "(B, H, N, D)")
        B, H, _, D = qkv.shape
        check_shape("k", k, (B, H, None, D), "(B, H, M, D)")
        check_shape("v", v, (B, H, k.shape[2], D), "(B, H, M, D)")
        by_token = [x.transpose(1, 2) for x in (qkv, k, v)]
        return space_time_attention(*by_token, scale=scale, impl=impl).transpose(1, 2)
    else:
        check_shape("q", qkv, (None, None, None, None), "(B, N, H, D)")
        B, _, H, D = qkv.shape
        check_shape("k", k, (B, None, H, D), "(B, M, H, D)")
        check_shape("v", v, (B, k.shape[1], H, D), "(B, M, H, D)")
    width = qkv.shape[-1]
    check(width > 0, "qkv" if k is None else "q", "a head width D >= 1", width)
    # An int becomes a float: Triton would compile the kernels again for a scale of 1.
    scale = width**-0.5 if scale is None else float(scale) if isinstance(scale, int) else scale
    if not isinstance(scale, (float, int, torch.SymFloat, torch.SymInt)):
        raise unexpected("scale", "a number (multiply a learned scale into q)", type(scale).__name__)
    asked = autocast_dtype(qkv)
    if asked is not None and qkv.dtype != torch.float64:  # as autocast does for torch's attention
        check_floating({"qkv": qkv} if k is None or v is None else {"q": qkv, "k": k, "v": v})
        qkv, k, v = (None if x is None else x.to(asked) for x in (qkv, k, v))  # type: ignore[assignment]
    check_same({"qkv": qkv} if k is None or v is None else {"q": qkv, "k": k, "v": v})
    chosen = resolve(impl, auto_choice(qkv.device, qkv.dtype, width), IMPLS)
    if chosen == "extension" and impl == "auto" and k is not None and _few_queries(qkv, k, v):
        chosen = "torch"
    backend = None
    if chosen == "triton" and impl == "auto" and k is None:
        backend = timed_backend(qkv.device, width, qkv.shape[1], _needs_grad(qkv))
    if chosen == "triton" and backend is None:
        if impl == "triton":
            check_supported("triton", _unsupported_reason(qkv.device, qkv.dtype, width))
        return _fwd(qkv, k, v, scale, "triton")[0]
    if impl == "extension":
        check_supported("extension", _extension_unsupported_reason(qkv.device, qkv.dtype))
    elif impl == "auto" and qkv.device.type == "cpu":
        _warn_without_extension()
    if chosen == "extension":
        dtype = qkv.dtype
        if dtype == torch.float16:
            qkv, k, v = (None if x is None else x.float() for x in (qkv, k, v))  # type: ignore[assignment]
        return _fwd(qkv, k, v, scale, impl)[0].to(dtype)
    return _torch(*_unpacked(qkv, k, v), scale, backend)
