"""Scores of micro-expression recognition, from counts pooled over all folds.

`predictions` is a prediction table, with the columns described in predictions.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ..clips import NOTHING, subject_ids

Absent = Literal["raise", "zero", "skip"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of one set of predictions over K classes, all from the same counts.

    f1, recall: (K,) float64, NaN for a class left out by absent="skip"; support: (K,) int64, clips of each
    class in the truth; confusion: (K, K) int64, rows the truth, columns the prediction.
    """

    uf1: float
    uar: float
    acc: float
    f1: np.ndarray
    recall: np.ndarray
    support: np.ndarray
    confusion: np.ndarray
    num_clips: int


def score(
    truth: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    *,
    absent: Absent = "raise",
    unscored: int = 0,
) -> Scores:
    """UF1 = mean over classes of 2 TP / (2 TP + FP + FN), UAR = mean of TP / n, ACC = share of correct clips.

    These are the definitions of the second facial micro-expressions grand challenge (MEGC 2019), which pools
    the counts: concatenate all folds first.

    Args:
        truth: (num_clips,) integers in 0..num_classes - 1.
        predicted: (num_clips,) integers in 0..num_classes - 1.
        num_classes: K.
        absent: how to treat a class without a clip in the truth, whose recall is 0/0: "raise" a ValueError,
            count it as "zero" in both means, or "skip" it, so that the means are over the other classes.
        unscored: the number of last classes that are in no mean, see `unscored_classes`: their F1 and recall
            are 0, and as an answer they are wrong.

    Raises:
        ValueError: wrong shapes or values; or a class is absent and `absent` is "raise".
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        shapes = f"{truth.shape} and {predicted.shape}"
        raise ValueError(f"truth and predicted expected the same shape (num_clips,), got {shapes}")
    for name, values in (("truth", truth), ("predicted", predicted)):
        if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() >= num_classes:
            got = f"{values.dtype} {values.min()}..{values.max()}"
            raise ValueError(f"{name} expected integers in 0..{num_classes - 1}, got {got}")
    if absent not in ("raise", "zero", "skip"):
        raise ValueError(f"absent expected 'raise', 'zero' or 'skip', got {absent!r}")
    classes = np.arange(num_classes)
    confusion = confusion_matrix(truth, predicted, labels=classes).astype(np.int64)
    # Recall is 0/0 only for a class absent from the truth; `absent` decides about that class below.
    _, recall, f1, _ = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0.0)
    support = confusion.sum(axis=1)
    scored = num_classes - unscored
    missing = (support == 0) & (classes < scored)
    if missing.any() and absent == "raise":
        raise ValueError(f"truth expected clips of every class, got none of {np.flatnonzero(missing)}")
    if absent == "skip":
        f1, recall = np.where(missing, np.nan, f1), np.where(missing, np.nan, recall)
    return Scores(
        uf1=float(np.nanmean(f1[:scored])),
        uar=float(np.nanmean(recall[:scored])),
        acc=float(np.trace(confusion) / len(truth)),
        f1=f1,
        recall=recall,
        support=support,
        confusion=confusion,
        num_clips=len(truth),
    )


def unscored_classes(classes: Sequence[str], truth: ArrayLike) -> int:
    """How many of the last classes no clip is tested for: 1 where that is `NOTHING`, else 0.

    truth: (num_clips,) integers, positions in `classes`.
    """
    return int(classes[-1] == NOTHING and not (np.asarray(truth) == len(classes) - 1).any())


def per_fold(predictions: pd.DataFrame, num_classes: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Scores of each fold by itself, and their unweighted mean over folds.

    Show the mean beside the pooled score, never instead of it: a small fold weighs as much as a large one,
    and a fold may lack a class.

    Returns:
        A table with fold, subjects, clips, uf1, uar, acc in the order of the folds in `predictions`, and the
        means as {"uf1", "uar", "acc"}. A fold is scored over the classes it has clips of (absent="skip").
    """
    rows = []
    for name, part in predictions.groupby("fold", sort=False):
        own = score(part["label"], part["predicted"], num_classes, absent="skip")
        scores = {"uf1": own.uf1, "uar": own.uar, "acc": own.acc}
        rows.append({"fold": name, "subjects": subject_ids(part).nunique(), "clips": len(part)} | scores)
    table = pd.DataFrame(rows)
    return table, {name: float(table[name].mean()) for name in ("uf1", "uar", "acc")}


def per_dataset(predictions: pd.DataFrame, num_classes: int) -> dict[str, Scores]:
    """Scores of each dataset's clips, pooled, over the classes that it has clips of (absent="skip")."""
    return {
        str(name): score(part["label"], part["predicted"], num_classes, absent="skip")
        for name, part in predictions.groupby("dataset", sort=True)
    }


def bootstrap_interval(
    predictions: pd.DataFrame,
    num_classes: int,
    *,
    absent: Absent = "zero",
    unscored: int = 0,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]] | None:
    """Bootstrap percentile intervals of the pooled "uf1", "uar" and "acc" over subjects.

    Subjects are resampled, not clips: the clips of a person resemble each other and are not independent. A
    class missing from a resample is left out of its means. One absent from the whole truth is left out too if
    `absent` is "skip", else it counts as zero, as in the pooled score. Returns None with fewer than two
    subjects.
    """
    subjects, codes = np.unique(subject_ids(predictions), return_inverse=True)
    if len(subjects) < 2:
        return None
    weights = subject_weights(len(subjects), samples, seed)
    columns = predictions["label"], predictions["predicted"]
    values = resampled_scores(codes, *columns, num_classes, weights, absent=absent, unscored=unscored)
    ends = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: (float(low), float(high)) for name, v in values.items() for low, high in [np.quantile(v, ends)]
    }


def subject_weights(num_subjects: int, samples: int, seed: int) -> np.ndarray:
    """How often each bootstrap sample, drawn with replacement, has each subject: (samples, num_subjects)."""
    draws = np.random.default_rng(seed).integers(num_subjects, size=(samples, num_subjects))
    return np.stack([np.bincount(draw, minlength=num_subjects) for draw in draws])


def resampled_scores(
    subjects: ArrayLike,
    truth: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    weights: np.ndarray,
    *,
    absent: Absent = "zero",
    unscored: int = 0,
) -> dict[str, np.ndarray]:
    """The pooled "uf1", "uar" and "acc" of each bootstrap sample: (samples,) float64.

    Args:
        subjects: (num_clips,) integers in 0..num_subjects - 1, the person of each clip.
        truth: (num_clips,) integers in 0..num_classes - 1.
        predicted: (num_clips,) integers in 0..num_classes - 1.
        num_classes: K.
        weights: (samples, num_subjects), see `subject_weights`.
        absent: how to treat a class without a clip in the whole truth; see `bootstrap_interval`.
        unscored: see `score`.
    """
    subjects, truth, predicted = np.asarray(subjects), np.asarray(truth), np.asarray(predicted)
    num_subjects = weights.shape[1]

    # Per subject and class: correct predictions, clips, predictions. A confusion matrix for each sample would
    # take `num_classes` times as much memory.
    def counts(of: np.ndarray, where: np.ndarray) -> np.ndarray:
        cells = np.bincount((subjects * num_classes + of)[where], minlength=num_subjects * num_classes)
        return cells.reshape(num_subjects, num_classes)

    every = np.ones(len(truth), dtype=bool)
    right, clips, answers = (
        weights @ own
        for own in (counts(truth, truth == predicted), counts(truth, every), counts(predicted, every))
    )
    never = np.bincount(truth, minlength=num_classes) == 0
    counted = (clips > 0) | (never & (absent != "skip"))
    counted &= np.arange(num_classes) < num_classes - unscored
    f1 = 2 * right / np.maximum(clips + answers, 1)
    recall = right / np.maximum(clips, 1)
    return {
        "uf1": (f1 * counted).sum(1) / counted.sum(1),
        "uar": (recall * counted).sum(1) / counted.sum(1),
        "acc": right.sum(1) / clips.sum(1),
    }


def best_epoch(truth: ArrayLike, predicted: ArrayLike, num_classes: int) -> int:
    """The first epoch, counted from 0, with the largest UF1 over the classes in the truth.

    truth: (num_clips,) integers; predicted: (epochs, num_clips), the predicted class after each epoch. Of
    action units: (num_clips, K) and (epochs, num_clips, K), 1 where a unit is shown and predicted, else 0; F1
    is that of each unit. Where no clip shows any, it is the first epoch.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    classes = range(num_classes)
    if truth.ndim == 2:
        pairs = [(truth[:, k] == 1, predicted[:, :, k] == 1) for k in classes if truth[:, k].any()]
    else:
        pairs = [(truth == k, predicted == k) for k in np.intersect1d(truth, classes)]
    f1 = [
        2 * (is_class & is_predicted).sum(1) / (is_class.sum() + is_predicted.sum(1))
        for is_class, is_predicted in pairs
    ]
    return int(np.argmax(np.mean(f1, axis=0))) if f1 else 0


def majority_baseline(
    predictions: pd.DataFrame,
    train_counts: Mapping[str, Sequence[int]],
    num_classes: int,
    *,
    absent: Absent = "zero",
    unscored: int = 0,
) -> Scores:
    """Pooled scores of always predicting the class with most clips in the training part of the fold.

    train_counts: for each fold, the number of training clips of each of the K classes; the first of equal
    classes is predicted. absent, unscored: see `score`.
    """
    majority = {}
    for fold in predictions["fold"].unique():
        counts = train_counts.get(fold)
        if counts is None or len(counts) != num_classes or not all(isinstance(n, int) for n in counts):
            raise ValueError(f"train_counts expected {num_classes} integers for fold {fold!r}, got {counts}")
        majority[fold] = int(np.argmax(counts[: num_classes - unscored]))
    predicted = predictions["fold"].map(majority).astype(np.int64)
    return score(predictions["label"], predicted, num_classes, absent=absent, unscored=unscored)
