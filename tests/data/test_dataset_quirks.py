"""Every quirk of the datasets, planted in a fake copy, has the outcome that docs/data.md lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hsta_fast.data import load_frames, read_dataset
from hsta_fast.data.clips import LEFT_OUT, UNREADABLE
from hsta_fast.data.doctor import examine
from hsta_fast.data.sampling import Sampling

from . import (  # noqa: F401 (register quirks)
    copy_quirks,
    fake_datasets,
    further_dataset_quirks,
    layout_quirks,
    table_quirks,
)
from .dataset_quirks import QUIRKS, left_out, only_fault, quirk
from .fake_datasets import casme2_row, casme3_row, csv_row, samm_row

DOCS = Path(__file__).parents[2] / "docs" / "data.md"

# Any dataset


@quirk("any", "onset or offset missing or not an integer", "clip left out")
def _(root: Path) -> None:
    for cell in (None, "four", "4.5", "1e3", "NaN"):
        table = read_dataset(fake_datasets.casme2_copy(root, [casme2_row(), casme2_row(OffsetFrame=cell)]))
        left_out(table, "onset and offset expected integers")


@quirk("any", "a clip of one frame", "clip left out")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.casme2_copy(root, [casme2_row(), casme2_row(OnsetFrame=50)]))
    left_out(table, "clip expected at least 2 frames")


@quirk("any", "a blank emotion", "clip left out")
def _(root: Path) -> None:
    blank = {"Estimated Emotion": None}
    table = read_dataset(fake_datasets.casme2_copy(root, [casme2_row(), casme2_row(OnsetFrame=47, **blank)]))
    left_out(table, "emotion expected a word, got a blank")


@quirk("any", "a second row of the same clip", "the first is kept")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.samm_copy(root, [samm_row(), samm_row(**{"Offset Frame": 5565})]))
    assert table.clips["offset"].tolist() == [5566]
    left_out(table, "onset of an earlier row")


@quirk("any", "an unreadable objective class", "the class of the action units is used")
def _(root: Path) -> None:
    table = read_dataset(fake_datasets.casme3_copy(root, [casme3_row(**{"Objective class": "VIII"})]))
    assert table.clips["objective_class"].tolist() == [3]
    only_fault(table, "expected I..VII or 1..7, got 'VIII'", "objective class taken from the action units")


@quirk(
    "any", "a subject or file name that leads outside the folder", "clip left out; nothing outside is opened"
)
def _(root: Path) -> None:
    fake_datasets.frames(root / "outside", [f"img{n}.jpg" for n in range(46, 51)])
    for name in ("../../outside", "..", "/etc", "a\\..\\..\\b", "C:x"):
        table = read_dataset(fake_datasets.casme2_copy(root / "copy", [casme2_row()]))
        fake_datasets.sheet(
            root / "copy/CASME2-coding-20140508.xlsx",
            fake_datasets.CASME2_HEADER,
            [casme2_row(), casme2_row(Filename=name)],
        )
        table = read_dataset(root / "copy")
        left_out(table, "filename expected the name of one folder inside the root")


@quirk("any", "a link that leads out of the folder, or in a circle", "clips that need it are left out")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root / "outside", [casme2_row(Subject=2)])
    copy = fake_datasets.casme2_copy(
        root / "copy", [casme2_row(), casme2_row(Subject=2), casme2_row(Subject=3)]
    )
    for path in (copy / "sub02/EP02_01f").iterdir():
        path.unlink()
    (copy / "sub02/EP02_01f").rmdir()
    (copy / "sub02/EP02_01f").symlink_to(root / "outside/sub02/EP02_01f")
    (copy / "sub03/EP02_01f/img47.jpg").unlink()
    (copy / "sub03/EP02_01f/img47.jpg").symlink_to(root / "outside/sub02/EP02_01f/img47.jpg")
    table = read_dataset(copy)
    assert table.clips["subject"].tolist() == ["sub01"]
    assert all("leads out of it" in fault.what and fault.action == LEFT_OUT for fault in table.faults)
    assert [fault.subject for fault in table.faults] == ["sub02", "sub03"]
    for place in (".", "sub01", "sub01/EP02_01f"):
        (copy / place / "img99.jpg").symlink_to("img99.jpg")
    assert read_dataset(copy).clips["subject"].tolist() == ["sub01"]
    (copy / "sub01/EP02_01f/img48.jpg").unlink()
    (copy / "sub01/EP02_01f/img48.jpg").symlink_to("img48.jpg")
    assert (
        examine([copy], progress=False)
        .diagnoses[0]
        .faults[0]
        .what.endswith(
            "sub01/EP02_01f/img48.jpg: expected a readable file or folder, "
            "got: too many levels of symbolic links"
        )
    )


@quirk(
    "any", "a folder or file without permission", "clips that need it are left out, with the system's message"
)
def _(_: Path) -> None:
    with fake_datasets.public_folder() as root:
        fake_datasets.casme2_copy(root, [casme2_row(), casme2_row(Subject=2)])
        (root / "sub02/EP02_01f").chmod(0)
        picture = root / "sub01/EP02_01f/img48.jpg"
        picture.unlink()
        picture.write_bytes(fake_datasets.PICTURE)
        picture.chmod(0)
        try:
            with fake_datasets.ordinary_user():
                table, (diagnosis,) = read_dataset(root), examine([root], progress=False).diagnoses
        finally:
            (root / "sub02/EP02_01f").chmod(0o755)
        left_out(table, "sub02/EP02_01f: expected a folder of images, got: permission denied")
        assert (
            diagnosis.faults[1].what
            == "sub01/EP02_01f/img48.jpg: expected an image or video file, got: permission denied"
        )


@quirk("any", "two files for one frame number", "clips of that folder are left out")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root, [casme2_row(), casme2_row(Subject=2)])
    fake_datasets.frames(root / "sub02/EP02_01f", ["reg_img47.jpg"])
    left_out(read_dataset(root), "frame 47 expected one image, got")


@quirk(
    "any",
    "an image that is empty, truncated, unreadable, or larger than 64 megapixels",
    "`doctor` names it; a run that samples it leaves the clip out",
)
def _(root: Path) -> None:
    rows = [casme2_row(Subject=subject) for subject in range(1, 7)]
    fake_datasets.casme2_copy(root, rows)
    huge = bytearray(fake_datasets.PICTURE)
    at = huge.index(b"\xff\xc0") + 5  # height and width in the frame header
    huge[at : at + 4] = b"\xc3\x50\xc3\x50"  # 50000 x 50000
    small = fake_datasets.PICTURE[at - 5 : at + 14]  # a frame header
    twice = bytes(huge).replace(b"\xff\xd9", small + b"\xff\xd9")  # a small size after the real one
    damage = {2: b"", 3: fake_datasets.PICTURE[:60], 4: b"no image at all", 5: bytes(huge), 6: twice}
    for subject, data in damage.items():
        path = root / f"sub{subject:02d}/EP02_01f/img46.jpg"
        path.unlink()
        path.write_bytes(data)
    (diagnosis,) = examine([root], progress=False).diagnoses
    large = "at most 64000000 pixels, got 50000 x 50000"
    words = ("the file is empty", "truncated", "begins with", large, large)
    assert diagnosis.status == 1 and diagnosis.frames == 30
    for fault, word, subject in zip(diagnosis.faults, words, damage, strict=True):
        assert fault.subject == f"sub{subject:02d}" and fault.action == UNREADABLE
        assert word in fault.what and "img46.jpg" in fault.what
    table, _ = load_frames(read_dataset(root), Sampling(), 8, progress=False)
    assert table.clips["subject"].tolist() == ["sub01"] and len(table.faults) == 5


@quirk("any", "the same frames under the names of two people", "a run leaves out all clips of the second")
def _(root: Path) -> None:
    last = casme2_row(Subject=2, OnsetFrame=48, ApexFrame=50, OffsetFrame=52)
    rows = [casme2_row(), casme2_row(Subject=2, OnsetFrame=47), last]
    fake_datasets.casme2_copy(root, rows)
    (root / "sub02/EP02_01f/img47.jpg").unlink()
    (root / "sub02/EP02_01f/img47.jpg").write_bytes(fake_datasets.PICTURE + b"\0")
    table, _ = load_frames(read_dataset(root), Sampling(), 8, progress=False)
    assert table.clips["subject"].tolist() == ["sub01"]
    assert [fault.onset for fault in table.faults] == [47, 48]
    one = "the frames of casme2 sub02/EP02_01f onset 48 are those of casme2 sub01/EP02_01f onset 46"
    assert all(fault.what == f"one person under two names: {one}" for fault in table.faults)


@quirk("any", "a row with more cells than columns (a comma without quotes)", "clip left out")
def _(root: Path) -> None:
    fake_datasets.casme3_copy(root, [casme3_row()])
    with next(root.glob("*.csv")).open("a") as file:
        file.write("spNO.1,b,176,177,179,4,7,III,disgust\n")
    left_out(read_dataset(root), "row expected a cell for each column, got 1 more")


@quirk(
    "any",
    "a row with fewer cells than columns (a missing comma)",
    "clip left out; if only optional cells at the end are missing, they are blank and the row is listed",
)
def _(root: Path) -> None:
    fake_datasets.csv_copy(root, [csv_row()], header=[*fake_datasets.CSV_HEADER, "notes"])
    with (root / "clips.csv").open("a") as file:
        file.write("ann,smile,ann/smile,2,3,5,happy\n")
        file.write("ann,smile,ann/smile,3,5,happy\n")
    table = read_dataset(root)
    assert table.clips["onset"].tolist() == [1, 2]
    only_fault(table, "clips.csv row 4: row expected a cell for each column, got none for emotion", LEFT_OUT)
    # Excel omits blanks at a row's end: missing optional cells are blank, and the row is listed.
    fake_datasets.csv_copy(root / "b", [csv_row()], header=[*fake_datasets.CSV_HEADER, "action units"])
    path = root / "b" / "clips.csv"
    path.write_text(path.read_text().replace("happy,", "happy"))
    table = read_dataset(root / "b")
    assert len(table) == 1
    only_fault(
        table,
        "clips.csv row 2: row expected a cell for each column, got none for action units",
        "taken as blank",
    )


@quirk("any", "empty rows, titles, notes, other sheets", "skipped")
def _(root: Path) -> None:
    fake_datasets.samm_copy(
        root, [{"Subject": None, "Filename": ""}, samm_row(Notes="odd"), {"Subject": "", "Filename": ""}]
    )
    path = root / "SAMM_Micro_FACS_Codes_v2.xlsx"
    fake_datasets.sheet(path, [*fake_datasets.SAMM_HEADER, None], [samm_row()], above=13, beside="look again")
    assert len(read_dataset(root)) == 1 and read_dataset(root).faults == ()


def refused(root: Path, words: str, **how: Any) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read_dataset(root, **how)
    assert "\n" not in str(error.value)
    assert examine([root], progress=False).status == 2


@quirk("any", "a table in another encoding", "refused: save it as UTF-8")
def _(root: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        fake_datasets.casme3_copy(root, [casme3_row()])
        fake_datasets.table(
            root / "cas(me)3_part_A_ME_label.csv", fake_datasets.CASME3_HEADER, [casme3_row(AU="é")], encoding
        )
        refused(root, "csv: expected UTF-8 text, .*save the table as UTF-8")


@quirk("any", "a missing column", "refused, with the missing columns and those found")
def _(root: Path) -> None:
    fake_datasets.samm_copy(root, [samm_row()])
    header = [name for name in fake_datasets.SAMM_HEADER if name not in ("Apex Frame", "Action Units")]
    fake_datasets.sheet(root / "SAMM_Micro_FACS_Codes_v2.xlsx", header, [samm_row()], above=13)
    refused(root, r"SAMM: .*expected also the columns Apex Frame, Action Units, got Subject, Filename")
    other = root / "other"
    fake_datasets.casme3_copy(other, [casme3_row()])
    path = other / "cas(me)3_part_A_ME_label.csv"
    path.write_text(path.read_text().replace("Apex", "Peak"))
    refused(
        other,
        r"folders of CAS\(ME\)3; as CAS\(ME\)3: .*expected also the columns Apex, got Subject, Filename",
    )


@quirk("any", "the columns in several sheets of a workbook", "refused: leave them in one")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root, [casme2_row()])
    path = root / table_quirks.CODING
    fake_datasets.sheet(path, fake_datasets.CASME2_HEADER, [casme2_row()], others=("copy",))
    refused(root, "20140508.xlsx: expected the columns in one sheet, got them in Sheet1, copy")


@quirk("any", "several annotation files with the columns", "refused: name one with `--annotation`")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root, [casme2_row()])
    other = fake_datasets.sheet(
        root / "CASME2-coding-20190701.xlsx", fake_datasets.CASME2_HEADER, [casme2_row()]
    )
    refused(root, "got CASME2-coding-20140508.xlsx, CASME2-coding-20190701.xlsx; name one with --annotation")
    assert len(read_dataset(root, annotation=other)) == 1


def test_the_docs_list_every_quirk_and_its_outcome() -> None:
    section = DOCS.read_text(encoding="utf-8").split("## Quirks", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)[1:]
    listed = {(dataset, what): outcome for dataset, what, outcome in rows}
    assert len(listed) == len(rows) and listed == {key: outcome for key, (outcome, _) in QUIRKS.items()}


@pytest.mark.parametrize("key", QUIRKS, ids=": ".join)
def test_quirk(key: tuple[str, str], tmp_path: Path) -> None:
    _, plant = QUIRKS[key]
    plant(tmp_path)
