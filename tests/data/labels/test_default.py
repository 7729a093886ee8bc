"""Which label set "auto" is: that of the dataset's literature, or of the composite."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsta_fast.data import ClipTable, apply_labels, default_labels, label_set, read_dataset, read_datasets

from .. import fake_datasets
from ..fake_datasets import casme2_row, casme3_row, csv_row, samm_row, smic_row


def copy_of(dataset: str, root: Path) -> Path:
    """A copy of one clip of `dataset`."""
    if dataset == "casme2":
        return fake_datasets.casme2_copy(root, [casme2_row(**{"Estimated Emotion": "repression"})])
    if dataset == "samm":
        return fake_datasets.samm_copy(root, [samm_row(**{"Estimated Emotion": "Contempt"})])
    if dataset == "smic":
        return fake_datasets.smic_long_copy(root, [smic_row()])
    if dataset == "casme3":
        return fake_datasets.casme3_copy(root, [casme3_row()])
    return fake_datasets.csv_copy(root, [csv_row(dataset=dataset)], (*fake_datasets.CSV_HEADER, "dataset"))


def table_of(tmp_path: Path, datasets: str) -> ClipTable:
    return read_datasets([copy_of(dataset, tmp_path / dataset) for dataset in datasets.split()])


@pytest.mark.parametrize(
    ("datasets", "name"),
    [
        ("casme2", "casme2_5"),
        ("samm", "samm_5"),
        ("smic", "emotion3"),
        ("casme3", "emotion7"),
        ("lab", "emotion7"),
        ("casme2 samm", "megc2019"),
        ("samm smic", "megc2019"),
        ("smic casme2 samm", "megc2019"),
        ("casme3 lab", "emotion7"),
    ],
)
def test_auto(tmp_path: Path, datasets: str, name: str) -> None:
    table = table_of(tmp_path, datasets)
    found, why = default_labels(table)
    labels = label_set(found)
    assert found == name and len(apply_labels(table, labels)[0]) == len(table)
    given = " and ".join(datasets.split())
    assert why == f"--labels auto is {name} ({', '.join(labels.classes)}), the default for {given}"


def test_datasets_with_different_sets_need_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        default_labels(table_of(tmp_path, "casme3 samm"))
    assert str(error.value) == (
        "--labels expected one label set for all clips, got auto, which is emotion7 for casme3, samm_5 for "
        "samm: name one"
    )


def test_own_clips_may_have_the_name_of_a_dataset(tmp_path: Path) -> None:
    rows = [csv_row(dataset="casme2")]
    table = read_dataset(fake_datasets.csv_copy(tmp_path, rows, (*fake_datasets.CSV_HEADER, "dataset")))
    assert default_labels(table)[0] == "emotion7"
