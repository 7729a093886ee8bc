"""A user's own label sets, in csv and in json, and the official list of the composite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hsta_fast.data import LABEL_SETS, apply_labels, label_set, read_dataset

from .. import fake_datasets
from ..fake_datasets import casme2_row, casme3_row, samm_row

CSV = "word,class,dataset\nHappiness,good,\ndisgust,bad,\nsurprise,,\ndisgust,good,casme2\n"
JSON: dict[str, Any] = {
    "classes": ["bad", "good"],
    "mapping": {"Happiness": "good", "disgust": "bad", "surprise": None},
    "datasets": {"casme2": {"happiness": "good", "disgust": "good"}},
}


def test_names() -> None:
    assert label_set("emotion3") is LABEL_SETS["emotion3"]
    with pytest.raises(
        ValueError, match=r"--labels expected one of emotion7, .*megc2019, or .* got 'emotion5'"
    ):
        label_set("emotion5")
    with pytest.raises(ValueError, match=r"nowhere.csv: expected a table, got: no such file"):
        label_set("nowhere.csv")
    with pytest.raises(ValueError, match=r"nowhere.json: expected a label file, got: no such file"):
        label_set("nowhere.json")


def test_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(CSV)
    labels = label_set(str(path))
    assert labels.classes == ("good", "bad") and labels.column == "emotion"
    assert labels.words("samm") == {"happiness": "good", "disgust": "bad", "surprise": None}
    assert labels.words("casme2") == {"happiness": "good", "disgust": "good", "surprise": None}


def test_a_json_file_labels_clips(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(JSON))
    rows = [casme2_row(), casme2_row(OnsetFrame=47, **{"Estimated Emotion": "disgust"})]
    table = read_dataset(fake_datasets.casme2_copy(tmp_path / "copy", rows))
    labelled, dropped = apply_labels(table, label_set(str(path)))
    assert labelled.clips["label"].tolist() == [1, 1] and dropped == {}
    samm = read_dataset(
        fake_datasets.samm_copy(tmp_path / "samm", [samm_row(**{"Estimated Emotion": "Disgust"})])
    )
    assert apply_labels(samm, label_set(str(path)))[0].clips["label"].tolist() == [0]
    # Words missing from a dataset's own mapping come from the common one.
    assert label_set(str(path)).words("casme2")["surprise"] is None


def test_a_json_file_of_objective_classes(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    classes = {str(number): "some" if number else None for number in range(8)} | {"3": "third"}
    path.write_text(
        json.dumps({"classes": ["some", "third"], "column": "objective_class", "mapping": classes})
    )
    table = read_dataset(fake_datasets.casme3_copy(tmp_path / "copy", [casme3_row()]))
    assert apply_labels(table, label_set(str(path)))[0].clips["label"].tolist() == [1]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "word,class\nx,a\nx,b\n", "row 3: expected each word once, got 'x' again"),
        ("a.csv", "word,class\n,a\n", "row 2: expected a word and its class"),
        ("a.csv", "word,class\nx,a,b\n", "row 2: expected a word and its class"),
        ("a.csv", "word,class\nx,a\ny,a\n", "expected at least 2 different classes, got ['a']"),
        ("a.csv", "emotion,class\nx,a\n", "expected also the columns word, got emotion, class"),
        ("a.json", "{", "expected a label file in json"),
        ("a.json", "[]", 'expected an object with "classes" and "mapping", got list'),
        ("a.json", '{"classes": []}', "got 'classes'"),
        ("a.json", '{"classes": ["a", "b"], "mapping": {}, "more": 1}', "'more'"),
        ("a.json", '{"classes": "ab", "mapping": {}}', '"classes" expected a list of names'),
        ("a.json", '{"classes": ["a", "a"], "mapping": {}}', "expected at least 2 different classes"),
        ("a.json", '{"classes": ["a", "b"], "mapping": []}', "mapping expected an object"),
        ("a.json", '{"classes": ["a", "b"], "mapping": {"x": 1}}', "mapping expected an object"),
        ("a.json", '{"classes": ["a", "b"], "mapping": {"x": "c"}}', "got ['c']"),
        ("a.json", '{"classes": ["a", "b"], "mapping": {}, "column": "subject"}', '"column" expected'),
        ("a.json", '{"classes": ["a", "b"], "mapping": {}, "datasets": []}', '"datasets" expected'),
        (
            "a.json",
            '{"classes": ["a", "b"], "mapping": {"x": "a", "x": "b"}}',
            "each name once, got 'x' again",
        ),
        (
            "a.json",
            '{"classes": ["a", "b"], "mapping": {"x": "a", "X": "b"}}',
            "each name once, got 'x' again",
        ),
        (
            "a.json",
            '{"classes": ["a", "b"], "mapping": {}, "datasets": {"SMIC": {}, "SMIC-HS": {}}}',
            "SMIC-HS",
        ),
        ("a.json", '{"classes": ["a", "b"], "mapping": {"x": ' + "9" * 5000 + "}}", "a label file in json"),
    ],
)
def test_wrong_label_files(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        label_set(str(path))
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_official_list_by_its_path_and_beside_the_data(tmp_path: Path) -> None:
    path = tmp_path / "combined_3class_gt.csv"
    path.write_text("CASME2,sub1,EP02_01f,0\nSAMM,6,006_1_2,1\nsmic,s1,s1_ne_1,2\n\n")
    listed = {
        ("casme2", "sub01", "EP02_01f"): "negative",
        ("samm", "006", "006_1_2"): "positive",
        ("smic", "s01", "s01_ne_01"): "surprise",
    }
    assert label_set(str(path)).listed == label_set("megc2019", [tmp_path]).listed == listed
    assert label_set("megc2019").listed == {}
    copy = read_dataset(fake_datasets.casme2_copy(tmp_path / "copy", [casme2_row(Filename="EP02_1F")]))
    assert apply_labels(copy, label_set(str(path)))[0].clips["label"].tolist() == [0]
    other = tmp_path / "other"
    other.mkdir()
    (other / path.name).write_text("samm,6,006_1_2,1\n")
    with pytest.raises(ValueError, match="expected one official list, got"):
        label_set("megc2019", [tmp_path, other])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("casme2,sub01,EP02_01f,3", "label expected 0, 1 or 2, got '3'"),
        ("casme4,sub01,EP02_01f,1", "dataset expected casme2, samm or smic, got 'casme4'"),
        ("casme2,nobody,EP02_01f,1", "subject expected a number"),
        ("casme2,sub01,EP02_01f", "expected dataset, subject, clip and label, got 3 cells"),
        ("samm,006,006_1_2,2", "expected one label of samm/006/006_1_2, got two"),
    ],
)
def test_wrong_rows_of_the_official_list(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "combined_3class_gt.csv"
    path.write_text(f"samm,006,006_1_2,1\n{row}\n")
    with pytest.raises(ValueError) as error:
        label_set(str(path))
    assert f"{path} row 2: " in str(error.value) and words in str(error.value)


def test_what_the_composite_does_not_know(tmp_path: Path) -> None:
    table = read_dataset(fake_datasets.casme3_copy(tmp_path / "a", [casme3_row()]))
    with pytest.raises(ValueError, match=r"'megc2019' \(no clip of this dataset\), got 'disgust'"):
        apply_labels(table, label_set("megc2019"))
    awe = read_dataset(fake_datasets.samm_copy(tmp_path / "b", [samm_row(**{"Estimated Emotion": "Awe"})]))
    with pytest.raises(
        ValueError, match=r"emotion expected a word of label set 'megc2019' \(anger, contempt.*, got 'awe'"
    ):
        apply_labels(awe, label_set("megc2019"))
