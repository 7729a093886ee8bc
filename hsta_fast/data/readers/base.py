"""From annotation rows to clips and faults: the rules that all datasets share.

A reader turns each row of its annotation into an `AnnotationRow`; `read_rows` checks it against the disk. A
row that is wrong never stops the run, it gives a `Fault`:

- An unusable apex (not an integer, or outside onset..offset) is replaced by the middle frame; the clip is
  kept.
- An unreadable objective class is replaced by that of the action units; the clip is kept.
- A csv row without a cell for an optional column, or a formula that was never calculated, has a blank there;
  the clip is kept.
- The clip is left out if a required column has no such cell or value, a csv row has more cells than columns,
  the subject is unreadable, the expression type is unknown, the file name is not that of one folder, onset or
  offset is not an integer, the offset is before the onset, it has one frame only, frames are missing on disk,
  a folder or link leads outside the root, the emotion is blank, an earlier clip has the same (subject, clip,
  onset), or it is a micro-expression of more than `MAX_MICRO_FRAMES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...clips import identity, words_key
from ...files import is_plain_name
from ..action_units import objective_class, parse_objective_class
from ..clips import (
    AS_BLANK,
    CLASS_BY_UNITS,
    ENDS_AT_APEX,
    LEFT_OUT,
    MIDDLE_APEX,
    ClipTable,
    Fault,
    FaultLog,
    brief,
    clip_frame,
)
from ..remarks import Timing, timing_remarks
from .annotation import AnnotatedRows, Columns, Row, integer
from .folders import read_from, subfolders
from .sheets import UNCALCULATED
from .tree import NoFolderError, contents, searched

Expression = Literal["micro", "macro"]
EXPRESSIONS: tuple[Expression, ...] = ("micro", "macro")
EXPRESSION_TYPES: dict[str, Expression] = {
    "micro-expression": "micro",
    "micro": "micro",
    "macro-expression": "macro",
    "macro": "macro",
}

# Names of columns that may mean a known one or something else: such a column is not read, and is named.
SIMILAR = {
    **dict.fromkeys(("label", "labels", "class", "classes"), "emotion"),
    **{"expression": "expression type", "type": "expression type"},
    **{"start": "onset", "peak": "apex", "end": "offset"},
}

# A micro-expression lasts at most half a second. 600 frames are 3 s at 200 frames per second, and more at any
# lower rate: a longer "clip" (the published CAS(ME)3 has one of 3455 frames) is an annotation error.
MAX_MICRO_FRAMES = 600


@dataclass(frozen=True, kw_only=True)
class AnnotationRow:
    """One annotation row, not yet validated; cells are text.

    apex: None where the annotation has no apex, which is not a fault.
    emotion: None where the annotation has no column of emotions, which is not a fault; "" is a blank cell.
    frames: returns the paths of frames onset..offset relative to the root; raises ValueError where some are
        missing.
    longest: the largest number of frames that is accepted; None: `MAX_MICRO_FRAMES` of a micro-expression,
        any number of a macro-expression.
    notes: (what, action) of faults found so far that do not leave the clip out.
    also: (onset, what) of further expressions in the row, which are left out.
    rate: frames a second from onset to offset, None if unknown.
    """

    dataset: str
    subject: str
    clip: str
    onset: str
    apex: str | None
    offset: str
    frames: Callable[[int, int], tuple[str, ...]]
    expression: Expression = "micro"
    emotion: str | None
    action_units: str = ""
    objective: str = ""
    longest: int | None = None
    notes: tuple[tuple[str, str], ...] = ()
    also: tuple[tuple[int | None, str], ...] = ()
    rate: Callable[[int, int], float | None] = lambda onset, offset: None


Rows = Iterable[tuple[str, Row]]  # (where the row is, as messages say it; the row); see `AnnotatedRows`
Interpret = Callable[[Row], AnnotationRow]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One dataset: the columns of its annotation, how folders tell its version, and how it is read.

    name: the name in the clip table and on the command line; `title` is the dataset's full name.
    folders(root, annotation): version -> folders of the subjects; the version and the folder to read first
        are at the front, others are copies; {} where there are no frames. annotation: the table, if given.
    open(root, annotation, expressions): the rows of the copy at `root`, and the function that interprets one;
        raises ValueError where the copy cannot be read.
    identify: (dataset, subject, clip, onset) as the cells of a row have them, to name a row that cannot be
        interpreted.
    assumed: what no annotation file of the dataset that was seen confirms, for a remark; "" for nothing.
    labels: the label set that "auto" means for its clips: what the dataset's own literature uses.
    frames: what a path of a frame looks like, for messages; "" where the table says it.
    """

    name: str
    title: str
    columns: Columns
    folders: Callable[[Path, Path | str | None], dict[str, list[str]]]
    open: Callable[[Path, Path | str | None, Sequence[Expression]], tuple[Rows, Interpret]]
    identify: Callable[[Row], tuple[str, str, str, str]]
    labels: str
    frames: str = ""
    assumed: str = ""

    def versions(self, root: Path, annotation: Path | str | None = None) -> dict[str, str]:
        """Version -> the folder of the subjects that is read; the version to read first at the front."""
        return {version: folders[0] for version, folders in self.folders(root, annotation).items()}

    def base(self, root: Path, annotation: Path | str | None = None) -> str:
        """The folder of the subjects that is read, "" if there is none."""
        return next(iter(self.versions(root, annotation).values()), "")

    def scan(
        self, root: Path, annotation: Path | str | None, expressions: Sequence[Expression], *, strict: bool
    ) -> ClipTable:
        """The clips, possibly none, and faults of the copy at `root`.

        Raises ValueError where it cannot be read, or no clip of the table has a folder.
        """
        rows, interpret = self.open(root, annotation, expressions)
        table = read_rows(
            root,
            rows,
            interpret,
            identify=self.identify,
            expressions=expressions,
            strict=strict,
            no_folders=lambda clips: self._no_folders(root, annotation, clips),
        )
        assumed = (f"{self.title}: assumed: {self.assumed}",) if self.assumed else ()
        defaults = dict.fromkeys(table.clips["dataset"], self.labels)
        remarks = (*assumed, *table.remarks, *self._copies(root, annotation, table))
        return replace(table, remarks=remarks, default_labels=defaults)

    def _copies(self, root: Path, annotation: Path | str | None, table: ClipTable) -> list[str]:
        """A remark on folders that are not read and hold subjects (or clips) of the one that is read."""
        firsts = [frames[0] for frames in table.clips["frames"]]
        found = dict.fromkeys(folder for some in self.folders(root, annotation).values() for folder in some)
        starts = {folder: f"{folder}/" if folder else "" for folder in found}
        read = {max((f for f in found if path.startswith(starts[f])), key=len, default="") for path in firsts}
        for folder in read & found.keys():
            inside = (path.removeprefix(starts[folder]) for path in firsts if path.startswith(starts[folder]))
            names = {words_key(path.partition("/")[0]) for path in inside}
            others = [other for other in found if other not in read]
            copies = [o for o in others if names.intersection(map(words_key, subfolders(root, o)))]
            if copies:
                return [read_from(folder, copies, "subjects")]
        return []

    def _no_folders(self, root: Path, annotation: Path | str | None, clips: Sequence[tuple[str, str]]) -> str:
        """What was looked for and found where none of the clips, (subject, folder), has a folder."""
        first, subjects = brief(" ".join(clips[0][1].split())), len({subject for subject, _ in clips})
        try:
            base = self.base(root, annotation)
        except ValueError:
            base = ""
        found = f"in {base}" if base else "here"
        where = f"here or {searched(root)}" if self.columns.below else "here"
        return (
            f"no clip of the table ({len(clips)}, of {subjects} subjects) has a folder, such as {first}; "
            f"looked for {self.title} as {self.frames or first}, {where}; "
            f"found {found}: {contents(root, base)}"
        )


def read_rows(
    root: Path,
    rows: Rows,
    interpret: Interpret,
    *,
    identify: Callable[[Row], tuple[str, str, str, str]],
    expressions: Sequence[Expression],
    strict: bool,
    no_folders: Callable[[Sequence[tuple[str, str]]], str],
) -> ClipTable:
    """The clips, possibly none, and the faults of `rows`.

    interpret: raises ValueError for a row that cannot be interpreted.
    identify: see `Reader`.
    expressions: the kinds of expression to read; rows of other kinds are skipped.
    strict: raise the first fault instead of listing it.
    no_folders: what was looked for and found where no clip, (subject, folder), has one.

    Every row that is not skipped becomes one clip of the table or one fault with the action `LEFT_OUT`. Each
    further expression in a row that is kept is one more such fault. Where no row of a kind of expression has
    a folder, one line stands for all of them: the error raised if there is no clip at all, else a fault for
    micro-expressions and a remark for macro-expressions.
    """
    unknown = [kind for kind in expressions if kind not in EXPRESSIONS]
    if unknown or not expressions:
        raise ValueError(f"expressions expected some of 'micro', 'macro', got {tuple(expressions)!r}")
    log = FaultLog(strict=strict)
    clips: dict[tuple[str, str, str, int | None], dict[str, Any]] = {}
    absent: dict[Expression, list[tuple[NoFolderError, Fault]]] = {}
    timings: list[Timing] = []
    rates: dict[tuple[str, str, str, int], float] = {}
    for where, row in rows:
        dataset, subject, clip_name, onset_cell = identify(row)
        name = (dataset, subject, clip_name, integer(onset_cell))
        kind = expressions[0]
        notes: list[tuple[str, str]] = []
        gaps = []
        if row.short:
            gaps.append(f"row expected a cell for each column, got none for {', '.join(row.short)}")
        if row.uncalculated:
            gaps.append(
                f"row expected values, got {UNCALCULATED} in {', '.join(row.uncalculated)}; open the table "
                "in Excel or LibreOffice and save it"
            )
        no_folder: NoFolderError | None = None
        try:
            if row.excess:
                raise ValueError(
                    f"row expected a cell for each column, got {row.excess} more; "
                    "put quotes around a cell that holds a comma"
                )
            if row.incomplete:
                raise ValueError("; ".join(gaps))
            annotated = interpret(row)
            name = (annotated.dataset, annotated.subject, annotated.clip, integer(annotated.onset))
            kind = annotated.expression
            if kind not in expressions:
                continue
            clip, notes = _build_clip(annotated)
            notes += [(gap, AS_BLANK) for gap in gaps]
            if name in clips:
                raise ValueError(
                    "row expected a clip not read before, "
                    "got the subject, file name and onset of an earlier row"
                )
        except ValueError as error:
            notes = [(str(error), LEFT_OUT)]
            no_folder = error if isinstance(error, NoFolderError) else None
        else:
            clips[name] = clip
            if rate := annotated.rate(clip["onset"], clip["offset"]):
                rates[*name[:3], clip["onset"]] = rate
                is_micro = annotated.expression == "micro"
                timings.append(Timing(identity(*name), is_micro, len(clip["frames"]), rate))
            for onset, what in annotated.also:
                log.add(_fault(name, onset, f"{where}: {what}", LEFT_OUT))
        for what, action in notes:
            log.add(_fault(name, name[3], f"{where}: {what}", action))
        if no_folder is not None:
            absent.setdefault(kind, []).append((no_folder, log.faults[-1]))
    for kind in {clip["expression"] for clip in clips.values()}:
        absent.pop(kind, None)
    faults, remarks = _one_for_all(root, log.faults, absent, no_folders, is_empty=not clips)
    if isinstance(rows, AnnotatedRows):
        remarks = [*rows.remarks, *remarks]
    remarks += timing_remarks(timings)
    return ClipTable(root, clip_frame(list(clips.values())), tuple(faults), tuple(remarks), rates=rates)


def _one_for_all(
    root: Path,
    faults: Sequence[Fault],
    absent: Mapping[Expression, Sequence[tuple[NoFolderError, Fault]]],
    no_folders: Callable[[Sequence[tuple[str, str]]], str],
    *,
    is_empty: bool,
) -> tuple[list[Fault], list[str]]:
    """The faults and remarks, with one for all rows of a kind of expression of which none has a folder.

    absent: each such kind with its rows. Raises ValueError if the table is empty for that reason.
    """
    left, remarks = list(faults), []
    for kind, gone in absent.items():
        line = no_folders([(fault.subject, error.folder) for error, fault in gone])
        if is_empty and 2 * len(gone) > len(faults):
            raise ValueError(f"{root}: expected at least one usable clip, got none: {line}")
        if is_empty:
            continue
        replaced = {id(fault) for _, fault in gone}
        left = [fault for fault in left if id(fault) not in replaced]
        what = f"{len(gone)} {kind}-expressions"
        if kind == "macro":
            remarks.append(f"{what} are not read: {line}")
        else:
            left.append(Fault(gone[0][1].dataset, "?", "?", None, line, f"{what} left out"))
    return left, remarks


def _fault(name: tuple[str, str, str, int | None], onset: int | None, what: str, action: str) -> Fault:
    """A fault whose texts are cut short: a cell may hold any amount of text."""
    return Fault(brief(name[0]), brief(name[1]), brief(name[2]), onset, brief(what, 500), action)


def check_not_empty(table: ClipTable) -> ClipTable:
    """`table` itself; ValueError where it has no clip."""
    if not len(table):
        first = f"; the first fault is: {table.faults[0]}" if table.faults else ""
        raise ValueError(f"{table.root}: expected at least one usable clip, got none{first}")
    return table


def _build_clip(row: AnnotationRow) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The clip of a row and its (what, action) notes; ValueError where it has to be left out."""
    onset, offset = integer(row.onset), integer(row.offset)
    if onset is None or offset is None:
        raise ValueError(f"onset and offset expected integers, got {row.onset!r} and {row.offset!r}")
    if offset < onset:
        raise ValueError(f"offset expected a frame not before onset {onset}, got {offset}")
    length = offset - onset + 1
    if length == 1:
        raise ValueError(f"clip expected at least 2 frames, got 1: onset and offset are both {onset}")
    longest = MAX_MICRO_FRAMES if row.longest is None and row.expression == "micro" else row.longest
    if longest is not None and length > longest:
        raise ValueError(f"clip expected at most {longest} frames, got {length}")
    if row.emotion == "":
        raise ValueError("emotion expected a word, got a blank")

    notes = list(row.notes)
    apex = None if row.apex is None else integer(row.apex)
    annotated = apex is not None and onset <= apex <= offset
    if not annotated:
        if row.apex is not None:
            notes.append((f"apex expected a frame in {onset}..{offset}, got {row.apex!r}", MIDDLE_APEX))
        apex = (onset + offset) // 2
    objective = 0
    try:
        objective = parse_objective_class(row.objective)
    except ValueError as error:
        notes.append((str(error), CLASS_BY_UNITS))
    clip = {
        "dataset": row.dataset,
        "subject": row.subject,
        "clip": row.clip,
        "onset": onset,
        "apex": apex,
        "apex_annotated": annotated,
        "offset": offset,
        "frames": row.frames(onset, offset),
        "expression": row.expression,
        "emotion": (row.emotion or "").casefold(),
        "action_units": row.action_units,
        "objective_class": objective or objective_class(row.action_units),
    }
    return clip, notes


def folder_name(row: Row, column: str) -> str:
    """The cell of a column that names one folder inside the root; ValueError where it does not."""
    if not is_plain_name(row[column]):
        raise ValueError(
            f"{column.lower()} expected the name of one folder inside the root, got {row[column]!r}"
        )
    return row[column]


def padded_subject(text: str, prefix: str, width: int) -> str:
    """The subject as `prefix` and a number of at least `width` digits: "sub01" from "1", "01" or "sub01".

    Raises ValueError for anything else.
    """
    match = re.fullmatch(rf"(?:{prefix})?0*([0-9]{{1,6}})(?:\.0)?", text, re.IGNORECASE)
    if match is None:
        example = f"1, or {prefix}{1:0{width}d}"
        raise ValueError(f"subject expected a number such as {example}, got {text!r}")
    return f"{prefix}{int(match[1]):0{width}d}"


def offset_or_apex(offset: str, apex: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The cell of the last frame and its notes, where an offset of 0 means that the clip ends at its apex."""
    if integer(offset) == 0 and integer(apex) is not None:
        return apex, (("offset expected a frame, got 0", ENDS_AT_APEX),)
    return offset, ()


def expression_type(text: str) -> Expression:
    """The kind of expression in a cell of the column Expression type, "micro" where it is blank."""
    if text and text.casefold() not in EXPRESSION_TYPES:
        raise ValueError(f"expression type expected one of {', '.join(EXPRESSION_TYPES)}, got {text!r}")
    return EXPRESSION_TYPES[text.casefold() or "micro"]
