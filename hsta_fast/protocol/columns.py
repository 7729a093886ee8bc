"""Which columns of anybody's table are meant: by their usual names, or as the caller names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .tables import read_tables

# What programs call these columns, as `_plain` writes it.
USUAL_NAMES = {
    "label": (
        "label y_true truth true labels ytrue y true_label label_true ground_truth groundtruth gt gt_label "
        "target targets actual actual_label emotion estimated_emotion class"
    ),
    "predicted": (
        "predicted y_pred pred prediction predictions preds ypred pred_label label_pred predicted_label "
        "predicted_class output outputs y_hat yhat"
    ),
    "dataset": "dataset data_set database",
    "subject": (
        "subject sub subject_id subjects subj sub_id subjectid subject_name participant participant_id "
        "person person_id"
    ),
    "clip": "clip filename file_name clip_name clip_id video video_name video_id",
    "onset": "onset onset_frame onsetframe",
    "offset": "offset offset_frame offsetframe",
    "video": (
        "video recording video_name video_id recording_name recording_id videoname path file file_name "
        "filename clip clip_name clip_id"
    ),
    "class": (
        "class emotion estimated_emotion label predicted predicted_class prediction predictions pred y_pred"
    ),
    "fold": "fold folds fold_id fold_number cv cv_fold kfold test_fold split",
    "expression": "expression expression_type",
    "part": "part",
}
_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


class ArgumentError(ValueError):
    """An argument that is wrong whatever the predictions are, or that names a column which is not there."""


@dataclass(frozen=True)
class Table:
    """A table with some columns under our names.

    Attributes:
        rows: its cells as text; a row's number in the file is its index + 2. A column that has one of our
            names, but was not meant, is left out.
        source: our name -> the column of the file.
        unused: our name -> columns of the file that could have been meant and say something else.
    """

    rows: pd.DataFrame
    source: dict[str, str]
    unused: dict[str, list[str]]


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the table of a file in which these columns are found; see `pick_table`."""
    return pick_table(path, read_tables(path), required, optional, {})


def pick_table(
    path: Path,
    tables: Mapping[str, pd.DataFrame],
    required: Sequence[str],
    optional: Sequence[str],
    chosen: Mapping[str, str],
    *,
    flags: Sequence[str] = (),
) -> Table:
    """The one of several tables that has the columns, under our names.

    Args:
        path: their file, for messages.
        tables: sheet -> table, as `tables.read_tables` reads them.
        required: names of `USUAL_NAMES`. A column of exactly our name comes first, then any other
            usual name. Upper and lower case, and which of space, _, - and . separates, make no difference.
        optional: names that may be missing.
        chosen: our name -> the column that is meant instead.
        flags: names for which the caller has a flag: several columns for one of them are an error. For any
            other name the likeliest is taken.

    Raises:
        ValueError: a required column is missing; several columns or sheets may be meant. One line naming the
            file and the flag that decides.
    """
    errors: list[ValueError] = []
    found: dict[str, dict[str, str]] = {}
    for sheet, table in tables.items():
        try:
            place = f"{path} sheet {sheet!r}" if sheet else str(path)
            found[sheet] = _find(place, table, required, optional, chosen, flags)
        except ValueError as error:
            errors.append(error)
    if not found:
        raise errors[0] if errors else ValueError(f"{path}: expected a table, got nothing")
    if len(found) > 1:
        raise ValueError(f"{path}: expected these columns in one sheet, got them in {', '.join(found)}")
    [(sheet, source)] = found.items()
    dropped = [column for column in source if column in tables[sheet] and column not in source.values()]
    rows = tables[sheet].drop(columns=dropped)
    guessed = [name for name in flags if name in source and name not in chosen]
    others = {name: _other_columns(tables[sheet], name, source) for name in guessed}
    unused = {name: columns for name, columns in others.items() if columns}
    return Table(rows.rename(columns={column: name for name, column in source.items()}), source, unused)


def _other_columns(table: pd.DataFrame, name: str, source: Mapping[str, str]) -> list[str]:
    """The columns with a usual name of `name` that tell its rows apart in another way than the one taken."""
    taken = pd.factorize(table[source[name]])[0]
    usual = [c for c in table if c not in source.values() and _plain(str(c)) in USUAL_NAMES[name].split()]
    return [str(column) for column in usual if (pd.factorize(table[column])[0] != taken).any()]


def _find(
    place: str,
    table: pd.DataFrame,
    required: Sequence[str],
    optional: Sequence[str],
    chosen: Mapping[str, str],
    flags: Sequence[str],
) -> dict[str, str]:
    """Our name -> the column of the table."""
    columns = [str(column) for column in table.columns]
    listed = ", ".join(columns) or "none"
    source = {}
    for name, wanted in chosen.items():
        same = [c for c in columns if c == wanted] or [c for c in columns if _plain(c) == _plain(wanted)]
        if len(same) != 1:
            raise ArgumentError(f"{place}: --{name} expected one of the columns {listed}, got {wanted!r}")
        source[name] = same[0]
    for name in (*required, *optional):
        if name in source:
            continue
        free = [column for column in columns if column not in source.values()]
        usual = USUAL_NAMES[name].split()
        meant = [c for c in free if c == name] or [c for c in free if _plain(c) == name]
        meant = meant or [c for c in free if _plain(c) in usual]
        if len(meant) > 1 and name not in flags:
            meant = sorted(meant, key=lambda column: usual.index(_plain(column)))[:1]
        if len(meant) > 1:
            raise ValueError(
                f"{place}: expected one column for {name}, got {' and '.join(meant)}: --{name} says which"
            )
        if meant:
            source[name] = meant[0]
        elif name in required:
            flag = f"; --{name} names it" if name in flags else ""
            named = f"{name} (or {', '.join(usual[1:4])})"
            raise ValueError(f"{place}: expected a column {named}, got {listed}{flag}")
    if "fold" in source and "fold" not in chosen:
        _check_folds(place, source["fold"], table[source["fold"]])
    return source


def _check_folds(place: str, column: str, cells: pd.Series) -> None:
    """Refuse rows that were trained on: a column `split` may tell the parts of one split, not folds."""
    words = {cell.casefold() for cell in cells}
    if words <= _PARTS and words - {"test", "testing"}:
        raise ValueError(
            f"{place}: expected the rows of the test part alone, got {', '.join(sorted(words))} in the "
            f"column {column}; where these are folds, --fold {column} says so"
        )


def _plain(column: str) -> str:
    """A column's name for comparison: lower case, words separated by _."""
    words = "".join(letter if letter.isalnum() else " " for letter in column.casefold())
    return "_".join(words.split())
