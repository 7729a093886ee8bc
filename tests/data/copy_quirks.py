"""Quirks of two copies of the same frames, or people; run by test_dataset_quirks.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hsta_fast.data import read_dataset, read_datasets, recognise
from hsta_fast.data.doctor import examine

from . import further_datasets as further
from .dataset_quirks import left_out, quirk
from .fake_datasets import samm_copy, samm_row, sheet
from .further_datasets import dfme_row, four_dme_row, mmew_row, samm_long_row

COPY_READ = "one is read, the one with the most clips of the table, then the nearest; a remark names both"


@quirk("MMEW", "two copies of the frames", COPY_READ)
def _(root: Path) -> None:
    rows = [mmew_row(), mmew_row(Filename="S06-07-002", **{"Estimated Emotion": "fear"})]
    further.mmew_copy(root / "MMEW", rows)
    further.mmew_copy(root, rows[:1])
    (root / "Micro_Expression").rename(root / "cropped")
    (root / "MMEW/MMEW_Micro_Exp.xlsx").rename(root / "MMEW_Micro_Exp.xlsx")
    found = read_dataset(root)
    assert all(names[0].startswith("MMEW/") for names in found.clips["frames"]) and len(found) == 2
    assert "frames are read from MMEW/Micro_Expression; cropped holds the same clips" in found.remarks


@quirk("DFME", "two copies of the frames, such as `DFME_train_cropped` beside `DFME_train`", COPY_READ)
def _(root: Path) -> None:
    rows = [dfme_row(), dfme_row(Subject="sub0002", Filename="sub0002_01")]
    further.dfme_copy(root, rows[:1], part="flow")
    further.dfme_copy(root, [*rows, dfme_row(Filename="sub0001_09")], part="a/DFME_train")
    sheet(root / "training_full_with_AU.xlsx", further.DFME_HEADER, rows)
    found = read_dataset(root)
    assert all(names[0].startswith("a/DFME_train/") for names in found.clips["frames"]) and len(found) == 2
    assert "frames are read from a/DFME_train; flow holds the same clips" in found.remarks
    # Flow does not stand in for a clip whose frames are not there.
    (root / "flow/sub0001_01").rename(root / "flow/sub0002_01")
    shutil.rmtree(root / "a/DFME_train/sub0002_01")
    left_out(read_dataset(root), "filename expected a folder named 'sub0002_01', got none")


@quirk(
    "4DME",
    "colour and depth beside the grey frames, `depth_micro`, `RGB`",
    "the grey ones are read, or the only ones there are; a remark says so",
)
def _(root: Path) -> None:
    further.four_dme_copy(root, [four_dme_row()])
    for name in ("depth_micro", "RGB", "a_flow"):
        shutil.copytree(root / "gray_micro", root / name)
    found = read_dataset(root)
    assert recognise(root) == ("4dme", "grey") and found.clips["frames"][0][0].startswith("gray_micro/")
    assert "frames are read from gray_micro; a_flow, RGB, depth_micro hold the same subjects" in found.remarks
    for name in ("gray_micro", "a_flow", "RGB"):
        shutil.rmtree(root / name)
    assert recognise(root) == ("4dme", "colour or depth")
    assert "4DME: frames expected grey, got depth_micro alone, which is read" in read_dataset(root).remarks


@quirk("SAMM Long Videos", "two copies of the frames", COPY_READ)
def _(root: Path) -> None:
    further.samm_long_copy(root, [samm_long_row(), samm_long_row(Filename="006_2_1")])
    shutil.copytree(root / "SAMM_longvideos/006_1", root / "cropped/006_1")
    found = read_dataset(root)
    assert all(names[0].startswith("SAMM_longvideos/") for names in found.clips["frames"]) and len(found) == 2
    assert "frames are read from SAMM_longvideos; cropped holds the same clips" in found.remarks


@quirk(
    "SAMM Long Videos",
    "the people of SAMM under the same numbers",
    "SAMM and SAMM Long Videos together are refused, also by the doctor",
)
def _(root: Path) -> None:
    further.samm_long_copy(root / "long", [samm_long_row()])
    samm_copy(root / "samm", [samm_row()])
    line = "samm and samm_long expected one of the two, got both: recordings of the same people"
    with pytest.raises(ValueError, match=line):
        read_datasets([root / "long", root / "samm"])
    first, second = examine([root / "long", root / "samm"], progress=False).diagnoses
    assert (first.status, second.status, second.error) == (0, 2, line)
