"""A user's own clips: one csv or xlsx table in the root, frames in folders or in video files below it.

Columns `subject`, `clip` and `path`; optional `emotion`, `dataset` (a word, by default "csv"), `onset`,
`apex`, `offset`, `action units`, `objective class` (I..VII or 1..7) and `expression type` (micro, macro).
`path`, relative to the root, is a folder of images whose names end in the frame number, or a video file,
whose frames are 0, 1, 2, ... A blank onset is the first frame, a blank offset the last, a blank apex the
middle one. In a video, onset, apex and offset may be times with a unit ("1.25 s", "850 ms", "0:01.250").
The optional column `fps` holds the camera's frames a second, which a video's own rate may hide. Where the two
differ, a time could mean two frames: frame numbers are asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from ...files import as_on_disk, inside
from ..clips import AS_BLANK
from ..frames.video import VIDEO_TYPES
from .annotation import Columns, Row, annotated_rows
from .base import SIMILAR, AnnotationRow, Expression, Interpret, Reader, Rows, expression_type
from .folders import ANY_NUMBERED, FrameFolders
from .videos import VideoFiles, seconds

DATASET = "csv"
COLUMNS = Columns(
    required=("subject", "clip", "path"),
    optional=(
        "emotion",
        "dataset",
        "onset",
        "apex",
        "offset",
        "action units",
        "objective class",
        "expression type",
        "fps",
    ),
    filled=("emotion",),
    below=False,  # paths in it are relative to the root
    aliases={
        **dict.fromkeys(("au", "aus", "actionunit", "facs"), "action units"),
        **{"objectiveclasses": "objective class", "emotions": "emotion", "estimatedemotion": "emotion"},
        **{f"{name}{word}": name for name in ("onset", "apex", "offset") for word in ("frame", "f")},
        "framerate": "fps",
    },
    similar=SIMILAR,
    unread=(),
    names_all=True,
)

# 100,000 are more than an hour at 25 frames a second.
MAX_FRAMES = 100_000


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    folders, videos = FrameFolders(root, ANY_NUMBERED), VideoFiles(root)

    def interpret(row: Row) -> AnnotationRow:
        kind = expression_type(row["expression type"])
        path = as_on_disk(_relative(row["path"]), root).as_posix()
        is_video = path.lower().endswith(VIDEO_TYPES)
        fps, notes = _fps(row["fps"])
        onset, apex, offset = row["onset"], row["apex"], row["offset"]
        if is_video:
            onset, offset = (videos.frame(path, cell, fps) for cell in (onset, offset))
            onset, offset = onset or "0", offset or str(videos.count(path) - 1)
            with suppress(ValueError):  # an unusable apex is a fault that does not leave the clip out
                apex = videos.frame(path, apex, fps)
        else:
            _check_folder(root, path, onset, offset)
            if not onset or not offset:
                numbers = sorted(folders.all_files(path))
                onset, offset = onset or str(numbers[0]), offset or str(numbers[-1])
        return AnnotationRow(
            dataset=_word(row, "dataset") if row["dataset"] else DATASET,
            subject=_word(row, "subject"),
            clip=_word(row, "clip"),
            onset=onset,
            apex=apex or None,
            offset=offset,
            frames=partial(videos.frames if is_video else folders.frames, path),
            expression=kind,
            emotion=row.get("emotion"),
            action_units=row["action units"],
            objective=row["objective class"],
            longest=MAX_FRAMES,
            rate=lambda onset, offset: fps or (videos.rate(path, onset, offset) if is_video else None),
            notes=notes,
        )

    return annotated_rows(root, annotation, COLUMNS), interpret


def _relative(text: str) -> str:
    """A path inside the root, with forward slashes; ValueError where it leads elsewhere."""
    path = PurePosixPath(text.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text or ":" in path.parts[0]:
        raise ValueError(f"path expected a folder or video inside the root, got {text!r}")
    return str(path)


def _check_folder(root: Path, path: str, onset: str, offset: str) -> None:
    """Raise ValueError for a file that is no video by its name, and for times: images have none."""
    if os.path.isfile(inside(root, path)):  # False for a name that is too long
        types = ", ".join(VIDEO_TYPES)
        raise ValueError(f"path expected a folder of images or a video ({types}), got the file {path!r}")
    for cell in (onset, offset):
        if seconds(cell) is not None:
            raise ValueError(
                f"{path}: onset and offset expected frame numbers, got {cell!r}: times need a video"
            )


def _fps(cell: str) -> tuple[float | None, tuple[tuple[str, str], ...]]:
    """The frame rate in a cell, None if it has none, and the note on an unreadable one."""
    if not cell:
        return None, ()
    with suppress(ValueError):
        if 0 < float(cell) < math.inf:
            return float(cell), ()
    return None, ((f"fps expected a positive number, got {cell!r}", AS_BLANK),)


def _word(row: Row, column: str) -> str:
    if not row[column] or not row[column].isprintable():
        raise ValueError(f"{column} expected printable text, got {row[column]!r}")
    return row[column]


READER = Reader(
    name=DATASET,
    title="clips of a plain table",
    columns=COLUMNS,
    folders=lambda root, annotation: {"folders and videos": [""]},
    open=_open,
    identify=lambda row: (row["dataset"] or DATASET, row["subject"], row["clip"], row["onset"]),
    labels="emotion7",
)
