"""A cache of the extension on a disk without locks, and one that several users share."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .compiler import LOAD, finish, needs_compiler, script, start, write_sources
from .no_locks import no_locks

pytestmark = needs_compiler
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# As LOAD, but by another user.
LOAD_AS_ANOTHER = LOAD.replace(
    "e.SOURCES =", "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); e.SOURCES ="
)
NOBODY = 65534


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can look into, which pytest's own are not; with sources in csrc/."""
    folder = Path(tempfile.mkdtemp(prefix="hsta_fast-shared-"))
    folder.chmod(0o755)
    write_sources(folder / "csrc")
    yield folder
    shutil.rmtree(folder)


def make_cache(shared: Path, mode: int) -> Path:
    cache = shared / "cache"
    cache.mkdir()
    cache.chmod(mode)
    return cache


def wait_until_folders(cache: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not cache.exists() or len([path for path in cache.iterdir() if path.is_dir()]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_disk_without_locks(shared: Path) -> None:
    """Two processes at once both build; neither deletes the other's folder. A third builds nothing."""
    real = shutil.which("c++") or shutil.which("g++")
    slow = script(
        shared / "slow++",
        f'case "$*" in *--version*) ;; *) while [ ! -e {shared}/go ]; do sleep 0.02; done;; esac\n'
        f'exec {real} "$@"',
    )
    cache = shared / "cache"
    how = {"preload": no_locks(), "HSTA_FAST_CACHE": str(cache), "CXX": str(slow)}
    both = []
    for count in (1, 2):
        both.append(start(LOAD, shared / "csrc", **how))
        wait_until_folders(cache, count)
    (shared / "go").touch()
    for process in both:
        library, err = finish(process)
        assert Path(library).parent == cache and err.count("building") == 1 and "Warning" not in err
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert finish(start(LOAD, shared / "csrc", **how)) == (library, "")


def test_a_folder_of_another_machine_is_left_alone(shared: Path) -> None:
    """Machines that share a disk may each have locks of their own."""
    how = {"HSTA_FAST_CACHE": str(shared / "cache")}
    library = Path(finish(start(LOAD, shared / "csrc", **how))[0])
    library.unlink()
    theirs = library.parent / f".{library.stem}-another.machine-x1y2"
    theirs.mkdir()
    finish(start(LOAD, shared / "csrc", **how))
    assert theirs.exists()


def test_a_library_that_cannot_be_replaced(shared: Path) -> None:
    """A folder is in its place."""
    how = {"HSTA_FAST_CACHE": str(shared / "cache")}
    library = Path(finish(start(LOAD, shared / "csrc", **how))[0])
    library.unlink()
    (library / "folder").mkdir(parents=True)
    private, err = finish(start(LOAD, shared / "csrc", **how))
    assert Path(private).parent != library.parent and not Path(private).exists()
    assert (
        err.count("Warning") == 1 and f"{library} cannot be written: the extension is built for this" in err
    )


@needs_root
@pytest.mark.parametrize(("cache_mode", "lock_mode"), [(0o777, 0o644), (0o1777, 0o644), (0o777, 0o600)])
def test_the_lock_of_another_user(shared: Path, cache_mode: int, lock_mode: int) -> None:
    """It can be read, also where only its owner may open it with O_CREAT; or it cannot even be read."""
    cache = make_cache(shared, cache_mode)
    how = {"HSTA_FAST_CACHE": str(cache)}
    first = Path(finish(start(LOAD, shared / "csrc", **how))[0])
    for path in (first, first.with_suffix(".sha256")):
        path.unlink()
    first.with_suffix(".lock").chmod(lock_mode)
    library, err = finish(start(LOAD_AS_ANOTHER, shared / "csrc", **how))
    assert library == str(first) and first.stat().st_uid == NOBODY and "Warning" not in err


@needs_root
def test_files_of_a_user_with_a_strict_umask(shared: Path) -> None:
    """Others may use them as far as they may use the cache."""
    cache = make_cache(shared, 0o1777)
    how = {"HSTA_FAST_CACHE": str(cache)}
    strict = "import os; os.umask(0o077); "
    library = Path(finish(start(strict + LOAD, shared / "csrc", **how))[0])
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()}
    assert modes == {".so": 0o755, ".sha256": 0o644, ".lock": 0o666}
    assert finish(start(LOAD_AS_ANOTHER, shared / "csrc", **how)) == (str(library), "")
    cache.chmod(0o700)
    finish(start(strict + LOAD, shared / "csrc", CXX="g++", **how))
    assert all(path.stat().st_mode & 0o077 == 0 for path in cache.iterdir() if path.stem != library.stem)


@needs_root
def test_a_cache_that_can_only_be_read(shared: Path) -> None:
    cache = make_cache(shared, 0o755)
    how = {"HSTA_FAST_CACHE": str(cache)}
    library, _ = finish(start(LOAD, shared / "csrc", **how))
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert finish(start(LOAD_AS_ANOTHER, shared / "csrc", **how)) == (library, "")
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before


@needs_root
@pytest.mark.parametrize("cache_mode", [0o755, 0o1777, 0o700])
def test_a_library_of_another_user_that_cannot_be_used(shared: Path, cache_mode: int) -> None:
    """Damaged, and not to be replaced or, last, not even to be seen: each process builds its own."""
    cache = make_cache(shared, cache_mode)
    how = {"HSTA_FAST_CACHE": str(cache)}
    library = Path(finish(start(LOAD, shared / "csrc", **how))[0])
    if cache_mode != 0o700:
        library.write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    asked = LOAD_AS_ANOTHER + "; print(e.unsupported_reason('cpu'), e.kept(e._libraries['cpu']))"
    out, err = finish(start(asked, shared / "csrc", **how))
    private, said = out.splitlines()
    assert Path(private).parent != cache and said == "None False"
    assert err.count("Warning") == 1 and "cannot be written: the extension is built for this process" in err
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


@needs_root
def test_a_failure_of_another_user_is_overcome(shared: Path) -> None:
    """Its log cannot be deleted from such a folder; the library beside it counts more."""
    cache = make_cache(shared, 0o1777)
    how = {"HSTA_FAST_CACHE": str(cache)}
    library = Path(finish(start(LOAD, shared / "csrc", **how))[0])
    for path in (library, library.with_suffix(".sha256")):
        path.unlink()
    log = library.with_suffix(".log")
    log.write_text("the extension could not be built\n")
    _, err = finish(start(LOAD_AS_ANOTHER, shared / "csrc", **how), status=1)
    assert err.splitlines()[-1].endswith(f"the extension could not be built; see {log}")
    again = LOAD_AS_ANOTHER.replace("e.load('cpu')", "e.load('cpu', again=True)")
    assert finish(start(again, shared / "csrc", **how))[0] == str(library) and log.exists()
    assert finish(start(LOAD, shared / "csrc", **how)) == (str(library), "")
