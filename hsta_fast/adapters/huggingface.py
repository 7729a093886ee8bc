"""Hugging Face transformers 5: self-attention by its AttentionInterface, and two pooling heads.

Importing this file registers the attention implementation "hsta_fast", which `from_pretrained(...,
attn_implementation="hsta_fast")` and `model.set_attn_implementation("hsta_fast")` then take. `accelerate`
imports it when it meets a module of transformers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2PoolerCrossAttention

from .. import ops
from ..replaced import any_global_hook, is_plain, plain_tensor
from .switching import Find, Left, Switch, Switched, bypassed, captured, projections, switch_class
from .torch_modules import absorbed, conv3d
from .worth import absorbing_pays, fusing_pays

NAME = "hsta_fast"
# Arguments of an attention function that change its result; with any of them sdpa runs.
_NOT_OURS = ("position_bias", "softcap", "sliding_window", "s_aux", "head_mask", "output_attentions", "cache")


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function "hsta_fast" of transformers: ours without a mask, else transformers' "sdpa".

    Args:
        module: the module that attends.
        query: (B, H, N, D), any strides.
        key: (B, H, M, D).
        value: (B, H, M, D).
        attention_mask: None, or sdpa runs.
        dropout: of the attention weights; sdpa runs unless it is 0.
        scaling: factor of the scores; D ** -0.5 when None.
        is_causal: None: what the module says. If it is causal, sdpa runs.
        **kwargs: others of transformers; sdpa runs if one of them changes the result.

    Returns:
        ((B, N, H, D), None): there are no attention weights to return.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    ours = (
        attention_mask is None
        and not captured(query)
        and not dropout
        and not causal
        and query.dim() == key.dim() == 4
        and query.shape[:2] == key.shape[:2]
        and query.shape[3] == key.shape[3]
        and key.shape == value.shape
        and query.dtype == key.dtype == value.dtype
        and fusing_pays(query, query.shape[2], query.shape[1] * query.shape[3])
        and not any(kwargs.get(name) is not None and kwargs[name] is not False for name in _NOT_OURS)
    )
    if not ours:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    out = ops.space_time_attention(query, key, value, scale=scaling, layout="BHND")
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # masks as sdpa takes them, which then runs

# Classes of self-attention that call the interface, in models that were checked.
_SELF_ATTENTION = (
    "Dinov2Attention",
    "Dinov2WithRegistersAttention",
    "DINOv3ViTAttention",
    "SiglipAttention",
    "VideoMAESelfAttention",
    "ViTAttention",
    "VivitAttention",
    "VJEPA2PoolerSelfAttention",
    "VJEPA2RopeAttention",
)
# Modules that flatten what their Conv3d gives, so that it may have any strides.
_FLATTEN = ("VideoMAEPatchEmbeddings", "VivitTubeletEmbeddings", "VJEPA2PatchEmbeddings3D")


def finder(root: nn.Module) -> Find:
    """Tells of each module of `root` whether it can be switched."""
    flattened = {
        child
        for module in root.modules()
        if _is_of(module, _FLATTEN)
        for child in module.children()
        if type(child) is nn.Conv3d
    }

    def find(module: nn.Module) -> Switch | Left | None:
        kind = type(module)
        if kind is SiglipMultiheadAttentionPoolingHead:
            return _siglip_head(module)
        if kind is VJEPA2PoolerCrossAttention:
            return _vjepa2_cross_attention(module)
        if _is_of(module, _SELF_ATTENTION):
            return _self_attention(module)
        if module in flattened:
            return conv3d(module, flattened=True)
        base = next((base for base in kind.__mro__[1:] if _names(base, _SELF_ATTENTION)), None)
        return None if base is None else Left(f"a subclass of {base.__name__}")

    return find


def _is_of(module: nn.Module, names: tuple[str, ...]) -> bool:
    return _names(type(module), names)


def _names(kind: type, names: tuple[str, ...]) -> bool:
    return kind.__module__.startswith("transformers.") and kind.__name__ in names


def _why_not(module: Any) -> str | None:
    """Why an attention module must keep its implementation; None if "sdpa" is what it calls."""
    implementation = module.config._attn_implementation
    if implementation == "eager":
        return 'attn_implementation "eager" returns the attention weights'
    if implementation == NAME:
        return f'attn_implementation is "{NAME}" already'
    return None if implementation == "sdpa" else f'attn_implementation is "{implementation}", not "sdpa"'


def _dropout_note(probability: float) -> str:
    return f"sdpa in training: attention dropout {probability:g}" if probability else ""


class Configuration:
    """A module's configuration, in which "hsta_fast" stands instead of "sdpa".

    The configuration itself is not changed: it belongs to all of a model, and maybe to other models. So
    `set_attn_implementation`, and all else that changes it, works as before.
    """

    def __init__(self, config: Any) -> None:
        self._of = config

    @property
    def _attn_implementation(self) -> str:
        implementation = self._of._attn_implementation
        return NAME if implementation == "sdpa" else implementation

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as pickle asks before there is anything
            raise AttributeError(name)
        return getattr(self._of, name)


class FastSelfAttention(Switched):
    """Self-attention of transformers, which then asks its AttentionInterface for "hsta_fast"."""

    _keeps_forward = True
    config: Any

    def _switched_on(self) -> None:
        self.config = Configuration(self.config)

    def _switched_off(self) -> None:
        if isinstance(self.config, Configuration):
            self.config = self.config._of


def _self_attention(module: Any) -> Switch | Left:
    if (reason := _why_not(module)) is not None:
        return Left(reason)
    width = next(child.in_features for child in module.children() if isinstance(child, nn.Linear))

    def sample() -> tuple[tuple[Tensor], dict[str, Any]]:
        x = torch.randn(2, 65, width, dtype=torch.float64)
        if type(module).__name__ != "DINOv3ViTAttention":
            return (x,), {}
        angles = torch.randn(60, module.head_dim, dtype=torch.float64)  # five tokens have no position
        return (x,), {"position_embeddings": (angles.cos(), angles.sin())}

    names = ("dropout_prob", "attention_dropout", "dropout")
    rates = [vars(module)[name] for name in names if isinstance(vars(module).get(name), float)]
    note = _dropout_note(rates[0] if rates else 0.0)
    return switch_class(
        module, FastSelfAttention, "space_time_attention (sdpa with a mask)", sample, note=note
    )


class FastSiglipHead(Switched):
    """The pooling head of SigLIP: one learned query, absorbed into the projection of the keys."""

    probe: nn.Parameter
    attention: nn.MultiheadAttention
    layernorm: nn.Module
    mlp: nn.Module
    training: bool

    def forward(self, hidden_state: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        attention = self.attention
        usable = (
            not captured(hidden_state)
            and is_plain(attention, nn.MultiheadAttention)
            and plain_tensor(attention.in_proj_weight)
            and not any_global_hook()
            and not (self.training and attention.dropout)
            and absorbing_pays(1, attention.num_heads, hidden_state)
        )
        if not usable:
            return super().forward(hidden_state)  # type: ignore[misc]
        pooled = absorbed(attention, self.probe, hidden_state)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


def _siglip_head(module: Any) -> Switch | Left:
    size = 2, 65, module.probe.shape[2]

    def sample() -> tuple[tuple[Tensor], dict[str, Tensor]]:
        return (torch.randn(size, dtype=torch.float64),), {}

    return switch_class(module, FastSiglipHead, "few_query_attention", sample)


class FastVJEPA2CrossAttention(Switched):
    """The cross-attention of V-JEPA 2's pooler: few queries, absorbed into the projection of the keys."""

    config: Any
    num_heads: int
    scale: float
    dropout: float
    training: bool
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, R, C), (B, N, C), the same -> (B, R, C), no attention weights."""
        usable = (
            attention_mask is None
            and not captured(keys)
            and keys is values
            and not (self.training and self.dropout)
            and self.config._attn_implementation in ("sdpa", NAME)
            and bypassed(self.q_proj, self.k_proj, self.v_proj)
            and absorbing_pays(queries.shape[1], self.num_heads, keys)
        )
        if not usable:
            return super().forward(queries, keys, values, attention_mask)  # type: ignore[misc]
        attended = ops.few_query_attention(
            queries,
            keys,
            **projections(self.q_proj, self.k_proj, self.v_proj),
            num_heads=self.num_heads,
            scale=self.scale,
        )
        return attended, None


def _vjepa2_cross_attention(module: Any) -> Switch | Left:
    if (reason := _why_not(module)) is not None:
        return Left(reason)
    width = module.embed_dim

    def sample() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        query, tokens = (torch.randn(2, n, width, dtype=torch.float64) for n in (1, 65))
        return (query, tokens, tokens), {}

    note = _dropout_note(module.dropout)
    return switch_class(module, FastVJEPA2CrossAttention, "few_query_attention", sample, note=note)
