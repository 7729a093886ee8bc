"""Ctrl-C at any moment: one line, exit status 130, no traceback."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from hsta_fast.threads import ctrl_c_kept_from_children, thread_pool
from tests.training.commands import QUICK, start

ROOT = Path(__file__).parent.parent
# Ctrl-C, once, when the function `name` of `module` is first called.
TRAP = """
import os, signal, {module}
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, without it
real, once = {module}.{name}, [1]
def trap(*words, **named):
    if once: os.kill(os.getpid(), once.pop() * 2)
    return real(*words, **named)
{module}.{name} = trap
"""


def test_while_torch_is_imported() -> None:
    code = (
        "import os, signal, sys, importlib.abc\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Trap(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch.nn': os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Trap())\n"
        "sys.argv = ['bin/hsta-fast', 'info']\n"
        "from hsta_fast.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")  # 130 in a shell


@pytest.mark.parametrize(("command", "status"), [("train", 75), ("info", -signal.SIGUSR1)])
def test_sigusr1_while_torch_is_imported(command: str, status: int) -> None:
    code = (
        "import os, signal, sys, importlib.abc\n"
        "class Trap(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGUSR1)\n"
        "sys.meta_path.insert(0, Trap())\n"
        f"sys.argv = ['bin/hsta-fast', '{command}']\n"
        "from hsta_fast.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    said = "stopped by SIGUSR1; --resume or --join continues the run if it has begun\n" * (status == 75)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_another_program_keeps_its_own_ctrl_c() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import hsta_fast\n"
        "sys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("words", "trap", "said"),
    [
        ("info", ("platform", "python_version"), "interrupted"),
        ("train", ("cv2", "imdecode"), "interrupted; --resume continues the run if it has begun"),
        ("train", ("torch.optim", "AdamW"), "interrupted; --resume continues the run if it has begun"),
        ("doctor", ("cv2", "imdecode"), "interrupted"),
    ],
)
def test_while_a_command_works(
    faces: Path, tmp_path: Path, words: str, trap: tuple[str, str], said: str
) -> None:
    """Threads decode; the main thread trains."""
    flags = {"train": ("--data", faces, "--runs", tmp_path, *QUICK), "doctor": (faces,)}
    process = start(words, *flags.get(words, ()), before=TRAP.format(module=trap[0], name=trap[1]))
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in out + err and "Exception ignored" not in err
    assert err.splitlines()[-1] == said and err.count("interrupted") == 1


def test_what_a_pool_has_not_begun_is_dropped() -> None:
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait()

    jobs: list[Future[None]] = []
    with pytest.raises(KeyboardInterrupt), thread_pool() as pool:
        jobs += [pool.submit(work) for _ in range((os.cpu_count() or 1) + 3)]
        begun.wait()
        threading.Timer(0.05, go.set).start()
        raise KeyboardInterrupt
    assert [job.cancelled() for job in jobs[-3:]] == [True] * 3 and not jobs[0].cancelled()


def test_processes_never_get_it_that_are_started_without_it() -> None:
    code = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "os.kill(os.getpid(), signal.SIGINT); print('alive')"
    with ctrl_c_kept_from_children():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0
