"""What a layout of rendered data is: the paths of a dataset's frames, and its annotation file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ...data.clips import LEFT_OUT
from ...files import write_atomically, write_text

# Emotion word -> the action units that show it, and the objective class of that set (Davison et al. 2018).
EXPRESSIONS: dict[str, tuple[str, str]] = {
    "others": ("5+7", "VII"),
    "disgust": ("4+9", "IV"),
    "surprise": ("1+2", "II"),
    "fear": ("20", "VI"),
    "anger": ("4+7", "III"),
    "sad": ("15", "V"),
    "happy": ("12", "I"),
}

Rows = list[dict[str, Any]]  # column -> cell


@dataclass(kw_only=True)
class RenderedClip:
    """A clip of a subject 1, 2, ...; frame numbers are the renderer's."""

    subject: int
    recording: str  # a, b, ...
    place: int  # among the clips of its recording, from 1
    number: int  # among the subject's clips, from 1
    same: int  # among the subject's clips of the same word, from 1
    onset: int
    apex: int
    offset: int
    emotion: str
    frames: list[int] = field(default_factory=list)  # all, with the neutral ones around it


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a dataset names its frames, and what its annotation has."""

    words: dict[str, str]  # the renderer's emotion -> the dataset's
    frame: Callable[[RenderedClip, int], str]  # path of a frame, below the folder
    cells: Callable[[RenderedClip, str], dict[str, Any]]  # column -> cell, given the dataset's emotion word
    columns: dict[str, str]  # onset, apex, ... -> its column; those that faults change
    known_as: Callable[[RenderedClip], tuple[str, str]]  # subject and clip, as its reader writes them
    header: tuple[str | None, ...]  # None: a column without a name
    annotation: str
    sheet: str = ""
    above: int = 0  # rows above the column names
    more_sheets: Callable[[Rows], dict[str, list[list[Any]]]] = lambda rows: {}  # name -> its rows
    grey: bool = False
    headerless: bool = False  # no row of column names
    offset_zero: str = LEFT_OUT  # what its reader does about an offset of 0

    def row(self, clip: RenderedClip) -> dict[str, Any]:
        """Column -> cell of one clip."""
        return self.cells(clip, self.words[clip.emotion])

    def write(self, out: Path, rows: Rows) -> None:
        """Write the annotation file with these rows, atomically."""
        cells = [[row.get(name) if name is not None else None for name in self.header] for row in rows]
        if self.annotation.endswith(".csv"):
            table = pd.DataFrame(cells, columns=[str(name) for name in self.header])
            write_text(out / self.annotation, table.to_csv(index=False))
            return
        from openpyxl import Workbook  # only Excel files need it

        book = Workbook()
        own = book.active
        assert own is not None
        own.title = self.sheet
        for number in range(self.above):
            own.append(["Rendered faces, no recordings" if number == 0 else None])
        for line in (*([] if self.headerless else [[*self.header]]), *cells):
            own.append(line)
        for name, lines in self.more_sheets(rows).items():
            sheet = book.create_sheet(name)
            for line in lines:
                sheet.append(line)
        write_atomically(out / self.annotation, book.save)


def recording_number(clip: RenderedClip) -> int:
    """1 for a, ..., 26 for z, 27 for a1, ..."""
    return ord(clip.recording[0]) - ord("a") + 1 + 26 * int(clip.recording[1:] or 0)


def units(clip: RenderedClip) -> str:
    """The action units of a clip, such as "4+9"."""
    return EXPRESSIONS[clip.emotion][0]


def units_with_prefix(clip: RenderedClip) -> str:
    """The action units of a clip, such as "AU4+AU9"."""
    return "+".join(f"AU{unit}" for unit in units(clip).split("+"))
