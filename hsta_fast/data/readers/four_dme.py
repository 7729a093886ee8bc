"""4DME, grey micro-expressions: `<sub_ID>/<fold_name>/<frame>.jpg`, at any depth, and one table.

Known: the columns sub_ID, fold_name, fold, Emotion, Onset, Apex, Offset, AUs, eye blink, and five flags:
Positive, Negative, Surprise, Repression and Others. A clip can have several flags. In AUs, (k) marks an
uncertain unit: the objective class of such a clip is unknown.

Assumed: see `assumed` below. A clip with several flags has the emotion "positive+surprise", which the label
sets 4dme and emotion3 drop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name
from .folders import ANY_NUMBERED, FolderNames, FrameFolders, find_subjects

DATASET = "4dme"
FLAGS = ("Positive", "Negative", "Surprise", "Repression", "Others")
COLUMNS = Columns(
    required=("sub_ID", "fold_name", "Onset", "Apex", "Offset", "AUs", "Emotion"),
    optional=("fold", "eye blink", *FLAGS),
    unread=(),
)
MANY_FLAGS = "label sets of emotions drop it"


def versions(root: Path) -> dict[str, str]:
    """Version -> folder of the subjects, found by the subjects of the table in `root`; {} without."""
    try:
        folders = _subject_folders(root, annotated_rows(root, None, COLUMNS))
    except ValueError:
        return {}
    return {"grey": folders[0]} if folders else {}


def _subject_folders(root: Path, rows: Rows) -> list[str]:
    """The folders that hold folders of the table's subjects; a number may be padded."""
    subjects = {row["sub_ID"] for _, row in rows} - {""}
    plain = (re.escape(text.lstrip("0")) for text in subjects)
    return find_subjects(root, re.compile(f"0*(?:{'|'.join(plain)})", re.IGNORECASE)) if subjects else []


def _is_set(row: Row, column: str) -> bool:
    return row[column] not in ("", "0")


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    rows = annotated_rows(root, annotation, COLUMNS)
    base = next(iter(_subject_folders(root, rows)), "")
    frames, names = FrameFolders(root, ANY_NUMBERED), FolderNames(root)
    counts = {
        "have an uncertain action unit, (k): their objective class is unknown": sum(
            "(k)" in row["AUs"].casefold() for _, row in rows
        ),
        "are marked as having an eye blink": sum(_is_set(row, "eye blink") for _, row in rows),
    }
    rows.remarks += [f"4DME: {n} of {len(rows)} rows {what}" for what, n in counts.items() if n]

    def interpret(row: Row) -> AnnotationRow:
        subject = names.on_disk(base, folder_name(row, "sub_ID"))
        folder = names.path(base, subject, folder_name(row, "fold_name"))
        flags = [flag.casefold() for flag in FLAGS if _is_set(row, flag)]
        several = f"{len(flags)} flags are set: {', '.join(flags)}"
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=Path(folder).name,
            onset=row["Onset"],
            apex=row["Apex"],
            offset=row["Offset"],
            frames=partial(frames.frames, folder),
            emotion="+".join(flags) or row["Emotion"],
            action_units=row["AUs"],
            notes=((several, MANY_FLAGS),) if len(flags) > 1 else (),
        )

    return rows, interpret


READER = Reader(
    name=DATASET,
    title="4DME",
    columns=COLUMNS,
    versions=versions,
    open=_open,
    identify=lambda row: (DATASET, row["sub_ID"], row["fold_name"], row["Onset"]),
    labels="4dme",
    assumed=(
        "a flag is set where its cell is neither blank nor 0, one flag is the emotion (without one, the cell "
        "of Emotion is), and a frame's name ends in its number"
    ),
)
