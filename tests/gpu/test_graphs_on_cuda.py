"""CUDA graphs for inference: a replay is the model, for each shape and autocast, and with new weights."""

import pytest
import torch
from torch import Tensor

import hsta_fast

pytestmark = pytest.mark.gpu


def frames(B: int) -> dict[str, Tensor]:
    shapes = {"video": (B, 3, 6, 48, 48), "special": (B, 3, 2, 48, 48)}
    return {n: torch.randint(0, 256, s, dtype=torch.uint8, device="cuda") for n, s in shapes.items()}


@pytest.mark.parametrize("autocast", [False, True])
def test_replays_are_the_model(autocast: bool) -> None:
    # hsta_base: other tests compile its kernels.
    model = hsta_fast.create_model("hsta_base", num_layers=1).cuda().eval()
    if not autocast:
        model.bfloat16()
    graphed = hsta_fast.GraphedModel(model)
    kept = []
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast), torch.inference_mode():
        for B in (1, 2, 1, 2):
            given = frames(B)
            kept.append((graphed(**given), model(**given)))
    for logits, exact in kept:  # none was overwritten by a later replay
        torch.testing.assert_close(logits, exact, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    given = frames(1)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast), torch.inference_mode():
        torch.testing.assert_close(graphed(**given), model(**given), rtol=0, atol=0)
        assert not torch.equal(graphed(**given), kept[0][0])
