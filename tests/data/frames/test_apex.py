"""The apex found by motion, on rendered clips whose apex is known."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.data.clips import KEPT_APEX, MIDDLE_APEX, MOTION_APEX, ClipTable, fault_of
from hsta_fast.data.frames import apex as apex_module
from hsta_fast.data.frames.apex import SIZE, _local_movement, apex_position, lacks_apex, search_apexes
from hsta_fast.data.frames.cache import Cache
from hsta_fast.data.frames.decode import content_keys
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.synth import SynthConfig, render
from hsta_fast.synth.layouts import EXPRESSIONS


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    """Twelve clips of two subjects, all emotions, 112 pixels."""
    out = tmp_path_factory.mktemp("moving")
    words = tuple(EXPRESSIONS)
    return read_casme3(
        render(SynthConfig(out=out, subjects=2, clips_per_subject=6, emotions=words, processes=1))
    )


def middle(table: ClipTable) -> ClipTable:
    clips = table.clips
    return dataclasses.replace(table, clips=clips.assign(apex=(clips["onset"] + clips["offset"]) // 2))


def errors(table: ClipTable, truth: ClipTable) -> np.ndarray:
    """Distance from the true apex as a fraction of the clip's length."""
    length = (truth.clips["offset"] - truth.clips["onset"]).to_numpy()
    return np.abs((table.clips["apex"] - truth.clips["apex"]).to_numpy()) / length


def test_the_apex_is_found_by_motion(
    moving: ClipTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = middle(moving)
    cache = Cache(folder=tmp_path, limit=10**9)
    found = search_apexes(guess, np.ones(12, dtype=bool), cache=cache)
    assert found.faults == moving.faults and (
        found.clips.drop(columns="apex") == moving.clips.drop(columns="apex")
    ).all(axis=None)
    assert np.median(errors(found, moving)) <= 0.05
    assert errors(found, moving).mean() < 0.6 * errors(guess, moving).mean()
    monkeypatch.setattr(apex_module, "apex_position", None)  # not needed any more
    again = search_apexes(guess, np.ones(12, dtype=bool), cache=Cache(folder=tmp_path, limit=10**9))
    assert again.clips["apex"].tolist() == found.clips["apex"].tolist()


def test_an_apex_is_kept_for_these_frames_and_this_opencv(
    moving: ClipTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    one = dataclasses.replace(moving, clips=moving.clips[:1])
    calls: list[int] = []

    def third(pictures: np.ndarray) -> int:
        calls.append(len(pictures))
        return 3

    monkeypatch.setattr(apex_module, "apex_position", third)
    wanted = np.ones(1, dtype=bool)
    for _ in range(2):
        assert search_apexes(one, wanted, cache=cache).clips["apex"].iloc[0] == one.clips["onset"].iloc[0] + 3
    assert len(calls) == 1
    frames = one.clips["frames"].copy()
    frames.iloc[0] = (
        *frames.iloc[0][:-2],
        frames.iloc[0][0],
        frames.iloc[0][-1],
    )  # begins and ends as before
    search_apexes(dataclasses.replace(one, clips=one.clips.assign(frames=frames)), wanted, cache=cache)
    assert len(calls) == 2
    monkeypatch.setattr(cv2, "__version__", "another")
    search_apexes(one, wanted, cache=cache)
    assert len(calls) == 3


def test_no_apex_of_frames_that_change_while_they_are_read(
    moving: ClipTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(moving.root, tmp_path / "copy")
    one = dataclasses.replace(moving, root=root, clips=moving.clips[:1])
    names, keys = one.clips["frames"].iloc[0], content_keys

    def and_then_changed(*args: object, **more: object) -> object:
        found = keys(*args, **more)  # type: ignore[arg-type]
        shutil.copy(root / names[0], root / names[2])
        return found

    monkeypatch.setattr(apex_module, "content_keys", and_then_changed)
    found = search_apexes(one, np.ones(1, dtype=bool), cache=Cache(folder=tmp_path / "cache", limit=10**9))
    assert f"{names[2]}: expected a file that stays as it is" in found.faults[-1].what


def test_the_movement_of_the_head_is_no_movement_of_the_skin() -> None:
    """A head that shifts, turns and comes closer by several pixels, with and without moving skin."""
    line = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    head = np.stack([4 + 2 * x - 3 * y, -3 + 3 * x + 2 * y], axis=-1)
    skin = np.zeros_like(head)
    skin[70:90, 70:90] = (0.0, -1.5)
    assert _local_movement(head) < 1e-4
    # 400 of the 627 pixels of the largest 5 % move by 1.5 pixels.
    assert _local_movement(head + skin) == pytest.approx(1.5 * 400 / 627, rel=0.02)
    skin[40:90, 40:90] = (
        -2.0,
        1.5,
    )  # a fifth of the picture, against the head: these points move least of all
    assert _local_movement(head + skin) == pytest.approx(2.5, rel=0.02)


def test_only_clips_without_an_apex_are_searched(moving: ClipTable) -> None:
    guess = middle(moving)
    table = dataclasses.replace(guess, clips=guess.clips.assign(apex_annotated=np.arange(12) != 3))
    assert lacks_apex(table).tolist() == [i == 3 for i in range(12)]
    assert lacks_apex(moving).tolist() == [False] * 12
    found = search_apexes(table, lacks_apex(table))
    assert found.clips["apex"].drop(index=3).tolist() == guess.clips["apex"].drop(index=3).tolist()
    assert found.clips["apex"].iloc[3] == search_apexes(guess, np.ones(12, dtype=bool)).clips["apex"].iloc[3]


def test_an_unreadable_frame_keeps_the_apex_and_is_listed(moving: ClipTable, tmp_path: Path) -> None:
    frames = moving.clips["frames"].copy()
    frames.iloc[0] = (*frames.iloc[0][:2], "missing.jpg", *frames.iloc[0][3:])
    table = dataclasses.replace(moving, clips=moving.clips.assign(frames=frames))
    for cache in (None, Cache(folder=tmp_path, limit=10**9)):
        found = search_apexes(table, np.arange(12) == 0, cache=cache)
        assert found.clips["apex"].tolist() == moving.clips["apex"].tolist()
        assert "missing.jpg: expected an image or video file" in found.faults[-1].what
        assert found.faults[-1].action == KEPT_APEX
    none = dataclasses.replace(table, clips=table.clips.assign(apex_annotated=False))
    assert search_apexes(none, np.arange(12) == 0).faults[-1].action == MIDDLE_APEX


def test_what_the_faults_say_of_an_apex_is_what_became_of_it(moving: ClipTable) -> None:
    said = [fault_of(clip, "expected an apex", MIDDLE_APEX) for clip in moving.clips.to_dict("records")[:2]]
    table = dataclasses.replace(moving, faults=tuple(said))
    found = search_apexes(table, np.arange(12) == 1)
    assert [fault.action for fault in found.faults] == [MIDDLE_APEX, MOTION_APEX]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_short_clips_have_an_apex(count: int) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)
    assert 0 <= apex_position(pictures) < count
    assert 0 <= apex_position(np.zeros_like(pictures)) < count
