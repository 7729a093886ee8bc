"""`accelerate`: the fast ops inside a model that somebody has."""

import re
from collections import Counter
from collections.abc import Callable
from importlib import import_module

from torch import nn

from .report import Report, Row
from .switching import Find, Left, Switch, Switched, Undo
from .torch_modules import conv3d, multihead_attention

# Library -> the file here that knows its modules. A file is imported when a module of its library is met.
_LIBRARIES = {"transformers": "huggingface", "timm": "timm_models"}
_ATTENDS = re.compile(r"Attention|Attn")

_own_finders: list[Callable[[nn.Module], Find]] = []


def register_adapter(finder: Callable[[nn.Module], Find]) -> None:
    """Let `accelerate` know modules of another library, before those that it knows itself.

    Args:
        finder: called once with the model. It returns a function, which is called with each module of the
            model and returns a `Switch`, or `Left` with the reason, or None for a module it does not know.
    """
    if finder not in _own_finders:
        _own_finders.append(finder)


def _of_torch(root: nn.Module) -> Find:
    def find(module: nn.Module) -> Switch | Left | None:
        if type(module) is nn.Conv3d:
            return conv3d(module)
        if type(module) is nn.MultiheadAttention:
            return multihead_attention(module)
        return None

    return find


def _finders(model: nn.Module) -> list[Find]:
    from . import published_hsta

    met = {kind.__module__.partition(".")[0] for module in model.modules() for kind in type(module).__mro__}
    files = [import_module(f"{__package__}.{_LIBRARIES[name]}") for name in _LIBRARIES if name in met]
    factories = [*_own_finders, *(file.finder for file in files), published_hsta.finder, _of_torch]
    return [factory(model) for factory in factories]


def _unknown(module: nn.Module) -> Left | None:
    """What to say of a module that looks as if it attends, and that no adapter knows."""
    kind = type(module)
    if kind.__module__.partition(".")[0] == "hsta_fast":
        return None
    bases = (base for base in kind.__mro__[1:] if base is nn.Conv3d or _ATTENDS.search(base.__name__))
    if (base := next(bases, None)) is not None:
        return Left(f"a subclass of {base.__name__}")
    return Left("not known") if _ATTENDS.search(kind.__name__) else None


def accelerate(model: nn.Module) -> Report:
    """Switch what `model` holds of self-attention, patch embeddings and pooling to the fast ops, in place.

    Only what is known exactly is switched, and only after its forward and ours gave the same in float64, on
    a copy with random weights. Parameters and their names, hooks, mode, dtype and device stay. A call that
    the fast form cannot compute exactly (a mask, attention dropout in training, attention weights asked for)
    runs the original.

    Args:
        model: any model. Modules of torch, transformers 5 and timm, and of the published HSTA, are known; see
            `register_adapter` for others.

    Returns:
        A report: `print(report)` says what every module became, or why it was left; `report.revert()` undoes
        the switch.

    Raises:
        ValueError: `model` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model expected an nn.Module, got {type(model).__name__}")
    finders = _finders(model)
    named = dict(model.named_modules())
    found: dict[str, Switch | Left] = {}
    for name, module in named.items():
        whole = (n for n, what in found.items() if isinstance(what, Switch) or isinstance(named[n], Switched))
        if _ancestors(name).isdisjoint(whole):  # the parts of a switched module stay as it reads them
            switched = Left("switched before") if isinstance(module, Switched) else None
            what = switched or next(filter(None, (find(module) for find in finders)), None)
            found |= {} if what is None else {name: what}
    known_around = set(found).union(*map(_ancestors, found))
    for name, module in named.items():
        beside_known = name not in known_around and _ancestors(name).isdisjoint(found)
        if beside_known and (what := _unknown(module)) is not None:
            found[name] = what
    rows, undo = [], list[Undo]()
    for name, module in named.items():
        if (what := found.get(name)) is None:
            continue
        kind = type(module).__name__
        if isinstance(what, Switch):
            undo.append(what.apply())
            rows.append(Row(name, kind, what.became, what.note))
        else:
            rows.append(Row(name, kind, None, what.why))
    bypassed = {name for name, what in found.items() if isinstance(what, Switch)}
    others = Counter(
        type(module).__name__
        for name, module in named.items()
        if name not in found and module._parameters and _ancestors(name).isdisjoint(bypassed)
    )
    return Report(rows, others, any(p.is_cuda for p in model.parameters()), undo)


def _ancestors(name: str) -> set[str]:
    """a.b.c -> "", a, a.b: the names of the modules that hold it."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(len(parts))} if name else set()
