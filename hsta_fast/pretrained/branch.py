"""The first weights of one branch of an HSTA, from the encoder of a file."""

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from ..model import BRANCHES, IMAGENET_MEAN, IMAGENET_STD, HSTAConfig, position_table
from .encoder import BLOCK, Encoder
from .patches import fold_pixels, inflate, resample
from .report import Fate, Row

LayerChoice = Literal["even", "first", "last"]
Weights = dict[str, Tensor]
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_K_DROPPED = "the bias of k is dropped: it cancels in the softmax"


def choose_layers(depth: int, count: int, choice: LayerChoice) -> list[int]:
    """Which of the `depth` layers of a source feed `count` USTA layers, in order, counted from 0.

    "first" and "last" are that many from one end. "even" is spaced evenly and ends with the last: layer
    i depth // count - 1 for i = 1 .. count; of 12 layers for 8: 0, 2, 3, 5, 6, 8, 9, 11.
    """
    if choice == "even":
        return [i * depth // count - 1 for i in range(1, count + 1)]
    return list(range(count)) if choice == "first" else list(range(depth - count, depth))


def layers_of_branch(encoder: Encoder, config: HSTAConfig, d: int, choice: LayerChoice) -> list[int]:
    """The layers of the encoder that the USTA layers of branch `d` start from, see `choose_layers`.

    Raises:
        ValueError: the branch has more layers than the encoder.
    """
    per_layer = (config.n_special, config.n_video)[d]
    count = config.num_layers * per_layer
    if count > encoder.depth:
        raise ValueError(
            f"num_layers x n_{BRANCHES[d]} expected at most the {encoder.depth} layers of the file, got "
            f"{config.num_layers} x {per_layer}"
        )
    return choose_layers(encoder.depth, count, choice)


def branch_weights(
    encoder: Encoder, config: HSTAConfig, d: int, choice: LayerChoice, setting: str
) -> tuple[Weights, list[Row]]:
    """The weights of branch `d`, by the model's keys, and the rows of the report for the encoder's keys.

    Raises:
        ValueError: another width, more layers than the file's, or a patch that cannot be resampled.
    """
    if encoder.width != config.widths[d]:
        raise ValueError(
            f"widths expected {encoder.width} for the {BRANCHES[d]} branch, the width of the file, got "
            f"{config.widths[d]}"
        )
    weights: Weights = {}
    rows: list[Row] = []

    def put(key: str, name: str, value: Tensor, fate: Fate = "loaded", why: str = "") -> None:
        weights[key] = value
        for file_key in encoder.keys[name]:
            note = _K_DROPPED if file_key.endswith("qkv.bias") else ""
            rows.append(Row(setting, fate, file_key, key, why or note))

    def drop(keys: Iterable[str], why: str) -> None:
        rows.extend(Row(setting, "dropped", key, why=why) for key in dict.fromkeys(keys))

    weight, bias, fate, why = _patch_embedding(encoder, config, d)
    put(f"patch_embed.{d}.proj.weight", "patch_embed.proj.weight", weight, fate, why)
    bias_fate: Fate = "folded" if fate == "folded" else "loaded"
    put(f"patch_embed.{d}.proj.bias", "patch_embed.proj.bias", bias, bias_fate)
    if "cls_token" in encoder.tensors:
        put(f"cls_token.{d}", "cls_token", *_cls(encoder))
    if "pos_embed" in encoder.tensors:
        drop(encoder.keys["pos_embed"], "its positions are learned, ours a fixed table")
    chosen = layers_of_branch(encoder, config, d, choice)
    per_layer = (config.n_special, config.n_video)[d]
    for n in range(encoder.depth):
        names = [f"blocks.{n}.{part}" for part in BLOCK]
        if n in chosen:
            k, i = divmod(chosen.index(n), per_layer)
            for name, part in zip(names, BLOCK, strict=True):
                put(f"blocks.{k}.blocks.{d}.{i}.{part}", name, encoder.tensors[name])
        else:
            keys = [key for name in names for key in encoder.keys[name]]
            drop(keys, f"layer {n} is not among those taken ({choice})")
    for name in ("norm.weight", "norm.bias"):
        if name in encoder.tensors:
            put(name.replace(".", f".{d}."), name, encoder.tensors[name])
    for key, why in encoder.dropped.items():
        drop([key], why)
    return weights, rows


def _patch_embedding(encoder: Encoder, config: HSTAConfig, d: int) -> tuple[Tensor, Tensor, Fate, str]:
    """Weight (C, 3, t, p, p) and bias (C,) for our frames and patches, and what was done."""
    weight, bias = (encoder.tensors[f"patch_embed.proj.{name}"] for name in ("weight", "bias"))
    size, depth = config.patch_sizes[d], config.tubelet_depth
    fits = weight.dim() == 4 or weight.shape[2] == depth
    if not fits or weight.shape[1] != 3 or weight.shape[-1] != weight.shape[-2]:
        raise ValueError(
            f"patch embedding of the file expected 3 channels, tubelets of {depth} frames and square "
            f"patches, got {tuple(weight.shape)}"
        )
    fate: Fate = "loaded"
    done = [encoder.assumed] if encoder.assumed else []
    if weight.dim() == 4:
        weight, fate = inflate(weight.double(), depth), "resampled"
        done.append(f"a share of 1/{depth} for each frame of a tubelet")
    if weight.shape[-1] != size:
        done.append(f"patches of {weight.shape[-1]} to {size} pixels by pseudo-inverse")
        weight, fate = resample(weight, size), "resampled"
    if (encoder.mean, encoder.std) != _IMAGENET:
        weight, bias = fold_pixels(weight, bias, (encoder.mean, encoder.std), _IMAGENET)
        fate = "folded"
        done.append(f"its pixels have mean {encoder.mean} and deviation {encoder.std}, ours ImageNet's")
    return weight, bias, fate, "; ".join(done)


def _cls(encoder: Encoder) -> tuple[Tensor, Fate, str]:
    """The CLS (1, 1, C), and what was done: with learned positions it is folded with its position."""
    cls, positions = encoder.tensors["cls_token"], encoder.tensors.get("pos_embed")
    if positions is None:
        return cls, "loaded", ""
    ours = position_table(1, encoder.width)
    # With an odd row out beside those of a square image, that of the CLS.
    with_row = round((positions.shape[1] - 1) ** 0.5) ** 2 == positions.shape[1] - 1 > 0
    theirs = positions[:, :1].double() if with_row else 0.0
    return cls.double() + theirs - ours, "folded", "with its learned position, less ours"
