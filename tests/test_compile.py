"""HSTA under torch.compile and torch.export: one graph, few graphs over many sizes, the values of eager."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

import hsta_fast
from hsta_fast import HSTA


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tiny(**overrides: object) -> HSTA:
    """A model of the smallest useful size, in float64."""
    torch.manual_seed(0)
    small = {"widths": (12, 16), "num_heads": (3, 4), "num_classes": 5, "num_layers": 1, "n_video": 1}
    return hsta_fast.create_model("hsta_tiny", **{**small, **overrides}).double()


def frames(B: int = 2, T: int = 4, H: int = 32, W: int = 32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    shapes = {"video": (B, 3, T, H, W), "special": (B, 3, 2, H, W)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


class Counting:
    """A backend that counts the graphs that it is given."""

    def __init__(self, backend: str = "eager") -> None:
        self.graphs = 0
        self.compile = lookup_backend(backend)

    def __call__(self, *graph: Any) -> Callable[..., Any]:
        self.graphs += 1
        return self.compile(*graph)


def new_graphs(model: Any, calls: list[dict[str, Tensor]], **options: Any) -> list[int]:
    """How many graphs each call adds; its logits must be those of eager. Anything but one graph raises."""
    backend = Counting()
    compiled = torch.compile(model, fullgraph=True, backend=backend, **options)
    counts = []
    for given in calls:
        before = backend.graphs
        torch.testing.assert_close(compiled(**given), model(**given), rtol=1e-12, atol=1e-12)
        counts.append(backend.graphs - before)
    return counts


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
def test_one_graph(mode: str) -> None:
    with MODES[mode]():
        assert new_graphs(tiny(), [frames()] * 3) == [1, 0, 0]


SIZES = [
    {"B": 5, "T": 4, "H": 32, "W": 36},
    {"B": 3, "T": 6, "H": 44, "W": 32},
    {"B": 2, "T": 22, "H": 50, "W": 41},
    {"B": 6, "T": 2, "H": 33, "W": 70},
]


def test_two_graphs_for_all_sizes() -> None:
    """One for the sizes of the first call, one for any."""
    assert new_graphs(tiny(), [frames(**size) for size in SIZES]) == [1, 1, 0, 0]


def test_two_graphs_for_all_batches() -> None:
    assert new_graphs(tiny(), [frames(B=B) for B in (1, 2, 3, 4, 5, 6)]) == [1, 1, 0, 0, 0, 0]


def test_one_graph_for_all_sizes_if_dynamic_from_the_start() -> None:
    """Sizes equal at first stay equal to torch: not if B were 2 or 3, like special frames and channels."""
    assert new_graphs(tiny(), [frames(**size) for size in SIZES], dynamic=True) == [1, 0, 0, 0]
