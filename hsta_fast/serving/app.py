"""The page's web application, and the server that shows it on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..protocol.page import render
from .jobs import Jobs, Limits, RefusedError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_TEMPLATE = Path(__file__).with_name("page.html.j2")
# A finished page may show its own pictures and style, and do nothing else, whatever a video put into it.
_PICTURES_ONLY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"


def import_starlette() -> None:
    """ImportError naming the extra that brings the web server, where it is missing."""
    try:
        import starlette
        import uvicorn  # noqa: F401
    except ImportError as error:
        what = "serve expected the packages starlette and uvicorn, got none: pip install 'hsta_fast[serve]'"
        raise ImportError(what) from error
    del starlette


def is_here(host: str) -> bool:
    """Whether a host's name or address is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def command_of(run: Path) -> Callable[[Path, Path], list[str]]:
    """The words that predict a video with a run or model, into a folder."""

    def words(video: Path, out: Path) -> list[str]:
        return [sys.executable, "-m", "hsta_fast", "predict", str(run), str(video), "--out", str(out)]

    return words


def make_app(jobs: Jobs, title: str, *, anywhere: bool = False) -> Starlette:
    """The application that shows the page and takes videos.

    A request that changes something needs a word that only the page knows, and another site cannot send it;
    so no page of another site can use this one.

    Args:
        jobs: what predicts them.
        title: what predicts, as the page's head line says it.
        anywhere: take requests under any name of this machine; else only under those of its loopback, so
            that no name of another site can be made to lead here.
    """
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    word = secrets.token_urlsafe(16)

    def refuse(what: str, status: int) -> Response:
        return JSONResponse({"error": what}, status)

    def checked(
        answer: Callable[[Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def under_a_known_name(request: Request) -> Response:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname
            if not anywhere and not is_here(host or ""):
                return refuse("host expected that of this machine", 421)
            return await answer(request)

        return under_a_known_name

    async def show(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        page = render(_TEMPLATE, title=title, word=word, nonce=nonce, limits=jobs.limits)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; connect-src 'self'; "
            "frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    async def take(request: Request) -> Response:
        if not secrets.compare_digest(request.headers.get("x-word", "").encode(), word.encode()):
            return refuse("video expected from the page itself: open it again", 403)
        try:
            key = await jobs.take(unquote(request.headers.get("x-name", "")), request.stream())
        except RefusedError as error:
            return refuse(str(error), error.status)
        return JSONResponse({"key": key}, 202)

    async def tell(request: Request) -> Response:
        job = jobs.jobs.get(request.path_params["key"])
        return (
            refuse("this video is no longer known: send it again", 404)
            if job is None
            else JSONResponse(job.as_json())
        )

    async def open_page(request: Request) -> Response:
        job = jobs.jobs.get(request.path_params["key"])
        if job is None or job.page is None:
            return refuse("this page is no longer known: send the video again", 404)
        headers = {"Content-Security-Policy": _PICTURES_ONLY, "Cache-Control": "no-store"}
        return HTMLResponse(job.page, headers=headers)

    @contextlib.asynccontextmanager
    async def working(app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(jobs.work())
        try:
            yield
        finally:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker

    routes = [
        Route("/", checked(show)),
        Route("/videos", checked(take), methods=["POST"]),
        Route("/videos/{key}", checked(tell)),
        Route("/videos/{key}/page", checked(open_page)),
    ]
    return Starlette(routes=routes, lifespan=working)


def serve(run: Path, *, host: str, port: int, limits: Limits, browser: bool) -> None:
    """Show the page of a run or model until Ctrl-C.

    Args:
        run: as `hsta-fast predict` takes it.
        host: an address of this machine; 127.0.0.1 is reached by nobody else.
        port: 0: a free one.
        limits: what is taken.
        browser: open it in the browser of this machine.

    Raises:
        ImportError: starlette or uvicorn is not installed.
        ValueError: the run or model cannot be used.
        OSError: the address is not this machine's, or the port is taken.
    """
    import_starlette()
    import uvicorn

    from ..predicting.ensemble import load_ensemble

    load_ensemble(run)  # says now what is wrong with it
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="hsta_fast_serve_") as folder, _listen(host, port) as listening:
        jobs = Jobs(command_of(run), Path(folder), limits)
        config: Any = uvicorn.Config(
            make_app(jobs, str(run), anywhere=not is_here(host)),
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{listening.getsockname()[1]}/"
        print(f"{run}: {url} (Ctrl-C ends it)", flush=True)
        if not is_here(host):
            print(f"anybody who reaches {host} can send videos and see what comes of them", file=sys.stderr)
        if browser:
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        uvicorn.Server(config).run(sockets=[listening])


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as an exception does: what it keeps of videos is deleted."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    def terminate(number: int, frame: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    # While uvicorn runs, SIGTERM is its own: it stops the server, and passes the signal on afterwards.
    signal.signal(signal.SIGTERM, end)
    # Windows has no SIGHUP, and `nohup` ignores it.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, terminate)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        text = getattr(error, "strerror", None) or error
        what = f"--host and --port expected a free address of this machine, got {host}:{port}: {text}"
        raise OSError(what) from error
