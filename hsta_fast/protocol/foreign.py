"""Predictions of other programs: a table with columns under any usual names, or arrays of numpy."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..clips import natural_key
from .columns import ArgumentError, Table, pick_table
from .predictions import LABELS, NAMES, Predictions, check_cells, units_in
from .tables import is_array, read_array, read_tables, texts

FLAGS = ("label", "predicted", "subject", "fold")  # the columns that audit has a flag for
MAX_CLASSES = 1000  # a larger label is taken for a mistake, not for a class
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(?:\.0*)?")


def load_predictions(
    path: Path,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    required: Sequence[str] = (),
) -> Predictions:
    """Read the predictions that any program wrote. Only label, predicted and `required` are required.

    Args:
        path: a table as `tables.read_tables` reads it, or an array of numpy (.npy): integers or texts
            (clips, 2), label and predicted; or with named fields; or one of the two, the other in `columns`.
        columns: label, predicted, subject or fold -> its column, by default found by its usual names (see
            `columns.pick_table`); or the path of a .npy file with one value per row, in the same order.
            predicted may also be floats (clips, K), the scores of K classes; the largest is the prediction.
        classes: the K class names in the order of their numbers; by default those of the columns p_<class>.
        required: which of dataset, subject, clip, onset and fold there must be.

    Labels and predictions are numbers or class names: both the same, or any with class names given. 2.0 is 2.
    Numbers are 0..K-1; without a 0, and if K is not known to be larger, 1..K. All other columns are text.

    Raises:
        ArgumentError: `classes` holds one name, or one twice; `columns` names a column that is not there.
        ValueError: a missing column, no rows, too few classes or an invalid cell. The message names the file
            and, for a cell, the column and the row in the file.
    """
    if classes and (len(set(classes)) < max(2, len(classes)) or "" in classes):
        raise ArgumentError(f"--classes expected two or more different names, got {','.join(classes)!r}")
    if units := units_in(path):
        got = f"the action units {', '.join(units)}: audit and evaluate score them"
        raise ValueError(f"{path}: expected one class a clip, got {got}")
    chosen = dict(columns or {})
    arrays = {name: Path(value) for name, value in chosen.items() if value.lower().endswith(".npy")}
    chosen = {name: value for name, value in chosen.items() if name not in arrays}
    table, num_scores = _read(path, chosen, arrays)
    rows = table.rows
    if rows.empty:
        raise ValueError(f"{path}: expected one row per test clip, got no rows")
    given = {name for name in NAMES if name in rows and (rows[name] != "").any()}
    if missing := [name for name in required if name not in given]:
        wanted = f"the columns {' and '.join(required)}"
        raise ValueError(f"{path}: expected {wanted}, missing: {', '.join(missing)}")
    as_in_file = {name: rows[name].rename(table.source.get(name, name)) for name in {*given, *LABELS}}
    for name in sorted(given & {"subject", "fold"}):
        check_cells(path, as_in_file[name], as_in_file[name] == "", "a name in every row, or in none")
    probabilities = [str(column)[2:] for column in rows if str(column).startswith("p_")]
    named = [*classes] or (probabilities if len(probabilities) > 1 else [])
    if num_scores is not None and named and len(named) != num_scores:
        raise ValueError(
            f"{arrays.get('predicted', path)}: expected scores of {len(named)} classes, got {num_scores}"
        )
    if num_scores is not None and not named:
        named = [str(number) for number in range(num_scores)]
    cells = {name: as_in_file[name] for name in LABELS}
    codes, class_names, numbers = _codes(path, cells, named, words_first=bool(classes))
    if not 2 <= len(class_names) <= MAX_CLASSES:
        got = f"{len(class_names)}: {', '.join(class_names[:5])}"
        raise ValueError(f"{path}: expected 2 to {MAX_CLASSES} classes, got {got}")
    blank = {name: "" for name in NAMES if name not in given}
    rows = rows.assign(**codes, **blank).reset_index(drop=True)
    guessed = {name: column for name, column in table.source.items() if name not in (column, *chosen)}
    return Predictions(rows, class_names, given, numbers, guessed, table.unused)


def _read(path: Path, chosen: dict[str, str], arrays: dict[str, Path]) -> tuple[Table, int | None]:
    """The table, with the columns that arrays hold, and the number of classes that have scores, if any."""
    num_scores = None
    if is_array(path):
        own, num_scores = _columns_of(path, read_array(path), arrays)
        frame = pd.DataFrame(own, dtype=object)
        frame.index = pd.RangeIndex(-1, len(frame) - 1)  # there is no header: the first row is row 1
        tables = {"": frame}
    else:
        tables = read_tables(path)
    required, optional = ([name for name in names if name not in arrays] for names in (LABELS, NAMES))
    table = pick_table(path, tables, required, optional, chosen, flags=FLAGS)
    for name, file in arrays.items():
        array = read_array(file)
        if name == "predicted" and array.ndim == 2:
            values, num_scores = _largest(file, array), array.shape[1]
        else:
            values = _texts(file, array)
        if len(values) != len(table.rows):
            raise ValueError(f"{file}: expected {len(table.rows)} rows, as in {path}, got {len(values)}")
        table.rows[name] = values
    return table, num_scores


def _columns_of(
    path: Path, array: np.ndarray, arrays: Mapping[str, Path]
) -> tuple[dict[str, list[str]], int | None]:
    """The columns of an array, and the number of classes that have scores, if it holds scores."""
    if array.dtype.names is not None and array.ndim == 1:
        return {name: _texts(path, array[name]) for name in array.dtype.names}, None
    missing = [name for name in LABELS if name not in arrays]
    if missing == ["predicted"] and array.ndim == 2:
        return {"predicted": _largest(path, array)}, array.shape[1]
    if len(missing) == 1 and array.ndim == 1:
        return {missing[0]: _texts(path, array)}, None
    if missing == [*LABELS] and array.ndim == 2 and array.shape[1] == 2:
        return {name: _texts(path, array[:, place]) for place, name in enumerate(LABELS)}, None
    raise ValueError(
        f"{path}: expected an array (clips, 2) of labels and predictions, or --label FILE.npy beside it, got "
        f"{array.dtype} {array.shape}"
    )


def _texts(path: Path, array: np.ndarray) -> list[str]:
    if array.ndim != 1:
        raise ValueError(f"{path}: expected one value per row, got {array.dtype} {array.shape}")
    try:
        return texts(array)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _largest(path: Path, scores: np.ndarray) -> list[str]:
    """The number of the class with the largest score in each row."""
    if scores.dtype.kind != "f" or scores.shape[1] < 2 or not np.isfinite(scores).all():
        got = f"{scores.dtype} {scores.shape}" + (", not all finite" if scores.dtype.kind == "f" else "")
        raise ValueError(f"{path}: expected finite floats (clips, K), scores of K classes, got {got}")
    return [str(number) for number in scores.argmax(1)]


def _codes(
    path: Path, cells: Mapping[str, pd.Series], named: list[str], *, words_first: bool
) -> tuple[dict[str, np.ndarray], list[str], list[int] | None]:
    """The int64 columns label and predicted, the class names, and the class numbers of the file, if any.

    named: the class names, if they are known.
    words_first: whether cells that are all in `named`, such as "1", are names and not numbers.
    """
    is_number = {name: column.str.fullmatch(_NUMBER).to_numpy(dtype=bool) for name, column in cells.items()}
    any_number = any(numeric.any() for numeric in is_number.values())
    expected = "a number in every row, or a class name in every row"
    values, words = {}, {}
    for name, column in cells.items():
        wrong = np.array([not w or w.casefold() == "nan" or not w.isprintable() for w in column])
        by_number = is_number[name].any() if named else any_number
        if by_number and not (words_first and set(column) <= set(named)):
            more = "" if named or is_number[name].any() else " (--classes says which number has which name)"
            check_cells(path, column, wrong | ~is_number[name], expected + more)
            values[name] = np.array([int(word.partition(".")[0]) for word in column], dtype=np.int64)
        else:
            check_cells(path, column, wrong, expected)
            words[name] = column
    classes = named or sorted({word for column in words.values() for word in column}, key=natural_key)
    numbers = None
    if values:
        numbers, classes = _numbered_classes(path, np.concatenate([*values.values()]), named)
    _check_names(path, {word for column in words.values() for word in column}, classes)
    code = {word: number for number, word in enumerate(classes)}
    codes = {name: column.map(code).to_numpy(dtype=np.int64) for name, column in words.items()}
    codes |= {name: own - (numbers[0] if numbers else 0) for name, own in values.items()}
    return codes, classes, numbers


def _numbered_classes(path: Path, values: np.ndarray, named: list[str]) -> tuple[list[int], list[str]]:
    """The number and the name of each class. Without a 0, the first is 1, unless names tell otherwise."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= MAX_CLASSES:
        got = low if low < 0 else high
        raise ValueError(f"{path}: expected labels from 0 to {MAX_CLASSES - 1}, got {got}")
    if not named:
        numbers = list(range(min(low, 1), high + 1))
        return numbers, [str(number) for number in numbers]
    first = int(low > 0 and high == len(named))
    if high - first >= len(named):
        raise ValueError(f"{path}: expected labels from 0 to {len(named) - 1}, got {high}")
    return list(range(first, first + len(named))), named


def _check_names(path: Path, words: set[str], classes: Sequence[str]) -> None:
    spelling = {word.casefold(): word for word in classes}
    if other := sorted(word for word in words if spelling.get(word.casefold(), word) != word):
        both = f"{spelling[other[0].casefold()]} and {other[0]}"
        raise ValueError(f"{path}: expected one spelling of each class, got {both}")
    if unknown := sorted(words - set(classes)):
        names = ", ".join(classes)
        raise ValueError(f"{path}: expected labels among {names}, got {', '.join(unknown[:5])}")
