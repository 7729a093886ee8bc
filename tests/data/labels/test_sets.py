from dataclasses import replace
from pathlib import Path

import pytest

from hsta_fast.data.action_units import objective_class, parse_objective_class
from hsta_fast.data.clips import ClipTable, clip_frame
from hsta_fast.data.labels.sets import LABEL_SETS, LabelSet, apply_labels
from hsta_fast.data.readers.registry import READERS


def table_of(*emotions: str, objective: int = 1) -> ClipTable:
    rows = [
        {
            "dataset": "casme3",
            "subject": f"s{number}",
            "clip": "a",
            "onset": number,
            "apex": number,
            "apex_annotated": True,
            "offset": number + 1,
            "frames": ("x", "y"),
            "expression": "micro",
            "emotion": emotion,
            "action_units": "4",
            "objective_class": objective,
        }
        for number, emotion in enumerate(emotions)
    ]
    return ClipTable(Path("."), clip_frame(rows))


def test_seven_emotions_in_the_order_of_the_dataset() -> None:
    words = ("others", "disgust", "surprise", "fear", "anger", "sad", "happy")
    labelled, dropped = apply_labels(table_of(*words, "happiness"), LABEL_SETS["emotion7"])
    assert labelled.clips["label"].tolist() == [0, 1, 2, 3, 4, 5, 6, 6]
    assert labelled.clips["label"].dtype == "int64" and dropped == {}
    assert LABEL_SETS["emotion7"].classes == words


def test_three_classes_drop_and_count_others() -> None:
    words = ("others", "disgust", "fear", "anger", "sad", "happy", "happiness", "surprise", "others")
    labelled, dropped = apply_labels(table_of(*words), LABEL_SETS["emotion3"])
    assert labelled.clips["label"].tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert labelled.clips.index.tolist() == list(range(7))
    assert labelled.clips["subject"].tolist() == [f"s{number}" for number in range(1, 8)]
    assert dropped == {"others": 2}


def test_five_classes_of_casme2_and_of_samm() -> None:
    words: tuple[str, ...] = ("happiness", "surprise", "disgust", "repression", "others", "fear", "sadness")
    labelled, dropped = apply_labels(table_of(*words), LABEL_SETS["casme2_5"])
    assert labelled.clips["label"].tolist() == [0, 1, 2, 3, 4] and dropped == {"fear": 1, "sadness": 1}
    assert LABEL_SETS["casme2_5"].classes == words[:5]
    others = ("happiness", "surprise", "contempt", "anger", "other", "disgust", "fear", "sadness")
    labelled, dropped = apply_labels(table_of(*others), LABEL_SETS["samm_5"])
    assert labelled.clips["label"].tolist() == [0, 1, 2, 3, 4]
    assert LABEL_SETS["samm_5"].classes == others[:5] and dropped == {"disgust": 1, "fear": 1, "sadness": 1}


def test_every_reader_has_a_label_set() -> None:
    assert {reader.labels for reader in READERS.values()} <= set(LABEL_SETS)


def test_objective_classes_drop_the_unknown() -> None:
    labelled, dropped = apply_labels(table_of("fear", objective=7), LABEL_SETS["objective7"])
    assert labelled.clips["label"].tolist() == [6] and dropped == {}
    known = table_of("fear", "sad", objective=2)
    known.clips.loc[1, "objective_class"] = 0
    labelled, dropped = apply_labels(known, LABEL_SETS["objective7"])
    assert labelled.clips["label"].tolist() == [1] and dropped == {"sad": 1}


def test_an_unknown_emotion_names_the_clip_and_the_words() -> None:
    with pytest.raises(
        ValueError, match=r"casme3 s1/a onset 1: emotion expected .*others, disgust.*'bored'"
    ) as error:
        apply_labels(table_of("fear", "bored"), LABEL_SETS["emotion7"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "known_to"),
    [
        ("contempt", r"which --labels emotion3 or samm_5 or dfme_7 or casme_8 would know$"),
        ("repression", r"which --labels emotion3 or casme2_5 or casme_8 or 4dme would know$"),
        ("bored", r"which no label set knows: --labels may be a file that maps it$"),
    ],
)
def test_an_unknown_emotion_names_the_label_sets_that_know_it(word: str, known_to: str) -> None:
    with pytest.raises(ValueError, match=rf"got '{word}', {known_to}"):
        apply_labels(table_of(word), LABEL_SETS["emotion7"])


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="'emotion3': expected clips of its classes, got none of 2"):
        apply_labels(table_of("others", "others"), LABEL_SETS["emotion3"])


def test_a_label_set_of_the_user() -> None:
    mapping = {"happy": "calm", "fear": "tense", "sad": None}
    own = LabelSet(name="own", classes=("calm", "tense"), mapping=mapping)
    labelled, dropped = apply_labels(table_of("fear", "sad", "happy"), own)
    assert labelled.clips["label"].tolist() == [1, 0] and dropped == {"sad": 1}
    with pytest.raises(ValueError, match=r"'own': expected classes of .*'anxious'"):
        LabelSet(name="own", classes=("calm",), mapping={"fear": "anxious"})


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("6+12", 1),
        ("12+6", 1),
        ("R12B", 1),
        ("1+2", 2),
        ("L1+R2C", 2),
        ("AU25 + AU26", 2),
        ("4+7", 3),
        ("4+L7", 3),
        ("38+4", 3),
        ("4+5+7+9", 4),
        ("15", 5),
        ("1+4", 5),
        ("1+2+4", 6),
        ("T20", 6),
        ("4+14", 7),
        ("99", 7),
        ("", 0),
        ("?", 0),
        ("4+?", 0),
        ("12 or 14", 0),
        ("12or14", 0),
        ("12/14", 0),
        ("4or7", 0),
        ("4 corrugator", 3),
        ("L/R12", 1),
        ("12.0", 1),
        ("2024-04-07 00:00:00", 0),
        ("9" * 4000, 0),
    ],
)
def test_objective_class_of_an_exact_set_of_units(units: str, expected: int) -> None:
    assert objective_class(units) == expected


def test_objective_class_of_the_file() -> None:
    words = ["I", "ii", " III ", "IV", "V", "VI", "VII", "", "1", "7", "7.0"]
    assert [parse_objective_class(word) for word in words] == [1, 2, 3, 4, 5, 6, 7, 0, 1, 7, 7]
    for word in ("VIII", "8", "0", "class"):
        with pytest.raises(ValueError, match=r"expected I..VII or 1..7"):
            parse_objective_class(word)


@pytest.mark.parametrize(
    ("name", "dataset"), [("CAS(ME)3", "casme3"), ("CASME3", "casme3"), ("mine", "mine")]
)
def test_a_mapping_finds_its_dataset_however_it_is_written(name: str, dataset: str) -> None:
    own = LabelSet(name="own", classes=("a", "b"), mapping={"fear": "a"}, of_dataset={name: {"fear": "b"}})
    table = table_of("fear")
    table.clips["dataset"] = dataset
    assert apply_labels(table, own)[0].clips["label"].tolist() == [1]
    assert own.unknown_datasets([dataset]) == []


@pytest.mark.parametrize("name", ["casme2", "CASME II", "CASME-2"])
def test_clips_that_are_left_out_or_listed_are_found_however_their_dataset_is_written(name: str) -> None:
    table = table_of("disgust", "disgust", "surprise")
    names = {"dataset": name, "subject": ["sub04", "sub01", "sub24"], "clip": ["EP12_01F", "a", "EP10_03"]}
    table = replace(table, clips=table.clips.assign(**names))
    labels = LABEL_SETS["megc2019"]
    assert apply_labels(table, labels)[0].clips["subject"].tolist() == ["sub01"]
    listed = replace(
        labels, listed={("casme2", "sub01", "a"): "surprise", ("CASME II", "sub02", "b"): "positive"}
    )
    labelled, _ = apply_labels(table, listed)
    assert labelled.clips["label"].tolist() == [2]
    assert [(fault.subject, fault.action) for fault in labelled.faults] == [
        ("sub01", "labelled as in the list"),
        ("sub02", "clip left out"),
    ]


def test_a_mapping_of_a_dataset_that_is_not_here_is_named() -> None:
    own = LabelSet(name="own", classes=("a", "b"), mapping={}, of_dataset={"casmee2": {}, "SMIC-HS": {}})
    assert own.unknown_datasets(["mine"]) == ["casmee2"]
