"""Locks between processes on files of a disk that they share.

Where the disk has the operating system's locks, these are used: the system releases them however a process
ends. Elsewhere (NFS without its lock service, Lustre without flock) a process claims the lock by a file. It
creates it with O_EXCL, which the file server lets one process alone do, and touches it every `HEARTBEAT`
seconds. A claim is dead when its process is known to be (same machine), or when it has not been touched for
`DEAD_AFTER` seconds of the server's clock.

The claims of a lock are numbered, no number is ever used twice, and the highest one says who holds the lock.
Nobody touches the claim of another: who finds claim n dead, or released (its time is then 0), creates claim
n + 1, which again one process alone can do. So a process whose claim has a successor has lost the lock (it
was stopped for minutes, say), whatever became of the successor; `Lock.check` tells it so. Claims that have
`_KEPT` successors are deleted.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .files import lock_file, open_lock, share

HEARTBEAT = 15.0
DEAD_AFTER = 120.0
_KEPT = 32  # claims of a lock: a listing of the folder that runs meanwhile cannot miss as many successors
_POLL = 0.05  # seconds between two attempts to get a lock that another process holds


class Lock:
    """A lock that this process holds until `release`, or until it ends."""

    by_claims = False  # whether the disk has no locks, so that files stand for them

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def share(self) -> None:
        """Let others share the lock, which was exclusive."""
        lock_file(self._file, shared=True)

    def check(self) -> None:
        """Raise OSError if another process has taken the lock over."""

    def release(self) -> None:
        """Release the lock; a second time does nothing."""
        self._file.close()


class _Claim:
    """A file that says that this process holds `path`; it ends with the number of the claim."""

    def __init__(self, path: Path, number: int) -> None:
        self._path, self._number = path, number
        self._file = _numbered(path, number)
        self._ended = threading.Event()
        self._mutex = threading.Lock()  # a heartbeat after the release would revive the claim
        threading.Thread(target=self._beat, name="claim", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether another process took this one for dead; then it stays so."""
        return _latest(self._path) > self._number

    def release(self) -> None:
        with self._mutex:
            if not self._ended.is_set():
                self._ended.set()
                with suppress(OSError):
                    _mark_free(self._file)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with self._mutex, suppress(OSError):  # a file server that is away for a while
                if self._ended.is_set() or self.lost:
                    return
                os.utime(self._file)


class _ClaimedLock(Lock):
    """A lock made of claims: that of the one exclusive holder, or one of the places of those who share."""

    by_claims = True

    def __init__(self, path: Path, claim: _Claim) -> None:
        self._path, self._claim = path, claim

    def share(self) -> None:
        with _deciding(self._path):
            shared = _take_place(self._path)
            self._claim.release()
            self._claim = shared

    def check(self) -> None:
        if self._claim.lost:
            raise OSError(
                f"{self._path.parent}: another process took this one for dead and works on; "
                f"a claim was not renewed for {DEAD_AFTER:.0f} seconds"
            )

    def release(self) -> None:
        self._claim.release()


def lock(path: Path, *, shared: bool = False, wait: bool = True) -> Lock | None:
    """Lock `path`, a file that exists for this alone, against other processes.

    Args:
        path: the file; its folder exists.
        shared: several processes may share the lock, none beside an exclusive holder.
        wait: wait for the lock; otherwise return None at once where another process holds it.

    Raises:
        OSError: the file cannot be opened, or its folder cannot be written.
    """
    file = open_lock(path)
    try:
        if lock_file(file, shared=shared, wait=wait):
            return Lock(file)
    except OSError:  # no locks on this disk
        file.close()
        while (claimed := _claim_lock(path, shared=shared)) is None and wait:
            time.sleep(_POLL)
        return claimed
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of `path` inside."""
    held = lock(path)
    assert held is not None
    try:
        yield
    finally:
        held.release()


def _claim_lock(path: Path, *, shared: bool) -> Lock | None:
    with _deciding(path):
        if shared:
            claim = None if _is_claimed(path) else _take_place(path)
        else:
            places = {place.with_suffix("") for place in path.parent.glob(f"{path.name}-*.*")}
            claim = None if any(map(_is_claimed, places)) else _take(path)
    return None if claim is None else _ClaimedLock(path, claim)


@contextmanager
def _deciding(path: Path) -> Iterator[None]:
    """Inside, no other process takes or shares the lock of `path`."""
    name = path.with_name(f"{path.name}.gate")
    while (claim := _take(name)) is None:
        time.sleep(_POLL)
    try:
        yield
    finally:
        claim.release()


def _take_place(path: Path) -> _Claim:
    """The first free place among those who share the lock of `path`."""
    place = 1
    while (claim := _take(path.with_name(f"{path.name}-{place}"))) is None:
        place += 1
    return claim


def _take(path: Path) -> _Claim | None:
    """Claim `path`; None if a living process has it, or was quicker."""
    while True:
        latest, alive = _holder(path)
        if alive:
            return None
        number = latest + 1
        file = _numbered(path, number)
        try:
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        with os.fdopen(handle, "w") as content:
            json.dump(_this_process(), content)
        share(file, file.parent, 0o666)
        numbers = _numbers(path)
        if max(numbers, default=0) <= number:
            break
        with suppress(FileNotFoundError):  # the first listing was old: this number had been used and deleted
            _mark_free(file)
            file.unlink()
    for old in numbers:
        if old <= number - _KEPT:
            with suppress(OSError):  # another process deletes it too, or it is another user's
                _numbered(path, old).unlink()
    return _Claim(path, number)


def _is_claimed(path: Path) -> bool:
    """Whether a living process has claimed `path`."""
    return _holder(path)[1]


def _holder(path: Path) -> tuple[int, bool]:
    """The number of the latest claim of `path`, 0 if there is none, and whether its process lives."""
    while (number := _latest(path)) > 0:
        with suppress(FileNotFoundError):  # deleted since it was listed: there are later ones
            return number, _is_alive(_numbered(path, number))
    return 0, False


def _latest(path: Path) -> int:
    """The highest number of a claim of `path`; 0 if there is none."""
    return max(_numbers(path), default=0)


def _numbers(path: Path) -> list[int]:
    """The numbers of all claims of `path`, in any order."""
    start = f"{path.name}."
    with os.scandir(path.parent) as entries:
        ends = [entry.name.removeprefix(start) for entry in entries if entry.name.startswith(start)]
    return [int(end) for end in ends if end.isdecimal()]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _mark_free(file: Path) -> None:
    """Say of a claim of this process that it has ended; see `_is_alive`."""
    os.utime(file, (0, 0))


def _is_alive(file: Path) -> bool:
    """Whether the process of a claim lives and holds it, as far as can be seen from here.

    Raises:
        FileNotFoundError: the file is deleted.
    """
    owner: dict[str, Any] = {}
    here = _this_process()
    with file.open() as content:  # open: a network disk then asks its server how old the file is
        touched = os.fstat(content.fileno()).st_mtime
        with suppress(ValueError):  # its process was killed before it had written it
            owner = json.loads(content.read())
    if touched <= 0:  # released
        return False
    if here["boot"] and all(owner.get(key) == here[key] for key in ("boot", "processes")):
        return _started(owner["pid"]) == owner["started"]
    with tempfile.TemporaryFile(dir=file.parent) as now:
        os.utime(now.fileno())
        return os.fstat(now.fileno()).st_mtime - touched <= DEAD_AFTER


def _this_process() -> dict[str, Any]:
    """What tells this process from others: the machine's start; process number, its space and start."""
    boot = processes = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        processes = os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return {"boot": boot, "processes": processes, "pid": pid, "started": _started(pid)}


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's words; None if it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else words[19]  # killed, though its parent has yet to ask how it ended
