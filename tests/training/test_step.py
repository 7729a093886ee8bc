"""One step of the optimiser: micro-batches give the gradients of the batch, whatever the loss."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from hsta_fast.model import HSTA, HSTAConfig
from hsta_fast.training.optim import Loss
from hsta_fast.training.step import TrainStep
from hsta_fast.training.step_graph import StepGraph

COUNTS = np.array([6, 2, 1])
LOSSES: list[dict[str, Any]] = [
    {"kind": kind, "smoothing": smoothing, "counts": counts}
    for kind in ("ce", "mse")
    for smoothing in (0.0, 0.3)
    for counts in (None, COUNTS)
]
CONFIG = HSTAConfig(
    num_classes=3, widths=(16, 24), num_heads=(2, 2), patch_sizes=(8, 8), num_layers=1, n_video=1
)


def batch(clips: int) -> tuple[dict[str, Tensor], Tensor]:
    """Frames of 16 pixels, and labels of which no micro-batch has the shares of the whole."""
    torch.manual_seed(1)
    frames = {name: torch.randn(clips, 3, 2, 16, 16, dtype=torch.float64) for name in ("video", "special")}
    return frames, torch.tensor([0, 0, 2, 1, 0, 1, 2][:clips])


def step_of(loss: Loss, *, accumulate: int = 1, **settings: Any) -> TrainStep:
    torch.manual_seed(0)
    model = HSTA(CONFIG).double()
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    settings.setdefault("scaler", GradScaler("cpu", enabled=False))
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return TrainStep(model, loss.double(), optimizer, autocast=nullcontext, accumulate=accumulate, **settings)


def gradients(step: TrainStep) -> dict[str, Tensor]:
    return {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_losses_of_parts_add_up_to_that_of_the_batch(settings: dict[str, Any]) -> None:
    loss = Loss(**settings).double()
    logits, label = torch.randn(7, 3, dtype=torch.float64), batch(7)[1]
    total = loss.total_weight(label)
    parts = [loss(logits[part], label[part], total) for part in (slice(0, 1), slice(1, 4), slice(4, 7))]
    whole = loss(logits, label)
    assert abs(torch.stack(parts).sum() - whole) < 1e-14
    assert abs(loss(logits, label, total) - whole) < 1e-14


@pytest.mark.parametrize("settings", [LOSSES[0], LOSSES[3], LOSSES[7]], ids=str)
@pytest.mark.parametrize(("clips", "accumulate"), [(7, 3), (6, 2), (2, 5)])  # uneven, even, more than clips
def test_micro_batches_have_the_gradients_of_the_batch(
    settings: dict[str, Any], clips: int, accumulate: int
) -> None:
    frames, label = batch(clips)
    whole, parts = (step_of(Loss(**settings), accumulate=n) for n in (1, accumulate))
    sizes: list[int] = []

    def watch(_: Any, args: Any, inputs: dict[str, Tensor]) -> None:
        sizes.append(len(inputs["video"]))

    parts.model.register_forward_pre_hook(watch, with_kwargs=True)
    (logits, loss), (micro_logits, micro_loss) = (s.backward(frames, label) for s in (whole, parts))
    assert sum(sizes) == clips and len(sizes) == min(clips, accumulate) and max(sizes) - min(sizes) <= 1
    assert not micro_logits.requires_grad and not micro_loss.requires_grad
    assert (micro_logits - logits).abs().max() < 1e-12 and abs(micro_loss - loss) < 1e-12
    ours, theirs = gradients(parts), gradients(whole)
    assert ours.keys() == theirs.keys() and len(ours) == len(list(whole.model.parameters()))
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() < 1e-12, name


def test_gradients_do_not_add_up_over_steps() -> None:
    step = step_of(Loss("ce"), accumulate=2)
    step.backward(*batch(4))
    first = gradients(step)
    first = {name: gradient.clone() for name, gradient in first.items()}
    step.backward(*batch(4))
    assert all(torch.equal(gradient, first[name]) for name, gradient in gradients(step).items())


def test_the_norm_is_limited_once_after_all_micro_batches_and_unscaled() -> None:
    """With a loss scale too: the updated weights are those of the whole batch."""
    limit, updated = 1e-2, []
    for accumulate, enabled in ((1, False), (3, False), (3, True)):
        scaler = GradScaler("cpu", enabled=enabled, init_scale=2.0**10)
        step = step_of(Loss("ce", counts=COUNTS), accumulate=accumulate, scaler=scaler, clip_grad=limit)
        step.backward(*batch(7))
        norm = torch.cat([gradient.flatten() for gradient in gradients(step).values()]).norm()
        assert norm > limit
        step.update(0.5)
        assert abs(torch.cat([g.flatten() for g in gradients(step).values()]).norm() - limit) < 1e-6
        updated.append(torch.cat([p.detach().flatten() for p in step.model.parameters()]))
    for accumulated in updated[1:]:
        assert (accumulated - updated[0]).abs().max() < 1e-12


def test_one_micro_batch_that_overflows_leaves_the_step_out() -> None:
    """In float16 a single infinite gradient must skip the step, and halve the scale once."""
    scaler = GradScaler("cpu", init_scale=4.0)
    step = step_of(Loss("ce"), accumulate=2, scaler=scaler)
    frames, label = batch(4)
    frames["video"][3] = float("inf")
    before = [p.detach().clone() for p in step.model.parameters()]
    step.backward(frames, label)
    step.update(0.5)
    assert all(torch.equal(p, old) for p, old in zip(step.model.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0


def test_a_step_on_the_cpu_is_not_captured() -> None:
    """tests/gpu/test_step_on_cuda.py holds what a graph computes."""
    frames, label = batch(6)
    plain, given = step_of(Loss("ce")), step_of(Loss("ce"))
    given.graph = StepGraph(given.model.parameters())
    for _ in range(5):
        expected, came = plain.backward(frames, label), given.backward(frames, label)
        assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))
        assert all(torch.equal(x, gradients(plain)[name]) for name, x in gradients(given).items())
        plain.update(0.1)
        given.update(0.1)
    assert not given.graph.captured
