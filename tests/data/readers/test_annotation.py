"""Malformed annotation tables: one clear line, or every row is one clip or one fault."""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook

from hsta_fast.data import read_dataset
from hsta_fast.data.clips import LEFT_OUT
from hsta_fast.data.readers import casme2, casme3, custom, samm, smic
from hsta_fast.data.readers.annotation import Columns

from .. import fake_datasets


@dataclass(frozen=True)
class Layout:
    """A dataset's columns, a good row, the name of its onset column, and how to write a copy with frames."""

    dataset: str
    columns: Columns
    header: tuple[str | None, ...]
    row: Callable[..., fake_datasets.Cells]
    onset: str
    copy: Callable[[Path, list[fake_datasets.Cells]], Path]

    def good(self, number: int) -> list[Any]:
        """A good row whose onset is `number` frames later, which makes it another clip."""
        row = self.row()
        row[self.onset] += number
        return [row.get(name) if name is not None else None for name in self.header]


LAYOUTS = {
    layout.dataset: layout
    for layout in (
        Layout(
            "casme2",
            casme2.COLUMNS,
            fake_datasets.CASME2_HEADER,
            fake_datasets.casme2_row,
            "OnsetFrame",
            fake_datasets.casme2_copy,
        ),
        Layout(
            "samm",
            samm.COLUMNS,
            fake_datasets.SAMM_HEADER,
            fake_datasets.samm_row,
            "Onset Frame",
            fake_datasets.samm_copy,
        ),
        Layout(
            "smic",
            smic.COLUMNS,
            fake_datasets.SMIC_HEADER,
            fake_datasets.smic_row,
            "OnsetF",
            fake_datasets.smic_long_copy,
        ),
        Layout(
            "casme3",
            casme3.COLUMNS,
            fake_datasets.CASME3_HEADER,
            fake_datasets.casme3_row,
            "Onset",
            fake_datasets.casme3_copy,
        ),
        Layout(
            "csv",
            custom.COLUMNS,
            fake_datasets.CSV_HEADER,
            fake_datasets.csv_row,
            "onset",
            fake_datasets.csv_copy,
        ),
    )
}
NUM_ONSETS = 3  # of the five frames of a good row, the onsets that keep the apex inside the clip

text = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=6)
junk = st.one_of(
    st.none(),
    text,
    st.integers(-5, 5600),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [
            "",
            "/",
            "NaN",
            "nan",
            "inf",
            "-0",
            "..",
            "../..",
            "46.0",
            "4,7",
            "4;7",
            "=A1",
            'say "x"',
            "a\nb",
            "é",
        ]
    ),
    st.sampled_from(
        [
            "10" * 20,
            "9" * 4000,
            "x" * 30000,
            "\u0661\u0667\u0665",
            "²",
            "1e308",
            "C:",
            "sub01",
            "s1_ne_01",
            "?",
        ]
    ),
)
edit = st.dictionaries(st.integers(0, 11), junk, max_size=3)  # column -> its new cell
rows_of = st.lists(st.tuples(st.integers(0, NUM_ONSETS - 1), edit), max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """The content and the format of a table."""
    return {
        "dataset": draw(st.sampled_from(sorted(LAYOUTS))),
        "rows": draw(rows_of),
        "backwards": draw(st.booleans()),
        "repeat": draw(st.integers(0, 3)),
        "drop": draw(st.none() | st.integers(0, 8)),
        "rename": draw(st.none() | st.tuples(st.integers(0, 8), junk)),
        "blank_rows": draw(st.integers(0, 2)),
        "ragged": draw(st.sampled_from([0, 0, 0, 1, -1])),
        "encoding": draw(
            st.sampled_from(["xlsx", "utf-8", "utf-8-sig", "utf-8", "utf-16", "latin-1", "cp1252"])
        ),
        "separator": draw(st.sampled_from([",", ";", "\t"])),
    }


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fake copy of each dataset with the frames of one good row."""
    root = tmp_path_factory.mktemp("layouts")
    return {name: layout.copy(root / name, [layout.row()]) for name, layout in LAYOUTS.items()}


def write(path: Path, lines: list[list[Any]], encoding: str, separator: str = ",") -> list[list[str]]:
    """Write the lines; returns the cells as a reader sees them, blank where the format has none."""
    if encoding == "xlsx":
        book = Workbook()
        sheet = book.active
        assert sheet is not None
        for line in lines:
            sheet.append(line)
        book.save(path)
    else:
        with path.open("w", encoding=encoding, errors="replace", newline="") as file:
            rows = [["" if cell is None else cell for cell in line] for line in lines]
            csv.writer(file, delimiter=separator).writerows(rows)
    return [["" if cell is None else str(cell).strip() for cell in line] for line in lines]


def check(plan: dict[str, Any], root: Path, folder: Path) -> None:
    layout = LAYOUTS[plan["dataset"]]
    header: list[Any] = list(layout.header)
    lines: list[list[Any]] = []
    for number, changes in plan["rows"]:
        line = layout.good(number)
        for column, cell in changes.items():
            if column < len(line):
                line[column] = cell
        lines.append(line)
    lines += [list(line) for line in lines[: plan["repeat"]]]
    if plan["backwards"]:
        lines.reverse()
    good = [layout.good(number) for number in range(NUM_ONSETS)]
    onset = header.index(layout.onset)
    wanted_good = {line[onset] for line in lines if line in good}
    if plan["drop"] is not None and plan["drop"] < len(header):
        for line in (header, *lines):
            del line[plan["drop"]]
    if plan["rename"] is not None and plan["rename"][0] < len(header):
        header[plan["rename"][0]] = plan["rename"][1]
    if plan["ragged"] and lines:
        lines[0] = [*lines[0], "more"] if plan["ragged"] > 0 else lines[0][:-1]
    lines += [[None] * len(header)] * plan["blank_rows"]
    table = folder / ("table.xlsx" if plan["encoding"] == "xlsx" else "table.csv")
    cells = write(table, [header, *lines], plan["encoding"], plan["separator"])
    try:
        read = read_dataset(root, layout.dataset, annotation=table)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 2000
        assert str(table) in message or "expected at least one usable clip, got none" in message
        intact = plan["drop"] is None and plan["rename"] is None and not plan["ragged"]
        assert not (intact and wanted_good and plan["encoding"] in ("xlsx", "utf-8", "utf-8-sig")), message
        return
    content = [row for row in cells[1:] if any(row)]
    has_emotions = any(name.casefold() in ("emotion", "estimated emotion") for name in cells[0])
    further = [fault for fault in read.faults if "of the row" in fault.what and "expression" in fault.what]
    lost = [fault for fault in read.faults if fault.action == LEFT_OUT and fault not in further]
    assert len(read) + len(lost) == len(content), read.faults
    assert not read.clips.duplicated(["dataset", "subject", "clip", "onset"]).any()
    for clip in read.clips.to_dict("records"):
        assert clip["onset"] <= clip["apex"] <= clip["offset"]
        assert len(clip["frames"]) == clip["offset"] - clip["onset"] + 1
        assert all((root / path).is_file() and ".." not in path for path in clip["frames"])
        assert bool(clip["emotion"]) == has_emotions
    if plan["drop"] is None and plan["rename"] is None and not plan["ragged"]:
        assert wanted_good <= set(read.clips["onset"])
    assert all("\n" not in str(fault) and len(str(fault)) < 1000 for fault in read.faults)


QUOTE = {"rows": [(0, {}), (1, {1: 'a"b'}), (2, {7: 'x" , "y'})], "encoding": "utf-8"}
PLAIN = {
    "backwards": False,
    "repeat": 0,
    "drop": None,
    "rename": None,
    "blank_rows": 0,
    "ragged": 0,
    "separator": ",",
    "dataset": "casme2",
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=tables())
@example(plan={**PLAIN, **QUOTE})
@example(plan={**PLAIN, "rows": [(0, {}), (1, {0: 1.7976931348623155e308})], "encoding": "xlsx"})
@example(plan={**PLAIN, "rows": [(0, {0: "9" * 4000})], "encoding": "xlsx"})
@example(plan={**PLAIN, "rows": [(0, {})], "rename": (0, "a\nb"), "encoding": "xlsx"})
def test_a_hundred_tables(plan: dict[str, Any], roots: dict[str, Path], tmp_path: Path) -> None:
    check(plan, roots[plan["dataset"]], tmp_path)


@pytest.mark.full
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=tables())
def test_a_thousand_tables(plan: dict[str, Any], roots: dict[str, Path], tmp_path: Path) -> None:
    check(plan, roots[plan["dataset"]], tmp_path)


def test_most_tables_are_read(roots: dict[str, Path], tmp_path: Path) -> None:
    """The good rows of each layout are all read, in every format: so the property is not vacuous."""
    for dataset in LAYOUTS:
        for encoding, separator in (("xlsx", ","), ("utf-8", ","), ("utf-8-sig", ";"), ("utf-8", "\t")):
            plan: dict[str, Any] = {
                **PLAIN,
                "separator": separator,
                "dataset": dataset,
                "rows": [(0, {}), (1, {}), (2, {})],
                "encoding": encoding,
            }
            check(plan, roots[dataset], tmp_path)
            table = tmp_path / ("table.xlsx" if encoding == "xlsx" else "table.csv")
            read = read_dataset(roots[dataset], dataset, annotation=table)
            assert len(read) == 3 and read.remarks == ()


@pytest.mark.parametrize("columns", [65, 700])
def test_a_huge_table(roots: dict[str, Path], tmp_path: Path, columns: int) -> None:
    """Up to 20,000 rows and many columns; three rows are good."""
    layout = LAYOUTS["casme3"]
    header = [*layout.header, *(f"note {number}" for number in range(columns))]
    bad = [*layout.good(0)[:2], "x", *layout.good(0)[3:]]
    lines = [header, *([bad] * (20_000 if columns == 65 else 100)), *(layout.good(n) for n in range(3))]
    path = tmp_path / "table.csv"
    write(path, lines, "utf-8")
    table = read_dataset(roots["casme3"], "casme3", annotation=path)
    assert len(table) == 3 and len(table.faults) == len(lines) - 4


def test_a_cell_too_long_for_csv_is_named(roots: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write(path, [list(fake_datasets.CASME3_HEADER), ["x" * 200_000]], "utf-8")
    with pytest.raises(
        ValueError, match=r"table.csv: expected a comma-separated table, got line 2: field larger"
    ):
        read_dataset(roots["casme3"], annotation=path)


def test_a_formula_with_a_blank_value_is_a_blank(tmp_path: Path) -> None:
    """As Excel and LibreOffice write it: a text without letters, not a formula without a value."""
    root = fake_datasets.samm_copy(tmp_path, [fake_datasets.samm_row()])
    path = root / "SAMM_Micro_FACS_Codes_v2.xlsx"
    rows = [fake_datasets.samm_row(**{"Objective Classes": "=L15", "Action Units": "12"})]
    fake_datasets.sheet(path, fake_datasets.SAMM_HEADER, rows, above=13)
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    before = re.compile(rb'<c r="K15"><f>L15</f><v ?/?>(</v>)?</c>')
    sheet, found = before.subn(b'<c r="K15" t="str"><f>L15</f><v></v></c>', parts["xl/worksheets/sheet1.xml"])
    assert found == 1 and len(read_dataset(root).faults) == 1
    with zipfile.ZipFile(path, "w") as book:
        for name, data in (parts | {"xl/worksheets/sheet1.xml": sheet}).items():
            book.writestr(name, data)
    table = read_dataset(root)
    assert table.faults == () and table.clips["objective_class"].tolist() == [1]
