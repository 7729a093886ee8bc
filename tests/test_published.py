"""The published model in ordinary modules, which profiles and benchmarks time the package against."""

from typing import Any, cast

import pytest
import torch

from hsta_fast import create_model
from hsta_fast.published import AttentionForm, PublishedHSTA


def test_it_is_the_published_model() -> None:
    """The same logits and gradients from the same weights; also compiled block by block."""
    torch.manual_seed(0)
    model = create_model("hsta_tiny", num_layers=2).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    video = torch.randint(0, 256, (2, 3, 4, 32, 40), dtype=torch.uint8)
    special = torch.randint(0, 256, (2, 3, 2, 32, 40), dtype=torch.uint8)
    exact = model(video, special)
    exact.sum().backward()
    forms: tuple[tuple[AttentionForm, bool], ...] = (("materialised", False), ("sdpa", True))
    for attention, compiled in forms:
        peer = PublishedHSTA(model, attention=attention)
        if compiled:
            peer.compile_blocks("eager")
        logits = peer(video, special)
        torch.testing.assert_close(logits, exact, rtol=1e-9, atol=1e-9)
        logits.sum().backward()
        gradients = dict(peer.named_parameters())
        for name, p in model.named_parameters():
            theirs = gradients[name.replace(".csta.", ".")].grad
            assert p.grad is not None and theirs is not None
            scale = max(1.0, float(p.grad.abs().max()))
            torch.testing.assert_close(theirs, p.grad, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize(
    ("overrides", "attention", "words"),
    [
        ({"head": "mean"}, "sdpa", "model expected head 'cls' (as published), got 'mean'"),
        ({"csta": False}, "sdpa", "config expected both branches, csta"),
        ({}, "flash", "attention expected one of materialised, sdpa, got 'flash'"),
    ],
)
def test_other_models_are_refused(overrides: dict[str, Any], attention: str, words: str) -> None:
    model = create_model("hsta_tiny", num_layers=1, **overrides)
    with pytest.raises(ValueError) as error:
        PublishedHSTA(model, attention=cast(AttentionForm, attention))
    assert words in str(error.value)
