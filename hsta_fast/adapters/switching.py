"""How a module is switched in place: it gets a subclass of its own class, whose forward computes the same.

The object stays the same, and with it its parameters and their names, hooks, mode, device and dtype. A call
that the subclass cannot compute exactly (a mask, attention weights asked for, ...) runs the original forward.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..replaced import any_global_hook, is_plain
from .worth import always

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
    _keeps_forward = False  # whether it changes what the original forward finds, and has none of its own

    def _switched_on(self) -> None:
        """Called once the module is of this class."""

    def _switched_off(self) -> None:
        """Called before the module gets its own class back."""

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
        names = {"_original": original, "_fast": fast, "__doc__": fast.__doc__}
        names["__module__"] = original.__module__  # by it torch.fx tells torch's own modules, which it calls
        _classes[key] = type(f"Fast{original.__name__}", (fast, original), names)
    return _classes[key]


def switch_class(
    module: nn.Module, fast: type[Switched], became: str, *samples: Sample, note: str = ""
) -> Switch | Left:
    """The switch of `module` to the forward of `fast`; Left if that does not compute the same as its own.

    Args:
        module: the module, of a known class.
        fast: the class whose forward it gets.
        became: what it becomes, in a few words.
        *samples: each makes arguments and keyword arguments, in float64 on the CPU, to compare forwards on.
        note: when the original forward still runs.
    """
    original = type(module)
    if (reason := own_forward(module)) is not None:
        return Left(reason)
    if (difference := _difference(module, fast, samples)) is not None:
        return Left(difference)

    def apply() -> Undo:
        module.__class__ = switched_class(fast, original)
        cast(Switched, module)._switched_on()

        def undo() -> None:
            if type(module) is not switched_class(fast, original):
                got = type(module).__name__
                raise ValueError(
                    f"module expected its switched class, got {got}: something else changed it since"
                )
            cast(Switched, module)._switched_off()
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


def captured(x: Any) -> bool:
    """Whether torch.fx, torch.jit.trace or the ONNX exporter records a call: the original forward then runs.

    They know torch's own operators, and no others. (torch.compile and torch.export take the fast ops.)
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not isinstance(x, Tensor) or tracing or torch.onnx.is_in_onnx_export()


def bypassed(*modules: nn.Module | None) -> bool:
    """Whether the weights of linear layers may be read instead of calling them: they are plain."""
    return not any_global_hook() and all(m is None or is_plain(m, nn.Linear) for m in modules)


def projections(q: nn.Linear, k: nn.Linear, v: nn.Linear) -> dict[str, Any]:
    """The weights and biases of three linear layers, as `few_query_attention` names them."""
    named = {"q": q, "k": k, "v": v}
    weights = {f"{name}_weight": layer.weight for name, layer in named.items()}
    return weights | {f"{name}_bias": layer.bias for name, layer in named.items()}


def silent(module: nn.Module | None) -> bool:
    """Whether a module need not be called: it is an identity, or dropout of rate 0, without hooks."""
    return module is None or (
        type(module) in (nn.Identity, nn.Dropout)
        and is_plain(module, type(module))
        and not getattr(module, "p", 0.0)
    )


_compared: dict[tuple[Any, ...], str | None] = {}


def _difference(module: nn.Module, fast: type[Switched], samples: Sequence[Sample]) -> str | None:
    """What tells the forward of `fast` from the module's own, in float64 on random weights; None if nothing.

    Modules of one class and settings are compared once.
    """
    # Private attributes are settings, too; those of nn.Module are named by its shapes and its repr.
    own = vars(module).keys() - vars(nn.Module())
    settings = tuple((name, repr(vars(module)[name])) for name in sorted(own))
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    key = (fast, type(module), type(module).forward, repr(module), settings, shapes)
    if key not in _compared:
        try:
            _compared[key] = _compare(module, fast, samples)
        except Exception as error:  # whatever somebody's forward, or a copy of it, may raise
            _compared[key] = (
                f"it cannot be compared: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            )
    return _compared[key]


def _compare(module: nn.Module, fast: type[Switched], samples: Sequence[Sample]) -> str | None:
    if any_global_hook():
        return "hooks of all modules are registered, which a comparison would call"
    plain = torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.no_grad()
    with torch.random.fork_rng(devices=[]), plain[0], plain[1], plain[2], always():
        torch.default_generator.manual_seed(0)  # not torch.manual_seed, which seeds every device
        twin = _bare_twin(module)
        original = type(module)
        ours = type("Compared", (fast, _Counted, original), {"calls": 0})
        for (args, kwargs), training in itertools.product([sample() for sample in samples], (False, True)):
            twin.__class__, before = original, _kept(twin)
            expected = _result(twin, original, training, args, kwargs)
            if _kept(twin) != before:
                return "its forward keeps something in the module"
            came = _result(twin, ours, training, args, kwargs)
            if (difference := _unequal(expected, came)) is not None:
                return f"the forward of this version {difference}"
            if cast(Any, ours).calls and not training and not fast._keeps_forward:
                return "only its own forward would run: linear layers that are not plain, or too many queries"
    return None


def _kept(module: nn.Module) -> list[dict[str, int]]:
    """What every module inside holds, by name and identity; the mode aside."""
    return [{k: id(v) for k, v in vars(m).items() if k != "training"} for m in module.modules()]


class _Counted:
    """Between a fast forward and the original one: counts the calls that the fast one hands on."""

    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        return super().forward(*args, **kwargs)  # type: ignore[misc]


def _unequal(expected: Any, came: Any) -> str | None:
    """What tells two outputs apart; None if they are of the same form, and equal in float64."""
    if isinstance(expected, Tensor) and isinstance(came, Tensor):
        if came.shape != expected.shape:
            return f"gives {tuple(expected.shape)}, ours {tuple(came.shape)}"
        error = float((came - expected).abs().max() / expected.abs().max())
        return None if error <= _EQUAL else f"differs from ours, by {error:.1e} in float64"
    if type(expected) is not type(came) or (isinstance(expected, tuple) and len(expected) != len(came)):
        return f"gives a {type(expected).__name__}, ours a {type(came).__name__}"
    if isinstance(expected, tuple):
        return next(filter(None, map(_unequal, expected, came)), None)
    return None if expected is came else f"gives a {type(expected).__name__}"


def _result(
    module: nn.Module, kind: type[nn.Module], training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What `module` gives as a module of class `kind`, with the same random numbers every time."""
    module.__class__ = kind
    module.train(training)
    torch.default_generator.manual_seed(1)
    if not isinstance(module, Switched):
        return module(*args, **kwargs)
    module._switched_on()
    output = cast(nn.Module, module)(*args, **kwargs)
    module._switched_off()
    return output


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
