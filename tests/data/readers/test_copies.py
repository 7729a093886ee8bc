"""Which of several folders with the same subjects is read, and what is said of the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hsta_fast.data import read_dataset, recognise
from hsta_fast.data.doctor import examine

from .. import fake_datasets
from .. import further_datasets as further
from ..fake_datasets import casme2_row, ordinary_user, public_folder, samm_row, smic_row


def casme2(root: Path) -> None:
    fake_datasets.casme2_copy(root, [casme2_row()])
    shutil.move(root / "sub01", root / "raw/sub01")


def samm(root: Path) -> None:
    fake_datasets.samm_copy(root, [samm_row()])
    shutil.move(root / "006", root / "raw/006")


def smic(root: Path) -> None:
    fake_datasets.smic_long_copy(root, [smic_row()])
    (root / "SMIC_HS_E").rename(root / "raw")


def squared(root: Path) -> None:
    further.squared_copy(root, [further.squared_row()])
    (root / "rawpic").rename(root / "raw")


def casme(root: Path) -> None:
    further.casme_copy(root, [further.casme_row()])
    shutil.move(root / "sub01", root / "raw/sub01")


def four_dme(root: Path) -> None:
    further.four_dme_copy(root, [further.four_dme_row()])
    (root / "gray_micro").rename(root / "raw")


def dfme(root: Path) -> None:
    further.dfme_copy(root, [further.dfme_row()], part="raw")


def samm_long(root: Path) -> None:
    further.samm_long_copy(root, [further.samm_long_row()])
    (root / "SAMM_longvideos").rename(root / "raw")


COPIES = (casme2, samm, smic, squared, casme, four_dme, dfme, samm_long)


@pytest.mark.parametrize("copy", COPIES)
def test_flow_is_read_last_and_the_copy_is_named(tmp_path: Path, copy: Callable[[Path], None]) -> None:
    copy(tmp_path)
    before = read_dataset(tmp_path)
    shutil.copytree(tmp_path / "raw", tmp_path / "flow")
    found = read_dataset(tmp_path)
    assert found.clips["frames"][0][0].startswith("raw/")
    (remark,) = set(found.remarks) - set(before.remarks)
    assert remark.startswith("frames are read from raw; flow holds the same ")
    shutil.rmtree(tmp_path / "raw")
    assert read_dataset(tmp_path).clips["frames"][0][0].startswith("flow/")


def test_flow_is_read_last_however_near_it_is(tmp_path: Path) -> None:
    casme2(tmp_path)
    shutil.copytree(tmp_path / "raw", tmp_path / "a/b/c/d/raw")
    (tmp_path / "raw").rename(tmp_path / "flow")
    assert read_dataset(tmp_path).clips["frames"][0][0].startswith("a/b/c/d/raw/")
    for path in (tmp_path / "flow/sub01/EP02_01f").iterdir():  # of another version, which would be first
        path.rename(path.with_name(f"reg_{path.name}"))
    assert recognise(tmp_path) == ("casme2", "raw")


def test_casme3_reads_frames_whatever_their_folder_is_called(tmp_path: Path) -> None:
    fake_datasets.table(tmp_path / "ME.csv", fake_datasets.CASME3_HEADER, [fake_datasets.casme3_row()])
    for name in ("flow_frame", "rgb"):
        folder = tmp_path / "Part_A_ME_clip" / name / "spNO.1_b_175"
        fake_datasets.frames(folder, [f"{number}.jpg" for number in range(175, 180)])
    found = read_dataset(tmp_path)
    assert found.clips["frames"][0][0].startswith("Part_A_ME_clip/rgb/")
    assert found.remarks[-1].endswith("Part_A_ME_clip/flow_frame holds the same subjects")


def test_all_parts_of_one_copy_are_read(tmp_path: Path) -> None:
    rows = [further.dfme_row(), further.dfme_row(Subject="sub0200", Filename="sub0200_01")]
    for copy in ("x/raw", "x/z"):
        for row, part in zip(rows, ("DFME_train", "DFME_test_A"), strict=True):
            further.dfme_copy(tmp_path / copy, [row], part=part)
        (tmp_path / copy / "training_full_with_AU.xlsx").unlink()
    fake_datasets.sheet(tmp_path / "training_full_with_AU.xlsx", further.DFME_HEADER, rows)
    found = read_dataset(tmp_path)
    assert {names[0].rpartition("DFME")[0] for names in found.clips["frames"]} == {"x/raw/"}
    assert len(found) == 2 and len([remark for remark in found.remarks if "are read from" in remark]) == 2


@pytest.mark.parametrize("left", [".DS_Store", "._EP01_5-6.jpg", "Thumbs.db", "notes.txt"])
def test_what_a_system_leaves_is_no_frame(tmp_path: Path, left: str) -> None:
    further.casme_copy(tmp_path / "casme", [further.casme_row()])
    fake_datasets.casme2_copy(tmp_path / "other", [casme2_row()])
    for clip in ("casme/sub01/EP01_5", "other/sub01/EP02_01f"):
        (tmp_path / clip / left).write_bytes(b"x")
    assert recognise(tmp_path / "casme") == ("casme", "raw")
    shutil.move(tmp_path / "other/sub01", tmp_path / "casme/a_CASME2/sub01")
    assert read_dataset(tmp_path / "casme").clips["frames"][0][0].startswith("sub01/EP01_5/")
    shutil.move(tmp_path / "casme/sub01", tmp_path / "casme/z/sub01")
    assert read_dataset(tmp_path / "casme").clips["frames"][0][0].startswith("z/sub01/EP01_5/")


def test_the_version_is_that_of_the_given_table(tmp_path: Path) -> None:
    further.four_dme_copy(tmp_path / "copy", [further.four_dme_row()])
    (table,) = (tmp_path / "copy").glob("*.xlsx")
    (tmp_path / "tables").mkdir()
    table = table.rename(tmp_path / "tables" / table.name)
    (found,) = examine([tmp_path / "copy"], annotation=table, progress=False).diagnoses
    assert (found.dataset, found.version, len(found.table or ())) == ("4dme", "grey", 1)


def test_folders_that_may_not_be_read_give_one_line(tmp_path: Path) -> None:
    with public_folder() as root:
        fake_datasets.casme2_copy(root, [casme2_row(), casme2_row(Subject=2)])
        for subject in ("sub01", "sub02"):
            (root / subject).chmod(0)
        try:
            with ordinary_user(), pytest.raises(ValueError, match="found here: .*permission denied") as error:
                read_dataset(root)
        finally:
            for subject in ("sub01", "sub02"):
                (root / subject).chmod(0o755)
    line = str(error.value)
    assert "no clip of the table (2, of 2 subjects) has a folder, such as sub01/EP02_01f (permis" in line
