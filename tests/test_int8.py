"""The model with int8 layers: close to the float model, apart from it, and for inference only."""

import copy
from collections.abc import Callable
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


def shaken(made: HSTA) -> HSTA:
    """A copy in float64 whose int8 layers err at random as rounding does: by up to half a step, uniformly.

    Steps are 1/127 of the largest weight of an output, and 1/255 of the range of a row, zero included.
    """

    def noise(x: Tensor, step: Tensor) -> Tensor:
        return x + (torch.rand_like(x) - 0.5) * step

    def before(_: Any, given: tuple[Tensor]) -> Tensor:
        low, high = (x.unsqueeze(-1) for x in torch.aminmax(given[0], dim=-1))
        return noise(given[0], (high.clamp(min=0) - low.clamp(max=0)) / 255)

    copied = copy.deepcopy(made).double()
    for block in (module for module in copied.modules() if isinstance(module, USTA)):
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            layer.weight.copy_(noise(layer.weight, layer.weight.abs().amax(1, keepdim=True) / 127))
            layer.register_forward_pre_hook(before)
    return copied


def largest_error(made: HSTA, frames: tuple[Tensor, ...]) -> Tensor:
    """Twice the largest error of the logits, as a norm, of eight models whose layers err at random."""
    expected = copy.deepcopy(made).double()(*frames)
    return 2 * torch.stack([(shaken(made)(*frames) - expected).norm() for _ in range(8)]).max()


@pytest.mark.filterwarnings("ignore:.* is not a plain :UserWarning")
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
    error = largest_error(made, frames)
    assert error < 0.1 * expected.norm()  # else a wrong result would pass
    assert (came - expected).norm() < error
    blocks = [module for module in quantised.modules() if isinstance(module, Int8USTA)]
    assert len(blocks) == sum(isinstance(module, USTA) for module in made.modules()) > 0
    for block in blocks:
        block.impl = "torch"
    assert (quantised(*frames) - expected).norm() < error
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
    block = next(module for module in quantised.modules() if isinstance(module, Int8USTA))
    x = torch.randn(2, 9, block.norm1.weight.numel())
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(x), expected)
        assert quantised(*frames).isfinite().all()
    # Compiled code takes another form of attention, whose last bits can move a byte by a step.
    compiled = torch.compile(block, fullgraph=True, backend="eager")(x)
    assert (compiled - block(x)).norm() < 0.01 * x.norm()


def test_for_inference_only(tmp_path: Path) -> None:
    quantised = hsta_fast.quantize_int8(model().train())
    assert not quantised.training
    with pytest.raises(RuntimeError, match="an int8 model expected eval mode, got training mode"):
        quantised.train()(*clip())
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="model expected float parameters, got int8: take the float model"):
        hsta_fast.save_model(quantised, path)
    assert not path.exists()


@torch.inference_mode()
def test_a_bias_of_the_qkv_product_counts() -> None:
    made = model()
    block = next(module for module in made.modules() if isinstance(module, USTA))
    x, qkv = torch.randn(2, 9, block.norm1.weight.numel()), block.attn.qkv
    biased = copy.deepcopy(block)
    biased.attn.q_bias.add_(1.0)
    biased.attn.v_bias.add_(2.0)
    width = x.shape[-1]
    bias = torch.cat([torch.ones(width), torch.zeros(width), torch.full((width,), 2.0)])
    qkv.bias = torch.nn.Parameter(bias)
    assert torch.equal(Int8USTA(block).eval()(x), Int8USTA(biased).eval()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_quantised_model_is_not_converted(dtype: torch.dtype) -> None:
    converted = hsta_fast.quantize_int8(model()).to(dtype)
    message = f"model expected an int8 model as quantize_int8 made it, got one converted to {dtype} on cpu"
    with pytest.raises(ValueError, match=message):
        converted(*clip())


def hooked(name: str) -> Callable[[], HSTA]:
    def make() -> HSTA:
        made = model()
        made.get_submodule("blocks.0.blocks.1.0" + name).register_forward_hook(lambda *_: None)
        return made

    return make


def without_bias() -> HSTA:
    made = model()
    made.get_submodule("blocks.0.blocks.1.0.norm2").register_parameter("bias", None)
    return made


HOOKS = "got one with hooks, or a forward or weight of its own"


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
        (hooked(""), f"model expected a plain USTA as every block, {HOOKS}"),
        (hooked(".drop_path"), f"model expected a plain DropPath as drop_path of every USTA block, {HOOKS}"),
        (hooked(".mlp.fc1"), f"model expected a plain Linear as mlp.fc1 of every USTA block, {HOOKS}"),
        (without_bias, "model expected a plain LayerNorm as norm2 of every USTA block, got one with no bias"),
    ],
)
def test_models_that_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hsta_fast.quantize_int8(given())
