"""The folds of a run."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..clips import KEY, natural_key, subject_ids
from ..data import ClipTable, classes_of, unit_targets
from ..data.labels.units import NONE
from ..protocol import (
    FOLD_COLUMNS,
    Fold,
    composite,
    cross_dataset,
    folds_by_clip,
    inner_folds,
    k_folds_by_subject,
    leave_one_dataset_out,
    leave_one_subject_out,
    read_folds,
    subject_overlap,
)
from .config import TrainConfig


def make_folds(cfg: TrainConfig, clips: ClipTable) -> tuple[list[Fold], list[str]]:
    """The folds of `cfg.protocol` on labelled clips, and what a reader of the scores must know about them.

    Raises:
        ValueError: the protocol does not work on these clips.
    """
    table = clips.clips
    people = subject_ids(table)
    train_only, labels = is_never_tested(clips), classes_to_spread(table["label"])
    if cfg.macro and not (table["expression"] == "macro").any():
        raise ValueError("--macro expected macro-expressions in the dataset, got none")
    if cfg.protocol == "loso":
        return leave_one_subject_out(people, train_only=train_only), []
    if cfg.protocol == "composite":
        return composite(people, table["dataset"], train_only=train_only), []
    if cfg.protocol == "leave-one-dataset-out":
        return leave_one_dataset_out(people, table["dataset"], train_only=train_only), []
    if cfg.protocol == "cross-dataset":
        return cross_dataset(people, table["dataset"], cfg.train_on, cfg.test_on, train_only=train_only), []
    if cfg.protocol == "kfold":
        _check_number("--folds", cfg.folds, people[~train_only].nunique(), "subjects")
        return k_folds_by_subject(people, labels, cfg.folds, cfg.seed, train_only=train_only), []
    missing = 0
    if cfg.fold_files is None:
        _check_number("--folds", cfg.folds, int((~train_only).sum()), "clips")
        folds = folds_by_clip(len(clips), cfg.folds, cfg.seed, train_only=train_only)
    else:
        folds, missing = read_folds(cfg.fold_files, table, macro=cfg.macro)
    known = sum(subject_overlap(fold, people).sum() for fold in folds)
    tested = sum(len(fold.test) for fold in folds)
    remarks = [f"Of {tested} test clips {known} ({known / tested:.0%}) are of people who are in training."]
    if missing:
        remarks.append(f"{missing} rows of {cfg.fold_files} name no clip of the data used.")
    return folds, remarks


def inner_of(cfg: TrainConfig, clips: ClipTable, fold: Fold) -> list[Fold]:
    """The inner folds of the training part of `fold`, split by subject."""
    people, train_only = subject_ids(clips.clips), is_never_tested(clips)
    labels = classes_to_spread(clips.clips["label"])
    num_subjects = people.iloc[fold.train][~train_only[fold.train]].nunique()
    _check_number("--inner-folds", cfg.inner_folds, num_subjects, f"training subjects of fold {fold.name}")
    return inner_folds(fold, people, labels, cfg.inner_folds, cfg.seed, train_only=train_only)


def classes_to_spread(labels: pd.Series) -> np.ndarray:
    """The class of each clip that folds spread evenly, int64 (clips,): of action units the rarest one."""
    if labels.dtype.kind in "iu":
        return labels.to_numpy()
    units = sorted({unit for text in labels for unit in text.split("+")} - {NONE}, key=natural_key)
    return classes_of(unit_targets(labels, units))


def _check_number(flag: str, folds: int, largest: int, what: str) -> None:
    """Raise ValueError, naming the flag, unless there are 2 to `largest` folds."""
    if largest < 2:
        raise ValueError(f"{flag} expected data of at least 2 {what}, got {largest}")
    if not 2 <= folds <= largest:
        raise ValueError(f"{flag} expected 2 to {largest}, the number of {what}, got {folds}")


def fold_parts(clips: ClipTable, folds: Sequence[Fold]) -> pd.DataFrame:
    """One row (FOLD_COLUMNS) for each clip that a fold tests or leaves out; it trains on all others."""
    names, parts = clips.clips[list(KEY)], []
    for fold in folds:
        part = np.full(len(names), "out", dtype=object)
        part[fold.train], part[fold.test] = "train", "test"
        parts.append(names.assign(fold=fold.name, part=part)[part != "train"])
    return pd.concat(parts, ignore_index=True)[list(FOLD_COLUMNS)]


def is_never_tested(clips: ClipTable) -> np.ndarray:
    """(num_clips,) bool: macro-expressions, and stretches without an expression."""
    return (clips.clips["expression"] != "micro").to_numpy()
