"""Quirks of where a copy's frames and table lie; run by test_dataset_quirks.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hsta_fast.data import read_dataset, recognise
from hsta_fast.data.doctor import examine
from hsta_fast.data.readers.annotation import MAX_TABLE_BYTES

from . import fake_datasets
from .dataset_quirks import quirk
from .fake_datasets import casme2_row, casme3_row, samm_row, smic_row


@quirk(
    "CASME II",
    "28 of surprise and 4 of sadness in the coding of 2019, 25 and 7 in that of 2014",
    "the doctor compares with the counts of the coding that the copy has",
)
def _(root: Path) -> None:
    rows = [casme2_row(Subject=24, Filename="EP07_01", **{"Estimated Emotion": "surprise"})]
    (found,) = examine([fake_datasets.casme2_copy(root, rows)], progress=False).diagnoses
    known = {count.what: count.published for count in found.counts}
    assert (known["surprise"], known["sadness"]) == (28, 4)


@quirk("SMIC-HS", "the folder of another camera (VIS, NIR) is given", "refused")
def _(root: Path) -> None:
    fake_datasets.smic_cropped_copy(root, [("s1", "negative", "s1_ne_01")])
    (root / "HS").rename(root / "VIS")
    for given in (root, root / "VIS"):
        with pytest.raises(ValueError, match="SMIC expected the camera HS, got SMIC-VIS") as error:
            read_dataset(given)
        assert str(error.value) == (
            f"SMIC expected the camera HS, got SMIC-VIS in {root / 'VIS'}; only SMIC-HS is read"
        )


@quirk("SMIC-HS", "the annotation two levels below the folder", "found")
def _(root: Path) -> None:
    fake_datasets.smic_long_copy(root / "SMIC-E_raw image/HS_long", [smic_row()])
    assert len(read_dataset(root)) == 1


def _clip(root: Path, package: str, onset: int = 175) -> None:
    for kind, suffix in (("frame", "jpg"), ("depth", "png")):
        folder = root / package / kind / f"spNO.1_b_{onset}"
        fake_datasets.frames(folder, [f"{number}.{suffix}" for number in range(onset, 180)])


def _table(root: Path, name: str = "ME.csv") -> None:
    fake_datasets.table(root / "annotation" / name, fake_datasets.CASME3_HEADER, [casme3_row()])


@quirk(
    "CAS(ME)3",
    "one folder for each clip, `Part_A_ME_clip/frame/spNO.1_b_175`",
    "read; subject, clip and onset are those of the table",
)
def _(root: Path) -> None:
    _clip(root, "Part_A_ME_clip")
    _table(root)
    (clip,) = read_dataset(root).clips.to_dict("records")
    assert (clip["subject"], clip["clip"], clip["onset"]) == ("spNO.1", "b", 175)


@quirk("CAS(ME)3", "depth maps and videos beside the frames, parts B and C beside part A", "not read")
def _(root: Path) -> None:
    _clip(root, "Part_A_ME_clip")
    _table(root)
    fake_datasets.frames(root / "part_B/spNO.1/b/color", [f"{number}.jpg" for number in range(175, 180)])
    (frames,) = read_dataset(root).clips["frames"]
    assert frames[0] == "Part_A_ME_clip/frame/spNO.1_b_175/175.jpg"
    (root / "Part_A_ME_clip/frame").rename(root / "unknown")
    (root / "unknown/spNO.1_b_175").rename(root / "unknown/clip")
    with pytest.raises(ValueError, match="looked for CAS"):
        read_dataset(root)


@quirk("CAS(ME)3", "cropped clips beside the others, `Part_A_ME_clip_cropped`", "the cropped ones are read")
def _(root: Path) -> None:
    _clip(root, "Part_A_ME_clip")
    _clip(root, "Part_A_ME_clip_cropped")
    _table(root)
    assert recognise(root) == ("casme3", "part A, clips, cropped")


@quirk("CAS(ME)3", "a table of macro-expressions, none of whose clips is there", "one remark")
def _(root: Path) -> None:
    _clip(root, "Part_A_ME_clip")
    _table(root)
    _table(root, "MaE.csv")
    (found,) = examine([root], progress=False).diagnoses
    assert found.table is not None and found.status == 0 and len(found.table.remarks) == 1


@quirk("any", "frames or annotation up to six levels below the folder", "found; the nearest table counts")
def _(root: Path) -> None:
    fake_datasets.samm_copy(root / "a/b/c/d/e/f", [samm_row()])
    (root / "a/b/c/d/e/f/SAMM_Micro_FACS_Codes_v2.xlsx").rename(root / "a/b/table.xlsx")
    assert len(read_dataset(root)) == 1


@quirk(
    "any",
    "no clip of the table has a folder",
    "refused, with one line: what was looked for, and what is there",
)
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root, [casme2_row()])
    (root / "sub01").rename(root / "person_1")
    with pytest.raises(ValueError, match="no clip of the table .*found here: person_1"):
        read_dataset(root)


@quirk("any", "several datasets below the folder", "refused: give the folder of each")
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root / "CASME2", [casme2_row()])
    fake_datasets.samm_copy(root / "SAMM", [samm_row()])
    with pytest.raises(ValueError, match="got CASME II in CASME2 and SAMM in SAMM; give the folder of each"):
        read_dataset(root)


@quirk("any", "a table of more than 4 MB below the folder", "not searched for columns")
def _(root: Path) -> None:
    copy = fake_datasets.casme3_copy(root / "copy", [casme3_row()])
    (path,) = copy.glob("*.csv")
    assert len(read_dataset(root)) == 1
    large = (" " * 99_999 + "\n") * (MAX_TABLE_BYTES // 100_000)
    path.write_text(path.read_text() + large)
    with pytest.raises(ValueError, match="no csv or xlsx file"):
        read_dataset(root)
    assert len(read_dataset(copy)) == len(read_dataset(root, annotation=path)) == 1
    # Nor is one beside a coding searched for objective classes.
    fake_datasets.casme2_copy(root / "casme2", [casme2_row()])
    (root / "casme2/classes.csv").write_text(f"Subject,Filename,Objective Class\n1,EP02_01f,5\n{large}")
    assert read_dataset(root / "casme2").remarks == ()


@quirk(
    "any",
    "all folders of subjects are links out of the folder, or without permission",
    "refused, with one line: give the target of the links",
)
def _(root: Path) -> None:
    fake_datasets.casme2_copy(root / "real", [casme2_row(), casme2_row(Subject=2)])
    for copy in ("a", "b"):
        (root / copy).mkdir()
    for path in (root / "real").iterdir():
        (root / "a" / path.name).symlink_to(path)
    (root / "a/CASME2-coding-20140508.xlsx").unlink()
    shutil.copy(root / "real/CASME2-coding-20140508.xlsx", root / "a")
    (root / "b/casme2").symlink_to(root / "real")
    link = r"a link out of the folder: give its target\)"
    with pytest.raises(ValueError, match=rf"no clip of the table .*found here: sub01, sub02 \({link}$"):
        read_dataset(root / "a")
    with pytest.raises(ValueError, match=rf"the folder holds: casme2 \({link}$"):
        read_dataset(root / "b")
