"""The page in headless Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")

from playwright import sync_api

from .server import CHROMIUM, QUIET, serving
from .test_app import COPY, python

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


def test_a_dropped_video_ends_as_a_page_that_cannot_run_code(
    browser: sync_api.Browser, tmp_path: Path
) -> None:
    video = tmp_path / "<b>mine.mp4"
    video.write_bytes(
        b"<h1 id=found>seen</h1><script>document.getElementById('found').textContent = 'ran'</script>"
    )
    (tmp_path / "videos").mkdir()
    with serving(python(COPY), tmp_path / "videos") as (page, _), browser.new_context() as context:
        wrong: list[str] = []
        tab = context.new_page()
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(page.url)
        tab.locator("#file").set_input_files(video)
        tab.wait_for_selector("iframe", timeout=20_000)
        assert tab.locator(".job .name").inner_text() == "<b>mine.mp4"
        assert tab.frame_locator("iframe").locator("#found").inner_text(timeout=20_000) == "seen"
        assert not wrong


def test_a_refused_video_says_why(browser: sync_api.Browser, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    gif = tmp_path / "mine.gif"
    gif.write_bytes(b"GIF89a")
    with serving(python(COPY), tmp_path / "videos") as (page, _), browser.new_context() as context:
        tab = context.new_page()
        tab.goto(page.url)
        tab.locator("#file").set_input_files(gif)
        tab.wait_for_selector(".job.failed", timeout=20_000)
        assert tab.locator(".job .said").inner_text().startswith("video expected a file of .avi")


def test_a_failed_prediction_says_why(browser: sync_api.Browser, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    video = tmp_path / "mine.mp4"
    video.write_bytes(b"x")
    fails = python("import sys; print('error: no face', file=sys.stderr); sys.exit(1)")
    with serving(fails, tmp_path / "videos") as (page, _), browser.new_context() as context:
        tab = context.new_page()
        tab.goto(page.url)
        tab.locator("#file").set_input_files(video)
        tab.wait_for_selector(".job.failed", timeout=20_000)
        assert tab.locator(".job .said").inner_text() == "no face"
