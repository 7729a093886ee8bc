"""space_time_attention: checks, autograd and choice of implementation. The specification is in `reference`.

The Triton path is two registered ops, forward and backward, so that torch.compile sees each as one node.
Triton and the kernels are imported when such an op first runs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import autocast_dtype, want, want_alike, want_shape
from .choice import Choice, resolve, triton_obstacle

_OP = "space_time_attention"
IMPLS = ("triton", "torch")
_MAX_WIDTH = 128


def _obstacle(device: torch.device, dtype: torch.dtype, width: int, *, interpret: bool = True) -> str | None:
    """Why the Triton kernels cannot take such inputs; None if they can."""
    too_wide = f"head width {width} is above {_MAX_WIDTH}" if width > _MAX_WIDTH else None
    return triton_obstacle(device, dtype, interpret=interpret) or too_wide


def auto_choice(device: torch.device, dtype: torch.dtype, width: int = 64) -> Choice:
    """The implementation that `impl="auto"` takes for inputs of this device, dtype and head width."""
    obstacle = _obstacle(device, dtype, width, interpret=False)
    if obstacle is None:
        return Choice("triton", "fused kernels, forward and backward")
    return Choice("torch", f"torch's scaled_dot_product_attention: {obstacle}")


def _unpacked(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Views (B, N, H, D), (B, M, H, D), (B, M, H, D) of the packed projection or of three tensors."""
    return q.unbind(2) if k is None or v is None else (q, k, v)  # type: ignore[return-value]


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("hsta_fast::space_time_attention", mutates_args=())
def _fwd(q: Tensor, k: Tensor | None, v: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(out, log-sum-exp (B, H, N) of base 2); without `k` and `v`, `q` is the packed projection."""
    q, k, v = (_unit_stride(x) for x in _unpacked(q, k, v))
    B, N, H, _ = q.shape
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q, memory_format=torch.contiguous_format), q.new_zeros((B, H, N)).float()
    from ..kernels.space_time_attention import space_time_attention_fwd

    return space_time_attention_fwd(q, k, v, scale)


@_fwd.register_fake
def _(q: Tensor, k: Tensor | None, v: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    B, N, H, D = _unpacked(q, k, v)[0].shape
    return q.new_empty((B, N, H, D)), q.new_empty((B, H, N), dtype=torch.float32)


@torch.library.custom_op("hsta_fast::space_time_attention_backward", mutates_args=())
def _bwd(
    dout: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> list[Tensor]:
    """[dqkv], packed as `q` came, or [dq, dk, dv]."""
    inputs = [x for x in (q, k, v) if x is not None]
    if out.numel() == 0 or _unpacked(q, k, v)[1].numel() == 0:
        return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    dq, dk, dv = _unpacked(*grads, *[None] * (3 - len(grads)))
    q, k, v = (_unit_stride(x) for x in _unpacked(q, k, v))
    from ..kernels.space_time_attention import space_time_attention_bwd

    space_time_attention_bwd(_unit_stride(dout), q, k, v, out, lse, scale, dq, dk, dv)
    return grads


@_bwd.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> list[Tensor]:
    inputs = [x for x in (q, k, v) if x is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _autograd(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return None, None, None, None
    grads = _bwd(dout, *ctx.saved_tensors, ctx.scale)
    return *grads, *[None] * (4 - len(grads))


_fwd.register_autograd(_autograd, setup_context=_setup_context)


def space_time_attention(
    qkv: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """softmax(scale * q k') v per head: every space-time token attends to every other (HSTA, Eq. 3).

    Called as `space_time_attention(qkv)` or `space_time_attention(q, k, v)`.

    Args:
        qkv: (B, N, 3, H, D), the packed projection; or q (B, N, H, D) when `k` and `v` are given. A last
            stride other than 1 costs a copy.
        k: (B, M, H, D); M may differ from N.
        v: (B, M, H, D).
        scale: factor of the scores, of either sign; D ** -0.5 when None.
        impl: "auto", "triton" or "torch". Triton takes float32, float16 and bfloat16 with D <= 128 on CUDA
            devices of compute capability 8.0 on, and on the CPU under TRITON_INTERPRET=1. "auto" is Triton on
            CUDA devices where it can run, and torch's scaled_dot_product_attention otherwise.

    Returns:
        (B, N, H, D), in the dtype of the input (float16, bfloat16, float32 or float64) or autocast's.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, an unknown `impl`, or "triton"
            where it cannot run.
    """
    want((k is None) == (v is None), _OP, "(qkv) or (q, k, v)", "only one of k and v")
    if k is None or v is None:
        want_shape(_OP, "qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
        want_alike(_OP, {"qkv": qkv})
    else:
        want_shape(_OP, "q", qkv, (None, None, None, None), "(B, N, H, D)")
        B, _, H, D = qkv.shape
        want_shape(_OP, "k", k, (B, None, H, D), "(B, M, H, D)")
        want_shape(_OP, "v", v, (B, k.shape[1], H, D), "(B, M, H, D)")
        want_alike(_OP, {"q": qkv, "k": k, "v": v})
    cast = autocast_dtype(qkv)
    if cast is not None and qkv.dtype != torch.float64:  # as autocast treats torch's own attention
        qkv, k, v = (None if x is None else x.to(cast) for x in (qkv, k, v))  # type: ignore[assignment]
    width = qkv.shape[-1]
    chosen = resolve(_OP, impl, auto_choice(qkv.device, qkv.dtype, width), IMPLS)
    if chosen == "triton":
        if impl == "triton":
            obstacle = _obstacle(qkv.device, qkv.dtype, width)
            want(obstacle is None, _OP, 'inputs that impl="triton" can take', obstacle)
        return _fwd(qkv, k, v, width**-0.5 if scale is None else scale)[0]
    q, k, v = (x.transpose(1, 2) for x in _unpacked(qkv, k, v))  # torch's function takes (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
