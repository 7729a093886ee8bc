"""A training step on a CUDA device: the CPU never waits for it; a graph of it changes no number."""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

import hsta_fast
from tests.gpu.needs import needs_data_packages

pytestmark = [pytest.mark.gpu, needs_data_packages]


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def frames(B: int) -> dict[str, Tensor]:
    shapes = {"video": (B, 3, 6, 48, 48), "special": (B, 3, 2, 48, 48)}
    return {n: torch.randint(0, 256, shape, dtype=torch.uint8).cuda() for n, shape in shapes.items()}


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_never_waits_for_the_device(compiled: bool, waiting_is_an_error: None) -> None:
    """In bfloat16 with micro-batches, both dropouts, class weights and a limit of the norm; it learns."""
    from hsta_fast.training.compiled import CompiledModel
    from hsta_fast.training.optim import Loss
    from hsta_fast.training.step import TrainStep

    torch.manual_seed(0)
    # hsta_base: other tests compile its kernels.
    model = hsta_fast.create_model(
        "hsta_base", num_layers=1, num_classes=3, dropout=0.1, drop_path=0.1
    ).cuda()
    called = CompiledModel(model, sizes=frozenset({2}), configuration="step")
    if compiled:
        called.switch_on()
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    step = TrainStep(
        called,
        Loss("ce", counts=np.array([1, 2, 3])).cuda(),
        torch.optim.AdamW(groups, lr=1e-3, fused=True),
        GradScaler("cuda", enabled=False),
        lambda: torch.autocast("cuda", torch.bfloat16),
        clip_grad=1.0,
        accumulate=2,
    )
    given = frames(4)
    label = torch.tensor([0, 1, 2, 0]).cuda()
    losses: list[Tensor] = []
    for number in range(12):
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")
        losses.append(step.backward(given, label)[1])
        step.update(1e-3)
    torch.cuda.set_sync_debug_mode("default")
    assert called.on == compiled
    assert losses[-1].item() < losses[0].item()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def trained(graph: bool, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor], bool]:
    """(losses and logits, weights after twelve steps, some of a smaller batch; whether there is a graph)."""
    from hsta_fast.training.optim import Loss
    from hsta_fast.training.step import TrainStep
    from hsta_fast.training.step_graph import StepGraph

    torch.manual_seed(0)
    model = hsta_fast.create_model(
        "hsta_base", num_layers=1, num_classes=3, dropout=0.1, drop_path=0.2
    ).cuda()
    step = TrainStep(
        model.train(),
        Loss("ce", counts=np.array([1, 2, 3])).cuda(),
        torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=1e-3, fused=True),
        GradScaler("cuda", enabled=dtype == torch.float16),
        lambda: torch.autocast("cuda", dtype),
        clip_grad=1.0,
        graph=StepGraph(model.parameters()) if graph else None,
    )
    came: list[Tensor] = []
    for number in range(12):
        if number % 4 == 0:
            torch.manual_seed(number)  # as at the start of an epoch
        B = 2 if number % 5 == 4 else 4
        label = torch.arange(B).cuda() % 3
        given = frames(B)
        torch.cuda.set_sync_debug_mode("error" if number > 5 else "default")
        came += step.backward(given, label)
        step.update(1e-3)
        torch.cuda.set_sync_debug_mode("default")
    captured = step.graph is not None and step.graph.captured
    return came, {name: x.detach().clone() for name, x in model.named_parameters()}, captured


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_graph_changes_no_number(dtype: torch.dtype, waiting_is_an_error: None) -> None:
    """Dropout's draws included; the steps wait for nothing."""
    expected, weights, _ = trained(False, dtype)
    came, weights_of_graph, captured = trained(True, dtype)
    assert captured
    for a, b in zip(came, expected, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(x, weights[name]) for name, x in weights_of_graph.items())


def test_a_step_of_much_memory_is_not_captured() -> None:
    from hsta_fast.training.step_graph import StepGraph

    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def backward(inputs: Mapping[str, Tensor], label: Tensor) -> tuple[Tensor, Tensor]:
        loss = (inputs["video"] * weight).sum()
        loss.backward()
        return inputs["video"].detach(), loss.detach()

    total = torch.cuda.get_device_properties("cuda").total_memory
    for share, captured in ((0.6, False), (0.0, True)):
        graph = StepGraph([weight])
        held = torch.empty(int(share * total), dtype=torch.uint8, device="cuda")
        del held
        torch.cuda.empty_cache()
        for number in range(5):
            weight.grad = None
            video = torch.full((3,), float(number), device="cuda")
            _, loss = graph(backward, {"video": video}, torch.zeros(3, dtype=torch.int64, device="cuda"))
            assert loss.item() == 3 * number
            assert weight.grad is not None and torch.equal(weight.grad, video)
        assert graph.captured == captured
