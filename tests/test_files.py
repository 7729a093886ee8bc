"""Locks between processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from hsta_fast import files
from hsta_fast.files import lock_file

HOLD = (
    "import sys, time; from hsta_fast.files import lock_file; file = open(sys.argv[1], 'w');"
    "print(lock_file(file, shared=len(sys.argv) > 2), flush=True); time.sleep(600)"
)


@pytest.mark.parametrize("theirs", ["exclusive", "shared"])
def test_a_lock_holds_until_its_process_is_killed(tmp_path: Path, theirs: str) -> None:
    path = tmp_path / ".lock"
    words = [sys.executable, "-c", HOLD, str(path), *(["shared"] if theirs == "shared" else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        with path.open("w") as file:
            assert not lock_file(file, wait=False)
            assert lock_file(file, shared=True, wait=False) == (theirs == "shared")
        holder.kill()
    with path.open("w") as file:
        assert lock_file(file)


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with (tmp_path / ".lock").open("w") as file, pytest.raises(OSError, match="has no flock"):
        lock_file(file)
