"""What processes do with locks on a disk without locks; see training/test_without_locks.py."""

import os
import time
from pathlib import Path

from hsta_fast import locks
from hsta_fast.locks import lock, locked

STALE = '{"boot": "b", "processes": "p", "pid": 1, "started": "1"}'


def leave_claim(path: Path, age: float) -> None:
    """What a process of another machine leaves, `age` seconds after it was killed."""
    claim = path.with_name(f"{path.name}.1")
    claim.write_text(STALE)
    then = time.time() - age
    os.utime(claim, (then, then))


def exclude_each_other(folder: Path) -> None:
    path = folder / ".lock"
    held = lock(path, wait=False)
    assert held is not None and held.by_claims
    assert lock(path, wait=False) is None and lock(path, shared=True, wait=False) is None
    held.share()
    other = lock(path, shared=True, wait=False)
    assert other is not None and lock(path, wait=False) is None
    held.release()
    held.release()
    assert lock(path, wait=False) is None, "the other still shares it"
    other.release()
    with locked(path):
        assert lock(path, wait=False) is None
    assert released(folder)


def released(folder: Path) -> bool:
    """Whether all claims in the folder, and below it, are marked as free; there are some."""
    claims = [file for file in folder.rglob(".*.[0-9]*") if file.suffix[1:].isdecimal()]
    return bool(claims) and not any(file.stat().st_mtime for file in claims)


def take_over(folder: Path) -> None:
    path = folder / ".lock"
    leave_claim(path, age=60)
    assert lock(path, wait=False) is None, "its process may live"
    leave_claim(path, age=130)
    held = lock(path, wait=False)
    assert held is not None and lock(path, wait=False) is None
    held.check()
    successor = folder / ".lock.3"
    successor.write_text(STALE)  # another took this process for dead
    try:
        held.check()
    except OSError as error:
        print(error)
    held.release()
    assert lock(path, wait=False) is None, "the successor holds it"
    os.utime(successor, (0, 0))
    after = lock(path, wait=False)
    assert after is not None
    after.check()


def lose(folder: Path) -> None:
    """A process that was stopped for minutes finds that another came, and went."""
    path = folder / ".lock"
    stopped = lock(path, wait=False)
    assert stopped is not None
    claim = folder / ".lock.1"
    claim.write_text(STALE)
    os.utime(claim, (0, time.time() - 130))
    successor = lock(path, wait=False)
    assert successor is not None
    successor.release()
    try:
        stopped.check()
    except OSError:
        print("lost")
    os.utime(claim)  # its heartbeat
    assert lock(path, wait=False) is not None


def clean_up(folder: Path) -> None:
    path, names = folder / ".lock", set()
    for _ in range(45):
        with locked(path):
            names |= {file.name for file in folder.iterdir()}
        assert len(list(folder.glob(".lock.[0-9]*"))) <= 32
        assert len(list(folder.glob(".lock.gate.*"))) <= 32
    assert ".lock.45" in names


def skip_a_hole(folder: Path) -> None:
    """Claims are looked for behind a number that is missing."""
    claim = folder / ".lock.2"
    claim.write_text(STALE)
    assert lock(folder / ".lock", shared=True, wait=False) is None


def reuse(folder: Path) -> None:
    """A process whose listing of the folder is old does not take a number that was used and deleted."""
    path, listed = folder / ".lock", locks._numbers
    (folder / ".lock.40").write_text(STALE)
    os.utime(folder / ".lock.40", (0, 0))
    old = iter([[3]])
    (folder / ".lock.3").write_text(STALE)
    os.utime(folder / ".lock.3", (0, 0))
    locks._numbers = lambda path: next(old, None) or listed(path)
    claim = locks._take(path)
    assert claim is not None and (folder / ".lock.41").exists() and not (folder / ".lock.4").exists()


def crowd(folder: Path, begin: float, seconds: float) -> None:
    """Enter and leave as often as possible; print how often, and how often somebody else was inside."""
    locks._POLL = 0.001
    inside, entered, met = folder / "inside", 0, 0
    while time.time() < begin:
        time.sleep(0.01)
    while time.time() < begin + seconds:
        with locks._deciding(folder / ".lock"):
            entered += 1
            try:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                met += 1
                continue
            time.sleep(0.0005)
            inside.unlink()
    print(entered, met)


def race(folder: Path, begin: float, rounds: int) -> None:
    """Print the rounds in which this process took over a claim."""
    won = []
    for number in range(rounds):
        while time.time() < begin + 0.01 * number:
            pass
        if lock(folder / str(number) / ".lock", wait=False) is not None:
            won.append(number)
    print(*won)
    (folder / f"done-{os.getpid()}").touch()
    while len(list(folder.glob("done-*"))) < 2:  # the claims of a process that ends are dead
        time.sleep(0.005)


def hold(folder: Path) -> None:
    held = lock(folder / ".lock")
    assert held is not None
    (folder / "held").touch()
    time.sleep(60)
