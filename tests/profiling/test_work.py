"""Operations and bytes by formula, against torch's own counter and the model's parameters."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hsta_fast import cls_cross_attention, create_model, reference
from hsta_fast.presets import model_config
from hsta_fast.profiling.work import flops_of, tokens, work_of
from hsta_fast.published import PublishedHSTA

BATCH, FRAMES, SIZE = 2, 4, 48
CONFIG = model_config("hsta_tiny", num_layers=1, n_special=1, n_video=1)
WORK = work_of(CONFIG, BATCH, FRAMES, SIZE)


def counted(*parts: str, direction: str) -> float:
    return sum(work.flops for (part, way), work in WORK.items() if part in parts and way == direction)


@pytest.fixture(scope="module")
def published() -> PublishedHSTA:
    return PublishedHSTA(create_model("hsta_tiny", num_layers=1, n_special=1, n_video=1))


def test_usta_and_embedding_are_counted_as_torch_does(published: PublishedHSTA) -> None:
    frames = [torch.zeros(BATCH, 3, n, SIZE, SIZE, dtype=torch.uint8) for n in (2, FRAMES)]
    with FlopCounterMode(display=False) as embedding:
        states = [published.embed(d, x).detach() for d, x in enumerate(frames)]
    assert embedding.get_total_flops() == counted("embedding", direction="forward")
    assert [x.shape[1] - 1 for x in states] == list(tokens(CONFIG, FRAMES, SIZE))
    blocks = [published.get_submodule(f"blocks.0.blocks.{d}.0") for d in (0, 1)]
    with FlopCounterMode(display=False) as forward:
        out = [block(x.requires_grad_()) for block, x in zip(blocks, states, strict=True)]
    with FlopCounterMode(display=False) as backward:
        (out[0].sum() + out[1].sum()).backward()
    parts = ("USTA products", "USTA attention")
    assert forward.get_total_flops() == counted(*parts, direction="forward")
    assert backward.get_total_flops() == counted(*parts, direction="backward")


def test_csta_is_counted_as_torch_does() -> None:
    """The pooling and its small products by the op; the other small ones are linear layers of the CLS."""
    lengths = tokens(CONFIG, FRAMES, SIZE)
    found = 0
    for d, (N, C, heads) in enumerate(zip(lengths, CONFIG.widths, CONFIG.num_heads, strict=True)):
        matrices = {f"{name}_weight": torch.randn(C, C) for name in "qkv"}
        vectors = {f"{name}_bias": torch.randn(C) for name in ("q", "k", "v", "norm")}
        given: dict[str, Any] = {**matrices, **vectors, "norm_weight": torch.ones(C), "num_heads": heads}
        # Not by a module, on whose calls the counter has hooks, with which keys and values are computed.
        with FlopCounterMode(display=False) as counter:
            x = torch.randn(BATCH, N, C)
            cls_cross_attention(torch.randn(BATCH, C), x, **given)
            # The op pools by an op of its own, which the counter does not know.
            reference.attention_pool(torch.randn(BATCH, heads, C), x)
        found += counter.get_total_flops() + 2 * BATCH * (C * C + 2 * C * CONFIG.widths[1 - d])
    assert found == counted("CSTA", direction="forward")


def test_a_whole_forward_is_counted_as_torch_does() -> None:
    """On the published formulation; instead of its CSTA ours has a pooling."""
    config = model_config("hsta_tiny", num_layers=2)
    frames = {
        name: torch.zeros(1, 3, n, 64, 64, dtype=torch.uint8) for name, n in (("video", 4), ("special", 2))
    }
    with FlopCounterMode(display=False) as counter:
        PublishedHSTA(create_model("hsta_tiny", num_layers=2))(**frames)
    fusions = sum(
        sum(found.values())
        for name, found in counter.get_flop_counts().items()
        if name.endswith((".fusion.0", ".fusion.1", "projs.0", "projs.1"))
    )
    csta = work_of(config, 1, 4, 64)["CSTA", "forward"].flops
    expected = counter.get_total_flops() - fusions + csta
    assert flops_of(config, 1, 4, 64, training=False) == pytest.approx(expected, rel=1e-3)


def test_the_work_of_the_paper_s_model() -> None:
    base = model_config("hsta_base")
    found = [round(flops_of(base, 1, frames, 224, training=False) / 1e9) for frames in (6, 16, 32, 64)]
    assert found == [82, 248, 610, 1699]


def test_the_optimiser_moves_every_parameter() -> None:
    number = sum(p.numel() for p in create_model("hsta_tiny").parameters())
    assert work_of(model_config("hsta_tiny"), 1, 2, 32)["optimiser", "update"].bytes == 7 * 4 * number
