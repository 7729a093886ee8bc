"""Anybody's predictions: labels and answers as numbers or words, and which clip of whom a row is about."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..clips import KEY, natural_key

NAMES = ("dataset", "subject", "clip", "onset", "fold")
MOST_CLASSES = 1000  # a larger number is no class
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(?:\.0*)?")


@dataclass(frozen=True)
class Answers:
    """rows: the columns of a predictions table, blank where the file has none; given: those that it has.

    label and predicted are int64, positions in `classes`. numbers: each class's number in the file,
    None where it has words.
    """

    rows: pd.DataFrame
    classes: list[str]
    given: set[str]
    numbers: list[int] | None


def read_answers(path: Path) -> Answers:
    """Read a predictions csv; ValueError names the file and what in it cannot be."""
    raw = read_text_table(path, ("label", "predicted"))
    cells = raw.apply(lambda column: column.str.strip())
    raw, cells = (table[(cells != "").any(axis=1)] for table in (raw, cells))
    if raw.empty:
        raise ValueError(f"{path}: wanted a row for each test clip, got none")
    lines, rows = cells.index.to_numpy() + 2, cells.reset_index(drop=True)
    words = pd.concat([rows["label"], rows["predicted"]])
    are_numbers = words.map(lambda word: _NUMBER.fullmatch(word) is not None).to_numpy()
    numeric = are_numbers.any()
    for at, (word, is_number) in enumerate(zip(words, are_numbers, strict=True)):
        wrong = not word or word.casefold() == "nan" or not word.isprintable()
        if wrong or (numeric and not is_number):
            line = lines[at % len(rows)]
            got = repr(word) if word else "a blank"
            wanted = "a label and an answer in each row"
            raise ValueError(
                f"{path}: wanted {wanted}, got {got} in row {line}; all must be numbers, or all words"
            )
    classes = class_names(raw)
    if numeric:
        values = words.map(lambda word: int(word.partition(".")[0])).to_numpy(dtype=np.int64)
        numbers, classes = _number_classes(path, values, classes)
        codes = values - numbers[0]
    else:
        numbers, classes = None, classes or sorted(set(words), key=natural_key)
        alike = {word.casefold(): word for word in classes}
        other = sorted(word for word in set(words) if alike.get(word.casefold(), word) != word)
        if other:
            raise ValueError(
                f"{path}: wanted one spelling of each class, got {alike[other[0].casefold()]} and {other[0]}"
            )
        unknown = sorted(set(words) - set(classes))
        if unknown:
            raise ValueError(f"{path}: wanted classes of {', '.join(classes)}, got {', '.join(unknown[:5])}")
        codes = words.map({name: number for number, name in enumerate(classes)}).to_numpy(dtype=np.int64)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"{path}: wanted two or more classes, got {', '.join(classes[:5])}")
    rows["label"], rows["predicted"] = codes.reshape(2, -1)
    given = {name for name in NAMES if name in raw}
    for name in set(NAMES) - given:
        rows[name] = ""
    return Answers(rows, classes, given, numbers)


def _number_classes(path: Path, values: np.ndarray, named: list[str]) -> tuple[list[int], list[str]]:
    """The number of each class, in order, and its name: 0, 1, ..., or from 1 where no 0 is there."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= MOST_CLASSES:
        raise ValueError(
            f"{path}: wanted labels from 0 to {MOST_CLASSES - 1}, got {low if low < 0 else high}"
        )
    if named and high >= len(named):
        raise ValueError(f"{path}: wanted labels 0..{len(named) - 1}, got {high}")
    if named:
        return list(range(len(named))), named
    numbers = list(range(0 if low == 0 else 1, high + 1))
    return numbers, [str(number) for number in numbers]


COLUMNS = ("dataset", "subject", "clip", "onset", "fold", "label", "predicted")


def class_names(predictions: pd.DataFrame) -> list[str]:
    """Names of the classes 0..K - 1, from the columns p_<class name>."""
    return [str(column)[2:] for column in predictions.columns if str(column).startswith("p_")]


def read_text_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a csv with these columns, more allowed, every cell as str: subject "007" stays itself.

    ValueError names the file and what is wrong with it: not a csv, a missing column, more cells than columns.
    """
    wanted = f"{path}: wanted a csv with columns {', '.join(columns)}"
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{wanted}, got: {str(error).strip()}") from error
    missing = [column for column in columns if column not in raw.columns]
    if missing:
        raise ValueError(f"{wanted}; missing: {', '.join(missing)}")
    if not isinstance(raw.index, pd.RangeIndex):  # pandas takes a cell too many in every row for row names
        raise ValueError(
            f"{wanted}, got rows of more cells than the {len(raw.columns)} columns of the header"
        )
    return raw.fillna("")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a predictions csv: columns as this module describes, names as str, all others numbers.

    ValueError names the file, the row (a line number where no cell has a line break; the header is row 1) and
    the column: a missing column, fewer than two classes, no rows, an empty name, a cell that is no whole
    number, a label that is no class, a probability outside 0..1, a clip that occurs twice.
    """
    raw = read_text_table(path, COLUMNS)
    classes = class_names(raw)
    if len(classes) < 2:
        raise ValueError(f"{path}: wanted two or more columns p_<class name>, got {len(classes)}")
    if raw.empty:
        raise ValueError(f"{path}: wanted a row for each test clip, got none")
    for column in ("dataset", "subject", "clip", "fold"):
        _raise_at_first(path, raw[column], raw[column] == "", "a name")
    table = raw.copy()
    table["onset"] = _whole_numbers(path, raw["onset"], None)
    for column in ("label", "predicted"):
        table[column] = _whole_numbers(path, raw[column], len(classes))
    for column in (f"p_{name}" for name in classes):
        values = pd.to_numeric(raw[column], errors="coerce").astype(np.float64)
        # A float32 softmax may end one rounding above 1.
        _raise_at_first(path, raw[column], ~values.between(0.0, 1.0 + 1e-6), "a probability from 0 to 1")
        table[column] = values
    twice = table.duplicated(subset=list(KEY))
    _raise_at_first(path, raw["clip"], twice, "each (dataset, subject, clip, onset) once")
    return table


def _whole_numbers(path: Path, cells: pd.Series, below: int | None) -> pd.Series:
    wanted = "a whole number" if below is None else f"a whole number from 0 to {below - 1}"
    good = cells.str.fullmatch(r"-?[0-9]{1,18}")
    _raise_at_first(path, cells, ~good, wanted)
    values = cells.astype(np.int64)
    if below is not None:
        _raise_at_first(path, cells, ~values.between(0, below - 1), wanted)
    return values


def _raise_at_first(path: Path, cells: pd.Series, bad: pd.Series, wanted: str) -> None:
    if bad.any():
        at = int(np.argmax(bad.to_numpy()))
        got = f"row {at + 2}, column {cells.name}: wanted {wanted}, got {cells.iloc[at]!r}"
        raise ValueError(f"{path}: {got}")
