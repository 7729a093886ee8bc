"""The sources, small and with random weights: each with its file, frames, and tokens after each layer.

VideoMAE and MARLIN are written here in plain torch, under their files' names; the others are built by
transformers and timm from their configurations.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from hsta_fast.model import IMAGENET_MEAN, IMAGENET_STD, position_table

WIDTH, HEADS, DEPTH, PATCH, SIDE, FRAMES = 24, 2, 4, 16, 48, 4
PATCHES = FRAMES // 2 * (SIDE // PATCH) ** 2


@contextmanager
def float64() -> Iterator[None]:
    """Inside, new tensors and models are in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def randomise(model: Any) -> Any:
    """Draw every parameter, biases and norms too, so that none has a neutral value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() < 2 or "pos" in name or "token" in name else p[0].numel() ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale + ("norm" in name))
    return model.double().eval()


class _Linear(nn.Module):
    """A linear layer inside a module, as MARLIN's MLP has them."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, width: int, eps: float, marlin: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width)
        self.mlp = nn.Module()
        if marlin:
            self.mlp.layers = nn.ModuleList([_Linear(width, 4 * width), _Linear(4 * width, width)])
            self.both: list[Any] = [layer.linear for layer in self.mlp.layers]
        else:
            self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.both = [self.mlp.fc1, self.mlp.fc2]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.both[1](F.gelu(self.both[0](self.norm2(x))))


class PlainEncoder(nn.Module):
    """VideoMAE's encoder, or MARLIN's: positions begin at the first patch, and there is no CLS."""

    def __init__(self, width: int = WIDTH, marlin: bool = False, last_norm: bool = True) -> None:
        super().__init__()
        eps, size = (1e-5 if marlin else 1e-6), (2, PATCH, PATCH)
        conv = nn.Conv3d(3, width, size, stride=size)
        table = position_table(PATCHES, width)
        if marlin:
            self.patch_embedding = nn.ModuleDict({"projection": conv})
            self.pos_embedding = nn.Module()
            self.pos_embedding.register_buffer("emb", table)
        else:
            self.patch_embed = nn.ModuleDict({"proj": conv})
        self.blocks = nn.ModuleList(_Block(width, eps, marlin) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width, eps=eps) if last_norm else None
        self.conv, self.table = [conv], [table]  # lists: not registered a second time

    def forward(self, frames: Tensor) -> list[Tensor]:
        states = [self.conv[0](frames).flatten(2).transpose(1, 2) + self.table[0]]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states if self.norm is None else [*states, self.norm(states[-1])]


class PreTraining(nn.Module):
    """The encoder with what stands beside it in a file of pretraining."""

    def __init__(self, encoder: nn.Module, others: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        for name, module in others.items():
            self.add_module(name, module)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 8))


class Case(NamedTuple):
    """A source.

    path: its file; states: tokens (B, N, C) after the embedding, each layer and, where the file has it, the
    last norm; frames: bytes (B, 3, T, H, W); with_cls: whether the first row of the states is a CLS.
    """

    path: Path
    frames: Tensor
    states: list[Tensor]
    eps: float
    with_cls: bool = False


def normalised(frames: Tensor) -> Tensor:
    """Bytes by ImageNet's mean and deviation, in float64."""
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (frames.double() / 255 - mean) / std


def clip(still: bool = False) -> Tensor:
    frames = torch.randint(0, 256, (2, 3, FRAMES, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    return (frames[:, :, :1].expand(-1, -1, 2, -1, -1) if still else frames).to(torch.uint8)


def _videomae(folder: Path, width: int, kind: str) -> Case:
    encoder = PlainEncoder(width, last_norm=kind == "pretraining")
    others = {"decoder": nn.Linear(8, 4), "encoder_to_decoder": nn.Linear(width, 8, bias=False)}
    model: nn.Module = PreTraining(encoder, others) if kind == "pretraining" else encoder
    if kind != "pretraining":
        encoder.fc_norm, encoder.head = nn.LayerNorm(width), nn.Linear(width, 5)
    randomise(model)
    state, frames = model.state_dict(), clip()
    containers: dict[str, dict[str, Any]] = {
        "pretraining": {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3)},
        "fine-tuned": {"module": state},
        "V2 in a wrapper": {f"model.{key}": value for key, value in state.items()},
    }
    torch.save(containers[kind], folder / "videomae.pth")
    return Case(folder / "videomae.pth", frames, encoder(normalised(frames)), 1e-6)


def _marlin(folder: Path, width: int, kind: str) -> Case:
    encoder = PlainEncoder(width, marlin=True)
    others = {
        "decoder": nn.Linear(8, 4),
        "enc_dec_proj": nn.Linear(width, 8),
        "discriminator": nn.Linear(3, 1),
    }
    model = randomise(PreTraining(encoder, others))
    state = {key: value for key, value in model.state_dict().items() if key != "mask_token"}
    if kind == "encoder":
        state = {key: value for key, value in state.items() if key.startswith("encoder.")}
    if kind == "in a wrapper":
        state = {f"marlin.{key}": value for key, value in state.items()}
    torch.save(state, folder / "marlin.pt")
    frames = clip()
    return Case(folder / "marlin.pt", frames, encoder(frames.double() / 255), 1e-5)


def _outputs(model: nn.Module, layers: nn.ModuleList, *args: Tensor, **kwargs: Tensor) -> list[Tensor]:
    """The input of the first layer, and the output of each, of model(...)."""
    states: list[Tensor] = []
    layers[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    for layer in layers:
        layer.register_forward_hook(lambda *got: states.append(got[2]))
    model(*args, **kwargs)
    return states


def _sizes(width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * width,
        "image_size": SIDE,
        "patch_size": PATCH,
    }


def _videomae_of_transformers(folder: Path, width: int, kind: str) -> Case:
    transformers = pytest.importorskip("transformers")
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 8}
    sizes = _sizes(width) | decoder | {"num_frames": FRAMES, "decoder_num_attention_heads": 2}
    config = transformers.VideoMAEConfig(**sizes, use_mean_pooling=kind == "ForVideoClassification")
    model = randomise(getattr(transformers, f"VideoMAE{kind.split(',')[0]}")(config))
    encoder = model if kind.startswith("Model") else model.videomae
    encoder.embeddings.position_embeddings = position_table(PATCHES, width)  # its own is in float32
    frames = clip()
    states = _outputs(encoder, encoder.encoder.layer, normalised(frames).transpose(1, 2))
    if encoder.layernorm is not None:
        states.append(encoder.layernorm(states[-1]))
    return Case(_saved(model, folder, kind), frames, states, 1e-12)


def _saved(model: Any, folder: Path, kind: str) -> Path:
    if kind.endswith("in memory"):
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        model.save_pretrained(folder)  # writes other names
    return folder / "model.safetensors"


def _positions_like_ours(positions: nn.Parameter) -> None:
    """Give learned positions those of our table, but for the row of the CLS."""
    with torch.no_grad():
        positions[:, 1:] = position_table(*positions.shape[1:])[:, 1:]


def _vit_of_transformers(folder: Path, width: int, kind: str) -> Case:
    transformers = pytest.importorskip("transformers")
    model = randomise(
        getattr(transformers, f"ViT{kind.split(',')[0]}")(transformers.ViTConfig(**_sizes(width)))
    )
    encoder = model if kind.startswith("Model") else model.vit
    _positions_like_ours(encoder.embeddings.position_embeddings)
    frames = clip(still=True)
    states = _outputs(encoder, encoder.layers, normalised(frames)[:, :, 0])
    return Case(
        _saved(model, folder, kind), frames, [*states, encoder.layernorm(states[-1])], 1e-12, with_cls=True
    )


def _vit_of_timm(folder: Path, width: int, kind: str) -> Case:
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=width, depth=DEPTH, num_heads=HEADS, num_classes=3
    )
    randomise(model)
    _positions_like_ours(model.pos_embed)
    frames = clip(still=True)
    states = _outputs(model, model.blocks, normalised(frames)[:, :, 0])
    save_file(model.state_dict(), folder / "vit.safetensors")
    return Case(folder / "vit.safetensors", frames, [*states, model.norm(states[-1])], 1e-6, with_cls=True)


CASES: dict[str, Callable[[Path, int], Case]] = {
    f"{name}, {kind}": partial(make, kind=kind)
    for name, make, kinds in (
        ("VideoMAE", _videomae, ("pretraining", "fine-tuned", "V2 in a wrapper")),
        ("MARLIN", _marlin, ("full", "encoder", "in a wrapper")),
        (
            "VideoMAE of transformers",
            _videomae_of_transformers,
            (
                "Model",
                "Model, in memory",
                "ForPreTraining",
                "ForPreTraining, in memory",
                "ForVideoClassification",
            ),
        ),
        (
            "ViT of transformers",
            _vit_of_transformers,
            ("Model", "Model, in memory", "ForImageClassification", "ForImageClassification, in memory"),
        ),
        ("ViT of timm", _vit_of_timm, ("VisionTransformer",)),
    )
    for kind in kinds
}


def build(name: str, folder: Path, width: int = WIDTH) -> Case:
    """The case of this name, its file in `folder`."""
    with torch.no_grad(), float64():
        torch.manual_seed(0)
        return CASES[name](folder, width)


def videomae_state(width: int = WIDTH) -> dict[str, Tensor]:
    """The state dict of a small VideoMAE of pretraining, in float32."""
    torch.manual_seed(0)
    model = PreTraining(PlainEncoder(width), {"decoder": nn.Linear(8, 4)})
    return randomise(model).float().state_dict()
