"""CAS(ME)3 part A: `root/<Subject>/<Filename>/color/<number>.jpg` and one annotation table in the root.

The table has the columns Subject, Filename, Onset, Apex, Offset, AU and emotion. It may have Objective class
(I..VII) and Expression type (Micro-expression, Macro-expression; without it every row is a micro-expression).
Several clips share one (Subject, Filename) folder. Folders may differ from the table in upper and lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .clips import ClipTable
from .folders import FrameFolders, Names, find_subjects, want_folder
from .rows import MAX_MICRO_FRAMES, Entry, Expression, expression_type, plain, read_entries, want_clips

DATASET = "casme3"
COLUMNS = Columns(
    required=("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "emotion"),
    optional=("Objective class", "Expression type"),
)
_SUBJECT = re.compile(r"spNO\.[0-9]+", re.IGNORECASE)
_NUMBER = re.compile(r"([0-9]{1,15})")


def versions(root: Path) -> dict[str, str]:
    """Version -> folder of the subjects, for what there is."""
    return {"part A": ""} if "" in find_subjects(root, _SUBJECT, depth=0) else {}


def read_casme3(
    root: Path | str,
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """Read the clips of CAS(ME)3, or of anything in its layout, under `root`.

    annotation: the table; default: the one csv or xlsx file in `root` that has the columns.
    expressions: which kinds of row are wanted; the others are passed over.
    strict: raise the first fault instead of listing it.

    Every wanted row becomes one clip of the table or one fault with the action "clip left out".

    Raises ValueError for a missing root, no (or no single) annotation, a missing column, or no usable clip.
    """
    return want_clips(scan(want_folder(root), annotation, expressions, strict=strict))


def scan(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression], *, strict: bool
) -> ClipTable:
    """`read_casme3`, possibly without a clip."""
    folders, names = FrameFolders(root, _NUMBER), Names(root, str.casefold)

    def interpret(row: Row) -> Entry:
        kind = expression_type(row["Expression type"])
        subject, clip = row["Subject"], row["Filename"]
        if kind in expressions:
            subject = names.on_disk("", plain(row, "Subject"))
            clip = names.on_disk(subject, plain(row, "Filename"))
        folder = f"{subject}/{clip}/color"
        return Entry(
            dataset=DATASET,
            subject=subject,
            clip=clip,
            onset=row["Onset"],
            apex=row["Apex"],
            offset=row["Offset"],
            frames=lambda onset, offset: folders.frames(folder, onset, offset),
            expression=kind,
            emotion=row["emotion"],
            action_units=row["AU"],
            objective=row["Objective class"],
            longest=MAX_MICRO_FRAMES if kind == "micro" else None,
        )

    return read_entries(
        root,
        annotated_rows(root, annotation, COLUMNS),
        interpret,
        identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["Onset"]),
        expressions=expressions,
        strict=strict,
    )
