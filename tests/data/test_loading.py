"""The bytes of a batch do not depend on where and when it is built."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsta_fast.data import loading
from hsta_fast.data.dataset import Augment
from hsta_fast.data.loading import BatchPlan, on_cpu, shift_and_flip
from hsta_fast.data.sampling import FlowMethod, Sampling
from hsta_fast.threads import prefetch
from tests.data.batches import data_of, epoch, same


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 12), st.sampled_from([None, "dis"]))
def test_the_device_s_arithmetic_gives_the_bytes_of_the_cpu_s(
    seed: int, size: int, crop: int, flow: FlowMethod | None
) -> None:
    """`shift_and_flip` on plain clips against copying them moved; shifts beyond the picture too."""
    rng = np.random.default_rng(seed)
    data = data_of([0, 1, 2], Sampling(num_frames=2, flow=flow), size=size)
    moves = np.concatenate([rng.integers(0, 2, (3, 1)), rng.integers(-crop, crop + 1, (3, 2))], axis=1)
    frames = rng.integers(0, len(data.store), (3, 4))
    plan = BatchPlan(np.arange(3), frames, moves)
    plain = on_cpu(data, BatchPlan(plan.chosen, frames, np.zeros_like(moves)))
    moved = on_cpu(data, plan)
    video, special = shift_and_flip(plain.video, plain.special, torch.from_numpy(moves))
    assert torch.equal(video, moved.video) and torch.equal(special, moved.special)
    assert special.dtype == moved.special.dtype


def test_batches_taken_ahead_are_the_same() -> None:
    data = data_of([0, 1, 2, 1] * 4, Sampling(num_frames=3, video="random"))
    more: dict[str, Any] = {"augment": Augment(flip=True, crop=2), "balance": "matched"}
    plain = epoch(data, **more)
    batches = data.batches(range(16), batch_size=4, seed=(1, 2), train=True, **more)
    assert same(list(prefetch(batches, 2)), plain)


def test_no_more_than_the_depth_is_taken_ahead() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    stream = prefetch(numbers(), 2)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(taken) <= 4  # given, two waiting, one in hand
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_what_a_generator_has_entered_is_left_by_its_own_thread() -> None:
    """A stream or a device is a thread's own."""
    where: list[str] = []

    def entered() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            where.append(threading.current_thread().name)

    stream = prefetch(entered(), 2)
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert list(prefetch(entered(), 2)) == list(range(100))
    assert where == ["ahead"] * 2


def test_an_error_of_the_thread_is_raised_where_the_batch_is_taken() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("expected a frame")

    stream = prefetch(broken(), 2)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="expected a frame"):
        next(stream)
    assert list(prefetch(iter([]), 2)) == []


def test_a_batch_on_the_cpu_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "prefetch", None)
    assert epoch(data_of([0, 1], Sampling(num_frames=2)))
