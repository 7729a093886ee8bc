"""What a table's columns are called, which of them it may lack, and what is said about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hsta_fast.data import apply_labels, label_set, read_dataset
from hsta_fast.data.clips import LEFT_OUT
from hsta_fast.data.doctor import as_json, as_text, examine
from hsta_fast.data.readers.registry import join

from .. import fake_datasets
from ..fake_datasets import casme3_row, csv_row, samm_row


def test_a_table_without_emotions_is_labelled_by_objective_class(tmp_path: Path) -> None:
    rows = [casme3_row(), casme3_row(Subject="spNO.2", **{"Objective class": "I"})]
    fake_datasets.casme3_copy(tmp_path, rows)
    header = [*fake_datasets.CASME3_HEADER[:-1], "Expression type"]
    fake_datasets.table(tmp_path / "cas(me)3_part_A_ME_label.csv", header, rows)
    table = read_dataset(tmp_path)
    assert table.clips["emotion"].tolist() == ["", ""] and table.faults == ()
    assert apply_labels(table, label_set("objective7"))[0].clips["label"].tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"^label set 'emotion7' expected emotions, got casme3 without"):
        apply_labels(table, label_set("emotion7"))
    # A blank cell is a fault, as before.
    fake_datasets.casme3_copy(tmp_path, [*rows, casme3_row(Onset=176, emotion="")])
    (fault,) = read_dataset(tmp_path).faults
    assert "emotion expected a word, got a blank" in fault.what and fault.action == LEFT_OUT


def test_remarks_are_kept_and_printed_once(tmp_path: Path) -> None:
    first = read_dataset(fake_datasets.samm_copy(tmp_path / "samm", [samm_row()]))
    second = read_dataset(fake_datasets.csv_copy(tmp_path / "own", [csv_row()]))
    tables = [replace(table, remarks=("one", name)) for table, name in ((first, "a"), (second, "b"))]
    assert join(tables).remarks == ("one", "a", "b")
    assert join(tables).default_labels == {"samm": "samm_5", "csv": "emotion7"}
    (diagnosis,) = examine([tmp_path / "samm"], progress=False).diagnoses
    examined = replace(examine([tmp_path / "samm"], progress=False))
    examined = replace(examined, diagnoses=(replace(diagnosis, table=tables[0]),))
    assert examined.status == 0
    assert "\nremarks\n  one\n  a\n\n" in as_text(examined)
    assert as_json(examined)["folders"][0]["remarks"] == ["one", "a"]
