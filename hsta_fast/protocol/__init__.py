"""Evaluation: folds by subject, pooled scores, the report of a run, audits of any predictions. No torch."""

from .audit import audit
from .columns import ArgumentError, Table
from .compare import compare_runs, holm, mcnemar
from .compare_tables import comparison_latex, comparison_text
from .fold_files import FOLD_COLUMNS, folds_by_clip, read_folds, subject_overlap
from .folds import (
    Fold,
    assert_disjoint,
    composite,
    cross_dataset,
    inner_folds,
    k_folds_by_subject,
    leave_one_dataset_out,
    leave_one_subject_out,
)
from .gallery import GALLERY, Picture, worst_errors, write_gallery
from .interval_pairs import match_intervals
from .latex import latex_table
from .metrics import Scores, best_epoch, bootstrap_interval, majority_baseline, per_dataset, per_fold, score
from .predictions import read_predictions, units_among
from .report import import_matplotlib, summary_of, table, write_report
from .seeds import SEED_FILES, write_seeds
from .spotting import SpottingScores, VideoCounts, score_spotting
from .spotting_audit import audit_spotting, read_intervals
from .unit_scores import THRESHOLD, UnitScores, always_present, score_table, score_units, unit_intervals

__all__ = [
    "FOLD_COLUMNS",
    "GALLERY",
    "SEED_FILES",
    "THRESHOLD",
    "ArgumentError",
    "Fold",
    "Picture",
    "Scores",
    "SpottingScores",
    "Table",
    "UnitScores",
    "VideoCounts",
    "always_present",
    "assert_disjoint",
    "audit",
    "audit_spotting",
    "best_epoch",
    "bootstrap_interval",
    "compare_runs",
    "comparison_latex",
    "comparison_text",
    "composite",
    "cross_dataset",
    "folds_by_clip",
    "holm",
    "import_matplotlib",
    "inner_folds",
    "k_folds_by_subject",
    "latex_table",
    "leave_one_dataset_out",
    "leave_one_subject_out",
    "majority_baseline",
    "match_intervals",
    "mcnemar",
    "per_dataset",
    "per_fold",
    "read_folds",
    "read_intervals",
    "read_predictions",
    "score",
    "score_spotting",
    "score_table",
    "score_units",
    "subject_overlap",
    "summary_of",
    "table",
    "unit_intervals",
    "units_among",
    "worst_errors",
    "write_gallery",
    "write_report",
    "write_seeds",
]
