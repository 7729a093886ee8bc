"""hsta-fast doctor: what it recognises, checks, lists and counts, and its exit status."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hsta_fast import cli
from hsta_fast.data.clips import UNREADABLE
from hsta_fast.data.doctor import as_json, as_text, check_frames, examine
from hsta_fast.data.readers.registry import join, read_dataset

from . import fake_datasets
from .fake_datasets import casme2_row, casme3_row, csv_row, samm_row, smic_row


def doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """(exit status, output, errors) of the command."""
    monkeypatch.setattr(sys, "argv", ["hsta-fast", "doctor", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def test_a_clean_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_datasets.samm_copy(tmp_path, [samm_row()])
    status, out, err = doctor(monkeypatch, capsys, tmp_path)
    assert status == 0
    assert out.startswith(f"{tmp_path}: SAMM, grey frames, SAMM_Micro_FACS_Codes_v2.xlsx\n")
    assert "no fault in any row or any of 5 frames" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["micro-expressions", "1", "159", "differs"] in lines and [
        "subjects",
        "1",
        "29",
        "differs",
    ] in lines
    assert ["surprise", "1", "15", "differs"] in lines and ["anger", "0", "57", "differs"] in lines
    assert ["samm", "surprise", "1", "15", "differs"] in lines
    assert "5/5" in err  # the bar


def test_faults_are_listed_with_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [casme2_row(ApexFrame="/"), casme2_row(OnsetFrame="x"), casme2_row(Subject=2)]
    fake_datasets.casme2_copy(tmp_path, rows)
    for number in (47, 49):
        path = tmp_path / f"sub02/EP02_01f/img{number}.jpg"
        path.unlink()
        path.write_bytes(b"")
    status, out, _ = doctor(monkeypatch, capsys, tmp_path)
    assert status == 1
    table = "CASME2-coding-20140508.xlsx row"
    assert out.split("3 faults\n")[1].split("\n\n")[0].splitlines() == [
        f"  casme2 sub01/EP02_01f onset 46: {table} 2: apex expected a frame in 46..50, got '/'; "
        "apex taken as the middle frame",
        f"  casme2 sub01/EP02_01f onset ?: {table} 3: onset and offset expected integers, got 'x' and '50'; "
        "clip left out",
        "  casme2 sub02/EP02_01f onset 46: sub02/EP02_01f/img47.jpg: expected an image, the file is empty "
        f"(and 1 more of its frames); {UNREADABLE}",
    ]


def test_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake_datasets.casme2_copy(tmp_path / "a", [casme2_row(ApexFrame="/")])
    (tmp_path / "a/sub01/EP02_01f/img50.jpg").unlink()
    (tmp_path / "a/sub01/EP02_01f/img50.jpg").write_bytes(fake_datasets.PICTURE[:50])
    status, out, _ = doctor(monkeypatch, capsys, tmp_path / "a", tmp_path / "nowhere", "--json")
    found: dict[str, Any] = json.loads(out)
    assert status == found["status"] == 2
    first, second = found["folders"]
    assert (first["dataset"], first["version"], first["status"], first["clips"]) == ("casme2", "raw", 1, 1)
    assert first["annotation"] == "CASME2-coding-20140508.xlsx"
    assert first["faults"][0] == {
        "dataset": "casme2",
        "subject": "sub01",
        "clip": "EP02_01f",
        "onset": 46,
        "what": "CASME2-coding-20140508.xlsx row 2: apex expected a frame in 46..50, got '/'",
        "action": "apex taken as the middle frame",
    }
    assert list(first["broken_frames"]) == ["sub01/EP02_01f/img50.jpg"] and first["frames"] == 5
    assert {"what": "happiness", "found": 1, "published": 32} in first["counts"]
    assert second["status"] == 2 and "no such folder" in second["error"]
    assert {"what": "casme2 positive", "found": 1, "published": 32} in found["composite"]


def test_unusable_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = doctor(monkeypatch, capsys, tmp_path)
    assert status == 2 and "not recognised" in out and "got no csv or xlsx file" in out
    fake_datasets.casme2_copy(tmp_path, [casme2_row(OffsetFrame=0), casme2_row(OffsetFrame="x")])
    status, out, _ = doctor(monkeypatch, capsys, tmp_path)
    assert status == 2 and "unusable: " in out and "2 faults" in out and out.count("clip left out") == 2
    status, out, err = doctor(monkeypatch, capsys)
    assert status == 2 and "doctor expected a folder" in err
    status, out, err = doctor(monkeypatch, capsys, tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert err == f"error: {tmp_path / 'nowhere'}: expected the folder of a dataset, got no such folder\n"
    status, out, err = doctor(monkeypatch, capsys, tmp_path, "--official", tmp_path / "no.csv")
    assert status == 2 and "no.csv" in err and out == ""


def test_the_frames_of_videos_are_decoded(tmp_path: Path) -> None:
    fake_datasets.csv_copy(tmp_path, [csv_row()])
    for name in ("whole", "cut"):
        fake_datasets.video(tmp_path / f"{name}.avi", 30)
    rows = [csv_row(clip=name, path=f"{name}.avi", onset=2, apex=3, offset=29) for name in ("whole", "cut")]
    fake_datasets.table(tmp_path / "clips.csv", fake_datasets.CSV_HEADER, rows)
    table = read_dataset(tmp_path)
    broken, sizes = check_frames(table, progress=False)
    assert not broken and len(sizes) == 56 and set(sizes.values()) == {(16, 16)}
    data = (tmp_path / "cut.avi").read_bytes()
    pictures = [match.start() for match in re.finditer(b"\xff\xd8\xff", data)]
    assert len(pictures) == 30
    index = data.index(b"idx1")
    zeros = bytes(index - pictures[20])
    (tmp_path / "cut.avi").write_bytes(data[: pictures[20]] + zeros + data[index:])
    broken, sizes = check_frames(table, progress=False)
    assert len(sizes) == 46 and list(broken) == [f"cut.avi#{number}" for number in range(20, 30)]
    (fault,) = examine([tmp_path], progress=False).diagnoses[0].faults
    expected = "onset and offset expected frames in 0..20 (the video is cut or damaged after them)"
    words = f"clips.csv row 3: cut.avi: {expected}, got 2 and 29"
    assert (fault.clip, fault.what) == ("cut", words)


def test_macro_expressions_are_checked_and_counted_apart(tmp_path: Path) -> None:
    rows = [casme3_row(**{"Expression type": "micro"}), casme3_row(Onset=176, **{"Expression type": "macro"})]
    fake_datasets.casme3_copy(tmp_path, rows)
    (diagnosis,) = examine([tmp_path], progress=False).diagnoses
    found = {count.what: (count.found, count.published) for count in diagnosis.counts}
    assert found["micro-expressions"] == (1, 860) and found["macro-expressions"] == (1, 3346)
    assert found["disgust"] == (1, 250) and found["3 classes: negative"] == (1, 457)
    assert diagnosis.status == 0


def test_an_emotion_unknown_to_the_composite_is_reported(tmp_path: Path) -> None:
    fake_datasets.samm_copy(tmp_path, [samm_row(**{"Estimated Emotion": "Awe"})])
    examination = examine([tmp_path], progress=False)
    assert (
        examination.status == 1
        and "emotion expected a word of label set 'megc2019' (anger, contempt"
        in examination.differences[0].what
    )


def test_an_annotation_of_smic_is_that_of_the_long_recordings(tmp_path: Path) -> None:
    both = fake_datasets.smic_cropped_copy(tmp_path / "both", [("s20", "negative", "s20_ne_01")])
    fake_datasets.smic_long_copy(both, [smic_row()])
    (found,) = examine([both], annotation=both / "SMIC-HS-E_annotation.xlsx", progress=False).diagnoses
    assert (found.version, found.annotation, found.frames) == ("long", "SMIC-HS-E_annotation.xlsx", 5)
    (found,) = examine([both], progress=False).diagnoses
    assert (found.version, found.annotation, found.frames) == ("cropped", "no annotation needed", 3)
    cropped = fake_datasets.smic_cropped_copy(tmp_path / "cropped", [("s20", "negative", "s20_ne_01")])
    (found,) = examine([cropped], annotation=cropped / "typo.xlsx", progress=False).diagnoses
    assert "annotation expected None for the cropped SMIC-HS in" in found.error


def test_a_wrong_official_list_affects_only_the_composite(tmp_path: Path) -> None:
    root = fake_datasets.samm_copy(tmp_path, [samm_row()])
    (root / "combined_3class_gt.csv").write_text("dataset,subject,clip,label\n")
    found = examine([root], progress=False)
    assert found.diagnoses[0].status == 0 and found.status == 1 and not found.composite
    assert "combined_3class_gt.csv: expected the clips of the composite" in found.differences[0].what
    other = fake_datasets.casme3_copy(tmp_path / "other", [casme3_row()])
    (root / "combined_3class_gt.csv").write_text("samm,6,006_1_2,1\n")
    with pytest.raises(ValueError, match="--official expected a folder of casme2, samm, smic, got none"):
        examine([other], official=root / "combined_3class_gt.csv", progress=False)


def test_pipes_are_neither_tables_nor_videos(tmp_path: Path) -> None:
    """A pipe without a writer would block whoever opens it to read."""
    root = fake_datasets.casme3_copy(tmp_path / "a", [casme3_row()])
    os.mkfifo(root / "pipe.csv")
    assert examine([root], progress=False).status == 0
    own = fake_datasets.csv_copy(tmp_path / "b", [csv_row(), csv_row(clip="film", path="film.mp4")])
    os.mkfifo(own / "film.mp4")
    (found,) = examine([own], progress=False).diagnoses
    assert found.table is not None and len(found.table) == 1
    assert "film.mp4: expected a video file, got: not a plain file" in found.faults[0].what


def test_a_workbook_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    root = fake_datasets.samm_copy(tmp_path, [samm_row()])
    with zipfile.ZipFile(root / "SAMM_Micro_FACS_Codes_v2.xlsx", "a", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet9.xml", bytes(100_000_001))
    (found,) = examine([root], progress=False).diagnoses
    assert "expected an Excel workbook, got 1000" in found.error


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fake_datasets.smic_cropped_copy(tmp_path, [("s1", "negative", "s1_ne_01")])
    os.mkdir(os.fsencode(root) + b"/HS/s1/micro/negative/bad\xff")
    found = examine([root], progress=False)
    assert found.diagnoses[0].faults[0].clip == "bad?" and found.status == 1
    text = as_text(found).encode().decode()
    assert "\n1 fault\n" in text and "name expected UTF-8" in text


def test_remarks_are_no_faults_and_are_said_once(tmp_path: Path) -> None:
    first = read_dataset(fake_datasets.samm_copy(tmp_path / "samm", [samm_row()]))
    second = read_dataset(fake_datasets.csv_copy(tmp_path / "own", [csv_row()]))
    tables = [replace(table, remarks=("one", name)) for table, name in ((first, "a"), (second, "b"))]
    assert join(tables).remarks == ("one", "a", "b")
    examined = examine([tmp_path / "samm"], progress=False)
    examined = replace(examined, diagnoses=(replace(examined.diagnoses[0], table=tables[0]),))
    assert "\nremarks\n  one\n  a\n\n" in as_text(examined) and examined.status == 0
    assert as_json(examined)["folders"][0]["remarks"] == ["one", "a"]
