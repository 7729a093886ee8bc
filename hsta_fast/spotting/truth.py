"""The annotated intervals that spotted ones are scored by: a table, or those of a folder's recordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..clips import counted
from ..data.labels.sets import ClassColumn, LabelSet
from ..data.recordings import interval_table, recordings, with_classes
from ..protocol import Table, audit_spotting, read_intervals
from ..protocol.spotting import BLANK
from .sources import unnamed_videos


def audit_by(
    spotted: Path,
    truth: Path,
    labels: LabelSet | None = None,
    classes: Sequence[str] = (),
    *,
    remarks: Sequence[str] = (),
    as_json: bool = False,
) -> str:
    """The scores of a file of spotted intervals by the annotated ones at `truth`, as text or JSON.

    labels, errors: as of `annotated`; classes, remarks, and further errors: as of `audit_spotting`.
    """
    table, more = annotated(truth, labels)
    return audit_spotting(
        spotted,
        table,
        classes,
        name="the annotation" if truth.is_dir() else str(truth),
        label_set=() if labels is None else labels.classes,
        remarks=[*remarks, *more],
        as_json=as_json,
    )


def annotated(path: Path, labels: LabelSet | None = None) -> tuple[Table, list[str]]:
    """The annotated intervals at `path`, and what a reader of the scores must know, one sentence each.

    Those of a folder are of the recordings that `spot` finds in it; one without an expression has a row with
    a blank onset and offset.

    Args:
        path: a table, or the folder of a dataset.
        labels: the label set whose classes the words become; by default they stay words.

    Raises:
        ValueError: there is no annotation, it cannot be read, or the label set knows none of its words.
    """
    if path.is_dir():
        rows, remarks = _of_folder(path, "emotion" if labels is None else labels.column)
        table = Table(rows, {}, {})
    else:
        table, remarks = read_intervals(path), []
    if labels is None:
        return table, remarks
    rows, more = with_classes(table.rows.replace(list(BLANK), ""), labels, str(path))
    return Table(rows, table.source, table.unused), remarks + more


def _of_folder(folder: Path, column: ClassColumn) -> tuple[pd.DataFrame, list[str]]:
    known, table = recordings(folder)
    others = unnamed_videos(folder, known)
    if not known and not others:
        raise ValueError(f"{folder}: expected recordings, got none and a table without a row")
    unread = [fault for fault in table.faults if fault.action.endswith("left out")]
    if unread and others:
        # One of these rows may be of one of these videos.
        expected = f"rows that can all be read, as {others[0].video} is in none of the others"
        raise ValueError(f"{folder}: expected {expected}, got {unread[0]}")
    rows = interval_table(known, column)
    empty = [dict.fromkeys(rows, "") | {"subject": one.subject, "video": one.video} for one in others]
    remarks = []
    if unread:
        why = counted(len(unread), "fault")
        remarks.append(
            f"{folder}: annotated expressions are left out for {why}, which hsta-fast doctor lists"
        )
    return pd.DataFrame([*rows.to_dict("records"), *empty], columns=rows.columns), remarks
