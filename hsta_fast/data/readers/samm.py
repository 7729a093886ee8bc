"""SAMM: `006/006_1_2/006_05562.jpg`, the width of the number differs between clips, and one table.

The table, `SAMM_Micro_FACS_Codes_v2.xlsx`, has its column names in row 14: Subject, Filename, Inducement
Code, Onset Frame, Apex Frame, Offset Frame, Duration, Micro, Action Units, Estimated Emotion, Objective
Classes (1..7) and Notes. The subjects' folders and the table may lie in folders below the root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name, padded_subject
from .folders import FolderNames, FrameFolders, find_subjects, in_order, posix_join, subfolders

DATASET = "samm"
COLUMNS = Columns(
    required=(
        "Subject",
        "Filename",
        "Onset Frame",
        "Apex Frame",
        "Offset Frame",
        "Action Units",
        "Estimated Emotion",
    ),
    optional=("Objective Classes",),
    aliases={"objectiveclass": "objective classes"},
    unread=("Inducement Code", "Duration", "Micro", "Notes"),
)
_SUBJECT = re.compile(r"[0-9]{3}")
_CLIP = re.compile(r"[0-9]{1,4}_[0-9]+_[0-9]+")
_NUMBER = re.compile(r"(?:[0-9]+_)?([0-9]{1,15})")


subject_id = partial(padded_subject, prefix="", width=3)


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version -> folders of the subjects; {} where there are none."""

    def has_clips(folder: str) -> bool:
        subjects = filter(_SUBJECT.fullmatch, subfolders(root, folder))
        inner = (name for subject in subjects for name in subfolders(root, posix_join(folder, subject)))
        return any(map(_CLIP.fullmatch, inner))

    return in_order({"grey frames": [*filter(has_clips, find_subjects(root, _SUBJECT))]}, ["grey frames"])


def clip_id(text: str) -> str:
    """The clip's folder name, its first number padded to three digits: "006_1_2" from "6_1_2"."""
    first, bar, rest = text.partition("_")
    return f"{int(first):03d}_{rest}" if bar and re.fullmatch(r"[0-9]{1,4}", first) else text


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    base = READER.base(root)
    frames, names = FrameFolders(root, _NUMBER), FolderNames(root)

    def interpret(row: Row) -> AnnotationRow:
        subject, clip = subject_id(row["Subject"]), clip_id(folder_name(row, "Filename"))
        if _CLIP.fullmatch(clip) and not clip.startswith(f"{subject}_"):
            raise ValueError(f"filename expected a clip of subject {subject}, got {clip!r}")
        folder = names.path(base, subject, clip)
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=clip,
            onset=row["Onset Frame"],
            apex=row["Apex Frame"],
            offset=row["Offset Frame"],
            frames=partial(frames.frames, folder),
            emotion=row["Estimated Emotion"],
            action_units=row["Action Units"],
            objective=row["Objective Classes"],
        )

    return annotated_rows(root, annotation, COLUMNS), interpret


READER = Reader(
    name=DATASET,
    title="SAMM",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["Onset Frame"]),
    labels="samm_5",
    frames="006/006_1_2/006_05562.jpg",
)
