"""Tables that other programs write, as text: any separator, Excel workbooks, arrays of numpy."""

import codecs
import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..files import open_plain

WANTED = "a table (csv, tsv or other text, xlsx, npy)"
_SEPARATORS = (",", ";", "\t", "|")
_MAX_WORKBOOK_BYTES = 100_000_000  # unpacked; a malicious file may have any size
_NUMPY, _ZIP, _OLD_EXCEL = b"\x93NUMPY", b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_tables(path: Path) -> dict[str, pd.DataFrame]:
    """The tables of a file, sheet name -> table; cells are stripped text, blank rows are left out.

    The file's first bytes tell what it is, not its name. A text is one table, with the name "". Its separator
    is the one of comma, semicolon, tab and | that gives the first line most cells; without any of them, white
    space. A first line `sep=;`, as Excel writes it, names it. Columns without a name become "column 1", ...

    A row's number in the file, 1 for the first, is its index + 2. It is the line number, unless a cell has a
    line break.

    Raises:
        ValueError: the file cannot be read as a table; one line naming it.
    """
    data = _read(path)
    if data.startswith(_ZIP):
        sheets = {
            name: _table(f"{path} sheet {name!r}", rows) for name, rows in _workbook(path, data).items()
        }
        return {name: table for name, table in sheets.items() if len(table.columns)}
    if data.startswith(_OLD_EXCEL):
        raise ValueError(f"{path}: expected {WANTED}, got an old Excel file: save it as .xlsx")
    return {"": _table(str(path), _text_rows(path, data))}


def is_array(path: Path) -> bool:
    """Whether a file is an array of numpy, by its first bytes; ValueError if it cannot be read."""
    return _read(path, len(_NUMPY)) == _NUMPY


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file; never one of Python objects, which could run code.

    Raises:
        ValueError: it is no such file; one line naming it.
    """
    expected = f"{path}: expected an array of numbers or texts (.npy)"
    if not is_array(path):
        raise ValueError(f"{expected}, got another kind of file")
    try:
        # Mapped, not read: then a size in its header that the file does not have is an error, not memory.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # a damaged header raises anything, from KeyError to TokenError
        got = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{expected}, got: {got}") from error


def texts(values: np.ndarray) -> list[str]:
    """The elements of a 1-d array as text; whole numbers without a decimal point.

    Raises:
        ValueError: they are neither numbers nor texts.
    """
    if values.dtype.kind == "S":
        return [value.decode(errors="backslashreplace").strip() for value in values.tolist()]
    if values.dtype.kind not in "biufU":
        raise ValueError(f"expected numbers or texts, got {values.dtype}")
    return [_text(int(value) if values.dtype.kind == "b" else value) for value in values.tolist()]


def _read(path: Path, size: int = -1) -> bytes:
    """The first `size` bytes of a file, by default all."""
    if path.is_dir() or not path.exists():
        got = "a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: expected {WANTED}, got {got}")
    try:
        with open_plain(path, WANTED) as file:
            return file.read(size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _text_rows(path: Path, data: bytes) -> list[list[str]]:
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got {error.reason}; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path}: expected {WANTED}, got zero bytes")
    head = next((line for line in text.splitlines() if line.strip()), "")
    named = head.casefold().startswith("sep=") and len(head.strip()) <= len("sep=;")
    cells = {separator: len(next(csv.reader([head], delimiter=separator))) for separator in _SEPARATORS}
    separator = (head[len("sep=") :] or "\t")[0] if named else max(cells, key=lambda mark: cells[mark])
    if not named and cells[separator] == 1:
        return [line.split() for line in text.splitlines()]
    # strict: otherwise a quote that is never closed would put the rest of the file into one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table, got line {reader.line_num}: {error}") from error
    if named:
        next(row for row in rows if any(row)).clear()
    return rows


def _workbook(path: Path, data: bytes) -> dict[str, list[list[str]]]:
    """The rows of each sheet; not by pandas, which refuses a file for one number out of range."""
    import openpyxl  # needed only for Excel files

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            size = sum(part.file_size for part in parts.infolist())
            if "xl/workbook.xml" not in parts.namelist():
                raise ValueError("another kind of file; of an .npz, save the arrays as .npy")
        if size > _MAX_WORKBOOK_BYTES:
            raise ValueError(f"{size} bytes unpacked, more than {_MAX_WORKBOOK_BYTES}")
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        sheets = {}
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # the size that a file declares may be too small, and rows would be lost
            rows = sheet.iter_rows(values_only=True)
            sheets[sheet.title] = [[_text(cell) for cell in row] for row in rows]
        return sheets
    except Exception as error:  # openpyxl raises anything from KeyError to BadZipFile on a broken file
        got = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: expected an Excel workbook, got {got}") from error


def _text(cell: Any) -> str:
    """A cell as text; whole numbers without a decimal point."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    return str(cell).strip()


def _table(place: str, rows: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Rows of cells as a table whose columns the first row that is not blank names."""
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if any(row)]
    if not numbered:
        return pd.DataFrame()
    (_, head), *body = numbered
    width = max(len(row) - next(i for i, cell in enumerate(reversed(row)) if cell) for _, row in numbered)
    if (long := next((number for number, row in body if any(row[len(head) :])), None)) is not None:
        raise ValueError(
            f"{place}: row {long}: expected no more cells than the {len(head)} columns, got more"
        )
    names = [head[i] or f"column {i + 1}" for i in range(min(width, len(head)))]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{place}: expected each column once, got several of {', '.join(repeated)}")
    filled = [[*row, *[""] * len(names)][: len(names)] for _, row in body]
    return pd.DataFrame(filled, columns=names, index=[number - 2 for number, _ in body], dtype=object)
