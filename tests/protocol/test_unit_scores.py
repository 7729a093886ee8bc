"""Scores of action units against scikit-learn and plain loops."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from hsta_fast.protocol import always_present, best_epoch, score_table, score_units, unit_intervals
from hsta_fast.protocol.unit_scores import predicted_of, unit_scores_by

UNITS = ["AU1", "AU4", "AU12"]


def a_table(seed: int, clips: int = 40, subjects: int = 5) -> pd.DataFrame:
    """Random truth and probabilities of two datasets."""
    rng = np.random.default_rng(seed)
    rows: dict[str, object] = {"dataset": np.where(np.arange(clips) % 2, "a", "b")}
    rows |= {"subject": [f"s{n}" for n in rng.integers(subjects, size=clips)], "fold": "1"}
    for unit, share in zip(UNITS, (0.5, 0.3, 0.2), strict=True):
        rows[unit] = (rng.random(clips) < share).astype(int)
        rows[f"p_{unit}"] = rng.random(clips)
    return pd.DataFrame(rows)


def f1_by_counting(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """2 TP / (2 TP + FP + FN), one clip after the other; 0 for 0/0."""
    right = wrong = 0
    for shown, said in zip(truth, predicted, strict=True):
        right += shown == said == 1
        wrong += shown != said
    return 2 * right / (2 * right + wrong) if right + wrong else 0.0


@settings(max_examples=25, deadline=None)
@given(data=st.data(), clips=st.integers(1, 12), units=st.integers(1, 3))
def test_scores_are_those_of_scikit_learn(data: st.DataObject, clips: int, units: int) -> None:
    bits = st.lists(st.integers(0, 1), min_size=clips * units, max_size=clips * units)
    truth, predicted = (np.array(data.draw(bits)).reshape(clips, units) for _ in range(2))
    scores = score_units(truth, predicted, absent="zero")
    theirs = [f1_score(truth[:, k], predicted[:, k], zero_division=0) for k in range(units)]
    np.testing.assert_allclose(scores.of_unit, theirs, rtol=0, atol=1e-15)
    both = [
        f1_score(truth[:, k], predicted[:, k], average="macro", labels=[0, 1], zero_division=0)
        for k in range(units)
    ]
    np.testing.assert_allclose(scores.both, both, rtol=0, atol=1e-15)
    assert scores.f1 == pytest.approx(np.mean(theirs)) and scores.f1_both == pytest.approx(np.mean(both))
    counted = [f1_by_counting(truth[:, k].tolist(), predicted[:, k].tolist()) for k in range(units)]
    np.testing.assert_allclose(scores.of_unit, counted, rtol=0, atol=1e-15)
    assert scores.support.tolist() == truth.sum(0).tolist()
    assert scores.predicted.tolist() == predicted.sum(0).tolist()
    shown = truth.any(0)
    skipped = score_units(truth, predicted, absent="skip")
    if shown.any():
        assert skipped.f1 == pytest.approx(np.mean(np.array(theirs)[shown]))
    else:
        assert np.isnan(skipped.f1)


def test_a_probability_of_one_half_is_a_prediction() -> None:
    table = pd.DataFrame({"p_AU1": [0.5, np.nextafter(0.5, 0), 1.0]})
    assert predicted_of(table, ["AU1"])[:, 0].tolist() == [1, 0, 1]


def test_the_baseline_shows_every_unit_everywhere() -> None:
    table = a_table(0)
    share = table[UNITS].mean().to_numpy()
    np.testing.assert_allclose(always_present(table, UNITS).of_unit, 2 * share / (1 + share))


def test_counts_are_pooled_before_they_are_scored() -> None:
    table = a_table(1)
    by = unit_scores_by(table, UNITS, "dataset")
    assert list(by) == ["a", "b"]
    for name, own in by.items():
        part = table[table["dataset"] == name]
        for k, unit in enumerate(UNITS):
            predicted = (part[f"p_{unit}"] >= 0.5).astype(int)
            assert own.of_unit[k] == pytest.approx(f1_by_counting([*part[unit]], [*predicted]))
    assert score_table(table, UNITS).f1 != pytest.approx(np.mean([own.f1 for own in by.values()]), abs=1e-6)


@pytest.mark.parametrize("absent", ["zero", "skip"])
def test_the_interval_draws_people(absent: str) -> None:
    """Against a loop over the same draws; one unit is shown by one person, another by nobody."""
    table = a_table(2, clips=30, subjects=3)
    table["AU4"] = (table["subject"] == "s1") & (table["dataset"] == "a") & (table["AU4"] == 1)
    table = table.astype({"AU4": int}).assign(AU12=0)
    found = unit_intervals(table, UNITS, samples=300, seed=3, absent=absent)  # type: ignore[arg-type]
    people = table["dataset"] + "/" + table["subject"]
    names = sorted(set(people))
    draws = np.random.default_rng(3).integers(len(names), size=(300, len(names)))
    means, of_first = [], []
    for draw in draws:
        rows = pd.concat([table[people == names[n]] for n in draw])
        counted = []
        for unit in UNITS:
            if rows[unit].any() or (not table[unit].any() and absent == "zero"):
                counted.append(f1_by_counting([*rows[unit]], [*(rows[f"p_{unit}"] >= 0.5).astype(int)]))
        means.append(np.mean(counted))
        of_first.append(f1_by_counting([*rows["AU1"]], [*(rows["p_AU1"] >= 0.5).astype(int)]))
    assert found is not None
    np.testing.assert_allclose(found["f1"], np.quantile(means, (0.025, 0.975)))
    np.testing.assert_allclose(found["AU1"], np.quantile(of_first, (0.025, 0.975)))
    of_nobody = (0, 0) if absent == "zero" else (np.nan, np.nan)
    np.testing.assert_array_equal(found["AU12"], of_nobody)
    assert unit_intervals(table[people == names[0]], UNITS) is None


def test_the_best_epoch_has_the_largest_mean_f1() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    half, right = np.ones_like(truth), truth.copy()
    assert best_epoch(truth, np.stack([half, right, right]), 2) == 1
    # A unit that no clip shows does not count.
    assert best_epoch(truth * [1, 0], np.stack([truth, half]), 2) == 0
    assert best_epoch(truth * 0, np.stack([half, half]), 2) == 0


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same shape \(num_clips, K\), got \(2,\) and \(2,\)"):
        score_units([0, 1], [0, 1])
    with pytest.raises(ValueError, match="predicted expected 0 or 1, got 2"):
        score_units([[0], [1]], [[0], [2]])
    with pytest.raises(ValueError, match=r"show every unit, got none of unit \[1\]"):
        score_units([[1, 0]], [[1, 0]])
