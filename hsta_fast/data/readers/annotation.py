"""Annotation tables as rows: which sheet, separator and row has the column names, and what they mean.

A dataset's reader interprets the columns; every cell is text (see `sheets.py`). The row of the column names
is searched for, because files have titles above it (SAMM's column names are in row 14).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from ...files import inside
from ..clips import brief
from .sheets import HEADER_ROWS, UNCALCULATED, Sheets, annotation_files, is_text, read_sheets
from .tree import MAX_DEPTH, levels

# Below the root, a folder with more tables holds features or scores, and no more than so many are opened.
MAX_TABLES_IN_FOLDER, MAX_TABLES = 16, 64
MAX_TABLE_BYTES = 4_000_000  # there; a published annotation has less than 1 MB

# What a folder holds instead of an annotation, for a message.
NO_TABLE = f"no csv or xlsx file, here or up to {MAX_DEPTH} levels below"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table; names in any case.

    filled: those of the optional columns in which a csv row must have a cell, if the table has the column.
    telling: those of the optional columns by which a table without frames is known, where another dataset
        has the required ones, too.
    headerless: for a table without column names, whose columns are the required and then the optional ones:
        what the cells of some columns match in its first row (rows before it are skipped).
    sheet: the sheet to read if a workbook has one of this name.
    aliases: other name of a column -> its name, both in lower case, the first in letters and digits only. It
        names the column where no cell of the table has the column's own name.
    similar: names that may or may not mean a column -> that column, in the same spellings.
    companion: matches the file name, without its type, of tables next to the annotation that are not it.
    below: whether the table may lie below the root.
    unread: columns of the published table that are not used. Of others, those with a word such as "onset" are
        named in a remark. None for a table of something else than clips.
    names_all: whether all columns that are not read are named in a remark.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    telling: tuple[str, ...] = ()
    headerless: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    sheet: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    similar: Mapping[str, str] = field(default_factory=dict)
    companion: re.Pattern[str] | None = None
    below: bool = True
    unread: tuple[str, ...] | None = None
    names_all: bool = False

    def names(self, header: Sequence[str]) -> list[str]:
        """The column that each cell of a header names, in lower case; ignores extra spaces.

        Of optional columns only letters and digits count. Those of a required one tell datasets apart.
        """
        names = [" ".join(cell.split()).casefold() for cell in header]
        others = {_letters(name): name.casefold() for name in self.optional} | dict(self.aliases)
        for position, name in enumerate(names):
            meant = others.get(_letters(name), name)
            if meant not in names:
                names[position] = meant
        return names

    def remarks(self, header: Sequence[str]) -> list[str]:
        """What to say of columns that have another name than the known ones: they are read, or are not."""
        optional = [name.casefold() for name in self.optional]
        known = [*(name.casefold() for name in self.required), *optional]
        names, remarks, others = self.names(header), [], []
        unused = {_letters(name) for name in self.unread or ()}
        for cell, name in zip(header, names, strict=True):
            own = _letters(cell)
            if name in optional and own in self.aliases and own != _letters(name):
                remarks.append(f"column {brief(cell)!r} is read as {name}")
            elif name and name not in known and own not in unused:
                absent = {_letters(column): column for column in known if column not in names}
                close = [absent[found] for found in get_close_matches(own, absent, n=1, cutoff=0.8)]
                word = _word(cell) if self.unread is not None else None
                about = [column for column in known if word and _word(column) == word]
                meant = self.aliases.get(own) or self.similar.get(own) or "".join(close or about[:1])
                if meant:
                    instead = f": {meant} is there" if meant in names else f"; did you mean {meant}?"
                    remarks.append(f"column {brief(cell)!r} is not read{instead}")
                elif word or self.names_all:
                    others.append(brief(cell, 40))
        if others:
            which = brief(", ".join(map(repr, others)), 300)
            remarks.append(f"column{'s'[: len(others) - 1]} not read: {which}")
        return remarks


# What a column is about, and the words by which its name tells it: anywhere in it, or alone.
_ABOUT = {
    "class": (("objective",), ()),
    "units": (("actionunit", "facs"), ("action", "au", "aus", "unit", "units")),
    "onset": (("onset", "start", "begin"), ("first", "on")),
    "apex": (("apex", "peak"), ()),
    "offset": (("offset",), ("end", "last", "off")),
    "emotion": (("emotion", "label", "class", "feeling"), ("emo",)),
    "expression": (("expression",), ()),
}


def _word(name: str) -> str | None:
    """What a column with such a name is about ("AU_list": units), None for anything else."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", " ".join(name.split()))
    alone = set(re.findall(r"[^\W\d_]+", f"{apart} {name}".casefold()))
    letters = _letters(name)
    for what, (anywhere, whole) in _ABOUT.items():
        if any(word in letters for word in anywhere) or alone.intersection(whole):
            return what
    return None


def _letters(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return "".join(filter(str.isalnum, name.casefold()))


@dataclass(frozen=True)
class Row:
    """One row: its number in the file, 1 for the first, and its cells by lower-case column name.

    excess: cells of a csv row beyond the last column.
    short: the known columns for which a csv row has no cell.
    uncalculated: the known columns with a formula that was never calculated; their cell is "".
    incomplete: whether one of those two kinds is required, or has to be filled.
    """

    number: int
    cells: Mapping[str, str]
    excess: int = 0
    short: tuple[str, ...] = ()
    uncalculated: tuple[str, ...] = ()
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
    """The one table in `root` that has the columns, or else in the folders below it.

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
        # An old workbook beside a new one is the same table, or an older one.
        found = [path for path in found if path.suffix.lower() != ".xls"] or found
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.relative_to(root).as_posix() for path in found)
            raise ValueError(f"{root}: expected one annotation file, got {names}; name one with --annotation")
    if errors:
        raise ValueError(first_errors(errors))
    raise ValueError(f"{root}: expected an annotation file in this folder, got {NO_TABLE}")


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
    """The tables in a folder below the root, without large ones and links out; none if it cannot be read."""
    tables: list[Path] = []
    with suppress(ValueError):
        for path in annotation_files(root / folder):
            with suppress(ValueError, OSError):
                if inside(root, f"{folder}/{path.name}").stat().st_size <= MAX_TABLE_BYTES:
                    tables.append(path)
    return tables


def read_annotation(path: Path, columns: Columns) -> list[Row]:
    """Every row below the column names; empty rows are skipped.

    Raises ValueError if the file cannot be read, or a column is missing or there twice.
    """
    return rows_of(path, read_sheets(path), columns)[0]


def annotated_rows(root: Path, annotation: Path | str | None, columns: Columns) -> AnnotatedRows:
    """The rows of `annotation`, by default of the one in `root`."""
    path = find_annotation(root, columns) if annotation is None else Path(annotation)
    rows, remarks = rows_of(path, read_sheets(path), columns)
    return AnnotatedRows(
        ((f"{path.name} row {row.number}", row) for row in rows),
        [f"{path.name}: {remark}" for remark in remarks],
    )


def rows_of(path: Path, sheets: Sheets, columns: Columns) -> tuple[list[Row], list[str]]:
    """`read_annotation` for the sheets of a file that is already read, and remarks on its columns."""
    heads = _find_headers(sheets, columns)
    complete = [name for name, (_, missing) in heads.items() if not missing]
    if not complete:
        # Of several sheets or separators, name the one that was probably meant.
        name = min(heads, key=lambda name: (len(heads[name][1]), -_width(sheets[name])), default="")
        position, missing = heads.get(name, (0, list(columns.required)))
        where = f"{path} sheet {name!r}" if name and not is_text(name) else str(path)
        cells = sheets[name][position] if sheets.get(name) else []
        found = brief(", ".join(" ".join(cell.split()) for cell in cells if cell), 300) or "none"
        raise ValueError(f"{where}: expected also the columns {', '.join(missing)}, got {found}")
    if len(complete) > 1 and not is_text(complete[0]):
        raise ValueError(f"{path}: expected the columns in one sheet, got them in {', '.join(complete)}")
    rows = sheets[complete[0]]
    start = heads[complete[0]][0]
    meant = (*columns.required, *columns.optional)
    header = meant if columns.headerless else rows[start]
    names = columns.names(header)
    repeated = [column for column in meant if names.count(column.casefold()) > 1]
    if repeated:
        raise ValueError(f"{path}: expected each column once, got several of {', '.join(repeated)}")
    known = {column.casefold() for column in meant}
    needed = {column.casefold() for column in (*columns.required, *columns.filled)}

    def row_of(number: int, cells: Sequence[str]) -> Row:
        excess, short = 0, tuple[str, ...]()
        # A csv row longer or shorter than the header has a comma too many or too few, and so cells in the
        # wrong columns; a workbook's row has a note at its right or blanks at its end.
        if is_text(complete[0]):
            excess = sum(map(bool, cells[len(names) :]))
            short = tuple(name for name in names[len(cells) :] if name in known)
        texts = dict(zip(names, [*cells, *[""] * (len(names) - len(cells))], strict=False))
        formulas = tuple(name for name in texts if texts[name] == UNCALCULATED and name in known)
        texts |= dict.fromkeys(formulas, "")
        incomplete = any(name in needed for name in (*short, *formulas))
        return Row(number, texts, excess, short, formulas, incomplete)

    numbered = enumerate(rows[start + 1 :], start=start + 2)
    result = [row_of(number, cells) for number, cells in numbered if any(cells)]
    return result, columns.remarks(header)


def missing_columns(sheets: Sheets, columns: Columns) -> list[str]:
    """The required columns missing from the sheet that has the most of them."""
    heads = _find_headers(sheets, columns).values()
    return min((missing for _, missing in heads), key=len, default=list(columns.required))


def _width(rows: Sequence[Sequence[str]]) -> int:
    """The largest number of cells in a row in which the column names are searched for."""
    return max((sum(map(bool, row)) for row in rows[:HEADER_ROWS]), default=0)


def _find_headers(sheets: Sheets, columns: Columns) -> dict[str, tuple[int, list[str]]]:
    """Sheet -> `_find_header` of it; only the sheet named in `columns` if the workbook has it."""
    if columns.sheet is not None and columns.sheet in sheets:
        sheets = {columns.sheet: sheets[columns.sheet]}
    return {name: _find_header(rows, columns) for name, rows in sheets.items()}


def _find_header(rows: Sequence[Sequence[str]], columns: Columns) -> tuple[int, list[str]]:
    """(position of the row with the most of the required names, the names missing from it).

    For a table without column names it is the row before the first one that fits, -1 if there is none.
    """
    if columns.headerless:  # somebody may have added column names, or a blank row
        for position, row in enumerate(rows[:HEADER_ROWS]):
            cells = dict(zip((*columns.required, *columns.optional), row, strict=False))
            if all(cell.fullmatch(cells.get(name, "")) for name, cell in columns.headerless.items()):
                return position - 1, []
        return 0, list(columns.required)
    best = (0, list(columns.required))
    for position, row in enumerate(rows[:HEADER_ROWS]):
        names = set(columns.names(row))
        missing = [column for column in columns.required if column.casefold() not in names]
        if len(missing) < len(best[1]):
            best = (position, missing)
    return best
