"""Twenty seeded steps of training have the losses of the published formulation, whichever path runs."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hsta_fast import extension
from hsta_fast.crossmodal import CrossAttentionBlock
from hsta_fast.layers import SpaceTimeAttention
from hsta_fast.model import HSTA, HSTAConfig
from hsta_fast.published import PublishedHSTA
from hsta_fast.training import compiled
from hsta_fast.training.compiled import CompiledModel
from hsta_fast.training.optim import Loss
from hsta_fast.training.step import TrainStep
from tests.tolerance import DEVICE

STEPS, CLIPS = 20, 4
CONFIG = HSTAConfig(
    num_classes=3, widths=(16, 32), num_heads=(1, 2), patch_sizes=(8, 8), num_layers=1, n_video=1
)
# The largest difference of a loss: rounding grows from step to step.
BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "_compiled_for", None)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def fresh() -> HSTA:
    torch.manual_seed(0)
    return HSTA(CONFIG).to(DEVICE)


def losses(model: nn.Module, dtype: torch.dtype, steps: int = STEPS) -> Tensor:
    """Of each step on the same clips, float64 (steps,); dtype: of the model, bfloat16 by autocast."""
    groups = [{"params": list(model.parameters()), "lr_scale": 1.0}]
    step = TrainStep(
        model.train().to(torch.promote_types(dtype, torch.float32)),
        Loss("ce", smoothing=0.1),
        torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.05, fused=True),
        GradScaler(DEVICE, enabled=False),
        lambda: torch.autocast(DEVICE, dtype, enabled=dtype == torch.bfloat16),
        clip_grad=1.0,
    )
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(steps):
        label = torch.arange(number, number + CLIPS) % 3
        video = torch.randint(0, 256, (CLIPS, 3, 4, 16, 16), dtype=torch.uint8, generator=generator)
        video //= 1 + label.byte()[:, None, None, None, None]  # darker by the class
        given = {"video": video.to(DEVICE), "special": video[:, :, [0, 3]].to(DEVICE)}
        found.append(step.backward(given, label.to(DEVICE))[1])
        step.update(1e-3)
    return torch.stack(found).double().cpu()


@pytest.fixture(scope="module")
def exact() -> Tensor:
    """Those of the published formulation, written out, in float64."""
    found = losses(PublishedHSTA(fresh().double()), torch.float64)
    assert found[-1] < 0.8 * found[0]
    return found


def close(model: nn.Module, dtype: torch.dtype, exact: Tensor) -> None:
    assert (losses(model, dtype, len(exact)) - exact).abs().max() <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_auto(dtype: torch.dtype, exact: Tensor) -> None:
    """With the extension, where it can be built."""
    close(fresh(), dtype, exact)


def choose(model: nn.Module, impl: str) -> None:
    """Both attentions by `impl`."""
    attentions = [x for x in model.modules() if isinstance(x, SpaceTimeAttention | CrossAttentionBlock)]
    assert len(attentions) == 4
    for attention in attentions:
        attention.impl = impl


def test_torch(exact: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension."""
    monkeypatch.setattr(extension, "usable", lambda part, impl: False)
    model = fresh()
    choose(model, "torch")
    close(model, torch.float32, exact)


@pytest.mark.parametrize("steps", [2, pytest.param(STEPS, marks=pytest.mark.full)])
def test_triton(steps: int, exact: Tensor) -> None:
    """Interpreted, where there is no device."""
    model = fresh()
    choose(model, "triton")
    close(model, torch.float32, exact[:steps])


@pytest.mark.full  # the quick suite has `test_compiled.py`
@pytest.mark.parametrize(
    ("backend", "dtype"), [*(("aot_eager", dtype) for dtype in BOUNDS), ("inductor", torch.float32)]
)
def test_compiled(backend: str, dtype: torch.dtype, exact: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", backend)
    model = fresh()
    called = CompiledModel(model, sizes=frozenset({CLIPS}), configuration=dtype)
    called.switch_on()
    close(called, dtype, exact)
    assert called.on
