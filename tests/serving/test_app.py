"""What the page takes and refuses, how a prediction ends, and what stays on the disk: nothing."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from hsta_fast.serving.app import is_here, serve
from hsta_fast.serving.jobs import Limits

from .server import serving

COPY = """
import sys; from pathlib import Path; video, out = map(Path, sys.argv[1:])
out.mkdir(); (out / 'predict.html').write_bytes(video.read_bytes())
"""


def python(code: str) -> Callable[[Path, Path], list[str]]:
    """A command that runs `code` with the video and the folder as its arguments."""
    return lambda video, out: [sys.executable, "-c", code, str(video), str(out)]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


def test_a_video_is_predicted_shown_and_deleted(tmp_path: Path) -> None:
    with serving(python(COPY), tmp_path) as (page, _):
        status, sent = page.send("mine.mp4", b"<p>hello</p>")
        assert status == 202
        assert page.ended(sent["key"])["state"] == "done"
        status, body, headers = page.get(f"videos/{sent['key']}/page")
        assert (status, body) == (200, b"<p>hello</p>")
        assert headers["content-security-policy"].endswith("sandbox")
        assert "script" not in headers["content-security-policy"]
        assert left_in(tmp_path) == []


def test_the_title_is_text(tmp_path: Path) -> None:
    with serving(python(COPY), tmp_path) as (page, _):
        body = page.get()[1].decode()
        assert "a &lt;model&gt;" in body and "a <model>" not in body


@pytest.mark.parametrize("name", ["mine.gif", "mine", "../../x", "x.mp4.exe"])
def test_other_files_are_refused_by_their_name(tmp_path: Path, name: str) -> None:
    with serving(python(COPY), tmp_path) as (page, _):
        status, answer = page.send(name, b"x")
        assert status == 415 and answer["error"].startswith("video expected a file of .avi")
        assert left_in(tmp_path) == []


def test_a_name_that_leads_elsewhere_is_only_shown(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with serving(python(COPY), tmp_path / "in") as (page, jobs):
        names = {"../../away.mp4": "away.mp4", 'a/b\\c "<i>\n.mp4': "b_c __i.mp4", "...mp4": "video.mp4"}
        for name, kept in names.items():
            _, sent = page.send(name, b"x")
            job = jobs.jobs[sent["key"]]
            assert page.ended(sent["key"])["name"] == name
            assert job.video == tmp_path / "in" / sent["key"] / kept
        assert left_in(tmp_path) == ["in"]


def test_a_video_that_is_too_large_leaves_nothing(tmp_path: Path) -> None:
    with serving(python(COPY), tmp_path, megabytes=1) as (page, jobs):
        status, answer = page.send("a.mp4", bytes(1_000_001))
        assert (status, answer["error"]) == (413, "video expected at most 1 MB, got more")
        assert left_in(tmp_path) == [] and not jobs.jobs
        assert page.send("a.mp4", bytes(1_000_000))[0] == 202


def test_an_empty_video_is_refused(tmp_path: Path) -> None:
    with serving(python(COPY), tmp_path) as (page, _):
        assert page.send("a.mp4", b"")[0] == 400
        assert left_in(tmp_path) == []


def test_a_failure_is_the_last_line_that_was_said_under_the_owners_name(tmp_path: Path) -> None:
    fails = python(
        "import sys; print('10%\\r20%\\nerror:', sys.argv[1], 'is no video', file=sys.stderr); sys.exit(1)"
    )
    with serving(fails, tmp_path) as (page, _):
        _, sent = page.send("mine.mp4", b"x")
        ended = page.ended(sent["key"])
        assert (ended["state"], ended["message"]) == ("failed", "mine.mp4 is no video")
        assert page.get(f"videos/{sent['key']}/page")[0] == 404
        assert left_in(tmp_path) == []


def test_a_prediction_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); "
        f"open({str(said)!r}, 'w').write(str(child.pid)); child.wait()"
    )
    (tmp_path / "videos").mkdir()
    with serving(python(code), tmp_path / "videos", seconds=1) as (page, _):
        _, sent = page.send("mine.mp4", b"x")
        assert "longer to predict than the 1 s" in page.ended(sent["key"])["message"]
        assert left_in(tmp_path / "videos") == []
        assert not _runs(int(said.read_text()))


def test_the_end_of_the_server_ends_what_runs(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    code = f"import os, time; open({str(said)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    (tmp_path / "videos").mkdir()
    with serving(python(code), tmp_path / "videos") as (page, _):
        page.send("mine.mp4", b"x")
        while not said.exists() or not said.read_text():
            time.sleep(0.02)
    assert not _runs(int(said.read_text()))
    assert left_in(tmp_path / "videos") == []


def _runs(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_more_videos_than_may_wait_are_refused(tmp_path: Path) -> None:
    with serving(python("import time; time.sleep(600)"), tmp_path, waiting=1) as (page, jobs):
        assert page.send("a.mp4", b"x")[0] == 202
        while next(iter(jobs.jobs.values())).state == "waiting":
            time.sleep(0.01)
        assert page.send("b.mp4", b"x")[0] == 202
        assert page.send("c.mp4", b"x")[0] == 503


def test_the_oldest_pages_are_dropped(tmp_path: Path) -> None:
    with serving(python(COPY), tmp_path, kept=1) as (page, _):
        keys = []
        for name in ("a.mp4", "b.mp4"):
            keys.append(page.send(name, b"x")[1]["key"])
            page.ended(keys[-1])
        deadline = time.monotonic() + 10
        while page.get(f"videos/{keys[0]}")[0] != 404 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [page.get(f"videos/{key}/page")[0] for key in keys] == [404, 200]


def test_other_sites_cannot_use_it(tmp_path: Path) -> None:
    with serving(python(COPY), tmp_path) as (page, jobs):
        status, _ = page.send("a.mp4", b"x", **{"X-Word": "guess"})
        assert status == 403 and not jobs.jobs
        assert page.get(Host="evil.example")[0] == 421  # a name that its owner lets lead here
        assert page.get(Host="localhost:1")[0] == 200
        assert page.get(Host="[::1]:1")[0] == 200
        assert page.get(Host="127.0.0.2:1")[0] == 200


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("box", False),
    ],
)
def test_loopback(host: str, here: bool) -> None:
    assert is_here(host) == here


@pytest.mark.parametrize("limit", ["megabytes", "seconds"])
def test_limits_name_their_flag(limit: str) -> None:
    with pytest.raises(ValueError, match=f"--{limit} expected a whole number >= 1, got 0"):
        Limits(**{limit: 0}).check()


def test_a_model_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model expected a run, a model's file or its folder, got .*no such"):
        serve(tmp_path / "none", host="127.0.0.1", port=0, limits=Limits(), browser=False)
