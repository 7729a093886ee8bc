"""The published HSTA in ordinary torch modules: what profiles and benchmarks time this package against.

Conv3d for the tubelets, attention written out, CSTA with keys and values of every token. Its state dict has
the published keys, so it can load our weights. Like the models it is timed against, it has no dropout and no
drop path.

B batch, N patch tokens, C width, H heads, D = C / H. Branch 0 is special, 1 is video.
"""

from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import HSTA, IMAGENET_MEAN, IMAGENET_STD, HSTAConfig, position_table

AttentionForm = Literal["materialised", "sdpa"]
_EPS = 1e-6


def _materialised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D)) v for (B, H, N, D); all scores are written to memory, as published."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


_ATTENTION: dict[AttentionForm, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "materialised": _materialised,
    "sdpa": F.scaled_dot_product_attention,
}


def attend(form: AttentionForm, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q (B, H, N, D) over k, v (B, H, M, D) -> (B, H, N, D), by one of the forms."""
    return _ATTENTION[form](q, k, v)


class Attention(nn.Module):
    """Self-attention over all tokens of a clip (Eq. 2, 3)."""

    def __init__(self, width: int, heads: int, attention: AttentionForm) -> None:
        super().__init__()
        self.heads = heads
        self.attention: AttentionForm = attention
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(self.attention, q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block (Eq. 1-6)."""

    def __init__(self, width: int, heads: int, hidden: int, attention: AttentionForm) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads, attention)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N + 1, C) -> (B, N + 1, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossAttention(nn.Module):
    """One query over all rows."""

    def __init__(self, width: int, heads: int, attention: AttentionForm) -> None:
        super().__init__()
        self.heads = heads
        self.attention: AttentionForm = attention
        self.wq, self.wk, self.wv, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, y: Tensor) -> Tensor:
        """(B, N + 1, C) -> (B, 1, C): the first row attends to all."""
        rows = {"q": self.wq(y[:, :1]), "k": self.wk(y), "v": self.wv(y)}
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in rows.values())
        return self.proj(attend(self.attention, q, k, v).transpose(1, 2).flatten(2))


class Fusion(nn.Module):
    """CSTA of one direction between the two projections (Eq. 9, 10)."""

    def __init__(self, width: int, heads: int, attention: AttentionForm) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = CrossAttention(width, heads, attention)

    def forward(self, cls: Tensor, tokens: Tensor) -> Tensor:
        """Cls (B, 1, C), tokens (B, N, C) -> (B, 1, C)."""
        return cls + self.attn(self.norm1(torch.cat([cls, tokens], 1)))


def _projection(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width_in, eps=_EPS), nn.GELU(), nn.Linear(width_in, width_out))


class Layer(nn.Module):
    """Blocks of each branch, then CSTA (Eq. 14)."""

    def __init__(self, config: HSTAConfig, attention: AttentionForm) -> None:
        super().__init__()
        widths, heads, depths = config.widths, config.num_heads, (config.n_special, config.n_video)
        self.blocks = nn.ModuleDict(
            {
                str(d): nn.ModuleList(
                    Block(widths[d], heads[d], int(widths[d] * config.mlp_ratio), attention)
                    for _ in range(depths[d])
                )
                for d in (0, 1)
            }
        )
        self.projs = nn.ModuleList(_projection(widths[a], widths[1 - a]) for a in (0, 1))
        self.fusion = nn.ModuleList(Fusion(widths[1 - a], heads[1 - a], attention) for a in (0, 1))
        self.revert_projs = nn.ModuleList(_projection(widths[1 - a], widths[a]) for a in (0, 1))

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """[special (B, N_0 + 1, C_0), video (B, N_1 + 1, C_1)] -> the same."""
        for d, blocks in enumerate(self.blocks.values()):
            for block in cast(nn.ModuleList, blocks):
                states[d] = block(states[d])
        return self.exchange(states)

    def exchange(self, states: list[Tensor]) -> list[Tensor]:
        """CSTA in both directions: the same states with new CLS rows (Eq. 8-13)."""
        new = []
        for a in (0, 1):
            cls = self.fusion[a](self.projs[a](states[a][:, :1]), states[1 - a][:, 1:])
            new.append(torch.cat([self.revert_projs[a](cls), states[a][:, 1:]], 1))
        return new


class PublishedHSTA(nn.Module):
    """The published model in eager torch, with a copy of the weights of `model`, on its device.

    Args:
        model: has a published configuration (both branches, CSTA); its dtype and device are taken.
        attention: "materialised", as published, writes all scores to memory; "sdpa" calls torch's
            scaled_dot_product_attention.

    Raises:
        ValueError: the published model has no such configuration, or an unknown `attention`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: HSTA, *, attention: AttentionForm = "materialised") -> None:
        super().__init__()
        if attention not in _ATTENTION:
            known = ", ".join(get_args(AttentionForm))
            raise ValueError(f"attention expected one of {known}, got {attention!r}")
        config = model.config
        if config.head != "cls":
            raise ValueError(f"model expected head 'cls' (as published), got {config.head!r}")
        with torch.device("meta"):  # every value is loaded below
            self.cls_token = nn.ParameterDict({str(d): torch.empty(1, 1, config.widths[d]) for d in (0, 1)})
            self.patch_embed = nn.ModuleDict()
            for d in (0, 1):
                size = (config.tubelet_depth, config.patch_sizes[d], config.patch_sizes[d])
                proj = nn.Conv3d(3, config.widths[d], size, stride=size)
                self.patch_embed[str(d)] = nn.ModuleDict({"proj": proj})
            self.blocks = nn.ModuleList(Layer(config, attention) for _ in range(config.num_layers))
            self.norm = nn.ModuleDict({str(d): nn.LayerNorm(config.widths[d], eps=_EPS) for d in (0, 1)})
            self.head = nn.Linear(sum(config.widths), config.num_classes)
        weight = model.head.weight
        self.to(weight.dtype).to_empty(device=weight.device)
        self.load_state_dict(model.published_state_dict())
        # On the device before a step is timed: creating a constant there is a synchronising copy.
        for name, values in {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}.items():
            constant = torch.tensor(values, dtype=weight.dtype, device=weight.device).view(3, 1, 1, 1)
            self.register_buffer(name, constant, persistent=False)
        self._tables: dict[tuple[int, int], Tensor] = {}

    def compile_blocks(self, backend: str) -> None:
        """Compile every block for its own shape; equal blocks share the compiled code."""
        for module in self.modules():
            if isinstance(module, Block | Fusion):
                module.compile(backend=backend, dynamic=False)

    def _positions(self, x: Tensor) -> Tensor:
        key = (x.shape[1], x.shape[2])
        if key not in self._tables:
            self._tables[key] = position_table(*key).to(x.device, self.head.weight.dtype)
        return self._tables[key]

    def embed(self, d: int, frames: Tensor) -> Tensor:
        """uint8 frames (B, 3, T, H, W) of branch d -> (B, N + 1, C), CLS first, positions added."""
        pixels = (frames.to(self.head.weight.dtype) / 255 - self.mean) / self.std
        embed = cast(nn.ModuleDict, self.patch_embed[str(d)])
        tokens = embed["proj"](pixels).flatten(2).transpose(1, 2)
        cls = self.cls_token[str(d)].expand(len(tokens), -1, -1)
        x = torch.cat([cls.to(tokens.dtype), tokens], 1)
        return x + self._positions(x).to(x.dtype)

    def forward(self, video: Tensor, special: Tensor) -> Tensor:
        """uint8 video (B, 3, T, H, W) and special (B, 3, 2, H, W) -> logits (B, classes)."""
        states = [self.embed(d, frames) for d, frames in enumerate((special, video))]
        for layer in self.blocks:
            states = layer(states)
        features = [norm(x)[:, 0] for norm, x in zip(self.norm.values(), states, strict=True)]
        return self.head(torch.cat(features, 1))
