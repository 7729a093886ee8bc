"""torch's dynamic quantisation of linear layers: HSTA calls them; the error is that of the steps."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hsta_fast
from hsta_fast.crossmodal import CrossAttentionBlock
from hsta_fast.layers import SpaceTimeAttention

from . import called_modules
from .called_modules import called_attention, called_cross_attention, called_logits, heads

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.* deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* is not a plain :UserWarning"),
]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas attend by the op that the model calls: only the linear layers could differ."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return hsta_fast.space_time_attention(*(x.transpose(1, 2) for x in (q, k, v))).flatten(2)

    monkeypatch.setattr(called_modules, "attention", attention)


def quantised(module: nn.Module, *names: str) -> Any:
    """A copy with these linear layers quantised to int8; all linear layers without names."""
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(copy.deepcopy(module), set(names) or {nn.Linear}, dtype=torch.qint8)


def projection_error(linear: nn.Linear, x: Tensor) -> Tensor:
    """Largest error (..., out) of a quantised layer, from its two steps.

    Weights are rounded to the nearest of 255 steps over [-max, max], at most half a step away. Inputs are
    rounded to 127 steps between their least and largest value, zero included; the zero point, rounded too,
    moves all by up to half a step.
    """
    step_w = linear.weight.abs().max() / 127.5
    step_x = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127
    error = step_x * linear.weight.abs().sum(1) + (step_w / 2) * (x.abs() + step_x).sum(-1, keepdim=True)
    return error + 1e-5  # float32


def attention_error(q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
    """Largest error of softmax(q k' / sqrt(D)) v (B, H, N, D) for errors up to dq, dk, dv of its inputs.

    Scores that are off by up to d change each weight by a factor within exp(+-2 d).
    """
    scale = q.shape[-1] ** -0.5
    of_scores = scale * (q.abs() @ dk.transpose(2, 3) + dq @ (k.abs() + dk).transpose(2, 3))
    factor = (2 * of_scores.amax(-1, keepdim=True)).exp()
    weights = (scale * q @ k.transpose(2, 3)).softmax(-1)
    return (factor - 1) * (weights @ v.abs()) + factor * (weights @ dv)


def initialised(module: Any) -> Any:
    """As HSTA does, with an output projection that passes the attention's result on."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    nn.init.eye_(module.get_submodule("proj" if hasattr(module, "proj") else "attn.proj").weight)
    return module


def assert_within(came: Tensor, expected: Tensor, allowed: Tensor) -> None:
    assert allowed.max() < expected.abs().max() / 2  # else a wrong result would pass
    assert ((came - expected).abs() <= allowed).all()
    assert not torch.equal(came, expected)


def test_qkv() -> None:
    torch.manual_seed(0)
    module, x = initialised(SpaceTimeAttention(24, num_heads=3)), torch.randn(2, 9, 24)
    changed = quantised(module, "qkv")
    assert torch.equal(changed(x), called_attention(changed, x))
    parts = (heads(part, 3) for part in module.qkv(x).chunk(3, -1))
    errors = (heads(part, 3) for part in projection_error(module.qkv, x).chunk(3, -1))
    allowed = attention_error(*parts, *errors).transpose(1, 2).flatten(2)
    assert_within(changed(x), module(x), allowed)


def test_cross_attention() -> None:
    torch.manual_seed(0)
    block, cls = initialised(CrossAttentionBlock(24, num_heads=3)), torch.randn(2, 24)
    tokens = torch.randn(2, 9, 24)
    changed = quantised(block, "attn.wq", "attn.wk", "attn.wv")
    assert torch.equal(changed(cls, tokens), called_cross_attention(changed, cls, tokens))
    y, attn = block.norm1(torch.cat([cls.unsqueeze(1), tokens], dim=1)), block.attn
    given = ((attn.wq, y[:, :1]), (attn.wk, y), (attn.wv, y))
    parts = (heads(linear(x), 3) for linear, x in given)
    errors = (heads(projection_error(linear, x), 3) for linear, x in given)
    allowed = attention_error(*parts, *errors).transpose(1, 2).flatten(1)
    assert_within(changed(cls, tokens) - cls, block(cls, tokens) - cls, allowed)


def test_a_whole_model() -> None:
    """Every linear layer is quantised, and called."""
    torch.manual_seed(0)
    model = hsta_fast.create_model("hsta_tiny", num_layers=1, num_classes=3).eval()
    video = torch.randint(0, 256, (4, 3, 4, 32, 32), dtype=torch.uint8)
    changed = quantised(model)
    assert not any(type(module) is nn.Linear for module in changed.modules())
    assert torch.equal(changed(video, video[:, :, :2]), called_logits(changed, video, video[:, :, :2]))
