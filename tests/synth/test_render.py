"""Rendered data: the layout is that of CAS(ME)3, and only the movement depends on the label."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from hsta_fast.synth.face import Variation, grid, movement_field, random_face
from hsta_fast.synth.layouts import EXPRESSIONS
from hsta_fast.synth.plan import LONGEST, SHORTEST, plan_subject, shuffled_labels
from hsta_fast.synth.render import FINE, Camera, render, subject_frames
from hsta_fast.synth.settings import SynthConfig

from ..data.fake_datasets import CASME3_HEADER


def small(out: Path, **changes: Any) -> SynthConfig:
    """Two subjects, two recordings each, small pictures."""
    return dataclasses.replace(
        SynthConfig(out=out, subjects=2, clips_per_subject=7, size=48, processes=2), **changes
    )


def contents(root: Path) -> dict[str, bytes]:
    """Every file below root, by its relative path."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset, rendered with two processes."""
    return render(small(tmp_path_factory.mktemp("synth") / "two"))


def test_layout_and_annotation(rendered: Path) -> None:
    table = pd.read_csv(rendered / "annotation.csv")
    assert tuple(table.columns) == CASME3_HEADER
    assert Counter(table.Subject) == {"spNO.1": 7, "spNO.2": 7}
    assert Counter(table.Filename) == {"a": 12, "b": 2}
    for row in table.to_dict("records"):
        assert (row["AU"], row["Objective class"]) == EXPRESSIONS[row["emotion"]]
        assert row["Onset"] < row["Apex"] < row["Offset"]
        frames = range(row["Onset"], row["Offset"] + 1)
        assert SHORTEST <= len(frames) <= LONGEST
        for frame in frames:
            picture = cv2.imread(str(rendered / row["Subject"] / row["Filename"] / "color" / f"{frame}.jpg"))
            assert picture is not None
            assert picture.shape == (48, 48, 3)
    for key, clips in table.groupby(["Subject", "Filename"]):
        numbers = sorted(int(p.stem) for p in rendered.joinpath(*map(str, key), "color").iterdir())
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        inside = {f for on, off in zip(clips.Onset, clips.Offset, strict=True) for f in range(on, off + 1)}
        assert len(inside) == (clips.Offset - clips.Onset + 1).sum()  # clips do not overlap
        neutral = set(numbers) - inside
        assert {numbers[0], numbers[-1]} <= neutral
        assert all(on - 1 in neutral for on in clips.Onset)
    for _, clips in table.groupby("Subject"):
        counts = Counter(clips.emotion)
        assert set(counts) == {"happy", "surprise", "disgust"}
        assert max(counts.values()) - min(counts.values()) <= 1
    said = json.loads((rendered / "synthetic.json").read_text())
    assert said["seed"] == 0
    assert "nothing" in said["note"]
    top = {p.name for p in rendered.iterdir()}
    assert top == {"spNO.1", "spNO.2", "annotation.csv", "synthetic.json"}


def test_same_bytes_with_another_number_of_processes(rendered: Path, tmp_path: Path) -> None:
    again = render(small(tmp_path / "one", processes=1))
    assert contents(again) == contents(rendered)


def test_subject_does_not_depend_on_how_many_there_are(rendered: Path, tmp_path: Path) -> None:
    cfg = small(tmp_path, subjects=9)
    recording, frame, picture, _, _ = next(subject_frames(cfg, 2))
    on_disk = np.asarray(cv2.imread(str(rendered / "spNO.2" / recording / "color" / f"{frame}.jpg")))
    assert picture.dtype == np.uint8
    assert np.abs(on_disk[..., ::-1].astype(int) - picture).mean() < 3  # JPEG


@pytest.mark.parametrize("units", sorted({units for units, _ in EXPRESSIONS.values()}))
def test_peak_displacement_is_one(units: str) -> None:
    x, y = grid(224)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        how = Variation(
            right=1.0, left=rng.uniform(0.65, 1), dx=0.005, dy=-0.004, reach=rng.uniform(0.88, 1.15)
        )
        length = np.linalg.norm(movement_field(random_face(rng), units, how, x, y), axis=-1)
        assert length.max() == pytest.approx(1, abs=1e-6)
        assert (length > 0.5).mean() < 0.1  # local
        border = np.concatenate((length[0], length[-1], length[:, 0], length[:, -1]))
        assert border.max() < 0.01


@pytest.mark.parametrize(("size", "pixels"), [(112, 1.3), (224, 2.6), (96, 1.3 * 96 / 112)])
def test_displacement_on_the_picture_is_the_strength(size: int, pixels: float) -> None:
    # A texture whose colours are its own coordinates shows where each point of the picture has come from.
    x, y = grid(FINE * size)
    camera = Camera(size, np.stack((x, y, x), axis=-1) * size)
    how = Variation(right=1.0, left=0.8, dx=0.0, dy=0.0, reach=1.0)
    field = movement_field(random_face(np.random.default_rng(5)), "4+9", how, x, y)
    for pose in (np.zeros(4), np.array((0.013, -0.008, 0.0, 0.0))):
        rest, moved = camera.view(pose, field, 0.0), camera.view(pose, field, 1.3)
        length = np.linalg.norm((moved - rest)[..., :2], axis=-1)
        assert length.max() == pytest.approx(pixels, rel=0.02)
        drift = rest[size // 2, size // 2, :2] - (0.5, 0.5)  # the pixel right of and below the middle
        assert drift == pytest.approx(-pose[:2] * size, abs=0.02)


def test_strength_and_timing_lie_where_they_should(tmp_path: Path) -> None:
    cfg = SynthConfig(out=tmp_path, clips_per_subject=300, strength=(0.4, 0.7))
    clips = [clip for plan in plan_subject(cfg, np.random.default_rng(0)) for clip in plan.clips]
    lengths = [clip.offset - clip.onset + 1 for clip in clips]
    assert SHORTEST <= min(lengths) < 12
    assert 50 < max(lengths) <= LONGEST
    assert 25 <= np.mean(lengths) <= 30
    assert min(clip.strength for clip in clips) == pytest.approx(0.4, abs=0.02)
    assert max(clip.strength for clip in clips) == pytest.approx(0.7, abs=0.02)
    for clip in clips:
        assert clip.onset < clip.apex < clip.offset
        course = [clip.amplitude(frame) for frame in range(clip.onset - 2, clip.offset + 3)]
        assert course[:3] == [0, 0, 0]
        assert course[-3:] == [0, 0, 0]
        assert course[clip.apex - clip.onset + 2] == max(course) == 1
        assert np.all(np.diff(course[2 : clip.apex - clip.onset + 3]) > 0)
        assert np.all(np.diff(course[clip.apex - clip.onset + 2 : -2]) < 0)


def test_label_changes_the_movement_and_nothing_else(tmp_path: Path) -> None:
    cfg = small(tmp_path, size=112)
    words = shuffled_labels(cfg, np.random.default_rng(1))
    others = [{"happy": "disgust", "disgust": "surprise", "surprise": "happy"}[word] for word in words]
    moved = 0
    for (name, frame, a, clip, _), (name_b, frame_b, b, clip_b, _) in zip(
        subject_frames(cfg, 1, words), subject_frames(cfg, 1, others), strict=True
    ):
        assert (name, frame, clip) == (name_b, frame_b, clip_b)
        if clip.amplitude(frame) == 0:  # onset, offset and the neutral frames around
            assert np.array_equal(a, b)
        if frame == clip.apex:
            assert np.abs(a.astype(int) - b).max() > 10
            moved += 1
    assert moved == 7


def test_labels_are_even_and_in_no_order(tmp_path: Path) -> None:
    cfg = SynthConfig(out=tmp_path)
    orders = [tuple(shuffled_labels(cfg, np.random.default_rng(seed))) for seed in range(200)]
    assert all(Counter(order) == {"happy": 8, "surprise": 8, "disgust": 8} for order in orders)
    # At each place each label turns up about 67 of 200 times; 5 standard deviations are 33.
    assert all(
        34 < Counter(place)[word] < 100 for place in zip(*orders, strict=True) for word in cfg.emotions
    )


def test_same_settings_keep_and_others_refuse(rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(rendered)
    assert render(small(rendered, processes=1)) == rendered
    assert "already rendered" in capsys.readouterr().out
    with pytest.raises(ValueError, match="rendered with other settings"):
        render(small(rendered, seed=1))
    assert contents(rendered) == before


def test_broken_off_rendering_is_done_again(rendered: Path, tmp_path: Path) -> None:
    cfg = small(tmp_path / "half", processes=1)
    frame = next((rendered / "spNO.1").rglob("*.jpg")).relative_to(rendered)
    (cfg.out / frame).parent.mkdir(parents=True)
    (cfg.out / frame).write_bytes(b"half a pict")
    (cfg.out / "synthetic.json").write_bytes((rendered / "synthetic.json").read_bytes())
    assert contents(render(cfg)) == contents(rendered)


def test_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "spNO.1" / "a" / "color" / "1.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"licensed")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        render(small(tmp_path))
    assert contents(tmp_path) == {"spNO.1/a/color/1.jpg": b"licensed"}
    with pytest.raises(ValueError, match="expected a folder"):
        render(small(mine))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": (0.0, 1.0)}, "--strength expected"),
        ({"strength": (1.5, 1.0)}, "--strength expected"),
        ({"strength": (1.0, float("nan"))}, "--strength expected"),
        ({"strength": (1.0, 9.0)}, "--strength expected"),
        ({"subjects": 1}, "--subjects expected"),
        ({"clips_per_subject": 0}, "--clips-per-subject expected"),
        ({"size": 16}, "--size expected"),
        ({"emotions": ("happy", "contempt")}, "--emotions of casme3 expected words out of .* got contempt"),
        ({"emotions": ("happy",)}, "--emotions expected at least 2"),
        ({"emotions": ("happy", "happy")}, "--emotions expected different"),
        ({"seed": -1}, "--seed expected"),
        ({"quality": 0}, "--quality expected"),
        ({"processes": -1}, "--processes expected"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(small(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_as_many_labels_as_clips(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels expected 7"):
        next(subject_frames(small(tmp_path), 1, ["happy"]))


def test_unknown_action_unit() -> None:
    how = Variation(right=1.0, left=1.0, dx=0.0, dy=0.0, reach=1.0)
    with pytest.raises(ValueError, match="action unit expected .* got 99"):
        movement_field(random_face(np.random.default_rng(0)), "99", how, *grid(32))
