"""Benchmarks under pytest: a results file, a limit of time, and a summary with verdicts, not a table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import Clock, LeftOutError, Make, measure
from benchmarks.record import Recorder
from benchmarks.summary import summary

Compare = Callable[..., None]
_RECORDER = pytest.StashKey[Recorder]()
_CLOCK = pytest.StashKey[Clock]()
_LEFT_OUT = pytest.StashKey[dict[str, str]]()
# What the targets are about comes first: what no longer fits into the time is left out.
ORDER = ("bench_model", "bench_space_time_attention", "bench_blocks", "bench_attention_pool")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hsta_fast benchmarks")
    group.addoption("--results", type=Path, help="write <machine>.json into this folder after each group")
    group.addoption(
        "--time-limit", type=float, default=570.0, help="seconds; groups that do not fit are left out"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RECORDER] = Recorder(config.getoption("--results"))
    config.stash[_CLOCK] = Clock(config.getoption("--time-limit"))
    config.stash[_LEFT_OUT] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiled groups last, because they take longest to start; the others in the order of `ORDER`."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        stem = item.path.stem
        return "compiled" in item.name, ORDER.index(stem) if stem in ORDER else len(ORDER)

    items.sort(key=place)


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Compare:
    """`benchmarks.compare.measure` on this run's clock; the group goes into the results file."""
    stash = request.config.stash

    def run(group: str, members: Mapping[str, Make], **how: Any) -> None:
        try:
            entry = measure(benchmark, stash[_CLOCK], group, members, **how)
        except LeftOutError as error:
            stash[_LEFT_OUT][group] = str(error)
            pytest.skip(str(error))
        if not benchmark.enabled:
            return
        stash[_RECORDER].add(entry)
        if "failed" in entry:
            pytest.fail("; ".join(f"{name}: {error}" for name, error in entry["failed"].items()))

    return run


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_group_stats(config: pytest.Config) -> list[Any] | None:
    """No table of pytest-benchmark, whose many columns have no verdict, unless an option asks for it."""
    wanted = ("benchmark_columns", "benchmark_compare", "benchmark_compare_fail", "benchmark_histogram")
    return None if any(config.getoption(name, None) for name in wanted) else []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    recorder, left_out = config.stash[_RECORDER], config.stash[_LEFT_OUT]
    if recorder.entries or left_out:
        terminalreporter.section("benchmarks")
        for line in summary(recorder.entries, left_out):
            terminalreporter.write_line(line)
        if recorder.path is not None:
            terminalreporter.write_line(f"\n{recorder.path}")
