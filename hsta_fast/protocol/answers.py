"""Anybody's predictions: labels and answers as numbers or words, and which clip of whom a row is about."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .folds import natural_key
from .metrics import class_names, read_text_table

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
