"""Tiny fake copies of the further datasets, as `fake_datasets` has them of the first four."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openpyxl import Workbook

from .fake_datasets import Cells, frames, sheet

# The columns of the files; None is a column without a name.
MMEW_HEADER = (
    *("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units", "Estimated Emotion"),
    "remarks",
)
DFME_HEADER = (
    *("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Emotion", "EmotionId", "Fps", "AU"),
)
CASME_HEADER = (
    *("Subject", "Filename", None, "OnsetF", "ApexF1", "ApexF2", "OffsetF", None, "AU", "Emotion"),
)
FOUR_DME_HEADER = (
    *("sub_ID", "fold_name", "fold", "Emotion", "Onset", "Apex", "Offset", "AUs", "eye blink"),
    *("Positive", "Negative", "Surprise", "Repression", "Others"),
)
SAMM_LONG_HEADER = (
    *("Subject", "Filename", "Inducement Code", "Onset", "Apex", "Offset", "Duration", "Type"),
    *("Action Units", "Notes"),
)


def mmew_row(**changes: Any) -> Cells:
    frame_numbers = {"OnsetFrame": 1, "ApexFrame": 3, "OffsetFrame": 5}
    words = {"Action Units": "1+2", "Estimated Emotion": "surprise"}
    return {"Subject": "S06", "Filename": "S06-07-001"} | frame_numbers | words | changes


def mmew_copy(root: Path, rows: Sequence[Cells]) -> Path:
    for row in rows:
        folder = root / "Micro_Expression" / str(row["Estimated Emotion"]) / str(row["Filename"])
        frames(folder, [f"{number}.jpg" for number in range(1, 8)])
    sheet(root / "MMEW_Micro_Exp.xlsx", MMEW_HEADER, rows)
    return root


def dfme_row(**changes: Any) -> Cells:
    frame_numbers = {"OnsetFrame": 109, "ApexFrame": 111, "OffsetFrame": 113}
    words = {"Emotion": "contempt", "EmotionId": 2, "Fps": 500, "AU": "4+7"}
    return {"Subject": "sub0001", "Filename": "sub0001_01"} | frame_numbers | words | changes


def dfme_copy(root: Path, rows: Sequence[Cells], part: str = "DFME_train") -> Path:
    for row in rows:
        frames(root / part / str(row["Filename"]), [f"{number:05d}.png" for number in range(105, 120)])
    sheet(root / "training_full_with_AU.xlsx", DFME_HEADER, rows)
    return root


def casme_row(**changes: Any) -> Cells:
    frame_numbers = {"OnsetF": 8, "ApexF1": 10, "ApexF2": None, "OffsetF": 12}
    return {"Subject": 1, "Filename": "EP01_5", "AU": "4+9", "Emotion": "tense"} | frame_numbers | changes


def casme_copy(root: Path, rows: Sequence[Cells], prefix: str = "") -> Path:
    for row in rows:
        clip = row["Filename"]
        folder = root / f"sub{row['Subject']:02d}" / clip
        frames(folder, [f"{prefix}{clip}-{number}.jpg" for number in range(6, 15)])
    sheet(root / "casme.xlsx", CASME_HEADER, rows)
    return root


def four_dme_row(**changes: Any) -> Cells:
    words = {"Emotion": "Negative", "AUs": "AU4+AU7", "eye blink": 0, "Negative": 1}
    flags = dict.fromkeys(("Positive", "Surprise", "Repression", "Others"), 0)
    frame_numbers = {"Onset": 30, "Apex": 32, "Offset": 34}
    return {"sub_ID": "S01", "fold_name": "S01_01_02"} | frame_numbers | words | flags | changes


def four_dme_copy(root: Path, rows: Sequence[Cells]) -> Path:
    for row in rows:
        folder = root / "gray_micro" / str(row["sub_ID"]) / str(row["fold_name"])
        frames(folder, [f"{number}.jpg" for number in range(28, 37)])
    sheet(root / "4DME_Labelling_Micro_release v1.xlsx", FOUR_DME_HEADER, rows)
    return root


SquaredRow = list[Any]  # participant, expression, onset, apex, offset, units, emotion, type, self-report


def squared_row(
    participant: int = 1,
    expression: str = "anger1_1",
    *,
    onset: int = 557,
    apex: int = 559,
    offset: int = 561,
    units: str = "4+9",
    kind: str = "micro-expression",
) -> SquaredRow:
    return [participant, expression, onset, apex, offset, units, "negative", kind, "anger"]


def squared_copy(
    root: Path, rows: Sequence[SquaredRow], *, recording: str = "15_0401girlcrashing", sheets: int = 3
) -> Path:
    """Of participant 1, whose folder is s15, and 3, whose folder is s19."""
    frames(root / "rawpic/s15" / recording, [f"img{number:03d}.jpg" for number in range(550, 570)])
    frames(root / "rawpic/s19/23_0502funnyerrors", [f"img{number:03d}.jpg" for number in range(1, 9)])
    frames(root / "selectedpic/s15/15_0401girlcrashing", ["img557.jpg"])
    book = Workbook()
    own = book.active
    assert own is not None
    own.title = "CASFEcode_final"
    names = [["15", "s15", 1], ["19", "s19", 3]]
    codes = [["0101", "disgust1"], ["0401", "anger1"], ["0502", "happy1"]]
    for place, lines in enumerate((rows, names, codes)[:sheets]):
        page = own if place == 0 else book.create_sheet(f"naming rule{place}")
        for line in lines:
            page.append(line)
    book.save(root / "CAS(ME)^2code_final(Updated).xlsx")
    return root


def samm_long_row(**changes: Any) -> Cells:
    frame_numbers = {"Onset": 562.0, "Apex": 564.0, "Offset": 566.0, "Duration": 5}
    words = {"Inducement Code": 1, "Type": "Micro - 1/2", "Action Units": "AU4+AU7"}
    return {"Subject": 6, "Filename": "006_1_2"} | frame_numbers | words | changes


def samm_long_copy(root: Path, rows: Sequence[Cells]) -> Path:
    for row in rows:
        recording = str(row["Filename"]).rpartition("_")[0]
        names = [f"{recording}_{number:04d}.jpg" for number in range(560, 572)]
        frames(root / "SAMM_longvideos" / recording, names)
    path = root / "SAMM_LongVideos_V3_Release.xlsx"
    sheet(path, SAMM_LONG_HEADER, rows, name="FACS_Movement_Only", above=9)
    return root
