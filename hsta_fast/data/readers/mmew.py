"""MMEW: `Micro_Expression/<emotion>/S06-07-001/1.jpg`, and one table, `MMEW_Micro_Exp.xlsx`.

Known: the columns are those of CASME II (Subject, which is S06 or 6, Filename, OnsetFrame, ApexFrame,
OffsetFrame, Action Units, Estimated Emotion), and remarks; some rows have a wrong apex or offset.

Assumed: see `assumed` below. A clip in the folder of another emotion is read, with the emotion of the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name
from .folders import ANY_NUMBERED, ClipFolders, FrameFolders

DATASET = "mmew"
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
    optional=("remarks",),
    telling=("remarks",),
    unread=(),
)
EMOTION_OF_TABLE = "emotion taken from the table"
_CLIP = re.compile(r"S?([0-9]{1,4})-[0-9]{1,4}-[0-9]{1,6}", re.IGNORECASE)


def versions(root: Path) -> dict[str, str]:
    """Version -> the first folder of an emotion; {} where there are none."""
    folders = _clips(root).parents
    return {"frames": folders[0]} if folders else {}


def _clips(root: Path) -> ClipFolders:
    """The micro-expressions; the folders beside, of macro-expressions, hold single images."""
    return ClipFolders(root, _CLIP, skip=lambda parent: "macro" in parent.casefold())


def subject_id(text: str) -> str:
    """The subject, "S06", from "6", "06" or "S06"; ValueError for anything else."""
    match = re.fullmatch(r"s?0*([0-9]{1,4})(?:\.0)?", text.casefold())
    if match is None:
        raise ValueError(f"subject expected a number such as 6, or S06, got {text!r}")
    return f"S{int(match[1]):02d}"


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    frames, clips = FrameFolders(root, ANY_NUMBERED), _clips(root)

    def interpret(row: Row) -> AnnotationRow:
        subject, clip = subject_id(row["Subject"]), folder_name(row, "Filename")
        emotion = row["Estimated Emotion"].casefold()
        match = _CLIP.fullmatch(clip)
        if match is not None and subject_id(match[1]) != subject:
            raise ValueError(f"filename expected a clip of subject {subject}, got {clip!r}")
        folder = clips.only(clip, prefer=lambda path: Path(path).parent.name.casefold() == emotion)
        there = Path(folder).parent.name
        notes = []
        if emotion and there.casefold() != emotion:
            notes.append((f"emotion {emotion!r} of a clip in the folder {there!r}", EMOTION_OF_TABLE))
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=Path(folder).name,
            onset=row["OnsetFrame"],
            apex=row["ApexFrame"],
            offset=row["OffsetFrame"],
            frames=partial(frames.frames, folder),
            emotion=emotion,
            action_units=row["Action Units"],
            notes=tuple(notes),
        )

    return annotated_rows(root, annotation, COLUMNS), interpret


def _identify(row: Row) -> tuple[str, str, str, str]:
    subject = row["Subject"]
    with suppress(ValueError):  # an unreadable subject is named as it is
        subject = subject_id(subject)
    return DATASET, subject, row["Filename"], row["OnsetFrame"]


READER = Reader(
    name=DATASET,
    title="MMEW",
    columns=COLUMNS,
    versions=versions,
    open=_open,
    identify=_identify,
    labels="emotion7",
    frames="Micro_Expression/surprise/S06-07-001/1.jpg",
    assumed="a clip's name begins with its subject, and the folder of an emotion is named as in the table",
)
