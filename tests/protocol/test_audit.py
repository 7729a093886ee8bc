"""Anybody's predictions are scored as scikit-learn does, and shared subjects are found and named."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from hsta_fast.protocol import audit, per_fold, score
from hsta_fast.protocol.overlap import CLEAN, LEAKS, UNKNOWN


@pytest.fixture
def kept(tmp_path: Path, predictions: pd.DataFrame) -> Path:
    path = tmp_path / "theirs.csv"
    predictions.to_csv(path, index=False)
    return path


def numbers(text: str, name: str) -> list[float]:
    [line] = [line for line in text.splitlines() if line.startswith(name)]
    return [float(word) for word in line.removeprefix(name).split()]


def test_scores_are_those_of_scikit_learn_on_the_pooled_file(kept: Path, predictions: pd.DataFrame) -> None:
    text, leaks = audit(kept)
    truth, predicted = predictions["label"], predictions["predicted"]
    macro = {"average": "macro", "zero_division": 0}
    expected = [f1_score(truth, predicted, **macro), recall_score(truth, predicted, **macro)]
    assert numbers(text, "pooled") == pytest.approx([*expected, accuracy_score(truth, predicted)], abs=5e-5)
    means = numbers(text, "mean of folds (not a score)")
    assert means == pytest.approx(list(per_fold(predictions, 3)[1].values()), abs=5e-5)
    assert means != numbers(text, "pooled")
    assert "60 clips, 8 subjects, 3 classes, 4 folds" in text and not leaks


@pytest.mark.parametrize("words", [True, False])
def test_a_file_of_labels_and_predictions_alone(tmp_path: Path, words: bool) -> None:
    truth, predicted = np.array([0, 0, 1, 2, 2, 1]), np.array([0, 1, 1, 2, 0, 1])
    names = np.array(["bad", "good", "odd"]) if words else np.arange(3)
    path = tmp_path / "theirs.csv"
    pd.DataFrame({"label": names[truth], "predicted": names[predicted]}).to_csv(path, index=False)
    text, leaks = audit(path)
    own = score(truth, predicted, 3)
    assert numbers(text, "pooled") == pytest.approx([own.uf1, own.uar, own.acc], abs=5e-5)
    assert "6 clips, 3 classes\n" in text and "all rows are one test set" in text and not leaks


def test_the_absent_class_is_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    pd.DataFrame({"label": [0, 1], "predicted": [0, 1], "p_a": 0, "p_b": 0, "p_c": 0}).to_csv(
        path, index=False
    )
    assert numbers(audit(path)[0], "pooled")[0] == pytest.approx(2 / 3, abs=5e-5)
    assert "no clip of c: counted as 0" in audit(path)[0]
    assert numbers(audit(path, absent="skip")[0], "pooled")[0] == 1
    with pytest.raises(ValueError, match=r"clips of every class, got none of \[2\]"):
        audit(path, absent="raise")


def table_of(predictions: pd.DataFrame, path: Path, **columns: Any) -> Path:
    kept = predictions[["dataset", "subject", "clip", "onset", "label"]]
    kept.assign(**columns).to_csv(path, index=False)
    return path


def test_disjoint_folds_are_said_to_be(tmp_path: Path, kept: Path, predictions: pd.DataFrame) -> None:
    text, leaks = audit(kept, table_of(predictions, tmp_path / "clips.csv"))
    assert "No subject is in training and test of the same fold" in text and not leaks


def test_a_shared_subject_is_named_with_its_folds(tmp_path: Path, predictions: pd.DataFrame) -> None:
    """One clip of spNO.3 moves to another fold: its other clips trained that fold, and it trained theirs."""
    who = predictions.index[predictions["subject"] == "spNO.3"]
    home, away = predictions["fold"][who[0]], "1" if predictions["fold"][who[0]] != "1" else "2"
    predictions.loc[who[0], "fold"] = away
    predictions.to_csv(tmp_path / "theirs.csv", index=False)
    # Spelled otherwise in the table of clips, and still found.
    other = predictions["subject"].str.replace("spNO.", "SPno.00", regex=False)
    clips = table_of(predictions, tmp_path / "clips.csv", subject=other)
    text, leaks = audit(tmp_path / "theirs.csv", clips)
    assert leaks and f"LEAK: {len(who)} of 60 test clips" in text
    of_recording = predictions.loc[who].groupby("clip")["fold"].agg(["size", "nunique"])
    count = of_recording["size"][of_recording["nunique"] > 1].sum()
    assert f"\n{count} of 60 test clips ({count / 60:.0%}) are of a recording in training.\n" in text
    for fold in (home, away):
        assert f"  fold {fold}: 1 subjects, casme3/spNO.3" in text
    assert text.count("  fold ") == 2


def test_clips_outside_the_file_trained_and_macro_ones_may_have(
    tmp_path: Path, predictions: pd.DataFrame
) -> None:
    """The file holds one fold; the table tells that its subjects have other clips."""
    tested = predictions[predictions["fold"] == "1"]
    tested.iloc[:-1].to_csv(tmp_path / "theirs.csv", index=False)
    left = tested["subject"].iloc[-1]
    text, leaks = audit(tmp_path / "theirs.csv", table_of(predictions, tmp_path / "clips.csv"))
    assert leaks and f"1 subjects, casme3/{left}" in text
    assert f"{len(predictions) - len(tested) + 1} clips of clips.csv were never tested" in text
    kind = np.where(predictions.index == tested.index[-1], "macro", "micro")
    text, leaks = audit(
        tmp_path / "theirs.csv", table_of(predictions, tmp_path / "clips.csv", expression=kind)
    )
    assert not leaks and "except its 1 macro-expressions" in text
    head = "dataset,subject,clip,onset,fold,part\n"
    rows = tested.iloc[:-1].assign(part="test")[["dataset", "subject", "clip", "onset", "fold", "part"]]
    (tmp_path / "folds.csv").write_text(head + rows.to_csv(index=False, header=False))
    text, leaks = audit(tmp_path / "theirs.csv", tmp_path / "clips.csv", tmp_path / "folds.csv")
    assert leaks and "by folds.csv" in text, "the macro-expression was not left out"
    out = tested.iloc[-1:].assign(part="out")[rows.columns]
    (tmp_path / "folds.csv").write_text(head + pd.concat([rows, out]).to_csv(index=False, header=False))
    text, leaks = audit(tmp_path / "theirs.csv", tmp_path / "clips.csv", tmp_path / "folds.csv")
    assert not leaks and "No subject is in training and test" in text


def test_unknown_clips_are_no_proof_of_a_leak(tmp_path: Path, kept: Path, predictions: pd.DataFrame) -> None:
    clips = table_of(predictions, tmp_path / "clips.csv", clip="another name")
    text, status = audit(kept, clips)
    assert status == UNKNOWN and "60 predicted clips are not in clips.csv" in text and "it is unknown" in text


def test_one_unknown_clip_hides_no_leak(tmp_path: Path, predictions: pd.DataFrame) -> None:
    """A subject with more clips in the table than a fold tests is in its training, whatever their names."""
    clips = table_of(predictions, tmp_path / "clips.csv")
    by_clip = predictions.assign(fold=[str(i % 4) for i in range(60)])
    by_clip = pd.concat([by_clip, by_clip.iloc[:1].assign(clip="zz")])
    by_clip.to_csv(tmp_path / "theirs.csv", index=False)
    text, status = audit(tmp_path / "theirs.csv", clips)
    assert status == LEAKS and "1 predicted clips are not in clips.csv" in text
    known = int((by_clip["subject"] != by_clip["subject"].iloc[0]).sum())
    assert f"LEAK: {known} of 61 test clips" in text and text.count("  fold ") == 4


@pytest.mark.parametrize("spelling", ["spno.03", "SPNO_3", "spNO.3\ufe0f", "spNO.\u0663", "spNO.3.0"])
def test_a_fold_file_may_spell_people_otherwise(
    tmp_path: Path, kept: Path, predictions: pd.DataFrame, spelling: str
) -> None:
    clips = table_of(predictions, tmp_path / "clips.csv")
    own = predictions["subject"] == "spNO.3"
    home = predictions["fold"][own].iloc[0]
    rows = predictions.assign(part=np.where(predictions["fold"] == home, "test", "train"), fold=home)
    first = int(np.flatnonzero(own)[0])
    rows.loc[first, ["part", "subject"]] = ["train", spelling]
    columns = ["dataset", "subject", "clip", "onset", "fold", "part"]
    rows[columns].to_csv(tmp_path / "folds.csv", index=False)
    tested = predictions[(predictions["fold"] == home) & (predictions.index != first)]
    tested.to_csv(tmp_path / "theirs.csv", index=False)
    text, status = audit(tmp_path / "theirs.csv", clips, tmp_path / "folds.csv")
    assert status == LEAKS and "1 subjects, casme3/spNO.3" in text
    rows.assign(clip=np.where(rows.index == first, "other", rows["clip"]))[columns].to_csv(
        tmp_path / "folds.csv", index=False
    )
    text, status = audit(tmp_path / "theirs.csv", clips, tmp_path / "folds.csv")
    assert status == UNKNOWN and "1 rows of folds.csv name no clip of clips.csv" in text


def test_without_folds_nothing_is_known_of_the_training(tmp_path: Path, predictions: pd.DataFrame) -> None:
    clips = table_of(predictions, tmp_path / "clips.csv")
    predictions.drop(columns="fold").to_csv(tmp_path / "theirs.csv", index=False)
    text, status = audit(tmp_path / "theirs.csv", clips)
    assert (
        status == UNKNOWN and "A fold tests every clip of clips.csv" in text and "No subject is" not in text
    )


def test_people_are_counted_by_the_rule_of_the_folds(tmp_path: Path, predictions: pd.DataFrame) -> None:
    other = predictions["subject"].where(predictions.index % 2 == 0, predictions["subject"].str.upper())
    both = predictions.assign(subject=other, fold=[str(i % 2) for i in range(60)])
    again = predictions.iloc[:3].assign(subject=predictions["subject"][:3].str.replace(".", ".00"), fold="0")
    pd.concat([both, again]).to_csv(tmp_path / "theirs.csv", index=False)
    text, _ = audit(tmp_path / "theirs.csv")
    assert "63 clips, 8 subjects" in text
    assert "3 rows predict a clip that an earlier row predicts" in text
    assert "subjects tested in more than one fold" in text


def test_numbers_as_other_programs_write_them(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("label,predicted\n0,0.0\n1,1.0\n2,2.\n\n")
    assert numbers(audit(path)[0], "pooled") == [1, 1, 1]
    path.write_text("label,predicted\n1,1\n2,2\n3,1\n3,3\n")
    text, _ = audit(path)
    truth, predicted = [1, 2, 3, 3], [1, 2, 1, 3]
    expected = [
        f1_score(truth, predicted, average="macro"),
        recall_score(truth, predicted, average="macro"),
        0.75,
    ]
    assert numbers(text, "pooled") == pytest.approx(expected, abs=5e-5)
    assert "no class 0: the classes are 1 to 3" in text
    path.write_text("label,predicted,leaky\n0,0,False\n1,1,False\n")
    assert audit(path) == (audit(path)[0], CLEAN) and "LEAKY" not in audit(path)[0]
    path.write_text("label,predicted\n0,0\n1,900\n")
    assert len(max(audit(path)[0].splitlines()[1:4], key=len)) < 200


def test_labels_are_compared_where_they_can_be(tmp_path: Path, predictions: pd.DataFrame) -> None:
    names = np.array(["negative", "positive", "surprise"])
    wrong = (predictions["label"] + 1) % 3
    predictions.assign(label=names[predictions["label"]], predicted=names[predictions["predicted"]]).to_csv(
        tmp_path / "words.csv", index=False
    )
    for columns, said in (
        ({"label": names[wrong]}, "60 clips have another label"),
        ({"label": ["x"] * 60}, "The labels of clips.csv are written differently"),
    ):
        text, _ = audit(tmp_path / "words.csv", table_of(predictions, tmp_path / "clips.csv", **columns))
        assert said in text
    predictions.drop(columns="onset").to_csv(tmp_path / "clips.csv", index=False)
    text, _ = audit(tmp_path / "words.csv", tmp_path / "clips.csv")
    assert "clips.csv has several clips of one name: labels were not compared" in text


def test_other_labels_and_repeated_clips_are_counted(tmp_path: Path, predictions: pd.DataFrame) -> None:
    labels = (predictions["label"] + (predictions.index < 4)) % 3
    clips = table_of(predictions, tmp_path / "clips.csv", label=labels)
    pd.concat([predictions, predictions.iloc[:2]]).to_csv(tmp_path / "theirs.csv", index=False)
    text, _ = audit(tmp_path / "theirs.csv", clips)
    assert "2 rows predict a clip that an earlier row predicts" in text
    assert "6 clips have another label in clips.csv" in text


def test_the_leaky_column_of_a_run_is_reported(tmp_path: Path, predictions: pd.DataFrame) -> None:
    predictions.assign(leaky="by its own word").to_csv(tmp_path / "theirs.csv", index=False)
    text, leaks = audit(tmp_path / "theirs.csv")
    assert leaks and "LEAKY: by its own word" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\n1\n", "missing: predicted"),
        ("label,predicted\n", "expected one row per test clip, got no rows"),
        ("label,predicted\n1,\n0,1\n", "row 2, column predicted: expected a number in every row, .*got ''"),
        ("label,predicted\n0,0\n", "2 to 1000 classes, got 1: 0"),
        ("label,predicted\n0,0\n1,nan\n", "row 3, column predicted: .*got 'nan'"),
        ("index,line,label,predicted\n1,1,a,b\n\n1,1,b,NaN\n", "row 4, column predicted: .*got 'NaN'"),
        ("label,predicted\n0,0\n1,-1\n", "labels from 0 to 999, got -1"),
        ("label,predicted\n0,0\n1,1000\n", "labels from 0 to 999, got 1000"),
        (
            "label,predicted\n0,happy\n1,1\n",
            "row 2, column predicted: expected a number in every row, .*got 'happy'",
        ),
        ("label,predicted\nhappy,Happy\nsad,sad\n", "one spelling of each class, got happy and Happy"),
        ("label,predicted,p_a,p_b\n0,2,0,0\n", "expected labels from 0 to 1, got 2"),
        ("label,predicted,p_a,p_b\na,c,0,0\n", "expected labels among a, b, got c"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        audit(path)


def test_tables_that_do_not_fit_are_named(tmp_path: Path, kept: Path, predictions: pd.DataFrame) -> None:
    clips = table_of(predictions, tmp_path / "clips.csv")
    with pytest.raises(ValueError, match="--folds expected --clips"):
        audit(kept, None, clips)
    (tmp_path / "bare.csv").write_text("label,predicted\n0,1\n")
    with pytest.raises(ValueError, match="predictions with the columns subject and clip"):
        audit(tmp_path / "bare.csv", clips)
    rows = predictions[["dataset", "subject", "clip", "onset"]].assign(fold="9", part="test").iloc[:1]
    rows.to_csv(tmp_path / "folds.csv", index=False)
    with pytest.raises(ValueError, match=r"folds.csv: expected a fold '\d'"):
        audit(kept, clips, tmp_path / "folds.csv")
