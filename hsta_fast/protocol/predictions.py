"""Prediction tables: one row per test clip, with its label and the predicted class.

A run's own predictions.csv has dataset, subject, clip, onset, fold, label, predicted and, for each class in
the order of the labels, a column p_<class name> with its probability. Those of other programs: foreign.py.

A run of action units has, instead of label and predicted, for each unit a column "AU4" with the truth, 1
where the clip shows it, else 0, and a column "p_AU4" with its probability.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..clips import KEY

NAMES = (*KEY, "fold")
LABELS = ("label", "predicted")


@dataclass(frozen=True)
class Predictions:
    """A prediction table over K classes.

    Attributes:
        rows: the columns of the file, with label and predicted as int64 positions in `classes`. Those of
            dataset, subject, clip, onset and fold that the file lacks are "".
        classes: the K class names.
        given: which of dataset, subject, clip, onset and fold the file has.
        numbers: the number of each class in the file; None where the file has class names instead.
        source: those of our names that another column of the file was taken for -> that column.
        unused: our name -> columns of the file that could have been meant and say something else.
    """

    rows: pd.DataFrame
    classes: list[str]
    given: set[str]
    numbers: list[int] | None
    source: dict[str, str] = field(default_factory=dict)
    unused: dict[str, list[str]] = field(default_factory=dict)


def read_predictions(path: Path) -> pd.DataFrame:
    """The rows of a run's own predictions.csv, of classes or of units; errors as of `run_predictions`."""
    return read_unit_predictions(path)[0] if units_in(path) else run_predictions(path).rows


def units_among(columns: Iterable[str]) -> list[str]:
    """The action units whose truth and probability are among the columns, in that order; [] of classes."""
    names = [str(column) for column in columns]
    if any(name in names for name in LABELS):
        return []
    return [name for name in names if re.fullmatch(r"AU[0-9]+", name) and f"p_{name}" in names]


def units_in(path: Path) -> list[str]:
    """`units_among` the columns of a csv; [] of any other file."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return []
    try:
        return units_among(pd.read_csv(path, nrows=0).columns)
    except (ValueError, pd.errors.ParserError):  # other encodings, no columns
        return []


def read_unit_predictions(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the predictions.csv of a run of action units: its rows and the units.

    The truth is returned as int64, probabilities as float64, all else as in `run_predictions`.

    Raises:
        ValueError: as `run_predictions`.
    """
    table = read_text_table(path, NAMES)
    units = units_among(table.columns)
    if not units:
        got = ", ".join(map(str, table.columns))
        raise ValueError(f"{path}: expected columns AU<number> and p_AU<number>, got {got}")
    if table.empty:
        raise ValueError(f"{path}: expected one row per test clip, got no rows")
    lone = [str(name) for name in table.columns if re.fullmatch(r"AU[0-9]+", str(name)) and name not in units]
    if lone:
        raise ValueError(f"{path}: expected a column p_{lone[0]} beside {lone[0]}, got none")
    rows = _checked_rows(path, table, units, ())
    return rows.assign(**{unit: _whole_numbers(path, table[unit], 2) for unit in units}), units


def run_predictions(path: Path) -> Predictions:
    """Read a run's own predictions.csv.

    All columns are required, at least two of them p_<class name>. Names are not empty, labels are 0..K-1,
    onsets are whole numbers, probabilities are 0..1, and no clip occurs twice. onset is returned as int64,
    p_<class name> as float64, further columns as text.

    Raises:
        ValueError: a missing column, no rows, too few classes or an invalid cell. The message names the file
            and, for a cell, the column and the row: the line number, unless a cell has a line break. The
            header is row 1.
    """
    table = read_text_table(path, (*NAMES, *LABELS))
    classes = [str(column)[2:] for column in table.columns if str(column).startswith("p_")]
    if len(classes) < 2:
        raise ValueError(f"{path}: expected two or more columns p_<class name>, got {len(classes)}")
    if table.empty:
        raise ValueError(f"{path}: expected one row per test clip, got no rows")
    rows = _checked_rows(path, table, classes)
    return Predictions(rows, classes, set(NAMES), [*range(len(classes))])


def read_text_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a csv with at least these columns, every cell as str, so that a subject "007" stays "007".

    Raises:
        ValueError: no csv file, a missing column, or rows with more cells than columns; names the file.
    """
    if path.is_dir() or not path.exists():
        got = "a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: expected a csv file, got {got}")
    expected = f"{path}: expected a csv with columns {', '.join(columns)}"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{expected}, got: {str(error).strip()}") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{expected}; missing: {', '.join(missing)}")
    # If every row has more cells than the header, pandas takes the first ones as the index.
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{expected}, got rows with more cells than the {len(table.columns)} columns")
    return table.fillna("")


def _checked_rows(
    path: Path, table: pd.DataFrame, classes: Sequence[str], labels: Sequence[str] = LABELS
) -> pd.DataFrame:
    rows = table.copy()
    for column in ("dataset", "subject", "clip", "fold"):
        check_cells(path, table[column], table[column] == "", "a name")
    rows["onset"] = _whole_numbers(path, table["onset"], None)
    for column in labels:
        rows[column] = _whole_numbers(path, table[column], len(classes))
    for column in (f"p_{name}" for name in classes):
        values = pd.to_numeric(table[column], errors="coerce").astype(np.float64)
        # A float32 softmax may end one rounding above 1.
        check_cells(path, table[column], ~values.between(0.0, 1.0 + 1e-6), "a probability from 0 to 1")
        rows[column] = values
    repeated = rows.duplicated(subset=list(KEY))
    check_cells(path, table["clip"], repeated, "each (dataset, subject, clip, onset) once")
    return rows


def _whole_numbers(path: Path, cells: pd.Series, below: int | None) -> pd.Series:
    expected = "a whole number" if below is None else f"a whole number from 0 to {below - 1}"
    check_cells(path, cells, ~cells.str.fullmatch(r"-?[0-9]{1,18}"), expected)
    values = cells.astype(np.int64)
    if below is not None:
        check_cells(path, cells, ~values.between(0, below - 1), expected)
    return values


def check_cells(path: Path, cells: pd.Series, wrong: ArrayLike, expected: str) -> None:
    """Raise ValueError with the place of the first wrong cell, if there is one."""
    where = np.flatnonzero(np.asarray(wrong, dtype=bool))
    if where.size:
        row, got = cells.index[where[0]] + 2, repr(cells.iloc[where[0]])
        raise ValueError(f"{path}: row {row}, column {cells.name}: expected {expected}, got {got}")
