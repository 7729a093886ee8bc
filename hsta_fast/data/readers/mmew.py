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
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name, padded_subject
from .folders import ANY_NUMBERED, ClipFolders, FrameFolders, in_order

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
_EMOTIONS = {"happiness", "anger", "surprise", "disgust", "fear", "sadness", "others"}
_CLIP = re.compile(r"S?([0-9]{1,4})-[0-9]{1,4}-[0-9]{1,6}", re.IGNORECASE)


subject_id = partial(padded_subject, prefix="S", width=2)


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version -> the first folder of an emotion; {} where there are none."""
    return in_order({"frames": _clips(root).parents[:1]}, ["frames"])


def _clips(root: Path) -> ClipFolders:
    """The micro-expressions; the folders beside, of macro-expressions, hold single images."""
    return ClipFolders(root, _CLIP, skip=lambda parent: "macro" in parent.casefold())


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    frames, clips = FrameFolders(root, ANY_NUMBERED), _clips(root)
    rows = annotated_rows(root, annotation, COLUMNS)
    emotions = _EMOTIONS | {row["Estimated Emotion"].casefold() for _, row in rows}

    def copy_of(parent: str) -> str:
        """The folder of the emotions, or the clips' own folder where there are none."""
        above, _, name = parent.rpartition("/")
        return above if name.casefold() in emotions else parent

    rows.remarks += clips.choose_copy((row["Filename"] for _, row in rows), copy_of)

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

    return rows, interpret


def _identify(row: Row) -> tuple[str, str, str, str]:
    subject = row["Subject"]
    with suppress(ValueError):  # an unreadable subject is named as it is
        subject = subject_id(subject)
    return DATASET, subject, row["Filename"], row["OnsetFrame"]


READER = Reader(
    name=DATASET,
    title="MMEW",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=_identify,
    labels="emotion7",
    frames="Micro_Expression/surprise/S06-07-001/1.jpg",
    assumed="a clip's name begins with its subject, and the folder of an emotion is named as in the table",
)
