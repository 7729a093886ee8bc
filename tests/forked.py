"""Separate processes with torch imported: forked from a process that has done nothing else.

Importing torch takes a second of processor time, more than the rest of most such tests.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
_SERVER = """
import sys
from tests.forked import serve
exec(compile(serve(int(sys.argv[1]), sys.argv[2:]), "<string>", "exec"))
"""


class Forked:
    """Like `python -c code *arguments`, with the part of subprocess.Popen that tests need."""

    def __init__(
        self,
        code: str,
        arguments: Sequence[object] = (),
        *,
        environment: Mapping[str, str] | None = None,
        imported: tuple[str, ...] = ("torch",),
        preload: str = "",
    ) -> None:
        """Start it in a session of its own.

        Args:
            code: what runs.
            arguments: its sys.argv[1:].
            environment: all of its environment; None is this process's.
            imported: modules that it finds imported.
            preload: a library whose functions it calls instead of the C library's.
        """
        ours, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        socket.send_fds(_server(imported, preload), [b"."], [theirs.fileno(), *(write for _, write in pipes)])
        theirs.close()
        for _, write in pipes:
            os.close(write)
        self.returncode: int | None = None
        self._outcome = ours.makefile("rw")
        self._said = ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=(i, os.fdopen(read)), daemon=True)
            for i, (read, _) in enumerate(pipes)
        ]
        for reader in self._readers:
            reader.start()
        environment = dict(os.environ if environment is None else environment)
        request = {"code": code, "arguments": list(map(str, arguments)), "environment": environment}
        self._outcome.write(json.dumps(request) + "\n")
        self._outcome.flush()
        self.pid = int(self._outcome.readline())
        self._socket = ours

    def _read(self, place: int, pipe: IO[str]) -> None:
        with pipe:
            self._said[place] = pipe.read()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._socket], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status once it has ended."""
        if self.returncode is None:
            self._socket.settimeout(timeout)
            self.returncode = int(self._outcome.readline())
            self._outcome.close()
            self._socket.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr) once it has ended."""
        self.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return self._said[0], self._said[1]


@functools.cache
def _server(imported: tuple[str, ...], preload: str) -> socket.socket:
    """The server of requests: a process that has imported the modules and ends with this one."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", _SERVER, str(theirs.fileno()), *imported]
    environment = {**os.environ, "LD_PRELOAD": preload}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
    theirs.close()

    def close() -> None:
        ours.close()
        process.wait()

    atexit.register(close)
    return ours


def serve(control: int, imported: Sequence[str]) -> str:
    """Fork for each request; in the forked process, return the code that it runs."""
    for name in imported:
        importlib.import_module(name)
    gc.freeze()  # collecting them at each end would copy their memory
    requests = socket.socket(fileno=control)
    while True:
        _, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
        with contextlib.suppress(ChildProcessError):  # none is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not descriptors:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    # The intermediate process waits for the one that runs the code, and reports its exit status.
    outcome = socket.socket(fileno=descriptors[0]).makefile("rw")
    request = json.loads(outcome.readline())
    pid = os.fork()
    if pid:
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        outcome.write(f"{pid}\n")
        outcome.flush()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        outcome.write(f"{status}\n")
        outcome.flush()
        os._exit(0)
    outcome.close()
    os.setsid()
    for descriptor, standard in zip(descriptors[1:], (1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["arguments"]]
    code: str = request["code"]
    return code
