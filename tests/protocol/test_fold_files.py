"""Folds by clip: as random, or as read from files; subjects in both parts are found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsta_fast.protocol import folds_by_clip, read_folds, subject_overlap


@pytest.fixture
def clips() -> pd.DataFrame:
    rows = [("d", f"s{i // 3}", "b", i, "macro" if i % 3 == 2 else "micro") for i in range(12)]
    return pd.DataFrame(rows, columns=["dataset", "subject", "clip", "onset", "expression"])


def test_random_folds_test_each_clip_once_and_follow_the_seed() -> None:
    train_only = np.arange(20) >= 15
    folds = folds_by_clip(20, 5, 3, train_only=train_only)
    assert [len(fold.test) for fold in folds] == [3] * 5
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(15))
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(20))
    again, other = (
        folds_by_clip(20, 5, 3, train_only=train_only),
        folds_by_clip(20, 5, 4, train_only=train_only),
    )
    assert all((a.test == b.test).all() for a, b in zip(folds, again, strict=True))
    assert not all((a.test == b.test).all() for a, b in zip(folds, other, strict=True))
    with pytest.raises(ValueError, match="from 2 to the 15 clips, got k = 16"):
        folds_by_clip(20, 16, 0, train_only=train_only)


def test_shared_people_are_found_under_any_spelling() -> None:
    [fold, _] = folds_by_clip(4, 2, 0)
    names = np.empty(4, dtype=object)
    names[fold.test] = ["D/s1", "d/s2"]
    names[fold.train] = ["d/s01", "d/s3"]
    assert subject_overlap(fold, names).tolist() == [True, False]


def test_a_table_of_folds(tmp_path: Path, clips: pd.DataFrame) -> None:
    path = tmp_path / "folds.csv"
    head = "dataset,subject,clip,onset,fold,part\n"
    path.write_text(
        head + "d,s0,b,0,1,test\nd,s0,b,1,1,out\nd,s1,b,3,2,test\nd,s2,b,6,2,train\nd,s9,b,0,2,train\n"
    )
    folds, missing = read_folds(path, clips, macro=False)
    assert missing == 1
    first, second = folds
    assert first.test.tolist() == [0] and first.train.tolist() == list(range(2, 12)), (
        "trains on what is not named"
    )
    assert second.test.tolist() == [3] and second.train.tolist() == [6], "trains on what is listed"
    path.write_text(path.read_text().replace(",", ";").replace("subject", "Subject"))
    again, missing = read_folds(path, clips, macro=False)
    assert missing == 1
    for own, fold in zip(again, folds, strict=True):
        assert own.test.tolist() == fold.test.tolist() and own.train.tolist() == fold.train.tolist()


def write_lists(folder: Path, clips: pd.DataFrame, **lists: list[int]) -> None:
    for name, rows in lists.items():
        table = clips.iloc[rows].rename(columns={"subject": "Subject", "clip": "Filename", "onset": "Onset"})
        table.to_csv(folder / f"{name}.csv", index=False)


def test_published_lists(tmp_path: Path, clips: pd.DataFrame) -> None:
    every = {
        "test_fold_1": [0, 3],
        "no_macro_exp_train_fold_1": [1, 4],
        "use_macro_exp_train_fold_1": [1, 2, 4],
    }
    write_lists(tmp_path, clips, **every, test_fold_2=[1], train_fold_2=[0, 3])
    for macro, train in ((False, [1, 4]), (True, [1, 2, 4])):
        folds, missing = read_folds(tmp_path, clips, macro=macro)
        assert [(f.name, f.test.tolist()) for f in folds] == [("1", [0, 3]), ("2", [1])] and not missing
        assert folds[0].train.tolist() == train and folds[1].train.tolist() == [0, 3]


HEAD = "dataset,subject,clip,onset,fold,part\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset\n", r"folds.csv: expected a column subject \(or sub, .*\), got dataset"),
        (HEAD, "train, test or out in the column part, got no rows"),
        (HEAD + "d,s0,b,0,1,dev\n", "train, test or out in the column part, got 'dev'"),
        (
            HEAD + "d,s0,b,0,1,train\n",
            "fold 1 expected clips in training and test and none in both, got 1 and 0",
        ),
        (HEAD + "d,s0,b,0,1,train\nd,s0,b,0,1,test\n", "none in both, got 1 and 1, 1 in both"),
        (HEAD + "d,s0,b,0,1,test\nd,s0,b,0,2,test\n", "each clip in the test part of at most one fold"),
    ],
)
def test_bad_fold_files_are_named(tmp_path: Path, clips: pd.DataFrame, text: str, message: str) -> None:
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folds(tmp_path / "folds.csv", clips, macro=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "test_fold_1.csv").unlink(), "expected lists test_fold_1.csv, .*got none"),
        (
            lambda folder: (folder / "train_fold_1.csv").unlink(),
            "expected train_fold_1.csv or .* beside test_fold",
        ),
        (
            lambda folder: (folder / "train_fold_1.csv").write_text("a\n1\n"),
            "train_fold_1.csv: .*missing: Subject",
        ),
    ],
)
def test_bad_lists_are_named(
    tmp_path: Path, clips: pd.DataFrame, spoil: Callable[[Path], object], message: str
) -> None:
    write_lists(tmp_path, clips, test_fold_1=[0], train_fold_1=[1])
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_folds(tmp_path, clips, macro=False)


def test_a_list_that_fits_two_data_sets_is_refused(tmp_path: Path, clips: pd.DataFrame) -> None:
    write_lists(tmp_path, clips, test_fold_1=[0], train_fold_1=[1])
    with pytest.raises(ValueError, match="expected to name one clip, got clips of several datasets"):
        read_folds(tmp_path, pd.concat([clips, clips.assign(dataset="e")]), macro=False)
