"""Folds by clip, drawn at random or read from files, as in published code. For comparison only.

A subject may be in training and test of the same fold, so the scores partly measure recognition of the
person. Every output of a run on such folds says "leaky".
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..clips import KEY, clip_key, natural_key, person_key
from .columns import read_columns
from .folds import Fold
from .predictions import read_text_table

FOLD_COLUMNS = (*KEY, "fold", "part")
_LIST_COLUMNS = ("Subject", "Filename", "Onset")
_TEST_LIST = re.compile(r"test_fold_([0-9]+)\.csv")


def folds_by_clip(num_clips: int, k: int, seed: int, *, train_only: ArrayLike | None = None) -> list[Fold]:
    """Folds "1".."k" of clips drawn at random; each clip is tested once, by a fold that trains on all others.

    train_only: (num_clips,) bool, clips that are never tested; they train in every fold, whoever is tested.
    """
    untested = np.zeros(num_clips, dtype=bool) if train_only is None else np.asarray(train_only)
    rows = np.flatnonzero(~untested)
    if not 2 <= k <= len(rows):
        raise ValueError(f"folds by clip expected k from 2 to the {len(rows)} clips, got k = {k}")
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), k)
    everything = np.arange(num_clips)
    return [
        Fold(name=str(number), train=np.setdiff1d(everything, test), test=np.sort(test))
        for number, test in enumerate(parts, start=1)
    ]


def read_folds(path: Path, clips: pd.DataFrame, *, macro: bool) -> tuple[list[Fold], int]:
    """Read folds, leaky or not, from a table or from a folder of published lists.

    Args:
        path: a table with the columns `FOLD_COLUMNS`, csv or xlsx, such as the folds.csv of a run. part is
            train, test or out. A fold without a train row trains on every clip that it does not name.
            Or a folder with test_fold_<n>.csv and train_fold_<n>.csv for each fold, each with the columns
            Subject, Filename and Onset. no_macro_exp_train_fold_<n>.csv (with `macro`:
            use_macro_exp_train_fold_<n>.csv) takes precedence over train_fold_<n>.csv.
        clips: the clip table, with the columns dataset, subject, clip and onset.
        macro: whether macro-expressions train.

    Returns:
        The folds, as positions in `clips`, and the number of rows in the files that name no clip of `clips`.

    Raises:
        ValueError: a file is missing or wrong; the message names it.
    """
    rows = _read_lists(path, macro) if path.is_dir() else _read_table(path)
    keys = list(KEY)
    exact: dict[tuple[str, ...], list[int]] = {}
    by_key: dict[str, list[int]] = {}
    for position, clip in enumerate(clips[keys].astype(str).itertuples(index=False, name=None)):
        for name in {clip, ("", *clip[1:])}:  # published lists have no dataset
            exact.setdefault(name, []).append(position)
            by_key.setdefault(clip_key(*name), []).append(position)
    folds, missing = [], 0
    groups = sorted(rows.groupby("fold", sort=False), key=lambda item: natural_key(str(item[0])))
    for fold_name, part in groups:
        found: dict[str, list[int]] = {"train": [], "test": [], "out": []}
        for row in part[[*keys, "part"]].itertuples(index=False, name=None):
            clip, kind = row[:-1], row[-1]
            positions = exact.get(clip) or by_key.get(clip_key(*clip), [])
            if len(positions) > 1:
                got = "several" if clip[0] else "clips of several datasets; name the dataset"
                raise ValueError(f"{path}: fold {fold_name}: {clip[1:]} expected to name one clip, got {got}")
            missing += not positions
            found[kind] += positions
        named = np.unique([position for positions in found.values() for position in positions])
        lists_train = bool((part["part"] == "train").any())
        train = found["train"] if lists_train else np.setdiff1d(np.arange(len(clips)), named)
        fold = Fold(
            name=str(fold_name),
            train=np.unique(np.asarray(train, dtype=np.int64)),
            test=np.unique(np.asarray(found["test"], dtype=np.int64)),
        )
        in_both = np.intersect1d(fold.train, fold.test).size
        if not len(fold.train) or not len(fold.test) or in_both:
            expected = "clips in training and test and none in both"
            sizes = f"{len(fold.train)} and {len(fold.test)}, {in_both} in both"
            raise ValueError(f"{path}: fold {fold_name} expected {expected}, got {sizes}")
        folds.append(fold)
    tested = np.concatenate([fold.test for fold in folds])
    if len(np.unique(tested)) != len(tested):
        raise ValueError(f"{path}: expected each clip in the test part of at most one fold, got more")
    return folds, missing


def subject_overlap(fold: Fold, subjects: ArrayLike) -> np.ndarray:
    """Whether the person of each test clip is in training too: (num_test,) bool.

    subjects: (num_clips,) strings "dataset/subject".
    """
    people = np.array([person_key(subject) for subject in np.asarray(subjects).tolist()])
    return np.isin(people[fold.test], people[fold.train])


def _read_table(path: Path) -> pd.DataFrame:
    rows = read_columns(path, FOLD_COLUMNS).rows
    if (rows["fold"].str.strip() == "").any():
        raise ValueError(f"{path}: expected the name of a fold in each row, got a blank")
    wrong = ~rows["part"].isin(["train", "test", "out"])
    if wrong.any() or rows.empty:
        got = repr(rows["part"][wrong].iloc[0]) if wrong.any() else "no rows"
        raise ValueError(f"{path}: expected train, test or out in the column part, got {got}")
    return rows


def _read_lists(folder: Path, macro: bool) -> pd.DataFrame:
    tests = {match[1]: file for file in folder.iterdir() if (match := _TEST_LIST.fullmatch(file.name))}
    if not tests:
        raise ValueError(f"{folder}: expected lists test_fold_1.csv, test_fold_2.csv, ..., got none")
    parts = []
    for number, test in tests.items():
        prefix = "use_macro_exp_" if macro else "no_macro_exp_"
        trains = [folder / f"{start}train_fold_{number}.csv" for start in (prefix, "")]
        train = next((file for file in trains if file.exists()), None)
        if train is None:
            raise ValueError(
                f"{folder}: expected {trains[1].name} or {trains[0].name} beside {test.name}, got neither"
            )
        for file, name in ((train, "train"), (test, "test")):
            rows = read_text_table(file, _LIST_COLUMNS)
            columns = dict(zip(_LIST_COLUMNS, ("subject", "clip", "onset"), strict=True))
            rows = rows.rename(columns=columns)[list(columns.values())]
            parts.append(rows.assign(dataset="", fold=number, part=name))
    return pd.concat(parts, ignore_index=True)
