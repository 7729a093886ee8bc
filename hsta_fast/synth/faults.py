"""Puts faults that published copies have into rendered data, on request, each into one clip.

`planted.json` lists them as `hsta-fast doctor` should report them; all other clips stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.clips import CLASS_BY_UNITS, LEFT_OUT, MIDDLE_APEX, UNREADABLE
from ..data.readers.four_dme import MANY_FLAGS
from ..files import write_text
from .layouts import LAYOUTS, RenderedClip

# Name -> (function from onset and offset to the changed cells by meaning, what a reader does about it).
_IN_THE_ROW: dict[str, tuple[Callable[[int, int], dict[str, Any]], str]] = {
    "apex-slash": (lambda onset, offset: {"apex": "/"}, MIDDLE_APEX),
    "apex-before-onset": (lambda onset, offset: {"apex": onset - 1}, MIDDLE_APEX),
    "apex-after-offset": (lambda onset, offset: {"apex": offset + 1}, MIDDLE_APEX),
    "onset-blank": (lambda onset, offset: {"onset": None}, LEFT_OUT),
    "offset-zero": (lambda onset, offset: {"offset": 0}, LEFT_OUT),
    "offset-far": (lambda onset, offset: {"offset": onset + 3454}, LEFT_OUT),
    "emotion-blank": (lambda onset, offset: {"emotion": None}, LEFT_OUT),
    "class-unreadable": (lambda onset, offset: {"objective": "?"}, CLASS_BY_UNITS),
    "two-flags": (lambda onset, offset: {"flag": 1, "other flag": 1}, MANY_FLAGS),
    "second-expression": (
        lambda onset, offset: {"second onset": offset + 20, "second offset": offset + 29},
        LEFT_OUT,
    ),
}
_ROW_TWICE = "row-twice"
# Name -> (what happens to the file of the apex frame, what a reader does about it).
_IN_A_FRAME: dict[str, tuple[Callable[[Path], object], str]] = {
    "frame-missing": (lambda path: path.unlink(), LEFT_OUT),
    "frame-empty": (lambda path: path.write_bytes(b""), UNREADABLE),
    "frame-truncated": (lambda path: path.write_bytes(_first_half(path.read_bytes())), UNREADABLE),
}


def _first_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def faults_of(layout: str) -> tuple[str, ...]:
    """Names of the faults that this layout can have: it has columns for all cells that they change."""
    columns = LAYOUTS[layout].columns.keys()
    in_rows = [name for name, (cells, _) in _IN_THE_ROW.items() if cells(1, 2).keys() <= columns]
    return (*in_rows, _ROW_TWICE, *_IN_A_FRAME)


def chosen_faults(layout: str, names: Sequence[str]) -> tuple[str, ...]:
    """`names`, or every fault of the layout for ("all",); ValueError for a fault it cannot have."""
    known = faults_of(layout)
    if list(names) == ["all"]:
        return known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"--faults of {layout} expected all, or names out of {', '.join(known)}, got {', '.join(unknown)}"
        )
    return tuple(names)


def inject_faults(
    out: Path, layout: str, clips: Sequence[RenderedClip], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Put the faults `names` into annotation rows and frames; returns the rows, writes `planted.json`.

    The clips with faults are spread evenly over all clips; `names` has fewer entries than `clips`.
    """
    form = LAYOUTS[layout]
    taken = {len(clips) * place // len(names): name for place, name in enumerate(names)}
    rows: list[dict[str, Any]] = []
    planted: list[dict[str, Any]] = []
    for place, clip in enumerate(clips):
        row = form.row(clip)
        rows.append(row)
        if place not in taken:
            continue
        name = taken[place]
        subject, known_as = form.known_as(clip)
        onset, offset = row[form.columns["onset"]], row[form.columns["offset"]]
        if name in _IN_A_FRAME:
            spoil, action = _IN_A_FRAME[name]
            spoil(out / form.frame(clip, clip.apex))
        elif name == _ROW_TWICE:
            action = LEFT_OUT
            rows.append(dict(row))
        else:
            cells, action = _IN_THE_ROW[name]
            action = form.offset_zero if name == "offset-zero" else action
            changed = cells(onset, offset)
            if "apex" in changed and "second apex" in form.columns:
                changed["second apex"] = None  # it would stand in for the first
            row |= {form.columns[meaning]: cell for meaning, cell in changed.items()}
            onset = changed.get("second onset", changed.get("onset", onset))
        planted.append(
            {
                "fault": name,
                "dataset": layout,
                "subject": subject,
                "clip": known_as,
                "onset": onset,
                "action": action,
            }
        )
    if planted:
        write_text(out / "planted.json", json.dumps(planted, indent=2) + "\n")
    return rows
