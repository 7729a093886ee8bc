"""Prediction tables: one row per test clip, with its label and the predicted class.

A run's own predictions.csv has dataset, subject, clip, onset, fold, label, predicted and, for each class in
the order of the labels, a column p_<class name> with its probability. Files of other programs may have fewer
columns.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..clips import KEY, natural_key

NAMES = (*KEY, "fold")
LABELS = ("label", "predicted")
MAX_CLASSES = 1000  # a larger label is taken for a mistake, not for a class
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(?:\.0*)?")


@dataclass(frozen=True)
class Predictions:
    """A prediction table over K classes.

    Attributes:
        rows: the columns of the file, with label and predicted as int64 positions in `classes`. Those of
            dataset, subject, clip, onset and fold that the file lacks are "".
        classes: the K class names.
        given: which of dataset, subject, clip, onset and fold the file has.
        numbers: the number of each class in the file; None where the file has class names instead.
    """

    rows: pd.DataFrame
    classes: list[str]
    given: set[str]
    numbers: list[int] | None


def read_predictions(path: Path) -> pd.DataFrame:
    """The rows of a run's own predictions.csv: `load_predictions` with strict=True, and the same errors."""
    return load_predictions(path, strict=True).rows


def load_predictions(path: Path, *, strict: bool) -> Predictions:
    """Read a csv of predictions.

    Args:
        path: the csv file.
        strict: True for a run's own file. All columns are required, at least two of them p_<class name>.
            Names are not empty, labels are 0..K-1, onsets are whole numbers, probabilities are 0..1, and no
            clip occurs twice. onset is returned as int64, p_<class name> as float64, further columns as text.
            False for a file from any program. Only label and predicted are required. Blank lines and
            surrounding spaces are ignored. Labels are all numbers (2.0 is 2; without a 0 they count from 1)
            or all class names. All other columns are returned as text.

    Raises:
        ValueError: a missing column, no rows, too few classes or an invalid cell. The message names the file
            and, for a cell, the column and the row: the line number, unless a cell has a line break. The
            header is row 1.
    """
    table = read_text_table(path, (*NAMES, *LABELS) if strict else LABELS)
    classes = [str(column)[2:] for column in table.columns if str(column).startswith("p_")]
    if strict and len(classes) < 2:
        raise ValueError(f"{path}: expected two or more columns p_<class name>, got {len(classes)}")
    if not strict:
        table = table.apply(lambda column: column.str.strip())
        table = table[(table != "").any(axis=1)]
    if table.empty:
        raise ValueError(f"{path}: expected one row per test clip, got no rows")
    if strict:
        return Predictions(_strict_rows(path, table, classes), classes, set(NAMES), [*range(len(classes))])
    labels, classes, numbers = _labels(path, table, classes)
    given = {name for name in NAMES if name in table}
    missing = {name: "" for name in NAMES if name not in given}
    rows = table.assign(**labels, **missing).reset_index(drop=True)
    return Predictions(rows, classes, given, numbers)


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


def _strict_rows(path: Path, table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    rows = table.copy()
    for column in ("dataset", "subject", "clip", "fold"):
        _check_cells(path, table[column], table[column] == "", "a name")
    rows["onset"] = _whole_numbers(path, table["onset"], None)
    for column in LABELS:
        rows[column] = _whole_numbers(path, table[column], len(classes))
    for column in (f"p_{name}" for name in classes):
        values = pd.to_numeric(table[column], errors="coerce").astype(np.float64)
        # A float32 softmax may end one rounding above 1.
        _check_cells(path, table[column], ~values.between(0.0, 1.0 + 1e-6), "a probability from 0 to 1")
        rows[column] = values
    repeated = rows.duplicated(subset=list(KEY))
    _check_cells(path, table["clip"], repeated, "each (dataset, subject, clip, onset) once")
    return rows


def _whole_numbers(path: Path, cells: pd.Series, below: int | None) -> pd.Series:
    expected = "a whole number" if below is None else f"a whole number from 0 to {below - 1}"
    _check_cells(path, cells, ~cells.str.fullmatch(r"-?[0-9]{1,18}"), expected)
    values = cells.astype(np.int64)
    if below is not None:
        _check_cells(path, cells, ~values.between(0, below - 1), expected)
    return values


def _labels(
    path: Path, table: pd.DataFrame, named: list[str]
) -> tuple[dict[str, np.ndarray], list[str], list[int] | None]:
    """The int64 columns label and predicted, the class names, and the class numbers of the file, if any.

    named: the class names given by the columns p_<class name>; may be empty.
    """
    words = np.array([table[column].tolist() for column in LABELS], dtype=object)  # [2, rows]
    is_number = np.array([[_NUMBER.fullmatch(word) is not None for word in column] for column in words])
    for column, cells, numeric in zip(LABELS, words, is_number, strict=True):
        wrong = np.array([not w or w.casefold() == "nan" or not w.isprintable() for w in cells])
        if is_number.any():
            wrong |= ~numeric
        expected = "a number in every row, or a class name in every row"
        _check_cells(path, table[column], wrong, expected)
    numbers = None
    if is_number.any():
        values = np.array([[int(word.partition(".")[0]) for word in column] for column in words])
        numbers, classes = _numbered_classes(path, values, named)
        codes = values - numbers[0]
    else:
        classes = _named_classes(path, set(words.flat), named)
        code = {name: number for number, name in enumerate(classes)}
        codes = np.array([[code[word] for word in column] for column in words])
    if not 2 <= len(classes) <= MAX_CLASSES:
        got = f"{len(classes)}: {', '.join(classes[:5])}"
        raise ValueError(f"{path}: expected 2 to {MAX_CLASSES} classes, got {got}")
    return dict(zip(LABELS, codes.astype(np.int64), strict=True)), classes, numbers


def _numbered_classes(path: Path, values: np.ndarray, named: list[str]) -> tuple[list[int], list[str]]:
    """The number and the name of each class. Without names and without a 0, the first class is 1."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= MAX_CLASSES:
        got = low if low < 0 else high
        raise ValueError(f"{path}: expected labels from 0 to {MAX_CLASSES - 1}, got {got}")
    if named and high >= len(named):
        raise ValueError(f"{path}: expected labels from 0 to {len(named) - 1}, got {high}")
    if named:
        return list(range(len(named))), named
    numbers = list(range(0 if low == 0 else 1, high + 1))
    return numbers, [str(number) for number in numbers]


def _named_classes(path: Path, words: set[str], named: list[str]) -> list[str]:
    classes = named or sorted(words, key=natural_key)
    spelling = {word.casefold(): word for word in classes}
    other = sorted(word for word in words if spelling.get(word.casefold(), word) != word)
    if other:
        both = f"{spelling[other[0].casefold()]} and {other[0]}"
        raise ValueError(f"{path}: expected one spelling of each class, got {both}")
    unknown = sorted(words - set(classes))
    if unknown:
        names = ", ".join(classes)
        raise ValueError(f"{path}: expected labels among {names}, got {', '.join(unknown[:5])}")
    return classes


def _check_cells(path: Path, cells: pd.Series, wrong: ArrayLike, expected: str) -> None:
    """Raise ValueError with the place of the first wrong cell, if there is one."""
    where = np.flatnonzero(np.asarray(wrong, dtype=bool))
    if where.size:
        row, got = cells.index[where[0]] + 2, repr(cells.iloc[where[0]])
        raise ValueError(f"{path}: row {row}, column {cells.name}: expected {expected}, got {got}")
