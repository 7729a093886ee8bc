"""Torch's own modules: patch embeddings that are nn.Conv3d, and nn.MultiheadAttention."""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import ops
from .switching import Left, Switch, Switched, switch_class
from .worth import absorbing_pays, fusing_pays


class PatchConv3d(Switched):
    """nn.Conv3d whose kernel is its stride: a product of whole patches with the weight."""

    in_channels: int
    kernel_size: tuple[int, int, int]
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """(B, K, T, H, W) -> (B, C, T / t, H / p, W / q), with the strides of channels_last_3d."""
        usable = (
            isinstance(input, Tensor)
            and input.dim() == 5
            and input.shape[1] == self.in_channels
            and (input.dtype == self.weight.dtype or torch.is_autocast_enabled(input.device.type))
            and input.is_floating_point()
            and input.device == self.weight.device
            and input.shape[0] > 0
            and all(size >= k for size, k in zip(input.shape[2:], self.kernel_size, strict=True))
        )
        if not usable:
            return super().forward(input)  # type: ignore[misc]
        grid = [size // k for size, k in zip(input.shape[2:], self.kernel_size, strict=True)]
        if self.in_channels == 3:
            bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
            tokens = ops.tubelet_embed(input, self.weight, bias)
        else:
            tokens = F.linear(self._patches(input, grid), self.weight.flatten(1), self.bias)
        # Not unflatten and not view(*grid) of another order: the tokens stay where they are.
        return tokens.transpose(1, 2).view(len(tokens), -1, *grid)

    def _patches(self, video: Tensor, grid: list[int]) -> Tensor:
        T, H, W = (n * k for n, k in zip(grid, self.kernel_size, strict=True))
        t, p, q = self.kernel_size
        pattern = "b c (gt t) (gh p) (gw q) -> b (gt gh gw) (c t p q)"
        return rearrange(video[:, :, :T, :H, :W], pattern, t=t, p=p, q=q)


def conv3d(module: nn.Conv3d) -> Switch | Left | None:
    """The switch of a patch embedding; None for any other convolution."""
    if module.kernel_size != module.stride or module.kernel_size == (1, 1, 1):
        return None
    if module.padding not in ((0, 0, 0), "valid"):
        return Left(f"padding {module.padding}")
    if module.groups != 1:
        return Left(f"{module.groups} groups")
    if module.dilation != (1, 1, 1):
        return Left(f"dilation {module.dilation}")
    t, p, q = module.kernel_size
    size = 1, module.in_channels, 2 * t, 2 * p + 1, 3 * q

    def sample() -> tuple[tuple[Tensor], dict[str, Tensor]]:
        return (torch.randn(size, dtype=torch.float64),), {}

    return switch_class(module, PatchConv3d, "tubelet_embed: a product of patches", sample)


class FastMultiheadAttention(Switched):
    """nn.MultiheadAttention: self-attention fused, a few queries absorbed, where no weights are asked for."""

    embed_dim: int
    num_heads: int
    dropout: float
    batch_first: bool
    training: bool
    _qkv_same_embed_dim: bool
    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    out_proj: nn.Linear

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
        plain = (
            not need_weights
            and key_padding_mask is None
            and attn_mask is None
            and not is_causal
            and key is value
            and not (self.training and self.dropout)
            and query.dim() == key.dim() == 3
            and not query.is_nested
            and query.is_floating_point()
            and query.dtype == key.dtype
        )
        if plain:
            x, tokens = (query, key) if self.batch_first else (query.transpose(0, 1), key.transpose(0, 1))
            few = query is not key
            plain = (
                absorbing_pays(x.shape[1], self.num_heads, tokens)
                if few
                else fusing_pays(x, x.shape[1], x.shape[2])
            )
        if not plain:
            return super().forward(  # type: ignore[misc]
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        out = absorbed(cast(nn.MultiheadAttention, self), x, tokens) if few else self._self(tokens)
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _self(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = rearrange(qkv, "b n (three h d) -> b n three h d", three=3, h=self.num_heads)
        attended = rearrange(ops.space_time_attention(qkv), "b n h d -> b n (h d)")
        return F.linear(attended, self.out_proj.weight, self.out_proj.bias)


def absorbed(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """What `attention` gives for few queries (B or 1, R, C) over tokens (B, N, C): (B, R, C)."""
    q, k, v = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    attended = ops.few_query_attention(
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
    return F.linear(attended, attention.out_proj.weight, attention.out_proj.bias)


def multihead_attention(module: nn.MultiheadAttention) -> Switch | Left:
    """The switch of torch's attention module; which form runs is decided at each call."""
    if not module._qkv_same_embed_dim:
        return Left("keys or values of another width")
    if module.bias_k is not None or module.add_zero_attn:
        return Left("a key and value row of its own (add_bias_kv, add_zero_attn)")
    if type(module.out_proj).__mro__[1] is not nn.Linear:
        return Left(f"its output projection is a {type(module.out_proj).__name__}")

    def sample() -> tuple[tuple[Tensor, ...], dict[str, bool]]:
        x = torch.randn(3, 7, module.embed_dim, dtype=torch.float64)
        return (x, x, x), {"need_weights": False}

    return switch_class(
        module, FastMultiheadAttention, "space_time_attention, or few_query_attention of few queries", sample
    )
