"""No protocol but published-folds can be made to share a person, whatever the clips are."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsta_fast.clips import subject_ids
from hsta_fast.data import ClipTable
from hsta_fast.protocol import (
    Fold,
    composite,
    cross_dataset,
    inner_folds,
    leave_one_dataset_out,
    leave_one_subject_out,
)
from hsta_fast.training.config import TrainConfig
from hsta_fast.training.splits import is_never_tested, make_folds

DATASETS = ["a", "b"]
# Names that look alike, hold the separator, are blank, or are another spelling of the same person.
ALIKE = ["1", "01", "s1", "S1", "s01", "s 1", "s10", "1/1", "\uff11", "", " "]
ALIKE += ["1.0", "s.1", "s_1", "s-01", "s1\ufe0f", "\u0661"]
PLAIN = [f"p{i}" for i in range(6)]


@st.composite
def clip_rows(draw: st.DrawFn) -> list[tuple[str, str, int, bool]]:
    """(dataset, subject, label, macro) of clips of plain people, and of few or no others."""
    others = draw(st.lists(st.sampled_from(ALIKE) | st.text(max_size=3), max_size=2))
    datasets = DATASETS + draw(st.lists(st.sampled_from(["A", "a/p1", " b"]), max_size=1))
    row = st.tuples(
        st.sampled_from(datasets), st.sampled_from(PLAIN + others), st.integers(0, 2), st.booleans()
    )
    return draw(st.lists(row, min_size=1, max_size=40))


SUBJECT_DISJOINT = ["loso", "kfold", "composite", "cross-dataset", "leave-one-dataset-out"]


def clip_table(rows: list[tuple[str, str, int, bool]]) -> ClipTable:
    frame = pd.DataFrame(rows, columns=["dataset", "subject", "label", "macro"])
    kinds = np.where(frame.pop("macro"), "macro", "micro")
    return ClipTable(Path(), frame.assign(clip="c", onset=range(len(frame)), expression=kinds))


def people(table: ClipTable, positions: np.ndarray) -> set[tuple[object, ...]]:
    """Who is at these positions, by a rule of this test's own: letters of any case, digits as numbers."""
    rows = table.clips.iloc[positions]
    names = [f"{d}/{s}" for d, s in zip(rows["dataset"], rows["subject"], strict=True)]
    parts = [re.findall(r"[0-9]+|[^0-9\s]", unicodedata.normalize("NFKC", name).casefold()) for name in names]
    return {tuple(int(part) if part.isdigit() else part for part in name) for name in parts}


def hold(table: ClipTable, folds: list[Fold]) -> None:
    for fold in folds:
        assert len(fold.train) and len(fold.test)
        assert not people(table, fold.train) & people(table, fold.test)
        assert not is_never_tested(table)[fold.test].any()


@settings(max_examples=200, deadline=None)
@given(clip_rows(), st.sampled_from(SUBJECT_DISJOINT), st.integers(2, 5), st.integers(0, 3), st.data())
def test_no_settings_make_a_protocol_share_a_person(
    rows: list[tuple[str, str, int, bool]], protocol: str, k: int, seed: int, data: st.DataObject
) -> None:
    some = st.lists(st.sampled_from(DATASETS), max_size=3)
    cfg = TrainConfig(
        data=Path(),
        protocol=protocol,  # type: ignore[arg-type]
        folds=k,
        seed=seed,
        inner_folds=data.draw(st.integers(2, 3)),
        train_on=tuple(data.draw(some)),
        test_on=tuple(data.draw(some)),
        macro=True,
    )
    table = clip_table(rows)
    try:
        folds, _ = make_folds(cfg, table)
    except ValueError:
        return  # refused: nothing is shared
    hold(table, folds)
    assert not cfg.leaks()
    if protocol != "cross-dataset":
        tested = np.sort(np.concatenate([fold.test for fold in folds]))
        assert np.array_equal(tested, np.flatnonzero(~is_never_tested(table))), "each micro-expression once"
    for fold in folds:
        labels = table.clips["label"].to_numpy()
        try:
            inner = inner_folds(
                fold,
                subject_ids(table.clips),
                labels,
                cfg.inner_folds,
                seed,
                train_only=is_never_tested(table),
            )
        except ValueError:
            continue
        hold(table, inner)
        for part in inner:
            assert not set(fold.test) & {*part.train, *part.test}, "a test clip is looked at"


def test_the_strategy_reaches_folds_of_every_protocol() -> None:
    """Plain clips are not refused, so the test above tests something."""
    rows = [(d, f"s{i}", i % 2, i == 3) for d in ("a", "b") for i in range(4) for _ in range(3)]
    table = clip_table(rows)
    for protocol in SUBJECT_DISJOINT:
        crosses = protocol == "cross-dataset"
        cfg = TrainConfig(
            data=Path(),
            protocol=protocol,  # type: ignore[arg-type]
            folds=2,
            train_on=("a",) if crosses else (),
            test_on=("b",) if crosses else (),
            macro=True,
        )
        folds, remarks = make_folds(cfg, table)
        hold(table, folds)
        one_each = {"loso": 6, "kfold": 2, "composite": 6, "cross-dataset": 1, "leave-one-dataset-out": 2}
        assert len(folds) == one_each[protocol]
        assert not remarks


def test_macro_expressions_train_but_not_of_the_tested_subject() -> None:
    subjects = ["d/1", "d/1", "d/2", "d/2", "d/3"]
    train_only = np.array([False, True, False, True, True])
    first, second = leave_one_subject_out(subjects, train_only=train_only)
    assert (first.test.tolist(), first.train.tolist()) == ([0], [2, 3, 4])
    assert (second.test.tolist(), second.train.tolist()) == ([2], [0, 1, 4])


def test_composite_pools_the_subjects_of_all_data_sets() -> None:
    subjects, datasets = ["a/1", "a/2", "b/1", "b/1"], ["a", "a", "b", "b"]
    folds = composite(subjects, datasets)
    assert [fold.name for fold in folds] == ["a/1", "a/2", "b/1"]
    assert folds[2].train.tolist() == [0, 1]
    with pytest.raises(ValueError, match="composite expected at least 2 datasets, got a$"):
        composite(subjects[:2], datasets[:2])


def test_cross_dataset_trains_on_some_and_tests_on_others() -> None:
    subjects, datasets = ["a/1", "b/1", "c/1", "c/2", "d/1"], list("abccd")
    train_only = np.array([False, False, False, True, False])
    [fold] = cross_dataset(subjects, datasets, ["b", "a"], ["c"], train_only=train_only)
    assert (fold.name, fold.train.tolist(), fold.test.tolist()) == ("a+b to c", [0, 1], [2])


def test_leave_one_dataset_out_tests_each_dataset_on_a_model_of_the_others() -> None:
    subjects, datasets = ["b/1", "a/1", "c/1", "c/2", "a/1"], list("bacca")
    train_only = np.array([False, False, False, True, False])
    folds = leave_one_dataset_out(subjects, datasets, train_only=train_only)
    assert [fold.name for fold in folds] == ["a", "b", "c"]
    assert [fold.test.tolist() for fold in folds] == [[1, 4], [0], [2]]
    assert [fold.train.tolist() for fold in folds] == [[0, 2, 3], [1, 2, 3, 4], [0, 1, 4]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: cross_dataset(["a/1", "b/1"], ["a", "b"], ["a"], ["a", "b"]),
            "no dataset in both .* got a$",
        ),
        (lambda: cross_dataset(["a/1", "b/1"], ["a", "b"], ["a"], ["c"]), "--test-on expected .* a, b, got"),
        (lambda: cross_dataset(["a/1", "b/1"], ["a", "b"], [], ["a"]), "--train-on expected .* a, b, got"),
        (
            lambda: leave_one_dataset_out(["a/1", "a/2"], ["a", "a"]),
            "leave-one-dataset-out expected at least 2 datasets, got a$",
        ),
        (
            lambda: leave_one_dataset_out(["a/s1", "b/s1", "A/s1"], ["a", "b", "A"]),
            "one spelling of each person, got 'A/s1' and 'a/s1'",
        ),
        (
            lambda: leave_one_subject_out(["a/s1", "a/s01"]),
            "one spelling of each person, got 'a/s01' and 'a/s1'; write one of them",
        ),
        (lambda: leave_one_subject_out(["a/s1", "a/ "]), "a name for the subject of each clip, got 'a/ '"),
        (
            lambda: leave_one_subject_out(["a/1", "a/2"], train_only=np.array([1, 0])),
            "train_only expected 2 bool",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], list[Fold]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
