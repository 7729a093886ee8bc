"""The published HSTA model written out a second time, as an oracle for the tests.

Plain functions over a state dict with the published keys, straight from the equations and with elementary
tensor operations only: it shares no code with the package, so an error in one of the two shows as a
difference. It is the model without any dropout or drop path; autograd differentiates all of it, so
gradients can be compared too. One of them is zero: softmax does not see the bias of CSTA's wk, and only
rounding is left in its gradient.

Branch 0 is special (onset, apex), branch 1 is video. One letter set: B batch, T video frames, N patch
tokens, C width, H heads, D = C / H.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

EPS = 1e-6
BRANCHES = (0, 1)
HEADS = ("cls", "cls+last", "mean")

State = Mapping[str, Tensor]


def _linear_shapes(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _usta_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_norm_shapes(f"{name}.norm1", width),
        f"{name}.attn.qkv.weight": (3 * width, width),
        f"{name}.attn.q_bias": (width,),
        f"{name}.attn.v_bias": (width,),
        **_linear_shapes(f"{name}.attn.proj", width, width),
        **_norm_shapes(f"{name}.norm2", width),
        **_linear_shapes(f"{name}.mlp.fc1", width, 4 * width),
        **_linear_shapes(f"{name}.mlp.fc2", 4 * width, width),
    }


def _csta_shapes(name: str, a: int, width_a: int, width_b: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        **_norm_shapes(f"{name}.projs.{a}.0", width_a),
        **_linear_shapes(f"{name}.projs.{a}.2", width_a, width_b),
        **_norm_shapes(f"{name}.fusion.{a}.norm1", width_b),
        **_norm_shapes(f"{name}.revert_projs.{a}.0", width_b),
        **_linear_shapes(f"{name}.revert_projs.{a}.2", width_b, width_a),
    }
    for part in ("wq", "wk", "wv", "proj"):
        shapes |= _linear_shapes(f"{name}.fusion.{a}.attn.{part}", width_b, width_b)
    return shapes


def published_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every key of a published checkpoint with its shape.

    `config` holds `widths` (C special, C video), `patches` (pixels, same order), `n_s`, `n_v`, `layers`
    (K), `num_classes`, and, if not the published ones, `tubelet` (2 frames) and `head` ("cls",
    "cls+last", "mean"). Other entries, such as the number of heads, leave no trace in the shapes and are
    not looked at.
    """
    widths, depths = config["widths"], (config["n_s"], config["n_v"])
    head = _checked_head(config.get("head", "cls"))
    shapes: dict[str, tuple[int, ...]] = {}
    for d in BRANCHES:
        width, patch = widths[d], config["patches"][d]
        shapes[f"cls_token.{d}"] = (1, 1, width)
        shapes[f"patch_embed.{d}.proj.weight"] = (width, 3, config.get("tubelet", 2), patch, patch)
        shapes[f"patch_embed.{d}.proj.bias"] = (width,)
        for k in range(config["layers"]):
            for i in range(depths[d]):
                shapes |= _usta_shapes(f"blocks.{k}.blocks.{d}.{i}", width)
            shapes |= _csta_shapes(f"blocks.{k}", d, width, widths[1 - d])
        shapes |= _norm_shapes(f"norm.{d}", width)
    features = sum(widths) * (2 if head == "cls+last" else 1)
    return shapes | _linear_shapes("head", features, config["num_classes"])


def published_state(config: Mapping[str, Any], *, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """A random state dict of `published_shapes(config)`, on the CPU.

    No bias is zero and no norm is one, as they would be after an ordinary initialisation, so that one
    left out shows. Drawn in float64 and then cast: a seed gives the same numbers, up to rounding, in
    every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in published_shapes(config).items():
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        if key.startswith("cls_token"):
            value = noise
        elif key.endswith("bias"):
            value = 0.15 * noise
        elif len(shape) == 1:  # the weight of a norm
            value = 1.0 + 0.2 * noise
        else:
            value = noise / math.sqrt(math.prod(shape[1:]))
        state[key] = value.to(dtype)
    return state


def published_logits(
    state: State, clip: Tensor, *, num_heads: int | tuple[int, int], head: str = "cls"
) -> Tensor:
    """Logits (B, classes) of clips (B, 3, T + 2, height, width): T video frames, then onset and apex.

    `clip` has the dtype of `state`. `num_heads` is one number or (special, video). Everything else is
    read off the shapes. Raises ValueError for a clip of another layout, a T that is no multiple of the
    tubelet depth, a number of heads that does not divide its width, or an unknown head.
    """
    _checked_head(head)
    if clip.ndim != 5 or clip.shape[1] != 3 or clip.shape[2] < 3:
        raise ValueError(f"wanted a clip (B, 3, T + 2, height, width), got {tuple(clip.shape)}")
    heads = (num_heads, num_heads) if isinstance(num_heads, int) else num_heads
    x = [_embed(state, d, frames) for d, frames in enumerate((clip[:, :, -2:], clip[:, :, :-2]))]
    for k in range(_count(state, "blocks.{}.projs.0.0.weight")):
        for d in BRANCHES:
            for i in range(_count(state, f"blocks.{k}.blocks.{d}.{{}}.norm1.weight")):
                x[d] = _usta(state, f"blocks.{k}.blocks.{d}.{i}", x[d], heads[d])
        # Both new CLS are made from the states before CSTA, hence a new list and no assignment in between.
        x = [_csta(state, f"blocks.{k}", a, x[a], x[1 - a], heads[1 - a]) for a in BRANCHES]
    x = [_norm(state, f"norm.{d}", x[d]) for d in BRANCHES]
    if head == "mean":
        features = [tokens.mean(dim=1) for tokens in x]
    else:
        features = [tokens[:, 0] for tokens in x]
        if head == "cls+last":
            features += [tokens[:, -1] for tokens in x]
    return _linear(state, "head", torch.cat(features, dim=-1))


def _checked_head(head: str) -> str:
    if head not in HEADS:
        raise ValueError(f"head: wanted one of {', '.join(HEADS)}, got {head!r}")
    return head


def _count(state: State, pattern: str) -> int:
    count = 0
    while pattern.format(count) in state:
        count += 1
    return count


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + EPS) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k' / sqrt(D)) v in every head, for q (B, Nq, C) and k, v (B, N, C); gives (B, Nq, C)."""
    if q.shape[-1] % heads:
        raise ValueError(f"num_heads: wanted a divisor of the width {q.shape[-1]}, got {heads}")
    size = q.shape[-1] // heads
    outputs = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * size**-0.5
        # Shifting a row does not change its softmax; without it exp could overflow.
        weights = torch.exp(scores - scores.detach().amax(dim=-1, keepdim=True))
        outputs.append(weights / weights.sum(dim=-1, keepdim=True) @ v[..., part])
    return torch.cat(outputs, dim=-1)


@cache
def _position_table(positions: int, width: int) -> np.ndarray:
    """The fixed sine / cosine table (positions, width), float64; position 0 is the CLS."""
    table = np.empty((positions, width), dtype=np.float64)
    for position in range(positions):
        for j in range(width):
            angle = position / 10000 ** (2 * (j // 2) / width)
            table[position, j] = math.sin(angle) if j % 2 == 0 else math.cos(angle)
    return table


def _patches(frames: Tensor, depth: int, patch: int) -> Tensor:
    """Tubelets (B, N, 3 * depth * patch * patch) of frames (B, 3, T, height, width).

    Tokens in the order t, h, w. Rows and columns beyond the last whole patch are dropped.
    """
    batch, channels, num_frames, height, width = frames.shape
    if num_frames % depth:
        raise ValueError(f"frames: wanted a multiple of the tubelet depth {depth}, got {num_frames}")
    tubelets = []
    for t in range(0, num_frames, depth):
        for row in range(0, height - patch + 1, patch):
            for column in range(0, width - patch + 1, patch):
                tubelet = frames[:, :, t : t + depth, row : row + patch, column : column + patch]
                tubelets.append(tubelet.reshape(batch, channels * depth * patch * patch))
    return torch.stack(tubelets, dim=1)


def _embed(state: State, d: int, frames: Tensor) -> Tensor:
    """Tokens (B, N + 1, C) of branch `d`, CLS first, positions added."""
    kernel = state[f"patch_embed.{d}.proj.weight"]
    width, _, depth, patch, _ = kernel.shape
    tokens = _patches(frames, depth, patch) @ kernel.reshape(width, -1).T
    tokens = tokens + state[f"patch_embed.{d}.proj.bias"]
    cls = state[f"cls_token.{d}"].expand(len(frames), 1, width)
    x = torch.cat([cls, tokens], dim=1)
    return x + torch.from_numpy(_position_table(x.shape[1], width)).to(device=x.device, dtype=x.dtype)


def _usta(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    """One unimodal block over all tokens of a branch (Eq. 1-6). The keys have no bias."""
    width = x.shape[-1]
    y = _norm(state, f"{name}.norm1", x)
    qkv = state[f"{name}.attn.qkv.weight"]
    q = y @ qkv[:width].T + state[f"{name}.attn.q_bias"]
    k = y @ qkv[width : 2 * width].T
    v = y @ qkv[2 * width :].T + state[f"{name}.attn.v_bias"]
    x = x + _linear(state, f"{name}.attn.proj", _attention(q, k, v, heads))
    y = _norm(state, f"{name}.norm2", x)
    return x + _linear(state, f"{name}.mlp.fc2", _gelu(_linear(state, f"{name}.mlp.fc1", y)))


def _csta(state: State, name: str, a: int, x_a: Tensor, x_b: Tensor, heads_b: int) -> Tensor:
    """Branch a after its CLS has queried branch b (Eq. 8-13): a new CLS, the same patch tokens."""
    fusion = f"{name}.fusion.{a}"
    c = _linear(state, f"{name}.projs.{a}.2", _gelu(_norm(state, f"{name}.projs.{a}.0", x_a[:, :1])))
    y = _norm(state, f"{fusion}.norm1", torch.cat([c, x_b[:, 1:]], dim=1))
    q = _linear(state, f"{fusion}.attn.wq", y[:, :1])
    k = _linear(state, f"{fusion}.attn.wk", y)
    v = _linear(state, f"{fusion}.attn.wv", y)
    out = c + _linear(state, f"{fusion}.attn.proj", _attention(q, k, v, heads_b))
    back = _gelu(_norm(state, f"{name}.revert_projs.{a}.0", out))
    return torch.cat([_linear(state, f"{name}.revert_projs.{a}.2", back), x_a[:, 1:]], dim=1)
