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

from .annotation import Columns, Row, annotated_rows, integer
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name, padded_subject
from .folders import ANY_NUMBERED, FolderNames, FrameFolders, find_subjects, first_image, in_order

DATASET = "casme"
COLUMNS = Columns(
    required=("Subject", "Filename", "OnsetF", "ApexF1", "OffsetF", "Emotion"),
    optional=("ApexF2", "AU"),
    aliases=dict.fromkeys(("actionunit", "actionunits", "aus"), "au"),
    unread=(),
)
SECOND_APEX = "apex taken from ApexF2"
_APEXES = ("ApexF1", "ApexF2")
_SUBJECT = re.compile(r"sub[0-9]{1,4}", re.IGNORECASE)
_OF_CASME2 = re.compile(r"(?:reg_)?img_?[0-9]")  # whose folders have the same names


subject_id = partial(padded_subject, prefix="sub", width=2)


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version ("cropped", "raw") -> folders of the subjects; see `Reader`."""
    found: dict[str, list[str]] = {}
    for folder in find_subjects(root, _SUBJECT):
        image = first_image(root, folder, _SUBJECT)
        if image and not _OF_CASME2.match(image):
            found.setdefault("cropped" if image.startswith("reg_") else "raw", []).append(folder)
    return in_order(found, ("cropped", "raw"))


def _apex(row: Row) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The cell of the apex and its notes: ApexF1, or ApexF2 where only that is in onset..offset."""
    onset, first, second, offset = map(integer, map(row.__getitem__, ("OnsetF", *_APEXES, "OffsetF")))
    if onset is None or second is None or offset is None or not onset <= second <= offset:
        return row["ApexF1"], ()
    if first is not None and onset <= first <= offset:
        return row["ApexF1"], ()
    what = f"apex expected a frame in {onset}..{offset}, got {row['ApexF1']!r} in ApexF1"
    return row["ApexF2"], ((what, SECOND_APEX),)


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    base = READER.base(root)
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
        apex, notes = _apex(row)
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=Path(folder).name,
            onset=row["OnsetF"],
            apex=apex,
            offset=row["OffsetF"],
            frames=partial(frames.frames, folder),
            emotion=row["Emotion"],
            action_units=row["AU"],
            notes=notes,
        )

    return rows, interpret


READER = Reader(
    name=DATASET,
    title="CASME",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["OnsetF"]),
    labels="casme_8",
    frames="sub01/EP01_5/EP01_5-12.jpg",
    assumed="the units are in a column AU, a frame's name ends in its number, and ApexF1 is the apex",
)
