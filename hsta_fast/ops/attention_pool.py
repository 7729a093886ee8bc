"""attention_pool: checks, autograd and choice of implementation. The specification is in `reference`.

Forward and backward are registered ops, so torch.compile sees each as one node. `impl` names the
implementation that they call; all have the same interface. Kernels are imported when the op first needs them.
Under torch.func, in forward mode and for second derivatives the reference formula runs instead.
"""

from typing import Any

import torch
from torch import Tensor

from .. import extension, reference
from .attention_pool_torch import accumulation_dtype
from .checks import autocast_dtype, check_floating, check_same, check_shape, no_autocast, unexpected
from .choice import (
    Choice,
    accounted,
    check_supported,
    exporting,
    resolve,
    transformed,
    triton_unsupported_reason,
)
from .registration import plain_backward, plain_gradients, register

_OP = "attention_pool"
IMPLS = ("triton", "extension", "torch")
_MAX_WIDTH = 1024
_EXTENSION_DTYPES = (torch.float32, torch.float64)

Saved = tuple[Tensor, Tensor, Tensor, Tensor]


def _unsupported_reason(impl: str, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why an implementation does not support such inputs; None if it does."""
    if impl == "triton":
        too_wide = f"width {width} is above {_MAX_WIDTH}" if width > _MAX_WIDTH else None
        return triton_unsupported_reason(device, dtype) or too_wide
    if impl == "extension":
        if device.type != "cpu":
            return f"the inputs are on {device.type}, not on the CPU"
        other = f"{dtype} is neither float32 nor float64" if dtype not in _EXTENSION_DTYPES else None
        return extension.unsupported_reason("cpu") or other
    return None


def auto_choice(device: torch.device, dtype: torch.dtype, width: int = 768) -> Choice:
    """The implementation that `impl="auto"` takes for inputs of this device, dtype and width."""
    impl, reason = (
        ("extension", "one fused pass in C++") if device.type == "cpu" else ("triton", "fused kernels")
    )
    unsupported = _unsupported_reason(impl, device, dtype, width)
    if unsupported is None:
        return Choice(impl, f"{reason}, forward and backward")
    return Choice("torch", f"block by block in plain PyTorch: {unsupported}")


def choose(impl: str, tokens: Tensor) -> str:
    """The implementation to run on `tokens` (B, N, C) for the argument `impl` of an op.

    "auto" stays "auto" where that is the extension: whether it can be built is known only when the op runs.

    Raises:
        ValueError: an unknown `impl`, or one that does not support such tokens.
    """
    inputs = tokens.device, tokens.dtype, tokens.shape[-1]
    chosen = resolve(impl, auto_choice(*inputs), IMPLS)
    check_supported(chosen, _unsupported_reason(chosen, *inputs))
    if impl == "auto" and tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        unsupported = extension.unsupported_reason("cpu")
        if unsupported is not None:
            extension.warn_of(unsupported)
    return "auto" if impl == "auto" and chosen == "extension" else chosen


def _launchers(impl: str) -> tuple[Any, Any]:
    if accounted() is not None:
        return _fwd_without_data, _bwd_without_data
    if impl in ("auto", "extension") and extension.usable("cpu", impl):
        return torch.ops.hsta_fast.attention_pool_fwd, torch.ops.hsta_fast.attention_pool_bwd
    if impl == "triton":
        from ..kernels.attention_pool import attention_pool_bwd, attention_pool_fwd
    else:
        from .attention_pool_torch import attention_pool_bwd, attention_pool_fwd
    return attention_pool_fwd, attention_pool_bwd


def _fwd_without_data(
    query: Tensor, tokens: Tensor, extra: Tensor | None, normalize: bool, *_: Any, scores: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    B, R, C = query.shape
    rows = tokens.shape[1] + int(extra is not None)
    lse = query.new_empty((B, R), dtype=accumulation_dtype(query.dtype))
    mean, rstd = (lse.new_empty((B, rows)) for _ in range(2)) if normalize else (None, None)
    return lse.new_empty((B, R, C)), lse, mean, rstd


def _bwd_without_data(
    dpooled: Tensor, query: Tensor, tokens: Tensor, extra: Tensor | None, *_: Any, **__: Any
) -> tuple[Tensor, Tensor | None]:
    return torch.empty_like(query), None if extra is None else torch.empty_like(extra)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def pool_fwd(
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    normalize: bool,
    eps: float,
    impl: str,
    *,
    scores: Tensor | None = None,
) -> Saved:
    """(pooled, lse, mean, rstd) of one implementation; mean and rstd are empty without `normalize`.

    All have the accumulation dtype. The backward subtracts products with `pooled`. If `pooled` were rounded,
    the gradients would contain its rounding error times the query where one row has all the weight.
    """
    B, R, _ = query.shape
    dtype = accumulation_dtype(query.dtype)
    if query.numel() == 0:
        rows = tokens.shape[1] + int(extra is not None) if normalize else 0
        mean, rstd = (query.new_zeros((B, rows), dtype=dtype) for _ in range(2))
        return query.to(dtype, copy=True), mean.new_zeros((B, R)), mean, rstd
    fwd, _ = _launchers(impl)
    extra = None if extra is None else _unit_stride(extra)
    query, tokens = query.contiguous(), _unit_stride(tokens)
    with no_autocast(query):
        pooled, lse, mean, rstd = fwd(query, tokens, extra, normalize, eps, scores=scores)
    if mean is None:
        mean, rstd = lse.new_empty((B, 0)), lse.new_empty((B, 0))
    return pooled.to(dtype), lse, mean, rstd


def pool_bwd(
    dpooled: Tensor,
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    saved: Saved,
    normalize: bool,
    eps: float,
    impl: str,
    *,
    dtokens: Tensor | None,
    accumulate: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(dquery, dextra) of one implementation; fills `dtokens`, if given, with accumulate + its gradient."""
    pooled, lse, mean, rstd = saved
    if query.numel() == 0:
        if dtokens is not None:
            dtokens.copy_(torch.zeros_like(dtokens) if accumulate is None else accumulate)
        return torch.zeros_like(query), None if extra is None else torch.zeros_like(extra)
    _, bwd = _launchers(impl)
    if dtokens is None and impl == "triton":
        dtokens = torch.empty_like(tokens, memory_format=torch.contiguous_format)  # it always writes them
    stats = (mean, rstd) if normalize else (None, None)
    dpooled, query, tokens = dpooled.to(query.dtype).contiguous(), query.contiguous(), _unit_stride(tokens)
    extra, accumulate = (None if x is None else _unit_stride(x) for x in (extra, accumulate))
    with no_autocast(query):
        dquery, dextra = bwd(
            dpooled, query, tokens, extra, normalize, eps, pooled, lse, *stats,
            dtokens=dtokens, accumulate=accumulate,
        )  # fmt: skip
    return dquery, None if extra is None else dextra


def _forward(
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    normalize: bool,
    eps: float,
    keep_scores: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(pooled, pooled unrounded, lse, mean, rstd, scores); empty tensors where there is nothing to keep."""
    rows = tokens.shape[1] + int(extra is not None) if keep_scores else 0
    scores = query.new_empty((*query.shape[:2], rows), dtype=accumulation_dtype(query.dtype))
    kept = scores if keep_scores else None
    pooled, lse, mean, rstd = pool_fwd(query, tokens, extra, normalize, eps, impl, scores=kept)
    unrounded = pooled if pooled.dtype != query.dtype else pooled.new_empty(0)
    return pooled.to(query.dtype), unrounded, lse, mean, rstd, scores


def _fake_forward(
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    normalize: bool,
    eps: float,
    keep_scores: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, R, C = query.shape
    rows = tokens.shape[1] + int(extra is not None)
    lse = query.new_empty((B, R), dtype=accumulation_dtype(query.dtype))
    unrounded = lse.new_empty((B, R, C) if lse.dtype != query.dtype else (0,))
    mean, rstd = (lse.new_empty((B, rows if normalize else 0)) for _ in range(2))
    scores = lse.new_empty((B, R, rows if keep_scores else 0))
    return query.new_empty((B, R, C)), unrounded, lse, mean, rstd, scores


def _backward(
    dpooled: Tensor,
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    pooled: Tensor,
    lse: Tensor,
    mean: Tensor,
    rstd: Tensor,
    normalize: bool,
    eps: float,
    needs_dtokens: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dquery, dtokens, dextra); the last two are empty where not needed. `pooled` is unrounded."""
    shape = tokens.shape if needs_dtokens else (0,)
    dtokens = tokens.new_empty(shape)
    dquery, dextra = pool_bwd(
        dpooled,
        query,
        tokens,
        extra,
        (pooled, lse, mean, rstd),
        normalize,
        eps,
        impl,
        dtokens=dtokens if needs_dtokens else None,
    )
    return dquery, dtokens, query.new_empty(0) if dextra is None else dextra


def _fake_backward(
    dpooled: Tensor,
    query: Tensor,
    tokens: Tensor,
    extra: Tensor | None,
    pooled: Tensor,
    lse: Tensor,
    mean: Tensor,
    rstd: Tensor,
    normalize: bool,
    eps: float,
    needs_dtokens: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dextra = query.new_empty(0 if extra is None else extra.shape)
    return query.new_empty(query.shape), tokens.new_empty(tokens.shape if needs_dtokens else (0,)), dextra


def _plain(
    query: Tensor, tokens: Tensor, extra: Tensor | None = None, *, normalize: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """(pooled, weights) by the reference formula, which torch can transform and differentiate at will."""
    wide = accumulation_dtype(tokens.dtype)
    query, rows, extra = query.to(wide), tokens.to(wide), None if extra is None else extra.to(wide)
    with no_autocast(tokens):
        pooled, weights = reference.attention_pool(
            query, rows, extra=extra, normalize=normalize, eps=eps, return_weights=True
        )
    return pooled.to(tokens.dtype), weights.to(tokens.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, tokens, extra, ctx.normalize, ctx.eps, _, ctx.impl = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    pooled, unrounded, *stats = output[:5]
    pooled = pooled if unrounded.dtype == pooled.dtype else unrounded
    ctx.save_for_backward(query, tokens, extra, pooled, *stats)


def _autograd(ctx: Any, dpooled: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dpooled is None:
        return (None,) * 7
    query, tokens, extra, *saved = ctx.saved_tensors
    if plain_backward(dpooled):
        inputs = [x for x in (query, tokens, extra) if x is not None]
        needed = ctx.needs_input_grad[: len(inputs)]

        def pooled_of(*x: Tensor) -> Tensor:
            return _plain(*x, normalize=ctx.normalize, eps=ctx.eps)[0]

        gradients = plain_gradients(pooled_of, inputs, needed, dpooled)
        return *gradients, *[None] * (7 - len(gradients))
    needs_dtokens = ctx.needs_input_grad[1]
    dquery, dtokens, dextra = _bwd(
        dpooled, query, tokens, extra, *saved, ctx.normalize, ctx.eps, needs_dtokens, ctx.impl
    )
    dtokens = dtokens if needs_dtokens else None
    return dquery, dtokens, None if extra is None else dextra, None, None, None, None


_fwd = register(_OP, _forward, _fake_forward, backward=_autograd, setup_context=_setup_context)
_bwd = register(f"{_OP}_backward", _backward, _fake_backward)


def attention_pool(
    query: Tensor,
    tokens: Tensor,
    *,
    extra: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
    return_weights: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """sum_j softmax_j(query . z_j) z_j, with z the layer-normed tokens (no affine) or the tokens themselves.

    With up to 16 queries the tokens are read once in the forward and once in the backward, which writes their
    gradient (a small batch on a GPU reads them twice). No other tensor of their size is allocated.

    Args:
        query: (B, R, C); (1, R, C) or (R, C) for the same queries in every sample. There is no scale: fold it
            into the query. More than 16 queries take several passes.
        tokens: (B, N, C), any strides (a last stride other than 1 costs a copy). N may be 0 if `extra` is
            given.
        extra: (B, C), one more row before the tokens; or None.
        normalize: whether z_j is token j normalised to mean 0 and variance 1 over C.
        eps: added to the variance.
        return_weights: also return the softmax weights, for inspection; they carry no gradient.
        impl: "auto", "triton", "extension" or "torch". "auto" and "torch" work under torch.func (grad, vmap,
            jvp, ...) and in forward mode, and all can be differentiated twice: by the plain formula. Triton
            supports float32, float16 and bfloat16 with C <= 1024 on CUDA devices of compute capability >=
            8.0, and on the CPU under TRITON_INTERPRET=1. The extension supports float32 and float64 on the
            CPU if a C++ compiler can build it. "auto" is Triton on CUDA devices and the extension on the CPU
            where they can run, else plain PyTorch.

    Returns:
        pooled (B, R, C); or (pooled, weights), weights (B, R, N), or (B, R, 1 + N) with the extra row first.
        The dtype is that of the tokens (float16, bfloat16, float32 or float64). Under autocast the other
        inputs are cast to it.

    Raises:
        ValueError: shapes, dtypes or devices that do not match, an unknown `impl`, or one that cannot run.
        BuildError: impl="extension", and it cannot be built or loaded.
    """
    check_shape("tokens", tokens, (None, None, None), "(B, N, C)")
    B, N, C = tokens.shape
    if not isinstance(query, Tensor):
        raise unexpected("query", "a tensor (B, R, C), (1, R, C) or (R, C)", type(query).__name__)
    shape = query.shape
    if len(shape) not in (2, 3) or shape[-1] != C or (len(shape) == 3 and shape[0] != B and shape[0] != 1):
        known = f"(B, R, C), (1, R, C) or (R, C) with B = {B} and C = {C}"
        raise unexpected("query", f"shape {known}", tuple(shape))
    if len(shape) == 2 or shape[0] != B:
        query = query.expand(B, -1, -1)
    if extra is not None:
        check_shape("extra", extra, (B, C), "(B, C)")
    elif N == 0:
        raise unexpected("tokens", "at least one row, or extra", "N = 0 and no extra")
    if type(normalize) is not bool:
        raise unexpected("normalize", "True or False", repr(normalize))
    if not isinstance(eps, int | float) or not eps >= 0:
        raise unexpected("eps", "a number >= 0", repr(eps))
    if autocast_dtype(tokens) is not None:  # casting the tokens would copy them
        check_floating({"query": query, "tokens": tokens} | ({} if extra is None else {"extra": extra}))
        query, extra = query.to(tokens.dtype), None if extra is None else extra.to(tokens.dtype)
    check_same({"query": query, "tokens": tokens} | ({} if extra is None else {"extra": extra}))
    chosen = choose(impl, tokens)
    if transformed() or (chosen == "torch" and exporting()):
        out = _plain(query, tokens, extra, normalize=normalize, eps=eps)
        return out if return_weights else out[0]
    pooled, _, lse, _, _, scores = _fwd(query, tokens, extra, normalize, eps, return_weights, chosen)
    if not return_weights:
        return pooled
    return pooled, torch.exp(scores - lse.unsqueeze(-1)).to(pooled.dtype)
