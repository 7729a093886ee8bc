"""The temperature and the threshold, against plain searches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from hsta_fast.predicting.calibration import (
    FEWEST_SURE,
    best_temperature,
    calibrate,
    fit,
    lowest_threshold,
    negative_log_likelihood,
)
from hsta_fast.predicting.result import UNCALIBRATED, how_sure


def simulated(true_temperature: float, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose classes are drawn from softmax(logits / T)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, 3)) * 4
    shares = softmax(logits / true_temperature, axis=-1)
    labels = (rng.random((count, 1)) > shares.cumsum(1)).sum(1).clip(0, 2)
    return logits, labels


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_minimises_the_negative_log_likelihood(true: float) -> None:
    logits, labels = simulated(true)
    found = best_temperature(logits, labels)
    assert found == pytest.approx(true, rel=0.1)
    grid = np.geomspace(0.2, 10, 400)
    assert negative_log_likelihood(found, logits, labels) <= min(
        negative_log_likelihood(t, logits, labels) for t in grid
    )
    shares = softmax(logits / found, axis=-1)
    plain = -np.log(shares[np.arange(len(labels)), labels]).mean()
    assert negative_log_likelihood(found, logits, labels) == pytest.approx(plain, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=80),
    wanted=st.sampled_from([0.5, 0.8, 0.9, 1.0]),
)
def test_the_threshold_is_the_lowest_that_is_right_often_enough(
    rows: list[tuple[int, bool]], wanted: float
) -> None:
    confidence = np.array([level / 12 for level, _ in rows])
    right = np.array([is_right for _, is_right in rows])
    fits = [
        level
        for level in sorted(set(confidence.tolist()))
        if (chosen := confidence >= level).sum() >= FEWEST_SURE and right[chosen].mean() >= wanted
    ]
    assert lowest_threshold(confidence, right, wanted) == (fits[0] if fits else None)


def test_what_is_stated_is_counted_on_the_same_clips() -> None:
    logits, labels = simulated(2.0, 500)
    found = fit(softmax(logits, axis=-1), labels, wanted=0.9)
    shares = found.probabilities(logits)
    right, confidence = shares.argmax(1) == labels, shares.max(1)
    assert found.threshold is not None
    sure = np.array([found.is_sure(float(value)) for value in confidence])
    assert (found.clips, found.sure_clips) == (500, sure.sum())
    assert found.accuracy == right.mean()
    assert found.accuracy_sure == right[sure].mean() >= 0.9
    assert found.accuracy_unsure == right[~sure].mean() < 0.9
    text = str(found)
    assert f"temperature {found.temperature:.2f}, fitted on 500 held-out clips" in text
    assert f"unsure below {found.threshold:.2f}" in text and f"of {found.sure_clips} clips were right" in text


def test_where_no_threshold_is_good_enough_everything_is_unsure() -> None:
    rng = np.random.default_rng(0)
    found = fit(softmax(rng.normal(size=(300, 3)), axis=-1), rng.integers(0, 3, 300), wanted=0.95)
    assert found.threshold is None and not found.is_sure(1.0)
    assert "no threshold gives 0.95, so every prediction is unsure" in str(found)


def test_probabilities_of_zero_are_fitted_too() -> None:
    shares = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.4]] * 20)
    found = fit(shares, np.array([0, 1, 1, 0] * 20), wanted=0.5)
    assert np.isfinite(found.temperature) and found.temperature > 1


def test_other_classes_and_few_clips(trained: Path) -> None:
    path = trained / "predictions.csv"
    assert calibrate(path, ("negative", "positive", "surprise"), 0.9) is None
    with pytest.raises(ValueError, match="expected the classes positive, negative, surprise of the models"):
        calibrate(path, ("positive", "negative", "surprise"), 0.9)


def test_of_a_mean_of_models_it_is_said_what_was_measured() -> None:
    logits, labels = simulated(2.0, 500)
    found = fit(softmax(logits, axis=-1), labels, wanted=0.9)
    assert how_sure(found, models=1) == str(found)
    clause = "; measured on single models, not on the mean of 5 that is shown here"
    assert how_sure(found, models=5) == f"{found}{clause}"
    assert how_sure(None, models=5) == UNCALIBRATED
