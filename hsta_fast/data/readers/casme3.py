"""CAS(ME)3 part A: recordings, `spNO.1/b/color/175.jpg`, or clips, `Part_A_ME_clip/frame/spNO.1_b_175/`.

A clip's folder is <Subject>_<Filename>_<Onset>; those of macro-expressions are in `Part_A_MaE_clip`. The
folders `depth` and `video` beside `frame` are not read. Both kinds of folder, and the table, may lie in
folders below the root. Of several versions the one whose path has the word crop is read first, then other
clips, then recordings; but recordings in the root itself win over all.

The table has the columns Subject, Filename, Onset, Apex, Offset and AU. It may have emotion, Objective class
(I..VII) and Expression type (Micro-expression, Macro-expression; without it every row is a micro-expression).
Macro-expressions may have a table of their own with MaE or macro in its name, such as
`cas(me)3_part_A_MaE_label_JpgIndex_v2_emotion.xlsx`; in it AU may be missing if emotion is there, and the
columns of subject and recording may be called sub and seq.
Several clips share one recording. Folder names may differ from the table in case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from ..clips import ClipTable
from .annotation import (
    AnnotatedRows,
    Columns,
    Row,
    annotated_rows,
    find_annotation,
    integer,
    missing_columns,
)
from .base import (
    EXPRESSIONS,
    SIMILAR,
    AnnotationRow,
    Expression,
    Interpret,
    Reader,
    Rows,
    check_not_empty,
    expression_type,
    folder_name,
)
from .folders import (
    FolderNames,
    FrameFolders,
    check_folder,
    find_subjects,
    in_order,
    is_derived,
    posix_join,
    subfolders,
)
from .sheets import Sheets, annotation_files, read_sheets

DATASET = "casme3"
_MACRO = re.compile(r"^(?!.*micro).*(?<![a-z])(?:mae(?![a-z])|macro)", re.IGNORECASE)
# What folders of clips are called: Part_A_ME_clip, Part_A_MaE_clip.
_KINDS: dict[Expression, re.Pattern[str]] = {
    "micro": re.compile(r"(?<![a-z])me(?![a-z])|micro", re.IGNORECASE),
    "macro": re.compile(r"(?<![a-z])mae(?![a-z])|macro", re.IGNORECASE),
}
_PACKAGE = re.compile("part_?a_ma?e_clip", re.IGNORECASE)
CLIPS, CROPPED, RECORDINGS = "part A, clips", "part A, clips, cropped", "part A"
COLUMNS = Columns(
    required=("Subject", "Filename", "Onset", "Apex", "Offset", "AU"),
    optional=("Objective class", "Expression type", "emotion"),
    filled=("emotion",),
    aliases={
        **{"sub": "subject", "seq": "filename", "aus": "au"},
        **{"objectiveclasses": "objective class", "emotions": "emotion", "estimatedemotion": "emotion"},
    },
    similar=SIMILAR,
    companion=_MACRO,
    unread=(),
)
_WITHOUT_UNITS = replace(
    COLUMNS,
    required=(*(name for name in COLUMNS.required if name != "AU"), "emotion"),
    optional=("Objective class", "Expression type", "AU"),
)
_SUBJECT = re.compile(r"spNO\.[0-9]+", re.IGNORECASE)
_CLIP = re.compile(r"(spNO\.[0-9]+)_(.+)_[0-9]+", re.IGNORECASE)
_SUBJECT_OR_CLIP = re.compile(f"{_SUBJECT.pattern}|{_CLIP.pattern}", re.IGNORECASE)
# Names of folders that hold no frames of part A: depth maps, and the other parts.
_OTHER = re.compile(r"depth.*|(?:.*[^a-z])?part[ _-]?[bc](?:[^a-z].*)?", re.IGNORECASE)
_NUMBER = re.compile(r"([0-9]{1,15})")

# Version -> kind of expression -> folders of its subjects or clips; what is read first is at the front.
_OfKinds = dict[str, dict[Expression, list[str]]]


def folders(root: Path, annotation: Path | str | None = None) -> dict[str, list[str]]:
    """Version -> folders of the subjects or clips; see `Reader`."""
    return _of_all_kinds(_frame_folders(root))


def _of_all_kinds(found: _OfKinds) -> dict[str, list[str]]:
    """Version -> its folders, those of micro-expressions first."""
    return {
        version: [*dict.fromkeys(chain(*(kinds.get(kind, []) for kind in EXPRESSIONS)))]
        for version, kinds in found.items()
    }


def _frame_folders(root: Path) -> _OfKinds:
    """The folders of each version and kind of expression."""
    found: _OfKinds = {CROPPED: {}, CLIPS: {}, RECORDINGS: {}}
    name = os.path.basename(os.path.realpath(root))
    clips: list[tuple[str, Sequence[Expression], str]] = []
    for folder in find_subjects(root, _SUBJECT_OR_CLIP):
        if any(map(_OTHER.fullmatch, (name, *folder.split("/")))):
            continue
        inner = subfolders(root, folder)
        if any(map(_SUBJECT.fullmatch, inner)):
            for kind in EXPRESSIONS:
                found[RECORDINGS].setdefault(kind, []).append(folder)
        if any(map(_CLIP.fullmatch, inner)):
            parts = [*reversed(folder.split("/")), name if _PACKAGE.match(name) else ""]
            named = [kind for part in parts for kind in EXPRESSIONS if _KINDS[kind].search(part)]
            version = CROPPED if any("crop" in part.lower() for part in parts) else CLIPS
            clips.append((version, named[:1] or EXPRESSIONS, folder))
    # Optical flow and the like have folders of the same names: those called as distributed come first.
    clips.sort(
        key=lambda one: (len(one[1]), is_derived(one[2]), "frame" not in one[2].rpartition("/")[2].lower())
    )
    for version, kinds, folder in clips:
        for kind in kinds:
            found[version].setdefault(kind, []).append(folder)
    if any("" in places for places in found[RECORDINGS].values()):
        found = {RECORDINGS: found[RECORDINGS]} | found
    return {version: found[version] for version in in_order(_of_all_kinds(found), [*found])}


def _folder_of_each(root: Path) -> dict[Expression, tuple[str, str]]:
    """Kind of expression -> (version, folder) of its frames; micro-expressions come first.

    Macro-expressions are read from another version only if neither is cropped, or there are no others.
    """
    found = _frame_folders(root)
    chosen: dict[Expression, tuple[str, str]] = {}
    for kind in EXPRESSIONS:
        for version, folders in found.items():
            cropped = {version == CROPPED, *(other == CROPPED for other, _ in chosen.values())}
            if kind in folders and kind not in chosen and len(cropped) == 1:
                chosen[kind] = version, folders[kind][0]
    return chosen


def read_casme3(
    root: Path | str,
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """Read the clips of CAS(ME)3, or of anything in its layout, under `root`.

    annotation: the table; default: the one csv or xlsx file in `root`, or else below it, that has the
        columns, and the table of macro-expressions next to it.
    expressions: the kinds of expression to read; rows of other kinds are skipped.
    strict: raise the first fault instead of listing it.

    Every row that is not skipped becomes one clip of the table or one fault with the action "clip left out".

    Raises ValueError for a missing root, no annotation or several, a missing column, or no usable clip.
    """
    return check_not_empty(READER.scan(check_folder(root), annotation, expressions, strict=strict))


def _open(
    root: Path, annotation: Path | str | None, expressions: Sequence[Expression]
) -> tuple[Rows, Interpret]:
    frames, names = FrameFolders(root, _NUMBER), FolderNames(root)
    frame_folders = _folder_of_each(root)

    def interpret(row: Row) -> AnnotationRow:
        kind = expression_type(row["Expression type"])
        subject, clip, folder = row["Subject"], row["Filename"], ""
        if kind in expressions:
            version, base = frame_folders.get(kind, (RECORDINGS, ""))
            subject, clip = folder_name(row, "Subject"), folder_name(row, "Filename")
            if version == RECORDINGS:
                subject = names.on_disk(base, subject)
                clip = names.on_disk(posix_join(base, subject), clip)
                folder = posix_join(base, subject, clip, "color")
            else:
                onset = integer(row["Onset"])
                name = names.on_disk(base, f"{subject}_{clip}_{row['Onset'] if onset is None else onset}")
                folder = posix_join(base, name)
                if (parts := _CLIP.fullmatch(name)) is not None:
                    subject, clip = parts[1], parts[2]
        return AnnotationRow(
            dataset=DATASET,
            subject=subject,
            clip=clip,
            onset=row["Onset"],
            apex=row["Apex"],
            offset=row["Offset"],
            frames=partial(frames.frames, folder),
            expression=kind,
            emotion=row.get("emotion"),
            action_units=row["AU"],
            objective=row["Objective class"],
        )

    return _rows(root, annotation, expressions), interpret


def _rows(root: Path, annotation: Path | str | None, expressions: Sequence[Expression]) -> AnnotatedRows:
    """The rows of the annotation and, if asked for, of the table of macro-expressions next to it."""
    path = find_annotation(root, COLUMNS) if annotation is None else Path(annotation)
    if _MACRO.search(path.stem):
        return _macro_rows(root, path)
    rows = annotated_rows(root, path, COLUMNS)
    if "macro" in expressions:
        near = (annotation_files(folder) for folder in (path.parent, root))
        named = next(filter(None, ([t for t in tables if _MACRO.search(t.stem)] for tables in near)), [])
        tables = [table for table in named if not missing_columns(*_macro_table(table))]
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise ValueError(f"{root}: expected one table of macro-expressions, got {names}")
        for table in tables:
            macro = _macro_rows(root, table)
            rows = AnnotatedRows([*rows, *macro], [*rows.remarks, *macro.remarks])
    return rows


def _macro_table(path: Path) -> tuple[Sheets, Columns]:
    """The sheets of a table of macro-expressions and its columns: it has action units, emotions, or both."""
    sheets = read_sheets(path)
    return sheets, _WITHOUT_UNITS if missing_columns(sheets, COLUMNS) else COLUMNS


def _macro_rows(root: Path, path: Path) -> AnnotatedRows:
    """The rows of a table of macro-expressions; a row without an expression type is one."""
    rows = annotated_rows(root, path, _macro_table(path)[1])
    return AnnotatedRows(
        (
            (where, replace(row, cells={**row.cells, "expression type": row["Expression type"] or "macro"}))
            for where, row in rows
        ),
        rows.remarks,
    )


READER = Reader(
    name=DATASET,
    title="CAS(ME)3",
    columns=COLUMNS,
    folders=folders,
    open=_open,
    identify=lambda row: (DATASET, row["Subject"], row["Filename"], row["Onset"]),
    labels="emotion7",
    frames="spNO.1/b/color/175.jpg or Part_A_ME_clip/frame/spNO.1_b_175/175.jpg",
)
