"""Models of transformers and timm on a CUDA device, accelerated: numbers, gradients, compiled code."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from tests.tolerance import assert_close

pytestmark = pytest.mark.gpu
SMALL = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 256, "num_hidden_layers": 2}


def videomae() -> tuple[nn.Module, tuple[int, ...]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(**SMALL, image_size=64, num_frames=8)
    return transformers.VideoMAEModel(config), (2, 8, 3, 64, 64)


def siglip() -> tuple[nn.Module, tuple[int, ...]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(**SMALL, image_size=160, patch_size=16)
    return transformers.SiglipVisionModel(config), (2, 3, 160, 160)


def vjepa2() -> tuple[nn.Module, tuple[int, ...]]:
    transformers = pytest.importorskip("transformers")
    small = SMALL | {"pred_hidden_size": 48, "pred_num_attention_heads": 3, "pred_num_hidden_layers": 1}
    config = transformers.VJEPA2Config(**small, crop_size=64, frames_per_clip=8, num_pooler_layers=1)
    return transformers.VJEPA2ForVideoClassification(config), (2, 8, 3, 64, 64)


def crossvit() -> tuple[nn.Module, tuple[int, ...]]:
    timm = pytest.importorskip("timm")
    return timm.create_model("crossvit_tiny_240"), (2, 3, 240, 240)


MODELS = [videomae, siglip, vjepa2, crossvit]


def result(output: Any) -> Tensor:
    for name in ("logits", "pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output


def outcome(model: nn.Module, given: Tensor, dout: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradient of every parameter that has one."""
    out = result(model(given))
    parameters = list(model.parameters())
    dout = torch.ones_like(out) if dout is None else dout.to(out.dtype)
    grads = torch.autograd.grad(out, parameters, dout, allow_unused=True)
    return [out.detach(), *(g for g in grads if g is not None)]


@pytest.mark.parametrize("autocast", [False, True], ids=["model in bfloat16", "autocast"])
@pytest.mark.parametrize("build", MODELS)
def test_same_numbers_in_bfloat16(
    build: Callable[[], tuple[nn.Module, tuple[int, ...]]], autocast: bool
) -> None:
    """Output and gradients have at most twice the original's own error against float64, plus a rounding."""
    torch.manual_seed(0)
    model, shape = build()
    model = model.cuda().eval()
    given = torch.randn(shape, device="cuda")
    dout = torch.randn(result(model(given)).shape, device="cuda")
    exact = outcome(model.double(), given.double(), dout)
    model = model.float() if autocast else model.bfloat16()
    given = given if autocast else given.bfloat16()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        plain = outcome(model, given, dout)
        report = hsta_fast.accelerate(model)
        assert len(report.switched) >= 3
        came = outcome(model, given, dout)
        report.revert()
        assert all(torch.equal(x, y) for x, y in zip(outcome(model, given, dout), plain, strict=True))
    for x, y, z in zip(came, plain, exact, strict=True):
        assert_close([x], [y], [z], band=2 * torch.finfo(torch.bfloat16).eps)


def test_compiled_code() -> None:
    torch.manual_seed(0)
    model, shape = videomae()
    model = model.cuda().bfloat16().eval()
    given = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    hsta_fast.accelerate(model)
    expected = outcome(model, given)
    came = outcome(cast(nn.Module, torch.compile(model, dynamic=False)), given)
    torch.testing.assert_close(came[0], expected[0], rtol=0.05, atol=0.05)
