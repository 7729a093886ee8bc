"""CAS(ME)^2: `rawpic/s15/15_0101disgustingteeth/img001.jpg`, and one workbook of three sheets.

As public code reads it (no file was seen): the first sheet of `CAS(ME)^2code_final(Updated).xlsx` has no row
of column names. Its columns are the participant (1, 2, ...), the expression (anger1_1), onset, apex, offset,
action units (4+10+14+15, or NULL), the emotion (negative, positive, surprise, others), the type
(micro-expression, macro-expression) and the self-reported emotion. The second sheet gives the subject's
folder (s15) of each participant, in its second and third column; the third sheet the code (0401) of each
video (anger1), in its first and second. A recording's folder is named after a number, the code and a word;
one of s19 has another number than 19. An expression with offset 0 ends at its apex.

Assumed: see `assumed` below. `selectedpic`, which has a layout of its own, is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .annotation import AnnotatedRows, Columns, Row, find_annotation, rows_of
from .base import (
    AnnotationRow,
    Expression,
    Interpret,
    Reader,
    Rows,
    expression_type,
    offset_or_apex,
)
from .folders import ANY_NUMBERED, FrameFolders, find_subjects, in_order, posix_join, subfolders
from .sheets import read_sheets
from .tree import NoFolderError

DATASET = "casme_squared"
COLUMNS = Columns(
    required=(
        "Participant",
        "Expression",
        "Onset",
        "Apex",
        "Offset",
        "Action Units",
        "Emotion",
        "Expression type",
    ),
    optional=("Self-reported emotion",),
    headerless={
        "Participant": re.compile(r"[0-9]{1,3}"),
        "Expression": re.compile(r"[A-Za-z]+[0-9]+_[0-9]+"),
        "Expression type": re.compile(r"m[ia]cro-expression", re.IGNORECASE),
    },
)
_SUBJECT = re.compile(r"s[0-9]{1,3}", re.IGNORECASE)
_RECORDING = re.compile(r"[0-9]{1,3}_([0-9]{4})(?![0-9]).*")


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version ("raw", "cropped") -> folders of the subjects; see `Reader`."""
    found: dict[str, list[str]] = {}
    for folder in find_subjects(root, _SUBJECT):
        subjects = [posix_join(folder, name) for name in filter(_SUBJECT.fullmatch, subfolders(root, folder))]
        names = [name for subject in subjects for name in subfolders(root, subject)]
        if any(map(_RECORDING.fullmatch, names)) and "select" not in folder.casefold():
            found.setdefault("cropped" if "crop" in folder.casefold() else "raw", []).append(folder)
    return in_order(found, ("raw", "cropped"))


def _names(sheets: Sequence[Sequence[Sequence[str]]], place: int, key: int, value: int) -> dict[str, str]:
    """The second (`place` 1) or third sheet as a table of names: column `key` -> column `value`."""
    rows = sheets[place] if place < len(sheets) else []
    return {row[key]: row[value] for row in rows if len(row) > max(key, value) and row[key]}


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    base = READER.base(root)
    frames = FrameFolders(root, ANY_NUMBERED)
    path = find_annotation(root, COLUMNS) if annotation is None else Path(annotation)
    sheets = read_sheets(path)
    found, _ = rows_of(path, sheets, COLUMNS)
    rows = AnnotatedRows((f"{path.name} row {row.number}", row) for row in found)
    subjects = _names([*sheets.values()], 1, key=2, value=1)
    codes = _names([*sheets.values()], 2, key=1, value=0)
    if not subjects or not codes:
        raise ValueError(f"{path}: expected names of subjects and videos in sheets 2 and 3, got none")

    def names_of(row: Row) -> tuple[str, str]:
        """The names of the folders of the row's subject and recording."""
        video, _, _ = row["Expression"].partition("_")
        subject = subjects.get(row["Participant"], "")
        if not _SUBJECT.fullmatch(subject) or video not in codes:
            raise ValueError(
                f"expected a participant with a folder such as s15 in sheet 2, and a video of sheet 3, got "
                f"{row['Participant']!r} and {row['Expression']!r}"
            )
        return subject, _recording(root, posix_join(base, subject), codes[video].zfill(4))

    def interpret(row: Row) -> AnnotationRow:
        kind = expression_type(row["Expression type"])
        subject, recording = row["Participant"], row["Expression"]
        if kind in expressions:
            subject, recording = names_of(row)
        offset, notes = offset_or_apex(row["Offset"], row["Apex"])
        units = row["Action Units"]
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=recording,
            onset=row["Onset"],
            apex=row["Apex"],
            offset=offset,
            frames=partial(frames.frames, posix_join(base, subject, recording)),
            expression=kind,
            emotion=row["Emotion"],
            action_units="" if units.casefold() == "null" else units,
            notes=notes,
        )

    return rows, interpret


def _recording(root: Path, subject: str, code: str) -> str:
    """The name of a subject's folder with this code of a video; ValueError if that is not exactly one."""
    matches = [_RECORDING.fullmatch(name) for name in subfolders(root, subject)]
    found = [match[0] for match in matches if match is not None and match[1] == code]
    if not found:
        raise NoFolderError(
            posix_join(subject, code), f"{subject}: expected a folder of video {code}, got none"
        )
    if len(found) > 1:
        raise ValueError(f"{subject}: expected one folder of video {code}, got {', '.join(found)}")
    return found[0]


READER = Reader(
    name=DATASET,
    title="CAS(ME)^2",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Participant"], row["Expression"], row["Onset"]),
    labels="casme_squared_4",
    frames="rawpic/s15/15_0101disgustingteeth/img001.jpg",
    assumed=(
        "sheets and folders are as public code reads them, an expression with offset 0 ends at its apex, and "
        "cropped frames lie as the raw ones do"
    ),
)
