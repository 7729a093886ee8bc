"""The HSTA inside torch's wrappers (torch.compile, data parallel, FSDP, AveragedModel), and its weights."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from .model import HSTA

# torch's wrappers, and the attribute that holds the module. By name: importing them all takes seconds.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
_PREFIXES = ("module.", "_orig_mod.")
# HSTA has no modules of these names, so they may be dropped inside a key.
_INSIDE = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(\.|$)")
# What in a name of a changed model says how to get a plain one.
_HINTS = {
    "lora_": "call merge_and_unload() of the adapters first",
    "base_layer": "call merge_and_unload() of the adapters first",
    "parametrizations": "call torch.nn.utils.parametrize.remove_parametrizations first",
    "_mask": "call torch.nn.utils.prune.remove first",
    "_packed_params": "save the model before it is quantised",
    "weight_scale": "save the model before it is quantised",
}


def _chain(model: Any) -> list[nn.Module]:
    """`model`, what it wraps, what that wraps, ..., the HSTA."""
    chain = [model]
    while not isinstance(chain[-1], HSTA):
        torchs = [c.__name__ for c in type(chain[-1]).__mro__ if c.__module__.startswith("torch.")]
        child = next((_WRAPPERS[name] for name in torchs if name in _WRAPPERS), None)
        if child is None:
            raise ValueError(
                "model expected an HSTA, alone or in torch.compile, DataParallel, DistributedDataParallel, "
                f"FSDP or AveragedModel, got {type(chain[-1]).__name__}{_how_to_save(chain[-1])}"
            )
        chain.append(getattr(chain[-1], child))
    return chain


def _how_to_save(model: object) -> str:
    """How to get the HSTA out of `model`; empty if there is none in it."""
    if not isinstance(model, nn.Module):
        return ""
    path = next((name for name, module in model.named_modules() if isinstance(module, HSTA)), None)
    if path is None:
        return ""
    return hint(name for name, _ in model.named_parameters()) or f": save its {path!r}"


def hint(names: Iterable[str]) -> str:
    """What to do about a model with parameters of these names; empty where nothing is known."""
    return next((f": {what}" for name in names for mark, what in _HINTS.items() if mark in name), "")


def unwrap(model: nn.Module | Callable[..., Any]) -> tuple[HSTA, dict[str, Tensor]]:
    """The HSTA in any number of torch's wrappers, and its state dict with the keys of an unwrapped one.

    If parameters are sharded (FSDP), every rank must call this, and each gets whole tensors.

    Raises:
        ValueError: there is something else in the wrappers.
    """
    chain = _chain(model)
    # FSDP's own wrapper knows the shapes, the module inside it one flat parameter alone.
    source = next((module for module in chain if _is_fsdp(module)), chain[-1])
    return cast(HSTA, chain[-1]), plain_keys(_whole_state(source))


def _is_fsdp(module: nn.Module) -> bool:
    return "_fsdp_wrapped_module" in module._modules


def _whole_state(model: nn.Module) -> dict[str, Any]:
    """The state dict, gathered from all ranks where it is sharded."""
    sharded = any(hasattr(p, "full_tensor") for p in model.parameters()) or any(
        map(_is_fsdp, model.modules())
    )
    if not sharded:
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def plain_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the keys of an unwrapped model.

    "module." and "_orig_mod." in front of all keys are dropped, with the count that AveragedModel adds, and
    inside keys the names that torch.compile, FSDP and activation checkpointing add.
    """
    plain = {key: value for key, value in state.items() if key != "n_averaged"}
    if not all(key.startswith("module.") for key in plain):
        plain = dict(state)
    while prefix := next((p for p in _PREFIXES if plain and all(key.startswith(p) for key in plain)), None):
        plain = {key.removeprefix(prefix): value for key, value in plain.items()}
    short = {plain_name(key): value for key, value in plain.items()}
    return short if len(short) == len(plain) else plain


def plain_name(name: str) -> str:
    """The name of a module or parameter without those that torch.compile, FSDP and checkpointing add."""
    return _INSIDE.sub("", name).removesuffix(".")
