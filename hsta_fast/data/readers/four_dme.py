"""4DME, grey micro-expressions: `<sub_ID>/<fold_name>/<frame>.jpg`, at any depth, and one table.

Known: the columns sub_ID, fold_name, fold, Emotion, Onset, Apex, Offset, AUs, eye blink, and five flags:
Positive, Negative, Surprise, Repression and Others. A clip can have several flags. In AUs, (k) marks an
uncertain unit: the objective class of such a clip is unknown. Colour and depth have folders of the same
names; they are read only where there are no grey frames.

Assumed: see `assumed` below. A clip with several flags has the emotion "positive+surprise", which the label
sets 4dme and emotion3 drop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .annotation import Columns, Row, annotated_rows, integer
from .base import AnnotationRow, Expression, Interpret, Reader, Rows, folder_name
from .folders import ANY_NUMBERED, FolderNames, FrameFolders, find_subjects, in_order, is_derived

DATASET = "4dme"
FLAGS = ("Positive", "Negative", "Surprise", "Repression", "Others")
COLUMNS = Columns(
    required=("sub_ID", "fold_name", "Onset", "Apex", "Offset", "AUs", "Emotion"),
    optional=("fold", "eye blink", *FLAGS),
    unread=(),
)
MANY_FLAGS = "label sets of emotions drop it"
EMOTION_OF_FLAG = "emotion taken from the flag"
GREY, NOT_GREY = "grey", "colour or depth"
_GREY, _OTHER = (re.compile(words, re.IGNORECASE) for words in ("gr[ae]y", "depth|rgb|colou?r|kinect"))
_UNSET = ("", "no", "n", "false", "-")


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version -> folders of the subjects, found by the subjects of the table; {} without."""
    try:
        return _subject_folders(root, annotated_rows(root, annotation, COLUMNS))
    except ValueError:
        return {}


def _subject_folders(root: Path, rows: Rows) -> dict[str, list[str]]:
    """Version -> folders that hold folders of the table's subjects; a number may be padded.

    Grey frames have folders of the same names as colour and depth. A folder whose name says neither is taken
    as grey if there is none that says so.
    """
    subjects = {row["sub_ID"] for _, row in rows} - {""}
    if not subjects:
        return {}
    plain = (re.escape(text.lstrip("0")) for text in subjects)
    found: dict[bool, list[str]] = {}
    for folder in find_subjects(root, re.compile(f"0*(?:{'|'.join(plain)})", re.IGNORECASE)):
        name = _name(root, folder)
        found.setdefault(_GREY.search(name) is None and _OTHER.search(name) is not None, []).append(folder)
    grey = sorted(found.get(False, []), key=lambda folder: (is_derived(folder), _GREY.search(folder) is None))
    return in_order({GREY: grey, NOT_GREY: found.get(True, [])}, (GREY, NOT_GREY))


def _name(root: Path, folder: str) -> str:
    """A folder's path below the root; of the root, where the subjects lie if it is given itself, the name."""
    return folder or os.path.basename(os.path.realpath(root))


def _is_set(row: Row, column: str) -> bool:
    return row[column].casefold() not in _UNSET and integer(row[column]) != 0


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    rows = annotated_rows(root, annotation, COLUMNS)
    version, (base, *_) = next(iter(_subject_folders(root, rows).items()), (GREY, [""]))
    if version == NOT_GREY:
        rows.remarks.append(f"4DME: frames expected grey, got {_name(root, base)} alone, which is read")
    frames, names = FrameFolders(root, ANY_NUMBERED), FolderNames(root)
    counts = {
        "have an uncertain action unit, (k): their objective class is unknown": sum(
            "(k)" in row["AUs"].casefold() for _, row in rows
        ),
        "are marked as having an eye blink": sum(_is_set(row, "eye blink") for _, row in rows),
    }
    rows.remarks += [f"4DME: {n} of {len(rows)} rows {what}" for what, n in counts.items() if n]

    def interpret(row: Row) -> AnnotationRow:
        subject = names.on_disk(base, folder_name(row, "sub_ID"))
        folder = names.path(base, subject, folder_name(row, "fold_name"))
        flags = [flag.casefold() for flag in FLAGS if _is_set(row, flag)]
        emotion, notes = row["Emotion"].casefold(), []
        if len(flags) > 1:
            notes.append((f"{len(flags)} flags are set: {', '.join(flags)}", MANY_FLAGS))
        elif flags and emotion in map(str.casefold, FLAGS) and emotion != flags[0]:
            notes.append((f"emotion {emotion}, flag {flags[0]}", EMOTION_OF_FLAG))
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=Path(folder).name,
            onset=row["Onset"],
            apex=row["Apex"],
            offset=row["Offset"],
            frames=partial(frames.frames, folder),
            emotion="+".join(flags) or emotion,
            action_units=row["AUs"],
            notes=tuple(notes),
        )

    return rows, interpret


READER = Reader(
    name=DATASET,
    title="4DME",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["sub_ID"], row["fold_name"], row["Onset"]),
    labels="4dme",
    assumed=(
        "a flag is set where its cell is neither blank, 0, no, n, false nor -, one flag is the emotion "
        "(without one, the cell of Emotion is), and a frame's name ends in its number"
    ),
)
