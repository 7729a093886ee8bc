"""Scores of micro-expression recognition, from counts pooled over all folds, and the table they come from.

A predictions table has one row a test clip: dataset, subject, clip, onset, fold, label, predicted and, for
each class in the order of the labels, a column p_<class name> with its probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ..clips import subject_ids

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


def score(truth: ArrayLike, predicted: ArrayLike, num_classes: int, *, absent: Absent = "raise") -> Scores:
    """UF1 = mean over classes of 2 TP / (2 TP + FP + FN), UAR = mean of TP / n, ACC = share of clips right.

    truth, predicted: (num_clips,) integers 0..num_classes - 1. `absent` says what becomes of a class
    without a clip in the truth, whose recall is 0/0: "raise" a ValueError, count it as "zero" in both
    means, or "skip" it, so that the means are over the classes that are there. Concatenate all folds first:
    the definitions are those of the second facial micro-expressions grand challenge (MEGC 2019), whose
    counts are pooled.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        shapes = f"{truth.shape} and {predicted.shape}"
        raise ValueError(f"score: wanted a truth and a prediction for each clip, got shapes {shapes}")
    for name, values in (("truth", truth), ("predicted", predicted)):
        if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() >= num_classes:
            got = f"{values.dtype} {values.min()}..{values.max()}"
            raise ValueError(f"score: wanted {name} integers in 0..{num_classes - 1}, got {got}")
    if absent not in ("raise", "zero", "skip"):
        raise ValueError(f"score: wanted absent 'raise', 'zero' or 'skip', got {absent!r}")
    classes = np.arange(num_classes)
    confusion = confusion_matrix(truth, predicted, labels=classes).astype(np.int64)
    # 0/0 can only be a class absent from the truth, and what becomes of that one is decided below.
    _, recall, f1, _ = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0.0)
    support = confusion.sum(axis=1)
    missing = support == 0
    if missing.any() and absent == "raise":
        raise ValueError(f"score: wanted clips of every class, got none of {np.flatnonzero(missing)}")
    if absent == "skip":
        f1, recall = np.where(missing, np.nan, f1), np.where(missing, np.nan, recall)
    return Scores(
        uf1=float(np.nanmean(f1)),
        uar=float(np.nanmean(recall)),
        acc=float(np.trace(confusion) / len(truth)),
        f1=f1,
        recall=recall,
        support=support,
        confusion=confusion,
        num_clips=len(truth),
    )


def per_fold(predictions: pd.DataFrame, num_classes: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Scores of each fold by itself, and their plain mean over folds.

    To be shown beside the pooled score, never in its place: a fold of few clips counts as much in this mean
    as one of many, and a fold may lack a class.

    Returns a table with fold, subjects, clips, uf1, uar, acc in the order of the folds in `predictions`, and
    {"uf1", "uar", "acc"}. A fold's means are over the classes it has clips of (absent="skip").
    """
    rows = []
    for name, part in predictions.groupby("fold", sort=False):
        own = score(part["label"], part["predicted"], num_classes, absent="skip")
        scores = {"uf1": own.uf1, "uar": own.uar, "acc": own.acc}
        rows.append({"fold": name, "subjects": subject_ids(part).nunique(), "clips": len(part)} | scores)
    table = pd.DataFrame(rows)
    return table, {name: float(table[name].mean()) for name in ("uf1", "uar", "acc")}


def per_dataset(predictions: pd.DataFrame, num_classes: int) -> dict[str, Scores]:
    """Pooled scores of each data set's clips, over the classes that it has clips of (absent="skip")."""
    return {
        str(name): score(part["label"], part["predicted"], num_classes, absent="skip")
        for name, part in predictions.groupby("dataset", sort=True)
    }


def bootstrap_interval(
    predictions: pd.DataFrame, num_classes: int, *, samples: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]] | None:
    """Percentile intervals of the pooled "uf1", "uar" and "acc" over subjects drawn with replacement.

    People are drawn, not clips: a person's clips resemble each other, so clips are not independent. A class
    that a draw happens to miss is left out of that draw's means; one absent from the truth counts as zero, as
    in the pooled score. None where there are fewer than two subjects.
    """
    people = predictions.groupby(subject_ids(predictions), sort=True)
    labels = np.arange(num_classes)
    tables = np.array([confusion_matrix(p["label"], p["predicted"], labels=labels) for _, p in people])
    if len(tables) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(tables), size=(samples, len(tables)))
    weights = np.stack([np.bincount(draw, minlength=len(tables)) for draw in draws])  # [samples, subjects]
    confusion = np.einsum("ns,skl->nkl", weights, tables)
    right = confusion.diagonal(axis1=1, axis2=2)
    truth, answers = confusion.sum(2), confusion.sum(1)
    counted = (truth > 0) | (tables.sum((0, 2)) == 0)
    f1 = 2 * right / np.maximum(truth + answers, 1)
    recall = right / np.maximum(truth, 1)
    values = {
        "uf1": (f1 * counted).sum(1) / counted.sum(1),
        "uar": (recall * counted).sum(1) / counted.sum(1),
        "acc": right.sum(1) / truth.sum(1),
    }
    ends = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: (float(low), float(high)) for name, v in values.items() for low, high in [np.quantile(v, ends)]
    }


def best_epoch(truth: ArrayLike, answers: ArrayLike, num_classes: int) -> int:
    """The first epoch (0, 1, ...) with the largest UF1 over the classes in the truth.

    truth: (num_clips,) integers; answers: (epochs, num_clips), the predicted class after each epoch.
    """
    truth, answers = np.asarray(truth), np.asarray(answers)
    f1 = []
    for number in np.intersect1d(truth, np.arange(num_classes)):
        is_class, said = truth == number, answers == number
        f1.append(2 * (is_class & said).sum(1) / (is_class.sum() + said.sum(1)))
    return int(np.argmax(np.mean(f1, axis=0)))


def majority_baseline(
    predictions: pd.DataFrame, train_counts: Mapping[str, Sequence[int]], num_classes: int
) -> Scores:
    """Pooled scores of answering, in each fold, the class with most clips in that fold's training part.

    train_counts: for each fold, the number of training clips of each of the K classes; the first wins a tie.
    A class absent from the truth counts as zero.
    """
    answer = {}
    for fold in predictions["fold"].unique():
        counts = train_counts.get(fold)
        if counts is None or len(counts) != num_classes or not all(isinstance(n, int) for n in counts):
            raise ValueError(f"train_counts: wanted {num_classes} numbers for fold {fold!r}, got {counts}")
        answer[fold] = int(np.argmax(counts))
    answers = predictions["fold"].map(answer).astype(np.int64)
    return score(predictions["label"], answers, num_classes, absent="zero")
