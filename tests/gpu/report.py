"""A pytest plugin for `make gpu` that writes each test's outcome to a file of entries as soon as it is known.

If the device fails, the run ends with DEVICE_FAULT; a new run with the same file continues after the test in
which that happened. The last entry counts the kernels that were not compiled ahead.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from benchmarks.cases import device_is_dead
from benchmarks.entries import DEVICE_FAULT, append, read
from tests.gpu.compile_ahead import fix_keys


class Reporter:
    """Attributes: path, the file of the entries; done, the tests that it already contains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = {entry["case"] for entry in read(path)}
        self.hits = 0
        self.missed: list[str] = []
        triton.knobs.compilation.listener = self.compiled

    def compiled(self, *, src: Any, cache_hit: bool, **_: Any) -> None:
        if cache_hit:
            self.hits += 1
        else:
            self.missed.append(src.name)

    def pytest_sessionstart(self) -> None:
        if torch.cuda.is_available():  # otherwise kernels are interpreted
            fix_keys()

    @pytest.hookimpl(trylast=True)  # after -m has chosen
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left = [item for item in items if item.nodeid not in self.done]
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.done])
        items[:] = left

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        append(self.path, {"started": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        entry: dict[str, Any] = {"case": report.nodeid, "seconds": round(report.duration, 3)}
        if report.outcome == "skipped":
            assert isinstance(report.longrepr, tuple)
            entry["skipped"] = report.longrepr[2]
        elif report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            entry["failed"] = str(getattr(crash, "message", report.longrepr))[:400]
        append(self.path, entry)
        if "failed" in entry and torch.cuda.is_available() and device_is_dead():
            pytest.exit("the CUDA device does not respond any more", returncode=DEVICE_FAULT)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            append(self.path, {"case": "tests", "note": f"{session.testscollected} collected"})
            return
        note = f"{self.hits} compiled ahead, {len(self.missed)} not: {', '.join(sorted(self.missed)) or '-'}"
        append(self.path, {"case": "kernels", "note": note})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--entries", type=Path, required=True, help="file to append entries to")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reporter(config.getoption("--entries")))
