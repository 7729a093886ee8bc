"""Where the two CLS look: the attention weights of the last CSTA, over the patches of the frames.

B batch, H heads, T video frames, t tubelet depth, p patch size. Branch 0 is special, 1 is video.
"""

from threading import get_ident
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .crossmodal import CrossAttentionBlock, CrossmodalSpaceTimeAttention
from .model import BRANCHES, HSTA


class AttentionMaps(NamedTuple):
    """The softmax weights of the last CSTA (Eq. 9), for each head.

    The keys of a direction are the CLS itself, projected to the other width, and the tokens of the other
    branch. So for each clip and head the weights over the tokens and the CLS's weight on itself sum to 1.

    Attributes:
        special: (B, H, T / t, h, w), the special CLS over the video tokens; h = height // p of the video
            branch, w likewise. [:, :, i] is for frames i t to (i + 1) t - 1, [..., j, k] for the patch whose
            first pixel is (j p, k p). H is the number of heads of the video branch.
        video: (B, H, 2 / t, h, w), the video CLS over the special tokens; H, p: those of the special branch.
        special_itself: (B, H), the weight of the special CLS on itself.
        video_itself: (B, H), the weight of the video CLS on itself.
    """

    special: Tensor
    video: Tensor
    special_itself: Tensor
    video_itself: Tensor


def attention_maps(model: HSTA, video: Tensor | None = None, special: Tensor | None = None) -> AttentionMaps:
    """The weights with which each CLS attends to the tokens of the other branch in the last CSTA.

    The model runs once, in the mode it is in (`model.eval()` first, for the weights of a prediction), and is
    the same afterwards. Replaced submodules (LoRA, quantised) are called. No gradient is kept.

    Args:
        model: with both branches and CSTA; not compiled.
        video: as for `HSTA.forward`.
        special: as for `HSTA.forward`.

    Returns:
        The weights in float32 (float64 if the model is float64), on the model's device.

    Raises:
        ValueError: a model without CSTA, or one whose cross-attention is of another class; frames as in
            `HSTA.forward`.
    """
    if not isinstance(model, HSTA):
        raise ValueError(
            f"model expected an HSTA, got {type(model).__name__}: give the HSTA inside it, if there is one"
        )
    c = model.config
    if c.branches != BRANCHES or not c.csta:
        raise ValueError(
            f"model expected both branches and CSTA, got branches {c.branches} and csta={c.csta}: "
            "without CSTA no CLS attends to the other branch"
        )
    csta = cast(CrossmodalSpaceTimeAttention, cast(Any, model.blocks[-1]).csta)
    grids: dict[int, tuple[int, int, int]] = {}
    weights: dict[int, Tensor] = {}
    caller = get_ident()

    def keep_weights(_: nn.Module, states: tuple[Tensor, Tensor]) -> None:
        if get_ident() != caller:  # another thread runs the same model
            return
        for a, b in ((0, 1), (1, 0)):
            fusion = cast(CrossAttentionBlock, csta.fusion[a])
            weights[a] = fusion.weights(csta.projs[a](states[a][:, 0]), states[b][:, 1:])

    def keep_grid(d: int, frames: Tensor) -> None:
        patch = (c.tubelet_depth, c.patch_sizes[d], c.patch_sizes[d])
        depth, height, width = (size // p for size, p in zip(frames.shape[2:], patch, strict=True))
        grids[d] = (depth, height, width)

    hooks = [csta.register_forward_pre_hook(keep_weights)]
    for d in (0, 1):
        embed = model.patch_embed[str(d)]
        hooks.append(embed.register_forward_pre_hook(lambda _, given, d=d: keep_grid(d, given[0])))
    try:
        with torch.no_grad():
            model(video, special)
    finally:
        for hook in hooks:
            hook.remove()
    maps = [weights[a][:, :, 1:].unflatten(2, grids[1 - a]) for a in (0, 1)]
    return AttentionMaps(maps[0], maps[1], weights[0][:, :, 0], weights[1][:, :, 0])
