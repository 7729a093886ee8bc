"""A model before and after `accelerate`: the same results, the same state dict, and back again."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from hsta_fast import ops
from hsta_fast.adapters import Report
from tests.tolerance import assert_close

OPS = ("space_time_attention", "few_query_attention", "tubelet_embed")
Inputs = Sequence[Tensor] | Mapping[str, Tensor]


def randomise(model: nn.Module) -> nn.Module:
    """Random parameters, none of them zero, so that no part of a model is without effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(noise * p.shape[-1] ** -0.5 if p.dim() > 1 else p.double() + 0.3 * noise)
    return model


def tensors(output: Any) -> list[Tensor]:
    """The floating tensors in a model's output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return [x for part in output for x in tensors(part)] if isinstance(output, list | tuple) else []


def call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The output of `model`, with the same random numbers every time."""
    torch.manual_seed(0)
    return tensors(model(**inputs) if isinstance(inputs, Mapping) else model(*inputs))


def with_gradients(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Outputs, and the gradients of every parameter and floating input; a gradient may be None."""
    dtype = next(model.parameters()).dtype
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    leaves = {k: x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x for k, x in items}
    model.zero_grad()
    given = cast(Inputs, leaves if isinstance(inputs, Mapping) else list(leaves.values()))
    outputs = call(model, given)
    generator = torch.Generator().manual_seed(1)
    douts = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]
    torch.autograd.backward(outputs, douts)
    gradients = {f"input {name}": x.grad for name, x in leaves.items()}
    gradients |= {name: p.grad for name, p in model.named_parameters()}
    return [x.detach() for x in outputs], gradients


def named_rows(report: Report) -> dict[str, str]:
    """What the report says of each module: "what it became", "what it became; note", or "left: why"."""
    said = {row.name: [row.became, row.why] if row.became else ["left: " + row.why] for row in report.rows}
    return {name: "; ".join(filter(None, parts)) for name, parts in said.items()}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts the calls of each fast op, which runs as ever."""
    counts: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in OPS:
            function = getattr(ops, name)

            def counting(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
                counts[_name] = counts.get(_name, 0) + 1
                return _function(*args, **kwargs)

            patch.setattr(ops, name, counting)
        yield counts


def assert_same_in_float64(
    came: tuple[list[Tensor], dict[str, Tensor | None]],
    expected: tuple[list[Tensor], dict[str, Tensor | None]],
) -> None:
    """To 1e-10 of each tensor's largest value; a vanishing gradient, to that of the largest of all."""
    assert {k for k, x in came[1].items() if x is None} == {k for k, x in expected[1].items() if x is None}
    for group in (
        zip(*(dict(enumerate(x[0])).items() for x in (came, expected)), strict=True),
        zip(came[1].items(), expected[1].items(), strict=True),
    ):
        pairs = [(name, x, y) for (name, x), (_, y) in group if x is not None and y is not None]
        largest = max(float(y.abs().max()) for _, _, y in pairs)
        for name, x, y in pairs:
            assert x.shape == y.shape and x.dtype == y.dtype, name
            error, size = float((x - y).abs().max()), max(float(y.abs().max()), 1e-3 * largest)
            assert error <= 1e-10 * size, f"{name}: {error / size:.1e}"


def _close(came: Any, plain: Any, exact: Any, band: float) -> None:
    """Outputs and gradients of a narrower dtype, each group against its largest value."""
    for i in (0, 1):
        groups = [list(x[i].values()) if i else x[i] for x in (came, plain, exact)]
        assert [x is None for x in groups[0]] == [x is None for x in groups[1]]
        assert_close(*([x for x in group if x is not None] for group in groups), band=band)


def check_same(
    build: Callable[[], nn.Module],
    inputs: Inputs,
    *,
    rows: Mapping[str, str],
    calls: Mapping[str, int],
    compile_backend: str | None = None,
    autocast: bool = True,
) -> None:
    """Check that `accelerate` changes nothing but speed in a model.

    In eval and training mode: outputs and the gradients of all parameters and inputs, in float64 to 1e-10, in
    float32 within rounding, under bfloat16 autocast within twice the original's own error. The state dict
    loads both ways, `revert` brings the objects back, and the report says `rows`.

    Args:
        build: makes the model; its parameters are then randomised.
        inputs: arguments of its forward; floating ones are cast to the model's dtype.
        rows: the report's rows, as `named_rows` gives them.
        calls: how often each fast op runs in one forward in eval mode.
        compile_backend: of torch.compile(fullgraph=True), whose outputs and gradients must be the same; None:
            it is not compiled.
        autocast: whether the model is also run under autocast.
    """
    torch.manual_seed(0)
    original = randomise(build())
    double, ours, ours_double = (copy.deepcopy(original) for _ in range(3))
    double.double()
    ours_double.double()
    objects = [(m, type(m), {k: id(v) for k, v in vars(m).items()}) for m in ours.modules()]
    before = call(ours.eval(), _cast(inputs, torch.float32))

    report = hsta_fast.accelerate(ours)
    assert named_rows(report) == dict(rows)
    assert named_rows(hsta_fast.accelerate(ours_double)) == dict(rows)
    assert [(n, m.training) for n, m in ours.named_modules()] == [
        (n, m.training) for n, m in original.eval().named_modules()
    ]
    with counted() as counts, torch.no_grad():
        call(ours, _cast(inputs, torch.float32))
    assert counts == dict(calls)

    for training in (False, True):
        for model in (original, double, ours, ours_double):
            model.train(training)
        exact, plain, came = (with_gradients(m, inputs) for m in (double, original, ours))
        assert_same_in_float64(with_gradients(ours_double, inputs), exact)
        _close(came, plain, exact, band=2e-6)
        if compile_backend is not None:
            torch.compiler.reset()
            compiled = torch.compile(ours, backend=compile_backend, fullgraph=True)
            _close(with_gradients(cast(nn.Module, compiled), inputs), plain, exact, band=2e-6)
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                plain, came = with_gradients(original, inputs), with_gradients(ours, inputs)
            _close(came, plain, exact, band=torch.finfo(torch.bfloat16).eps / 2)

    assert list(ours.state_dict()) == list(original.state_dict())
    ours.load_state_dict(copy.deepcopy(original.state_dict()), strict=True)
    original.load_state_dict(ours.state_dict(), strict=True)

    report.revert()
    after = [(m, type(m), {k: id(v) for k, v in vars(m).items()}) for m in ours.modules()]
    assert [(m, kind) for m, kind, _ in after] == [(m, kind) for m, kind, _ in objects]
    for (module, _, was), (_, _, now) in zip(objects, after, strict=True):
        changed = {k for k in was if now.get(k) != was[k] and not isinstance(vars(module)[k], bool)}
        assert changed == set(), (type(module).__name__, changed)
    for x, y in zip(before, call(ours.eval(), _cast(inputs, torch.float32)), strict=True):
        assert torch.equal(x, y)


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    def to(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    if isinstance(inputs, Mapping):
        return {name: to(x) for name, x in inputs.items()}
    return [to(x) for x in inputs]
