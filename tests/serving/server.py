"""The page's server in a thread of the test, with a command of the test's choice."""

import contextlib
import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn

from hsta_fast.serving.app import make_app
from hsta_fast.serving.jobs import Jobs, Limits

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


class Page:
    """Speaks HTTP with the server as its page does."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str = "", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        return self._ask(urllib.request.Request(self.url + path, headers=headers))

    def word(self) -> str:
        found = re.search(r'const word = "([^"]+)"', self.get()[1].decode())
        assert found
        return found[1]

    def send(self, name: str, data: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        headers = {"X-Word": self.word(), "X-Name": quote(name), **headers}
        status, body, _ = self._ask(urllib.request.Request(self.url + "videos", data, headers))
        return status, json.loads(body)

    def ended(self, key: str) -> dict[str, Any]:
        for _ in range(600):
            state = json.loads(self.get(f"videos/{key}")[1])
            if state["state"] in ("done", "failed"):
                return dict(state)
            time.sleep(0.05)
        raise AssertionError(f"still {state}")

    @staticmethod
    def _ask(request: urllib.request.Request) -> tuple[int, bytes, dict[str, str]]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)


@contextlib.contextmanager
def serving(
    command: Callable[[Path, Path], list[str]], folder: Path, **limits: int
) -> Iterator[tuple[Page, Jobs]]:
    jobs = Jobs(command, folder, Limits(**limits))
    config = uvicorn.Config(make_app(jobs, "a <model>"), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Page(f"http://127.0.0.1:{port}/"), jobs
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
