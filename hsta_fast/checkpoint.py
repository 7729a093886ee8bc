"""Checkpoints: the published model's, and this library's own. Weights only, never unpickled objects."""

import argparse
import itertools
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from .files import write_atomically
from .model import HSTA, Head, HSTAConfig, published_key

_CONFIG_KEY = "hsta_fast_config"


def read_weights(path: Path | str) -> Any:
    """Read a torch or safetensors file with weights only; tensors on the CPU.

    Raises:
        ValueError: the file is no checkpoint, is damaged, or holds objects other than tensors.
        OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Published checkpoints carry the arguments of their run, an argparse.Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        # torch names the class that it refused in a long advice on how to load it all the same.
        named = re.search(r"GLOBAL (\S+)", str(error))
        holds = f"objects other than tensors ({named[1]})" if named else "no pickled tensors"
        raise ValueError(f"{path} does not load with weights only: it holds {holds}") from error
    except Exception as error:  # a damaged pickle fails in any way at all
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is damaged or no checkpoint: {lines[0]}") from error


def load_published(
    source: Path | str | Mapping[str, Any],
    num_heads: int | tuple[int, int] = 12,
    head: Head = "cls",
) -> HSTA:
    """Build an HSTA from a checkpoint with the published model's keys, in the checkpoint's dtype.

    Widths, depths, patch sizes, classes and the head "cls+last" are read off the shapes.

    Args:
        source: a file (torch or .safetensors) or a state dict, bare or under "model" or "module".
        num_heads: one number, or one per branch (special, video): the shapes do not tell.
        head: "cls" or "mean", which the shapes do not tell apart; "cls+last" is recognised.

    Raises:
        ValueError: missing, foreign or misshapen entries, listed.
    """
    state = source if isinstance(source, Mapping) else read_weights(source)
    for wrapper in ("model", "module"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise ValueError(f"checkpoint wants a dictionary of tensors, got {type(state).__name__}")
    others = [str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if others:
        raise ValueError(f"checkpoint wants tensors alone, got other things under {_some(others)}")
    dtypes = {value.dtype for value in state.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"checkpoint wants one floating dtype, got {_some(sorted(map(str, dtypes)))}")
    model = _empty_model(_published_config(state, num_heads, head))
    expected = {published_key(key): key for key in model.state_dict()}
    _check_entries("checkpoint", {key: model.state_dict()[own].shape for key, own in expected.items()}, state)
    # Copies: the model must not share its parameters with the caller's dictionary.
    model.load_state_dict({own: state[key].clone() for key, own in expected.items()}, assign=True)
    return model


def _published_config(
    state: Mapping[str, Tensor], num_heads: int | tuple[int, int], head: Head
) -> HSTAConfig:
    """Read the configuration off the shapes."""
    anchors = [f"patch_embed.{d}.proj.weight" for d in (0, 1)] + ["head.weight"]
    missing = [key for key in anchors if key not in state]
    if missing:
        raise ValueError(f"checkpoint lacks {_some(missing)}; found {_some(list(state)) or 'nothing'}")
    embed = [state[key].shape for key in anchors[:2]]
    if any(len(shape) != 5 or 0 in shape for shape in embed) or state["head.weight"].dim() != 2:
        came = {key: tuple(state[key].shape) for key in anchors}
        raise ValueError(
            f"checkpoint wants patch embeddings (C, 3, t, p, p) and a head (classes, C), got {came}"
        )
    layers = [re.match(r"blocks\.(\d+)\.(?:blocks\.([01])\.(\d+)\.)?", key) for key in state]
    found = [match.groups() for match in layers if match]

    def count(numbers: set[str]) -> int:
        # Consecutive from 0: a stray number is a foreign entry, not so many layers.
        return next(n for n in itertools.count() if str(n) not in numbers)

    depths = [count({i for _, branch, i in found if branch == d}) for d in ("0", "1")]
    widths = (embed[0][0], embed[1][0])
    return HSTAConfig(
        num_classes=state["head.weight"].shape[0],
        widths=widths,
        num_heads=(num_heads, num_heads) if isinstance(num_heads, int) else num_heads,
        patch_sizes=(embed[0][3], embed[1][3]),
        tubelet_depth=embed[0][2],
        num_layers=max(1, count({k for k, _, _ in found})),
        n_special=depths[0],
        n_video=depths[1],
        head="cls+last" if state["head.weight"].shape[1] == 2 * sum(widths) else head,
        mlp_ratio=_mlp_ratio(state, widths),
    )


def _mlp_ratio(state: Mapping[str, Tensor], widths: tuple[int, int]) -> float:
    for d, width in enumerate(widths):
        fc1 = state.get(f"blocks.0.blocks.{d}.0.mlp.fc1.weight")
        if fc1 is not None and fc1.dim() == 2:
            return fc1.shape[0] / width
    return HSTAConfig.mlp_ratio


def _check_entries(what: str, wanted: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError listing the entries that are missing, foreign or of another shape."""
    faults = []
    if missing := sorted(set(wanted) - set(state)):
        faults.append(f"lacks {len(missing)} entries: {_some(missing)}")
    if foreign := sorted(set(state) - set(wanted)):
        faults.append(f"has {len(foreign)} foreign entries: {_some(foreign)}")
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    if shapes:
        faults.append(f"has {len(shapes)} entries of another shape: {_some(shapes)}")
    if faults:
        raise ValueError(f"{what} " + "; ".join(faults))


def _some(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _empty_model(config: HSTAConfig) -> HSTA:
    """A model without memory, to be filled by `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        return HSTA(config)


def save_model(model: HSTA, path: Path | str, *, notes: Mapping[str, str] | None = None) -> None:
    """Write the weights, the configuration and `notes`, words about the model, as .safetensors, atomically.

    Raises:
        ValueError: `path` does not end in .safetensors.
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_model wants a path that ends in .safetensors, got {path}")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {**(notes or {}), _CONFIG_KEY: json.dumps(asdict(model.config))}
    write_atomically(path, lambda file: file.write(safetensors_bytes(state, metadata)))


def load_model(path: Path | str) -> HSTA:
    """Read a model that `save_model` wrote, in the dtype it was saved in, on the CPU.

    Raises:
        ValueError: the file is damaged, was not written by `save_model`, or does not fit its configuration.
    """
    state = read_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            written = json.loads((file.metadata() or {})[_CONFIG_KEY])
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in written.items()
        }
        config = HSTAConfig(**settings)
    except (KeyError, TypeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} carries no configuration of an HSTA model: {error}") from error
    model = _empty_model(config)
    _check_entries(str(path), {key: value.shape for key, value in model.state_dict().items()}, state)
    model.load_state_dict(state, assign=True)
    return model
