"""The clip table: one row per clip, and the faults of the copy it was read from.

Every reader returns a `ClipTable`; labels, sampling, frames and batches know nothing else about a dataset.
How a clip is identified: see `hsta_fast.clips`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..clips import KEY, identity

COLUMNS = (
    *(*KEY, "apex", "apex_annotated", "offset", "frames"),
    *("expression", "emotion", "action_units", "objective_class"),
)

LEFT_OUT = "clip left out"
MIDDLE_APEX = "apex taken as the middle frame"
MOTION_APEX = "apex found by motion"
KEPT_APEX = "apex taken as annotated"
ENDS_AT_APEX = "clip ends at its apex"
AS_BLANK = "taken as blank"
CLASS_BY_UNITS = "objective class taken from the action units"
UNREADABLE = "clip left out of a run that samples such a frame"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a copy of a dataset, and what the reader did about it.

    `onset` is None if the annotation has no integer there. `action` is `LEFT_OUT` for a clip that is not in
    the table, anything else for one that is.
    """

    dataset: str
    subject: str
    clip: str
    onset: int | None
    what: str
    action: str

    def __str__(self) -> str:
        text = f"{identity(self.dataset, self.subject, self.clip, self.onset)}: {self.what}; {self.action}"
        return " ".join(text.split())  # one line, even if a cell holds several


def fault_of(clip: Mapping[Any, Any], what: str, action: str) -> Fault:
    """A fault of the clip in a row of the table."""
    return Fault(clip["dataset"], clip["subject"], clip["clip"], int(clip["onset"]), what, action)


@dataclass(frozen=True)
class ClipTable:
    """The usable clips under `root` and the faults.

    `clips` has the columns `COLUMNS`, and `label` once labels are applied. If `apex_annotated` is false, the
    apex is the middle frame. If a dataset's table has no column of emotions, `emotion` is "".

    remarks: what a user should know about the copy and what is no fault, one sentence each.
    default_labels: dataset -> the label set that "auto" means for its clips.
    rates: (dataset, subject, clip, onset) -> frames a second of the clips whose table or video tells it.
    """

    root: Path
    clips: pd.DataFrame
    faults: tuple[Fault, ...] = ()
    remarks: tuple[str, ...] = ()
    default_labels: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[tuple[str, str, str, int], float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clips)


class FaultLog:
    """Collects faults; with `strict` the first one is raised as a ValueError of one line."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Record `fault`, or raise it if strict."""
        if self.strict:
            raise ValueError(str(fault))
        self.faults.append(fault)


def brief(text: str, limit: int = 100) -> str:
    """`text`, or its beginning if it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def clip_frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The table of `rows`, dicts with the keys `COLUMNS`; numbers are int64, `apex_annotated` is bool."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    numbers = ("onset", "apex", "offset", "objective_class")
    return frame.astype({column: "int64" for column in numbers} | {"apex_annotated": "bool"})
