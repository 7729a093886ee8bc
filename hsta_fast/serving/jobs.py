"""Videos that were sent to the page: each is predicted in its own process, one at a time, and deleted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.frames.video import VIDEO_TYPES

PAGE = "predict.html"  # what a prediction leaves in its folder
_LONGEST_NAME = 200  # characters shown
_TAIL = 4096  # bytes of what a process said last
_OVER = "the video took longer to predict than the {} s that this page allows: send a shorter one"


class RefusedError(ValueError):
    """A video that is not taken, in one line; `status`: the HTTP status that says so."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one person can ask of this machine.

    megabytes: of a video; seconds: for sending a video, and again for predicting it; waiting: videos that may
    wait; kept: the pages that can still be opened, the oldest are dropped first.
    """

    megabytes: int = 500
    seconds: int = 600
    waiting: int = 4
    kept: int = 20

    def check(self) -> None:
        """Raise ValueError, naming the flag, for a limit below 1."""
        for name in ("megabytes", "seconds"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name} expected a whole number >= 1, got {value}")


@dataclass
class Job:
    """One video. name: what its owner calls it, only to be shown; page: the finished page."""

    folder: Path
    video: Path
    name: str
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    message: str = ""
    page: bytes | None = None
    begun: float = field(default_factory=time.monotonic)

    def as_json(self) -> dict[str, object]:
        """What the page asks for while it waits."""
        seconds = round(time.monotonic() - self.begun)
        return {"name": self.name, "state": self.state, "message": self.message, "seconds": seconds}


class Jobs:
    """Takes videos, and predicts them in the order in which they came.

    command: (video, folder for the results) -> the words of the process that predicts it.
    folder: an empty folder for the videos; each is deleted as soon as its prediction has ended.
    """

    def __init__(self, command: Callable[[Path, Path], list[str]], folder: Path, limits: Limits) -> None:
        self.command, self.folder, self.limits = command, folder, limits
        self.jobs: dict[str, Job] = {}
        self._coming = 0  # videos that are being sent
        self._queue: asyncio.Queue[Job] = asyncio.Queue()

    async def take(self, name: str, chunks: AsyncIterator[bytes]) -> str:
        """Keep a video whose bytes are `chunks`, let it wait for its turn, and return the key of its job.

        Raises:
            RefusedError: its name is not that of a video, it is empty or too large, it comes too slowly, or
                too many videos wait. Nothing of it is kept.
        """
        kind = Path(name).suffix.lower()
        if kind not in VIDEO_TYPES:
            got = repr(name[:_LONGEST_NAME])
            raise RefusedError(f"video expected a file of {', '.join(VIDEO_TYPES)}, got {got}", 415)
        if self._coming + self._queue.qsize() >= self.limits.waiting:
            raise RefusedError(f"{self.limits.waiting} videos are waiting already: try again later", 503)
        key = secrets.token_urlsafe(16)
        folder = self.folder / key
        self._coming += 1
        try:
            folder.mkdir(mode=0o700)
            # Of the name from outside only what leads nowhere; the page is titled with it.
            stem = re.sub(r"[^\w -]", "_", Path(name).stem)[:60].strip(" _")
            video = folder / f"{stem or 'video'}{kind}"
            async with asyncio.timeout(self.limits.seconds):
                await self._write(video, chunks)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, TimeoutError):
                raise RefusedError(f"video expected within {self.limits.seconds} s", 408) from error
            raise
        finally:
            self._coming -= 1
        self.jobs[key] = job = Job(folder, video, name[:_LONGEST_NAME])
        self._queue.put_nowait(job)
        return key

    async def _write(self, video: Path, chunks: AsyncIterator[bytes]) -> None:
        size, most = 0, self.limits.megabytes * 1_000_000
        with video.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > most:
                    raise RefusedError(f"video expected at most {self.limits.megabytes} MB, got more", 413)
                await asyncio.to_thread(file.write, chunk)
        if not size:
            raise RefusedError("video expected a file with a video in it, got an empty one", 400)

    async def work(self) -> None:
        """Predict what waits, for ever. Cancelled, it ends the process that runs."""
        while True:
            job = await self._queue.get()
            job.state, job.begun = "running", time.monotonic()
            try:
                job.page = await self._predict(job)
                job.state, job.message = "done", ""
            except (OSError, ValueError) as error:
                job.state, job.message = "failed", str(error)
            finally:
                shutil.rmtree(job.folder, ignore_errors=True)
            finished = [key for key, of in self.jobs.items() if of.state in ("done", "failed")]
            for key in finished[: -self.limits.kept]:
                del self.jobs[key]

    async def _predict(self, job: Job) -> bytes:
        """The page of a video; ValueError with the last line that the process said if it failed."""
        process = await asyncio.create_subprocess_exec(
            *self.command(job.video, job.folder / "out"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that the processes that it starts end with it
        )
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self._listen(process, job)
                await process.wait()
        except TimeoutError as error:
            raise ValueError(_OVER.format(self.limits.seconds)) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        page = job.folder / "out" / PAGE
        if process.returncode != 0:
            # The file has another name here than its owner knows.
            said = job.message.removeprefix("error: ").replace(str(job.video), job.name)
            raise ValueError(said or f"the prediction ended with exit status {process.returncode}")
        return await asyncio.to_thread(page.read_bytes)

    async def _listen(self, process: asyncio.subprocess.Process, job: Job) -> None:
        """Keep the last line that the process said; those of a progress bar end with a carriage return."""
        assert process.stderr is not None
        tail = b""
        while chunk := await process.stderr.read(_TAIL):
            tail = (tail + chunk)[-_TAIL:]
            lines = tail.decode(errors="replace").replace("\r", "\n").split("\n")
            job.message = next((line.strip() for line in reversed(lines) if line.strip()), job.message)
