"""What is said of columns that are not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsta_fast.data.readers.registry import READERS, read_dataset
from hsta_fast.synth.layouts import LAYOUTS
from tests.data import fake_datasets, further_datasets
from tests.data.fake_datasets import csv_row

HEADERS = {
    "casme2": fake_datasets.CASME2_HEADER,
    "samm": fake_datasets.SAMM_HEADER,
    "smic": fake_datasets.SMIC_HEADER,
    "casme3": fake_datasets.CASME3_HEADER,
    "mmew": further_datasets.MMEW_HEADER,
    "dfme": further_datasets.DFME_HEADER,
    "casme": further_datasets.CASME_HEADER,
    "4dme": further_datasets.FOUR_DME_HEADER,
    "samm_long": further_datasets.SAMM_LONG_HEADER,
    "csv": fake_datasets.CSV_HEADER,
}


def remarks(dataset: str, *more: str, without: str = "") -> list[str]:
    header = [name or "" for name in HEADERS[dataset] if name != without]
    return READERS[dataset].columns.remarks([*header, *more])


@pytest.mark.parametrize("dataset", HEADERS)
def test_published_tables_give_no_remark(dataset: str) -> None:
    assert remarks(dataset) == []
    if dataset in LAYOUTS:
        assert READERS[dataset].columns.remarks([name or "" for name in LAYOUTS[dataset].header]) == []


LIKE = {
    "onset": ("onset_time", "onset_index", "start_frame", "first_frame", "Onset frame no", "on", "onset_sec"),
    "offset": ("offset_time", "end_frame", "last_frame", "Offset frame no", "off", "tOffset"),
    "apex": ("apex_time", "peakFrame"),
    "emotion": ("emotion_label", "emotion_class", "class_label", "Label", "EMO"),
    "action units": ("AU_list", "FACS code", "action_unit_codes"),
    "objective class": ("Objective", "Objective_Class(I-VII)"),
    "expression type": ("micro_expression",),
}


@pytest.mark.parametrize("column", LIKE)
def test_a_plain_table_asks_of_each_look_alike(column: str) -> None:
    for name in LIKE[column]:
        wanted = f"column {name!r} is not read; did you mean {column}?"
        assert remarks("csv", name, without=column) == [wanted]
        if column in HEADERS["csv"]:
            assert remarks("csv", name) == [f"column {name!r} is not read: {column} is there"]


def test_a_plain_table_names_all_that_is_not_read(tmp_path: Path) -> None:
    row = csv_row() | {"gender": "f", "notes": "x", "start_frame": 2, "": "y"}
    fake_datasets.csv_copy(tmp_path, [row], [*fake_datasets.CSV_HEADER, "gender", "start_frame", "notes", ""])
    assert read_dataset(tmp_path).remarks == (
        "clips.csv: column 'start_frame' is not read: onset is there",
        "clips.csv: columns not read: 'gender', 'notes'",
    )
    (line,) = remarks("csv", *(f"feature {number}" for number in range(1000)))
    assert line.startswith("columns not read: 'feature 0', 'feature 1', ") and len(line) < 350


def test_a_dataset_names_unknown_columns_about_what_it_reads() -> None:
    assert remarks("casme2", "gender", "notes") == []
    assert remarks("casme2", "Objective", "Class") == [
        "column 'Objective' is not read; did you mean objective class?",
        "column 'Class' is not read: estimated emotion is there",
    ]
    assert remarks("casme3", "Objective", without="Objective class") == [
        "column 'Objective' is not read; did you mean objective class?"
    ]
    assert remarks("mmew", "objective_class", "AU list") == [
        "column 'AU list' is not read: action units is there",
        "column not read: 'objective_class'",
    ]
    for name in ("Action Units", "ActionUnit", "action_unit", "AUs"):
        for dataset in ("dfme", "casme"):
            assert remarks(dataset, name, without="AU") == [f"column {name!r} is read as au"]


def test_dfme_without_its_emotions_is_not_taken_for_a_test_part(tmp_path: Path) -> None:
    root = further_datasets.dfme_copy(tmp_path, [further_datasets.dfme_row()])
    header = ["Label" if name == "Emotion" else name for name in further_datasets.DFME_HEADER]
    header = ["Action Units" if name == "AU" else name for name in header]
    row = further_datasets.dfme_row() | {"Label": "anger", "Action Units": "4"}
    fake_datasets.sheet(root / "training_full_with_AU.xlsx", header, [row])
    table = read_dataset(root, "dfme")
    assert [remark for remark in table.remarks if "assumed" not in remark] == [
        "training_full_with_AU.xlsx: column 'Label' is not read; did you mean emotion?",
        "training_full_with_AU.xlsx: column 'Action Units' is read as au",
        "DFME: the table has no column Emotion; the label set dfme_7 drops all clips",
    ]
    assert table.clips["objective_class"].tolist() == [3]
