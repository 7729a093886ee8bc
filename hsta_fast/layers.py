"""The modules of HSTA, built on the ops. Parameters have the names of the published model.

B batch, T frames, N patch tokens, C width, H heads, D = C / H head width. Branch 0 is special, 1 is video.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import ops
from .ops.checks import check_heads, check_shape
from .ops.tubelet_embed import normalize
from .recompute import Recomputed
from .replaced import any_global_hook, has_bias, is_plain, warn_of_call

LN_EPS = 1e-6


class TubeletEmbed(nn.Module):
    """Video (B, 3, T, H, W) to tokens (B, N, C), or (B, N + 1, C) with a CLS (section 3.2).

    Args:
        width: C.
        patch_size: p, in pixels.
        tubelet_depth: t, in frames.
        mean: three floats on the 0..1 scale, to normalise uint8 video.
        std: as `mean`.
    """

    def __init__(
        self,
        width: int,
        *,
        patch_size: int,
        tubelet_depth: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        kernel = (tubelet_depth, patch_size, patch_size)
        # While it is plain, only its parameters are used: the op does the computation.
        self.proj = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel)
        self.mean, self.std = mean, std

    def forward(
        self, video: Tensor, cls_token: Tensor | None = None, pos_embed: Tensor | None = None
    ) -> Tensor:
        """uint8 video is normalised by mean and std; float video must already be normalised."""
        if not self._is_plain():
            return self._call_proj(video, cls_token, pos_embed)
        pixels = video.dtype == torch.uint8
        return ops.tubelet_embed(
            video,
            self.proj.weight,
            cast(Tensor, self.proj.bias),
            mean=self.mean if pixels else None,
            std=self.std if pixels else None,
            cls_token=cls_token,
            pos_embed=pos_embed,
        )

    def _is_plain(self) -> bool:
        """Whether `proj` does what the op computes from its weight and bias."""
        proj = cast(nn.Conv3d, self._modules["proj"])
        return (
            is_plain(proj, nn.Conv3d)
            and not any_global_hook()
            and has_bias(proj)
            and (proj.stride, proj.padding, proj.dilation) == (proj.kernel_size, (0, 0, 0), (1, 1, 1))
            and proj.groups == 1
        )

    def _call_proj(self, video: Tensor, cls_token: Tensor | None, pos_embed: Tensor | None) -> Tensor:
        """The same with `proj` called on the normalised frames, in the dtype of its parameters."""
        cost = "it is called on frames that are normalised beforehand, which takes longer"
        warn_of_call(self, "proj", nn.Conv3d, cost)
        dtypes = [p.dtype for p in self.proj.parameters() if p.is_floating_point()]
        pixels = video.dtype == torch.uint8
        mean, std = (self.mean, self.std) if pixels else (None, None)
        tokens = self.proj(normalize(video, mean, std, dtypes[0] if dtypes else torch.float32))
        tokens = tokens.flatten(2).transpose(1, 2)
        dtype = tokens.dtype
        if cls_token is not None:
            tokens = torch.cat([cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if pos_embed is not None:
            check_shape("pos_embed", pos_embed, (1, *tokens.shape[1:]), "(1, N, C), N with the CLS")
            tokens = tokens + pos_embed
        return tokens.to(dtype)


def product(layer: nn.Module, x: Tensor, *, gelu: bool = False) -> Tensor:
    """`layer(x)` of an nn.Linear, then GELU with `gelu`: in one op where the layer is plain."""
    if is_plain(layer, nn.Linear) and not any_global_hook():
        linear = cast(nn.Linear, layer)
        return ops.linear(x, linear.weight, linear.bias, gelu=gelu)
    y = layer(x)
    return F.gelu(y) if gelu else y


class SpaceTimeAttention(nn.Module):
    """Self-attention over all space-time tokens (B, N, C) -> (B, N, C), Eq. 2 and 3.

    One product computes q, k and v. q and v have a bias; that of k would cancel in the softmax.

    Args:
        width: C.
        num_heads: H, a divisor of C.
        dropout: after the output projection; none on the attention weights.
        impl: implementation of the attention, as in `hsta_fast.space_time_attention`.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float = 0.0, impl: str = "auto") -> None:
        super().__init__()
        check_heads(num_heads, width)
        self.num_heads = num_heads
        self.impl = impl
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        attended = ops.space_time_attention(self._qkv(x), impl=self.impl)
        return self.dropout(product(self.proj, rearrange(attended, "b n h d -> b n (h d)")))

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Q and k (B, N, H, D) of the tokens (B, N, C), of which the weights are softmax(q k^T / sqrt(D))."""
        q, k, _ = self._qkv(x).unbind(2)
        return q, k

    def _qkv(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 3, H, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        projection = self.qkv
        if is_plain(projection, nn.Linear) and not has_bias(projection) and not any_global_hook():
            qkv = ops.linear(x, projection.weight, bias)  # the biases are added inside the product
        else:
            qkv = projection(x)
            qkv = qkv + bias.to(qkv.dtype)
        return rearrange(qkv, "b n (three h d) -> b n three h d", three=3, h=self.num_heads)


class Mlp(nn.Module):
    """(..., C) -> (..., C) through a hidden layer with exact GELU; dropout after both layers."""

    def __init__(self, width: int, *, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.dropout(product(self.fc2, self.dropout(product(self.fc1, x, gelu=True))))


class DropPath(nn.Module):
    """In training, drops the residual branch of a sample with probability `rate` and scales up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * (kept / keep)


class USTA(Recomputed):
    """One unimodal space-time attention layer: a pre-norm transformer block over all tokens (Eq. 1-6)."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        eps: float = LN_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SpaceTimeAttention(width, num_heads=num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden=int(width * mlp_ratio), dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N + 1, C) -> (B, N + 1, C)."""
        return self.recomputed(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """Tokens (B, N, C) to (B, R, C): for each of R learned queries a weighted mean of the normalised tokens.

    Args:
        width: C.
        num_queries: R.
        normalize: whether tokens are normalised to mean 0 and variance 1 over C.
        impl: implementation, as in `hsta_fast.attention_pool`.
    """

    def __init__(
        self, width: int, *, num_queries: int = 1, normalize: bool = True, impl: str = "auto"
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.impl = impl
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_queries, width), std=0.02))

    def forward(
        self, tokens: Tensor, *, extra: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, N, C), optional extra row (B, C) -> (B, R, C), optional weights (B, R, N or 1 + N)."""
        return ops.attention_pool(
            self.query,
            tokens,
            extra=extra,
            normalize=self.normalize,
            eps=LN_EPS,
            return_weights=return_weights,
            impl=self.impl,
        )
