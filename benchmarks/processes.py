"""Processes of the stages of `make gpu`: shown, cut in time, and never left behind."""

import collections
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
TAIL = 15  # lines of what a process said that ended badly
Command = list[str]


class Ended(NamedTuple):
    """A process: its exit status, None where it was cut, and the last lines that it printed."""

    status: int | None
    tail: list[str]


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    # A parent that is killed with -9 ends nobody: what it leaves would write into the next run's file.
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(given: Command, environment: dict[str, str] | None = None, **how: Any) -> subprocess.Popen[str]:
    """A process of its own group, from the root of the repository, that ends when this one does."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        given,
        cwd=ROOT,
        env=os.environ | own | (environment or {}),
        process_group=0,
        preexec_fn=_die_with_parent,
        text=True,
        errors="replace",
        **how,
    )


def execute(given: Command, seconds: float, environment: dict[str, str] | None = None) -> Ended:
    """Run a command and show what it prints; after `seconds` it is ended with all that it started."""
    process = start(given, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    tail: collections.deque[str] = collections.deque(maxlen=TAIL)

    def show() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                print(line, end="", flush=True)
                tail.append(line.rstrip()[:400])

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    status = None
    try:
        status = process.wait(timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        pass
    finally:
        end(process)
        reader.join(5)  # what has left the group may hold the pipe open
    return Ended(status, list(tail))


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and what it has started; a kernel that hangs leaves nothing but SIGKILL."""
    for signal_number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(timeout=patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
