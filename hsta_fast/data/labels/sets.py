"""From annotated words to class numbers, and from action units to objective classes.

`LABEL_SETS` holds the published sets; `labelfile` reads one of the user's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ...clips import KEY, identity, spelling_key
from ..action_units import _ROMAN
from ..clips import LEFT_OUT, ClipTable, Fault, fault_of

ClipName = tuple[str, str, str]  # dataset, subject, clip


_DATASETS = {"casmeii": "casme2", "smichs": "smic", "casmeiii": "casme3"}
_DATASETS |= {name: name for name in ("casme2", "samm", "smic", "casme3")}


def dataset_id(name: str) -> str:
    """The dataset that a word such as "CASME II", "SMIC-HS" or "CAS(ME)3" means; others mean themselves."""
    return _DATASETS.get("".join(filter(str.isalnum, name.casefold())), name)


def alike(name: ClipName) -> ClipName:
    """What a clip's name has in common with its other spellings: case and leading zeros are left aside."""
    return name[0], spelling_key(name[1]), spelling_key(name[2])


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """A list of classes and the class of every word of one column; None drops the clips of that word.

    The label of a clip is the position of its class in `classes`.
    of_dataset: takes the place of `mapping` for the clips of a dataset.
    without: clips that are dropped all the same, (dataset, subject, clip).
    listed: the class of each clip of an official list; where it speaks of a dataset, it wins over the words.
    """

    name: str
    classes: tuple[str, ...]
    column: Literal["emotion", "objective_class"] = "emotion"
    mapping: Mapping[str, str | None]
    of_dataset: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    without: frozenset[ClipName] = frozenset()
    listed: Mapping[ClipName, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = {*self.listed.values()}.union(*(m.values() for m in (self.mapping, *self.of_dataset.values())))
        foreign = sorted({name for name in used if name is not None} - set(self.classes))
        if foreign:
            raise ValueError(f"label set {self.name!r}: wanted classes of {self.classes}, got {foreign}")

    def words(self, dataset: str) -> Mapping[str, str | None]:
        """The class of each word, in that dataset, however its name is written."""
        own = {dataset_id(name): mapping for name, mapping in self.of_dataset.items()}
        return own.get(dataset_id(dataset), self.mapping)

    def strangers(self, datasets: Iterable[str]) -> list[str]:
        """The datasets that the set speaks of which are neither published ones nor in `datasets`."""
        known = {dataset_id(name) for name in datasets} | set(_DATASETS.values())
        return sorted(name for name in self.of_dataset if dataset_id(name) not in known)

    def by_word(self, clip: Mapping[Any, Any]) -> str | None:
        """The class of a row of the clip table by its word, None where it has none; KeyError if unknown."""
        if name_of(clip) in map(alike, self.without):
            return None
        return self.words(clip["dataset"])[str(clip[self.column])]


def name_of(clip: Mapping[Any, Any]) -> ClipName:
    """`alike` of a row of the clip table."""
    return alike((clip["dataset"], clip["subject"], clip["clip"]))


_EMOTIONS = ("others", "disgust", "surprise", "fear", "anger", "sad", "happy")
_NEGATIVE_WORDS = ("negative", "disgust", "fear", "anger", "sad", "sadness", "contempt", "repression")
_NEGATIVE = dict.fromkeys(_NEGATIVE_WORDS, "negative")
_POSITIVE = dict.fromkeys(("positive", "happy", "happiness"), "positive")
_OTHERS: dict[str, str | None] = {"others": None, "other": None}
_SURPRISE = {"surprise": "surprise"}
THREE_CLASSES = ("negative", "positive", "surprise")


def _composite(negative: str, dropped: str = "") -> dict[str, str | None]:
    """The rule of MEGC 2019 for a dataset: its negative words, happiness, surprise, and what is dropped."""
    kept = dict.fromkeys(negative.split(), "negative") | {"happiness": "positive"} | _SURPRISE
    return kept | dict.fromkeys(dropped.split()) | _OTHERS


LABEL_SETS: dict[str, LabelSet] = {
    labels.name: labels
    for labels in (
        LabelSet(
            name="emotion7",
            classes=_EMOTIONS,
            mapping={
                **{word: word for word in _EMOTIONS},
                **{"happiness": "happy", "sadness": "sad", "other": "others"},
            },
        ),
        LabelSet(
            name="emotion3",
            classes=THREE_CLASSES,
            mapping={**_NEGATIVE, **_POSITIVE, **_SURPRISE, **_OTHERS},
        ),
        LabelSet(
            name="objective7",
            classes=_ROMAN,
            column="objective_class",
            mapping={"0": None, **{str(number + 1): name for number, name in enumerate(_ROMAN)}},
        ),
        LabelSet(
            name="megc2019",
            classes=THREE_CLASSES,
            mapping={},
            of_dataset={
                "casme2": _composite("disgust repression", dropped="fear sadness"),
                "samm": _composite("anger contempt disgust fear sadness"),
                "smic": {name: name for name in THREE_CLASSES},
            },
            without=frozenset({("casme2", "sub04", "EP12_01f"), ("casme2", "sub05", "EP09_05f")}),
        ),
    )
}


def apply_labels(table: ClipTable, labels: LabelSet) -> tuple[ClipTable, dict[str, int]]:
    """The clips that `labels` has a class for, with an int64 column `label`, and what was dropped.

    The second result counts the dropped clips by emotion. Where an official list and the words differ, the
    list wins, and each such clip is one more fault of the table. A word that the label set does not know
    raises ValueError naming the clip and the words it knows; so does a table of which nothing is left.
    """
    names: list[str | None] = []
    faults: list[Fault] = []
    covered = {dataset for dataset, _, _ in labels.listed}
    listed = {alike(name): label for name, label in labels.listed.items()}
    rows = table.clips.to_dict("records")
    for clip in rows:
        try:
            name = labels.by_word(clip)
        except KeyError as error:
            if clip["dataset"] not in covered:
                raise ValueError(
                    f"{identity(*(clip[key] for key in KEY))}: label set {labels.name!r} does not know "
                    f"{labels.column} {clip[labels.column]!r}; "
                    f"it knows {', '.join(labels.words(clip['dataset'])) or 'no clip of this dataset'}"
                ) from error
            name = None
        if clip["dataset"] in covered:
            official = listed.get(name_of(clip))
            if official != name:
                what = f"the official list says {official or 'nothing'}, the rule {name or 'nothing'}"
                action = "labelled as in the list" if official else LEFT_OUT
                faults.append(fault_of(clip, what, action))
            name = official
        names.append(name)
    kept = np.array([name is not None for name in names], dtype=bool)
    if not kept.any():
        raise ValueError(f"label set {labels.name!r}: wanted clips of its classes, got none of {len(rows)}")
    here = {name_of(clip) for clip in rows}
    datasets = {clip["dataset"] for clip in rows}
    faults += [
        Fault(*name, None, "in the official list, not among the clips of this copy", LEFT_OUT)
        for name in labels.listed
        if name[0] in datasets and alike(name) not in here
    ]
    numbers = [labels.classes.index(name) for name in names if name is not None]
    clips = table.clips[kept].assign(label=np.array(numbers, dtype=np.int64)).reset_index(drop=True)
    dropped = table.clips.loc[~kept, "emotion"].value_counts(sort=False)
    counts = {str(word): int(count) for word, count in dropped.items()}
    return replace(table, clips=clips, faults=(*table.faults, *faults)), counts
