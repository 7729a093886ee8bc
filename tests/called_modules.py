"""HSTA's equations with every submodule called: what a model with replaced submodules computes.

Plain formulas between the calls, no fast path. Submodules are called in the model's order, so that the
dropout of an adapter draws the same numbers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsta_fast.model import HSTA, IMAGENET_MEAN, IMAGENET_STD, position_table


def heads(x: Tensor, count: int) -> Tensor:
    """(B, N, H D) -> (B, H, N, D)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, N, D), (B, H, M, D), (B, H, M, D) -> (B, N, H D)."""
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def called_attention(module: Any, x: Tensor) -> Tensor:
    """SpaceTimeAttention, Eq. 2 and 3."""
    qkv = module.qkv(x) + torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])
    return module.proj(attention(*(heads(part, module.num_heads) for part in qkv.chunk(3, dim=-1))))


def called_cross_attention(block: Any, cls: Tensor, tokens: Tensor) -> Tensor:
    """CrossAttentionBlock, Eq. 9 and 10."""
    y = block.norm1(torch.cat([cls.unsqueeze(1), tokens], dim=1))
    attn, H = block.attn, block.num_heads
    attended = attention(heads(attn.wq(y[:, :1]), H), heads(attn.wk(y), H), heads(attn.wv(y), H))
    return cls + attn.proj(attended[:, 0])


def called_embedding(module: Any, video: Tensor, cls: Tensor) -> Tensor:
    """TubeletEmbed of bytes, with positions."""
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (video.double() / 255 - mean.view(3, 1, 1, 1)) / std.view(3, 1, 1, 1)
    tokens = module.proj(pixels.to(cls.dtype)).flatten(2).transpose(1, 2)
    x = torch.cat([cls.expand(len(tokens), 1, -1), tokens], dim=1)
    return x + position_table(*x.shape[1:]).to(x.dtype)


def called_embeddings(model: HSTA, video: Tensor, special: Tensor) -> list[Tensor]:
    """The states before the first layer, special and video."""
    frames = {"0": special, "1": video}
    return [called_embedding(model.patch_embed[b], x, model.cls_token[b]) for b, x in frames.items()]


def called_usta(layer: Any, states: list[Tensor]) -> list[Tensor]:
    """The USTA layers of an HSTALayer, Eq. 1 to 6."""
    out = []
    for d, x in enumerate(states):
        for block in layer.blocks[str(d)]:
            x = x + called_attention(block.attn, block.norm1(x))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        out.append(x)
    return out


def called_csta(csta: Any, states: list[Tensor]) -> list[Tensor]:
    """CrossmodalSpaceTimeAttention, Eq. 8 to 13."""
    new = []
    for a, b in ((0, 1), (1, 0)):
        out = called_cross_attention(csta.fusion[a], csta.projs[a](states[a][:, 0]), states[b][:, 1:])
        new.append(torch.cat([csta.revert_projs[a](out).unsqueeze(1), states[a][:, 1:]], dim=1))
    return new


def called_logits(model: HSTA, video: Tensor, special: Tensor) -> Tensor:
    """Logits of a model of both branches with the head "cls" and no dropout of its own, Eq. 14 to 16."""
    states = called_embeddings(model, video, special)
    layer: Any
    for layer in model.blocks:
        states = called_csta(layer.csta, called_usta(layer, states))
    return model.head(torch.cat([model.norm[str(d)](states[d])[:, 0] for d in (0, 1)], dim=1))


def scalar(logits: Tensor) -> Tensor:
    """A scalar to differentiate, with another weight for each logit."""
    return (logits * torch.linspace(0.5, 1.5, logits.numel(), dtype=logits.dtype).view_as(logits)).sum()


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Any]:
    """The gradient of every parameter that requires one."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))
