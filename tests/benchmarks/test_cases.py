"""Benchmark cases: compilation for their own shape, refusals and failures, timing, peers."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from benchmarks import gpu_bench
from benchmarks.bench_space_time_attention import BACKENDS, torch_default
from benchmarks.cases import Case, Place, Step, measure, own_compilation
from benchmarks.entries import append
from benchmarks.gpu_bench import cases
from benchmarks.table import table
from hsta_fast import extension

Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]


class Counting:
    """A backend that runs graphs eagerly and records the shapes that each was compiled for."""

    def __init__(self) -> None:
        self.shapes: list[list[Any]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.shapes.append([tuple(x.shape) for x in inputs if isinstance(x, Tensor)])
        return graph.forward


def function(x: Tensor) -> Tensor:
    return (x * 2).sum(0)


def case(make: Callable[[Place], Step], **more: Any) -> Case:
    given: dict[str, Any] = {"group": "g", "name": "n", "peer": True, "compiled": True, "make": make} | more
    return Case(**given)


def at_length(N: int) -> Callable[[Place], Step]:
    def make(place: Place) -> Step:
        x, compiled = torch.randn(N, 3), place.compile(function)
        return lambda: compiled(x)

    return make


def test_each_case_is_compiled_for_its_own_shape() -> None:
    """More shapes than dynamo's recompile limit: without a reset the last ones would run eagerly."""
    backend = Counting()
    lengths = range(2, 2 + torch._dynamo.config.recompile_limit + 4)
    for N in lengths:
        entry = measure(case(at_length(N)), Place(device="cpu", tiny=True, backend=backend))  # type: ignore[arg-type]
        assert "failed" not in entry, entry
    assert backend.shapes == [[(N, 3)] for N in lengths]


def test_the_recompile_limit_is_a_failure() -> None:
    def make(place: Place) -> Step:
        compiled = place.compile(function)

        def step() -> None:
            for N in range(2, 2 + torch._dynamo.config.recompile_limit + 2):
                compiled(torch.randn(N, 3))

        return step

    entry = measure(case(make), Place(device="cpu", tiny=True, backend="eager"))
    assert "RecompileLimit" in entry["failed"]
    assert "ms" not in entry


def test_no_graph_is_a_failure() -> None:
    def make(place: Place) -> Step:
        x = torch.randn(2, 3)
        return lambda: function(x)  # not the compiled function

    entry = measure(case(make), Place(device="cpu", tiny=True, backend="eager"))
    assert "no graph was compiled" in entry["failed"]


def test_a_compilation_that_fails_is_named() -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        raise ValueError("this compiler is broken")

    entry = measure(case(at_length(3)), Place(device="cpu", tiny=True, backend=broken))  # type: ignore[arg-type]
    assert "this compiler is broken" in entry["failed"]


def test_settings_of_the_compiler_end_with_the_case() -> None:
    before = torch._dynamo.config.fail_on_recompile_limit_hit, torch._functorch.config.donated_buffer
    with own_compilation():
        torch.compile(function, backend="eager")(torch.randn(2, 3))
        assert torch._dynamo.config.fail_on_recompile_limit_hit
    assert before == (
        torch._dynamo.config.fail_on_recompile_limit_hit,
        torch._functorch.config.donated_buffer,
    )


def forced(backend: SDPBackend, peer: bool = True) -> Case:
    def make(place: Place) -> Step:
        qkv = torch.randn(1, 5, 3, 2, 8)
        return lambda: torch_default(qkv)

    return case(make, compiled=False, forced=backend, peer=peer)


def test_an_unsupported_shape_is_a_refusal() -> None:
    """CUDA's backends on the CPU fail with torch's own messages."""
    place = Place(device="cpu", tiny=True)
    for name in ("cudnn", "efficient"):
        entry = measure(forced(BACKENDS[name]), place)
        assert "No viable backend" in entry["refuses"]
        assert "failed" not in entry and "ms" not in entry
    assert "ms" in measure(forced(BACKENDS["flash"]), place)


def test_without_the_extension_its_case_is_skipped() -> None:
    lacks = extension.missing("cuda")
    if lacks is None:
        pytest.skip("the CUDA part can be built here")
    [ours, *_] = [case for case in cases() if case.name == "extension"]
    entry = measure(ours, Place())
    assert lacks in entry["skipped"]
    assert not {"failed", "ms"} & entry.keys()
    said = table("card", {"bench": {"status": "passed", "seconds": 1, "budget": 2, "entries": [entry]}})
    assert f"skipped: {entry['skipped']}" in said


@pytest.mark.parametrize(
    ("error", "peer", "word"),
    [
        (RuntimeError("No available kernel. Aborting execution."), True, "refuses"),
        (NotImplementedError("no backward on this device"), True, "refuses"),
        (RuntimeError("No available kernel. Aborting execution."), False, "failed"),  # our own must run
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, "failed"),
        (torch.OutOfMemoryError("CUDA out of memory."), True, "failed"),
    ],
)
def test_what_is_a_refusal(error: Exception, peer: bool, word: str) -> None:
    def make(place: Place) -> Step:
        raise error

    entry = measure(case(make, compiled=False, peer=peer), Place(device="cpu", tiny=True))
    assert entry[word].endswith(str(error))
    assert not {"refuses", "failed", "ms"} - {word} & entry.keys()


def test_a_peer_for_which_the_device_is_too_small() -> None:
    """Only where the case says so; our own never."""

    def make(place: Place) -> Step:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    entry = measure(case(make, compiled=False, may_lack_memory=True), Place(device="cpu", tiny=True))
    assert entry["refuses"] == "the device has too little memory" and "failed" not in entry
    assert not any(found.may_lack_memory for found in cases() if not found.peer)


class Stream:
    """Fake events, memory and clock of a device: a spin takes 3 ms, a step 2 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        stream = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = len(stream.happened)
                stream.happened.append("event")

            def synchronize(self) -> None:
                stream.happened.append("wait")

            def elapsed_time(self, end: "Event") -> float:
                between = stream.happened[self.at : end.at]
                return 3.0 * between.count("spin") + 2.0 * between.count("step")

        class Flush:
            def zero_(self) -> None:
                stream.happened.append("flush")

        def empty(size: int, **how: Any) -> Flush:
            assert size >= 256 * 2**20 and how == {"dtype": torch.uint8, "device": "cuda"}
            return Flush()

        def sleep(clocks: int) -> None:
            assert clocks >= 3e-3 * 1.98e9  # at the highest clock of an H100
            stream.happened.append("spin")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        for name in ("synchronize", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1 << 20)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 << 20)


def test_the_cache_is_flushed_before_each_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(monkeypatch)
    entry = measure(
        case(lambda place: lambda: stream.happened.append("step"), compiled=False, flop=4e9, size=6e6),
        Place(),
    )
    assert (entry["ms"], entry["rounds"], entry["peak MiB"], entry["L2 flushed"]) == (2.0, 30, 4, True)
    assert entry["TFLOP/s"] == pytest.approx(2.0)
    assert entry["GB/s"] == pytest.approx(3.0)
    head_start = ["flush", "spin", "event", "flush", "spin", "event", "wait"]
    assert (
        stream.happened
        == ["step"] * 2
        + head_start
        + [
            "flush",
            "spin",
            "event",
            "step",
            "event",
            "wait",
        ]
        * 31
    )


def test_a_latency_counts_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is flushed, and the device idle, before each call; Python's part counts."""
    stream = Stream(monkeypatch)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: stream.happened.append("wait"))

    def step() -> None:
        time.sleep(0.002)
        stream.happened.append("step")

    entry = measure(case(lambda place: step, compiled=False, latency=True), Place())
    assert entry["ms"] >= 2.0 and entry["L2 flushed"]
    assert stream.happened == ["step"] + ["flush", "wait", "step", "wait"] * 40


@pytest.mark.parametrize(("seconds", "shows"), [(0.0, False), (0.004, True)])
def test_a_dispatch_above_the_head_start_is_marked(
    monkeypatch: pytest.MonkeyPatch, seconds: float, shows: bool
) -> None:
    """The CPU's time is always recorded, and the table marks figures that it affects."""
    stream = Stream(monkeypatch)

    def step() -> None:
        time.sleep(seconds)
        stream.happened.append("step")

    entry = measure(case(lambda place: step, compiled=False), Place())
    assert entry["dispatch ms"] >= seconds * 1e3
    assert entry.get("dispatch shows", False) == shows
    said = table("card", {"bench": {"status": "passed", "seconds": 1, "budget": 2, "entries": [entry]}})
    assert ("ms shows" in said) == shows


def test_timed_steps_create_no_constants() -> None:
    """Creating a constant on a device is a synchronising copy, which would be timed with the step."""

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func not in (torch.tensor, torch.as_tensor)
            return func(*args, **(kwargs or {}))

    eager = [case for case in cases() if not case.compiled and case.forced is None and case.peer]
    chosen = {case.name: case for case in eager}
    assert {"published", "normalise + conv3d", "normalise + linear"} <= set(chosen)
    for case_ in chosen.values():
        step = case_.make(Place(device="cpu", tiny=True))
        step()
        with Seen():
            step()


def test_every_group_has_ours_and_a_peer() -> None:
    groups: dict[str, list[Case]] = {}
    for found in cases():
        groups.setdefault(found.group, []).append(found)
    del groups["ceilings"]
    for group, members in groups.items():
        assert sum(not member.peer for member in members) == 1, group
        assert sum(member.peer and not member.compiled for member in members) >= 1, group
    attention = [[c.name for c in members] for group, members in groups.items() if "attention" in group]
    assert all(names[:2] == ["triton", "cudnn"] for names in attention)
    for D in (64, 32):
        for N in (589, 1569, 3137, 6273):
            for what in ("forward", "backward"):
                assert f"attention D={D} N={N} B=32 {what}" in groups


def test_each_group_is_printed_once_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A case that an earlier process has finished is not run again."""
    some = [found for found in cases() if found.group == "ceilings"]
    monkeypatch.setattr(gpu_bench, "cases", lambda: [*some, case(at_length(3), compiled=False), failing()])
    monkeypatch.setattr(sys, "argv", ["", f"--entries={tmp_path / 'entries'}", "--stand-in"])
    append(tmp_path / "entries", {"case": "g, n"})
    assert gpu_bench.main() == 1
    first, failure, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ceilings: product \d+\.\d{3} ms, copy \d+\.\d{3} ms", first)
    assert failure == "g, broken: ValueError: no such shape"
    assert last == "g: broken failed"


def failing() -> Case:
    def make(place: Place) -> Step:
        raise ValueError("no such shape")

    return case(make, name="broken", compiled=False)


def test_compiled_cases_come_last() -> None:
    compiled = [found.compiled for found in cases()]
    assert compiled == sorted(compiled)
    assert len({str(found) for found in cases()}) == len(compiled)
