"""The MEGC 2019 composite: CASME II, SAMM and SMIC-HS in three classes.

Its rules are the label set "megc2019" in `sets.py`. The official list, `combined_3class_gt.csv` (dataset,
subject, clip, label 0 negative, 1 positive, 2 surprise), wins over the rules if it is in a folder of the data
or given by its path. It has no column names; copies of it may have them, and further columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..readers import casme2, samm, smic
from ..readers.annotation import Columns, missing_columns, rows_of
from ..readers.sheets import Sheets, read_text
from .sets import LABEL_SETS, THREE_CLASSES, ClipName, LabelSet, dataset_id

OFFICIAL_LIST = "combined_3class_gt.csv"

# Clips of each class (negative, positive, surprise) and subjects, as published. CAS(ME)3 is not part of it.
PUBLISHED = {
    "casme2": ((88, 32, 25), 24),
    "samm": ((92, 26, 15), 28),
    "smic": ((70, 51, 43), 16),
}
_COLUMNS = Columns(
    required=("dataset", "subject", "clip", "label"),
    aliases={"sub": "subject", "filename": "clip", "filenameo": "clip", "class": "label", "gt": "label"},
)
_IDS: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "casme2": lambda subject, clip: (casme2.subject_id(subject), clip),
    "samm": lambda subject, clip: (samm.subject_id(subject), samm.clip_id(clip)),
    "smic": lambda subject, clip: (smic.subject_id(subject), smic.clip_id(clip)),
}


def composite_labels(roots: Sequence[Path] = ()) -> LabelSet:
    """The label set of the composite, with the official list if one of the folders holds it.

    Raises ValueError if two of them hold it, or it cannot be read.
    """
    found = [root / OFFICIAL_LIST for root in roots if os.path.isfile(root / OFFICIAL_LIST)]
    if len(found) > 1:
        raise ValueError(f"expected one official list, got {' and '.join(map(str, found))}")
    return official_labels(found[0]) if found else LABEL_SETS["megc2019"]


def official_labels(path: Path) -> LabelSet:
    """The composite's label set with the official list at `path`; ValueError naming the first wrong row."""
    listed: dict[ClipName, str] = {}
    for number, row in _official_rows(path, read_text(path)):
        try:
            name, label = _official_row(row)
        except ValueError as error:
            raise ValueError(f"{path} row {number}: {error}") from error
        if listed.setdefault(name, label) != label:
            raise ValueError(f"{path} row {number}: expected one label of {'/'.join(name)}, got two")
    if not listed:
        raise ValueError(f"{path}: expected the clips of the composite, got no row")
    return replace(LABEL_SETS["megc2019"], listed=listed)


def is_official_list(sheets: Sheets) -> bool:
    """Whether a text file has the official list's columns, or no names and a first row of it."""
    return not missing_columns(sheets, _COLUMNS) or any(map(_is_official_row, map(_first, sheets.values())))


def _official_rows(path: Path, sheets: Sheets) -> Iterator[tuple[int, Sequence[str]]]:
    """(number in the file, dataset, subject, clip and label) of each row."""
    if not missing_columns(sheets, _COLUMNS):
        for row in rows_of(path, sheets, _COLUMNS)[0]:
            yield row.number, [row[column] for column in _COLUMNS.required]
        return
    first = next(iter(sheets.values()))
    rows = next((rows for rows in sheets.values() if _is_official_row(_first(rows))), first)
    yield from ((number, row) for number, row in enumerate(rows, start=1) if any(row))


def _first(rows: Sequence[Sequence[str]]) -> Sequence[str]:
    """The first row with a cell."""
    return next((row for row in rows if any(row)), ())


def _is_official_row(row: Sequence[str]) -> bool:
    try:
        _official_row(row)
    except ValueError:
        return False
    return True


def _official_row(row: Sequence[str]) -> tuple[ClipName, str]:
    if len(row) != 4:
        raise ValueError(f"expected dataset, subject, clip and label, got {len(row)} cells")
    dataset = dataset_id(row[0])
    if dataset not in _IDS:
        raise ValueError(f"dataset expected casme2, samm or smic, got {row[0]!r}")
    if row[3] not in ("0", "1", "2"):
        raise ValueError(f"label expected 0, 1 or 2, got {row[3]!r}")
    return (dataset, *_IDS[dataset](row[1], row[2])), THREE_CLASSES[int(row[3])]
