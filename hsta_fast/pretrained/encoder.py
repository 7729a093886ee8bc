"""The encoder in a file of pretrained weights, under the names of one branch of ours."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoint import some
from ..model import HSTA, IMAGENET_MEAN, IMAGENET_STD
from .sources import HEADS, Source, Three

# What a block consists of, under our names.
BLOCK = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight"),
    *("attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"),
    "mlp.fc2.bias",
)
_NORM = ("norm.weight", "norm.bias")
_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
)
_K_BIAS = "the bias of k cancels in the softmax"


@dataclass
class Encoder:
    """A patch embedding, blocks and, if the file has them, the last norm and the CLS.

    Attributes:
        tensors: by name: "patch_embed.proj.weight" (C, 3, t, p, p), or (C, 3, p, p) of an image's;
            "blocks.N.<BLOCK>"; "norm.weight", "norm.bias"; "cls_token" (1, 1, C), "pos_embed" (1, N, C).
        keys: the file's keys of each tensor.
        dropped: why, by the file's key.
        norm_eps, first_position, mean, std: as in `Source`.
        num_heads: None: not known.
        assumed: as in `Source`.
    """

    norm_eps: float
    first_position: int | None
    mean: Three
    std: Three
    num_heads: int | None = None
    assumed: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """C."""
        return self.tensors["patch_embed.proj.weight"].shape[0]

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len({name.split(".")[1] for name in self.tensors if name.startswith("blocks.")})

    def all_keys(self) -> list[str]:
        """The file's keys that are ours under some name."""
        return list(dict.fromkeys(key for keys in self.keys.values() for key in keys))

    def add(self, name: str, value: Tensor, *keys: str) -> None:
        """Take a tensor under our name, which the file has under these keys."""
        self.tensors[name], self.keys[name] = value, list(keys)


def read_encoder(name: str, state: Mapping[str, Tensor], source: Source, prefix: str) -> Encoder:
    """The encoder of `source` whose keys begin with `prefix`; name: the file, for messages.

    Raises:
        ValueError: a key is missing or not known, or the parts of a tensor do not fit each other.
    """
    encoder = Encoder(source.norm_eps, source.first_position, source.mean, source.std, assumed=source.assumed)
    keys: dict[str, str] = {}  # of the file, by our name
    unknown = []
    for key in state:
        ours = source.our_name(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if ours is not None:
            keys[ours] = key
        elif (why := source.reason_to_drop(key)) is not None:
            encoder.dropped[key] = why
        else:
            unknown.append(key)
    check_values(name, {key: state[key] for key in keys.values()})
    if unknown:
        raise ValueError(f"{name} expected keys of {source.name} alone, got also {some(sorted(unknown))}")
    width = _check_ends(name, {ours: (key, state[key]) for ours, key in keys.items()})
    numbers = {ours: ours.split(".")[1] for ours in keys if ours.startswith("blocks.")}
    depth = next(n for n in itertools.count() if str(n) not in numbers.values())
    if later := [keys[ours] for ours, number in numbers.items() if number not in map(str, range(depth))]:
        # Not one more for each number: that of a damaged file may be anything.
        none = [f"blocks.{depth}.{part}" for part in BLOCK]
        raise ValueError(
            f"{name} expected all weights of {source.name}, got none for {some(none)}, but {some(later)}"
        )
    wanted = [f"blocks.{n}.{part}" for n in range(depth) for part in BLOCK]
    wanted += ["patch_embed.proj.weight", "patch_embed.proj.bias"]
    wanted += _NORM if any(ours in keys for ours in _NORM) else ()
    missing = []
    for ours in wanted:
        if not _take(encoder, name, ours, keys, state, width):
            missing.append(ours)
    if missing:
        raise ValueError(f"{name} expected all weights of {source.name}, got none for {some(missing)}")
    for ours in keys:
        if ours.endswith("attn.key.bias"):
            encoder.dropped[keys[ours]] = _K_BIAS
        elif ours in ("cls_token", "pos_embed"):
            encoder.add(ours, state[keys[ours]], keys[ours])
    unused = sorted(set(state) - {*encoder.all_keys(), *encoder.dropped})
    if unused:
        raise ValueError(f"{name} expected each weight of {source.name} once, got also {some(unused)}")
    encoder.num_heads = HEADS.get(width)
    return encoder


def check_values(name: str, state: Mapping[str, Tensor]) -> None:
    """Check that tensors can be computed with; name: the file, for messages.

    Raises:
        ValueError: a tensor is not floating, not dense, or not finite.
    """
    odd = [key for key, value in state.items() if value.dtype not in _DTYPES]
    if odd:
        raise ValueError(f"{name} expected floating tensors, got {some(odd)} of {state[odd[0]].dtype}")
    odd = [key for key, value in state.items() if value.layout != torch.strided or value.is_meta]
    if odd:
        of = f"{state[odd[0]].layout} on {state[odd[0]].device}"
        raise ValueError(f"{name} expected dense tensors, got {some(odd)} of {of}")
    # torch cannot ask this of 8 bits.
    plain = {key: value.float() if value.itemsize == 1 else value for key, value in state.items()}
    odd = [key for key, value in plain.items() if not value.isfinite().all()]
    if odd:
        raise ValueError(f"{name} expected finite weights, got NaN or infinity in {some(odd)}")


def _check_ends(file: str, found: Mapping[str, tuple[str, Tensor]]) -> int:
    """Check the shapes of what stands before the blocks; returns the width C.

    found: the file's key and its tensor, by our name.

    Raises:
        ValueError: a shape that is not (C, 3, p, p), or (C, 3, t, p, p), of a patch embedding, (C,) of its
            bias, (1, 1, C) of a CLS, or (1, N, C) of positions.
    """
    key, weight = found["patch_embed.proj.weight"]
    if 0 in weight.shape:
        raise ValueError(f"{file}: {key} expected no size of 0, got {tuple(weight.shape)}")
    width = weight.shape[0]
    for name, shape in (("patch_embed.proj.bias", (width,)), ("cls_token", (1, 1, width))):
        if name in found:
            _check_shape(file, *found[name], shape)
    if "pos_embed" in found:
        key, positions = found["pos_embed"]
        if positions.dim() != 3 or positions.shape[::2] != (1, width) or 0 in positions.shape:
            got = tuple(positions.shape)
            raise ValueError(f"{file}: {key} expected the shape (1, positions, {width}), got {got}")
    return width


def _take(
    encoder: Encoder,
    file: str,
    name: str,
    keys: Mapping[str, str],
    state: Mapping[str, Tensor],
    width: int,
) -> bool:
    """Put the tensor `name` of ours together from the file; False: the file does not have it."""
    block, _, part = name.rpartition(".attn.")
    parts = {
        "qkv.weight": ["query.weight", "key.weight", "value.weight"],
        "q_bias": ["query.bias"],
        "v_bias": ["value.bias"],
    }.get(part, [])
    parts = [f"{block}.attn.{part}" for part in parts]
    of_all = f"{block}.attn.qkv.bias"
    if name in keys:
        encoder.add(name, state[keys[name]], keys[name])
    elif parts and all(part in keys for part in parts):
        found = [keys[part] for part in parts]
        for key in found:
            _check_shape(file, key, state[key], (width, width) if len(parts) > 1 else (width,))
        encoder.add(name, torch.cat([state[key] for key in found]), *found)
    elif part in ("q_bias", "v_bias") and of_all in keys:
        key = keys[of_all]
        _check_shape(file, key, state[key], (3 * width,))
        encoder.add(name, state[key].chunk(3)[0 if part == "q_bias" else 2], key)
    else:
        return False
    return True


def _check_shape(file: str, key: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(f"{file}: {key} expected the shape {shape}, got {tuple(value.shape)}")


def read_branch(model: HSTA, d: int) -> Encoder:
    """Branch `d` of an HSTA, with its blocks counted through all HSTA layers."""
    config = model.config
    encoder = Encoder(
        config.norm_eps[d],
        config.first_position[d],
        IMAGENET_MEAN,
        IMAGENET_STD,
        num_heads=config.num_heads[d],
    )
    per_layer = (config.n_special, config.n_video)[d]
    for key, value in model.state_dict().items():
        if match := re.fullmatch(rf"blocks\.(\d+)\.blocks\.{d}\.(\d+)\.(.*)", key):
            name = f"blocks.{int(match[1]) * per_layer + int(match[2])}.{match[3]}"
        elif match := re.fullmatch(rf"(patch_embed|cls_token|norm)\.{d}(.*)", key):
            name = match[1] + match[2]
        else:
            continue
        encoder.add(name, value, key)
    return encoder
