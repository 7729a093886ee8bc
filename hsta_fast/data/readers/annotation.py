"""Annotation tables, csv or xlsx, as rows of text: the one place where cells are read.

Every cell becomes stripped text; a dataset's reader interprets the columns. The row of the column names is
searched for, because files have titles above it (SAMM's column names are in row 14).
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ...files import as_on_disk, inside, open_plain, reason
from ..clips import brief
from .tree import MAX_DEPTH, levels

# The column names are searched for in this many rows.
HEADER_ROWS = 40

# Of an xlsx file, unpacked. A published annotation has less than 1 MB; a malicious one may have any size.
MAX_WORKBOOK_BYTES = 100_000_000

# Below the root, a folder with more tables holds features or scores, and no more than so many are opened.
MAX_TABLES_IN_FOLDER, MAX_TABLES = 16, 64

Sheets = dict[str, list[list[str]]]
CSV = ""  # the name of a csv file's one sheet


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table; names in any case.

    filled: those of the optional columns in which a csv row must have a cell, if the table has the column.
    telling: those of the optional columns by which a table without frames is known, where another dataset
        has the required ones, too.
    headerless: for a table without column names, whose columns are the required and then the optional ones:
        what the cells of some columns match in its first row.
    sheet: the sheet to read if a workbook has one of this name.
    aliases: other name of a column -> its name, in lower case.
    companion: matches the file name, without its type, of tables next to the annotation that are not it.
    below: whether the table may lie below the root.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    telling: tuple[str, ...] = ()
    headerless: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    sheet: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    companion: re.Pattern[str] | None = None
    below: bool = True

    def name(self, cell: str) -> str:
        """The column that a header cell names, in lower case; ignores extra spaces."""
        plain = " ".join(cell.split()).casefold()
        return self.aliases.get(plain, plain)


@dataclass(frozen=True)
class Row:
    """One row: its number in the file, 1 for the first, and its cells by lower-case column name.

    excess: cells of a csv row beyond the last column.
    short: the known columns for which a csv row has no cell.
    incomplete: whether one of those is required, or has to be filled.
    """

    number: int
    cells: Mapping[str, str]
    excess: int = 0
    short: tuple[str, ...] = ()
    incomplete: bool = False

    def __getitem__(self, column: str) -> str:
        """The cell of a column, "" if the table has no such column."""
        return self.cells.get(column.casefold(), "")

    def get(self, column: str) -> str | None:
        """The cell of a column, None if the table has no such column."""
        return self.cells.get(column.casefold())


class AnnotatedRows(list[tuple[str, Row]]):
    """(where it is, row) for each row of an annotation, and remarks on it (see `ClipTable`)."""

    def __init__(self, rows: Iterable[tuple[str, Row]] = (), remarks: Iterable[str] = ()) -> None:
        super().__init__(rows)
        self.remarks = list(remarks)


def integer(text: str) -> int | None:
    """The integer that a cell holds ("175", "175.0"), or None."""
    match = re.fullmatch(r"([+-]?[0-9]{1,15})(?:\.0*)?", text)
    return int(match[1]) if match else None


def find_annotation(root: Path, columns: Columns) -> Path:
    """The one csv or xlsx file in `root` that has the columns, or else in the folders below it.

    The nearest level with such a file counts (see `table_levels`). Raises ValueError if it has several, or if
    there is none.
    """
    errors: list[str] = []
    for paths in table_levels(root) if columns.below else [annotation_files(root)]:
        if columns.companion is not None:
            paths = [path for path in paths if not columns.companion.search(path.stem)] or paths
        found = []
        for path in paths:
            try:
                read_annotation(path, columns)
                found.append(path)
            except ValueError as error:
                errors.append(str(error))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.relative_to(root).as_posix() for path in found)
            raise ValueError(f"{root}: expected one annotation file, got {names}; name one with --annotation")
    if errors:
        raise ValueError(first_errors(errors))
    raise ValueError(f"{root}: expected an annotation file in this folder, got {no_table(root)}")


def first_errors(errors: Sequence[str], most: int = 3) -> str:
    """The first errors as one line."""
    more = len(errors) - most
    return "; ".join([*errors[:most], *([f"and {more} more tables"] if more > 0 else [])])


def table_levels(root: Path) -> Iterator[list[Path]]:
    """The tables in `root`, then those one level below, and so on (see `tree.levels`)."""
    yield annotation_files(root)
    left = MAX_TABLES
    for level in islice(levels(root), 1, None):
        paths: list[Path] = []
        for folder in level:
            if not folder.of_frames:
                here = _tables_inside(root, folder.path)
                paths += here if len(here) <= MAX_TABLES_IN_FOLDER else []
        yield paths[:left]
        left -= len(paths[:left])


def _tables_inside(root: Path, folder: str) -> list[Path]:
    """The tables in a folder below the root, without links out of it; none if it cannot be read."""
    tables: list[Path] = []
    with suppress(ValueError):
        for path in annotation_files(root / folder):
            with suppress(ValueError):
                inside(root, f"{folder}/{path.name}")
                tables.append(path)
    return tables


def annotation_files(root: Path) -> list[Path]:
    """The csv and xlsx files directly in `root`, without the lock files of an open Excel."""
    try:
        paths = sorted(root.iterdir())
    except OSError as error:
        raise ValueError(f"{root}: expected a readable folder, got: {reason(error)}") from error
    return [p for p in paths if p.suffix.lower() in (".csv", ".xlsx") and not p.name.startswith(("~$", "."))]


def no_table(root: Path) -> str:
    """What a folder without csv and xlsx files holds instead of an annotation, for a message."""
    old = sorted(path.name for path in root.iterdir() if path.suffix.lower() == ".xls")
    if old:
        return f"{old[0]}, an old Excel file: save it as .xlsx"
    return f"no csv or xlsx file, here or up to {MAX_DEPTH} levels below"


def read_annotation(path: Path, columns: Columns) -> list[Row]:
    """Every row below the column names; empty rows are skipped.

    Raises ValueError if the file cannot be read, or a column is missing or there twice.
    """
    return rows_of(path, read_sheets(path), columns)


def annotated_rows(root: Path, annotation: Path | str | None, columns: Columns) -> AnnotatedRows:
    """The rows of `annotation`, by default of the one in `root`."""
    path = find_annotation(root, columns) if annotation is None else Path(annotation)
    return AnnotatedRows((f"{path.name} row {row.number}", row) for row in read_annotation(path, columns))


def rows_of(path: Path, sheets: Sheets, columns: Columns) -> list[Row]:
    """`read_annotation` for the sheets of a file that is already read."""
    heads = _find_headers(sheets, columns)
    complete = [name for name, (_, missing) in heads.items() if not missing]
    if not complete:
        # Of several sheets, name the one that was probably meant.
        name = min(heads, key=lambda name: len(heads[name][1]), default="")
        position, missing = heads.get(name, (0, list(columns.required)))
        where = f"{path} sheet {name!r}" if name else str(path)
        cells = sheets[name][position] if sheets.get(name) else []
        found = brief(", ".join(" ".join(cell.split()) for cell in cells if cell), 300) or "none"
        raise ValueError(f"{where}: expected also the columns {', '.join(missing)}, got {found}")
    if len(complete) > 1:
        raise ValueError(f"{path}: expected the columns in one sheet, got them in {', '.join(complete)}")
    rows = sheets[complete[0]]
    start = heads[complete[0]][0]
    meant = (*columns.required, *columns.optional)
    names = [columns.name(cell) for cell in (meant if columns.headerless else rows[start])]
    repeated = [column for column in meant if names.count(column.casefold()) > 1]
    if repeated:
        raise ValueError(f"{path}: expected each column once, got several of {', '.join(repeated)}")
    known = {column.casefold() for column in meant}
    needed = {column.casefold() for column in (*columns.required, *columns.filled)}

    def row_of(number: int, cells: Sequence[str]) -> Row:
        excess, short = 0, tuple[str, ...]()
        # A csv row longer or shorter than the header has a comma too many or too few, and so cells in the
        # wrong columns; a workbook's row has a note at its right or blanks at its end.
        if complete[0] == CSV:
            excess = sum(map(bool, cells[len(names) :]))
            short = tuple(name for name in names[len(cells) :] if name in known)
        incomplete = any(name in needed for name in short)
        filled = [*cells, *[""] * (len(names) - len(cells))]
        return Row(number, dict(zip(names, filled, strict=False)), excess, short, incomplete)

    numbered = enumerate(rows[start + 1 :], start=start + 2)
    return [row_of(number, cells) for number, cells in numbered if any(cells)]


def missing_columns(sheets: Sheets, columns: Columns) -> list[str]:
    """The required columns missing from the sheet that has the most of them."""
    heads = _find_headers(sheets, columns).values()
    return min((missing for _, missing in heads), key=len, default=list(columns.required))


def _find_headers(sheets: Sheets, columns: Columns) -> dict[str, tuple[int, list[str]]]:
    """Sheet -> `_find_header` of it; only the sheet named in `columns` if the workbook has it."""
    if columns.sheet is not None and columns.sheet in sheets:
        sheets = {columns.sheet: sheets[columns.sheet]}
    return {name: _find_header(rows, columns) for name, rows in sheets.items()}


def _find_header(rows: Sequence[Sequence[str]], columns: Columns) -> tuple[int, list[str]]:
    """(position of the row with the most of the required names, the names missing from it).

    The position is -1 for a table that needs no such row.
    """
    if columns.headerless:
        first = dict(zip((*columns.required, *columns.optional), rows[0] if rows else (), strict=False))
        fits = all(cell.fullmatch(first.get(name, "")) for name, cell in columns.headerless.items())
        return (-1, []) if fits else (0, list(columns.required))
    best = (0, list(columns.required))
    for position, row in enumerate(rows[:HEADER_ROWS]):
        names = {columns.name(cell) for cell in row}
        missing = [column for column in columns.required if column.casefold() not in names]
        if len(missing) < len(best[1]):
            best = (position, missing)
    return best


def read_sheets(path: Path) -> Sheets:
    """Sheet name -> rows of stripped text; a csv file is one sheet with the name `CSV`.

    Raises ValueError if the file is missing or not such a table.
    """
    path = as_on_disk(path)
    try:
        with open_plain(path, "an annotation file") as file:
            file.read(1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if path.suffix.lower() == ".xlsx":
        try:
            return _read_workbook(path)
        except ImportError:
            raise  # openpyxl is not installed: the file is not to blame
        except Exception as error:  # openpyxl raises anything from KeyError to BadZipFile on a broken file
            raise ValueError(f"{path}: expected an Excel workbook, got {_one_line(error)}") from error
    if path.suffix.lower() != ".csv":
        raise ValueError(f"annotation expected a file that ends in .csv or .xlsx, got {path}")
    return {CSV: read_csv(path)}


def _read_workbook(path: Path) -> Sheets:
    """The sheets of an xlsx file; not by pandas, which rejects a file for one number out of range."""
    with zipfile.ZipFile(path) as parts:
        size = sum(part.file_size for part in parts.infolist())
    if size > MAX_WORKBOOK_BYTES:
        raise ValueError(f"{size} bytes unpacked, more than {MAX_WORKBOOK_BYTES}")
    import openpyxl  # needed only for Excel files

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        sheets = {}
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # the size that a file declares may be too small, and rows would be lost
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
    """The rows of a comma-separated UTF-8 file as stripped text; ValueError if it is not one."""
    path = as_on_disk(path)
    try:
        with open_plain(path, "a table") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, got {error.reason}; save the table as UTF-8"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "\0" in text:
        raise ValueError(f"{path}: expected UTF-8 text, got zero bytes; save the table as UTF-8")
    # strict: otherwise a quote that is never closed would put the rest of the file into one cell.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        where = f"line {reader.line_num}: {_one_line(error)}"
        raise ValueError(f"{path}: expected a comma-separated table, got {where}") from error
    if not rows:
        raise ValueError(f"{path}: expected a comma-separated table, got an empty file")
    return rows


def _one_line(error: Exception) -> str:
    return brief(" ".join(str(error).split()) or type(error).__name__, 300)
