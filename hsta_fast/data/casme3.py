"""CAS(ME)3 part A: `root/<Subject>/<Filename>/color/<number>.jpg` and one annotation table in the root.

The table, csv (UTF-8, comma) or xlsx, has the columns Subject, Filename, Onset, Apex, Offset, AU and
emotion. It may have Objective class (I..VII) and Expression type (Micro-expression, Macro-expression; without
it every row is a micro-expression). Several clips share one (Subject, Filename) folder. Rows are read one by
one, and what is wrong with a row is a `Fault`, never the end of the run:

- an unusable apex (no integer, or outside onset..offset) becomes the middle frame, the clip is kept;
- an unreadable objective class is taken from the action units instead, the clip is kept;
- onset or offset no integer, offset before onset, one frame only, frames missing on disk, a folder or link
  that leads outside the root, no emotion, the (subject, clip, onset) of an earlier clip, an unknown
  expression type, or a micro-expression of more than `MAX_MICRO_FRAMES`: the clip is left out.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from .clips import LEFT_OUT, MIDDLE_APEX, ClipTable, Fault, FaultLog, clip_frame, inside, is_plain_name
from .labels import objective_class, parse_objective_class

DATASET = "casme3"
Expression = Literal["micro", "macro"]

# A micro-expression lasts about half a second. 600 frames are 3 s at 200 frames a second and more at any
# slower rate: a longer "clip" (the published table has one of 3455 frames) is a slip of the annotation.
MAX_MICRO_FRAMES = 600

_REQUIRED = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "emotion")
_OPTIONAL = ("Objective class", "Expression type")
_TYPES = {"micro-expression": "micro", "micro": "micro", "macro-expression": "macro", "macro": "macro"}
_FRAME_FILE = re.compile(r"([0-9]{1,15})\.(?:jpg|jpeg|png|bmp)", re.IGNORECASE)


def read_casme3(
    root: Path | str,
    *,
    annotation: Path | str | None = None,
    expressions: Sequence[Expression] = ("micro",),
    strict: bool = False,
) -> ClipTable:
    """Read the clips of CAS(ME)3, or of anything in its layout, under `root`.

    annotation: the table; default: the one csv or xlsx file in `root` that has the columns.
    expressions: which kinds of row are wanted; the others are passed over.
    strict: raise the first fault instead of listing it.

    Every wanted row becomes one clip of the table or one fault with the action "clip left out".

    Raises ValueError for a missing root, no (or no single) annotation, a missing column, or no usable clip.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: wanted the folder of a CAS(ME)3 copy, no such folder")
    unknown = [kind for kind in expressions if kind not in ("micro", "macro")]
    if unknown or not expressions:
        raise ValueError(f"expressions must be some of 'micro', 'macro', got {tuple(expressions)!r}")
    path = _find_annotation(root) if annotation is None else Path(annotation)
    rows = _read_annotation(path)
    log = FaultLog(strict=strict)
    folders: dict[str, dict[int, str] | ValueError] = {}
    clips: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    wanted = 0
    for number, row in rows:
        kind = _TYPES.get(row.get("expression type", "micro").lower())
        if kind is not None and kind not in expressions:
            continue
        wanted += 1
        key = (row["subject"], row["filename"], _integer(row["onset"]))
        try:
            clip, notes = _read_row(root, row, kind, folders)
            if key in clips:
                raise ValueError("wanted each subject, file name and onset once, an earlier row has the same")
        except ValueError as error:
            notes = [(str(error), LEFT_OUT)]
        else:
            clips[key] = clip
        for what, action in notes:
            log.add(Fault(DATASET, *key, f"{path.name} row {number}: {what}", action))
    if not clips:
        first = f"; the first fault is: {log.faults[0]}" if log.faults else ""
        kinds = " or ".join(expressions)
        raise ValueError(f"{path}: wanted at least one usable clip, none of {wanted} {kinds} rows is{first}")
    return ClipTable(root, clip_frame(list(clips.values())), tuple(log.faults))


def _read_row(
    root: Path, row: dict[str, str], kind: str | None, folders: dict[str, dict[int, str] | ValueError]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The clip of an annotation row and its (what, action) notes; ValueError where it has to be left out."""
    if kind is None:
        kinds = ", ".join(_TYPES)
        raise ValueError(f"expression type must be one of {kinds}, got {row['expression type']!r}")
    for column in ("subject", "filename"):
        if not is_plain_name(row[column]):
            raise ValueError(f"{column} must be the name of one folder inside the root, got {row[column]!r}")
    onset, offset, apex = (_integer(row[column]) for column in ("onset", "offset", "apex"))
    if onset is None or offset is None:
        raise ValueError(f"onset and offset must be integers, got {row['onset']!r} and {row['offset']!r}")
    if offset < onset:
        raise ValueError(f"offset must not be before onset, got onset {onset} and offset {offset}")
    length = offset - onset + 1
    if length == 1:
        raise ValueError(f"wanted a clip of at least two frames, onset and offset are both {onset}")
    if kind == "micro" and length > MAX_MICRO_FRAMES:
        raise ValueError(f"wanted a micro-expression of at most {MAX_MICRO_FRAMES} frames, got {length}")
    emotion = row["emotion"].lower()
    if not emotion:
        raise ValueError("wanted an emotion, got a blank")

    notes: list[tuple[str, str]] = []
    if apex is None or not onset <= apex <= offset:
        notes.append((f"wanted an apex in {onset}..{offset}, got {row['apex']!r}", MIDDLE_APEX))
        apex = (onset + offset) // 2
    objective = 0
    try:
        objective = parse_objective_class(row.get("objective class", ""))
    except ValueError as error:
        notes.append((str(error), "objective class taken from the action units"))
    clip = {
        "dataset": DATASET,
        "subject": row["subject"],
        "clip": row["filename"],
        "onset": onset,
        "apex": apex,
        "offset": offset,
        "frames": _frames(root, f"{row['subject']}/{row['filename']}/color", onset, offset, folders),
        "expression": kind,
        "emotion": emotion,
        "action_units": row["au"],
        "objective_class": objective or objective_class(row["au"]),
    }
    return clip, notes


def _frames(
    root: Path, folder: str, onset: int, offset: int, folders: dict[str, dict[int, str] | ValueError]
) -> tuple[str, ...]:
    """The paths of frames onset..offset, relative to the root; ValueError where some are not there."""
    if folder not in folders:
        try:
            folders[folder] = _list_frames(root, folder)
        except ValueError as error:
            folders[folder] = error
    files = folders[folder]
    if isinstance(files, ValueError):
        raise files
    # Counted without walking onset..offset, which a slip of the annotation can make billions long.
    missing = offset - onset + 1 - sum(onset <= number <= offset for number in files)
    if missing:
        first = next(number for number in range(onset, offset + 1) if number not in files)
        raise ValueError(
            f"frames missing on disk: {missing} of {offset - onset + 1}, first {folder}/{first}.jpg "
            f"(the folder holds {len(files)} numbered images)"
        )
    return tuple(f"{folder}/{files[number]}" for number in range(onset, offset + 1))


def _list_frames(root: Path, folder: str) -> dict[int, str]:
    """Frame number -> file name of a folder of numbered images; ValueError where it cannot be used."""
    files: dict[int, str] = {}
    try:
        with os.scandir(inside(root, folder)) as entries:
            for entry in entries:
                match = _FRAME_FILE.fullmatch(entry.name)
                if match is None or not entry.is_file():
                    continue
                if entry.is_symlink():
                    inside(root, f"{folder}/{entry.name}")
                number = int(match[1])
                if number in files:
                    raise ValueError(f"{folder}: frame {number} is both {files[number]} and {entry.name}")
                files[number] = entry.name
    except OSError as error:
        raise ValueError(f"{folder}: wanted a folder of images, {error.strerror or error}") from error
    return files


def _integer(text: str) -> int | None:
    """The integer that a cell holds ("175", "175.0"), or None."""
    match = re.fullmatch(r"([+-]?[0-9]{1,15})(?:\.0*)?", text)
    return int(match[1]) if match else None


def _find_annotation(root: Path) -> Path:
    """The one csv or xlsx file directly in `root` that has the columns."""
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".xlsx"))
    found, errors = [], []
    for path in paths:
        try:
            _read_annotation(path)
            found.append(path)
        except ValueError as error:
            errors.append(str(error))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{root}: wanted one annotation file, got {names}; name one with --annotation")
    if errors:
        raise ValueError("; ".join(errors))
    raise ValueError(f"{root}: wanted an annotation file (csv or xlsx) in this folder, found none")


def _read_annotation(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(row number in the file, the known columns as stripped text by lower-case name) of every row.

    Rows without any content are passed over. ValueError where it cannot be read or lacks a column.
    """
    sheets = {
        name: [[cell.strip() for cell in row] for row in cells.fillna("").to_numpy(dtype=object)]
        for name, cells in _read_sheets(path).items()
    }
    heads = {name: rows[0] if rows else [] for name, rows in sheets.items()}
    lacks = {
        name: [column for column in _REQUIRED if column.casefold() not in map(str.casefold, head)]
        for name, head in heads.items()
    }
    whole = [name for name, columns in lacks.items() if not columns]
    if not whole:
        # Of several sheets, the one that was probably meant.
        name = min(lacks, key=lambda name: len(lacks[name]))
        where = f"{path} sheet {name!r}" if name else str(path)
        found = ", ".join(heads[name]) or "none"
        raise ValueError(f"{where}: missing columns {', '.join(lacks[name])}; found {found}")
    if len(whole) > 1:
        raise ValueError(f"{path}: wanted the columns in one sheet, they are in {', '.join(whole)}")
    names = [column.casefold() for column in heads[whole[0]]]
    twice = [column for column in (*_REQUIRED, *_OPTIONAL) if names.count(column.casefold()) > 1]
    if twice:
        raise ValueError(f"{path}: wanted each column once, got more of {', '.join(twice)}")
    rows = enumerate(sheets[whole[0]][1:], start=2)
    return [(number, dict(zip(names, row, strict=True))) for number, row in rows if any(row)]


def _read_sheets(path: Path) -> dict[str, pd.DataFrame]:
    """Sheet name -> cells as text, without a header; a csv file is one sheet with the name ""."""
    if not path.is_file():
        raise ValueError(f"{path}: wanted an annotation file, no such file")
    if path.suffix.lower() == ".xlsx":
        try:
            return pd.read_excel(path, sheet_name=None, header=None, dtype=str, keep_default_na=False)
        except ImportError:
            raise
        except Exception as error:  # openpyxl raises anything from KeyError to BadZipFile on a broken file
            raise ValueError(f"{path}: wanted an Excel workbook, {_one_line(error)}") from error
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{path}: wanted an annotation file that ends in .csv or .xlsx")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: wanted UTF-8 text, {error.reason}; save the table as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{path}: wanted an annotation file, {error.strerror or error}") from error
    try:
        table = pd.read_csv(
            io.StringIO(text),
            header=None,
            index_col=False,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: wanted a comma-separated table, {_one_line(error)}") from error
    return {"": table}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
