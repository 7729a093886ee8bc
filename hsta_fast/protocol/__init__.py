"""Evaluation that can be believed: folds by subject, pooled scores and the report of a run, without torch."""

from .folds import Fold, assert_disjoint, k_folds_by_subject, leave_one_subject_out
from .metrics import Scores, majority_baseline, per_fold, read_predictions, score
from .report import table, write_report

__all__ = [
    "Fold",
    "Scores",
    "assert_disjoint",
    "k_folds_by_subject",
    "leave_one_subject_out",
    "majority_baseline",
    "per_fold",
    "read_predictions",
    "score",
    "table",
    "write_report",
]
