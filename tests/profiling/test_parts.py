"""The time of a step by part: all of it is counted once, and where it belongs."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hsta_fast import HSTA, create_model, layers, ops
from hsta_fast.crossmodal import CrossmodalSpaceTimeAttention
from hsta_fast.data import Batch
from hsta_fast.profiling import parts
from hsta_fast.profiling.parts import StepTimes, named_ranges, profile_step
from hsta_fast.profiling.steps import Timed, batches, random_clips
from hsta_fast.profiling.work import Part
from hsta_fast.published import PublishedHSTA

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> HSTA:
    return create_model("hsta_tiny", num_layers=1)


@pytest.fixture
def given() -> Iterator[Batch]:
    return batches(random_clips(4, 4, 96), 4, CPU)


def times_of(timed: Timed, given: Iterator[Batch]) -> StepTimes:
    timed.train(given)  # what is allocated once
    return profile_step(lambda: timed.train(given), CPU)[0]


@pytest.mark.parametrize("published", [False, True])
def test_the_parts_add_up_to_the_step(model: HSTA, given: Iterator[Batch], published: bool) -> None:
    """To the time of a clock; every operation has a part."""
    timed = Timed(PublishedHSTA(model) if published else model, CPU, torch.float32)
    timed.train(given)
    inner = []

    def step() -> None:
        start = time.perf_counter()
        timed.train(given)
        inner.append(time.perf_counter() - start)

    start = time.perf_counter()
    times, profiler = profile_step(step, CPU)
    assert inner[0] - 1e-4 < times.total < time.perf_counter() - start
    assert sum(times.seconds.values()) == pytest.approx(times.total)
    events = profiler.events()
    [root] = [event for event in events if event.name == parts._STEP]
    forward = parts._Forward()
    forward.visit(root)
    unnamed = {event.name for event, key in forward.keyed(root) if key[0] == "other"}
    unnamed = {name for name in unnamed if not name.startswith(parts._PREFIX)}
    assert unnamed == set()
    both: tuple[Part, ...] = (
        "USTA products",
        "USTA attention",
        "USTA pointwise",
        "norms",
        "CSTA",
        "embedding",
    )
    expected = {(part, direction) for part in both for direction in ("forward", "backward")}
    expected |= {("optimiser", "update"), ("data", "update"), ("head and loss", "forward")}
    assert expected <= times.seconds.keys()
    assert all(seconds > 0 for seconds in times.seconds.values())


class Sleepy(torch.autograd.Function):
    """Takes its time: 30 ms forward, 60 ms backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        time.sleep(0.03)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        time.sleep(0.06)
        return dy.clone()


@pytest.mark.parametrize("part", ["USTA attention", "USTA pointwise"])
def test_slow_work_is_found_in_its_part(
    model: HSTA, given: Iterator[Batch], monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    """The attention of three USTA, or the two residuals of each."""
    if part == "USTA attention":
        plain = ops.space_time_attention
        monkeypatch.setattr(
            ops, "space_time_attention", lambda *args, **more: Sleepy.apply(plain(*args, **more))
        )
    else:
        monkeypatch.setattr(layers.DropPath, "forward", lambda _, x: Sleepy.apply(x))
    calls = 3 if part == "USTA attention" else 6
    times = times_of(Timed(model, CPU, torch.float32), given)
    assert times.seconds[part, "forward"] >= calls * 0.03
    assert times.seconds[part, "backward"] >= calls * 0.06
    assert sum(times.seconds[part, way] for way in ("forward", "backward")) > 0.5 * times.total


def test_ranges_leave_the_fast_paths_and_are_taken_away(model: HSTA) -> None:
    before = layers.USTA.forward, ops.space_time_attention
    csta, embed = model.get_submodule("blocks.0.csta"), model.get_submodule("patch_embed.0")
    assert isinstance(csta, CrossmodalSpaceTimeAttention) and isinstance(embed, layers.TubeletEmbed)
    with named_ranges():
        assert layers.USTA.forward is not before[0]
        assert csta.writes_into_states()
        assert embed._is_plain()
    assert (layers.USTA.forward, ops.space_time_attention) == before
