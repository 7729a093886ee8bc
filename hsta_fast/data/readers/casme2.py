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
from .annotation import AnnotatedRows, Columns, Row, annotated_rows, find_annotation, read_annotation
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name
from .folders import FolderNames, FrameFolders, near_subjects, posix_join, subfolders
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
_NUMBER = re.compile(r"(?:reg_)?img_?([0-9]{1,15})", re.IGNORECASE)


def versions(root: Path) -> dict[str, str]:
    """Version ("cropped", "raw") -> folder of the subjects, the version to read first at the front."""
    found: dict[str, str] = {}
    without_images: dict[str, str] = {}
    for folder in near_subjects(root, _SUBJECT):
        first = _first_image(root, folder)
        if first:
            found.setdefault("cropped" if first.lower().startswith("reg_") else "raw", folder)
        else:
            without_images.setdefault("cropped" if "crop" in folder.lower() else "raw", folder)
    found = found or without_images
    return {version: found[version] for version in ("cropped", "raw") if version in found}


def _first_image(root: Path, folder: str) -> str:
    """The name of the first image of a clip below `folder`, "" if there is none."""
    for subject in filter(_SUBJECT.fullmatch, subfolders(root, folder)):
        for clip in subfolders(root, posix_join(folder, subject)):
            for path in sorted((root / folder / subject / clip).glob("*img*")):
                return path.name
    return ""


def subject_id(text: str) -> str:
    """The subject's folder name, "sub01", from "1", "01" or "sub01"; ValueError for anything else."""
    match = re.fullmatch(r"(?:sub)?0*([0-9]{1,4})(?:\.0)?", text.casefold())
    if match is None:
        raise ValueError(f"subject expected a number such as 1, or sub01, got {text!r}")
    return f"sub{int(match[1]):02d}"


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    base = next(iter(versions(root).values()), "")
    folders, names = FrameFolders(root, _NUMBER), FolderNames(root)
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
            frames=partial(folders.frames, folder),
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
        if path.name != coding.name:
            with suppress(ValueError):  # another kind of table
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
    versions=versions,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["OnsetFrame"]),
    labels="casme2_5",
    frames="sub01/EP02_01f/img46.jpg",
)
