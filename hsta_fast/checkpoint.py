"""Checkpoints, those of the published model and our own. Loads weights only and unpickles no objects."""

import argparse
import inspect
import itertools
import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from .files import write_atomically
from .inputs import ModelInputs
from .int8 import Int8USTA
from .layers import DropPath
from .model import HSTA, Head, HSTAConfig, published_key
from .wrappers import hint, plain_keys, plain_name, unwrap

# In the metadata of a file; its other entries are notes.
_CONFIG_KEY = "hsta_fast_config"
_INPUTS_KEY = "hsta_fast_inputs"
# Attributes of modules that do not change the logits.
_NO_SETTINGS = ("training", "impl", "inplace", "memory")


def read_weights(path: Path | str) -> Any:
    """Read a torch or safetensors file, weights only; tensors are on the CPU.

    Raises:
        ValueError: the file is not a checkpoint, is damaged, or contains objects other than tensors.
        OSError: the file does not exist or cannot be read.
    """
    path = Path(path)
    with path.open("rb"):
        pass  # an OSError of a file that can be read says that its content is damaged
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Published checkpoints contain the arguments of their run, an argparse.Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message names the refused class within long advice on how to load it anyway.
        named = re.search(r"GLOBAL (\S+)", str(error))
        got = f"objects other than tensors ({named[1]})" if named else "no pickled tensors"
        raise ValueError(f"{path} expected to contain weights only, got {got}") from error
    except Exception as error:  # a damaged pickle can raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} expected a checkpoint, got a damaged or other file: {lines[0]}") from error


def state_dict_of(name: str, state: Any) -> Mapping[str, Tensor]:
    """The tensors by key in what a file holds: plain, or under "model", "module" or "state_dict".

    name: of the file, for messages.

    Raises:
        ValueError: several state dicts, none, or other objects in it.
    """
    while isinstance(state, Mapping):
        inside = [key for key in ("model", "module", "state_dict") if isinstance(state.get(key), Mapping)]
        if len(inside) > 1:
            raise ValueError(f"{name} expected one state dict, got {some(inside)}: pass one of them")
        if not inside:
            break
        state = state[inside[0]]
    if not isinstance(state, Mapping):
        raise ValueError(f"{name} expected a dictionary of tensors, got {type(state).__name__}")
    others = [str(k) for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if others:
        raise ValueError(f"{name} expected only tensors, got other objects under {some(others)}")
    return state


def load_published(
    source: Path | str | Mapping[str, Any],
    num_heads: int | tuple[int, int] = 12,
    head: Head = "cls",
) -> HSTA:
    """Build an HSTA from a checkpoint with the published model's keys, in its dtype and in eval mode.

    Widths, depths, patch sizes, classes and the head "cls+last" are derived from the shapes.

    Args:
        source: a file (torch or .safetensors) or a state dict, plain or under "model", "module" or
            "state_dict". "module." or "_orig_mod." in front of all keys is dropped.
        num_heads: one number, or one per branch (special, video); the shapes do not determine it.
        head: "cls" or "mean", which have the same shapes; "cls+last" is recognised.

    Raises:
        ValueError: entries are missing, unknown or of another shape; the message lists them.
    """
    state = state_dict_of("checkpoint", source if isinstance(source, Mapping) else read_weights(source))
    state = plain_keys(state)
    dtypes = {value.dtype for value in state.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"checkpoint expected one floating dtype, got {some(sorted(map(str, dtypes)))}")
    model = _empty_model(_published_config(state, num_heads, head))
    expected = {published_key(key): key for key in model.state_dict()}
    _check_entries("checkpoint", {key: model.state_dict()[own].shape for key, own in expected.items()}, state)
    # Copies: the model must not share its parameters with the caller's dictionary.
    model.load_state_dict({own: state[key].clone() for key, own in expected.items()}, assign=True)
    return model.eval()


def _published_config(
    state: Mapping[str, Tensor], num_heads: int | tuple[int, int], head: Head
) -> HSTAConfig:
    """Derive the configuration from the shapes."""
    anchors = [f"patch_embed.{d}.proj.weight" for d in (0, 1)] + ["head.weight"]
    missing = [key for key in anchors if key not in state]
    if missing:
        raise ValueError(f"checkpoint expected {some(missing)}, got {some(list(state)) or 'no entries'}")
    embed = [state[key].shape for key in anchors[:2]]
    if any(len(shape) != 5 or 0 in shape for shape in embed) or state["head.weight"].dim() != 2:
        shapes = {key: tuple(state[key].shape) for key in anchors}
        raise ValueError(
            f"checkpoint expected patch embeddings (C, 3, t, p, p) and a head (classes, C), got {shapes}"
        )
    layers = [re.match(r"blocks\.(\d+)\.(?:blocks\.([01])\.(\d+)\.)?", key) for key in state]
    found = [match.groups() for match in layers if match]

    def count(numbers: set[str]) -> int:
        # Consecutive from 0: a number after a gap is an unknown entry, not a count of layers.
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


def _check_entries(name: str, expected: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError listing the entries that are missing, unknown or of another shape."""
    problems = []
    if missing := sorted(set(expected) - set(state)):
        problems.append(f"{len(missing)} missing ({some(missing)})")
    if unknown := sorted(set(state) - set(expected)):
        problems.append(f"{len(unknown)} unknown ({some(unknown)})")
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({some(shapes)})")
    if problems:
        raise ValueError(f"{name} expected the entries of the model, got {', '.join(problems)}")


def some(names: Sequence[str], most: int = 20) -> str:
    """The first names, for a message; a damaged file can have very long ones."""
    shown = ", ".join(name if len(name) <= 200 else f"{name[:197]}..." for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _empty_model(config: HSTAConfig) -> HSTA:
    """A model on the meta device, to be filled by `load_state_dict(assign=True)`."""
    with torch.device("meta"):
        return HSTA(config)


def save_model(
    model: nn.Module | Callable[..., Any],
    path: Path | str,
    *,
    inputs: ModelInputs | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write weights, configuration, inputs and notes as .safetensors, atomically.

    The model may be wrapped: by torch.compile, DataParallel, DistributedDataParallel, FSDP and AveragedModel,
    also in each other. If parameters are sharded (FSDP), every rank must call this, and each writes the whole
    file. `load_model` reads every file that this writes, and its model computes the same logits. Hooks are
    not saved, nor are decorators around a forward.

    Args:
        model: an HSTA.
        path: the file, which ends in .safetensors.
        inputs: what the model was trained on; by default `model.inputs`.
        notes: text about the model by name, in addition to `model.notes`.

    Raises:
        ValueError: `path`, `notes` or `inputs` do not fit, the model is not one that its configuration
            describes, or `inputs` has another number of classes; nothing was written.
        OSError: the file cannot be written; an existing file is unchanged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path expected a name that ends in .safetensors, got {path}")
    hsta, state = _unwrap_unchanged(model)
    metadata: dict[str, str] = {}
    for name, given in (("model.notes", hsta.notes), ("notes", {} if notes is None else notes)):
        if not isinstance(given, Mapping):
            raise ValueError(f"{name} expected text by name, got {type(given).__name__}")
        metadata |= given
    odd = [str(k) for k, v in metadata.items() if not (isinstance(k, str) and isinstance(v, str))]
    odd += [key for key in (_CONFIG_KEY, _INPUTS_KEY) if key in metadata]
    if odd:
        raise ValueError(f"notes expected text by name (not {_CONFIG_KEY}, {_INPUTS_KEY}), got {some(odd)}")
    metadata[_CONFIG_KEY] = json.dumps(asdict(hsta.config))
    inputs = hsta.inputs if inputs is None else inputs
    if inputs is not None:
        if not isinstance(inputs, ModelInputs):
            raise ValueError(f"inputs expected a ModelInputs or None, got {type(inputs).__name__}")
        _check_classes("inputs", inputs, hsta.config)
        metadata[_INPUTS_KEY] = inputs.to_json()
    # Copies, because safetensors refuses tensors that share memory.
    data = safetensors_bytes(
        {key: value.cpu().clone().contiguous() for key, value in state.items()}, metadata
    )
    write_atomically(path, lambda file: file.write(data))


def plain_copy(model: nn.Module | Callable[..., Any]) -> HSTA:
    """A copy of the HSTA in `model`, on the CPU and in eval mode, as `load_model` reads what is saved of it.

    Raises:
        ValueError: the model, as in `save_model`.
    """
    hsta, state = _unwrap_unchanged(model)
    copy = _empty_model(hsta.config)
    copy.inputs, copy.notes = hsta.inputs, hsta.notes
    copy.load_state_dict({key: value.detach().cpu().clone() for key, value in state.items()}, assign=True)
    return copy.eval()


def _unwrap_unchanged(model: nn.Module | Callable[..., Any]) -> tuple[HSTA, dict[str, Tensor]]:
    """The HSTA in `model` and its whole state dict; ValueError unless its configuration describes it."""
    hsta, state = unwrap(model)
    if any(isinstance(module, Int8USTA) for module in hsta.modules()):
        raise ValueError(
            "model expected float parameters, got int8: take the float model, quantize_int8 is quick"
        )
    _check_unchanged(hsta, state)
    return hsta, state


def _check_unchanged(hsta: HSTA, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a new HSTA of the same configuration with these weights computes the same."""
    reference = _empty_model(hsta.config)
    try:
        _check_entries("model", {key: value.shape for key, value in reference.state_dict().items()}, state)
    except ValueError as error:
        raise ValueError(f"{error}{hint(state)}") from None
    _check_values("model", state)
    own = {name for name, _ in reference.named_children()}
    expected = dict(reference.named_modules())
    found = {plain_name(name): module for name, module in hsta.named_modules(remove_duplicate=False)}
    changed = [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in found.items()
        # Modules beside the model's own, such as a loss, take no part in its forward pass.
        if name.partition(".")[0] in {"", *own} and not _computes_as(module, expected.get(name))
    ]
    if changed:
        raise ValueError(
            f"model expected the modules of an HSTA, got {some(changed)}: to save the weights alone, load "
            "its state dict into HSTA(model.config)"
        )


def _check_values(name: str, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all entries are plain floating tensors in memory."""
    odd = [
        f"{key} ({'meta' if value.is_meta else value.dtype}, {type(value).__name__})"
        for key, value in state.items()
        # Quantised weights and the like are classes of their own.
        if type(value) not in (Tensor, nn.Parameter)
        or value.is_meta
        or value.layout != torch.strided
        or not value.is_floating_point()
    ]
    if odd:
        raise ValueError(f"{name} expected floating tensors with values, got {some(odd)}")


def _computes_as(module: nn.Module, expected: nn.Module | None) -> bool:
    """Whether `module` has the forward pass and settings of `expected`, in eval mode without hooks."""
    if expected is None:
        return False
    # torch.autocast and accelerate decorate the forward of an instance, which is no other forward.
    forward: Any = inspect.unwrap(module.forward)
    if "forward" in vars(module) and getattr(forward, "__self__", None) is not module:
        return False
    no_op = (nn.Dropout, DropPath, nn.Identity)
    if isinstance(module, no_op) and isinstance(expected, no_op):
        return True
    if getattr(forward, "__func__", forward) is not type(expected).forward:
        return False
    names = [name for name in vars(expected) if not name.startswith("_") and name not in _NO_SETTINGS]
    return all(repr(getattr(module, name)) == repr(getattr(expected, name)) for name in names)


def _check_classes(name: str, inputs: ModelInputs, config: HSTAConfig) -> None:
    if len(inputs.classes) != config.num_classes:
        got = f"{len(inputs.classes)}: {some(list(inputs.classes))}"
        raise ValueError(f"{name} expected the model's {config.num_classes} classes, got {got}")


def is_saved_model(path: Path) -> bool:
    """Whether `save_model` wrote the file at `path`, as far as its metadata tell."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _CONFIG_KEY in (file.metadata() or {})
    except SafetensorError:
        return False


def load_model(path: Path | str) -> HSTA:
    """Read a model that `save_model` wrote; in eval mode, on the CPU, in the dtype of the file.

    Its `inputs` say what it was trained on, as far as the file knows, and its `notes` are those of the file.

    Raises:
        ValueError: the file is damaged, was not written by `save_model`, or does not match its configuration.
    """
    state = read_weights(path)
    metadata = _metadata(path)
    if _CONFIG_KEY not in metadata:
        raise ValueError(f"{path} expected the configuration of an HSTA model, got none")
    try:
        config = config_from(json.loads(metadata.pop(_CONFIG_KEY)))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} expected the configuration of an HSTA model, got a faulty one: {error}"
        ) from error
    inputs = None
    if _INPUTS_KEY in metadata:
        try:
            inputs = ModelInputs.from_json(metadata.pop(_INPUTS_KEY))
        except ValueError as error:
            raise ValueError(f"{path} expected to say what the model was trained on: {error}") from error
    return _filled(path, state, config, inputs, metadata)


def load_described(
    path: Path | str, config: HSTAConfig, inputs: ModelInputs | None, notes: Mapping[str, str]
) -> HSTA:
    """As `load_model`, of a file whose model is described elsewhere too.

    A file that does not describe its model, such as one that another program wrote again, is read by this
    description.

    Raises:
        ValueError: as in `load_model`, or the file describes its model otherwise.
    """
    if _CONFIG_KEY not in _metadata(path):
        return _filled(path, read_weights(path), config, inputs, notes)
    model = load_model(path)
    given = asdict(config) | {"inputs": inputs, "notes": dict(notes)}
    found = asdict(model.config) | {"inputs": model.inputs, "notes": dict(model.notes)}
    if differing := [name for name in given if given[name] != found[name]]:
        got = ", ".join(f"{name} {found[name]} instead of {given[name]}" for name in differing)
        raise ValueError(f"{path} expected the model that is described beside it, got {got}")
    return model


def config_from(written: Mapping[str, Any]) -> HSTAConfig:
    """The configuration from the values that JSON has of it; ValueError or TypeError if they are faulty."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()}
    return HSTAConfig(**settings)


def _metadata(path: Path | str) -> dict[str, str]:
    """What a .safetensors file says beside its tensors; ValueError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path} expected a .safetensors file, got a damaged or other one: {error}"
        ) from error


def _filled(
    path: Path | str,
    state: Mapping[str, Tensor],
    config: HSTAConfig,
    inputs: ModelInputs | None,
    notes: Mapping[str, str],
) -> HSTA:
    """The model of `config` with the weights `state` of the file `path`."""
    model = _empty_model(config)
    if inputs is not None:
        _check_classes(f"{path}: inputs", inputs, config)
    model.inputs, model.notes = inputs, notes
    state = plain_keys(state)
    _check_entries(str(path), {key: value.shape for key, value in model.state_dict().items()}, state)
    _check_values(str(path), state)
    model.load_state_dict(state, assign=True)
    return model.eval()
