"""Action units as classes: a clip may have several of them, or none (`--task units`).

The label of a clip is a text, its units among the classes in ascending order, "AU1+AU4", or `NONE`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from ..action_units import action_units
from ..clips import LEFT_OUT, ClipTable, fault_of

NONE = "none"  # the label of a clip that shows no unit of the classes
LEAST_CLIPS = 10  # of a unit that is a class


def apply_units(table: ClipTable) -> tuple[ClipTable, tuple[str, ...], list[str]]:
    """Label the clips with their action units; a clip whose units are unknown is left out, with a fault.

    The classes are the units of at least `LEAST_CLIPS` micro-expressions: macro-expressions are never tested.

    Returns:
        (the clips whose units are known, with a column `label`; the classes, "AU1", "AU2", ... in ascending
        order; what a reader of the scores must know, one sentence each).

    Raises:
        ValueError: no clip of a dataset has known units, or no unit has enough clips.
    """
    clips = table.clips
    units = [action_units(text) for text in clips["action_units"]]
    known = np.array([found is not None for found in units], dtype=bool)
    if without := sorted(set(clips["dataset"]) - set(clips["dataset"][known])):
        got = f"none for the clips of {' and '.join(without)}"
        raise ValueError(f"--task units expected action units, got {got}: --datasets names others")
    counts = Counter(
        unit
        for found, kind in zip(units, clips["expression"], strict=True)
        if kind == "micro"
        for unit in found or ()
    )
    classes = sorted(unit for unit, count in counts.items() if count >= LEAST_CLIPS)
    rare = [f"{_name(unit)} ({counts[unit]})" for unit in sorted(counts) if counts[unit] < LEAST_CLIPS]
    if not classes:
        raise ValueError(
            f"--task units expected units with at least {LEAST_CLIPS} clips, got {', '.join(rare) or 'none'}"
        )
    labels = [_label(found & set(classes)) for found in units if found is not None]
    labelled = clips[known].assign(label=labels).reset_index(drop=True)
    faults = [
        fault_of(clip, f"action units expected known ones, got {clip['action_units']!r}", LEFT_OUT)
        for clip, kept in zip(clips.to_dict("records"), known, strict=True)
        if not kept
    ]
    remarks = []
    if faults:
        remarks.append(f"Left out: {len(faults)} of {len(clips)} clips, whose action units are unknown.")
    if rare:
        remarks.append(f"Units with fewer than {LEAST_CLIPS} clips are no classes: {', '.join(rare)}.")
    labelled_table = replace(table, clips=labelled, faults=(*table.faults, *faults))
    return labelled_table, tuple(map(_name, classes)), remarks


def unit_targets(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """The labels of `apply_units` as numbers: int64 (clips, classes), 1 where a clip shows the unit."""
    return np.array([[name in text.split("+") for name in classes] for text in labels], dtype=np.int64)


def rarest_unit(targets: np.ndarray) -> np.ndarray:
    """One number for each clip, int64 (clips,): its unit that the fewest clips have; K if it has none.

    targets: (clips, K), as of `unit_targets`. Of equally rare units the first counts.
    """
    order = np.argsort(targets.sum(0), kind="stable")
    ranked = targets[:, order]
    return np.where(ranked.any(1), order[ranked.argmax(1)], targets.shape[1]).astype(np.int64)


def _label(units: frozenset[int]) -> str:
    return "+".join(map(_name, sorted(units))) or NONE


def _name(unit: int) -> str:
    return f"AU{unit}"
