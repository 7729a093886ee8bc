"""Folds that share no subject: leave-one-subject-out and k folds by subject.

A subject is identified by data set and name together, so callers pass one string a clip, "dataset/subject":
two data sets may both have a subject "s01", and these are two people.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedGroupKFold


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One split: `train` and `test` are (n,) int64 arrays of clip positions, ascending."""

    name: str
    train: np.ndarray
    test: np.ndarray


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that reads digits as numbers: spNO.2 comes before spNO.10. Equal only for equal texts."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], text


def assert_disjoint(fold: Fold, subjects: ArrayLike) -> None:
    """Raise ValueError, naming the subjects, if any subject has clips in both parts of the fold.

    subjects: (num_clips,) strings "dataset/subject".
    """
    subjects = np.asarray(subjects)
    shared = sorted(set(subjects[fold.train].tolist()) & set(subjects[fold.test].tolist()), key=natural_key)
    if shared:
        names = ", ".join(shared)
        raise ValueError(f"fold {fold.name}: wanted no subject in both training and test, got {names}")


def leave_one_subject_out(subjects: ArrayLike) -> list[Fold]:
    """One fold a subject, named after it, in natural order; its test part is all clips of that subject.

    subjects: (num_clips,) strings "dataset/subject", at least two different ones.
    """
    subjects = _subjects(subjects)
    names = sorted(set(subjects.tolist()), key=natural_key)
    if len(names) < 2:
        raise ValueError(f"leave-one-subject-out: wanted at least 2 subjects, got {len(names)}")
    return _checked([(name, np.flatnonzero(subjects == name)) for name in names], subjects)


def k_folds_by_subject(subjects: ArrayLike, labels: ArrayLike, k: int, seed: int) -> list[Fold]:
    """Folds named "1".."k" of whole subjects, classes spread as evenly as these allow, fixed by the seed.

    subjects: (num_clips,) strings "dataset/subject"; labels: (num_clips,) integers. A class with fewer than k
    clips is in the test part of some folds only, which pooled scores can bear.
    """
    subjects, labels = _subjects(subjects), np.asarray(labels)
    if labels.shape != subjects.shape or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: wanted {len(subjects)} integers, one a clip, got shape {labels.shape} of {labels.dtype}"
        )
    num_subjects = len(set(subjects.tolist()))
    if not 2 <= k <= num_subjects:
        raise ValueError(f"folds by subject: wanted k from 2 to the {num_subjects} subjects, got k = {k}")
    largest = int(np.unique(labels, return_counts=True)[1].max())
    if largest < k:
        raise ValueError(
            f"folds by subject: wanted a class of at least k = {k} clips, but the largest has {largest}"
        )
    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # It warns of classes rarer than k clips; the docstring says what follows from that.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splits = list(splitter.split(np.zeros(len(labels)), labels, groups=subjects))
    return _checked([(str(i), np.sort(test)) for i, (_, test) in enumerate(splits, start=1)], subjects)


def _subjects(subjects: ArrayLike) -> np.ndarray:
    array = np.asarray(subjects)
    if array.ndim != 1 or not all(isinstance(subject, str) for subject in array.tolist()):
        raise ValueError(f"subjects: wanted one string a clip, got shape {array.shape} of {array.dtype}")
    return array


def _checked(tests: Sequence[tuple[str, np.ndarray]], subjects: np.ndarray) -> list[Fold]:
    """The folds with these test parts, trained on all other clips, after the checks that scores rest on."""
    everything = np.arange(len(subjects))
    if not np.array_equal(np.sort(np.concatenate([test for _, test in tests])), everything):
        raise ValueError("folds: wanted each clip in exactly one test part")
    folds = []
    for name, test in tests:
        fold = Fold(name=name, train=np.setdiff1d(everything, test), test=test)
        if not len(fold.train) or not len(fold.test):
            sizes = f"{len(fold.train)} and {len(fold.test)}"
            raise ValueError(f"fold {name}: wanted clips in training and test, got {sizes}")
        assert_disjoint(fold, subjects)
        folds.append(fold)
    return folds
