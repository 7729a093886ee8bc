"""cls_cross_attention in place: read the CLS rows of two states, pool their tokens, write new CLS rows.

A state (B, N + 1, C) holds a CLS row and N tokens in one tensor. Plain autograd copies the tokens: in the
forward for [cls' ; tokens], in the backward for the gradient of each slice and for the sum of gradients. Here
a state passes through three functions, each of which marks it as changed in place:

    take    read the CLS rows               backward: writes their gradients into row 0 of the buffer
    pool    over the tokens of one state    backward: the buffer = incoming gradient + that of the pool
    put     write the new CLS rows          backward: returns the incoming gradient, and its row 0

`pool` allocates the buffer, which only `take` sees; incoming gradients are read, never written. The tokens
that `pool` saves bypass autograd's version check, because `put` changes row 0 of the same tensor. `put` saves
the changed states, so a later change to them still raises: only the states lead back here, so the backward of
`put` runs before that of any `pool`.

B batch, N tokens, C width.
"""

from typing import Any

import torch
from torch import Tensor

from .attention_pool import choose, pool_bwd, pool_fwd
from .checks import check
from .cls_cross_attention import attend
from .registration import plain_backward


def _check_gradients(*gradients: Tensor | None) -> None:
    """Refuse second derivatives and batches of gradients, which cannot be written into one buffer."""
    if any(plain_backward(g) for g in gradients if g is not None):
        raise RuntimeError(
            "CSTA with inplace=True expected an ordinary backward, got create_graph or is_grads_batched; "
            "set csta.inplace = False in every HSTA layer (model.blocks) before the forward"
        )


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *states: Tensor) -> tuple[Tensor, ...]:
        memory = [state.untyped_storage()._cdata for state in states if state.numel()]
        check(len(set(memory)) == len(memory), "states", "memory of their own", "the same memory twice")
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(*states)
        return *states, *(state[:, 0].clone() for state in states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _check_gradients(*gradients)
        half = len(gradients) // 2
        for dstate, dcls in zip(gradients[:half], gradients[half:], strict=True):
            if dstate is not None:
                dstate[:, 0] = 0 if dcls is None else dcls
        return gradients[:half]


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, extra: Tensor, state: Tensor, eps: float, impl: str
    ) -> tuple[Tensor, Tensor]:
        tokens = state.data[:, 1:]
        saved = pool_fwd(query, tokens, extra, True, eps, impl)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(state)
        ctx.save_for_backward(query, tokens, extra, *saved)
        ctx.eps, ctx.impl = eps, impl
        return saved[0].to(query.dtype), state

    @staticmethod
    def backward(ctx: Any, dpooled: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        _check_gradients(dpooled, dstate)
        query, tokens, extra, *saved = ctx.saved_tensors
        buffer = None
        if ctx.needs_input_grad[2]:
            B, N, C = tokens.shape
            buffer = tokens.new_empty((B, N + 1, C))
            buffer[:, 0] = 0  # `take` writes it; until then anomaly detection must not find NaN
        dquery, dextra = pool_bwd(
            torch.zeros_like(query) if dpooled is None else dpooled,
            query,
            tokens,
            extra,
            (saved[0], saved[1], saved[2], saved[3]),
            True,
            ctx.eps,
            ctx.impl,
            dtokens=None if buffer is None else buffer[:, 1:],
            accumulate=None if dstate is None else dstate[:, 1:],
        )
        return dquery, dextra, buffer, None, None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *states_and_cls: Tensor) -> tuple[Tensor, ...]:
        half = len(states_and_cls) // 2
        states = states_and_cls[:half]
        for state, cls in zip(states, states_and_cls[half:], strict=True):
            state[:, 0] = cls
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(*states)
        ctx.save_for_backward(*states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _check_gradients(*gradients)
        _ = ctx.saved_tensors  # raises if a state was changed after `put`
        return *gradients, *(None if g is None else g[:, 0] for g in gradients)


def take_cls(*states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(states, their CLS rows (B, C)). The states are the given tensors, which `put_cls` will change.

    Raises:
        ValueError: two states share memory.
    """
    out = _Take.apply(*states)
    return list(out[: len(states)]), list(out[len(states) :])


def cls_cross_attention_in_state(
    cls: Tensor, state: Tensor, *, num_heads: int, eps: float, impl: str, **weights: Tensor
) -> tuple[Tensor, Tensor]:
    """(`cls_cross_attention` of cls (B, C) over the tokens of a state (B, N + 1, C), the state)."""
    chosen = choose(impl, state)

    def pool(query: Tensor, extra: Tensor) -> Tensor:
        nonlocal state
        pooled, state = _Pool.apply(query, extra, state, eps, chosen)
        return pooled

    out = attend(cls, pool, state.dtype, num_heads=num_heads, eps=eps, **weights)
    return out, state


def put_cls(states: list[Tensor], cls: list[Tensor]) -> list[Tensor]:
    """Write new CLS rows (B, C) into the states (B, N + 1, C); returns the states."""
    return list(_Put.apply(*states, *cls))
