"""CAS(ME)3 part A: `root/<Subject>/<Filename>/color/<number>.jpg` and one annotation table in the root.

The table has the columns Subject, Filename, Onset, Apex, Offset and AU. It may have emotion, Objective class
(I..VII) and Expression type (Micro-expression, Macro-expression; without it every row is a micro-expression).
Macro-expressions may have a table of their own with MaE or macro in its name, such as
`cas(me)3_part_A_MaE_label_JpgIndex_v2_emotion.xlsx`; in it AU may be missing if emotion is there, and the
columns of subject and recording may be called sub and seq.
Several clips share one (Subject, Filename) folder. Folder names may differ from the table in case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..clips import ClipTable
from .annotation import (
    AnnotatedRows,
    Columns,
    Row,
    annotated_rows,
    find_annotation,
    missing_columns,
)
from .base import (
    MAX_MICRO_FRAMES,
    SIMILAR,
    AnnotationRow,
    Expression,
    Interpret,
    Reader,
    Rows,
    check_not_empty,
    expression_type,
    folder_name,
)
from .folders import FolderNames, FrameFolders, check_folder, find_subjects
from .sheets import Sheets, annotation_files, read_sheets

DATASET = "casme3"
_MACRO = re.compile(r"^(?!.*micro).*(?<![a-z])(?:mae(?![a-z])|macro)", re.IGNORECASE)
COLUMNS = Columns(
    required=("Subject", "Filename", "Onset", "Apex", "Offset", "AU"),
    optional=("Objective class", "Expression type", "emotion"),
    filled=("emotion",),
    aliases={
        **{"sub": "subject", "seq": "filename", "aus": "au", "actionunits": "au"},
        **{"objectiveclasses": "objective class", "emotions": "emotion", "estimatedemotion": "emotion"},
    },
    similar=SIMILAR,
    companion=_MACRO,
)
_WITHOUT_UNITS = replace(
    COLUMNS,
    required=(*(name for name in COLUMNS.required if name != "AU"), "emotion"),
    optional=("Objective class", "Expression type", "AU"),
)
_SUBJECT = re.compile(r"spNO\.[0-9]+", re.IGNORECASE)
_NUMBER = re.compile(r"([0-9]{1,15})")


def versions(root: Path) -> dict[str, str]:
    """Version -> folder of the subjects; {} where there are none."""
    return {"part A": ""} if "" in find_subjects(root, _SUBJECT, depth=0) else {}


def read_casme3(
    root: Path | str,
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """Read the clips of CAS(ME)3, or of anything in its layout, under `root`.

    annotation: the table; default: the one csv or xlsx file in `root` that has the columns, and the table of
        macro-expressions next to it.
    expressions: the kinds of expression to read; rows of other kinds are skipped.
    strict: raise the first fault instead of listing it.

    Every row that is not skipped becomes one clip of the table or one fault with the action "clip left out".

    Raises ValueError for a missing root, no annotation or several, a missing column, or no usable clip.
    """
    return check_not_empty(READER.scan(check_folder(root), annotation, expressions, strict=strict))


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    folders, names = FrameFolders(root, _NUMBER), FolderNames(root)

    def interpret(row: Row) -> AnnotationRow:
        kind = expression_type(row["Expression type"])
        subject, clip = row["Subject"], row["Filename"]
        if kind in expressions:
            subject = names.on_disk("", folder_name(row, "Subject"))
            clip = names.on_disk(subject, folder_name(row, "Filename"))
        folder = f"{subject}/{clip}/color"
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=clip,
            onset=row["Onset"],
            apex=row["Apex"],
            offset=row["Offset"],
            frames=partial(folders.frames, folder),
            expression=kind,
            emotion=row.get("emotion"),
            action_units=row["AU"],
            objective=row["Objective class"],
            longest=MAX_MICRO_FRAMES if kind == "micro" else None,
        )

    return _rows(root, annotation, expressions), interpret


def _rows(root: Path, annotation: Path | str | None, expressions: Sequence[Expression]) -> AnnotatedRows:
    """The rows of the annotation and, if asked for, of the table of macro-expressions next to it."""
    path = find_annotation(root, COLUMNS) if annotation is None else Path(annotation)
    if _MACRO.search(path.stem):
        return _macro_rows(root, path)
    rows = annotated_rows(root, path, COLUMNS)
    if "macro" in expressions:
        named = [table for table in annotation_files(root) if _MACRO.search(table.stem)]
        tables = [table for table in named if not missing_columns(*_macro_table(table))]
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise ValueError(f"{root}: expected one table of macro-expressions, got {names}")
        for table in tables:
            macro = _macro_rows(root, table)
            rows = AnnotatedRows([*rows, *macro], [*rows.remarks, *macro.remarks])
    return rows


def _macro_table(path: Path) -> tuple[Sheets, Columns]:
    """The sheets of a table of macro-expressions and its columns: it has action units, emotions, or both."""
    sheets = read_sheets(path)
    return sheets, _WITHOUT_UNITS if missing_columns(sheets, COLUMNS) else COLUMNS


def _macro_rows(root: Path, path: Path) -> AnnotatedRows:
    """The rows of a table of macro-expressions; a row without an expression type is one."""
    rows = annotated_rows(root, path, _macro_table(path)[1])
    return AnnotatedRows(
        (
            (where, replace(row, cells={**row.cells, "expression type": row["Expression type"] or "macro"}))
            for where, row in rows
        ),
        rows.remarks,
    )


READER = Reader(
    name=DATASET,
    title="CAS(ME)3",
    columns=COLUMNS,
    versions=versions,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["Onset"]),
    labels="emotion7",
)
