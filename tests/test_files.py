"""Locks between processes."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hsta_fast import files
from hsta_fast.files import lock_file, open_lock

from .compiler import finish, needs_compiler, start
from .no_locks import ERRORS, no_locks

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


@needs_compiler
@pytest.mark.parametrize("number", ERRORS)
def test_a_file_system_without_locks(tmp_path: Path, number: int) -> None:
    """One kind of error, which names the file, whether or not the caller would wait."""
    code = (
        "import sys; from pathlib import Path; from hsta_fast.files import lock_file, open_lock\n"
        "for wait in (True, False):\n"
        "    with open_lock(Path(sys.argv[1])) as file:\n"
        "        try: lock_file(file, wait=wait)\n"
        "        except OSError as error: print(error)"
    )
    process = start(code, tmp_path / ".lock", preload=no_locks(), NO_LOCKS=str(number))
    expected = f"{tmp_path}/.lock cannot be locked on this file system: {os.strerror(number)}"
    assert finish(process)[0].splitlines() == [expected] * 2


@pytest.mark.parametrize("folder_mode", [0o700, 0o755, 0o775, 0o1777])
def test_a_lock_is_for_all_who_may_write_to_its_folder(tmp_path: Path, folder_mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(folder_mode)
    for _ in range(2):  # new, and there already
        with open_lock(folder / ".lock") as file:
            assert lock_file(file)
        assert stat.S_IMODE((folder / ".lock").stat().st_mode) == folder_mode & 0o666


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with (tmp_path / ".lock").open("w") as file, pytest.raises(OSError, match="has no flock"):
        lock_file(file)


def test_an_output_is_no_folder_and_none_of_the_inputs(tmp_path: Path) -> None:
    video, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    video.write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to(video)
    for path in (video, tmp_path / "link.mp4", tmp_path / "." / "a.mp4"):
        with pytest.raises(ValueError, match="--csv expected another file than one that is read, got"):
            files.check_outputs([("--csv", path)], [other, video])
    with pytest.raises(ValueError, match="--csv expected a file to write, got the folder"):
        files.check_outputs([("--csv", tmp_path)])
    with pytest.raises(ValueError, match=r"--csv expected another file than --out, got .*/b.mp4 for both"):
        files.check_outputs([("--out", other), ("--plot", None), ("--csv", tmp_path / "." / "b.mp4")])
    files.check_outputs([("--csv", other)], [video])
    files.check_outputs([("--csv", other)], [tmp_path])  # a new file in a folder that is read
    (tmp_path / "a").mkdir()
    for path in (video, tmp_path / "a" / ".." / "a.mp4"):
        with pytest.raises(
            ValueError, match=r"--csv expected a new file in .*, which is read, or one elsewhere"
        ):
            files.check_outputs([("--csv", path)], [tmp_path])
    (tmp_path / "a").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "link.mp4"]
