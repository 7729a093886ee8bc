"""Every configuration that a launcher chooses with torch's default settings, on every card; interpreted."""

import pytest
import torch

from hsta_fast.kernels import attention_pool, space_time_attention
from hsta_fast.kernels.launch import of_capability
from hsta_fast.kernels.space_time_attention_configs import WIDTHS
from tests.kernels.pool_checks import check as check_pool
from tests.kernels.pool_checks import inputs as pool_inputs
from tests.ops.attention_checks import check, inputs
from tests.tolerance import DEVICE, DTYPES

# One card per table: `wgmma` and 227 KiB; `mma.sync` and 163 KiB; `mma.sync` and 99 KiB.
CAPABILITIES = (90, 80, 86)
pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="a device takes its own configurations")


def on_card(monkeypatch: pytest.MonkeyPatch, capability: int, processors: int = 2) -> None:
    """The device that the launchers see."""
    card = of_capability(capability)._replace(processors=processors)
    for module in (space_time_attention, attention_pool):
        monkeypatch.setattr(module, "device_of", lambda _: card)


@pytest.mark.parametrize("capability", CAPABILITIES[:2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_attention(width: int, dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths that leave a ragged tile after whole ones in every direction."""
    on_card(monkeypatch, capability)
    torch.manual_seed(0)
    check(inputs("separate", 1, 150, 270, 1, width, dtype))


@pytest.mark.parametrize("capability", CAPABILITIES[::2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("processors", [2, 132], ids=["one step", "two steps"])
@pytest.mark.parametrize("width", [384, *(pytest.param(C, marks=pytest.mark.full) for C in (768, 1024))])
def test_pooling(
    width: int, processors: int, dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_card(monkeypatch, capability, processors)
    torch.manual_seed(0)
    check_pool(*pool_inputs(1, 3, 130, width, dtype))
