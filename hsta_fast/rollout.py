"""From which tokens the CLS of a branch is made: attention rollout (Abnar and Zuidema, 2020) over its USTA.

Of layer i let A_i be the attention weights of all tokens, mean over the heads (Eq. 2). The residual
connection counts as one half, so the rollout of L layers is the product of (A_i + I) / 2, the last layer
first, and its CLS row says how much of each token reaches the CLS. The exchange of CLS between branches
(CSTA) is left out: for it see `csta_maps`.

B batch, H heads, T frames, t tubelet depth, p patch size. Branch 0 is special, 1 is video.
"""

from threading import get_ident
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .layers import USTA, SpaceTimeAttention
from .model import BRANCHES, HSTA


class Rollout(NamedTuple):
    """The CLS row of the rollout of a branch; its weights and the CLS's on itself sum to 1.

    Attributes:
        tokens: (B, T / t, h, w), h = height // p, w likewise: [:, i] is for frames i t to (i + 1) t - 1.
        itself: (B,), the weight of the CLS on itself.
    """

    tokens: Tensor
    itself: Tensor


def attention_rollout(
    model: HSTA, video: Tensor | None = None, special: Tensor | None = None
) -> dict[str, Rollout]:
    """The rollout of each branch's USTA layers, by the name of the branch: "special", "video".

    The model runs once, in the mode it is in (`model.eval()` first, for the weights of a prediction), and is
    the same afterwards. No gradient is kept. Memory: one attention matrix, (B, N + 1, N + 1), at a time.

    Args:
        model: not compiled, with USTA layers of this package.
        video: as for `HSTA.forward`.
        special: as for `HSTA.forward`.

    Returns:
        The weights in float32 (float64 if the model is float64), on the model's device.

    Raises:
        ValueError: another model, one with replaced layers, or frames as in `HSTA.forward`.
    """
    if not isinstance(model, HSTA):
        raise ValueError(
            f"model expected an HSTA, got {type(model).__name__}: give the HSTA inside it, if there is one"
        )
    layers = {d: _attentions(model, d) for d in model.config.branch_ids}
    given: dict[SpaceTimeAttention, Tensor] = {}
    grids: dict[int, tuple[int, int, int]] = {}
    caller = get_ident()

    def keep_tokens(attention: nn.Module, inputs: tuple[Tensor]) -> None:
        if get_ident() == caller:  # another thread may run the same model
            given[cast(SpaceTimeAttention, attention)] = inputs[0]

    def keep_grid(d: int, frames: Tensor) -> None:
        c = model.config
        patch = (c.tubelet_depth, c.patch_sizes[d], c.patch_sizes[d])
        depth, height, width = (size // p for size, p in zip(frames.shape[2:], patch, strict=True))
        grids[d] = (depth, height, width)

    hooks = [one.register_forward_pre_hook(keep_tokens) for of in layers.values() for one in of]
    for d in layers:
        embed = model.patch_embed[str(d)]
        hooks.append(embed.register_forward_pre_hook(lambda _, x, d=d: keep_grid(d, x[0])))
    try:
        with torch.no_grad():
            model(video, special)
            rows = {d: _cls_row([(one, given[one]) for one in of], grids[d]) for d, of in layers.items()}
    finally:
        for hook in hooks:
            hook.remove()
    return {BRANCHES[d]: Rollout(row[:, 1:].unflatten(1, grids[d]), row[:, 0]) for d, row in rows.items()}


def _attentions(model: HSTA, d: int) -> list[SpaceTimeAttention]:
    """The attention modules of branch d, in the order in which they run."""
    found = [layer for block in model.blocks for layer in cast(Any, block).blocks[str(d)]]
    odd = [type(layer).__name__ for layer in found if type(layer) is not USTA]
    odd = odd or [type(one.attn).__name__ for one in found if type(one.attn) is not SpaceTimeAttention]
    if odd or not found:
        raise ValueError(f"model expected USTA layers in each branch, got {odd[0] if odd else 'none'}")
    return [layer.attn for layer in found]


def _cls_row(layers: list[tuple[SpaceTimeAttention, Tensor]], grid: tuple[int, int, int]) -> Tensor:
    """The CLS row of the product of (A + I) / 2, (B, N + 1): a row times one matrix after the other."""
    batch = layers[0][1].shape[0]
    dtype = torch.float64 if layers[0][1].dtype == torch.float64 else torch.float32
    row = torch.zeros(batch, 1 + grid[0] * grid[1] * grid[2], dtype=dtype, device=layers[0][1].device)
    row[:, 0] = 1
    for attention, tokens in reversed(layers):
        mixed = torch.zeros_like(row)
        q, k = (x.to(dtype) for x in attention.queries_and_keys(tokens))  # (B, N + 1, H, D)
        for head in range(q.shape[2]):
            scores = q[:, :, head] @ k[:, :, head].mT * q.shape[3] ** -0.5
            mixed += (row[:, None] @ scores.softmax(2))[:, 0]
        row = (mixed / q.shape[2] + row) / 2
    return row
