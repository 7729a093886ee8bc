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
        assert f"  fold {fold}: 1 subject, casme3/spNO.3" in text
    assert text.count("  fold ") == 2


def test_clips_outside_the_file_trained_and_macro_ones_may_have(
    tmp_path: Path, predictions: pd.DataFrame
) -> None:
    """The file holds one fold; the table tells that its subjects have other clips."""
    tested = predictions[predictions["fold"] == "1"]
    tested.iloc[:-1].to_csv(tmp_path / "theirs.csv", index=False)
    left = tested["subject"].iloc[-1]
    text, leaks = audit(tmp_path / "theirs.csv", table_of(predictions, tmp_path / "clips.csv"))
    assert leaks and f"1 subject, casme3/{left}" in text
    assert f"{len(predictions) - len(tested) + 1} clips of clips.csv never tested" in text
    kind = np.where(predictions.index == tested.index[-1], "macro", "micro")
    text, leaks = audit(
        tmp_path / "theirs.csv", table_of(predictions, tmp_path / "clips.csv", expression=kind)
    )
    assert not leaks and "except its 1 macro-expression" in text
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
    assert status == LEAKS and "1 predicted clip is not in clips.csv" in text
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
    assert status == LEAKS and "1 subject, casme3/spNO.3" in text
    rows.assign(clip=np.where(rows.index == first, "other", rows["clip"]))[columns].to_csv(
        tmp_path / "folds.csv", index=False
    )
    text, status = audit(tmp_path / "theirs.csv", clips, tmp_path / "folds.csv")
    assert status == UNKNOWN and "1 row of folds.csv with no clip of clips.csv" in text


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
    assert "8 subjects are tested in more than one fold" in text


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


def test_a_subject_in_several_folds_is_a_leak_without_a_table_of_clips(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("sub,y_true,y_pred,CV\ns1,0,0,1\nS01,1,1,2\ns2,1,0,2\ns2,0,0,2\n")
    text, status = audit(path)
    assert status == LEAKS
    assert "LEAK: 1 subject is tested in more than one fold, so also trained on: s1 (without a column" in text
    assert "note: fold: column CV\n" in text
    path.write_text("dataset,sub,y_true,y_pred,fold\na,s1,0,0,1\nb,s1,1,1,2\n")
    text, status = audit(path)
    assert status == CLEAN and "No subject is tested in more than one fold." in text


@pytest.mark.parametrize(
    ("head", "status", "said"),
    [
        ("name,label,predicted,x", CLEAN, "there is no column subject (--subject names it) and fold (--fold"),
        ("subject,label,predicted,x", CLEAN, "there is no column fold (--fold names it)"),
        ("name,label,predicted,fold", CLEAN, "there is no column subject (--subject names it)."),
        (
            "clip,label,predicted,fold",
            UNKNOWN,
            "1 clip is named in more than one fold: without a column sub",
        ),
        ("clip,label,predicted,x", CLEAN, "there is no column subject (--subject names it) and fold"),
        ("subject,label,predicted,fold", LEAKS, "LEAK: 1 subject is tested in more than one fold"),
    ],
)
def test_what_cannot_be_told_without_a_table_of_clips(
    tmp_path: Path, head: str, status: int, said: str
) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(f"{head}\na,0,0,1\na,1,1,2\nb,1,1,2\n")
    text, got = audit(path)
    assert said in text and got == status


def test_one_fold_tells_nothing_of_its_training(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("subject,label,predicted,fold\na,0,0,1\nb,1,1,1\n")
    text, status = audit(path)
    assert status == CLEAN and "not looked for: there is one fold, and without --clips" in text


def test_a_fold_file_says_more_than_two_folds_of_one_subject(
    tmp_path: Path, predictions: pd.DataFrame
) -> None:
    """Each fold was told to leave the subject out, so it is tested twice and trained on never."""
    table = predictions.iloc[:6].assign(subject=list("aabbcc"), onset=range(6), fold=list("121212"))
    table.to_csv(tmp_path / "theirs.csv", index=False)
    table_of(table, tmp_path / "clips.csv")
    rows = [
        (*row, str(fold))
        for row in table[["dataset", "subject", "clip", "onset"]].itertuples(index=False)
        for fold in (1, 2)
    ]
    folds = pd.DataFrame(rows, columns=["dataset", "subject", "clip", "onset", "fold"])
    tested = table["fold"].repeat(2).to_numpy() == folds["fold"]
    more = folds.iloc[[0, 1]].assign(subject="d", part="train")
    pd.concat([folds.assign(part=np.where(tested, "test", "out")), more]).to_csv(
        tmp_path / "folds.csv", index=False
    )
    clips = pd.concat([table, table.iloc[:1].assign(subject="d")])
    table_of(clips, tmp_path / "clips.csv")
    assert audit(tmp_path / "theirs.csv", tmp_path / "clips.csv")[1] == LEAKS
    text, status = audit(tmp_path / "theirs.csv", tmp_path / "clips.csv", tmp_path / "folds.csv")
    assert status == CLEAN and "LEAK" not in text
    table.assign(fold=table["fold"] + ".0").to_csv(tmp_path / "theirs.csv", index=False)
    assert audit(tmp_path / "theirs.csv", tmp_path / "clips.csv", tmp_path / "folds.csv") == (text, CLEAN)


def test_folds_need_a_fold_in_the_predictions(tmp_path: Path, kept: Path, predictions: pd.DataFrame) -> None:
    clips = table_of(predictions, tmp_path / "clips.csv")
    predictions.drop(columns="fold").to_csv(kept, index=False)
    with pytest.raises(
        ValueError, match="expected predictions with a column fold, got none; --fold names it"
    ):
        audit(kept, clips, clips)


@pytest.mark.parametrize("spelling", ["Macro", "MACRO", "macro-expression", "Macro-Expression", " macro "])
def test_macro_expressions_in_any_spelling(tmp_path: Path, predictions: pd.DataFrame, spelling: str) -> None:
    tested = predictions[predictions["fold"] == "1"]
    tested.iloc[:-1].to_csv(tmp_path / "theirs.csv", index=False)
    kind = np.where(predictions.index == tested.index[-1], spelling, "Micro")
    clips = table_of(predictions, tmp_path / "clips.csv", expression=kind)
    text, status = audit(tmp_path / "theirs.csv", clips)
    assert status == CLEAN and "except its 1 macro-expression" in text


def test_clips_are_named_as_they_were_written(tmp_path: Path, predictions: pd.DataFrame) -> None:
    predictions = predictions.assign(
        subject=predictions["subject"].str.replace("spNO.", "spNO.0"), clip="B 1"
    )
    labels = predictions["label"].where(predictions.index > 0, (predictions["label"] + 1) % 3)
    table_of(predictions.iloc[:-1], tmp_path / "clips.csv", label=labels)
    predictions.to_csv(tmp_path / "theirs.csv", index=False)
    text, _ = audit(tmp_path / "theirs.csv", tmp_path / "clips.csv")
    last = predictions["subject"].iloc[-1]
    assert f"1 predicted clip is not in clips.csv: casme3 {last}/B 1 onset 59" in text
    predictions.iloc[:-1].to_csv(tmp_path / "theirs.csv", index=False)
    text, _ = audit(tmp_path / "theirs.csv", tmp_path / "clips.csv")
    first = predictions["subject"].iloc[0]
    assert f"1 clip has another label in clips.csv: casme3 {first}/B 1 onset 0" in text


def test_a_table_of_clips_by_another_program(tmp_path: Path, kept: Path, predictions: pd.DataFrame) -> None:
    table = predictions.rename(
        columns={"subject": "Subject", "clip": "Filename", "onset": "Onset", "label": "Label"}
    )
    table[["dataset", "Subject", "Filename", "Onset", "Label"]].to_csv(
        tmp_path / "all.txt", sep=";", index=False
    )
    text, status = audit(kept, tmp_path / "all.txt")
    assert status == CLEAN and "No subject is in training and test of the same fold" in text
    assert "another label" not in text and "written differently" not in text


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [(1, 0, "from 0 in clips.csv and from 1"), (0, 1, "from 1 in clips.csv and from 0")],
)
def test_labels_may_count_from_another_number(
    tmp_path: Path, kept: Path, predictions: pd.DataFrame, ours: int, theirs: int, said: str
) -> None:
    named = predictions.drop(columns=[name for name in predictions if str(name).startswith("p_")])
    named.assign(label=named["label"] + ours, predicted=named["predicted"] + ours).to_csv(kept, index=False)
    labels = predictions["label"].where(predictions.index > 1, (predictions["label"] + 1) % 3) + theirs
    clips = table_of(predictions, tmp_path / "clips.csv", label=labels)
    for classes in ((), ("bad", "good", "odd")):
        text, _ = audit(kept, clips, classes=classes)
        assert "2 clips have another label in clips.csv" in text and f"Labels count {said}" in text
        text, _ = audit(
            kept,
            table_of(predictions, tmp_path / "same.csv", label=predictions["label"] + ours),
            classes=classes,
        )
        assert "another label" not in text and "Labels count" not in text


def test_a_label_that_is_no_class_is_another_label(
    tmp_path: Path, kept: Path, predictions: pd.DataFrame
) -> None:
    names = np.array(["Negative", "positive", "surprise"])
    labels = np.where(predictions.index < 5, "others", names[predictions["label"]])
    text, _ = audit(kept, table_of(predictions, tmp_path / "clips.csv", label=labels))
    assert "5 clips have another label in clips.csv" in text
    assert "Labels of clips.csv that are no class of the predictions: others" in text
    blank = np.where(predictions.index < 5, "", names[predictions["label"]])
    assert "another label" not in audit(kept, table_of(predictions, tmp_path / "clips.csv", label=blank))[0]


def test_classes_are_named_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("label,predicted\n1,1\n2,1\n3,3\n")
    text, _ = audit(path, classes=["negative", "positive", "surprise"])
    assert "note: classes: 1 negative, 2 positive, 3 surprise\n" in text
    with pytest.raises(ValueError, match="^--classes expected two or more different names, got 'a,a'"):
        audit(path, classes=["a", "a"])
    with pytest.raises(ValueError, match="columns expected label, predicted, subject, fold, got clip"):
        audit(path, columns={"clip": "x"})


def test_an_absent_class_that_is_skipped_is_in_no_score(tmp_path: Path, predictions: pd.DataFrame) -> None:
    """Interval and baseline are those of a file that does not know the class."""
    known = predictions[(predictions["label"] < 2) & (predictions["predicted"] < 2)]
    known.to_csv(tmp_path / "theirs.csv", index=False)
    known.drop(columns="p_surprise").to_csv(tmp_path / "two.csv", index=False)
    with_class, without = (audit(tmp_path / name, absent="skip")[0] for name in ("theirs.csv", "two.csv"))
    assert "no clip of surprise: left out" in with_class
    for name in ("pooled", "95 % over subjects", "majority class"):
        [ours], [theirs] = (
            [line for line in text.splitlines() if line.startswith(name)] for text in (with_class, without)
        )
        assert ours == theirs
    zero = audit(tmp_path / "theirs.csv")[0]
    assert numbers(zero, "majority class")[0] == pytest.approx(
        numbers(without, "majority class")[0] * 2 / 3, abs=1e-4
    )


def test_the_leaky_column_of_a_run_is_reported(tmp_path: Path, predictions: pd.DataFrame) -> None:
    predictions.assign(leaky="by its own word").to_csv(tmp_path / "theirs.csv", index=False)
    text, leaks = audit(tmp_path / "theirs.csv")
    assert leaks and "LEAKY: by its own word" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\n1\n", r"expected a column predicted \(or y_pred, .*got label; --predicted names it"),
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


def test_a_column_that_could_have_been_meant_is_named(tmp_path: Path) -> None:
    """Where it says something else; the same classes in words are the same."""
    path = tmp_path / "theirs.csv"
    path.write_text(
        "label,y_true,emotion,gt,predicted,subject\n0,0,sad,1,0,a\n1,0,joy,0,1,b\n0,1,sad,1,0,c\n"
    )
    text, _ = audit(path)
    assert "\nnote: label: y_true differs, not used (--label says which)\n" in text
    assert "emotion" not in text and "gt" not in text
    assert "not used" not in audit(path, columns={"label": "label"})[0]
