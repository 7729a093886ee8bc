"""Annotation tables, csv or xlsx, as rows of text: the one place where cells are read.

Every cell becomes stripped text, and what a column means is the reader's business. Which row holds the column
names is looked for, because files come with titles above them (SAMM's names stand in row 14).
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import open_plain
from ..clips import brief

# The column names stand in one of the first so many rows.
HEADER_ROWS = 40

# Of an xlsx file, which is packed: a published annotation has less than a megabyte, a made-up one any number.
MAX_WORKBOOK_BYTES = 100_000_000

Sheets = dict[str, list[list[str]]]
CSV = ""  # the name of a csv file's one sheet


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a table must hold, by name in any case.

    sheet: preferred where a workbook has one so named.
    aliases: other names of columns, in lower case.
    beside: file names, without their type, of tables that stand beside the annotation and are not it.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    sheet: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    beside: re.Pattern[str] | None = None

    def name(self, cell: str) -> str:
        """What a cell with a column's name says, in lower case, spacing at its ends or doubled left aside."""
        plain = " ".join(cell.split()).casefold()
        return self.aliases.get(plain, plain)


@dataclass(frozen=True)
class Row:
    """One row: its number in the file, 1 for the first, and its cells by lower-case column name.

    `excess` counts the cells of a csv row beyond those that the row of names has; `short` names the columns
    with a meaning for which it has none, `torn` says whether one of them is required.
    """

    number: int
    cells: Mapping[str, str]
    excess: int = 0
    short: tuple[str, ...] = ()
    torn: bool = False

    def __getitem__(self, column: str) -> str:
        """The cell of a column, "" where the table has no such column."""
        return self.cells.get(column.casefold(), "")


def integer(text: str) -> int | None:
    """The integer that a cell holds ("175", "175.0"), or None."""
    match = re.fullmatch(r"([+-]?[0-9]{1,15})(?:\.0*)?", text)
    return int(match[1]) if match else None


def find_annotation(root: Path, columns: Columns) -> Path:
    """The one csv or xlsx file directly in `root` that has the columns; ValueError where there is no such."""
    found, errors = [], []
    paths = annotation_files(root)
    if columns.beside is not None:
        paths = [path for path in paths if not columns.beside.search(path.stem)] or paths
    for path in paths:
        try:
            read_annotation(path, columns)
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
    raise ValueError(f"{root}: wanted an annotation file in this folder, {no_table(root)}")


def annotation_files(root: Path) -> list[Path]:
    """The csv and xlsx files directly in `root`, but for the lock files of an open Excel."""
    try:
        paths = sorted(root.iterdir())
    except OSError as error:
        raise ValueError(f"{root}: wanted a folder to look into, {error.strerror or error}") from error
    return [p for p in paths if p.suffix.lower() in (".csv", ".xlsx") and not p.name.startswith(("~$", "."))]


def no_table(root: Path) -> str:
    """Why a folder without csv and xlsx files has no annotation."""
    old = sorted(path.name for path in root.iterdir() if path.suffix.lower() == ".xls")
    return f"{old[0]} is an old Excel file: save it as .xlsx" if old else "it holds no csv or xlsx file"


def read_annotation(path: Path, columns: Columns) -> list[Row]:
    """Every row below the column names; rows without any content are passed over.

    Raises ValueError where the file cannot be read, lacks a column, or has one twice.
    """
    return rows_of(path, read_sheets(path), columns)


def annotated_rows(root: Path, annotation: Path | str | None, columns: Columns) -> list[tuple[str, Row]]:
    """(where it stands, row) for each row of the annotation given, or else of the one in `root`."""
    path = find_annotation(root, columns) if annotation is None else Path(annotation)
    return [(f"{path.name} row {row.number}", row) for row in read_annotation(path, columns)]


def rows_of(path: Path, sheets: Sheets, columns: Columns) -> list[Row]:
    """`read_annotation` of a file that is read already."""
    heads = _find_headers(sheets, columns)
    whole = [name for name, (_, lacks) in heads.items() if not lacks]
    if not whole:
        # Of several sheets, the one that was probably meant.
        name = min(heads, key=lambda name: len(heads[name][1]), default="")
        position, lacks = heads.get(name, (0, list(columns.required)))
        where = f"{path} sheet {name!r}" if name else str(path)
        cells = sheets[name][position] if sheets.get(name) else []
        found = brief(", ".join(" ".join(cell.split()) for cell in cells if cell), 300) or "none"
        raise ValueError(f"{where}: missing columns {', '.join(lacks)}; found {found}")
    if len(whole) > 1:
        raise ValueError(f"{path}: wanted the columns in one sheet, they are in {', '.join(whole)}")
    rows = sheets[whole[0]]
    start = heads[whole[0]][0]
    names = [columns.name(cell) for cell in rows[start]]
    wanted = (*columns.required, *columns.optional)
    twice = [column for column in wanted if names.count(column.casefold()) > 1]
    if twice:
        raise ValueError(f"{path}: wanted each column once, got more of {', '.join(twice)}")
    known = {column.casefold() for column in wanted}
    required = {column.casefold() for column in columns.required}

    def row_of(number: int, cells: Sequence[str]) -> Row:
        excess, short = 0, tuple[str, ...]()
        # In a csv file a row wider or narrower than the names has a comma too many or too few, and cells in
        # the wrong columns; in a workbook it has a note at its side or blanks at its end.
        if whole[0] == CSV:
            excess = sum(map(bool, cells[len(names) :]))
            short = tuple(name for name in names[len(cells) :] if name in known)
        torn = any(name in required for name in short)
        return Row(number, dict(zip(names, cells, strict=False)), excess, short, torn)

    numbered = enumerate(rows[start + 1 :], start=start + 2)
    return [row_of(number, cells) for number, cells in numbered if any(cells)]


def missing_columns(sheets: Sheets, columns: Columns) -> list[str]:
    """The columns that the sheet which has most of them lacks."""
    heads = _find_headers(sheets, columns).values()
    return min((lacks for _, lacks in heads), key=len, default=list(columns.required))


def _find_headers(sheets: Sheets, columns: Columns) -> dict[str, tuple[int, list[str]]]:
    """Sheet -> see `_find_header`; only the sheet that is preferred, where there is such."""
    if columns.sheet is not None and columns.sheet in sheets:
        sheets = {columns.sheet: sheets[columns.sheet]}
    return {name: _find_header(rows, columns) for name, rows in sheets.items()}


def _find_header(rows: Sequence[Sequence[str]], columns: Columns) -> tuple[int, list[str]]:
    """(position of the row with the most of the names, the names it lacks)."""
    best = (0, list(columns.required))
    for position, row in enumerate(rows[:HEADER_ROWS]):
        names = {columns.name(cell) for cell in row}
        lacks = [column for column in columns.required if column.casefold() not in names]
        if len(lacks) < len(best[1]):
            best = (position, lacks)
    return best


def read_sheets(path: Path) -> Sheets:
    """Sheet name -> rows of stripped text; a csv file is one sheet with the name `CSV`.

    Raises ValueError where the file is missing or no such table.
    """
    try:
        with open_plain(path, "an annotation file") as file:
            file.read(1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if path.suffix.lower() == ".xlsx":
        try:
            return _read_workbook(path)
        except ImportError:
            raise  # openpyxl is not installed: that is no fault of the file
        except Exception as error:  # openpyxl raises anything from KeyError to BadZipFile on a broken file
            raise ValueError(f"{path}: wanted an Excel workbook, {_one_line(error)}") from error
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{path}: wanted an annotation file that ends in .csv or .xlsx")
    return {CSV: read_csv(path)}


def _read_workbook(path: Path) -> Sheets:
    """The sheets of an xlsx file; by openpyxl, because pandas gives up a file for one number out of range."""
    with zipfile.ZipFile(path) as parts:
        size = sum(part.file_size for part in parts.infolist())
    if size > MAX_WORKBOOK_BYTES:
        raise ValueError(f"at most {MAX_WORKBOOK_BYTES} bytes unpacked, it has {size}")
    import openpyxl  # needed for Excel files alone

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        sheets = {}
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # what a file says of its size may be wrong, and rows would be lost
            rows = sheet.iter_rows(values_only=True)
            sheets[sheet.title] = [[_text(cell) for cell in row] for row in rows]
        return sheets
    finally:
        book.close()


def _text(cell: Any) -> str:
    """A cell of a workbook as text; whole numbers without a decimal point."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    return str(cell).strip()


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a comma-separated UTF-8 file as stripped text; ValueError where it is none."""
    try:
        with open_plain(path, "a table") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: wanted UTF-8 text, {error.reason}; save the table as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "\0" in text:
        raise ValueError(f"{path}: wanted UTF-8 text, it holds zero bytes; save the table as UTF-8")
    # strict: else a quote that is never closed would swallow the rest of the file into one cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        where = f"line {reader.line_num}: {_one_line(error)}"
        raise ValueError(f"{path}: wanted a comma-separated table, {where}") from error
    if not rows:
        raise ValueError(f"{path}: wanted a comma-separated table, the file is empty")
    return rows


def _one_line(error: Exception) -> str:
    return brief(" ".join(str(error).split()) or type(error).__name__, 300)
