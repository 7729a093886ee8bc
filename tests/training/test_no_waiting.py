"""A training step reads no value, and copies nothing from the host: on a GPU the CPU would wait for it.

`tests/gpu/test_step_on_cuda.py` shows it on a device; here the ops of a step are seen as they are called.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hsta_fast import reference
from hsta_fast.model import HSTA, IMAGENET_MEAN, IMAGENET_STD, HSTAConfig
from hsta_fast.training.optim import Loss
from hsta_fast.training.step import TrainStep

CONFIG = HSTAConfig(
    num_classes=3,
    widths=(32, 48),
    num_heads=(2, 3),
    patch_sizes=(8, 8),
    num_layers=1,
    n_video=1,
    dropout=0.1,
    drop_path=0.1,
)
SHAPES = {"video": (4, 3, 2, 16, 16), "special": (4, 3, 2, 16, 16)}
# Ops whose result, or whose shape, the CPU must know before it can go on.
WAITING = (
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "unique",
    "repeat_interleave.T",
)


class Watched(TorchDispatchMode):
    """Notes every op that makes the CPU wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        self.count += 1
        out = func(*args, **(kwargs or {}))
        devices = {
            x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and x.dim()
        }
        if name.startswith(WAITING) or len(devices) > 1:
            self.waited.append(name)
        return out


def step_of(model: HSTA, kind: str) -> TrainStep:
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    return TrainStep(
        model,
        Loss(kind, counts=np.array([1, 2, 3]), smoothing=0.1),
        torch.optim.AdamW(groups, lr=1e-3, fused=next(model.parameters()).device.type == "cpu"),
        GradScaler("cpu", enabled=False),
        lambda: torch.autocast("cpu", torch.bfloat16),
        clip_grad=1.0,
        accumulate=2,
    )


def test_a_step_reads_no_value() -> None:
    """Micro-batches, class weights, label smoothing and a limit of the norm included."""
    torch.manual_seed(0)
    step = step_of(HSTA(CONFIG).train(), "ce")
    given = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in SHAPES.items()}
    label = torch.tensor([0, 1, 2, 0])
    with Watched() as watched:
        for _ in range(2):  # the second with the optimiser's state there
            loss = step.backward(given, label)[1]
            step.update(1e-3)
    assert watched.count > 500 and watched.waited == []
    with Watched() as watched:
        loss.item()
    assert watched.waited == ["_local_scalar_dense.default"]


@pytest.mark.parametrize("kind", ["ce", "mse"])
@pytest.mark.parametrize("frames", [torch.uint8, torch.float32])
def test_nothing_is_copied_from_the_host(kind: str, frames: torch.dtype) -> None:
    """On another device without data, where reading a value is an error."""
    with torch.device("meta"):
        step = step_of(HSTA(CONFIG).train(), kind)
        given = {name: torch.empty(shape, dtype=frames) for name, shape in SHAPES.items()}
        label = torch.empty(4, dtype=torch.int64)
    step.loss.to_empty(device="meta")
    with Watched() as watched:
        step.backward(given, label)
        torch.nn.utils.clip_grad_norm_(step.model.parameters(), 1.0)
    assert watched.count > 500 and watched.waited == []


class Constants(TorchFunctionMode):
    """Notes every tensor that is made of Python's numbers: on a device, a copy that the CPU waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            self.made.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["ce", "mse"])
def test_no_tensor_is_made_of_numbers(kind: str) -> None:
    step = step_of(HSTA(CONFIG).train(), kind)
    given = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in SHAPES.items()}
    label = torch.tensor([0, 1, 2, 0])
    step.backward(given, label)  # tables of positions are made once
    with Constants() as constants:
        step.backward(given, label)
        step.update(1e-3)
        # What the embedding, one op above, does on a device without the extension.
        weight = step.model.get_parameter("patch_embed.1.proj.weight")
        bias = step.model.get_parameter("patch_embed.1.proj.bias")
        reference.tubelet_embed(given["video"], weight, bias, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert constants.made == []


def test_bfloat16_training_keeps_float32_parameters() -> None:
    """Parameters, gradients and the optimiser's averages; small steps, which bfloat16 would lose, count."""
    torch.manual_seed(0)
    model = HSTA(CONFIG).train()
    step = step_of(model, "ce")
    given = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in SHAPES.items()}
    logits, _ = step.backward(given, torch.tensor([0, 1, 2, 0]))
    before = model.head.weight.detach().clone()
    step.update(1e-7)
    assert logits.dtype == torch.bfloat16
    averages = [x for state in step.optimizer.state.values() for x in state.values()]
    for tensors in (model.parameters(), (p.grad for p in model.parameters() if p.grad is not None), averages):
        assert {x.dtype for x in tensors} == {torch.float32}
    after = model.head.weight.detach()
    assert (after != before).all()
    assert (after.bfloat16() == before.bfloat16()).float().mean() > 0.9
    assert step.optimizer.defaults["fused"]
