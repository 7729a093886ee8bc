"""The rollout against a plain product of attention matrices that are written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hsta_fast import HSTA
from hsta_fast.rollout import attention_rollout

from .called_modules import called_csta, called_embeddings, called_usta, heads
from .test_csta_maps import GRIDS, clip, model

NAMES = {0: "special", 1: "video"}


def specified(made: HSTA, video: Tensor, special: Tensor) -> dict[int, Tensor]:
    """(B, N + 1, N + 1): for each branch the product of (A + I) / 2, every submodule called."""
    states = called_embeddings(made, video, special)
    product: dict[int, Tensor] = {}
    for layer in made.blocks:
        of: Any = layer
        for d, state in enumerate(states):
            x = state
            for block in of.blocks[str(d)]:
                attn = block.attn
                width = x.shape[2]
                qkv = block.norm1(x) @ attn.qkv.weight.T
                q, k = qkv[..., :width] + attn.q_bias, qkv[..., width : 2 * width]
                q, k = heads(q, attn.num_heads), heads(k, attn.num_heads)
                weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1).mean(1)
                step = (weights + torch.eye(x.shape[1], dtype=x.dtype)) / 2
                product[d] = step @ product[d] if d in product else step
                x = x + block.attn(block.norm1(x))
                x = x + block.mlp(block.norm2(x))
        states = called_usta(of, states)
        states = called_csta(of.csta, states) if of.csta is not None else states
    return product


@pytest.mark.parametrize("changes", [{}, {"n_video": 3, "n_special": 1}, {"csta": False}])
def test_it_is_the_first_row_of_the_product(changes: dict[str, Any]) -> None:
    made = model(**changes)
    expected = specified(made, *clip())
    found = attention_rollout(made, *clip())
    assert list(found) == ["special", "video"]
    for d, product in expected.items():
        tokens, itself = found[NAMES[d]]
        assert tokens.shape == (2, *GRIDS[d])
        torch.testing.assert_close(tokens.flatten(1), product[:, 0, 1:], rtol=0, atol=1e-10)
        torch.testing.assert_close(itself, product[:, 0, 0], rtol=0, atol=1e-10)
        torch.testing.assert_close(tokens.sum((1, 2, 3)) + itself, torch.ones_like(itself))


def test_one_branch_and_float32() -> None:
    made = model(branches=("video",), csta=False)
    video, _ = clip()
    [(name, (tokens, _))] = attention_rollout(made, video).items()
    assert name == "video"
    single = copy.deepcopy(made).float()
    [(_, (rounded, _))] = attention_rollout(single, video).items()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), tokens, rtol=1e-3, atol=1e-5)


def test_the_model_is_the_same_afterwards() -> None:
    made = model()
    before = made(*clip())
    attention_rollout(made, *clip())
    assert torch.equal(made(*clip()), before)
    assert not any(module._forward_pre_hooks for module in made.modules())


def test_replaced_projections_are_called_and_other_layers_refused() -> None:
    made = model()
    expected = attention_rollout(made, *clip())["video"].tokens
    attention: Any = made.blocks[0].blocks["1"][0].attn  # type: ignore[index, union-attr]
    attention.qkv = nn.Sequential(attention.qkv)
    found = attention_rollout(made, *clip())["video"].tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    made.blocks[0].blocks["1"][0] = nn.Identity()  # type: ignore[index, assignment]
    with pytest.raises(ValueError, match="model expected USTA layers in each branch, got Identity"):
        attention_rollout(made, *clip())
    with pytest.raises(ValueError, match="model expected an HSTA, got Linear"):
        attention_rollout(nn.Linear(2, 2), clip()[0])  # type: ignore[arg-type]
