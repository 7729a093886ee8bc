"""Tables on disk as sheets of text: csv and tsv, xlsx, and xls with the extra `xls`."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path
from typing import Any

from ...files import as_on_disk, open_plain, reason
from ..clips import brief

# Of a workbook, unpacked. A published annotation has less than 1 MB; a malicious one may have any size.
MAX_WORKBOOK_BYTES = 100_000_000

# A cell with a formula that no program has calculated yet, as other programs than Excel write them.
UNCALCULATED = "a formula without a value"

# The column names are searched for in this many rows.
HEADER_ROWS = 40

# A text file is one sheet for each of these that splits it; the column names decide which one is meant.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}

# Sheet name -> rows of stripped text. That of a text file is a colon, which Excel forbids, and the separator.
Sheets = dict[str, list[list[str]]]

_FORMULA = re.compile(rb"<(?:\w+:)?f[ />]")


def is_text(sheet: str) -> bool:
    """Whether a sheet is that of a text file, by its name."""
    return sheet.startswith(":")


def annotation_files(root: Path) -> list[Path]:
    """The tables directly in `root`, without the lock files of an open Excel."""
    try:
        paths = sorted(root.iterdir())
    except OSError as error:
        raise ValueError(f"{root}: expected a readable folder, got: {reason(error)}") from error
    types = (".csv", ".tsv", ".xlsx", ".xls")
    return [p for p in paths if p.suffix.lower() in types and not p.name.startswith(("~$", "."))]


def read_sheets(path: Path) -> Sheets:
    """The sheets of a table; ValueError if it is missing, not such a file, or needs a missing package."""
    path = as_on_disk(path)
    try:
        with open_plain(path, "an annotation file") as file:
            file.read(1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return read_text(path)
    if kind not in (".xlsx", ".xls"):
        raise ValueError(f"annotation expected a file that ends in .csv, .tsv, .xlsx or .xls, got {path}")
    try:
        return _read_workbook(path) if kind == ".xlsx" else _read_old_workbook(path)
    except ImportError as error:
        if kind == ".xlsx":
            raise  # openpyxl is not installed: the file is not to blame
        how = "pip install 'hsta_fast[xls]', or save it as .xlsx"
        raise ValueError(f"{path}: expected the package xlrd for an old Excel file: {how}") from error
    except Exception as error:  # both packages raise anything from KeyError to BadZipFile on a broken file
        raise ValueError(f"{path}: expected an Excel workbook, got {_one_line(error)}") from error


def read_text(path: Path) -> Sheets:
    """The sheets of a UTF-8 text file, one for each separator; ValueError if it is not one."""
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
    top = text.split("\n", HEADER_ROWS)[:HEADER_ROWS]
    sheets: Sheets = {}
    errors = {}
    for separator, name in SEPARATORS.items():
        if separator != "," and not any(separator in line for line in top):
            continue
        # strict: otherwise a quote that is never closed would put the rest of the file into one cell.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            sheets[f":{separator}"] = [[cell.strip() for cell in row] for row in reader]
        except csv.Error as error:
            where = f"line {reader.line_num}: {_one_line(error)}"
            errors[separator] = f"{path}: expected a {name}-separated table, got {where}"
    # If a parse failed, the likely separator is that of the first line.
    likely = max(SEPARATORS, key=next((line for line in top if line.strip()), "").count)
    if likely in errors:
        raise ValueError(errors[likely])
    if not any(sheets.values()):
        raise ValueError(f"{path}: expected a comma-separated table, got an empty file")
    return sheets


def _read_workbook(path: Path) -> Sheets:
    """The sheets of an xlsx file; not by pandas, which rejects a file for one number out of range."""
    with zipfile.ZipFile(path) as parts:
        size = sum(part.file_size for part in parts.infolist())
        if size > MAX_WORKBOOK_BYTES:
            raise ValueError(f"{size} bytes unpacked, more than {MAX_WORKBOOK_BYTES}")
        sheets = [name for name in parts.namelist() if "/worksheets/" in name]
        has_formulas = any(_FORMULA.search(parts.read(name)) for name in sheets)
    if not has_formulas:
        plain = _rows(path, data_only=True, values_only=True)
        return {name: [[_text(value) for value in row] for row in rows] for name, rows in plain.items()}
    formulas = _rows(path, data_only=False, values_only=False)
    return {
        name: [
            [_calculated(*cells) for cells in zip(*pair, strict=True)]
            for pair in zip(rows, formulas[name], strict=True)
        ]
        for name, rows in _rows(path, data_only=True, values_only=False).items()
    }


def _rows(path: Path, *, data_only: bool, values_only: bool) -> dict[str, list[tuple[Any, ...]]]:
    """Sheet -> rows of openpyxl's cells or their values; with `data_only` not formulas but their values."""
    import openpyxl  # needed only for Excel files

    book = openpyxl.load_workbook(path, read_only=True, data_only=data_only)
    try:
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # the size that a file declares may be too small, and rows would be lost
        return {sheet.title: list(sheet.iter_rows(values_only=values_only)) for sheet in book.worksheets}
    finally:
        book.close()


def _calculated(cell: Any, formula: Any) -> str:
    """The text of a cell. A calculated formula whose value is an empty text has the type "str"."""
    if formula.data_type == "f" and cell.value is None and cell.data_type != "str":
        return UNCALCULATED
    return _text(cell.value)


def _read_old_workbook(path: Path) -> Sheets:
    """The sheets of an xls file."""
    import xlrd  # the extra `xls`

    if path.stat().st_size > MAX_WORKBOOK_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes, more than {MAX_WORKBOOK_BYTES}")
    book = xlrd.open_workbook(path, logfile=io.StringIO())

    def value(cell: Any) -> Any:
        if cell.ctype == xlrd.XL_CELL_DATE:
            return xlrd.xldate_as_datetime(cell.value, book.datemode)
        if cell.ctype == xlrd.XL_CELL_ERROR:
            return xlrd.error_text_from_code[cell.value]
        return bool(cell.value) if cell.ctype == xlrd.XL_CELL_BOOLEAN else cell.value

    return {
        sheet.name: [[_text(value(cell)) for cell in row] for row in sheet.get_rows()]
        for sheet in book.sheets()
    }


def _text(cell: Any) -> str:
    """A cell of a workbook as text; whole numbers without a decimal point."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    return str(cell).strip()


def _one_line(error: Exception) -> str:
    return brief(" ".join(str(error).split()) or type(error).__name__, 300)
