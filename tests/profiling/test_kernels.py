"""The time by part on CUDA, on events as torch's profiler gives them there.

An operation is a `FunctionEvent` of the CPU with an `id`, `thread`, `sequence_nr`, `cpu_children` and the
`kernels` that it launched (name, microseconds). A node of the backward runs in a thread of the engine; it
has the `sequence_nr` of the operation that it differentiates, and as `fwd_thread` its thread. A kernel is an
event of its own too, with `device_type` CUDA and its stream as `device_resource_id`; so is a range
(`is_user_annotation`). Calls of the CUDA runtime, such as cudaLaunchKernel, are events of the CPU.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent

from hsta_fast import create_model
from hsta_fast.presets import model_config
from hsta_fast.profiling import page, parts
from hsta_fast.profiling.ceilings import Ceilings
from hsta_fast.profiling.config import ProfileConfig
from hsta_fast.profiling.measure import Cell, Traced
from hsta_fast.profiling.parts import StepTimes, named_ranges
from hsta_fast.profiling.results import part_facts, sentences
from hsta_fast.profiling.steps import Timed, batches, random_clips
from hsta_fast.published import PublishedHSTA

ON_CUDA = torch._C._autograd.DeviceType.CUDA
MAIN, ENGINE = 1, 2  # threads
STREAM, OTHER_STREAM = 7, 20
RANGE, NODE = parts._PREFIX, parts._NODE


class Trace:
    """Events of a step of 1 ms; times are microseconds."""

    def __init__(self) -> None:
        self.events: list[FunctionEvent] = []
        self.root = self.op(parts._STEP, 0, 1000)

    def op(self, name: str, start: float, end: float, parent: Any = None, **more: Any) -> FunctionEvent:
        event = FunctionEvent(len(self.events) + 1, name, more.pop("thread", MAIN), start, end, **more)
        if parent is not None:
            parent.append_cpu_child(event)
            event.set_cpu_parent(parent)
        self.events.append(event)
        return event

    def kernel(
        self, name: str, start: float, end: float, op: Any = None, stream: int = STREAM, **more: Any
    ) -> None:
        self.events.append(
            FunctionEvent(1, name, 0, start, end, device_type=ON_CUDA, device_resource_id=stream, **more)
        )
        if op is not None:
            op.append_kernel(name, 0, end - start)

    def times(self) -> StepTimes:
        self.events.sort(key=lambda event: event.time_range.start)
        return parts._times(self.events, on_device=True)


def traced_step() -> Trace:
    """A product and an attention, forward and backward, with the calls that launch them."""
    trace = Trace()
    usta = trace.op(RANGE + "USTA", 10, 200, trace.root)
    linear = trace.op("aten::linear", 20, 50, usta)
    product = trace.op("aten::addmm", 25, 45, linear, sequence_nr=5)
    trace.op("cudaLaunchKernel", 30, 40, product)
    trace.kernel("gemm", 60, 160, product)
    inner = trace.op(RANGE + "USTA attention", 60, 120, usta)
    attend = trace.op("hsta_fast::attend", 70, 110, inner, sequence_nr=6)
    trace.op("cuLaunchKernelEx", 80, 90, attend)
    trace.kernel("attention", 160, 200, attend)
    node = trace.op(NODE + "AttendBackward", 300, 350, thread=ENGINE, fwd_thread=MAIN, sequence_nr=6)
    inside = trace.op("AttendBackward", 305, 345, node, thread=ENGINE, fwd_thread=MAIN, sequence_nr=6)
    trace.kernel("attention dq", 400, 430, trace.op("hsta_fast::dq", 310, 320, inside, thread=ENGINE))
    trace.kernel("attention dkv", 430, 480, trace.op("hsta_fast::dkv", 325, 340, inside, thread=ENGINE))
    node = trace.op(NODE + "AddmmBackward0", 360, 400, thread=ENGINE, fwd_thread=MAIN, sequence_nr=5)
    inside = trace.op("AddmmBackward0", 362, 398, node, thread=ENGINE, fwd_thread=MAIN, sequence_nr=5)
    trace.kernel("gemm dx", 480, 580, trace.op("aten::mm", 365, 375, inside, thread=ENGINE))
    trace.kernel("gemm dW", 580, 680, trace.op("aten::mm", 380, 390, inside, thread=ENGINE))
    keep = trace.op(NODE + "torch::autograd::AccumulateGrad", 402, 410, thread=ENGINE)
    trace.kernel("clone", 680, 690, trace.op("aten::clone", 404, 408, keep, thread=ENGINE))
    return trace


STEP = {
    ("USTA products", "forward"): 100e-6,
    ("USTA products", "backward"): 210e-6,  # and what keeps the weight's gradient
    ("USTA attention", "forward"): 40e-6,
    ("USTA attention", "backward"): 80e-6,
}


def test_kernels_belong_to_the_part_of_their_forward() -> None:
    times = traced_step().times()
    assert times.seconds == pytest.approx(STEP)
    assert times.busy == pytest.approx(430e-6) and times.total == pytest.approx(1e-3)
    assert {(k.name, k.part) for k in times.kernels} >= {
        ("gemm dW", "USTA products"),
        ("clone", "USTA products"),
    }


def test_a_kernel_counts_once() -> None:
    """Also if torch gives it to a call of the runtime whose own number is that of its operation."""
    trace = traced_step()
    data = trace.op(RANGE + "data", 900, 950, trace.root)
    wait = trace.op("cudaStreamWaitEvent", 910, 920, data)
    wait.append_kernel("gemm", 0, 100.0)
    trace.kernel(RANGE + "USTA", 60, 200, is_user_annotation=True)
    assert trace.times().seconds == pytest.approx(STEP)


def test_what_no_part_claims_is_named() -> None:
    trace = traced_step()
    trace.kernel("of nobody", 700, 720)
    times = trace.times()
    assert times.seconds == pytest.approx({**STEP, ("other", "update"): 20e-6})
    assert [(k.name, k.number) for k in times.kernels if k.part == "other"] == [("of nobody", 1)]


def test_copies_of_the_loader_count_where_nothing_else_ran() -> None:
    trace = traced_step()
    trace.kernel("Memcpy HtoD", 650, 750, stream=OTHER_STREAM)  # 40 of them beside other kernels
    assert trace.times().seconds == pytest.approx({**STEP, ("data", "update"): 60e-6})


class Measured:
    """What `part_facts` takes of a `Measurement`."""

    architecture = model_config("hsta_tiny")
    config = ProfileConfig(model="hsta_tiny")
    dtype = torch.bfloat16

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def cell(self, *_: object) -> Cell:
        return self._cell


def facts_of(seconds: float, times: StepTimes, graph: float | None = None) -> dict[str, Any]:
    cell = Cell("eager", "training step", 2, 6, [graph or seconds], graph=graph is not None)
    ceilings = Ceilings({"bfloat16": 1e15, "float32": 1e14}, 3e12)
    measured: Any = Measured(cell)
    return part_facts(measured, Traced("eager", "training step", 2, 6, seconds, times), ceilings)


def seconds_by_part(facts: dict[str, Any]) -> dict[str, float]:
    return {row["part"]: row["seconds"] for row in facts["parts"]}


def test_the_profiler_s_own_time_shortens_no_kernel() -> None:
    """The profiled step takes 1 ms, 0.6 ms without the profiler; its kernels take 0.43 ms in both."""
    facts = facts_of(0.6e-3, traced_step().times())
    assert seconds_by_part(facts) == pytest.approx(
        {"USTA products": 310e-6, "USTA attention": 120e-6, "launching": 170e-6}
    )
    busy = facts_of(0.42e-3, traced_step().times())  # a shorter step than its kernels, by the clock's noise
    assert sum(seconds_by_part(busy).values()) == pytest.approx(0.42e-3)
    assert seconds_by_part(busy)["launching"] == pytest.approx(0, abs=1e-12)


def words_of(step: dict[str, Any]) -> Sequence[str]:
    times = {"fastest": 1.0, "slowest": 1.0, "clips_per_second": 1.0}
    cells = [
        {"peer": "eager", "what": what, "batch": 2, "frames": 6, **times}
        for what in ("training step", "forward")
    ]
    return sentences({"parts": [step], "cells": cells, "compared_with": [], "largest_batch": []})


def test_a_reader_learns_that_the_device_waits() -> None:
    times = traced_step().times()
    first, second, *_ = words_of(facts_of(1e-3, times, graph=0.5e-3))
    assert first.startswith(
        "72 % of the 0.43 ms in which the device works on a training step (batch 2, 6 frames)"
    )
    assert second == (
        "In 57 % of the step's 1.00 ms the device waits for Python, which launches the kernels one by one: "
        "`hsta-fast train` runs forward and backward as one CUDA graph, with which a step takes 0.50 ms."
    )
    assert "a larger batch keeps it busy" in words_of(facts_of(1e-3, times))[1]
    assert not any("waits" in sentence for sentence in words_of(facts_of(0.44e-3, times)))


@pytest.mark.parametrize("published", [False, True])
def test_every_operation_of_a_step_is_in_a_part(published: bool) -> None:
    """A step of the CPU's, as if each of its operations had launched a kernel of 1 us."""
    model = create_model("hsta_tiny", num_layers=1)
    cpu = torch.device("cpu")
    timed = Timed(PublishedHSTA(model) if published else model, cpu, torch.float32)
    given = batches(random_clips(4, 4, 96), 4, cpu)
    timed.train(given)
    with named_ranges(), torch.profiler.profile() as profiler, torch.profiler.record_function(parts._STEP):
        timed.train(given)
    events = list(profiler.events())
    [root] = [event for event in events if event.name == parts._STEP]
    launched = [
        e for e in events if e.cpu_parent and not e.cpu_children and e.name.startswith(("aten", "hsta"))
    ]
    for i, event in enumerate(launched):
        start = root.time_range.start + i
        kernel = FunctionEvent(
            1, "kernel", 0, start, start + 1.0, device_type=ON_CUDA, device_resource_id=STREAM
        )
        events.append(kernel)
        event.append_kernel("kernel", 0, kernel.time_range.end - kernel.time_range.start)
    times = parts._times(events, on_device=True)
    assert times.busy == pytest.approx(1e-6 * len(launched), rel=1e-3) and len(launched) > 300
    assert "other" not in {part for part, _ in times.seconds}


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NNN", "nvjet_sm90_tst_192x192_64x3_2x1_v_bz_coopB_NNN"),
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::GeluBackwardCUDAKernelImpl(at::"
            "TensorIteratorBase&, at::native::GeluType)::{lambda()#2}>(int, std::array<char*, 3ul>)",
            "vectorized_elementwise_kernel: GeluBackwardCUDAKernelImpl",
        ),
        (
            "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>(int)",
            "vectorized_layer_norm_kernel",
        ),
    ],
)
def test_names_of_kernels_fit_into_a_line(name: str, short: str) -> None:
    assert page.short_name(name) == short
