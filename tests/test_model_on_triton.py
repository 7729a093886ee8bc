"""HSTA with both attentions on Triton: logits and gradients of the published formulation."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hsta_fast
from hsta_fast.crossmodal import CrossAttentionBlock
from hsta_fast.layers import SpaceTimeAttention
from hsta_fast.model import HSTA
from hsta_fast.ops import cls_cross_attention_inplace

from .published_formulation import published_logits, published_state
from .tolerance import DEVICE

SHAPE = {"widths": (48, 96), "patches": (12, 16), "num_classes": 3, "layers": 2, "n_s": 1, "n_v": 2}


def logits_and_gradients(model: HSTA, clip: Tensor, weights: Tensor) -> dict[str, Tensor]:
    logits = model(clip)
    (logits * weights.to(logits)).sum().backward()
    found = {key.replace(".csta.", "."): p.grad for key, p in model.named_parameters()}
    return {"logits": logits.detach()} | {key: grad for key, grad in found.items() if grad is not None}


def test_parity_with_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1e-4 of float64, relative to the largest value of each tensor or to 1."""
    torch.manual_seed(0)
    clip, weights = (
        torch.randn(2, 3, 4 + 2, 40, 50, dtype=torch.float64),
        torch.linspace(0.5, 1.5, 6).view(2, 3),
    )
    state = published_state(SHAPE, dtype=torch.float64, seed=1)
    leaves = {key: value.requires_grad_() for key, value in state.items()}
    exact_logits = published_logits(leaves, clip, num_heads=(3, 3))
    (exact_logits * weights.double()).sum().backward()
    exact = {"logits": exact_logits.detach()} | {
        key: x.grad for key, x in leaves.items() if x.grad is not None
    }

    single = {key: value.detach().float() for key, value in state.items()}
    model = hsta_fast.load_published(single, num_heads=(3, 3)).to(DEVICE)
    kinds = SpaceTimeAttention, CrossAttentionBlock
    attentions = [module for module in model.modules() if isinstance(module, kinds)]
    assert len(attentions) == 2 * (1 + 2) + 2 * 2
    for attention in attentions:
        attention.impl = "triton"
    pools: list[str] = []
    for name in ("pool_fwd", "pool_bwd"):
        ran_before = getattr(cls_cross_attention_inplace, name)

        def counted(*args: Any, run: Any = ran_before, name: str = name, **kwargs: Any) -> Any:
            assert "triton" in args
            pools.append(name)
            return run(*args, **kwargs)

        monkeypatch.setattr(cls_cross_attention_inplace, name, counted)
    with torch.profiler.profile() as profile:
        came = logits_and_gradients(model, clip.float().to(DEVICE), weights)
    ran = {event.key: event.count for event in profile.key_averages()}
    assert ran["hsta_fast::space_time_attention"] == ran["hsta_fast::space_time_attention_backward"] == 6
    assert sorted(pools) == ["pool_bwd"] * 4 + ["pool_fwd"] * 4
    assert came.keys() == exact.keys()
    for key, value in exact.items():
        error = float((came[key].cpu().double() - value).abs().max())
        assert error <= 1e-4 * max(1.0, float(value.abs().max())), (key, error)
