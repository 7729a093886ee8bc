"""timm: self-attention, AttentionPoolLatent, CrossViT's and CaiT's class attention."""

from typing import Any, cast

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import ClassAttn, TalkingHeadAttn
from timm.models.crossvit import CrossAttention
from timm.models.eva import EvaAttention
from timm.models.levit import Attention as LevitAttention
from timm.models.levit import AttentionDownsample
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from .. import ops
from .published_hsta import FirstRowAttention, FusedSelfAttention, note, rows
from .switching import Find, Left, Switch, Switched, bypassed, captured, silent, switch_class
from .worth import absorbing_pays

_LEFT = {
    AttentionDownsample: "score bias (relative positions)",
    AttentionRope: "rotary positions between the projection and the scores",
    BeitAttention: "score bias (relative positions)",
    EvaAttention: "rotary positions between the projection and the scores",
    LevitAttention: "score bias (relative positions)",
    WindowAttention: "score bias (relative positions)",
    TalkingHeadAttn: "scores mixed between heads",
}


def finder(root: nn.Module) -> Find:
    """Tells of each module of `root` whether it can be switched."""
    return find


def find(module: nn.Module) -> Switch | Left | None:
    """The switch of one of timm's modules; None for modules that are not known."""
    kind = type(module)
    if kind is Attention:
        return _self_attention(cast(Any, module))
    if kind is AttentionPoolLatent:
        return _pool(cast(Any, module))
    if kind is CrossAttention or kind is ClassAttn:
        fast = FirstRowAttention if kind is CrossAttention else FastClassAttn
        width = cast(nn.Linear, module.proj).in_features
        return switch_class(module, fast, "few_query_attention", rows(width), note=note(module))
    return Left(_LEFT[kind]) if kind in _LEFT else None


class FastClassAttn(FirstRowAttention):
    """The same with CaiT's names."""

    _parts = ("q", "k", "v")
    _called = *_parts, "proj", "proj_drop"


def _normed(*norms: nn.Module) -> str | None:
    """Why norms of queries, keys or the attended values keep a module as it is; None if there are none."""
    return None if all(type(norm) is nn.Identity for norm in norms) else "norms of queries, keys or values"


def _self_attention(module: Any) -> Switch | Left:
    if (reason := _normed(module.q_norm, module.k_norm)) is not None:
        return Left(reason)
    if module.gate is not None:
        return Left("a gate on the attended values")
    width = module.qkv.in_features
    return switch_class(module, FastAttention, "space_time_attention", rows(width), note=note(module))


class FastAttention(FusedSelfAttention):
    """timm's self-attention, whose values may be normed before the output projection."""

    _called = *FusedSelfAttention._called, "norm"
    norm: nn.Module

    def _fast_output(self, attended: Tensor) -> Tensor:
        return super()._fast_output(self.norm(attended))


class SpaceTimeAttention(FastAttention, Attention):
    """timm's `Attention` with fused self-attention: the class for `timm.create_model(..., attn_layer=...)`.

    Arguments and names of parameters are those of `Attention`, so its checkpoints load. With norms of queries
    and keys, a gate, a mask, or attention dropout in training it computes as `Attention` does.
    """

    __reduce_ex__ = Attention.__reduce_ex__  # type: ignore[assignment]  # it is a class with a name


def _pool(module: Any) -> Switch | Left:
    if (reason := _normed(module.q_norm, module.k_norm)) is not None:
        return Left(reason)
    if type(module.q) not in (nn.Linear, nn.Identity):
        return Left(f"its query projection is a {type(module.q).__name__}")
    width = module.kv.in_features
    sample = rows(width) if module.pos_embed is None else rows(width, len(module.pos_embed))
    return switch_class(module, FastAttentionPoolLatent, "few_query_attention", sample)


class FastAttentionPoolLatent(Switched):
    """timm's pooling by learned queries: they are projected once, and absorbed."""

    latent: nn.Parameter
    latent_len: int
    num_heads: int
    pos_embed: nn.Parameter | None
    q: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    kv: nn.Linear
    proj: nn.Module
    proj_drop: nn.Module
    norm: nn.Module
    mlp: nn.Module | None
    pool: str

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, C), or (B, R, C) without pooling."""
        projection = self.q if isinstance(self.q, nn.Linear) else None
        usable = (
            attn_mask is None
            and not captured(x)
            and x.numel() > 0
            and (projection is not None or silent(self.q))
            and silent(self.q_norm)
            and silent(self.k_norm)
            and bypassed(projection, self.kv)
            and absorbing_pays(self.latent_len, self.num_heads, x)
        )
        if not usable:
            return super().forward(x, attn_mask)  # type: ignore[misc]
        if self.pos_embed is not None:
            x = x + self.pos_embed.unsqueeze(0).to(x.dtype)
        k, v = self.kv.weight.chunk(2)
        k_bias, v_bias = (None, None) if self.kv.bias is None else self.kv.bias.chunk(2)
        width = self.latent.shape[2]
        same = torch.eye(width, dtype=k.dtype, device=k.device)  # the latent is the query
        x = ops.few_query_attention(
            self.latent,
            x,
            q_weight=same if projection is None else projection.weight,
            q_bias=None if projection is None else projection.bias,
            k_weight=k,
            k_bias=k_bias,
            v_weight=v,
            v_bias=v_bias,
            num_heads=self.num_heads,
        )
        x = self.proj_drop(self.proj(x))
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        return x[:, 0] if self.pool == "token" else x.mean(1) if self.pool == "avg" else x
