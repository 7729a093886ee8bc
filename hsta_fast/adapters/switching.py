"""How a module is switched in place: it gets a subclass of its own class, whose forward computes the same.

The object stays the same, and with it its parameters and their names, hooks, mode, device and dtype. A call
that the subclass cannot compute exactly (a mask, attention weights asked for, ...) runs the original forward.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..replaced import any_global_hook, is_plain

Undo = Callable[[], None]
Sample = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]

_EQUAL = 1e-10  # largest difference in float64, relative to the largest value


@dataclass(frozen=True)
class Switch:
    """A module that can be switched.

    Attributes:
        became: what it becomes, in a few words.
        apply: switches it, and returns what undoes that.
        note: when the original computation still runs; "" if it never does.
    """

    became: str
    apply: Callable[[], Undo]
    note: str = ""


Find = Callable[[nn.Module], "Switch | Left | None"]


@dataclass(frozen=True)
class Left:
    """A module that is known, and why it is left as it is."""

    why: str


class Switched:
    """Base of the classes that compute a module's forward faster.

    A subclass defines `forward` with the arguments of the original, and calls `super().forward(...)`, the
    original, for whatever it cannot compute exactly.
    """

    _original: type[nn.Module]
    _fast: "type[Switched]"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time, so copies and pickles name the two that it is made of.
        return _new, (self._fast, self._original), self.__getstate__()


def _new(fast: type[Switched], original: type[nn.Module]) -> nn.Module:
    kind = switched_class(fast, original)
    return kind.__new__(kind)


_classes: dict[tuple[type[Switched], type[nn.Module]], type[nn.Module]] = {}


def switched_class(fast: type[Switched], original: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `original` with the forward of `fast`; always the same one."""
    key = fast, original
    if key not in _classes:
        names = {"_original": original, "_fast": fast, "__doc__": fast.__doc__, "__module__": fast.__module__}
        _classes[key] = type(f"Fast{original.__name__}", (fast, original), names)
    return _classes[key]


def switch_class(
    module: nn.Module, fast: type[Switched], became: str, sample: Sample, *, note: str = ""
) -> Switch | Left:
    """The switch of `module` to the forward of `fast`; Left if that does not compute the same as its own.

    Args:
        module: the module, of a known class.
        fast: the class whose forward it gets.
        became: what it becomes, in a few words.
        sample: makes arguments and keyword arguments, in float64 on the CPU, to compare the two forwards on.
        note: when the original forward still runs.
    """
    original = type(module)
    if (reason := own_forward(module)) is not None:
        return Left(reason)
    if (difference := _difference(module, fast, sample)) is not None:
        return Left(difference)

    def apply() -> Undo:
        module.__class__ = switched_class(fast, original)

        def undo() -> None:
            if type(module) is not switched_class(fast, original):
                got = type(module).__name__
                raise ValueError(
                    f"module expected its switched class, got {got}: something else changed it since"
                )
            module.__class__ = original

        return undo

    return Switch(became, apply, note)


def own_forward(module: nn.Module) -> str | None:
    """Why the class alone does not say what calling `module` does; None if it does."""
    if "forward" in vars(module):
        return "a forward of its own, set on the object"
    if hasattr(module, "parametrizations"):
        return "parametrized weights"
    return None


def bypassed(*modules: nn.Module | None) -> bool:
    """Whether the weights of linear layers may be read instead of calling them: they are plain."""
    return not any_global_hook() and all(m is None or is_plain(m, nn.Linear) for m in modules)


_compared: dict[tuple[Any, ...], str | None] = {}


def _difference(module: nn.Module, fast: type[Switched], sample: Sample) -> str | None:
    """What tells the forward of `fast` from the module's own, in float64 on random weights; None if nothing.

    Modules of one class and settings are compared once.
    """
    settings = tuple(repr(value) for name, value in sorted(vars(module).items()) if not name.startswith("_"))
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    key = (fast, type(module), repr(module), settings, shapes)
    if key not in _compared:
        _compared[key] = _compare(module, fast, sample)
    return _compared[key]


def _compare(module: nn.Module, fast: type[Switched], sample: Sample) -> str | None:
    if any_global_hook():
        return "hooks of all modules are registered, which a comparison would call"
    plain = torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.no_grad()
    with torch.random.fork_rng(devices=[]), plain[0], plain[1], plain[2]:
        torch.manual_seed(0)
        twin = _bare_twin(module)
        args, kwargs = sample()
        for training in (False, True):
            original, ours = type(module), switched_class(fast, type(module))
            expected, came = (_result(twin, kind, training, args, kwargs) for kind in (original, ours))
            if came.shape != expected.shape:
                return f"the forward of this version gives {tuple(expected.shape)}, ours {tuple(came.shape)}"
            error = float((came - expected).abs().max() / expected.abs().max())
            if not error <= _EQUAL:
                return f"the forward of this version differs from ours, by {error:.1e} in float64"
    return None


def _result(
    module: nn.Module, kind: type[nn.Module], training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """What `module` gives as a module of class `kind`, with the same random numbers every time."""
    module.__class__ = kind
    module.train(training)
    torch.manual_seed(1)
    output = module(*args, **kwargs)
    return output if isinstance(output, Tensor) else cast(Tensor, output[0])


def _bare_twin(module: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU, in eval mode, without hooks, with random weights."""
    hooks = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    memo: dict[int, Any] = {}
    for child in module.modules():
        for name in hooks:  # they may do anything, and belong to the user
            value = vars(child)[name]
            memo[id(value)] = type(value)()
        for p in [*child._parameters.values(), *child._buffers.values()]:
            if p is not None:
                empty = torch.empty(
                    p.shape, dtype=torch.float64 if p.is_floating_point() else p.dtype, device="cpu"
                )
                memo[id(p)] = (
                    nn.Parameter(empty, requires_grad=False) if isinstance(p, nn.Parameter) else empty
                )
    twin = copy.deepcopy(module, memo).eval()
    for p in [*twin.parameters(), *twin.buffers()]:
        p.normal_(std=p.shape[-1] ** -0.5 if p.dim() > 1 else 1.0) if p.is_floating_point() else p.zero_()
    return twin
