"""Folds that share no person: leave one subject out, k folds by subject, composite, data set to data set.

A subject is identified by data set and name together, so callers pass one string a clip, "dataset/subject":
two data sets may both have a subject "s01", and these are two people. `extra` marks clips that are never
tested, such as macro-expressions: they train, but in no fold that tests their subject.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedGroupKFold

from ..clips import natural_key, person_key


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One split: `train` and `test` are (n,) int64 arrays of clip positions, ascending."""

    name: str
    train: np.ndarray
    test: np.ndarray


def assert_disjoint(fold: Fold, subjects: ArrayLike) -> None:
    """Raise ValueError, naming the subjects, if any person has clips in both parts of the fold.

    subjects: (num_clips,) strings "dataset/subject".
    """
    subjects = np.asarray(subjects)
    trained = {person_key(subject) for subject in subjects[fold.train].tolist()}
    tested = set(subjects[fold.test].tolist())
    shared = sorted((subject for subject in tested if person_key(subject) in trained), key=natural_key)
    if shared:
        names = ", ".join(shared)
        raise ValueError(f"fold {fold.name}: wanted no subject in both training and test, got {names}")


def leave_one_subject_out(subjects: ArrayLike, *, extra: ArrayLike | None = None) -> list[Fold]:
    """One fold a subject, named after it, in natural order; its test part is all clips of that subject.

    subjects: (num_clips,) strings "dataset/subject", at least two different ones with clips to test.
    extra: (num_clips,) bool, clips that only train; None: there are none.
    """
    subjects = _subjects(subjects)
    tested = ~_extra(extra, len(subjects))
    names = sorted(set(subjects[tested].tolist()), key=natural_key)
    if len(names) < 2:
        raise ValueError(f"leave-one-subject-out: wanted at least 2 subjects, got {len(names)}")
    parts = [(name, np.flatnonzero((subjects == name) & tested)) for name in names]
    return _each_tested_once(_folds(parts, subjects), tested)


def composite(subjects: ArrayLike, datasets: ArrayLike, *, extra: ArrayLike | None = None) -> list[Fold]:
    """`leave_one_subject_out` over the subjects of two or more data sets pooled.

    subjects, datasets: (num_clips,) strings, "dataset/subject" and "dataset".
    """
    subjects, datasets = _subjects(subjects), np.asarray(datasets)
    names = sorted(set(datasets[~_extra(extra, len(subjects))].tolist()))
    if len(names) < 2:
        raise ValueError(f"composite: wanted clips of at least 2 data sets, got {', '.join(names) or 'none'}")
    return leave_one_subject_out(subjects, extra=extra)


def cross_dataset(
    subjects: ArrayLike,
    datasets: ArrayLike,
    train_on: Sequence[str],
    test_on: Sequence[str],
    *,
    extra: ArrayLike | None = None,
) -> list[Fold]:
    """One fold: train on all clips of some data sets, test on those of others; further ones are left aside.

    subjects, datasets: (num_clips,) strings, "dataset/subject" and "dataset"; extra: clips that only train.
    """
    subjects, datasets = _subjects(subjects), np.asarray(datasets)
    known = sorted(set(datasets.tolist()))
    for name, given in (("train-on", train_on), ("test-on", test_on)):
        if not given or set(given) - set(known):
            raise ValueError(f"--{name} wants data sets among {', '.join(known)}, got {list(given)}")
    both = sorted(set(train_on) & set(test_on))
    if both:
        raise ValueError(
            f"cross-dataset: wanted no data set in both training and test, got {', '.join(both)}"
        )
    test = np.isin(datasets, list(test_on)) & ~_extra(extra, len(subjects))
    name = f"{'+'.join(sorted(train_on))} to {'+'.join(sorted(test_on))}"
    pool = np.isin(datasets, list(train_on))
    return _folds([(name, np.flatnonzero(test))], subjects, pool)


def k_folds_by_subject(
    subjects: ArrayLike, labels: ArrayLike, k: int, seed: int, *, extra: ArrayLike | None = None
) -> list[Fold]:
    """Folds named "1".."k" of whole subjects, classes spread as evenly as these allow, fixed by the seed.

    subjects: (num_clips,) strings "dataset/subject"; labels: (num_clips,) integers; extra: clips that only
    train. A class with fewer than k clips is in the test part of some folds only, as pooled scores can bear.
    """
    subjects, labels = _subjects(subjects), np.asarray(labels)
    if labels.shape != subjects.shape or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: wanted {len(subjects)} integers, one a clip, got shape {labels.shape} of {labels.dtype}"
        )
    tested = ~_extra(extra, len(subjects))
    rows = np.flatnonzero(tested)
    num_subjects = len(set(subjects[rows].tolist()))
    if not 2 <= k <= num_subjects:
        raise ValueError(f"folds by subject: wanted k from 2 to the {num_subjects} subjects, got k = {k}")
    largest = int(np.unique(labels[rows], return_counts=True)[1].max())
    if largest < k:
        raise ValueError(
            f"folds by subject: wanted a class of at least k = {k} clips, but the largest has {largest}"
        )
    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # It warns of classes rarer than k clips; the docstring says what follows from that.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splits = list(splitter.split(np.zeros(len(rows)), labels[rows], groups=subjects[rows]))
    parts = [(str(i), np.sort(rows[test])) for i, (_, test) in enumerate(splits, start=1)]
    return _each_tested_once(_folds(parts, subjects), tested)


def inner_folds(
    fold: Fold, subjects: ArrayLike, labels: ArrayLike, k: int, seed: int, *, extra: ArrayLike | None = None
) -> list[Fold]:
    """`k_folds_by_subject` within the training part of `fold`, for choices that must not see its test clips.

    The positions are those of the whole table, as in `fold`.
    """
    subjects, labels = np.asarray(subjects), np.asarray(labels)
    rows = fold.train
    extra = _extra(extra, len(subjects))[rows]
    try:
        folds = k_folds_by_subject(subjects[rows], labels[rows], k, seed, extra=extra)
    except ValueError as error:
        raise ValueError(f"fold {fold.name}, inner folds of its training subjects: {error}") from error
    return [Fold(name=inner.name, train=rows[inner.train], test=rows[inner.test]) for inner in folds]


def _subjects(subjects: ArrayLike) -> np.ndarray:
    array = np.asarray(subjects)
    if array.ndim != 1 or not all(isinstance(subject, str) for subject in array.tolist()):
        raise ValueError(f"subjects: wanted one string a clip, got shape {array.shape} of {array.dtype}")
    spelling: dict[str, str] = {}
    for subject in sorted(set(array.tolist())):
        key = person_key(subject)
        if not key or key.endswith("/"):
            raise ValueError(f"subjects: wanted a name for the subject of each clip, got {subject!r}")
        if spelling.setdefault(key, subject) != subject:
            both = f"{spelling[key]!r} and {subject!r}"
            raise ValueError(f"subjects: wanted one spelling of each person, got {both}")
    return array


def _extra(extra: ArrayLike | None, num_clips: int) -> np.ndarray:
    """(num_clips,) bool."""
    array = np.zeros(num_clips, dtype=bool) if extra is None else np.asarray(extra)
    if array.shape != (num_clips,) or array.dtype != bool:
        raise ValueError(f"extra: wanted {num_clips} bool, got shape {array.shape} of {array.dtype}")
    return array


def _folds(
    tests: Sequence[tuple[str, np.ndarray]], subjects: np.ndarray, pool: np.ndarray | None = None
) -> list[Fold]:
    """The folds with these test parts, trained on every other person's clips (in `pool`), checked."""
    allowed = np.ones(len(subjects), dtype=bool) if pool is None else pool
    folds = []
    for name, test in tests:
        train = np.flatnonzero(allowed & ~np.isin(subjects, np.unique(subjects[test])))
        fold = Fold(name=name, train=train, test=test)
        if not len(fold.train) or not len(fold.test):
            sizes = f"{len(fold.train)} and {len(fold.test)}"
            raise ValueError(f"fold {name}: wanted clips in training and test, got {sizes}")
        assert_disjoint(fold, subjects)
        folds.append(fold)
    return folds


def _each_tested_once(folds: list[Fold], tested: np.ndarray) -> list[Fold]:
    if not np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.flatnonzero(tested)):
        raise ValueError("folds: wanted each clip in exactly one test part")
    return folds
