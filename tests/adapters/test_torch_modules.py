"""Torch's own modules: nn.Conv3d whose kernel is its stride, and nn.MultiheadAttention."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hsta_fast
from hsta_fast.adapters import worth
from tests.adapters.checks import check_same

CONV = "a product of patches"


@pytest.mark.parametrize(
    ("channels", "bias", "padding"),
    [(3, True, 0), (1, True, 0), (2, False, "valid"), (4, True, 0), (3, False, 0)],
)
def test_conv3d(channels: int, bias: bool, padding: Any) -> None:
    video = torch.randn(2, channels, 5, 9, 8, dtype=torch.float64)
    check_same(
        lambda: nn.Conv3d(channels, 6, (2, 4, 3), stride=(2, 4, 3), bias=bias, padding=padding),
        [video],
        rows={"": f"{CONV}; as before on a CPU"},
        calls={},
        compile_backend="eager" if channels == 1 or not bias else None,
    )


def test_results_have_the_strides_of_the_originals() -> None:
    """So that what comes after may take any view of them."""
    conv, attention = nn.Conv3d(3, 6, 2, stride=2), nn.MultiheadAttention(16, 4)
    model = nn.ModuleList([conv, attention])
    hsta_fast.accelerate(model)
    video, x = torch.randn(2, 3, 4, 4, 6), torch.randn(9, 2, 16)
    assert conv(video).view(2, -1).shape == (2, 6 * 2 * 2 * 3)
    for given in ((x, x, x), (x[:1], y := torch.randn(31, 2, 16), y)):
        assert attention(*given, need_weights=False)[0].view(-1, 16).shape == (2 * len(given[0]), 16)


def test_queries_of_another_batch_are_refused_as_before() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    hsta_fast.accelerate(attention)
    tokens = torch.randn(3, 31, 16)
    with pytest.raises(RuntimeError):
        attention(torch.randn(1, 1, 16), tokens, tokens, need_weights=False)


@pytest.mark.parametrize(
    ("device", "batch", "length", "pays"),
    [("cpu", 1, 16, False), ("cpu", 1, 197, True), ("cuda", 1, 197, False), ("cuda", 16, 1568, True)],
)
def test_short_calls_run_as_before(device: str, batch: int, length: int, pays: bool) -> None:
    """Self-attention of width 768, eagerly: on a CUDA device Python takes longer to launch ours."""
    with monkeypatched(worth, _always=False), FakeTensorMode(allow_non_fake_inputs=True):
        tokens = torch.empty(batch, length, 768, device=device)
        with monkeypatched(torch.cuda, is_current_stream_capturing=lambda: False):
            assert worth.fusing_pays(tokens, length, 768) is pays
            assert worth.absorbing_pays(65, 12, tokens) is False


@contextmanager
def monkeypatched(module: Any, **values: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        yield
