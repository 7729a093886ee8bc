"""From annotated words to class numbers, and from action units to objective classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .clips import KEY, ClipTable, identity

# Davison et al. 2018: the class of an exact set of action units; every other set is class VII.
_OBJECTIVE_CLASSES = {
    1: "6 12 6+12 6+7+12 7+12",
    2: "1+2 5 25 1+2+25 25+26 5+24",
    3: "23 4 4+7 4+5 4+5+7 17+24 4+6+7 4+38",
    4: "10 9 4+9 4+40 4+5+40 4+7+9 4+9+17 4+7+10 4+5+7+9 7+10",
    5: "1 15 1+4 6+15 15+17",
    6: "1+2+4 20",
}
_CLASS_OF_UNITS = {
    frozenset(int(unit) for unit in units.split("+")): number
    for number, sets in _OBJECTIVE_CLASSES.items()
    for units in sets.split()
}
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII")


def objective_class(action_units: str) -> int:
    """The objective class 1..7 of a set of action units such as "4+L7" or "R12B"; 0 where it is unknown.

    Laterality and intensity letters are ignored. Unknown means no unit at all, or one annotated as "?".
    """
    units = frozenset(int(unit) for unit in re.findall(r"[0-9]{1,3}", action_units))
    if not units or "?" in action_units:
        return 0
    return _CLASS_OF_UNITS.get(units, 7)


def parse_objective_class(text: str) -> int:
    """The class written as I..VII or 1..7; 0 for a blank; ValueError for anything else."""
    word = text.strip().upper()
    if not word:
        return 0
    if word in _ROMAN:
        return _ROMAN.index(word) + 1
    if re.fullmatch(r"[1-7]", word):
        return int(word)
    raise ValueError(f"objective class must be I..VII or 1..7, got {text!r}")


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """A list of classes and the class of every word of one column; None drops the clips of that word.

    The label of a clip is the position of its class in `classes`.
    """

    name: str
    classes: tuple[str, ...]
    column: Literal["emotion", "objective_class"] = "emotion"
    mapping: Mapping[str, str | None]

    def __post_init__(self) -> None:
        foreign = sorted({name for name in self.mapping.values() if name is not None} - set(self.classes))
        if foreign:
            raise ValueError(f"label set {self.name!r}: wanted classes of {self.classes}, got {foreign}")


_EMOTIONS = ("others", "disgust", "surprise", "fear", "anger", "sad", "happy")
_NEGATIVE = dict.fromkeys(("disgust", "fear", "anger", "sad"), "negative")
_POSITIVE = dict.fromkeys(("happy", "happiness"), "positive")

LABEL_SETS: dict[str, LabelSet] = {
    labels.name: labels
    for labels in (
        LabelSet(
            name="emotion7",
            classes=_EMOTIONS,
            mapping={**{word: word for word in _EMOTIONS}, "happiness": "happy"},
        ),
        LabelSet(
            name="emotion3",
            classes=("negative", "positive", "surprise"),
            mapping={**_NEGATIVE, **_POSITIVE, "surprise": "surprise", "others": None},
        ),
        LabelSet(
            name="objective7",
            classes=_ROMAN,
            column="objective_class",
            mapping={"0": None, **{str(number + 1): name for number, name in enumerate(_ROMAN)}},
        ),
    )
}


def apply_labels(table: ClipTable, labels: LabelSet) -> tuple[ClipTable, dict[str, int]]:
    """The clips that `labels` has a class for, with an int64 column `label`, and what was dropped.

    The second result counts the dropped clips by emotion. A word that the label set does not know raises
    ValueError naming the clip and the words it knows; so does a table of which nothing is left.
    """
    words = table.clips[labels.column].astype(str)
    unknown = ~words.isin(list(labels.mapping))
    if unknown.any():
        clip = table.clips[unknown].to_dict("records")[0]
        raise ValueError(
            f"{identity(*(clip[key] for key in KEY))}: label set {labels.name!r} does not know "
            f"{labels.column} {clip[labels.column]!r}; it knows {', '.join(labels.mapping)}"
        )
    names = words.map(dict(labels.mapping))
    kept = names.notna()
    if not kept.any():
        raise ValueError(f"label set {labels.name!r}: wanted clips of its classes, got none of {len(words)}")
    numbers = {name: number for number, name in enumerate(labels.classes)}
    clips = table.clips[kept].assign(label=names[kept].map(numbers).astype("int64")).reset_index(drop=True)
    dropped = table.clips.loc[~kept, "emotion"].value_counts(sort=False)
    return replace(table, clips=clips), {str(word): int(count) for word, count in dropped.items()}
