"""When a submodule must be called, because its weights alone do not say what it computes.

Where a submodule is plain, a layer may read its weights and compute the same faster. A LoRA adapter, a
quantised or sharded module, hooks and pruning put something else in its place: then it is called.
"""

import warnings

import torch
from torch import Tensor, nn

_PLAIN_WEIGHTS = (nn.Parameter, Tensor, type(None))
_warned: set[str] = set()


def any_global_hook() -> bool:
    """Whether a hook of all modules is registered, which every call of a module runs."""
    return bool(nn.modules.module._has_any_global_hook())


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether `module` is exactly a `kind` and calling it does nothing else than `kind.forward`.

    A weight of a class of its own (quantised by torchao, a DTensor) is not plain. Hooks of all modules are
    not looked at: see `any_global_hook`.
    """
    if type(module) is not kind:
        return False
    state = module.__dict__  # quicker than the lookup of each attribute: layers ask in every forward
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    ):
        return False
    return plain_tensor(state["_parameters"].get("weight"))


def plain_tensor(weight: Tensor | None) -> bool:
    """Whether a weight is of no class of its own (quantised, sharded), which a fast op could not read."""
    return type(weight) in _PLAIN_WEIGHTS or not hasattr(type(weight), "__tensor_flatten__")


def what_replaces(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """What keeps `module` from being a plain `kind`, hooks of all modules included; None if nothing does."""
    if type(module) is not kind:
        return f"{type(module).__module__}.{type(module).__qualname__}"
    if any_global_hook():
        return "hooks of all modules"
    return None if is_plain(module, kind) else "hooks, or a forward or weight of its own"


def has_bias(module: nn.Module) -> bool:
    """Whether a plain module has a bias, which in a replica of nn.DataParallel is not in `_parameters`."""
    return module._parameters.get("bias", module) is not None


def warn_of_call(owner: nn.Module, name: str, kind: type[nn.Module], cost: str) -> None:
    """Warn, once per process and class of `owner`, that its submodule `name` is called, and what it costs."""
    if torch.compiler.is_compiling() or type(owner).__name__ in _warned:  # a warning would break the graph
        return
    _warned.add(type(owner).__name__)
    module = owner.get_submodule(name)
    what = what_replaces(module, kind) or "no bias, or other settings"
    plain = f"nn.{kind.__name__}" if kind.__module__.startswith("torch.nn") else kind.__name__
    warnings.warn(f"{name} of {type(owner).__name__} is not a plain {plain} ({what}): {cost}", stacklevel=3)
