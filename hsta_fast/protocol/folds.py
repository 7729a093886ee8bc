"""Subject-disjoint folds: leave one subject or dataset out, k folds by subject, cross-dataset.

Dataset and name together identify a subject, because two datasets may both have a subject "s01". So
callers pass one string "dataset/subject" per clip. `train_only` marks clips that are never tested, such as
macro-expressions: they train in every fold that does not test their subject.
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
    """Check that no person has clips in both parts of the fold.

    subjects: (num_clips,) strings "dataset/subject".

    Raises:
        ValueError: there is such a person; the message names all of them.
    """
    subjects = np.asarray(subjects)
    trained = {person_key(subject) for subject in subjects[fold.train].tolist()}
    tested = set(subjects[fold.test].tolist())
    shared = sorted((subject for subject in tested if person_key(subject) in trained), key=natural_key)
    if shared:
        names = ", ".join(shared)
        raise ValueError(f"fold {fold.name} expected no subject in both training and test, got {names}")


def leave_one_subject_out(subjects: ArrayLike, *, train_only: ArrayLike | None = None) -> list[Fold]:
    """One fold per subject, named after it, in natural order; the fold tests all clips of that subject.

    subjects: (num_clips,) strings "dataset/subject", at least two different ones with clips to test.
    train_only: (num_clips,) bool, clips that are never tested; None if there are none.
    """
    subjects = _subjects(subjects)
    tested = ~_train_only(train_only, len(subjects))
    names = sorted(set(subjects[tested].tolist()), key=natural_key)
    if len(names) < 2:
        raise ValueError(f"leave-one-subject-out expected at least 2 subjects, got {len(names)}")
    parts = [(name, np.flatnonzero((subjects == name) & tested)) for name in names]
    return _each_tested_once(_folds(parts, subjects), tested)


def composite(subjects: ArrayLike, datasets: ArrayLike, *, train_only: ArrayLike | None = None) -> list[Fold]:
    """`leave_one_subject_out` over the pooled subjects of two or more datasets.

    subjects, datasets: (num_clips,) strings, "dataset/subject" and "dataset".
    """
    subjects, datasets = _subjects(subjects), np.asarray(datasets)
    names = sorted(set(datasets[~_train_only(train_only, len(subjects))].tolist()))
    if len(names) < 2:
        raise ValueError(f"composite expected at least 2 datasets, got {', '.join(names) or 'none'}")
    return leave_one_subject_out(subjects, train_only=train_only)


def cross_dataset(
    subjects: ArrayLike,
    datasets: ArrayLike,
    train_on: Sequence[str],
    test_on: Sequence[str],
    *,
    train_only: ArrayLike | None = None,
) -> list[Fold]:
    """One fold that trains on all clips of some datasets and tests those of others; the rest is not used.

    subjects, datasets: (num_clips,) strings, "dataset/subject" and "dataset".
    train_only: (num_clips,) bool, clips that are never tested; None if there are none.
    """
    subjects, datasets = _subjects(subjects), np.asarray(datasets)
    known = sorted(set(datasets.tolist()))
    for name, given in (("train-on", train_on), ("test-on", test_on)):
        if not given or set(given) - set(known):
            raise ValueError(f"--{name} expected datasets among {', '.join(known)}, got {list(given)}")
    both = sorted(set(train_on) & set(test_on))
    if both:
        raise ValueError(
            f"cross-dataset expected no dataset in both training and test, got {', '.join(both)}"
        )
    test = np.isin(datasets, list(test_on)) & ~_train_only(train_only, len(subjects))
    name = f"{'+'.join(sorted(train_on))} to {'+'.join(sorted(test_on))}"
    pool = np.isin(datasets, list(train_on))
    return _folds([(name, np.flatnonzero(test))], subjects, pool)


def leave_one_dataset_out(
    subjects: ArrayLike, datasets: ArrayLike, *, train_only: ArrayLike | None = None
) -> list[Fold]:
    """One fold per dataset, named after it; the fold tests its clips and trains on those of all others.

    This is how the benchmark CD6ME (Varanka et al. 2022) divides its six datasets.

    subjects, datasets: (num_clips,) strings, "dataset/subject" and "dataset".
    train_only: (num_clips,) bool, clips that are never tested; None if there are none.
    """
    subjects, datasets = _subjects(subjects), np.asarray(datasets)
    tested = ~_train_only(train_only, len(subjects))
    names = sorted(set(datasets[tested].tolist()))
    if len(names) < 2:
        raise ValueError(
            f"leave-one-dataset-out expected at least 2 datasets, got {', '.join(names) or 'none'}"
        )
    folds = []
    for name in names:
        test = np.flatnonzero((datasets == name) & tested)
        folds += _folds([(name, test)], subjects, datasets != name)
    return _each_tested_once(folds, tested)


def k_folds_by_subject(
    subjects: ArrayLike, labels: ArrayLike, k: int, seed: int, *, train_only: ArrayLike | None = None
) -> list[Fold]:
    """Folds "1".."k" of whole subjects, with the classes spread as evenly as possible; fixed by the seed.

    subjects: (num_clips,) strings "dataset/subject"; labels: (num_clips,) integers.
    train_only: (num_clips,) bool, clips that are never tested; None if there are none.

    A class with fewer than k clips is tested in some folds only, which pooled scores allow.
    """
    subjects, labels = _subjects(subjects), np.asarray(labels)
    if labels.shape != subjects.shape or not np.issubdtype(labels.dtype, np.integer):
        got = f"shape {labels.shape} of {labels.dtype}"
        raise ValueError(f"labels expected {len(subjects)} integers, one per clip, got {got}")
    tested = ~_train_only(train_only, len(subjects))
    rows = np.flatnonzero(tested)
    num_subjects = len(set(subjects[rows].tolist()))
    if not 2 <= k <= num_subjects:
        raise ValueError(f"folds by subject expected k from 2 to the {num_subjects} subjects, got k = {k}")
    largest = int(np.unique(labels[rows], return_counts=True)[1].max())
    if largest < k:
        raise ValueError(
            f"folds by subject expected a class of at least k = {k} clips, got {largest} in the largest"
        )
    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # It warns of classes with fewer than k clips; see the docstring.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splits = list(splitter.split(np.zeros(len(rows)), labels[rows], groups=subjects[rows]))
    parts = [(str(i), np.sort(rows[test])) for i, (_, test) in enumerate(splits, start=1)]
    return _each_tested_once(_folds(parts, subjects), tested)


def inner_folds(
    fold: Fold,
    subjects: ArrayLike,
    labels: ArrayLike,
    k: int,
    seed: int,
    *,
    train_only: ArrayLike | None = None,
) -> list[Fold]:
    """`k_folds_by_subject` of the training part of `fold`, to choose settings without its test clips.

    The positions are those in the whole clip table, as in `fold`.
    """
    subjects, labels = np.asarray(subjects), np.asarray(labels)
    rows = fold.train
    train_only = _train_only(train_only, len(subjects))[rows]
    try:
        folds = k_folds_by_subject(subjects[rows], labels[rows], k, seed, train_only=train_only)
    except ValueError as error:
        raise ValueError(f"fold {fold.name}, inner folds of its training subjects: {error}") from error
    return [Fold(name=inner.name, train=rows[inner.train], test=rows[inner.test]) for inner in folds]


def _subjects(subjects: ArrayLike) -> np.ndarray:
    array = np.asarray(subjects)
    if array.ndim != 1 or not all(isinstance(subject, str) for subject in array.tolist()):
        raise ValueError(f"subjects expected one string per clip, got shape {array.shape} of {array.dtype}")
    spelling: dict[str, str] = {}
    for subject in sorted(set(array.tolist())):
        key = person_key(subject)
        if not key or key.endswith("/"):
            raise ValueError(f"subjects expected a name for the subject of each clip, got {subject!r}")
        if spelling.setdefault(key, subject) != subject:
            both = f"{spelling[key]!r} and {subject!r}"
            raise ValueError(
                f"subjects expected one spelling of each person, got {both}; "
                "write one of them everywhere in the annotation"
            )
    return array


def _train_only(train_only: ArrayLike | None, num_clips: int) -> np.ndarray:
    """(num_clips,) bool."""
    array = np.zeros(num_clips, dtype=bool) if train_only is None else np.asarray(train_only)
    if array.shape != (num_clips,) or array.dtype != bool:
        raise ValueError(f"train_only expected {num_clips} bool, got shape {array.shape} of {array.dtype}")
    return array


def _folds(
    tests: Sequence[tuple[str, np.ndarray]], subjects: np.ndarray, pool: np.ndarray | None = None
) -> list[Fold]:
    """Folds with these test parts; each trains on the clips of all other people (only those in `pool`)."""
    allowed = np.ones(len(subjects), dtype=bool) if pool is None else pool
    folds = []
    for name, test in tests:
        train = np.flatnonzero(allowed & ~np.isin(subjects, np.unique(subjects[test])))
        fold = Fold(name=name, train=train, test=test)
        if not len(fold.train) or not len(fold.test):
            sizes = f"{len(fold.train)} and {len(fold.test)}"
            raise ValueError(f"fold {name} expected clips in training and test, got {sizes}")
        assert_disjoint(fold, subjects)
        folds.append(fold)
    return folds


def _each_tested_once(folds: list[Fold], tested: np.ndarray) -> list[Fold]:
    if not np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.flatnonzero(tested)):
        raise ValueError("folds expected each clip in exactly one test part, got one in none or several")
    return folds
