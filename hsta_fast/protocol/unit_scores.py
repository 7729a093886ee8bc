"""Scores of action units, from counts pooled over all folds: each unit is a question of its own.

`predictions` is a prediction table of units: for each unit in `units` a column "AU4" with the truth, 0 or 1,
and a column "p_AU4" with the probability (see predictions.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..clips import subject_ids
from .metrics import Absent, subject_weights

THRESHOLD = 0.5  # a unit is predicted where its probability is at least this; fixed in advance
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitScores:
    """Scores of one set of predictions over K units.

    f1: mean over the units of `of_unit`; f1_both: mean over the units of `both`.
    of_unit: (K,) float64, F1 of "the clip shows the unit"; both: (K,), the mean of that F1 and the F1 of "it
    does not". NaN for a unit left out by absent="skip". support, predicted: (K,) int64, clips that show the
    unit, and clips for which it is predicted.
    """

    f1: float
    f1_both: float
    of_unit: np.ndarray
    both: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    num_clips: int


def score_units(truth: ArrayLike, predicted: ArrayLike, *, absent: Absent = "raise") -> UnitScores:
    """F1 = 2 TP / (2 TP + FP + FN) of each unit, and their mean. Concatenate all folds first.

    Args:
        truth: (num_clips, K), 1 where a clip shows a unit, else 0.
        predicted: (num_clips, K), 1 where it is predicted, else 0.
        absent: how to treat a unit that no clip shows, whose F1 is 0/0 or 0: "raise" a ValueError, count it
            as "zero" in the means, or "skip" it, so that the means are over the other units.

    Raises:
        ValueError: wrong shapes or values; or a unit is absent and `absent` is "raise".
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 2 or truth.shape != predicted.shape or not truth.size:
        shapes = f"{truth.shape} and {predicted.shape}"
        raise ValueError(f"truth and predicted expected the same shape (num_clips, K), got {shapes}")
    for name, values in (("truth", truth), ("predicted", predicted)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name} expected 0 or 1, got {np.setdiff1d(values, (0, 1))[0]}")
    if absent not in ("raise", "zero", "skip"):
        raise ValueError(f"absent expected 'raise', 'zero' or 'skip', got {absent!r}")
    truth, predicted = truth.astype(bool), predicted.astype(bool)
    support, answers = truth.sum(0), predicted.sum(0)
    if absent == "raise" and not support.all():
        raise ValueError(
            f"truth expected clips that show every unit, got none of unit {np.flatnonzero(support == 0)}"
        )
    f1, both = _f1((truth & predicted).sum(0), support, answers, len(truth))
    if absent == "skip":
        f1, both = np.where(support, f1, np.nan), np.where(support, both, np.nan)
    known = support.any() or absent != "skip"
    return UnitScores(
        f1=float(np.nanmean(f1)) if known else float("nan"),
        f1_both=float(np.nanmean(both)) if known else float("nan"),
        of_unit=f1,
        both=both,
        support=support.astype(np.int64),
        predicted=answers.astype(np.int64),
        num_clips=len(truth),
    )


def _f1(
    right: np.ndarray, support: np.ndarray, answers: np.ndarray, clips: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """F1 of present and the mean of those of present and absent; of nothing shown and nothing predicted 0."""
    absent, not_predicted = clips - support, clips - answers
    rightly_absent = absent - (answers - right)
    present = 2 * right / np.maximum(support + answers, 1)
    return present, (present + 2 * rightly_absent / np.maximum(absent + not_predicted, 1)) / 2


def truth_of(predictions: pd.DataFrame, units: Sequence[str]) -> np.ndarray:
    """(num_clips, K) int64, 1 where a clip shows a unit."""
    return predictions[[*units]].to_numpy(dtype=np.int64)


def predicted_of(predictions: pd.DataFrame, units: Sequence[str]) -> np.ndarray:
    """(num_clips, K) int64, 1 where the probability of a unit is at least `THRESHOLD`."""
    probabilities = predictions[[f"p_{unit}" for unit in units]].to_numpy(dtype=np.float64)
    return (probabilities >= THRESHOLD).astype(np.int64)


def score_table(predictions: pd.DataFrame, units: Sequence[str], *, absent: Absent = "zero") -> UnitScores:
    """`score_units` of a prediction table."""
    return score_units(truth_of(predictions, units), predicted_of(predictions, units), absent=absent)


def always_present(predictions: pd.DataFrame, units: Sequence[str], *, absent: Absent = "zero") -> UnitScores:
    """The baseline: every unit is predicted for every clip.

    A unit that fewer than half of the clips show, as nearly all are, has F1 0 where it is never predicted:
    the majority is the lower baseline of the two.
    """
    truth = truth_of(predictions, units)
    return score_units(truth, np.ones_like(truth), absent=absent)


def unit_scores_by(predictions: pd.DataFrame, units: Sequence[str], column: str) -> Mapping[str, UnitScores]:
    """Scores of the clips of each fold or dataset, over the units that they show (absent="skip")."""
    return {
        str(name): score_table(part, units, absent="skip")
        for name, part in predictions.groupby(column, sort=column == "dataset")
    }


def unit_intervals(
    predictions: pd.DataFrame,
    units: Sequence[str],
    *,
    absent: Absent = "zero",
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval] | None:
    """Bootstrap percentile intervals over subjects of the pooled "f1" and "f1_both", and of F1 by unit.

    Subjects are resampled, not clips. A unit that no clip of a resample shows is left out of its means, and
    out of the unit's own interval. One that no clip shows at all is left out too if `absent` is "skip", else
    it counts as zero, as in the pooled score. Its interval is then (NaN, NaN) or (0, 0). Returns None with
    fewer than two subjects.
    """
    subjects, codes = np.unique(subject_ids(predictions), return_inverse=True)
    if len(subjects) < 2:
        return None
    weights = subject_weights(len(subjects), samples, seed)
    truth, predicted = truth_of(predictions, units), predicted_of(predictions, units)
    member = np.zeros((len(subjects), len(truth)), dtype=np.int64)
    member[codes, np.arange(len(truth))] = 1
    right, support, answers = (weights @ (member @ x) for x in (truth * predicted, truth, predicted))
    f1, both = _f1(right, support, answers, (weights @ member.sum(1))[:, None])
    never = truth.sum(0) == 0
    counted = (support > 0) | (never & (absent != "skip"))
    means = {
        name: np.where(counted, values, 0).sum(1) / np.maximum(counted.sum(1), 1)
        for name, values in (("f1", f1), ("f1_both", both))
    }
    ends = [(1 - level) / 2, (1 + level) / 2]
    drawn = {**means} | {
        unit: f1[counted[:, k], k] if counted[:, k].any() else np.full(1, np.nan)
        for k, unit in enumerate(units)
    }
    return {
        name: (float(low), float(high)) for name, v in drawn.items() for low, high in [np.quantile(v, ends)]
    }
