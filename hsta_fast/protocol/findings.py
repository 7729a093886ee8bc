"""What an audit finds out about a file of predictions, as data."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..clips import natural_key, subject_ids
from .metrics import Absent, Scores, bootstrap_interval, majority_baseline, per_dataset, per_fold, score
from .overlap import CLEAN, LEAKS, Overlap, find_overlap, person_keys
from .predictions import Predictions, load_predictions

_NOT_LEAKY = ("", "false", "0", "no", "none", "nan")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The scores of a file of predictions over K classes, and what its reader must know about them.

    Attributes:
        file: name of the file.
        predictions: its content.
        leaky: the reasons given in its column leaky.
        absent: how a class without a test clip is treated, see `metrics.score`.
        absent_classes: names of these classes.
        num_subjects: people; None without a column subject.
        repeated: rows whose clip an earlier row has already.
        split_subjects: subjects tested in more than one fold, so also trained on.
        pooled: scores over all rows.
        interval: of the pooled scores, see `metrics.bootstrap_interval`; None without a column subject.
        baseline: scores of always predicting, in a fold, the most frequent class of what other folds test.
        fold_mean: unweighted means over folds of "uf1", "uar" and "acc"; None without a column fold.
        datasets: scores of each dataset; empty if there are not several.
        overlap: comparison with the table of all clips; None without that table.
    """

    file: str
    predictions: Predictions
    leaky: list[str]
    absent: Absent
    absent_classes: list[str]
    num_subjects: int | None
    repeated: int
    split_subjects: list[str]
    pooled: Scores
    interval: dict[str, tuple[float, float]] | None
    baseline: Scores
    fold_mean: dict[str, float] | None
    datasets: dict[str, Scores]
    overlap: Overlap | None

    @property
    def status(self) -> int:
        """CLEAN, LEAKS or UNKNOWN; see overlap.py."""
        if self.leaky:
            return LEAKS
        return CLEAN if self.overlap is None else self.overlap.status


def collect_findings(path: Path, clips: Path | None, folds: Path | None, absent: Absent) -> Findings:
    """Read predictions, score them and compare them with the clips; arguments and errors as in `audit`."""
    predictions = load_predictions(path, strict=False)
    rows, classes, given = predictions.rows, predictions.classes, predictions.given
    leaky = sorted(set(rows["leaky"])) if "leaky" in rows else []
    pooled = score(rows["label"], rows["predicted"], len(classes), absent=absent)
    people = person_keys(rows) if "subject" in given else None
    by_person = None if people is None else rows.assign(dataset="", subject=people)
    several_datasets = rows["dataset"].nunique() > 1
    return Findings(
        file=path.name,
        predictions=predictions,
        leaky=[reason for reason in leaky if reason.casefold() not in _NOT_LEAKY],
        absent=absent,
        absent_classes=[name for name, count in zip(classes, pooled.support, strict=True) if not count],
        num_subjects=None if people is None else people.nunique(),
        repeated=_repeated(rows, people) if people is not None and {"clip", "onset"} <= given else 0,
        split_subjects=_split_subjects(rows, people) if people is not None and "fold" in given else [],
        pooled=pooled,
        interval=None if by_person is None else bootstrap_interval(by_person, len(classes)),
        baseline=_baseline(rows, len(classes)),
        fold_mean=per_fold(rows, len(classes))[1] if "fold" in given else None,
        datasets=per_dataset(rows, len(classes)) if several_datasets else {},
        overlap=None if clips is None else find_overlap(predictions, clips, folds),
    )


def _repeated(rows: pd.DataFrame, people: pd.Series) -> int:
    return int(rows[["clip", "onset"]].assign(person_key=people).duplicated().sum())


def _split_subjects(rows: pd.DataFrame, people: pd.Series) -> list[str]:
    spelling = dict(zip(people, subject_ids(rows), strict=True))
    num_folds = rows.groupby(people)["fold"].nunique()
    return sorted((spelling[person] for person in num_folds.index[num_folds > 1]), key=natural_key)


def _baseline(rows: pd.DataFrame, num_classes: int) -> Scores:
    """Predicts in each fold the most frequent class of what the other folds test; with one fold, of all."""
    total = np.bincount(rows["label"], minlength=num_classes)
    counts = {}
    for fold, part in rows.groupby("fold", sort=False):
        others = total - np.bincount(part["label"], minlength=num_classes)
        counts[str(fold)] = (others if others.any() else total).tolist()
    return majority_baseline(rows, counts, num_classes)
