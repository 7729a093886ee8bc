"""The blocks of hsta_base on the CPU, float32, B 2: one USTA layer of each branch, and one CSTA.

The peers are the blocks of `hsta_fast.published` with equal weights. "forward + backward" includes the
gradients of inputs and parameters. Ours overwrites the states that it is given, so with the backward every
member starts from a copy of them. Compiled blocks are those of the whole model in `bench_model.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import Step
from benchmarks.compare import OURS, Make
from hsta_fast import create_model
from hsta_fast.model import HSTA
from hsta_fast.published import Layer, PublishedHSTA

BATCH, WIDTHS = 2, (384, 768)
TOKENS = {2: 325, 6: 589, 16: 1569}  # frames: tokens with the CLS, at 224 pixels
USTA_CASES = [("special", 2), ("video", 6), ("video", 16)]
CSTA_CASES = [6, 16]
Block = Callable[..., Any]


def first_layers() -> dict[str, nn.Module]:
    """The first HSTA layer of each member, with equal weights."""
    torch.manual_seed(0)
    model: HSTA = create_model("hsta_base", num_layers=1)
    peers = {"published": PublishedHSTA(model), "SDPA": PublishedHSTA(model, attention="sdpa")}
    return {OURS: model.blocks[0]} | {name: peer.blocks[0] for name, peer in peers.items()}


def usta(layer: nn.Module, branch: str) -> Block:
    blocks = cast(nn.ModuleDict, layer.blocks)["1" if branch == "video" else "0"]
    return cast(nn.ModuleList, blocks)[0]


def csta(layer: nn.Module) -> Block:
    if not isinstance(layer, Layer):
        return cast(nn.Module, layer.csta)
    layer.blocks = nn.ModuleDict({d: nn.ModuleList() for d in "01"})  # what is left is CSTA
    return lambda special, video: layer([special, video])


def step(block: Block, parameters: Sequence[nn.Parameter], shapes: Sequence[Any], backward: bool) -> Step:
    """A forward in inference mode, or a forward with all gradients, on states of these shapes."""
    torch.manual_seed(0)
    states = [torch.randn(shape, requires_grad=backward) for shape in shapes]
    if not backward:

        def forward() -> object:
            with torch.inference_mode():
                return block(*states)

        return forward
    douts = [torch.randn(shape) for shape in shapes]

    def both() -> object:
        out = block(*(x.clone() for x in states))
        outs: list[Tensor] = [out] if isinstance(out, Tensor) else list(out)
        return torch.autograd.grad(outs, [*states, *parameters], douts, allow_unused=True)

    return both


def _maker(block: Block, layer: nn.Module, shapes: Sequence[Any], backward: bool) -> Make:
    parameters = block.parameters() if isinstance(block, nn.Module) else layer.parameters()
    return lambda: step(block, list(parameters), shapes, backward)


def _usta_group(branch: str, T: int, backward: bool) -> str:
    C = WIDTHS[branch == "video"]
    what = "forward + backward" if backward else "forward"
    return f"USTA layer, B {BATCH}, C {C}, N {TOKENS[T]}, {what}"


def _usta_shapes(branch: str, T: int) -> list[tuple[int, int, int]]:
    return [(BATCH, TOKENS[T], WIDTHS[branch == "video"])]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("branch", "T"), USTA_CASES)
def bench_usta(compare: Callable[..., None], branch: str, T: int, backward: bool) -> None:
    members = {
        name: _maker(usta(layer, branch), layer, _usta_shapes(branch, T), backward)
        for name, layer in first_layers().items()
    }
    compare(_usta_group(branch, T, backward), members)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("T", CSTA_CASES)
def bench_csta(compare: Callable[..., None], T: int, backward: bool) -> None:
    shapes = [(BATCH, TOKENS[2], WIDTHS[0]), (BATCH, TOKENS[T], WIDTHS[1])]
    members = {name: _maker(csta(layer), layer, shapes, backward) for name, layer in first_layers().items()}
    what = "forward + backward" if backward else "forward"
    compare(f"CSTA layer, B {BATCH}, N {TOKENS[2]} and {TOKENS[T]}, {what}", members)
