"""The log of a run: one whole line for each event, from every process, whatever happens."""

import os
import re
import warnings
from pathlib import Path

import pytest

from hsta_fast.training.run_log import NAME, RunLog
from tests.forked import Forked

LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "


def texts(folder: Path) -> list[str]:
    """The lines of the log, each with a time, which is cut off."""
    lines = (folder / NAME).read_text().splitlines()
    assert all(re.match(LINE, line) for line in lines)
    return [line.split(" ", 1)[1] for line in lines]


def test_lines_wait_for_the_folder_and_are_appended(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("2026-01-01T00:00:00Z before\n")
    log = RunLog("worker 3")
    log.event("one\n  line\x85of café " + os.fsdecode(b"\xe9"))
    assert (tmp_path / NAME).read_text().count("\n") == 1
    log.open(tmp_path)
    log.event("two")
    assert texts(tmp_path) == ["before", "worker 3 one line of café \\udce9", "worker 3 two"]


def test_warnings_and_the_error_that_ends_a_run(tmp_path: Path) -> None:
    log = RunLog()
    log.open(tmp_path)
    with pytest.warns(RuntimeWarning, match="slow"), log.recording():
        warnings.warn("slow\ndisk", RuntimeWarning, stacklevel=1)
    with pytest.raises(ValueError, match="wrong"), log.recording():
        raise ValueError("wrong\nvalue")
    with pytest.raises(KeyboardInterrupt), log.recording():
        raise KeyboardInterrupt
    assert texts(tmp_path) == [
        "warning: RuntimeWarning: slow disk",
        "ended by ValueError: wrong value",
        "ended by Ctrl-C",
    ]


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    log = RunLog()
    log.event("kept")
    log.open(tmp_path / "nowhere")
    log.event("lost")
    assert not list(tmp_path.iterdir())


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hsta_fast.training.run_log import RunLog\n"
        "log = RunLog('worker ' + sys.argv[2]); log.open(Path(sys.argv[1]))\n"
        "for _ in range(200): log.event(sys.argv[2] * 2000)"
    )
    both = [Forked(code, [tmp_path, name], imported=("hsta_fast.training.run_log",)) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(texts(tmp_path)) == [f"worker {name} {name * 2000}" for name in "ab" for _ in range(200)]
