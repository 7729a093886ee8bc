"""SAMM Long Videos: `SAMM_longvideos/006_1/006_1_0001.jpg`, at any depth, and one table.

As public code reads it (no file was seen): `SAMM_LongVideos_V3_Release.xlsx` has its column names in row 10:
Subject, Filename, Inducement Code, Onset, Apex, Offset, Duration, Type ("Micro - 1/2" or "Macro"), Action
Units and Notes. Filename, 006_1_2, is the subject, the recording and the expression; the frames of 006_1 are
in one folder. An expression with offset 0 ends at its apex. There is no column of emotions.

Assumed: see `assumed` below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .base import (
    AnnotationRow,
    Expression,
    Interpret,
    Reader,
    Rows,
    offset_or_apex,
)
from .folders import ANY_NUMBERED, ClipFolders, FrameFolders, in_order

DATASET = "samm_long"
COLUMNS = Columns(
    required=("Subject", "Filename", "Onset", "Apex", "Offset", "Type", "Action Units"),
    optional=("Inducement Code", "Duration", "Notes"),
    unread=(),
)
_RECORDING = re.compile(r"[0-9]{3}_[0-9]{1,3}")


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version -> the first folder of recordings; {} where there are none."""
    return in_order({"long videos": ClipFolders(root, _RECORDING).parents[:1]}, ["long videos"])


def expression_of(text: str) -> Expression:
    """The kind of expression in a cell of the column Type; ValueError for an unknown one."""
    kinds: tuple[Expression, ...] = ("micro", "macro")
    for kind in kinds:
        if text.casefold().startswith(kind):
            return kind
    raise ValueError(f"type expected Micro - 1/2 or Macro, got {text!r}")


def clip_id(text: str) -> str:
    """The name of an expression, "006_1_2" from "6_1_2"; ValueError for anything else."""
    match = re.fullmatch(r"0*([0-9]{1,3})_([0-9]{1,3})_([0-9]{1,3})", text)
    if match is None:
        raise ValueError(f"filename expected subject, recording and expression such as 006_1_2, got {text!r}")
    return f"{int(match[1]):03d}_{match[2]}_{match[3]}"


def _recording(clip: str) -> str:
    """The recording, "006_1", of an expression, "006_1_2"."""
    return clip.rpartition("_")[0]


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    frames, recordings = FrameFolders(root, ANY_NUMBERED), ClipFolders(root, _RECORDING)
    rows = annotated_rows(root, annotation, COLUMNS)
    rows.remarks += recordings.choose_copy(_recording(row["Filename"]) for _, row in rows)
    rows.remarks.append("SAMM Long Videos: the table has no emotions, --labels objective7 needs none")

    def interpret(row: Row) -> AnnotationRow:
        kind = expression_of(row["Type"])
        clip = clip_id(row["Filename"]) if kind in expressions else row["Filename"]
        subject, _, _ = clip.partition("_")
        if kind in expressions and subject != row["Subject"].removesuffix(".0").zfill(3):
            raise ValueError(f"filename expected a clip of subject {row['Subject']}, got {clip!r}")
        offset, notes = offset_or_apex(row["Offset"], row["Apex"])
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=clip,
            onset=row["Onset"],
            apex=row["Apex"],
            offset=offset,
            frames=lambda onset, last: frames.frames(recordings.only(_recording(clip)), onset, last),
            expression=kind,
            emotion=None,
            action_units=row["Action Units"],
            notes=notes,
        )

    return rows, interpret


READER = Reader(
    name=DATASET,
    title="SAMM Long Videos",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["Onset"]),
    labels="objective7",
    frames="SAMM_longvideos/006_1/006_1_0001.jpg",
    assumed=(
        "the columns and folders are as public code reads them, any type that begins with Micro is a "
        "micro-expression, and an expression with offset 0 ends at its apex"
    ),
)
