"""Tiny fake copies of the datasets, with the real layouts, headers, sheets and file names."""

from __future__ import annotations

import csv
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from openpyxl import Workbook

Cells = dict[str, Any]

PICTURE = cv2.imencode(".jpg", np.full((4, 4, 3), 128, np.uint8))[1].tobytes()

# The columns of the real files; None is a column without a name.
CASME2_HEADER = (
    "Subject",
    "Filename",
    None,
    "OnsetFrame",
    "ApexFrame",
    "OffsetFrame",
    None,
    "Action Units",
    "Estimated Emotion",
)
SAMM_HEADER = (
    "Subject",
    "Filename",
    "Inducement Code",
    "Onset Frame",
    "Apex Frame",
    "Offset Frame",
    "Duration",
    "Micro",
    "Action Units",
    "Estimated Emotion",
    "Objective Classes",
    "Notes",
)
SMIC_HEADER = (
    "Subject",
    "Filename",
    "OnsetF",
    "OffsetF",
    "TotalMF1",
    "Onset2F",
    "Offset2F",
    "TotalMF2",
    "FirstF",
    "LastF",
    "TotalVL",
    "Emotion",
)
CASME3_HEADER = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
CSV_HEADER = ("subject", "clip", "path", "onset", "apex", "offset", "emotion")


def casme2_row(**changes: Any) -> Cells:
    return {
        "Subject": 1,
        "Filename": "EP02_01f",
        "OnsetFrame": 46,
        "ApexFrame": 48,
        "OffsetFrame": 50,
        "Action Units": "12",
        "Estimated Emotion": "happiness",
    } | changes


def samm_row(**changes: Any) -> Cells:
    return {
        "Subject": "006",
        "Filename": "006_1_2",
        "Inducement Code": 1,
        "Onset Frame": 5562,
        "Apex Frame": 5564,
        "Offset Frame": 5566,
        "Duration": 5,
        "Micro": "Micro - 1/2",
        "Action Units": "AU2 or AU4",
        "Estimated Emotion": "Surprise",
        "Objective Classes": 7,
    } | changes


def smic_row(**changes: Any) -> Cells:
    return {
        "Subject": 20,
        "Filename": "s20_ne_01",
        "OnsetF": 17581039,
        "OffsetF": 17581043,
        "TotalMF1": 5,
        "FirstF": 17581030,
        "LastF": 17581060,
        "TotalVL": 31,
        "Emotion": "negative",
    } | changes


def casme3_row(**changes: Any) -> Cells:
    return {
        "Subject": "spNO.1",
        "Filename": "b",
        "Onset": 175,
        "Apex": 177,
        "Offset": 179,
        "AU": "4+7",
        "Objective class": "III",
        "emotion": "disgust",
    } | changes


def csv_row(**changes: Any) -> Cells:
    return {
        "subject": "ann",
        "clip": "smile",
        "path": "ann/smile",
        "onset": 1,
        "apex": 3,
        "offset": 5,
        "emotion": "happy",
    } | changes


def frames(folder: Path, names: Iterable[str], data: bytes = PICTURE) -> None:
    """Write image files, as hard links to one file, which is much faster."""
    folder.mkdir(parents=True, exist_ok=True)
    first: Path | None = None
    for name in names:
        if first is None:
            first = folder / name
            if not first.exists():
                first.write_bytes(data)
        elif not (folder / name).exists():
            (folder / name).hardlink_to(first)


def sheet(
    path: Path,
    header: Sequence[str | None],
    rows: Iterable[Cells],
    *,
    name: str = "Sheet1",
    above: int = 0,
    others: Sequence[str] = (),
    beside: str | None = None,
) -> Path:
    """An xlsx file.

    above: number of rows above the column names.
    others: names of further sheets, with the column names and no rows.
    beside: a note to the right of each row.
    """
    book = Workbook()
    own = book.active
    assert own is not None
    own.title = name
    for number in range(above):
        own.append(["about this file" if number == 0 else None])
    own.append(list(header))
    for row in rows:
        own.append([*(row.get(column) if column is not None else None for column in header), beside])
    for other in others:
        book.create_sheet(other).append(list(header))
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def old_sheet(path: Path, header: Sequence[str | None], rows: Iterable[Cells]) -> Path:
    """An xls file of the oldest kind (BIFF2), a stream of records; numbers are stored as numbers."""

    def record(kind: int, data: bytes) -> bytes:
        return struct.pack("<HH", kind, len(data)) + data

    def cell(row: int, column: int, value: Any) -> bytes:
        place = struct.pack("<HH3x", row, column)
        if isinstance(value, int | float):
            return record(3, place + struct.pack("<d", value))
        text = str(value).encode("ascii")
        return record(4, place + bytes([len(text)]) + text)

    lines = [
        list(header),
        *([row.get(name) if name is not None else None for name in header] for row in rows),
    ]
    cells = [
        cell(row, column, value)
        for row, line in enumerate(lines)
        for column, value in enumerate(line)
        if value is not None
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record(9, struct.pack("<HH", 2, 16)) + b"".join(cells) + record(10, b""))
    return path


def table(
    path: Path,
    header: Sequence[str | None],
    rows: Iterable[Cells],
    encoding: str = "utf-8",
    separator: str = ",",
) -> Path:
    """A csv file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow([name or "" for name in header])
        for row in rows:
            writer.writerow([row.get(column, "") if column is not None else "" for column in header])
    return path


def _span(row: Cells, onset: str, offset: str) -> range:
    """The frame numbers of a row; empty if it has none, or more than 700."""
    first, last = row.get(onset), row.get(offset)
    if isinstance(first, int) and isinstance(last, int) and 0 <= first <= last <= first + 700:
        return range(first, last + 1)
    return range(0)


def casme2_copy(root: Path, rows: Sequence[Cells], *, cropped: bool = False) -> Path:
    prefix, base = ("reg_img", root / "Cropped") if cropped else ("img", root)
    for row in rows:
        if isinstance(row["Subject"], int):
            folder = base / f"sub{row['Subject']:02d}" / str(row["Filename"])
            frames(folder, [f"{prefix}{n}.jpg" for n in _span(row, "OnsetFrame", "OffsetFrame")])
    sheet(root / "CASME2-coding-20140508.xlsx", CASME2_HEADER, rows)
    return root


def samm_copy(root: Path, rows: Sequence[Cells], width: int = 5) -> Path:
    for row in rows:
        subject = str(row["Subject"])
        names = [f"{subject}_{n:0{width}d}.jpg" for n in _span(row, "Onset Frame", "Offset Frame")]
        frames(root / subject / str(row["Filename"]), names)
    sheet(root / "SAMM_Micro_FACS_Codes_v2.xlsx", SAMM_HEADER, rows, name="MICRO ONLY", above=13)
    return root


def smic_long_copy(root: Path, rows: Sequence[Cells]) -> Path:
    for row in rows:
        folder = root / "SMIC_HS_E" / f"s{row['Subject']}" / str(row["Filename"])
        frames(folder, [f"image{n}.jpg" for n in _span(row, "FirstF", "LastF")])
    path = root / "SMIC-HS-E_annotation.xlsx"
    sheet(path, SMIC_HEADER, rows, name="HS", others=("VIS", "NIR"))
    return root


def smic_cropped_copy(root: Path, clips: Iterable[tuple[str, str, str]]) -> Path:
    """clips: (subject, emotion, clip)."""
    for subject, emotion, clip in clips:
        frames(root / "HS" / subject / "micro" / emotion / clip, [f"reg_image{n}.jpg" for n in (7, 8, 9)])
        frames(root / "HS" / subject / "non_micro" / f"{subject}_n1", ["reg_image1.jpg"])
    return root


def casme3_copy(root: Path, rows: Sequence[Cells]) -> Path:
    for row in rows:
        folder = root / str(row["Subject"]) / str(row["Filename"]) / "color"
        frames(folder, [f"{n}.jpg" for n in _span(row, "Onset", "Offset")])
    more = ["Expression type"] if any("Expression type" in row for row in rows) else []
    header = [*CASME3_HEADER, *more]
    table(root / "cas(me)3_part_A_ME_label.csv", header, rows)
    return root


def csv_copy(root: Path, rows: Sequence[Cells], header: Sequence[str] = CSV_HEADER) -> Path:
    for row in rows:
        path = str(row["path"])
        if path and not Path(path).is_absolute() and ".." not in path and "." not in path:
            frames(root / path, [f"frame_{n:03d}.jpg" for n in range(1, 8)])
    table(root / "clips.csv", header, rows)
    return root


def video(path: Path, length: int, size: int = 16) -> Path:
    """A Motion-JPEG video; all pixels of frame n have grey level 8 n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (size, size))
    assert writer.isOpened()
    for number in range(length):
        writer.write(np.full((size, size, 3), 8 * number, np.uint8))
    writer.release()
    return path


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that any user may read, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Not as root, to whom permissions do not apply."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
