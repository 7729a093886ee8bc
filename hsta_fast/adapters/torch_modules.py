"""Torch's own modules: patch embeddings that are nn.Conv3d, and nn.MultiheadAttention."""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import ops
from ..replaced import plain_tensor
from .switching import Left, Switch, Switched, captured, switch_class
from .worth import MOST_QUERIES, absorbing_pays, fusing_pays, patches_pay, patches_pay_on_cpu


class PatchConv3d(Switched):
    """nn.Conv3d whose kernel is its stride: a product of whole patches with the weight."""

    _flattened = False

    def forward(self, input: Tensor) -> Tensor:
        """(B, K, T, H, W) -> (B, C, T / t, H / p, W / q)."""
        out = patch_product(cast(nn.Conv3d, self), input, flattened=self._flattened)
        return super().forward(input) if out is None else out  # type: ignore[misc]


class FlattenedConv3d(PatchConv3d):
    """The same where the result is flattened to tokens at once: it is a view of contiguous tokens."""

    _flattened = True


def patch_product(conv: nn.Conv3d, input: Tensor, *, flattened: bool = False) -> Tensor | None:
    """What a convolution whose kernel is its stride gives; None where only its own forward may compute it.

    flattened: the result has the strides of channels_last_3d, not those of a convolution.
    """
    kernel, weight, bias = conv.kernel_size, conv.weight, conv.bias
    usable = (
        not captured(input)
        and input.dim() == 5
        and input.shape[1] == conv.in_channels
        and (input.dtype == weight.dtype or torch.is_autocast_enabled(input.device.type))
        and input.is_floating_point()
        and input.device == weight.device
        and input.shape[0] > 0
        and all(size >= k for size, k in zip(input.shape[2:], kernel, strict=True))
        and plain_tensor(weight)
        and patches_pay(input, conv.in_channels, weight[0].numel())
    )
    if not usable:
        return None
    grid = [size // k for size, k in zip(input.shape[2:], kernel, strict=True)]
    if flattened and conv.in_channels == 3:
        tokens = ops.tubelet_embed(input, weight, weight.new_zeros(len(weight)) if bias is None else bias)
        return tokens.transpose(1, 2).view(len(tokens), -1, *grid)
    t, p, q = kernel
    T, H, W = (n * k for n, k in zip(grid, kernel, strict=True))
    pattern = "b c (gt t) (gh p) (gw q) -> b (c t p q) (gt gh gw)"
    columns = rearrange(input[:, :, :T, :H, :W], pattern, t=t, p=p, q=q)
    rows = weight.flatten(1).expand(len(columns), -1, -1)
    out = rows @ columns if bias is None else torch.baddbmm(bias.view(1, -1, 1), rows, columns)
    return out.view(len(out), -1, *grid)


def embeds_patches(module: nn.Conv3d) -> bool:
    """Whether the kernel of a convolution is its stride."""
    return module.kernel_size == module.stride and module.kernel_size != (1, 1, 1)


def why_not_conv3d(module: nn.Conv3d) -> str | None:
    """Why a patch embedding is no product of patches; None if it is."""
    if module.padding not in ((0, 0, 0), "valid"):
        return f"padding {module.padding}"
    if module.groups != 1:
        return f"{module.groups} groups"
    return None if module.dilation == (1, 1, 1) else f"dilation {module.dilation}"


def conv3d(module: nn.Conv3d, *, flattened: bool = False) -> Switch | Left | None:
    """The switch of a patch embedding; None for any other convolution.

    flattened: whether the module around it is known to flatten the result, which then may have any strides.
    """
    if not embeds_patches(module):
        return None
    if (reason := why_not_conv3d(module)) is not None:
        return Left(reason)
    t, p, q = module.kernel_size
    size = 1, module.in_channels, 2 * t, 2 * p + 1, 3 * q

    def sample() -> tuple[tuple[Tensor], dict[str, Tensor]]:
        return (torch.randn(size, dtype=torch.float64),), {}

    if flattened:
        return switch_class(module, FlattenedConv3d, "tubelet_embed: a product of patches", sample)
    on_cpu = patches_pay_on_cpu(module.in_channels, module.weight[0].numel())
    note = "" if on_cpu else "as before on a CPU"
    return switch_class(module, PatchConv3d, "a product of patches", sample, note=note)


class FastMultiheadAttention(Switched):
    """nn.MultiheadAttention: self-attention fused, a few queries absorbed, where no weights are asked for."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention's."""
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        out = None
        if not need_weights and not masked:
            out = attended(cast(nn.MultiheadAttention, self), query, key, value)
        if out is not None:
            return out, None
        return super().forward(  # type: ignore[misc]
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )


def attended(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
    """What `attention` gives without masks and weights; None where only its own forward may compute it."""
    weights = attention.in_proj_weight, attention.out_proj.weight
    usable = (
        not captured(query)
        and not captured(key)
        and key is value
        and not (attention.training and attention.dropout)
        and query.dim() == key.dim() == 3
        and not query.is_nested
        and query.is_floating_point()
        and query.dtype == key.dtype
        and query.numel() > 0
        and query.shape[0 if attention.batch_first else 1] == key.shape[0 if attention.batch_first else 1]
        and key.numel() > 0
        and (query.dtype == weights[0].dtype or torch.is_autocast_enabled(query.device.type))
        and all(map(plain_tensor, weights))
    )
    if not usable:
        return None
    x, tokens = (query, key) if attention.batch_first else (query.transpose(0, 1), key.transpose(0, 1))
    few = query is not key
    if few and not absorbing_pays(x.shape[1], attention.num_heads, tokens):
        return None
    if not few and not fusing_pays(x, x.shape[1], x.shape[2]):
        return None
    out = absorbed(attention, x, tokens) if few else _self_attention(attention, tokens)
    return out if attention.batch_first else out.transpose(0, 1).contiguous()


def _self_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    qkv = rearrange(qkv, "b n (three h d) -> b n three h d", three=3, h=attention.num_heads)
    rows = rearrange(ops.space_time_attention(qkv), "b n h d -> b n (h d)")
    return F.linear(rows, attention.out_proj.weight, attention.out_proj.bias)


def absorbed(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """What `attention` gives for few queries (B or 1, R, C) over tokens (B, N, C): (B, R, C)."""
    q, k, v = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    rows = ops.few_query_attention(
        query,
        tokens,
        q_weight=q,
        k_weight=k,
        v_weight=v,
        q_bias=biases[0],
        k_bias=biases[1],
        v_bias=biases[2],
        num_heads=attention.num_heads,
    )
    return F.linear(rows, attention.out_proj.weight, attention.out_proj.bias)


def why_not_attention(module: nn.MultiheadAttention) -> str | None:
    """Why torch's attention module is never what the fast forms compute; None if it is."""
    if not module._qkv_same_embed_dim:
        return "keys or values of another width"
    if module.bias_k is not None or module.add_zero_attn:
        return "a key and value row of its own (add_bias_kv, add_zero_attn)"
    plain = type(module.out_proj).__mro__[1] is nn.Linear
    return None if plain else f"its output projection is a {type(module.out_proj).__name__}"


def multihead_attention(module: nn.MultiheadAttention) -> Switch | Left:
    """The switch of torch's attention module; which form runs is decided at each call."""
    if (reason := why_not_attention(module)) is not None:
        return Left(reason)

    def sample() -> tuple[tuple[Tensor, ...], dict[str, bool]]:
        x = torch.randn(3, 7, module.embed_dim, dtype=torch.float64)
        return (x, x, x), {"need_weights": False}

    def few() -> tuple[tuple[Tensor, ...], dict[str, bool]]:
        query, x = (torch.randn(*size, module.embed_dim, dtype=torch.float64) for size in ((3, 3), (3, 31)))
        query = query[:, :1]
        if not module.batch_first:
            query, x = query.transpose(0, 1), x.transpose(0, 1)
        return (query, x, x), {"need_weights": False}

    note = "as before when weights are asked for, as they are by default"
    note += f", and in training: dropout {module.dropout:g}" if module.dropout else ""
    became = "space_time_attention, or few_query_attention of few queries"
    samples = (sample, few) if module.num_heads <= MOST_QUERIES else (sample,)
    return switch_class(module, FastMultiheadAttention, became, *samples, note=note)
