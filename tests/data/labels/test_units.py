"""Which action units are classes, and which clips are left out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsta_fast.data import ClipTable, apply_units, unit_targets
from hsta_fast.data.clips import COLUMNS, LEFT_OUT
from hsta_fast.data.dataset import epoch_order, times_shown
from hsta_fast.data.labels.units import rarest_unit


def a_table(cells: list[str], dataset: str = "casme2", expression: str = "micro") -> ClipTable:
    """Clips with these cells of action units."""
    rows = [
        dict.fromkeys(COLUMNS, 0)
        | {
            "dataset": dataset,
            "subject": f"s{i}",
            "clip": "c",
            "action_units": cell,
            "expression": expression,
        }
        for i, cell in enumerate(cells)
    ]
    return ClipTable(Path(), pd.DataFrame(rows))


def joined(*tables: ClipTable) -> ClipTable:
    return ClipTable(Path(), pd.concat([table.clips for table in tables], ignore_index=True))


def test_units_of_ten_clips_are_classes_in_ascending_order() -> None:
    cells = ["4+12B"] * 9 + ["L4"] + ["R12", "12+4"] + ["9+1"] * 10 + ["25"] + ["?", "", "4 or 7", "9(k)"]
    table, classes, remarks = apply_units(a_table(cells))
    assert classes == ("AU1", "AU4", "AU9", "AU12")
    labels = table.clips["label"].tolist()
    assert labels[:1] + labels[9:13] + labels[-1:] == [
        *("AU4+AU12", "AU4", "AU12", "AU4+AU12"),
        *("AU1+AU9", "none"),
    ]
    targets = unit_targets(table.clips["label"], classes)
    assert targets.dtype == np.int64 and targets.sum(0).tolist() == [10, 11, 10, 11]
    assert [(fault.subject, fault.action) for fault in table.faults] == [
        (f"s{i}", LEFT_OUT) for i in range(23, 27)
    ]
    assert "action units expected known ones, got '?'" in str(table.faults[0])
    assert remarks == [
        "Left out: 4 of 27 clips, whose action units are unknown.",
        "Units with fewer than 10 clips are no classes: AU25 (1).",
    ]


def test_macro_expressions_make_no_unit_a_class() -> None:
    both = joined(a_table(["4"] * 10 + ["6"]), a_table(["6"] * 20, expression="macro"))
    table, classes, _ = apply_units(both)
    assert classes == ("AU4",) and len(table) == 31


def test_a_dataset_without_units_is_refused_in_one_line() -> None:
    both = joined(a_table(["4"] * 10), a_table([""] * 3, dataset="smic"))
    with pytest.raises(ValueError) as error:
        apply_units(both)
    assert str(error.value) == (
        "--task units expected action units, got none for the clips of smic: --datasets names others"
    )
    with pytest.raises(ValueError, match=r"units with at least 10 clips, got AU1 \(9\), AU2 \(9\)"):
        apply_units(a_table(["1+2"] * 9))


def test_the_rarest_unit_of_a_clip() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
    assert rarest_unit(targets).tolist() == [1, 0, 1, 2, 3]  # of the equally rare units 1 and 2 the first


@pytest.mark.parametrize("balance", ["even", "matched", "weighted", "none"])
def test_clips_are_shown_as_often_as_is_said(balance: str) -> None:
    targets = np.array([[1, 0]] * 12 + [[1, 1]] * 2 + [[0, 0]] * 6)
    people = np.array(["a/1"] * 20)
    rng, shown = np.random.default_rng(0), np.zeros(20)
    for _ in range(400):
        order = epoch_order(np.arange(20), targets, people, balance, rng)
        shown += np.bincount(order, minlength=20) / 400
    expected = times_shown(targets, balance)
    assert expected.sum() == pytest.approx(20)
    np.testing.assert_allclose(shown, expected, atol=0.35)
    if balance != "none":
        np.testing.assert_allclose(expected[[0, 12, 14]], [20 / 3 / 12, 20 / 3 / 2, 20 / 3 / 6])
