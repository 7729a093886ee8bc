"""Cells of action units, as the datasets write them."""

import pytest

from hsta_fast.data import action_units, objective_class


@pytest.mark.parametrize(
    ("cell", "units"),
    [
        ("4+L7", {4, 7}),
        ("R12B", {12}),
        ("T23+B25", {23, 25}),
        ("AU1+AU2", {1, 2}),
        ("12.0", {12}),
        ("4+AD38", {4}),
        ("M58+14", {14}),
        ("1,2", {1, 2}),
        ("", None),
        ("?", None),
        ("4+?", None),
        ("4+7(k)", None),
        ("R12 or R15", None),
        ("4/7", None),
        ("AD38", None),
        ("2019-07-01", None),
    ],
)
def test_the_units_of_a_cell(cell: str, units: set[int] | None) -> None:
    assert action_units(cell) == units
    assert (objective_class(cell) == 0) == (units is None)
