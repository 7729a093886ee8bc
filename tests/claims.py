"""What processes do with locks on a disk without locks; see training/test_without_locks.py."""

import os
import time
from pathlib import Path

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
    assert [file.name for file in folder.iterdir()] == [".lock"]


def take_over(folder: Path) -> None:
    path = folder / ".lock"
    leave_claim(path, age=60)
    assert lock(path, wait=False) is None, "its process may live"
    leave_claim(path, age=130)
    held = lock(path, wait=False)
    assert held is not None and lock(path, wait=False) is None
    held.check()
    (folder / ".lock.3").touch()  # another took this process for dead
    try:
        held.check()
    except OSError as error:
        print(error)
    held.release()
    assert (folder / ".lock.2").exists(), "its number leads to the successor"
    assert lock(path, wait=False) is None


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
