"""Batches prefetched to a CUDA device: the same bytes as on the CPU, without synchronisation."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.gpu.needs import needs_data_packages

pytestmark = [pytest.mark.gpu, needs_data_packages]


@pytest.mark.parametrize("flow", [None, "dis"])
@pytest.mark.parametrize("augmented", [False, True])
def test_the_bytes_are_those_of_the_cpu(flow: Any, augmented: bool) -> None:
    from hsta_fast.data.dataset import Augment
    from hsta_fast.data.sampling import Sampling
    from tests.data.batches import TENSORS, data_of, epoch, same

    data = data_of([0, 1, 2, 1] * 8, Sampling(num_frames=4, video="random", flow=flow), size=32)
    augment = Augment(flip=True, crop=3) if augmented else None
    for train in (True, False):
        for number in range(3):
            more: dict[str, Any] = {"augment": augment, "train": train, "seed": (number,), "batch_size": 5}
            there = epoch(data, device="cuda", **more)
            assert all(batch.video.is_cuda and batch.special.is_contiguous() for batch in there)
            back = [replace(b, **{name: getattr(b, name).cpu() for name in TENSORS}) for b in there]
            assert same(back, epoch(data, **more))


def test_a_batch_is_not_overwritten_while_it_is_used() -> None:
    """Slow work on each batch, which is freed at once: a later batch must not reuse its memory meanwhile."""
    from hsta_fast.data.sampling import Sampling
    from tests.data.batches import data_of, epoch

    data = data_of([0, 1] * 32, Sampling(num_frames=8), size=64)
    sums = []
    work = torch.randn(4096, 4096, device="cuda")
    for batch in data.batches(range(64), batch_size=4, seed=(0,), train=True, device="cuda"):
        for _ in range(4):
            work = work @ work * 1e-4
        sums.append(batch.video.double().sum())  # runs after the work, on the same stream
        del batch
    plain = [batch.video.double().sum() for batch in epoch(data, batch_size=4, seed=(0,))]
    assert torch.stack(sums).cpu().tolist() == torch.stack(plain).tolist()
