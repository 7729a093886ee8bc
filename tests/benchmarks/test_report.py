"""The pytest plugin of `make gpu`: one entry per test, and a run that continues after a device fault."""

import os
from pathlib import Path
from typing import Any

from benchmarks.entries import DEVICE_FAULT, read
from tests.forked import ROOT, Forked

TESTS = """
import pytest
def test_passes(): pass
def test_fails(): assert 1 == 2, "not equal"
@pytest.mark.skip(reason="no card")
def test_skipped(): pass
def test_last(): pass
"""
DEAD = """
import torch
from tests.gpu import report
torch.cuda.is_available = lambda: True  # a device that does not respond
report.device_is_dead = lambda: True
"""


def run(folder: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    (folder / "test_some.py").write_text(TESTS)
    (folder / "dead.py").write_text(DEAD)
    entries = folder / "entries.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = Forked(
        f"import os, sys, pytest; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(folder)!r})\n"
        f"os.chdir({str(folder)!r})\n"
        "sys.exit(pytest.main(sys.argv[1:]))",
        ["-q", "-p", "tests.gpu.report", f"--entries={entries}", *options],
        environment=environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # no others, as on a bare machine
    )
    process.communicate()
    assert process.returncode is not None
    return process.returncode, read(entries)


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["case"].removeprefix("test_some.py::") for entry in entries]


def test_each_outcome_is_an_entry(tmp_path: Path) -> None:
    status, entries = run(tmp_path)
    assert status == 1
    assert names(entries) == ["test_passes", "test_fails", "test_skipped", "test_last", "kernels"]
    assert "not equal" in entries[1]["failed"]
    assert "no card" in entries[2]["skipped"]
    assert not {"failed", "skipped"} & (entries[0].keys() | entries[3].keys())
    assert entries[4]["note"] == "0 compiled ahead, 0 not: -"


def test_after_a_device_fault_the_next_run_takes_the_remaining_tests(tmp_path: Path) -> None:
    status, entries = run(tmp_path, "-p", "dead")
    assert status == DEVICE_FAULT
    assert names(entries) == ["test_passes", "test_fails", "kernels"]
    status, entries = run(tmp_path)
    assert status == 0
    assert names(entries)[3:] == ["test_skipped", "test_last", "kernels"]


def test_collected_tests_are_counted(tmp_path: Path) -> None:
    status, entries = run(tmp_path, "--collect-only")
    assert status == 0
    assert entries == [{"case": "tests", "note": "4 collected"}]
