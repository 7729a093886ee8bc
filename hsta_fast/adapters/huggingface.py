"""Hugging Face transformers 5: self-attention by its AttentionInterface, and two pooling heads.

Importing this file registers the attention implementation "hsta_fast", which `from_pretrained(...,
attn_implementation="hsta_fast")` and `model.set_attn_implementation("hsta_fast")` then take. `accelerate`
imports it when it meets a module of transformers.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2PoolerCrossAttention

from .. import ops
from ..replaced import any_global_hook, is_plain, plain_tensor
from .switching import Find, Left, Switch, Switched, Undo, bypassed, captured, own_forward, switch_class
from .torch_modules import absorbed
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


def finder(root: nn.Module) -> Find:
    """Tells of each module of `root` whether it can be switched."""
    configurations = _Configurations(root)

    def find(module: nn.Module) -> Switch | Left | None:
        kind = type(module)
        if kind is SiglipMultiheadAttentionPoolingHead:
            return _siglip_head(module)
        if kind is VJEPA2PoolerCrossAttention:
            return _vjepa2_cross_attention(module)
        if _is_self_attention(kind):
            return configurations.switch(module)
        base = next(filter(_is_self_attention, kind.__mro__), None)
        return None if base is None else configurations.leave(module, f"a subclass of {base.__name__}")

    return find


def _is_self_attention(kind: type) -> bool:
    return kind.__module__.startswith("transformers.") and kind.__name__ in _SELF_ATTENTION


def _implementation(module: nn.Module) -> str:
    return str(cast(Any, module).config._attn_implementation)


def _why_not(module: nn.Module) -> str | None:
    """Why an attention module must keep its implementation; None if "sdpa" is what it calls."""
    if (reason := own_forward(module)) is not None:
        return reason
    implementation = _implementation(module)
    if implementation == "eager":
        return 'attn_implementation "eager" returns the attention weights'
    if implementation == NAME:
        return f'attn_implementation is "{NAME}" already'
    return None if implementation == "sdpa" else f'attn_implementation is "{implementation}", not "sdpa"'


def _dropout_note(probability: float) -> str:
    return f"sdpa in training: attention dropout {probability:g}" if probability else ""


class _Configurations:
    """The configurations of one model. Copies are switched: an original may belong to other models too.

    The model's modules share the copies as they shared the originals, so `set_attn_implementation` and all
    else that reads or changes a configuration works as before.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._left: set[nn.Module] = set()
        self._originals: list[tuple[Any, Any]] = []

    def switch(self, module: nn.Module) -> Switch | Left:
        if (reason := _why_not(module)) is not None:
            return self.leave(module, reason)
        names = ("dropout_prob", "attention_dropout", "dropout")
        found = [vars(module)[name] for name in names if isinstance(vars(module).get(name), float)]
        note = _dropout_note(found[0] if found else 0.0)
        return Switch("space_time_attention (sdpa with a mask)", lambda: self._apply(module), note)

    def leave(self, module: nn.Module, why: str) -> Left:
        self._left.add(module)
        return Left(why)

    def _apply(self, module: Any) -> Undo:
        if not self._originals:
            self._copy_all()
        module.config._attn_implementation_internal = NAME
        return self._restore

    def _copy_all(self) -> None:
        memo: dict[int, Any] = {}
        for module in self._root.modules():
            config = vars(module).get("config")
            if isinstance(config, PreTrainedConfig) and module not in self._left:
                self._originals.append((module, config))
                cast(Any, module).config = copy.deepcopy(config, memo)

    def _restore(self) -> None:
        for module, config in self._originals:
            module.config = config
        self._originals.clear()


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
            q_weight=self.q_proj.weight,
            q_bias=self.q_proj.bias,
            k_weight=self.k_proj.weight,
            k_bias=self.k_proj.bias,
            v_weight=self.v_proj.weight,
            v_bias=self.v_proj.bias,
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
