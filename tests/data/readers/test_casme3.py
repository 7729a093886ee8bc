import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsta_fast.data import recognise
from hsta_fast.data.clips import COLUMNS, LEFT_OUT, MIDDLE_APEX
from hsta_fast.data.doctor import examine
from hsta_fast.data.readers import base
from hsta_fast.data.readers.casme3 import read_casme3

from .. import fake_datasets

HEADER = ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"]
GOOD = ["spNO.1", "b", 3, 5, 9, "4+7", "III", "disgust"]
PICTURE = cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes()


def frame_files(root: Path, folder: str, names: Sequence[str]) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / folder / name).write_bytes(PICTURE)


def copy_of(root: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> Path:
    """A copy with frames 1..20 in two folders and `rows` as its annotation."""
    for folder in ("spNO.1/b/color", "spNO.2/a/color"):
        frame_files(root, folder, [f"{number}.jpg" for number in range(1, 21)])
    with (root / "annotation.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def changed(**cells: Any) -> list[Any]:
    """The good row with some cells changed."""
    return [cells.get(name.split()[0].lower(), cell) for name, cell in zip(HEADER, GOOD, strict=True)]


def test_a_clip_has_its_cells_and_one_frame_for_each_number(tmp_path: Path) -> None:
    table = read_casme3(copy_of(tmp_path, [GOOD, ["spNO.2", "a", 1, 2, 20, "L12+R4", "", "Others"]]))
    assert table.faults == () and table.root == tmp_path and len(table) == 2
    assert list(table.clips.columns) == list(COLUMNS)
    first, second = table.clips.to_dict("records")
    assert first == {
        "dataset": "casme3",
        "subject": "spNO.1",
        "clip": "b",
        "onset": 3,
        "apex": 5,
        "apex_annotated": True,
        "offset": 9,
        "frames": tuple(f"spNO.1/b/color/{number}.jpg" for number in range(3, 10)),
        "expression": "micro",
        "emotion": "disgust",
        "action_units": "4+7",
        "objective_class": 3,
    }
    assert second["emotion"] == "others" and second["objective_class"] == 7 and len(second["frames"]) == 20


def test_several_clips_of_one_recording(tmp_path: Path) -> None:
    rows = [GOOD, changed(onset=10, apex=12, offset=15), changed(onset=4, apex=5, offset=9)]
    assert read_casme3(copy_of(tmp_path, rows)).clips["onset"].tolist() == [3, 10, 4]


def test_an_xlsx_file_is_read_like_a_csv_file(tmp_path: Path) -> None:
    rows = [GOOD, changed(onset=10, apex="/", offset=15), changed(onset=4, apex=None, offset=9)]
    from_csv = read_casme3(copy_of(tmp_path, rows))
    (tmp_path / "annotation.csv").unlink()
    with pd.ExcelWriter(tmp_path / "label.xlsx") as writer:
        pd.DataFrame([["about this file"]]).to_excel(writer, sheet_name="notes", index=False)
        pd.DataFrame(rows, columns=HEADER).to_excel(writer, sheet_name="label", index=False)
    from_xlsx = read_casme3(tmp_path)
    pd.testing.assert_frame_equal(from_csv.clips, from_xlsx.clips)
    assert len(from_xlsx.faults) == 2


@pytest.mark.parametrize("apex", [2, 10, 0, "/", "", "NaN", "five", 5.5])
def test_an_unusable_apex_becomes_the_middle_frame(tmp_path: Path, apex: Any) -> None:
    table = read_casme3(copy_of(tmp_path, [changed(apex=apex)]))
    assert table.clips["apex_annotated"].tolist() == [False]
    assert table.clips["apex"].tolist() == [6]
    (fault,) = table.faults
    assert fault.action == MIDDLE_APEX and (fault.subject, fault.clip, fault.onset) == ("spNO.1", "b", 3)
    assert f"apex expected a frame in 3..9, got {str(apex)!r}" in fault.what


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"offset": 2}, "offset expected a frame not before onset 3, got 2"),
        ({"offset": 0}, "offset expected a frame not before onset 3, got 0"),
        ({"offset": 3}, "at least 2 frames, got 1: onset and offset are both 3"),
        ({"onset": "three"}, "expected integers, got 'three' and '9'"),
        ({"onset": ""}, "expected integers, got '' and '9'"),
        ({"offset": "nan"}, "expected integers, got '3' and 'nan'"),
        ({"offset": 9.5}, "expected integers, got '3' and '9.5'"),
        ({"offset": 23}, "3 of 21, first spNO.1/b/color/21.jpg (the folder holds 20 numbered images)"),
        ({"onset": -1}, "2 of 11, first spNO.1/b/color/-1.jpg"),
        ({"offset": 3457}, "clip expected at most 600 frames, got 3455"),
        ({"offset": 10**14}, "clip expected at most 600 frames"),
        ({"offset": 10**40}, "expected integers"),
        ({"emotion": ""}, "emotion expected a word, got a blank"),
        ({"filename": "z"}, "spNO.1/z/color: expected a folder of images, got: no such file or directory"),
        ({"subject": ""}, "subject expected the name of one folder inside the root, got ''"),
        ({"subject": ".."}, "subject expected the name of one folder inside the root, got '..'"),
        ({"subject": "/etc"}, "got '/etc'"),
        ({"filename": "../../x"}, "filename expected the name of one folder inside the root, got '../../x'"),
        ({"filename": "b\\..\\c"}, "filename expected"),
        ({"filename": "C:b"}, "filename expected"),
    ],
)
def test_a_faulty_clip_is_left_out_and_listed(tmp_path: Path, cells: dict[str, Any], what: str) -> None:
    root = copy_of(tmp_path, [changed(**cells), ["spNO.2", "a", 1, 2, 20, "4", "", "sad"]])
    table = read_casme3(root)
    assert table.clips["subject"].tolist() == ["spNO.2"]
    (fault,) = table.faults
    assert what in fault.what and fault.what.startswith("annotation.csv row 2: ") and fault.action == LEFT_OUT
    with pytest.raises(ValueError) as error:
        read_casme3(root, strict=True)
    assert str(error.value) == str(fault) and "\n" not in str(fault)


def test_missing_frames_in_the_middle_and_files_of_other_names(tmp_path: Path) -> None:
    root = copy_of(tmp_path, [GOOD, changed(onset=10, apex=12, offset=15)])
    (root / "spNO.1/b/color/7.jpg").unlink()
    frame_files(root, "spNO.1/b/color", ["img7.jpg", "7.txt", "._8.jpg"])
    table = read_casme3(root)
    assert table.clips["onset"].tolist() == [10]
    assert "1 of 7, first spNO.1/b/color/7.jpg" in table.faults[0].what


def test_frame_numbers_may_be_padded_and_of_any_image_type(tmp_path: Path) -> None:
    root = copy_of(tmp_path, [["s", "c", 8, 9, 11, "4", "", "sad"]])
    frame_files(root, "s/c/color", ["008.JPG", "0009.png", "10.jpeg", "11.bmp"])
    frames = read_casme3(root).clips["frames"][0]
    assert [Path(path).name for path in frames] == ["008.JPG", "0009.png", "10.jpeg", "11.bmp"]


def test_a_frame_number_with_two_files_is_a_fault(tmp_path: Path) -> None:
    root = copy_of(tmp_path, [GOOD, ["spNO.2", "a", 1, 2, 20, "4", "", "sad"]])
    frame_files(root, "spNO.1/b/color", ["005.jpg"])
    (fault,) = read_casme3(root).faults
    assert "frame 5 expected one image, got" in fault.what


def test_nothing_outside_the_root_is_opened(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    frame_files(outside, "b/color", [f"{number}.jpg" for number in range(1, 21)])
    good = ["spNO.2", "a", 1, 2, 20, "4", "", "sad"]
    copy_of(root, [["link", "b", 3, 5, 9, "", "", "sad"], GOOD, good])
    (root / "link").symlink_to(outside)
    (root / "spNO.1/b/color/4.jpg").unlink()
    (root / "spNO.1/b/color/4.jpg").symlink_to(outside / "b/color/4.jpg")
    table = read_casme3(root)
    assert table.clips["subject"].tolist() == ["spNO.2"]
    assert [fault.what.split("root, ")[1] for fault in table.faults] == [
        "'link/b/color' leads out of it",
        "'spNO.1/b/color/4.jpg' leads out of it",
    ]


def test_of_repeated_rows_the_first_usable_one_is_kept(tmp_path: Path) -> None:
    rows = [changed(offset=99), GOOD, changed(emotion="fear"), changed(offset=8)]
    table = read_casme3(copy_of(tmp_path, rows))
    assert table.clips["emotion"].tolist() == ["disgust"] and table.clips["offset"].tolist() == [9]
    assert ["onset of an earlier row" in fault.what for fault in table.faults] == [False, True, True]


def test_expression_types(tmp_path: Path) -> None:
    rows = [
        [*GOOD, "Micro-expression"],
        [*changed(onset=4), "Macro-expression "],
        [*changed(onset=5), "macro-expression"],
        [*changed(onset=2), "smile"],
    ]
    root = copy_of(tmp_path, rows, [*HEADER, "Expression type"])
    assert read_casme3(root).clips["onset"].tolist() == [3]
    macro = read_casme3(root, expressions=("macro",))
    assert macro.clips["onset"].tolist() == [4, 5] and set(macro.clips["expression"]) == {"macro"}
    assert ["'smile'" in fault.what for fault in macro.faults] == [True]
    assert len(read_casme3(root, expressions=("micro", "macro"))) == 3
    with pytest.raises(ValueError, match="expressions expected some of 'micro', 'macro'"):
        read_casme3(root, expressions=("mini",))  # type: ignore[arg-type]


def test_a_macro_expression_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_MICRO_FRAMES", 6)
    root = copy_of(tmp_path, [[*GOOD, "Macro-expression"]], [*HEADER, "Expression type"])
    assert len(read_casme3(root, expressions=("macro",))) == 1


def test_the_objective_class_of_the_file_wins_over_the_action_units(tmp_path: Path) -> None:
    table = read_casme3(copy_of(tmp_path, [changed(objective="V"), changed(onset=4, objective="")]))
    assert table.clips["objective_class"].tolist() == [5, 3]


def test_objective_class_without_its_column_or_unreadable(tmp_path: Path) -> None:
    header = [name for name in HEADER if name != "Objective class"]
    table = read_casme3(copy_of(tmp_path, [GOOD[:6] + GOOD[7:]], header))
    assert table.clips["objective_class"].tolist() == [3]
    table = read_casme3(copy_of(tmp_path, [changed(objective="VIII")]))
    assert table.clips["objective_class"].tolist() == [3]
    assert [fault.action for fault in table.faults] == ["objective class taken from the action units"]


def test_header_case_spaces_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    root = copy_of(tmp_path, [GOOD], [f" {name.upper()} " for name in HEADER])
    path = root / "annotation.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b",,,,,,,\n\n")
    table = read_casme3(root)
    assert len(table) == 1 and table.faults == ()


def test_missing_columns_are_named_with_those_found(tmp_path: Path) -> None:
    header = ["Subject", "Filename", "Onset", "Peak", "Offset", "AU", "class", "label"]
    root = copy_of(tmp_path, [GOOD], header)
    with pytest.raises(ValueError, match=r"csv: expected also the columns Apex, got Subject, .*Peak"):
        read_casme3(root)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("annotation.csv", "Subject,é\n".encode("latin-1"), "annotation.csv: expected UTF-8 text"),
        ("annotation.csv", ",".join(HEADER).encode("utf-16"), "annotation.csv: expected UTF-8 text"),
        ("annotation.csv", b"", "annotation.csv: expected a comma-separated table"),
        ("annotation.csv", ",".join(HEADER).encode("utf-16-le"), "expected UTF-8 text, got zero bytes"),
        (
            "annotation.csv",
            b"a,b\n1,2,3,4\n",
            "annotation.csv: expected also the columns Subject, .*got a, b",
        ),
        ("annotation.csv", b'a,b\n1,"2\n', "annotation.csv: expected a comma-separated table, got line 2"),
        (
            "annotation.csv",
            ";".join(HEADER).replace("Apex", "Peak").encode(),
            "expected also the columns Apex, got Subject, Filename",
        ),
        ("annotation.xlsx", b"PK\x03\x04 no workbook", "annotation.xlsx: expected an Excel workbook"),
        ("annotation.csv", ",".join([*HEADER, "onset"]).encode(), "each column once, got several of Onset"),
        ("annotation.csv", ",".join(HEADER).encode(), "expected at least one usable clip, got none$"),
        ("notes.txt", b"", "expected an annotation file in this folder, got no csv or xlsx file"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_casme3(tmp_path)
    assert "\n" not in str(error.value)


def test_which_file_is_the_annotation(tmp_path: Path) -> None:
    root = copy_of(tmp_path / "root", [GOOD])
    (root / "other.csv").write_text("name,age\nx,1\n")
    (root / "~$label.xlsx").write_text("")
    assert len(read_casme3(root)) == 1
    second = root / "second.csv"
    second.write_bytes((root / "annotation.csv").read_bytes())
    with pytest.raises(ValueError, match=r"got annotation.csv, second.csv; name one with --annotation"):
        read_casme3(root)
    assert len(read_casme3(root, annotation=second)) == 1
    with pytest.raises(ValueError, match=r"no-such.csv: expected an annotation file, got: no such file"):
        read_casme3(root, annotation=root / "no-such.csv")
    with pytest.raises(ValueError, match="no such folder"):
        read_casme3(tmp_path / "elsewhere")


def test_no_usable_clip_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"usable clip, got none; the first fault is: casme3 spNO.1/b"):
        read_casme3(copy_of(tmp_path, [changed(offset=0), changed(onset="x")]))


junk = st.one_of(
    st.integers(-5, 30),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", "/", "NaN", "..", "spNO.1", "spNO.9", "b", "12.0", "Ⅳ", "a\nb", 'say "x"', "é"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6),
)
cells = st.dictionaries(st.integers(0, 7), junk, max_size=2)  # column -> its new cell


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 18), cells), max_size=12))
def test_no_row_is_lost_silently(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, dict[int, Any]]]
) -> None:
    rows = [["spNO.2", "a", 1, 2, 20, "4", "", "sad"]]
    for onset, edit in edits:
        row = changed(onset=onset, apex=onset + 1, offset=onset + 2)
        rows.append([edit.get(column, cell) for column, cell in enumerate(row)])
    table = read_casme3(copy_of(tmp_path_factory.mktemp("copy"), rows))
    left_out = [fault for fault in table.faults if fault.action == LEFT_OUT]
    assert len(table) + len(left_out) == len(rows)
    assert not table.clips.duplicated(["dataset", "subject", "clip", "onset"]).any()
    assert (table.clips["onset"] <= table.clips["apex"]).all()
    assert (table.clips["apex"] <= table.clips["offset"]).all()
    for clip in table.clips.to_dict("records"):
        assert len(clip["frames"]) == clip["offset"] - clip["onset"] + 1
    # An unchanged row that repeats no earlier one is in the table.
    untouched = {onset for onset, edit in edits if not edit}
    assert untouched <= set(table.clips.loc[table.clips["subject"] == "spNO.1", "onset"])


def test_macro_expressions_in_a_table_of_their_own(tmp_path: Path) -> None:
    """As published: two workbooks; the second names two columns differently and has no action units."""
    root = fake_datasets.casme3_copy(tmp_path, [fake_datasets.casme3_row()])
    header = ["sub", "seq", "onset", "apex", "offset", "emotion"]
    row = dict(zip(header, ("spNO.1", "b", 176, 177, 179, "happy"), strict=True))
    macro = fake_datasets.sheet(root / "cas(me)3_part_A_MaE_label_JpgIndex_v2_emotion.xlsx", header, [row])
    assert recognise(root) == ("casme3", "part A")
    assert read_casme3(root).clips["expression"].tolist() == ["micro"]
    both = read_casme3(root, expressions=("micro", "macro"))
    assert both.clips[["onset", "expression", "emotion"]].values.tolist() == [
        [175, "micro", "disgust"],
        [176, "macro", "happy"],
    ]
    assert both.faults == ()
    alone = read_casme3(root, annotation=macro, expressions=("macro",))
    assert alone.clips["onset"].tolist() == [176]
    (found,) = examine([root], progress=False).diagnoses
    assert (found.annotation, found.status) == ("cas(me)3_part_A_ME_label.csv", 0)
    assert [count.found for count in found.counts[:2]] == [1, 1]
    named = read_casme3(root, annotation=root / found.annotation, expressions=("micro", "macro"))
    assert len(named) == 2
    fake_datasets.sheet(root / "mae.xlsx", header, [row])
    with pytest.raises(ValueError, match="expected one table of macro-expressions, got cas.*, mae.xlsx"):
        read_casme3(root, expressions=("micro", "macro"))
    fake_datasets.sheet(root / "mae.xlsx", header[:-1], [row])  # something else
    assert len(read_casme3(root, expressions=("micro", "macro"))) == 2
    # One table of both, whatever its name.
    (root / found.annotation).unlink()
    macro.unlink()
    kinds = [
        fake_datasets.casme3_row(Onset=n, **{"Expression type": kind})
        for n, kind in ((175, "micro"), (176, None))
    ]
    fake_datasets.table(root / "ME_MaE.csv", [*fake_datasets.CASME3_HEADER, "Expression type"], kinds)
    both = read_casme3(root, expressions=("micro", "macro"))
    assert both.clips["expression"].tolist() == ["micro", "macro"]
