"""One person under two names, who would otherwise be in the training and the test set at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pandas as pd

from ..clips import KEY, identity, subject_ids
from .clips import LEFT_OUT, Fault, fault_of


def duplicate_people(
    clips: pd.DataFrame, contents: Sequence[Sequence[Hashable] | None]
) -> list[tuple[int, Fault]]:
    """The clips to leave out because their person is also in the table under an earlier name.

    Two people are the same person if a clip of one has exactly the frames of a clip of the other. The name
    that comes first in the table keeps its clips; all clips of the later name are left out.

    Args:
        clips: the clip table; people are told apart by `subject_ids`.
        contents: for each row, the content keys of the clip's frames in order; None for a clip that is left
            out already.

    Returns:
        (row number, fault) of each clip to leave out, in the order of the table.
    """
    people, records = subject_ids(clips).tolist(), clips.to_dict("records")
    first_row: dict[tuple[Hashable, ...], int] = {}  # frames -> the first clip that has them
    matches: dict[str, tuple[int, int]] = {}  # person -> (their clip, the earlier person's clip)
    for row, frames in enumerate(contents):
        if frames is None:
            continue
        first = first_row.setdefault(tuple(frames), row)
        if people[first] != people[row]:
            matches.setdefault(people[row], (row, first))
    faults = []
    for row, person in enumerate(people):
        if contents[row] is not None and person in matches:
            own, other = (identity(*(records[match][name] for name in KEY)) for match in matches[person])
            what = f"one person under two names: the frames of {own} are those of {other}"
            faults.append((row, fault_of(records[row], what, LEFT_OUT)))
    return faults
