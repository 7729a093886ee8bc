"""The model with int8 layers: close to the float model, apart from it, and for inference only."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hsta_fast
from hsta_fast import HSTA
from hsta_fast.int8 import Int8USTA
from hsta_fast.layers import USTA

SMALL: dict[str, Any] = {"num_classes": 3, "widths": (24, 32), "num_heads": (3, 4), "num_layers": 2}


def model(**changes: Any) -> HSTA:
    """With weights so large that every layer matters to the logits."""
    torch.manual_seed(0)
    made = HSTA(hsta_fast.HSTAConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


def clip() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 4, 36, 48), dtype=torch.uint8, generator=generator)
    return frames, frames[:, :, ::2]


@pytest.mark.parametrize("changes", [{}, {"branches": ("video",)}, {"mlp_ratio": 2.3}])
@torch.inference_mode()
def test_logits_are_close_to_those_of_the_float_model(changes: dict[str, Any]) -> None:
    made = model(**changes)
    frames = clip()[: len(made.config.branches)]
    before = copy.deepcopy(made.state_dict())
    expected = made(*frames)
    quantised = hsta_fast.quantize_int8(made)
    came = quantised(*frames)
    assert not torch.equal(came, expected)
    # 1 to 3 % at these widths, whose sums are short; 0.1 % of the logits in the demonstration's model.
    assert (came - expected).norm() < 0.05 * expected.norm()
    blocks = [module for module in quantised.modules() if isinstance(module, Int8USTA)]
    assert len(blocks) == sum(isinstance(module, USTA) for module in made.modules()) > 0
    for block in blocks:
        block.impl = "torch"
    assert (quantised(*frames) - came).norm() < 0.05 * expected.norm()
    # The model that was given is as it was, and shares nothing with the copy.
    after = made.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    own = {value.data_ptr() for value in after.values()}
    assert not own & {value.data_ptr() for value in quantised.state_dict().values()}
    assert made.head.weight.requires_grad and not any(p.requires_grad for p in quantised.parameters())


@torch.inference_mode()
def test_weights_take_a_quarter_of_the_memory() -> None:
    made = hsta_fast.create_model("hsta_tiny")
    quantised = hsta_fast.quantize_int8(made)
    sizes = [
        sum(
            x.numel() * x.element_size() for x in whole.get_submodule("blocks.0.blocks").state_dict().values()
        )
        for whole in (made, quantised)
    ]
    assert sizes[1] < 0.3 * sizes[0]


@torch.inference_mode()
def test_autocast_and_one_graph() -> None:
    quantised, frames = hsta_fast.quantize_int8(model()), clip()
    expected = quantised(*frames)
    with torch.autocast("cpu", torch.bfloat16):
        assert (quantised(*frames) - expected).norm() < 0.05 * expected.norm()
    block = next(module for module in quantised.modules() if isinstance(module, Int8USTA))
    x = torch.randn(2, 9, block.norm1.weight.numel())
    # Compiled code takes another form of attention, whose last bits can move a byte by a step.
    compiled = torch.compile(block, fullgraph=True, backend="eager")(x)
    assert (compiled - block(x)).norm() < 0.01 * x.norm()


def test_for_inference_only(tmp_path: Path) -> None:
    quantised = hsta_fast.quantize_int8(model().train())
    assert not quantised.training
    with pytest.raises(RuntimeError, match="an int8 model expected eval mode, got training mode"):
        quantised.train()(*clip())
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="model expected float parameters, got int8: save the float model"):
        hsta_fast.save_model(quantised, path)
    assert not path.exists()


def hooked() -> HSTA:
    made = model()
    made.get_submodule("blocks.0.blocks.1.0.mlp.fc1").register_forward_hook(lambda *_: None)
    return made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "model expected an HSTA, got Linear"),
        (
            lambda: hsta_fast.quantize_int8(model()),
            "model expected float32 parameters, got one that is quant",
        ),
        (lambda: model().bfloat16(), "model expected float32 on the CPU, got torch.bfloat16 on cpu"),
        (lambda: model().to("meta"), "model expected float32 on the CPU, got torch.float32 on meta"),
        (hooked, "model expected a plain Linear as mlp.fc1 of every USTA block, got Linear"),
    ],
)
def test_models_that_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hsta_fast.quantize_int8(given())
