"""Each dataset is read in its original form: headers, sheets, header rows, number widths and folders."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hsta_fast.data import ClipTable, read_dataset, read_datasets, recognise
from hsta_fast.data.clips import COLUMNS, LEFT_OUT

from .. import fake_datasets
from ..fake_datasets import casme2_row, casme3_row, csv_row, samm_row, smic_row


def only(table: ClipTable) -> dict[str, Any]:
    """The table's one clip."""
    assert table.faults == () and list(table.clips.columns) == list(COLUMNS)
    (clip,) = table.clips.to_dict("records")
    return {str(name): value for name, value in clip.items()}


@pytest.mark.parametrize("cropped", [False, True])
def test_casme2(tmp_path: Path, cropped: bool) -> None:
    fake_datasets.casme2_copy(tmp_path, [casme2_row()], cropped=cropped)
    assert recognise(tmp_path) == ("casme2", "cropped" if cropped else "raw")
    folder, prefix = ("Cropped/sub01", "reg_img") if cropped else ("sub01", "img")
    assert only(read_dataset(tmp_path)) == {
        "dataset": "casme2",
        "subject": "sub01",
        "clip": "EP02_01f",
        "onset": 46,
        "apex": 48,
        "apex_annotated": True,
        "offset": 50,
        "frames": tuple(f"{folder}/EP02_01f/{prefix}{number}.jpg" for number in range(46, 51)),
        "expression": "micro",
        "emotion": "happiness",
        "action_units": "12",
        "objective_class": 1,
    }


def test_casme2_with_both_versions_reads_the_cropped_one_unless_pointed_at_the_other(tmp_path: Path) -> None:
    fake_datasets.casme2_copy(tmp_path, [casme2_row()], cropped=True)
    raw = tmp_path / "CASME2-RAW" / "CASME2-RAW"
    fake_datasets.casme2_copy(raw, [casme2_row()])
    table = (raw / "CASME2-coding-20140508.xlsx").rename(tmp_path / "coding.xlsx")
    (tmp_path / "CASME2-coding-20140508.xlsx").unlink()
    assert only(read_dataset(tmp_path))["frames"][0] == "Cropped/sub01/EP02_01f/reg_img46.jpg"
    clip = only(read_dataset(tmp_path / "CASME2-RAW", annotation=table))
    assert clip["frames"][0] == "CASME2-RAW/sub01/EP02_01f/img46.jpg"


def test_casme2_reads_a_class_column_where_there_is_one(tmp_path: Path) -> None:
    fake_datasets.casme2_copy(tmp_path, [casme2_row()])
    (tmp_path / "CASME2-coding-20140508.xlsx").unlink()
    header = [*fake_datasets.CASME2_HEADER, "Objective Class"]
    fake_datasets.sheet(tmp_path / "with.xlsx", header, [casme2_row(**{"Objective Class": 5})])
    assert only(read_dataset(tmp_path))["objective_class"] == 5


@pytest.mark.parametrize("width", [4, 5, 6])
def test_samm(tmp_path: Path, width: int) -> None:
    fake_datasets.samm_copy(tmp_path, [samm_row()], width)
    assert recognise(tmp_path) == ("samm", "grey frames")
    assert only(read_dataset(tmp_path)) == {
        "dataset": "samm",
        "subject": "006",
        "clip": "006_1_2",
        "onset": 5562,
        "apex": 5564,
        "apex_annotated": True,
        "offset": 5566,
        "frames": tuple(f"006/006_1_2/006_{number:0{width}d}.jpg" for number in range(5562, 5567)),
        "expression": "micro",
        "emotion": "surprise",
        "action_units": "AU2 or AU4",
        "objective_class": 7,
    }


def test_a_workbook_that_understates_its_size_is_read_whole(tmp_path: Path) -> None:
    fake_datasets.samm_copy(tmp_path, [samm_row(), samm_row(**{"Onset Frame": 5563.0})])
    path = tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx"
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    name = "xl/worksheets/sheet1.xml"
    parts[name], changed = re.subn(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:B2"', parts[name])
    assert changed == 1
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)
    assert read_dataset(tmp_path).clips["onset"].tolist() == [5562, 5563]


def test_samm_subjects_may_be_numbers_and_the_frames_a_folder_deeper(tmp_path: Path) -> None:
    fake_datasets.samm_copy(tmp_path / "SAMM", [samm_row()])
    header, row = fake_datasets.SAMM_HEADER, samm_row(Subject=6)
    fake_datasets.sheet(tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx", header, [row], above=13)
    clip = only(read_dataset(tmp_path))
    assert clip["subject"] == "006" and clip["frames"][0] == "SAMM/006/006_1_2/006_05562.jpg"


def test_smic_long(tmp_path: Path) -> None:
    fake_datasets.smic_long_copy(tmp_path, [smic_row()])
    assert recognise(tmp_path) == ("smic", "long")
    assert only(read_dataset(tmp_path)) == {
        "dataset": "smic",
        "subject": "s20",
        "clip": "s20_ne_01",
        "onset": 17581039,
        "apex": 17581041,
        "apex_annotated": False,
        "offset": 17581043,
        "frames": tuple(f"SMIC_HS_E/s20/s20_ne_01/image{n}.jpg" for n in range(17581039, 17581044)),
        "expression": "micro",
        "emotion": "negative",
        "action_units": "",
        "objective_class": 0,
    }


def test_smic_cropped_needs_no_annotation(tmp_path: Path) -> None:
    fake_datasets.smic_cropped_copy(tmp_path / "SMIC_all_cropped", [("s1", "surprise", "s1_sur_01")])
    fake_datasets.frames(tmp_path / "SMIC_all_cropped/VIS/s9/micro/negative/s9_ne_01", ["reg_image1.jpg"])
    assert recognise(tmp_path) == ("smic", "cropped")
    folder = "SMIC_all_cropped/HS/s1/micro/surprise/s1_sur_01"
    assert only(read_dataset(tmp_path)) == {
        "dataset": "smic",
        "subject": "s01",
        "clip": "s01_sur_01",
        "onset": 7,
        "apex": 8,
        "apex_annotated": False,
        "offset": 9,
        "frames": tuple(f"{folder}/reg_image{number}.jpg" for number in (7, 8, 9)),
        "expression": "micro",
        "emotion": "surprise",
        "action_units": "",
        "objective_class": 0,
    }


def test_casme3_by_itself_and_with_macro_expressions(tmp_path: Path) -> None:
    rows = [
        casme3_row(**{"Expression type": "Micro-expression"}),
        casme3_row(Onset=180, Apex=181, Offset=185, **{"Expression type": "Macro-expression"}),
    ]
    fake_datasets.casme3_copy(tmp_path, rows)
    assert recognise(tmp_path) == ("casme3", "part A")
    assert only(read_dataset(tmp_path))["frames"][0] == "spNO.1/b/color/175.jpg"
    both = read_dataset(tmp_path, expressions=("micro", "macro")).clips
    assert both["expression"].tolist() == ["micro", "macro"]


def test_own_clips_in_folders_and_videos(tmp_path: Path) -> None:
    fake_datasets.video(tmp_path / "films/bob.avi", 6)
    rows = [
        csv_row(),
        csv_row(subject="bob", clip="film", path="films/bob.avi", onset=2, apex=3, offset=5),
        csv_row(subject="eve", clip="all of it", path="eve/all", onset="", apex="", offset=""),
        csv_row(subject="bob", clip="whole film", path="films\\bob.avi", onset="", apex="", offset=""),
    ]
    fake_datasets.csv_copy(tmp_path, rows)
    fake_datasets.frames(
        tmp_path / "eve/all", ["._frame_003.jpg", ".frame_8.jpg", "thumbs_9.txt", "cover.jpg"]
    )
    assert recognise(tmp_path) == ("csv", "folders and videos")
    table = read_dataset(tmp_path)
    assert table.faults == () and set(table.clips["dataset"]) == {"csv"}
    assert table.clips["frames"].tolist() == [
        tuple(f"ann/smile/frame_{number:03d}.jpg" for number in range(1, 6)),
        tuple(f"films/bob.avi#{number}" for number in range(2, 6)),
        tuple(f"eve/all/frame_{number:03d}.jpg" for number in range(1, 8)),
        tuple(f"films/bob.avi#{number}" for number in range(6)),
    ]
    assert table.clips["onset"].tolist() == [1, 2, 1, 0] and table.clips["apex"].tolist() == [3, 3, 4, 2]
    assert table.clips["apex_annotated"].tolist() == [True, True, False, False]


def test_own_clips_have_their_own_words_and_kinds(tmp_path: Path) -> None:
    header = [*fake_datasets.CSV_HEADER, "dataset", "Action Units", "Objective Class", "Expression type"]
    more = {"dataset": "lab 7", "Action Units": "6+12", "Objective Class": "II"}
    macro = csv_row(clip="grin", **more, **{"Expression type": "macro"})
    fake_datasets.csv_copy(tmp_path, [csv_row(**more), macro], header)
    clip = only(read_dataset(tmp_path))
    assert (clip["dataset"], clip["action_units"], clip["objective_class"]) == ("lab 7", "6+12", 2)
    assert read_dataset(tmp_path, expressions=("macro",)).clips["clip"].tolist() == ["grin"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"path": "/etc"}, "path expected a folder or video inside the root, got '/etc'"),
        ({"path": "../x"}, "path expected a folder or video inside the root, got '../x'"),
        ({"path": "ann/../../x"}, "path expected"),
        ({"path": "C:\\x"}, "path expected"),
        ({"path": ""}, "path expected"),
        ({"path": "nowhere"}, "nowhere: expected a folder of images, got: no such file"),
        ({"path": "nofilm.avi"}, "nofilm.avi: expected a video file, got: no such file"),
        ({"path": "empty.avi"}, "empty.avi: expected a video file, it is empty"),
        (
            {"path": "film.avi", "offset": 6},
            "film.avi: onset and offset expected frames in 0..5, got 1 and 6",
        ),
        (
            {"path": "film.avi", "onset": -1},
            "film.avi: onset and offset expected frames in 0..5, got -1 and 5",
        ),
        ({"path": "ann", "onset": ""}, "ann: expected numbered images, got none"),
        ({"subject": ""}, "subject expected printable text, got ''"),
        ({"clip": "a\nb"}, "clip expected printable text"),
        ({"offset": 50_000}, "frames missing on disk: 49993 of 50000, first ann/smile/frame_008.jpg"),
        ({"offset": 10**14}, "clip expected at most 100000 frames, got 100000000000000"),
    ],
)
def test_faults_of_own_clips(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    fake_datasets.csv_copy(tmp_path, [csv_row(clip="good")])
    fake_datasets.video(tmp_path / "film.avi", 6)
    (tmp_path / "empty.avi").write_bytes(b"")
    fake_datasets.table(
        tmp_path / "clips.csv", fake_datasets.CSV_HEADER, [csv_row(clip="good"), csv_row(**changes)]
    )
    table = read_dataset(tmp_path)
    assert table.clips["clip"].tolist() == ["good"]
    (fault,) = table.faults
    assert what in fault.what and fault.what.startswith("clips.csv row 3: ") and fault.action == LEFT_OUT


def test_a_video_that_declares_too_many_frames_has_those_that_are_there(tmp_path: Path) -> None:
    whole = csv_row(clip="film", path="film.avi", onset="", apex="", offset="")
    fake_datasets.csv_copy(tmp_path, [csv_row(), whole])
    data = bytearray(fake_datasets.video(tmp_path / "film.avi", 6).read_bytes())
    for at in (data.index(b"avih") + 24, data.index(b"strh") + 40):  # the counts of frames in the two headers
        assert data[at : at + 4] == bytes((6, 0, 0, 0))
        data[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "film.avi").write_bytes(data)
    table = read_dataset(tmp_path)
    assert table.faults == () and table.clips["frames"].iloc[1] == tuple(f"film.avi#{k}" for k in range(6))


def test_several_folders_make_one_table(tmp_path: Path) -> None:
    fake_datasets.casme2_copy(
        tmp_path / "a" / "casme2", [casme2_row(), casme2_row(Filename="EP03_02", OffsetFrame=1)]
    )
    fake_datasets.samm_copy(tmp_path / "b", [samm_row()])
    table = read_datasets([tmp_path / "a" / "casme2", tmp_path / "b"])
    assert table.root == tmp_path and table.clips["dataset"].tolist() == ["casme2", "samm"]
    assert table.clips["frames"].map(lambda frames: frames[0]).tolist() == [
        "a/casme2/sub01/EP02_01f/img46.jpg",
        "b/006/006_1_2/006_05562.jpg",
    ]
    assert all((table.root / path).is_file() for frames in table.clips["frames"] for path in frames)
    assert [fault.clip for fault in table.faults] == ["EP03_02"]
    with pytest.raises(ValueError, match="recognised by themselves"):
        read_datasets([tmp_path / "a" / "casme2", tmp_path / "b"], "samm")
    with pytest.raises(ValueError, match="at least one folder"):
        read_datasets([])


def test_a_folder_given_twice_gives_each_clip_once(tmp_path: Path) -> None:
    fake_datasets.samm_copy(tmp_path, [samm_row()])
    table = read_datasets([tmp_path, tmp_path])
    assert len(table) == 1 and table.clips["frames"][0][0] == "006/006_1_2/006_05562.jpg"
    assert [fault.what for fault in table.faults] == [
        "clip expected in one of the folders, got it in several"
    ]


def test_folders_that_are_none_of_the_datasets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got no csv or xlsx file"):
        recognise(tmp_path)
    fake_datasets.casme2_copy(tmp_path, [casme2_row()])
    path = tmp_path / "CASME2-coding-20140508.xlsx"
    header = [name for name in fake_datasets.CASME2_HEADER if name != "ApexFrame"]
    fake_datasets.sheet(path, header, [casme2_row()])
    with pytest.raises(
        ValueError, match=r"folders of CASME II; as CASME II: .*expected also the columns ApexFrame, got Subj"
    ):
        recognise(tmp_path)
    path.write_bytes(b"PK no workbook")
    with pytest.raises(ValueError, match=r"20140508.xlsx: expected an Excel workbook") as error:
        recognise(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_could_be_two_datasets(tmp_path: Path) -> None:
    fake_datasets.casme2_copy(tmp_path, [casme2_row()])
    fake_datasets.samm_copy(tmp_path, [samm_row()])
    with pytest.raises(
        ValueError, match="expected one dataset, got casme2 and samm; name one with --dataset"
    ):
        read_dataset(tmp_path)
    assert only(read_dataset(tmp_path, "samm"))["subject"] == "006"
    with pytest.raises(
        ValueError, match="expected auto or one of casme2, samm, smic, casme3, mmew, .*, csv, got 'casme1'"
    ):
        read_dataset(tmp_path, "casme1")


def test_a_table_with_frames_is_preferred_to_one_without(tmp_path: Path) -> None:
    fake_datasets.casme2_copy(tmp_path, [casme2_row()])
    fake_datasets.sheet(
        tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx", fake_datasets.SAMM_HEADER, [samm_row()], above=13
    )
    fake_datasets.table(tmp_path / "clips.csv", fake_datasets.CSV_HEADER, [csv_row()])
    assert recognise(tmp_path) == ("casme2", "raw")


def test_an_annotation_from_elsewhere_is_recognised_too(tmp_path: Path) -> None:
    fake_datasets.samm_copy(tmp_path / "data", [samm_row()])
    path = (tmp_path / "data" / "SAMM_Micro_FACS_Codes_v2.xlsx").rename(tmp_path / "table.xlsx")
    assert only(read_dataset(tmp_path / "data", annotation=path))["clip"] == "006_1_2"
    csv = fake_datasets.table(tmp_path / "table.csv", fake_datasets.SAMM_HEADER, [samm_row()])
    assert only(read_dataset(tmp_path / "data", annotation=csv))["clip"] == "006_1_2"


def test_ids_of_samm_and_smic_get_the_same_padding(tmp_path: Path) -> None:
    """Also third expressions of a row, and the lock file of an open Excel, which is not an annotation."""
    samm = fake_datasets.samm_copy(tmp_path / "samm", [samm_row()])
    fake_datasets.sheet(
        samm / "SAMM_Micro_FACS_Codes_v2.xlsx",
        fake_datasets.SAMM_HEADER,
        [samm_row(Subject=6, Filename="6_1_2")],
    )
    fake_datasets.sheet(samm / "~$SAMM_Micro_FACS_Codes_v2.xlsx", fake_datasets.SAMM_HEADER, [samm_row()])
    assert only(read_dataset(samm))["clip"] == "006_1_2"
    smic = fake_datasets.smic_long_copy(tmp_path / "smic", [smic_row()])
    header = [*fake_datasets.SMIC_HEADER, "Onset3F", "Offset3F"]
    fake_datasets.sheet(smic / "SMIC-HS-E_annotation.xlsx", header, [smic_row(Onset3F=17581050)], name="HS")
    (fault,) = read_dataset(smic).faults
    assert "expression 3 of the row, 17581050..?" in fault.what and fault.onset == 17581050


def test_an_apex_may_be_the_onset_or_the_offset(tmp_path: Path) -> None:
    rows = [casme2_row(ApexFrame=46), casme2_row(OnsetFrame=47, ApexFrame=50)]
    table = read_dataset(fake_datasets.casme2_copy(tmp_path, rows))
    assert table.clips["apex"].tolist() == [46, 50] and table.faults == ()
