"""The further datasets: what is said where their frames are missing, and of what is assumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hsta_fast.data.doctor import examine
from hsta_fast.data.readers.registry import READERS, read_dataset

from .. import fake_datasets
from .. import further_datasets as further

COPIES: dict[str, Callable[[Path], Path]] = {
    "mmew": lambda root: further.mmew_copy(root, [further.mmew_row()]),
    "dfme": lambda root: further.dfme_copy(root, [further.dfme_row()]),
    "casme": lambda root: further.casme_copy(root, [further.casme_row()]),
    "4dme": lambda root: further.four_dme_copy(root, [further.four_dme_row()]),
    "casme_squared": lambda root: further.squared_copy(root, [further.squared_row()]),
    "samm_long": lambda root: further.samm_long_copy(root, [further.samm_long_row()]),
}


@pytest.mark.parametrize("dataset", COPIES)
def test_a_table_without_frames_gives_one_line(tmp_path: Path, dataset: str) -> None:
    (path,) = COPIES[dataset](tmp_path / "whole").glob("*.xlsx")
    alone = tmp_path / "alone"
    alone.mkdir()
    path.rename(alone / path.name)
    with pytest.raises(ValueError, match=r"no clip of the table \(1, of 1 subjects\) has a folder") as error:
        read_dataset(alone)
    assert "\n" not in str(error.value) and READERS[dataset].title in str(error.value)


@pytest.mark.parametrize("dataset", COPIES)
def test_the_doctor_says_what_is_assumed(tmp_path: Path, dataset: str) -> None:
    (diagnosis,) = examine([COPIES[dataset](tmp_path)], progress=False).diagnoses
    assert diagnosis.dataset == dataset and diagnosis.faults == () and diagnosis.error == ""
    assert diagnosis.table is not None and len(diagnosis.table) == 1
    said = [remark for remark in diagnosis.table.remarks if "assumed" in remark]
    assert said == [f"{READERS[dataset].title}: assumed: {READERS[dataset].assumed}"]


@pytest.mark.parametrize("dataset", COPIES)
def test_a_copy_may_lie_deeper(tmp_path: Path, dataset: str) -> None:
    COPIES[dataset](tmp_path / "a" / "b")
    table = read_dataset(tmp_path)
    assert table.faults == () and table.clips["frames"][0][0].startswith("a/b/")


@pytest.mark.parametrize("dataset", ["mmew", "dfme", "samm_long"])
def test_the_nearest_of_two_copies_is_read(tmp_path: Path, dataset: str) -> None:
    root = COPIES[dataset](tmp_path)
    for path in COPIES[dataset](tmp_path / "old" / "copy").glob("*.xlsx"):
        path.unlink()
    table = read_dataset(root)
    assert table.faults == () and not table.clips["frames"][0][0].startswith("old/")


def test_the_line_stays_one_whatever_the_table_says(tmp_path: Path) -> None:
    row = further.casme_row(Filename="EP01\n5" + "x" * 300)
    (path,) = further.casme_copy(tmp_path / "whole", [further.casme_row()]).glob("*.xlsx")
    fake_datasets.sheet(tmp_path / "alone" / path.name, further.CASME_HEADER, [row])
    with pytest.raises(ValueError, match="has a folder, such as sub01/EP01 5xxx") as error:
        read_dataset(tmp_path / "alone")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
