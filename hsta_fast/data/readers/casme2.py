"""CASME II: `sub01/EP02_01f/img46.jpg` (raw) or `Cropped/sub01/EP02_01f/reg_img46.jpg`, and a coding table.

The table (`CASME2-coding-20140508.xlsx`, `CASME2-coding-20190701.xlsx`) has the columns Subject (a number),
Filename, OnsetFrame, ApexFrame, OffsetFrame, Action Units and Estimated Emotion, and two without a name. A
column Objective Class is read if there is one, or else a table beside the coding with the columns Subject,
Filename and Objective Class (`CASME2-ObjectiveClasses.xlsx`). The subjects' folders and the table may lie in
folders below the root. If both versions are there, the cropped one is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...clips import words_key
from .annotation import (
    MAX_TABLE_BYTES,
    AnnotatedRows,
    Columns,
    Row,
    annotated_rows,
    find_annotation,
    read_annotation,
)
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name, padded_subject
from .folders import IMAGE_NAME, FolderNames, FrameFolders, first_image, in_order, near_subjects
from .sheets import annotation_files

DATASET = "casme2"
COLUMNS = Columns(
    required=(
        "Subject",
        "Filename",
        "OnsetFrame",
        "ApexFrame",
        "OffsetFrame",
        "Action Units",
        "Estimated Emotion",
    ),
    optional=("Objective Class",),
    aliases={"objectiveclasses": "objective class"},
    unread=(),
)
_CLASSES = replace(
    COLUMNS, required=("Subject", "Filename", "Objective Class"), optional=("OnsetFrame", "ApexFrame")
)
_SUBJECT = re.compile(r"sub[0-9]{1,4}", re.IGNORECASE)
_IMAGE = re.compile(f"(?=.*img){IMAGE_NAME.pattern}", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"(?:reg_)?img_?([0-9]{1,15})", re.IGNORECASE)


subject_id = partial(padded_subject, prefix="sub", width=2)


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version ("cropped", "raw") -> folders of the subjects; see `Reader`."""
    found: dict[str, list[str]] = {}
    without_images: dict[str, list[str]] = {}
    for folder in near_subjects(root, _SUBJECT):
        first = first_image(root, folder, _SUBJECT, _IMAGE)
        if first:
            found.setdefault("cropped" if first.startswith("reg_") else "raw", []).append(folder)
        else:
            version = "cropped" if "crop" in folder.lower() else "raw"
            without_images.setdefault(version, []).append(folder)
    return in_order(found or without_images, ("cropped", "raw"))


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    base = READER.base(root)
    frames, names = FrameFolders(root, _NUMBER), FolderNames(root)
    coding = find_annotation(root, COLUMNS) if annotation is None else Path(annotation)
    rows = annotated_rows(root, coding, COLUMNS)
    objective = _objective_classes(coding, rows)

    def interpret(row: Row) -> AnnotationRow:
        subject, clip = subject_id(row["Subject"]), folder_name(row, "Filename")
        folder = names.path(base, subject, clip)
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=Path(folder).name,
            onset=row["OnsetFrame"],
            apex=row["ApexFrame"],
            offset=row["OffsetFrame"],
            frames=partial(frames.frames, folder),
            emotion=row["Estimated Emotion"],
            action_units=row["Action Units"],
            objective=objective(row),
        )

    return rows, interpret


def _objective_classes(coding: Path, rows: AnnotatedRows) -> Callable[[Row], str]:
    """The cell with the objective class of a row of the coding, "" if there is none.

    It is the coding's own, or that of the one table of classes beside it, which the rows then remark.
    """
    if any(row.get("Objective Class") is not None for _, row in rows):
        return lambda row: row["Objective Class"]
    tables: dict[str, list[Row]] = {}
    for path in annotation_files(coding.parent):
        with suppress(ValueError, OSError):  # another kind of table
            if path.name != coding.name and path.stat().st_size <= MAX_TABLE_BYTES:
                tables[path.name] = read_annotation(path, _CLASSES)
    # Another coding that has classes is read only if there is no table of classes alone.
    alone = {name: table for name, table in tables.items() if not any(row.get("ApexFrame") for row in table)}
    tables = alone or tables
    if len(tables) != 1:
        if tables:
            rows.remarks.append(f"{' and '.join(tables)} have objective classes, so neither is read")
        return lambda row: ""
    ((name, table),) = tables.items()
    by_onset = any(row.get("OnsetFrame") for row in table)

    def key(row: Row) -> tuple[str, ...]:
        return _spelled(row["Subject"]), words_key(row["Filename"]), row["OnsetFrame"] if by_onset else ""

    classes: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in table:
        classes[key(row)].add(row["Objective Class"])

    def objective(row: Row) -> str:
        found = classes.get(key(row), set())
        return next(iter(found)) if len(found) == 1 else ""

    known = sum(bool(objective(row)) for _, row in rows)
    rows.remarks.append(f"the objective classes of {known} of {len(rows)} rows are those of {name}")
    return objective


def _spelled(subject: str) -> str:
    """The subject's folder name, or the cell itself if it is none."""
    with suppress(ValueError):
        return subject_id(subject)
    return subject


READER = Reader(
    name=DATASET,
    title="CASME II",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["OnsetFrame"]),
    labels="casme2_5",
    frames="sub01/EP02_01f/img46.jpg",
)
