"""From what an annotation says to a clip or a fault: the rules that all datasets share.

A reader turns each row into an `Entry`; `read_entries` checks it against the disk. What is wrong with a row
is a `Fault`, never the end of the run:

- an unusable apex (no integer, or outside onset..offset) becomes the middle frame, the clip is kept;
- an unreadable objective class is taken from the action units instead, the clip is kept;
- onset or offset no integer, offset before onset, one frame only, frames missing on disk, a folder or link
  that leads outside the root, no emotion, the (subject, clip, onset) of an earlier clip, or a
  micro-expression of more than `MAX_MICRO_FRAMES`: the clip is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...files import is_plain_name
from ..action_units import objective_class, parse_objective_class
from ..clips import (
    AS_BLANK,
    CLASS_BY_UNITS,
    LEFT_OUT,
    MIDDLE_APEX,
    ClipTable,
    Fault,
    FaultLog,
    brief,
    clip_frame,
)
from .annotation import Columns, Row, integer

Expression = Literal["micro", "macro"]
EXPRESSIONS: tuple[Expression, ...] = ("micro", "macro")
EXPRESSION_TYPES: dict[str, Expression] = {
    "micro-expression": "micro",
    "micro": "micro",
    "macro-expression": "macro",
    "macro": "macro",
}

# A micro-expression lasts about half a second. 600 frames are 3 s at 200 frames a second and more at any
# slower rate: a longer "clip" (the published CAS(ME)3 has one of 3455 frames) is a slip of the annotation.
MAX_MICRO_FRAMES = 600


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an annotation says of one clip, not yet believed; cells as text.

    apex: None where nobody annotated one, which is no fault.
    frames: paths of the frames onset..offset relative to the root; raises ValueError where some are missing.
    longest: most frames that are believed.
    notes: (what, action) of faults found so far, with which the clip is kept.
    also: (onset, what) of further expressions of the row, which are left out.
    """

    dataset: str
    subject: str
    clip: str
    onset: str
    apex: str | None
    offset: str
    frames: Callable[[int, int], tuple[str, ...]]
    expression: Expression = "micro"
    emotion: str
    action_units: str = ""
    objective: str = ""
    longest: int | None = MAX_MICRO_FRAMES
    notes: tuple[tuple[str, str], ...] = ()
    also: tuple[tuple[int | None, str], ...] = ()


Rows = Iterable[tuple[str, Row]]  # each row with the words that say where it is found
Interpret = Callable[[Row], Entry]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One dataset: its annotation's columns, how folders tell its version, and how it is read.

    name: the name in the clip table and on the command line; `title` is the one for people.
    versions: version -> folder of the subjects, the version to read first at the front; {} where no frames
        are found.
    open(root, annotation, expressions): the rows of the copy at `root`, and the function that turns one row
        into an `Entry`. It raises ValueError where the copy cannot be read.
    identify: (dataset, subject, clip, onset) as the cells of a row have them, for a row that `open`'s
        function cannot understand.
    """

    name: str
    title: str
    columns: Columns
    versions: Callable[[Path], dict[str, str]]
    open: Callable[[Path, Path | str | None, Sequence[Expression]], tuple[Rows, Interpret]]
    identify: Callable[[Row], tuple[str, str, str, str]]

    def scan(
        self, root: Path, annotation: Path | str | None, expressions: Sequence[Expression], *, strict: bool
    ) -> ClipTable:
        """The clips, possibly none, and faults of the copy at `root`; ValueError where it cannot be read."""
        rows, interpret = self.open(root, annotation, expressions)
        return read_entries(
            root, rows, interpret, identify=self.identify, expressions=expressions, strict=strict
        )


def read_entries(
    root: Path,
    rows: Rows,
    interpret: Interpret,
    *,
    identify: Callable[[Row], tuple[str, str, str, str]],
    expressions: Sequence[Expression],
    strict: bool,
) -> ClipTable:
    """The clips and faults of `rows`, each with the words that say where it stands; possibly no clip.

    interpret: raises ValueError for a row that cannot be understood.
    identify: what names such a row all the same: (dataset, subject, clip, onset), as its cells have them.
    expressions: which kinds of row are wanted; the others are passed over.
    strict: raise the first fault instead of listing it.

    Every wanted row becomes one clip of the table or one fault with the action `LEFT_OUT`; a further
    expression in a row is one more such fault.
    """
    unknown = [kind for kind in expressions if kind not in EXPRESSIONS]
    if unknown or not expressions:
        raise ValueError(f"expressions must be some of 'micro', 'macro', got {tuple(expressions)!r}")
    log = FaultLog(strict=strict)
    clips: dict[tuple[str, str, str, int | None], dict[str, Any]] = {}
    for where, row in rows:
        dataset, subject, word, onset_cell = identify(row)
        name = (dataset, subject, word, integer(onset_cell))
        notes: list[tuple[str, str]] = []
        try:
            if row.excess:
                raise ValueError(f"{row.excess} more cells than columns; a comma inside a cell wants quotes")
            if row.torn:
                raise ValueError(f"fewer cells than columns, none for {', '.join(row.short)}")
            entry = interpret(row)
            name = (entry.dataset, entry.subject, entry.clip, integer(entry.onset))
            if entry.expression not in expressions:
                continue
            clip, notes = _build(entry)
            if row.short:
                notes.append((f"fewer cells than columns, none for {', '.join(row.short)}", AS_BLANK))
            if name in clips:
                raise ValueError("wanted each subject, file name and onset once, an earlier row has the same")
        except ValueError as error:
            notes = [(str(error), LEFT_OUT)]
        else:
            clips[name] = clip
            for onset, what in entry.also:
                log.add(_fault(name, onset, f"{where}: {what}", LEFT_OUT))
        for what, action in notes:
            log.add(_fault(name, name[3], f"{where}: {what}", action))
    return ClipTable(root, clip_frame(list(clips.values())), tuple(log.faults))


def _fault(name: tuple[str, str, str, int | None], onset: int | None, what: str, action: str) -> Fault:
    """A fault in few words, whatever the cells hold."""
    return Fault(brief(name[0]), brief(name[1]), brief(name[2]), onset, brief(what, 500), action)


def want_clips(table: ClipTable) -> ClipTable:
    """`table` itself; ValueError where it has no clip."""
    if not len(table):
        first = f"; the first fault is: {table.faults[0]}" if table.faults else ""
        raise ValueError(f"{table.root}: wanted at least one usable clip, got none{first}")
    return table


def _build(entry: Entry) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The clip of an entry and its (what, action) notes; ValueError where it has to be left out."""
    onset, offset = integer(entry.onset), integer(entry.offset)
    if onset is None or offset is None:
        raise ValueError(f"onset and offset must be integers, got {entry.onset!r} and {entry.offset!r}")
    if offset < onset:
        raise ValueError(f"offset must not be before onset, got onset {onset} and offset {offset}")
    length = offset - onset + 1
    if length == 1:
        raise ValueError(f"wanted a clip of at least two frames, onset and offset are both {onset}")
    if entry.longest is not None and length > entry.longest:
        raise ValueError(f"wanted a clip of at most {entry.longest} frames, got {length}")
    emotion = entry.emotion.casefold()
    if not emotion:
        raise ValueError("wanted an emotion, got a blank")

    notes = list(entry.notes)
    apex = None if entry.apex is None else integer(entry.apex)
    annotated = apex is not None and onset <= apex <= offset
    if not annotated:
        if entry.apex is not None:
            notes.append((f"wanted an apex in {onset}..{offset}, got {entry.apex!r}", MIDDLE_APEX))
        apex = (onset + offset) // 2
    objective = 0
    try:
        objective = parse_objective_class(entry.objective)
    except ValueError as error:
        notes.append((str(error), CLASS_BY_UNITS))
    clip = {
        "dataset": entry.dataset,
        "subject": entry.subject,
        "clip": entry.clip,
        "onset": onset,
        "apex": apex,
        "apex_annotated": annotated,
        "offset": offset,
        "frames": entry.frames(onset, offset),
        "expression": entry.expression,
        "emotion": emotion,
        "action_units": entry.action_units,
        "objective_class": objective or objective_class(entry.action_units),
    }
    return clip, notes


def plain(row: Row, column: str) -> str:
    """The cell of a column that names one folder inside the root; ValueError where it does not."""
    if not is_plain_name(row[column]):
        raise ValueError(
            f"{column.lower()} must be the name of one folder inside the root, got {row[column]!r}"
        )
    return row[column]


def expression_type(text: str) -> Expression:
    """The kind that a cell of the column Expression type says, "micro" where it is blank."""
    if text and text.casefold() not in EXPRESSION_TYPES:
        raise ValueError(f"expression type must be one of {', '.join(EXPRESSION_TYPES)}, got {text!r}")
    return EXPRESSION_TYPES[text.casefold() or "micro"]
