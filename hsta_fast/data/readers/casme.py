"""CASME: `sub01/EP01_5/EP01_5-12.jpg` (raw) or `sub01/EP01_5/reg_EP01_5-12.jpg` (cropped), and one table.

Known: the columns Subject, Filename, Emotion, OnsetF, ApexF1, ApexF2, OffsetF, and two without a name; some
rows do not fit the folders on disk (onset and offset in three, offset in two). As public code reads it: the
subject is a number, the units are in a column AU, and a frame is named after its clip.

Assumed: see `assumed` below. Of two versions the cropped one is read, as for CASME II.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name
from .folders import ANY_NUMBERED, FolderNames, FrameFolders, find_subjects, posix_join, subfolders

DATASET = "casme"
COLUMNS = Columns(
    required=("Subject", "Filename", "OnsetF", "ApexF1", "OffsetF", "Emotion"),
    optional=("ApexF2", "AU"),
    aliases=dict.fromkeys(("actionunit", "actionunits", "aus"), "au"),
    unread=(),
)
_SUBJECT = re.compile(r"sub[0-9]{1,4}", re.IGNORECASE)
_OF_CASME2 = re.compile(r"(?:reg_)?img_?[0-9]")  # whose folders have the same names


def versions(root: Path) -> dict[str, str]:
    """Version ("cropped", "raw") -> folder of the subjects, the version to read first at the front."""
    found: dict[str, str] = {}
    for folder in find_subjects(root, _SUBJECT):
        image = _first_image(root, folder)
        if image and not _OF_CASME2.match(image):
            found.setdefault("cropped" if image.startswith("reg_") else "raw", folder)
    return {version: found[version] for version in ("cropped", "raw") if version in found}


def _first_image(root: Path, folder: str) -> str:
    """The name of the first file of a clip, in lower case; "" if there is none."""
    for subject in filter(_SUBJECT.fullmatch, subfolders(root, folder)):
        for clip in subfolders(root, posix_join(folder, subject)):
            for path in sorted((root / folder / subject / clip).glob("*.*")):
                return path.name.lower()
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
    frames, names = FrameFolders(root, ANY_NUMBERED), FolderNames(root)
    rows = annotated_rows(root, annotation, COLUMNS)
    second = sum(bool(row["ApexF2"]) for _, row in rows)
    if second:
        rows.remarks.append(
            f"CASME: {second} of {len(rows)} rows have a second apex (ApexF2); the first, ApexF1, is used"
        )

    def interpret(row: Row) -> AnnotationRow:
        subject = subject_id(row["Subject"])
        folder = names.path(base, subject, folder_name(row, "Filename"))
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=Path(folder).name,
            onset=row["OnsetF"],
            apex=row["ApexF1"],
            offset=row["OffsetF"],
            frames=partial(frames.frames, folder),
            emotion=row["Emotion"],
            action_units=row["AU"],
        )

    return rows, interpret


READER = Reader(
    name=DATASET,
    title="CASME",
    columns=COLUMNS,
    versions=versions,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["OnsetF"]),
    labels="casme_8",
    frames="sub01/EP01_5/EP01_5-12.jpg",
    assumed="the units are in a column AU, a frame's name ends in its number, and ApexF1 is the apex",
)
