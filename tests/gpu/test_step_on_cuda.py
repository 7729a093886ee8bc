"""A training step on a CUDA device: the CPU never waits for it, eager and compiled."""

from collections.abc import Iterator

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
    shapes = {"video": (4, 3, 6, 48, 48), "special": (4, 3, 2, 48, 48)}
    given = {n: torch.randint(0, 256, shape, dtype=torch.uint8).cuda() for n, shape in shapes.items()}
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
