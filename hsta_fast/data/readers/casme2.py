"""CASME II: `sub01/EP02_01f/img46.jpg` (raw) or `Cropped/sub01/EP02_01f/reg_img46.jpg`, and a coding table.

The table (`CASME2-coding-20140508.xlsx`, `CASME2-coding-20190701.xlsx`) has the columns Subject (a number),
Filename, OnsetFrame, ApexFrame, OffsetFrame, Action Units and Estimated Emotion, and two without a name. A
column Objective Class is read if there is one. The subjects' folders and the table may lie in folders below
the root. If both versions are there, the cropped one is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name
from .folders import FolderNames, FrameFolders, near_subjects, posix_join, subfolders

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
            objective=row["Objective Class"],
        )

    return annotated_rows(root, annotation, COLUMNS), interpret


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
