"""DFME: `DFME_train/sub0001_01/00109.png`, at any depth, and one table for each part.

Known: the columns Subject (sub0001), Filename (sub0001_01), OnsetFrame, ApexFrame, OffsetFrame, Emotion
(seven words, contempt among them), EmotionId, Fps (500, 300 or 200, by row) and AU. In AU, AD38 and M58 are
no action units. The test parts are published without emotions. Frame numbers, not times, are used, so Fps
is not needed; half a second has 250 frames at most.

Assumed: see `assumed` below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name, padded_subject
from .folders import ANY_NUMBERED, ClipFolders, FrameFolders, in_order

DATASET = "dfme"
COLUMNS = Columns(
    required=("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame"),
    optional=("Emotion", "EmotionId", "Fps", "AU"),
    telling=("Emotion",),
    aliases=dict.fromkeys(("actionunit", "actionunits", "aus"), "au"),
    unread=(),
)
_CLIP = re.compile(r"sub([0-9]{4,6})_[0-9]{1,4}", re.IGNORECASE)


subject_id = partial(padded_subject, prefix="sub", width=4)


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version -> the first folder of clips; {} where there are none."""
    return in_order({"frames": ClipFolders(root, _CLIP).parents[:1]}, ["frames"])


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    frames, clips = FrameFolders(root, ANY_NUMBERED), ClipFolders(root, _CLIP)
    rows = annotated_rows(root, annotation, COLUMNS)
    rows.remarks += clips.choose_copy(row["Filename"] for _, row in rows)
    without = sum(not row["Emotion"] for _, row in rows)
    if rows and rows[0][1].get("Emotion") is None:
        rows.remarks.append("DFME: the table has no column Emotion; the label set dfme_7 drops all clips")
    elif without:
        rows.remarks.append(
            f"DFME: {without} of {len(rows)} rows have no emotion, as in the published test parts; the label "
            "set dfme_7 drops their clips"
        )

    def interpret(row: Row) -> AnnotationRow:
        subject, clip = subject_id(row["Subject"]), folder_name(row, "Filename")
        match = _CLIP.fullmatch(clip)
        if match is not None and subject_id(match[1]) != subject:
            raise ValueError(f"filename expected a clip of subject {subject}, got {clip!r}")
        folder = clips.only(clip)
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=Path(folder).name,
            onset=row["OnsetFrame"],
            apex=row["ApexFrame"],
            offset=row["OffsetFrame"],
            frames=partial(frames.frames, folder),
            emotion=row["Emotion"] or None,
            action_units=row["AU"],
        )

    return rows, interpret


READER = Reader(
    name=DATASET,
    title="DFME",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["OnsetFrame"]),
    labels="dfme_7",
    frames="DFME_train/sub0001_01/00109.png",
    assumed="a clip's name begins with its subject",
)
