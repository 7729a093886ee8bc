"""From annotated words to class numbers, and from action units to objective classes.

`LABEL_SETS` holds the published sets; `files.py` reads a user's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from ...clips import KEY, identity, spelling_key, words_key
from ..action_units import OBJECTIVE_CLASSES
from ..clips import LEFT_OUT, ClipTable, Fault, fault_of

ClipName = tuple[str, str, str]  # dataset, subject, clip
ClassColumn = Literal["emotion", "objective_class"]

_DATASETS = {
    "casmeii": "casme2",
    "smichs": "smic",
    "casmeiii": "casme3",
    "casmesquared": "casme_squared",
    "sammlong": "samm_long",
    "sammlongvideos": "samm_long",
    "sammlv": "samm_long",
}
_DATASETS |= {name: name for name in ("casme2", "samm", "smic", "casme3", "mmew", "dfme", "casme", "4dme")}


def dataset_id(name: str) -> str:
    """The dataset's name, "casme2" from "CASME II" or "CASME2"; an unknown name unchanged.

    CAS(ME)^2, with parentheses or a square, is another dataset than CASME II.
    """
    plain = re.sub(r"\^2|²|(?<=\))2", "squared", name.casefold())
    return _DATASETS.get("".join(filter(str.isalnum, plain)), name)


def name_key(dataset: str, subject: str, clip: str) -> ClipName:
    """The key of a clip's name, equal for all spellings of dataset, subject and clip."""
    return dataset_id(dataset), spelling_key(subject), words_key(clip)


def _key_of(clip: Mapping[Any, Any]) -> ClipName:
    """`name_key` of a row of the clip table."""
    return name_key(clip["dataset"], clip["subject"], clip["clip"])


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """A list of classes and the class of every word of one column; None drops the clips of that word.

    The label of a clip is the position of its class in `classes`.
    of_dataset: replaces `mapping` for the clips of a dataset.
    without: clips that are dropped whatever their word, (dataset, subject, clip).
    listed: the class of each clip of an official list; for the datasets in it, it wins over the words.
    """

    name: str
    classes: tuple[str, ...]
    column: ClassColumn = "emotion"
    mapping: Mapping[str, str | None]
    of_dataset: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    without: frozenset[ClipName] = frozenset()
    listed: Mapping[ClipName, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = {*self.listed.values()}.union(*(m.values() for m in (self.mapping, *self.of_dataset.values())))
        unknown = sorted({name for name in used if name is not None} - set(self.classes))
        if unknown:
            raise ValueError(f"label set {self.name!r}: expected classes of {self.classes}, got {unknown}")

    def words(self, dataset: str) -> Mapping[str, str | None]:
        """The class of each word for a dataset, under any spelling of its name (see `dataset_id`)."""
        own = {dataset_id(name): mapping for name, mapping in self.of_dataset.items()}
        return own.get(dataset_id(dataset), self.mapping)

    @property
    def listed_datasets(self) -> set[str]:
        """The datasets of the official list (see `dataset_id`): for their clips it wins over the words."""
        return {dataset_id(dataset) for dataset, _, _ in self.listed}

    def unknown_datasets(self, datasets: Iterable[str]) -> list[str]:
        """The datasets named in `of_dataset` that are neither published ones nor in `datasets`."""
        known = {dataset_id(name) for name in datasets} | set(_DATASETS.values())
        return sorted(name for name in self.of_dataset if dataset_id(name) not in known)

    def by_word(self, clip: Mapping[Any, Any]) -> str | None:
        """The class of a row of the clip table by its word, None if it is dropped; KeyError if unknown."""
        if _key_of(clip) in {name_key(*name) for name in self.without}:
            return None
        return self.words(clip["dataset"])[str(clip[self.column])]


_EMOTIONS = ("others", "disgust", "surprise", "fear", "anger", "sad", "happy")
_NEGATIVE_WORDS = (
    "negative",
    "disgust",
    "fear",
    "anger",
    "sad",
    "sadness",
    "contempt",
    "repression",
    "tense",
)
_NEGATIVE = dict.fromkeys(_NEGATIVE_WORDS, "negative")
_POSITIVE = dict.fromkeys(("positive", "happy", "happiness", "amusement"), "positive")
_OTHERS: dict[str, str | None] = {"others": None, "other": None}
_SURPRISE = {"surprise": "surprise"}
_DFME = ("happiness", "anger", "contempt", "disgust", "fear", "sadness", "surprise")
_CASME = ("happiness", "sadness", "disgust", "surprise", "contempt", "fear", "repression", "tense")
# The flags of 4DME. A clip with several has their words joined by "+", as its reader joins them.
_4DME = ("positive", "negative", "surprise", "repression", "others")
_SEVERAL_FLAGS = dict.fromkeys(
    "+".join(flags) for length in range(2, 6) for flags in combinations(_4DME, length)
)
THREE_CLASSES = ("negative", "positive", "surprise")


def _composite(negative: str, dropped: str = "") -> dict[str, str | None]:
    """The rule of MEGC 2019 for a dataset, from its negative and its dropped words."""
    kept = dict.fromkeys(negative.split(), "negative") | {"happiness": "positive"} | _SURPRISE
    return kept | dict.fromkeys(dropped.split()) | _OTHERS


def _five(classes: str, dropped: str) -> dict[str, str | None]:
    """The words of five classes, the last of which holds all other expressions, and of those dropped."""
    names = classes.split()
    words = {name: name for name in names} | {"happy": "happiness", "other": names[-1], "others": names[-1]}
    return words | dict.fromkeys(dropped.split())


_CASME2_FIVE = "happiness surprise disgust repression others"
_SAMM_FIVE = "happiness surprise contempt anger other"

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
            of_dataset={
                "4dme": {**_NEGATIVE, **_POSITIVE, **_SURPRISE, **_OTHERS, **_SEVERAL_FLAGS},
            },
        ),
        LabelSet(  # in the literature on CASME II, which leaves out its 9 clips of fear and sadness
            name="casme2_5",
            classes=tuple(_CASME2_FIVE.split()),
            mapping=_five(_CASME2_FIVE, dropped="fear sadness sad"),
        ),
        LabelSet(  # in the literature on SAMM, which leaves out its 23 clips of disgust, fear and sadness
            name="samm_5",
            classes=tuple(_SAMM_FIVE.split()),
            mapping=_five(_SAMM_FIVE, dropped="disgust fear sadness sad"),
        ),
        LabelSet(
            name="objective7",
            classes=OBJECTIVE_CLASSES,
            column="objective_class",
            mapping={"0": None, **{str(number + 1): name for number, name in enumerate(OBJECTIVE_CLASSES)}},
        ),
        LabelSet(
            name="dfme_7",
            classes=_DFME,
            # Rows of the test parts have no word.
            mapping={**{word: word for word in _DFME}, "happy": "happiness", "sad": "sadness", "": None},
        ),
        LabelSet(
            name="casme_8",
            classes=_CASME,
            mapping={**{word: word for word in _CASME}, "amusement": "happiness", **_OTHERS},
        ),
        LabelSet(name="4dme", classes=_4DME, mapping={**{word: word for word in _4DME}, **_SEVERAL_FLAGS}),
        LabelSet(
            name="casme_squared_4",
            classes=(*THREE_CLASSES, "others"),
            mapping={word: word for word in (*THREE_CLASSES, "others")},
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
            without=frozenset(
                {
                    ("casme2", "sub04", "EP12_01f"),
                    ("casme2", "sub05", "EP09_05f"),
                    # Surprise in the coding of 2019 only; the composite is made from that of 2014.
                    ("casme2", "sub24", "EP07_01"),
                    ("casme2", "sub24", "EP07_04f"),
                    ("casme2", "sub24", "EP10_03"),
                }
            ),
        ),
    )
}


_COMPOSITE = LABEL_SETS["megc2019"]


def default_labels(table: ClipTable) -> tuple[str, str]:
    """(name of the label set that "auto" means for these clips, one sentence that says so).

    It is the one that the literature on their dataset uses; for two or three of CASME II, SAMM and SMIC-HS,
    that of their composite.

    Raises ValueError if the datasets have different ones.
    """
    datasets = list(dict.fromkeys(table.clips["dataset"]))
    names = {dataset: table.default_labels[dataset] for dataset in datasets}
    composite = len(datasets) > 1 and set(datasets) <= set(_COMPOSITE.of_dataset)
    found = {_COMPOSITE.name} if composite else set(names.values())
    if len(found) > 1:
        each = ", ".join(f"{name} for {dataset}" for dataset, name in names.items())
        raise ValueError(
            f"--labels expected one label set for all clips, got auto, which is {each}: name one"
        )
    (name,) = found
    classes = ", ".join(LABEL_SETS[name].classes)
    return name, f"--labels auto is {name} ({classes}), the default for {' and '.join(datasets)}"


def apply_labels(table: ClipTable, labels: LabelSet) -> tuple[ClipTable, dict[str, int]]:
    """Label the clips: (the clips that have a class, with an int64 column `label`; emotion -> dropped clips).

    Where the official list and the words differ, the list wins, and each such clip is one more fault of the
    table.

    Raises ValueError for an unknown word, naming the clip and the known words, for clips without an emotion
    if the set is one of emotions, and if no clip is left.
    """
    _check_emotions(table, labels)
    clips = table.clips.to_dict("records")
    names, faults = _apply_official_list(clips, [_class_by_word(clip, labels) for clip in clips], labels)
    kept = np.array([name is not None for name in names], dtype=bool)
    if not kept.any():
        raise ValueError(
            f"label set {labels.name!r}: expected clips of its classes, got none of {len(clips)}"
        )
    numbers = [labels.classes.index(name) for name in names if name is not None]
    labelled = table.clips[kept].assign(label=np.array(numbers, dtype=np.int64)).reset_index(drop=True)
    faults += _listed_but_missing(clips, labels)
    return (
        replace(table, clips=labelled, faults=(*table.faults, *faults)),
        _count_emotions(table.clips[~kept]),
    )


def _check_emotions(table: ClipTable, labels: LabelSet) -> None:
    """Raise ValueError if a dataset has clips without an emotion, and the label set needs one."""
    if labels.column != "emotion":
        return
    without = set(table.clips.loc[table.clips["emotion"] == "", "dataset"]) - labels.listed_datasets
    without = {dataset for dataset in without if "" not in labels.words(dataset)}
    if without:
        raise ValueError(
            f"label set {labels.name!r} expected emotions, got clips of {' and '.join(sorted(without))} "
            "without one: --labels objective7 needs none"
            + "".join(f"; {remark}" for remark in table.remarks if "did you mean emotion" in remark)
        )


def _class_by_word(clip: Mapping[Any, Any], labels: LabelSet) -> str | None:
    """`LabelSet.by_word`, where an unknown word gives None if the official list covers the clip's dataset.

    Raises ValueError for any other unknown word.
    """
    try:
        return labels.by_word(clip)
    except KeyError as error:
        if dataset_id(clip["dataset"]) in labels.listed_datasets:
            return None
        known = ", ".join(labels.words(clip["dataset"])) or "no clip of this dataset"
        raise ValueError(
            f"{identity(*(clip[key] for key in KEY))}: {labels.column} expected a word of label set "
            f"{labels.name!r} ({known}), got {clip[labels.column]!r}{_who_knows(clip, labels.column)}"
        ) from error


def _who_knows(clip: Mapping[Any, Any], column: str) -> str:
    """Which label sets know the word of a clip, for a message."""
    if column != "emotion":
        return ""
    names = [
        labels.name
        for labels in LABEL_SETS.values()
        if labels.column == column and clip[column] in labels.words(clip["dataset"])
    ]
    if not names:
        return ", which no label set knows: --labels may be a file that maps it"
    return f", which --labels {' or '.join(names)} would know"


def _apply_official_list(
    clips: Sequence[Mapping[Any, Any]], by_word: Sequence[str | None], labels: LabelSet
) -> tuple[list[str | None], list[Fault]]:
    """The classes, from the official list for the datasets in it, and a fault for each that differs."""
    datasets = labels.listed_datasets
    listed = {name_key(*name): label for name, label in labels.listed.items()}
    names, faults = list(by_word), []
    for position, clip in enumerate(clips):
        if dataset_id(clip["dataset"]) not in datasets:
            continue
        official, rule = listed.get(_key_of(clip)), by_word[position]
        if official != rule:
            what = f"the official list says {official or 'nothing'}, the rule {rule or 'nothing'}"
            faults.append(fault_of(clip, what, "labelled as in the list" if official else LEFT_OUT))
        names[position] = official
    return names, faults


def _listed_but_missing(clips: Sequence[Mapping[Any, Any]], labels: LabelSet) -> list[Fault]:
    """A fault for each clip of the official list that is not in the table, for the table's datasets."""
    datasets = {dataset_id(clip["dataset"]) for clip in clips}
    here = {_key_of(clip) for clip in clips}
    return [
        Fault(*name, None, "in the official list, not among the clips of this copy", LEFT_OUT)
        for name in labels.listed
        if dataset_id(name[0]) in datasets and name_key(*name) not in here
    ]


def _count_emotions(clips: pd.DataFrame) -> dict[str, int]:
    """Emotion -> clips, in the order in which the emotions appear."""
    return {
        str(word) or "without an emotion": int(count)
        for word, count in clips["emotion"].value_counts(sort=False).items()
    }
