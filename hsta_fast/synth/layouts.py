"""Layouts of rendered data: the paths of each dataset's frames, and its annotation file.

Names, number widths, columns, sheets and emotion words are those of the datasets, as described in their
readers. The frames are the same in all layouts, but grey in SAMM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..data.readers.smic import clip_id, subject_id
from ..files import write_atomically, write_text

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
_CLASSES = ("I", "II", "III", "IV", "V", "VI", "VII")


@dataclass(kw_only=True)
class RenderedClip:
    """A clip of a subject 1, 2, ...; frame numbers are the renderer's."""

    subject: int
    recording: str  # a, b, ...
    place: int  # among the clips of its recording, from 1
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
    more_sheets: tuple[str, ...] = ()
    grey: bool = False

    def row(self, clip: RenderedClip) -> dict[str, Any]:
        """Column -> cell of one clip."""
        return self.cells(clip, self.words[clip.emotion])

    def write(self, out: Path, rows: list[dict[str, Any]]) -> None:
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
        for line in ([*self.header], *cells):
            own.append(line)
        for name in self.more_sheets:
            book.create_sheet(name).append([*self.header])
        write_atomically(out / self.annotation, book.save)


def _recording(clip: RenderedClip) -> int:
    """1 for a, ..., 26 for z, 27 for a1, ..."""
    return ord(clip.recording[0]) - ord("a") + 1 + 26 * int(clip.recording[1:] or 0)


def _casme2_name(clip: RenderedClip) -> str:
    return f"EP{_recording(clip):02d}_{clip.place:02d}f"


def _samm_name(clip: RenderedClip) -> str:
    return f"{clip.subject:03d}_{_recording(clip)}_{clip.place}"


_SMIC_CODES = {"negative": "ne", "positive": "po", "surprise": "sur"}
_SMIC_WORDS = dict.fromkeys(("disgust", "fear", "anger", "sad"), "negative")
_SMIC_WORDS |= {"happy": "positive", "surprise": "surprise"}
_SMIC_FIRST = 17_580_000  # the camera's counter runs through all recordings


def _smic_name(clip: RenderedClip) -> str:
    return f"s{clip.subject}_{_SMIC_CODES[_SMIC_WORDS[clip.emotion]]}_{clip.same:02d}"


def _units(clip: RenderedClip) -> str:
    return EXPRESSIONS[clip.emotion][0]


LAYOUTS = {
    "casme3": Layout(
        words={word: word for word in EXPRESSIONS},
        frame=lambda clip, number: f"spNO.{clip.subject}/{clip.recording}/color/{number}.jpg",
        cells=lambda clip, word: {
            "Subject": f"spNO.{clip.subject}",
            "Filename": clip.recording,
            "Onset": clip.onset,
            "Apex": clip.apex,
            "Offset": clip.offset,
            "AU": _units(clip),
            "Objective class": EXPRESSIONS[clip.emotion][1],
            "emotion": word,
        },
        columns={
            "onset": "Onset",
            "apex": "Apex",
            "offset": "Offset",
            "objective": "Objective class",
            "emotion": "emotion",
        },
        known_as=lambda clip: (f"spNO.{clip.subject}", clip.recording),
        header=("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"),
        annotation="annotation.csv",
    ),
    "casme2": Layout(
        words={
            "others": "others",
            "disgust": "disgust",
            "surprise": "surprise",
            "fear": "fear",
            "sad": "sadness",
            "happy": "happiness",
        },
        frame=lambda clip, number: f"sub{clip.subject:02d}/{_casme2_name(clip)}/img{number}.jpg",
        cells=lambda clip, word: {
            "Subject": clip.subject,
            "Filename": _casme2_name(clip),
            "OnsetFrame": clip.onset,
            "ApexFrame": clip.apex,
            "OffsetFrame": clip.offset,
            "Action Units": _units(clip),
            "Estimated Emotion": word,
        },
        columns={
            "onset": "OnsetFrame",
            "apex": "ApexFrame",
            "offset": "OffsetFrame",
            "emotion": "Estimated Emotion",
        },
        known_as=lambda clip: (f"sub{clip.subject:02d}", _casme2_name(clip)),
        header=(
            "Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units",
            "Estimated Emotion",
        ),
        annotation="CASME2-coding-20140508.xlsx",
        sheet="Sheet1",
    ),
    "samm": Layout(
        words={
            "others": "Other",
            "disgust": "Disgust",
            "surprise": "Surprise",
            "fear": "Fear",
            "anger": "Anger",
            "sad": "Sadness",
            "happy": "Happiness",
        },
        frame=lambda clip, number: (
            f"{clip.subject:03d}/{_samm_name(clip)}/{clip.subject:03d}_{number:0{4 + clip.place % 2}d}.jpg"
        ),
        cells=lambda clip, word: {
            "Subject": f"{clip.subject:03d}",
            "Filename": _samm_name(clip),
            "Inducement Code": 1,
            "Onset Frame": clip.onset,
            "Apex Frame": clip.apex,
            "Offset Frame": clip.offset,
            "Duration": clip.offset - clip.onset + 1,
            "Micro": "Micro - 1/2",
            "Action Units": "+".join(f"AU{unit}" for unit in _units(clip).split("+")),
            "Estimated Emotion": word,
            "Objective Classes": _CLASSES.index(EXPRESSIONS[clip.emotion][1]) + 1,
        },
        columns={
            "onset": "Onset Frame",
            "apex": "Apex Frame",
            "offset": "Offset Frame",
            "objective": "Objective Classes",
            "emotion": "Estimated Emotion",
        },
        known_as=lambda clip: (f"{clip.subject:03d}", _samm_name(clip)),
        header=(
            "Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame", "Duration",
            "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes",
        ),
        annotation="SAMM_Micro_FACS_Codes_v2.xlsx",
        sheet="MICRO ONLY",
        above=13,
        grey=True,
    ),
    "smic": Layout(
        words=_SMIC_WORDS,
        frame=lambda clip, number: (
            f"SMIC_HS_E/s{clip.subject}/{_smic_name(clip)}/image{_SMIC_FIRST + number}.jpg"
        ),
        cells=lambda clip, word: {
            "Subject": clip.subject,
            "Filename": _smic_name(clip),
            "OnsetF": _SMIC_FIRST + clip.onset,
            "OffsetF": _SMIC_FIRST + clip.offset,
            "TotalMF1": clip.offset - clip.onset + 1,
            "FirstF": _SMIC_FIRST + min(clip.frames),
            "LastF": _SMIC_FIRST + max(clip.frames),
            "TotalVL": len(clip.frames),
            "Emotion": word,
        },
        columns={
            "onset": "OnsetF",
            "offset": "OffsetF",
            "second onset": "Onset2F",
            "second offset": "Offset2F",
            "emotion": "Emotion",
        },
        known_as=lambda clip: (subject_id(str(clip.subject)), clip_id(_smic_name(clip))),
        header=(
            "Subject", "Filename", "OnsetF", "OffsetF", "TotalMF1", "Onset2F", "Offset2F", "TotalMF2",
            "FirstF", "LastF", "TotalVL", "Emotion",
        ),
        annotation="SMIC-HS-E_annotation.xlsx",
        sheet="HS",
        more_sheets=("VIS", "NIR"),
    ),
}  # fmt: skip
