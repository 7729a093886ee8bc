import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsta_fast.data.dataset import Augment, ClipData, epoch_order, steps
from hsta_fast.data.frames.store import FrameStore
from hsta_fast.data.sampling import Sampling
from tests.data.batches import LENGTH, SIZE, data_of, epoch, everything, same


def frames_of(data: ClipData, clip: int, positions: list[int]) -> torch.Tensor:
    """(3, frames, H, W) of a clip, straight from the store."""
    pixels = [data.store.pixels[clip * LENGTH + k] for k in positions]
    return torch.from_numpy(np.stack(pixels, axis=1))


def test_a_test_batch_holds_the_clips_in_order() -> None:
    data = data_of([0, 1, 2, 1, 0], Sampling(num_frames=4))
    batches = epoch(data, [3, 0, 4], batch_size=2, train=False, augment=Augment(), balance="even")
    assert [len(batch.label) for batch in batches] == [2, 1] and steps(3, 2) == 2
    first = batches[0]
    assert first.video.shape == (2, 3, 4, SIZE, SIZE) and first.special.shape == (2, 3, 2, SIZE, SIZE)
    assert first.video.dtype == first.special.dtype == torch.uint8
    assert first.label.dtype == first.index.dtype == torch.int64
    assert first.video.is_contiguous() and first.special.is_contiguous()
    whole = everything(batches)
    assert whole.index.tolist() == [3, 0, 4] and whole.label.tolist() == [1, 0, 0]
    for i, clip in enumerate([3, 0, 4]):
        assert torch.equal(whole.video[i], frames_of(data, clip, [0, 4, 7, 11]))
        assert torch.equal(whole.special[i], frames_of(data, clip, [0, 5]))


def test_labels_and_subjects_are_those_of_the_table() -> None:
    data = data_of([0, 2, 1, 2], Sampling())
    assert len(data) == 4 and data.labels.tolist() == [0, 2, 1, 2] and data.labels.dtype == np.int64
    assert data.subjects.tolist() == ["casme3/s0", "casme3/s1", "casme3/s2", "casme3/s0"]


@pytest.mark.parametrize("balance", ["even", "weighted", "none"])
def test_the_seed_decides_everything(balance: Any) -> None:
    data = data_of([0, 1, 2, 1] * 4, Sampling(num_frames=3, video="random"))
    arguments: dict[str, Any] = {"augment": Augment(flip=True, crop=2), "balance": balance}
    once = epoch(data, **arguments)
    torch.manual_seed(1)
    assert same(once, epoch(data, **arguments))
    assert not same(once, epoch(data, seed=(1, 3), **arguments))


def test_the_control_shows_the_onset_frame_alone() -> None:
    data = data_of([0, 1], Sampling(num_frames=3, video="random", onset_only=True))
    whole = everything(epoch(data, train=False))
    for clip in range(2):
        assert torch.equal(whole.video[clip], frames_of(data, clip, [0, 0, 0]))
        assert torch.equal(whole.special[clip], frames_of(data, clip, [0, 0]))


def test_random_test_frames_do_not_depend_on_the_batch() -> None:
    data = data_of([0] * 6, Sampling(num_frames=3, video="random"))
    whole = everything(epoch(data, train=False, batch_size=6))
    alone = everything(epoch(data, [4], train=False))
    assert torch.equal(whole.video[4], alone.video[0])
    other = everything(epoch(data, train=False, seed=(9,)))
    assert not torch.equal(whole.video, other.video)


def test_augmentation_moves_all_frames_of_a_clip_alike() -> None:
    data = data_of([0] * 8, Sampling(num_frames=3))
    crop = 2
    whole = everything(epoch(data, augment=Augment(flip=True, crop=crop), batch_size=8))
    seen = set()
    for i, clip in enumerate(whole.index.tolist()):
        plain = torch.cat([frames_of(data, clip, [0, 6, 11]), frames_of(data, clip, [0, 5])], dim=1)
        got = torch.cat([whole.video[i], whole.special[i]], dim=1)
        matches = []
        for flip in (False, True):
            mirrored = plain.flip(-1) if flip else plain
            for down in range(-crop, crop + 1):
                for right in range(-crop, crop + 1):
                    rows = (torch.arange(SIZE) - down).clamp(0, SIZE - 1)
                    columns = (torch.arange(SIZE) - right).clamp(0, SIZE - 1)
                    if torch.equal(got, mirrored[:, :, rows][..., columns]):
                        matches.append((flip, down, right))
        assert len(matches) == 1
        seen.add(matches[0])
    assert {flip for flip, _, _ in seen} == {True, False} and len(seen) > 4


def test_flow_takes_the_place_of_the_special_frames() -> None:
    data = data_of([0] * 8, Sampling(num_frames=2, flow="dis"))
    assert data.flow is not None
    plain = everything(epoch(data, train=False))
    assert plain.special.dtype == torch.float32 and plain.special.is_contiguous()
    for clip in range(8):
        for k in range(2):
            assert torch.equal(plain.special[clip, :, k], torch.from_numpy(data.flow[2 * clip + k]))
    whole = everything(epoch(data, augment=Augment(flip=True, crop=0), batch_size=3))
    seen = set()
    for i, clip in enumerate(whole.index.tolist()):
        mirrored = torch.equal(whole.video[i], plain.video[clip].flip(-1))
        expected = plain.special[clip]
        if mirrored:  # what moved to the right moves to the left in the mirror
            expected = expected.flip(-1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None, None]
        assert torch.equal(whole.special[i], expected)
        seen.add(mirrored)
    assert seen == {True, False}
    with pytest.raises(ValueError, match="flow expected arrays for a sampling with flow dis, got none"):
        ClipData(data.table, data.store, data.sampling)


def test_the_same_number_in_two_data_sets_is_two_people() -> None:
    data = data_of([0, 1, 0, 1], Sampling())
    clips = data.table.clips.assign(dataset=["samm", "smic"] * 2, subject="1")
    joined = ClipData(dataclasses.replace(data.table, clips=clips), data.store, data.sampling)
    assert joined.subjects.tolist() == ["samm/1", "smic/1"] * 2
    for seed in range(20):  # no class of the other person side by side: each has one class alone
        batches = epoch(joined, balance="matched", batch_size=1, seed=(seed,))
        order = [int(batch.index) for batch in batches]
        expected = epoch_order(
            np.arange(4), joined.labels, np.array(["a", "b"] * 2), "matched", np.random.default_rng([seed])
        )
        assert order == expected.tolist()


def test_a_shift_beyond_the_picture_repeats_its_edge() -> None:
    data = data_of([0] * 4, Sampling(num_frames=1), size=2)
    whole = everything(epoch(data, augment=Augment(flip=False, crop=50)))
    for i, clip in enumerate(whole.index.tolist()):
        plain = torch.from_numpy(data.store.pixels[clip * LENGTH].copy())
        corners = plain.flatten(1)
        assert any((whole.video[i, :, 0].flatten(1) == corners[:, [k]]).all() for k in range(4))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=60),
    st.integers(0, 2**32),
    st.sampled_from(["even", "matched"]),
)
def test_balance_shows_each_class_equally_often(labels: list[int], seed: int, balance: str) -> None:
    indices = np.arange(len(labels)) + 5
    people = np.array(["a", "b"])[np.arange(len(labels)) % 2]
    order = epoch_order(indices, np.array(labels), people, balance, np.random.default_rng(seed))
    assert len(order) == len(labels)
    shown = np.array(labels)[order - 5]
    classes = sorted(set(labels))
    counts = [int((shown == label).sum()) for label in classes]
    assert max(counts) - min(counts) <= 1
    for label, count in zip(classes, counts, strict=True):
        own = indices[np.array(labels) == label]
        times = [int((order == index).sum()) for index in own]
        assert sum(times) == count and max(times) - min(times) <= 1


def test_weighted_balance_evens_out_and_none_shows_each_clip_once() -> None:
    labels, people = np.array([0] * 900 + [1] * 90 + [2] * 10), np.full(1000, "a")
    order = epoch_order(np.arange(1000), labels, people, "weighted", np.random.default_rng(0))
    counts = np.bincount(labels[order])
    assert counts.sum() == 1000 and abs(counts - 1000 / 3).max() < 60
    plain = epoch_order(np.arange(1000), labels, people, "none", np.random.default_rng(0))
    assert sorted(plain.tolist()) == list(range(1000)) and plain.tolist() != list(range(1000))


def test_matched_balance_puts_a_subject_s_classes_side_by_side() -> None:
    labels, people = np.tile([0, 1, 2], 40), np.repeat(["a", "b", "c", "d"], 30)
    order = epoch_order(np.arange(120), labels, people, "matched", np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(120))
    groups = order.reshape(-1, 3)
    assert all(sorted(labels[group]) == [0, 1, 2] for group in groups)
    assert all(len(set(people[group])) == 1 for group in groups)
    # The groups come in random order: subjects alternate, and an own draw for each seed.
    assert (people[groups[1:, 0]] != people[groups[:-1, 0]]).mean() > 0.5
    other = epoch_order(np.arange(120), labels, people, "matched", np.random.default_rng(1))
    assert other.tolist() != order.tolist()


def test_wrong_arguments_are_named() -> None:
    data = data_of([0, 1], Sampling())
    for indices in ([], [2], [-1]):
        with pytest.raises(ValueError, match=r"indices expected one or more rows in 0..1, got \["):
            data.batches(indices, batch_size=2, seed=(0,), train=True)
    with pytest.raises(ValueError, match="batch_size expected a positive integer, got 0"):
        data.batches([0], batch_size=0, seed=(0,), train=True)
    with pytest.raises(ValueError, match="seed expected non-negative"):
        data.batches([0], batch_size=1, seed=(0, -1), train=True)
    with pytest.raises(ValueError, match=r"balance expected .* got 'fair'"):
        epoch(data, balance="fair")
    with pytest.raises(ValueError, match="crop expected at least 0 pixels, got -1"):
        Augment(crop=-1)


def test_a_table_without_labels_and_a_store_without_frames_raise() -> None:
    data = data_of([0, 1], Sampling(num_frames=2))
    unlabelled = dataclasses.replace(data.table, clips=data.table.clips.drop(columns="label"))
    with pytest.raises(ValueError, match="expected a column 'label' .* got none"):
        ClipData(unlabelled, data.store, data.sampling)
    rows = {path: row for path, row in data.store.rows.items() if path != "1/11.jpg"}
    partial = ClipData(data.table, FrameStore(data.store.pixels, rows, data.store.keys), data.sampling)
    with pytest.raises(ValueError, match=r"casme3 s1/1 onset 101: frame 1/11.jpg is not in the frame store"):
        epoch(partial)


def test_a_batch_is_built_fast_enough_to_be_no_concern() -> None:
    data = data_of([0, 1] * 16, Sampling(num_frames=8), size=112)
    seconds = []
    for number in range(5):
        start = time.perf_counter()
        epoch(data, batch_size=32, seed=(number,), augment=Augment())
        seconds.append(time.perf_counter() - start)
    # 5 ms on one core of 2023; the limit leaves room for a slow and busy machine, not for another algorithm.
    assert min(seconds) < 0.05
