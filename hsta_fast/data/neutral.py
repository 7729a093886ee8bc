"""The class "nothing": stretches of recordings in which no expression is annotated (`--with-neutral`).

They are as long as the clips, with an apex at a clip's position, so that neither tells them from clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..clips import NOTHING, counted, natural_key
from .clips import ClipTable, clip_frame
from .labels.sets import LabelSet
from .recordings import RATES, Recording, neutral_stretches, recordings

NEUTRAL = "neutral"  # what the table of clips has as their expression
_APART = 0.05  # seconds before and after an annotated expression that are left out
_TRIES = 20  # draws for a stretch that overlaps no other
_STREAM = 0x0E07  # a branch of the random streams of its own


def add_neutral(
    table: ClipTable,
    labels: LabelSet,
    roots: Sequence[Path],
    dataset: str = "auto",
    annotation: Path | None = None,
    *,
    seed: int,
) -> tuple[ClipTable, LabelSet, list[str]]:
    """Add the class and its clips to labelled ones: as many as a class has on average, spread over people.

    Args:
        table: the clips with their column `label`.
        labels: their label set.
        roots: the folders of the datasets that they come from.
        dataset: as of `read_datasets`.
        annotation: as of `read_datasets`.
        seed: of the draws.

    Returns:
        (the clips, the new ones last; the label set with the class as its last one; what a reader of the
        scores must know, one sentence each).

    Raises:
        ValueError: a class has that name, or no recording has a long enough stretch.
    """
    if NOTHING in labels.classes:
        raise ValueError(f"--with-neutral expected no class {NOTHING!r} in --labels, got one")
    micro = table.clips[table.clips["expression"] == "micro"]
    people = set(zip(table.clips["dataset"], table.clips["subject"], strict=True))
    found = _below(table.root, roots, dataset, annotation)
    found = [one for one in found if (one.dataset, one.subject) in people]
    count = max(1, round(len(micro) / micro["label"].nunique()))
    rows = _draw(found, micro, count, np.random.default_rng([seed, _STREAM]))
    if not rows:
        names = ", ".join(sorted(set(table.clips["dataset"])))
        expected = "recordings with frames outside of the annotated clips"
        raise ValueError(f"--with-neutral expected {expected}, got none in {names}")
    added = clip_frame(rows).assign(label=np.int64(len(labels.classes)))
    shown = counted(added["subject"].nunique(), "subject")
    remarks = [
        f"The class {NOTHING!r}, {len(rows)} stretches of {shown} without an annotated "
        "expression, is in training alone: as the answer for a test clip it is an error, and the means are "
        "over the other classes."
    ]
    if without := sorted(set(micro["dataset"]) - set(added["dataset"])):
        remarks.append(f"No frames outside of clips in {', '.join(without)}: none shows {NOTHING!r}.")
    clips = pd.concat([table.clips, added], ignore_index=True)
    return replace(table, clips=clips), replace(labels, classes=(*labels.classes, NOTHING)), remarks


def _below(root: Path, roots: Sequence[Path], dataset: str, annotation: Path | None) -> list[Recording]:
    """The recordings of all roots, with paths below `root`."""
    found = []
    for place in roots:
        own, table = recordings(place, dataset, annotation=annotation)
        prefix = table.root.absolute().relative_to(root.absolute()).as_posix()
        if prefix != ".":
            own = [
                replace(one, path=f"{prefix}/{one.path}", frames=tuple(f"{prefix}/{f}" for f in one.frames))
                for one in own
            ]
        found += own
    return found


def _draw(
    found: Sequence[Recording], clips: pd.DataFrame, count: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """At most `count` rows of a table of clips: of each person in turn, as long as the dataset's clips."""
    shapes: dict[str, list[tuple[int, int, bool]]] = {}
    for clip in clips.to_dict("records"):
        shape = len(clip["frames"]), clip["apex"] - clip["onset"], clip["apex_annotated"]
        shapes.setdefault(clip["dataset"], []).append(shape)
    places: dict[tuple[str, str], list[tuple[Recording, int, int]]] = {}
    for one in found:
        shortest = min((length for length, *_ in shapes.get(one.dataset, ())), default=None)
        if shortest is None:
            continue
        # Where the rate is not known, as far as at the highest of the datasets: farther in time at any other.
        apart = round(_APART * (one.rate or max(RATES.values())))
        for first, last in neutral_stretches(one, shortest, apart):
            places.setdefault((one.dataset, one.subject), []).append((one, first, last))
    people = sorted(places, key=lambda who: (who[0], natural_key(who[1])))
    if not people:
        return []
    order = rng.permutation(len(people))
    taken: dict[str, list[tuple[int, int]]] = {}
    rows = []
    for number in range(count):
        own = places[people[order[number % len(people)]]]
        longest = max(last - first + 1 for _, first, last in own)
        possible = [shape for shape in shapes[own[0][0].dataset] if shape[0] <= longest]
        for _ in range(_TRIES):
            length, apex, annotated = possible[rng.integers(len(possible))]
            rooms = np.array([max(0, last - first + 2 - length) for _, first, last in own])
            place = int(rng.choice(len(own), p=rooms / rooms.sum()))
            recording, first, _ = own[place]
            start = first + int(rng.integers(rooms[place]))
            others = taken.setdefault(recording.path, [])
            if all(start + length <= low or start > high for low, high in others):
                break
        else:  # this person's frames are taken
            continue
        others.append((start, start + length - 1))
        row = _row(recording, start, length, apex, len(others))
        rows.append(row | {"apex_annotated": annotated})
    return rows


def _row(recording: Recording, start: int, length: int, apex: int, number: int) -> dict[str, Any]:
    numbers = range(start, start + length)
    images = recording.frames
    frames = tuple(images[n] if images else f"{recording.path}#{n}" for n in numbers)
    onset = recording.first + start
    return {
        "dataset": recording.dataset,
        "subject": recording.subject,
        "clip": f"{recording.name} {NOTHING} {number}",
        "onset": onset,
        "apex": onset + apex,
        "offset": onset + length - 1,
        "frames": frames,
        "expression": NEUTRAL,
        "emotion": "",
        "action_units": "",
        "objective_class": 0,
    }
