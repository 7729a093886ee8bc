"""Scores equal their definition and scikit-learn's, are pooled, and bad tables are refused by place."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from hsta_fast.protocol.metrics import (
    best_epoch,
    bootstrap_interval,
    majority_baseline,
    per_dataset,
    per_fold,
    score,
)
from hsta_fast.protocol.predictions import read_predictions

_CLASS = st.integers(0, 3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(_CLASS, _CLASS), min_size=1, max_size=60))
def test_scores_equal_scikit_learn_and_the_definition(pairs: list[tuple[int, int]]) -> None:
    # Every class once, so that no class is absent from the truth.
    truth, predicted = np.array([*pairs, (0, 1), (1, 1), (2, 3), (3, 0)]).T
    scores = score(truth, predicted, 4)
    assert scores.uf1 == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert scores.uar == pytest.approx(recall_score(truth, predicted, average="macro"))
    assert scores.acc == pytest.approx(accuracy_score(truth, predicted))
    hits = [((truth == c) & (predicted == c)).sum() for c in range(4)]
    sizes = [(truth == c).sum() + (predicted == c).sum() for c in range(4)]  # 2 TP + FP + FN
    assert scores.uf1 == pytest.approx(np.mean([2 * hits[c] / sizes[c] for c in range(4)]))
    assert scores.uar == pytest.approx(np.mean([hits[c] / (truth == c).sum() for c in range(4)]))


def test_scores_by_hand() -> None:
    # TP 2, 1, 0; FN 1, 1, 1; FP 1, 1, 1.
    scores = score([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0], 3)
    assert scores.f1.tolist() == pytest.approx([4 / 6, 2 / 4, 0.0])
    assert scores.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 0.0])
    assert scores.uf1 == pytest.approx(7 / 18)
    assert scores.uar == pytest.approx(7 / 18)
    assert scores.acc == pytest.approx(0.5)
    assert scores.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert scores.support.tolist() == [3, 2, 1] and scores.num_clips == 6


def test_absent_class_is_a_choice() -> None:
    truth, predicted = [0, 0, 1, 1], [0, 0, 1, 2]
    with pytest.raises(ValueError, match=r"clips of every class, got none of \[2\]"):
        score(truth, predicted, 3)
    zero, skip = (score(truth, predicted, 3, absent=choice) for choice in ("zero", "skip"))
    assert zero.uar == pytest.approx((1 + 0.5 + 0) / 3) and skip.uar == pytest.approx((1 + 0.5) / 2)
    assert zero.uf1 == pytest.approx((1 + 2 / 3 + 0) / 3) and skip.uf1 == pytest.approx((1 + 2 / 3) / 2)
    assert zero.f1[2] == 0 and np.isnan(skip.f1[2])


def test_score_refuses_what_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"predicted expected integers in 0\.\.2, got int64 0\.\.3"):
        score([0, 1, 2], [0, 1, 3], 3)
    with pytest.raises(ValueError, match=r"truth and predicted expected .* got \(2,\) and \(3,\)"):
        score([0, 1], [0, 1, 2], 3)
    with pytest.raises(ValueError, match=r"truth and predicted expected .* got \(0,\) and \(0,\)"):
        score([], [], 3)


def _table(fold: str, truth: list[int], predicted: list[int]) -> pd.DataFrame:
    rows = {"dataset": "d", "subject": f"s{fold}", "clip": "c", "onset": range(len(truth)), "fold": fold}
    return pd.DataFrame(rows | {"label": truth, "predicted": predicted, "p_a": 0.5, "p_b": 0.5})


def test_pooled_score_is_not_the_mean_of_folds() -> None:
    """A large fold with everything right and a small one with everything wrong."""
    table = pd.concat([_table("1", [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]), _table("2", [0, 1], [1, 0])])
    folds, mean = per_fold(table, 2)
    assert folds["fold"].tolist() == ["1", "2"]
    assert folds["clips"].tolist() == [6, 2] and folds["subjects"].tolist() == [1, 1]
    assert folds["uf1"].tolist() == [1.0, 0.0]
    assert mean == {"uf1": 0.5, "uar": 0.5, "acc": 0.5}
    assert score(table["label"], table["predicted"], 2).uf1 == pytest.approx(0.75)


def test_pooled_scores_equal_scikit_learn_where_fold_means_do_not(predictions: pd.DataFrame) -> None:
    truth, predicted = predictions["label"], predictions["predicted"]
    pooled, (_, mean) = score(truth, predicted, 3), per_fold(predictions, 3)
    assert pooled.uf1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert pooled.uar == pytest.approx(recall_score(truth, predicted, average="macro"))
    assert pooled.acc == pytest.approx(accuracy_score(truth, predicted))
    assert all(abs(mean[name] - getattr(pooled, name)) > 1e-3 for name in mean)


def test_each_data_set_is_scored_over_the_classes_it_has(predictions: pd.DataFrame) -> None:
    predictions.loc[predictions.index % 2 == 0, "dataset"] = "samm"
    table = predictions[(predictions["dataset"] != "samm") | (predictions["label"] != 2)]
    own = per_dataset(table, 3)
    assert list(own) == ["casme3", "samm"]
    for name, scores in own.items():
        part = table[table["dataset"] == name]
        labels = sorted(set(part["label"]))
        expected = f1_score(part["label"], part["predicted"], average="macro", labels=labels)
        assert scores.uf1 == pytest.approx(expected) and scores.num_clips == len(part)
    assert np.isnan(own["samm"].f1[2]) and not np.isnan(own["casme3"].f1).any()


def test_the_interval_is_that_of_drawn_subjects(predictions: pd.DataFrame) -> None:
    """The same draws, scored one by one; some miss the class that one person alone shows."""
    rare = predictions["subject"] == predictions["subject"][predictions["label"] == 2].iloc[0]
    predictions = predictions[rare | (predictions["label"] != 2)]
    interval = bootstrap_interval(predictions, 3, samples=50, seed=4)
    assert interval is not None
    people = [part for _, part in predictions.groupby(predictions["dataset"] + "/" + predictions["subject"])]
    draws = np.random.default_rng(4).integers(len(people), size=(50, len(people)))
    drawn = [pd.concat([people[i] for i in draw]) for draw in draws]
    assert 0 < sum((d["label"] == 2).any() for d in drawn) < 50
    scores = [score(d["label"], d["predicted"], 3, absent="skip") for d in drawn]
    for name in ("uf1", "uar", "acc"):
        expected = np.quantile([getattr(own, name) for own in scores], [0.025, 0.975])
        assert interval[name] == pytest.approx(tuple(expected))


def test_the_interval_of_many_classes_takes_little_memory() -> None:
    table = pd.concat([_table(str(i), [0, i], [0, 999]) for i in range(5)])
    tracemalloc.start()
    assert bootstrap_interval(table, 1000, samples=100) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # a confusion matrix for each resample would be 800 MB


def test_the_interval_of_people_who_are_all_alike_has_no_width() -> None:
    table = pd.concat([_table(str(i), [0, 1], [0, 0]) for i in range(5)])
    interval = bootstrap_interval(table, 3)
    assert interval is not None and interval["acc"] == (0.5, 0.5)
    assert interval["uar"] == pytest.approx((1 / 3, 1 / 3)), "a class absent from the truth counts as zero"
    assert bootstrap_interval(_table("1", [0, 1], [0, 0]), 2) is None


def test_the_best_epoch_is_the_first_with_the_largest_uf1() -> None:
    truth = [0, 0, 0, 1]
    predicted = [[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [2, 2, 2, 2]]
    uf1 = [score(truth, row, 3, absent="skip").uf1 for row in predicted]
    assert uf1[1] == uf1[2] > uf1[0] > uf1[3]
    assert best_epoch(truth, predicted, 3) == 1


def test_majority_baseline_predicts_the_training_majority() -> None:
    table = pd.concat([_table("1", [0, 0, 0, 1], [0] * 4), _table("2", [1, 1, 0], [1] * 3)])
    # Fold 1 predicts 1 (one right of four) and fold 2 predicts 0 (one right of three).
    baseline = majority_baseline(table, {"1": [1, 2], "2": [3, 1]}, 2)
    assert baseline.confusion.tolist() == [[1, 3], [2, 1]]
    assert baseline.acc == pytest.approx(2 / 7)
    with pytest.raises(ValueError, match="train_counts expected 2 integers for fold '2', got None"):
        majority_baseline(table, {"1": [1, 2]}, 2)


def test_predictions_come_back_as_written(tmp_path: Path, predictions: pd.DataFrame) -> None:
    predictions["subject"] = "007"
    predictions["clip"] = "NA"
    path = tmp_path / "predictions.csv"
    predictions.to_csv(path, index=False)
    read = read_predictions(path)
    assert read.to_dict(orient="list") == predictions.to_dict(orient="list")


def _set(column: str, value: str | float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype(object)
        table.loc[2, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns=["fold", "label"]), "missing: fold, label"),
        (_set("label", "x"), "row 4, column label: expected a whole number from 0 to 2, got 'x'"),
        (_set("label", 3), "row 4, column label: expected a whole number from 0 to 2, got '3'"),
        (_set("predicted", -1), "row 4, column predicted: expected a whole number from 0 to 2, got '-1'"),
        (_set("predicted", "1.5"), "row 4, column predicted: .* got '1.5'"),
        (_set("onset", ""), "row 4, column onset: expected a whole number, got ''"),
        (_set("onset", 10**30), "row 4, column onset: expected a whole number, got '1000"),
        (_set("subject", ""), "row 4, column subject: expected a name, got ''"),
        (
            _set("p_positive", "nan"),
            "row 4, column p_positive: expected a probability from 0 to 1, got 'nan'",
        ),
        (_set("p_positive", 1.5), "row 4, column p_positive: .* got '1.5'"),
        (_set("onset", 0), "row 4, column clip: expected each .* once"),
        (lambda table: table.iloc[:0], "expected one row per test clip, got no rows"),
        (lambda table: table.drop(columns=["p_negative", "p_positive"]), "two or more columns p_"),
    ],
)
def test_bad_predictions_are_refused_by_file_row_and_column(
    tmp_path: Path,
    predictions: pd.DataFrame,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    message: str,
) -> None:
    predictions["subject"] = "spNO.1"
    path = tmp_path / "predictions.csv"
    change(predictions).to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda text: "", "expected a csv with columns dataset, .*, got: No columns"),
        (lambda text: text.replace("\n", ",9\n").replace(",9\n", "\n", 1), "more cells than the 10 columns"),
        (lambda text: text + "casme3,spNO.1\n", "row 62, column clip: expected a name, got ''"),
    ],
)
def test_broken_csv_is_refused(
    tmp_path: Path, predictions: pd.DataFrame, cut: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(cut(predictions.to_csv(index=False)))
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        read_predictions(path)
