"""Folds share no subject and test each clip exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsta_fast.protocol.folds import Fold, assert_disjoint, k_folds_by_subject, leave_one_subject_out


def _check(folds: list[Fold], subjects: np.ndarray) -> None:
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested.tolist()) == list(range(len(subjects)))
    for fold in folds:
        assert len(fold.test) and len(fold.train)
        assert not set(subjects[fold.train]) & set(subjects[fold.test])
        assert sorted([*fold.train, *fold.test]) == list(range(len(subjects)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["a/1", "a/2", "b/1", "b/2", "c"]), min_size=2, max_size=40), st.data())
def test_every_protocol_is_disjoint_and_tests_each_clip_once(names: list[str], data: st.DataObject) -> None:
    subjects = np.array([*names, "d/1", "d/2"])
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(subjects), max_size=len(subjects)))
    labels[:4] = [0, 0, 0, 0]
    _check(leave_one_subject_out(subjects), subjects)
    k = data.draw(st.integers(2, min(4, len(set(subjects)))))
    folds = k_folds_by_subject(subjects, np.array(labels), k, seed=data.draw(st.integers(0, 9)))
    assert [fold.name for fold in folds] == [str(i + 1) for i in range(k)]
    _check(folds, subjects)


def test_loso_folds_are_named_after_subjects_in_natural_order() -> None:
    subjects = ["s/spNO.10", "s/spNO.2", "s/spNO.10", "s/spNO.1"]
    folds = leave_one_subject_out(subjects)
    assert [fold.name for fold in folds] == ["s/spNO.1", "s/spNO.2", "s/spNO.10"]
    assert folds[2].test.tolist() == [0, 2] and folds[2].train.tolist() == [1, 3]


def test_k_folds_follow_the_seed() -> None:
    subjects = np.repeat([f"s/{i}" for i in range(16)], 6)
    labels = np.tile([0, 1, 2], 32)

    def parts(seed: int) -> list[list[int]]:
        return [fold.test.tolist() for fold in k_folds_by_subject(subjects, labels, 4, seed)]

    assert parts(1) == parts(1)
    assert parts(1) != parts(2)


def test_k_folds_spread_the_classes() -> None:
    """Eight subjects show class 0 only and eight class 1 only: each of four folds gets two of either."""
    subjects = np.repeat([f"s/{i}" for i in range(16)], 5)
    labels = np.repeat([0, 1], 40)
    for fold in k_folds_by_subject(subjects, labels, 4, seed=0):
        assert np.bincount(labels[fold.test]).tolist() == [10, 10]


def test_same_name_in_two_data_sets_is_two_people() -> None:
    assert len(leave_one_subject_out(["casme3/s01", "samm/s01", "samm/s01"])) == 2


def test_shared_subject_raises_and_is_named() -> None:
    fold = Fold(name="3", train=np.array([0, 1]), test=np.array([2, 3]))
    with pytest.raises(ValueError, match=r"fold 3 expected .* got a/2$"):
        assert_disjoint(fold, ["a/1", "a/2", "a/2", "a/3"])


def test_impossible_requests_say_the_numbers() -> None:
    subjects, labels = ["a", "a", "b", "b", "c"], [0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="from 2 to the 3 subjects, got k = 4"):
        k_folds_by_subject(subjects, labels, 4, seed=0)
    with pytest.raises(ValueError, match="got k = 1"):
        k_folds_by_subject(subjects, labels, 1, seed=0)
    with pytest.raises(ValueError, match="at least k = 3 clips, got 2 in the largest"):
        k_folds_by_subject(subjects, [0, 0, 1, 1, 2], 3, seed=0)
    with pytest.raises(ValueError, match="labels expected 5 integers"):
        k_folds_by_subject(subjects, labels[:4], 2, seed=0)
    with pytest.raises(ValueError, match="at least 2 subjects, got 1"):
        leave_one_subject_out(["a", "a"])
    with pytest.raises(ValueError, match="one string per clip"):
        leave_one_subject_out([1, 2, 3])
