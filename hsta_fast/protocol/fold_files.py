"""Folds by clip, as published code has them: subjects are in training and test at once. For comparison only.

Every output of a run on such folds says "leaky": its scores measure, in part, that the person is known.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..clips import KEY, clip_key, natural_key, person_key
from .folds import Fold
from .predictions import read_text_table

FOLD_COLUMNS = ("dataset", "subject", "clip", "onset", "fold", "part")
_LIST_COLUMNS = ("Subject", "Filename", "Onset")
_TEST_LIST = re.compile(r"test_fold_([0-9]+)\.csv")


def folds_by_clip(num_clips: int, k: int, seed: int, *, extra: ArrayLike | None = None) -> list[Fold]:
    """Folds named "1".."k" of clips at random, each clip tested once, trained on all others. Leaky.

    extra: (num_clips,) bool, clips that only train; they train in every fold, whoever is tested.
    """
    only_train = np.zeros(num_clips, dtype=bool) if extra is None else np.asarray(extra)
    rows = np.flatnonzero(~only_train)
    if not 2 <= k <= len(rows):
        raise ValueError(f"folds by clip: wanted k from 2 to the {len(rows)} clips, got k = {k}")
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), k)
    everything = np.arange(num_clips)
    return [
        Fold(name=str(number), train=np.setdiff1d(everything, test), test=np.sort(test))
        for number, test in enumerate(parts, start=1)
    ]


def read_folds(path: Path, clips: pd.DataFrame, *, macro: bool) -> tuple[list[Fold], int]:
    """Folds from files, leaky or not, and how many of their rows name no clip of the table `clips`.

    path: a csv with the columns `FOLD_COLUMNS` (part: train, test or out; such as the folds.csv of a run), in
    which a fold without a train row trains on every clip that it does not name; or a folder of published
    lists, test_fold_<n>.csv with train_fold_<n>.csv (or no_macro_exp_train_fold_<n>.csv, or, where `macro`,
    use_macro_exp_train_fold_<n>.csv), each with the columns Subject, Filename and Onset.

    Clips that a fold does not name are not in it, but where the rule above says so. ValueError names the file
    and what is wrong with it.
    """
    rows = _read_lists(path, macro) if path.is_dir() else _read_table(path)
    keys = list(KEY)
    exact: dict[tuple[str, ...], list[int]] = {}
    place: dict[str, list[int]] = {}
    for position, clip in enumerate(clips[keys].astype(str).itertuples(index=False, name=None)):
        for known in {clip, ("", *clip[1:])}:  # published lists name no data set
            exact.setdefault(known, []).append(position)
            place.setdefault(clip_key(*known), []).append(position)
    folds, missing = [], 0
    for name, part in sorted(rows.groupby("fold", sort=False), key=lambda item: natural_key(str(item[0]))):
        found: dict[str, list[int]] = {"train": [], "test": [], "out": []}
        for row in part[[*keys, "part"]].itertuples(index=False, name=None):
            clip, kind = row[:-1], row[-1]
            positions = exact.get(clip) or place.get(clip_key(*clip), [])
            if len(positions) > 1:
                where = "several clips" if clip[0] else "clips of several data sets; name the data set"
                raise ValueError(f"{path}: fold {name}: {clip[1:]} is the name of {where}")
            missing += not positions
            found[kind] += positions
        named = np.unique([position for positions in found.values() for position in positions])
        lists_train = bool((part["part"] == "train").any())
        train = found["train"] if lists_train else np.setdiff1d(np.arange(len(clips)), named)
        fold = Fold(
            name=str(name),
            train=np.unique(np.asarray(train, dtype=np.int64)),
            test=np.unique(np.asarray(found["test"], dtype=np.int64)),
        )
        if not len(fold.train) or not len(fold.test) or np.intersect1d(fold.train, fold.test).size:
            sizes = (
                f"{len(fold.train)} and {len(fold.test)}, {np.intersect1d(fold.train, fold.test).size} shared"
            )
            raise ValueError(
                f"{path}: fold {name}: wanted clips in training and test and none in both, got {sizes}"
            )
        folds.append(fold)
    tested = np.concatenate([fold.test for fold in folds])
    if len(np.unique(tested)) != len(tested):
        raise ValueError(f"{path}: wanted each clip in the test part of one fold at most")
    return folds, missing


def shared(fold: Fold, subjects: ArrayLike) -> np.ndarray:
    """For each test clip, whether its person is in training too; subjects: (num_clips,) "dataset/subject"."""
    people = np.array([person_key(subject) for subject in np.asarray(subjects).tolist()])
    return np.isin(people[fold.test], people[fold.train])


def _read_table(path: Path) -> pd.DataFrame:
    rows = read_text_table(path, FOLD_COLUMNS)
    if (rows["fold"].str.strip() == "").any():
        raise ValueError(f"{path}: wanted the name of a fold in each row, got a blank")
    wrong = ~rows["part"].isin(["train", "test", "out"])
    if wrong.any() or rows.empty:
        got = repr(rows["part"][wrong].iloc[0]) if wrong.any() else "no rows"
        raise ValueError(f"{path}: wanted train, test or out in the column part, got {got}")
    return rows


def _read_lists(folder: Path, macro: bool) -> pd.DataFrame:
    tests = {match[1]: file for file in folder.iterdir() if (match := _TEST_LIST.fullmatch(file.name))}
    if not tests:
        raise ValueError(f"{folder}: wanted lists test_fold_1.csv, test_fold_2.csv, ..., found none")
    parts = []
    for number, test in tests.items():
        prefix = "use_macro_exp_" if macro else "no_macro_exp_"
        trains = [folder / f"{start}train_fold_{number}.csv" for start in (prefix, "")]
        train = next((file for file in trains if file.exists()), None)
        if train is None:
            raise ValueError(f"{folder}: wanted {trains[1].name} or {trains[0].name} beside {test.name}")
        for file, name in ((train, "train"), (test, "test")):
            rows = read_text_table(file, _LIST_COLUMNS)
            columns = dict(zip(_LIST_COLUMNS, ("subject", "clip", "onset"), strict=True))
            rows = rows.rename(columns=columns)[list(columns.values())]
            parts.append(rows.assign(dataset="", fold=number, part=name))
    return pd.concat(parts, ignore_index=True)
