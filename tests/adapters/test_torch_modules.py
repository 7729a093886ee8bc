"""Torch's own modules: nn.Conv3d whose kernel is its stride, and nn.MultiheadAttention."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters.checks import check_same

CONV = "tubelet_embed: a product of patches"


@pytest.mark.parametrize(
    ("channels", "bias", "padding"),
    [(3, True, 0), (1, True, 0), (2, False, "valid"), (4, True, 0), (3, False, 0)],
)
def test_conv3d(channels: int, bias: bool, padding: Any) -> None:
    video = torch.randn(2, channels, 5, 9, 8, dtype=torch.float64)
    check_same(
        lambda: nn.Conv3d(channels, 6, (2, 4, 3), stride=(2, 4, 3), bias=bias, padding=padding),
        [video],
        rows={"": CONV},
        calls={"tubelet_embed": 1} if channels == 3 else {},
        compile_backend="eager",
    )
