"""Processes of the stages of `make gpu`: shown, stopped in time, and never left behind."""

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
TAIL = 15  # last lines kept of a process's output
Command = list[str]


class Ended(NamedTuple):
    """A process: its exit status, None if it was stopped, and the last lines that it printed."""

    status: int | None
    tail: list[str]


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    # A parent killed with SIGKILL cannot end its children, which would write into the next run's file.
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(given: Command, environment: dict[str, str] | None = None, **how: Any) -> subprocess.Popen[str]:
    """Start a process in its own group, in the root of the repository; it ends when this process ends."""
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
    """Run a command and show its output; after `seconds` end it and everything that it started."""
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
        reader.join(5)  # a process that left the group may hold the pipe open
    return Ended(status, list(tail))


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and everything that it started; a hanging kernel can only be ended by SIGKILL."""
    for signal_number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(timeout=patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
