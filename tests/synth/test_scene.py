"""A face in a larger frame: the same clips, at a constant place, moved as far as on a face of that size."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hsta_fast.data import read_dataset
from hsta_fast.synth import SynthConfig, render
from hsta_fast.synth.deform import close_lids, open_mouth
from hsta_fast.synth.face import Variation, movement_field, random_face
from hsta_fast.synth.plan import plan_subject
from hsta_fast.synth.render import subject_frames
from hsta_fast.synth.scene import Scene


def small(out: Path, **changes: Any) -> SynthConfig:
    cfg = SynthConfig(out=out, subjects=2, clips_per_subject=2, scene="342x256", processes=1)
    return dataclasses.replace(cfg, **changes)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A face of 100 to 140 pixels in 342 x 256."""
    made = Scene(random_face(np.random.default_rng(5)), (342, 256), np.random.default_rng(6))
    rng = np.random.default_rng(7)
    made.place(rng)
    while made.middle[1] > 100:  # high in the frame, so that the shoulders are in it
        made.place(rng)
    return made


def test_a_scene_shows_the_same_clips_at_one_place(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    plain = dataclasses.replace(cfg, scene="", size=32)
    frames = [*subject_frames(cfg, 1)]
    for (name, frame, picture, clip, word), (name_b, frame_b, _, clip_b, word_b) in zip(
        frames, subject_frames(plain, 1), strict=True
    ):
        assert (name, frame, clip, word) == (name_b, frame_b, clip_b, word_b)
        assert picture.shape == (256, 342, 3) and picture.dtype == np.uint8
    # The corners are background: nothing but noise and light changes there.
    first, last = (frames[place][2].astype(float) for place in (0, -1))
    for corner in (first[:8, :8] - last[:8, :8], first[:8, -8:] - last[:8, -8:]):
        assert abs(corner.mean()) < 6


def test_the_dataset_of_a_scene_is_read_as_any(tmp_path: Path) -> None:
    root = render(small(tmp_path / "x"))
    table = read_dataset(root)
    assert len(table) == 4 and table.faults == ()
    picture = cv2.imread(str(root / table.clips["frames"][0][0]))
    assert picture is not None and picture.shape == (256, 342, 3)
    said = json.loads((root / "synthetic.json").read_text())
    assert said["scene"] == "342x256" and "drift" not in said and "long" not in said
    with pytest.raises(ValueError, match="rendered with other settings"):
        render(small(root, drift=2.0))


def test_settings_at_their_defaults_are_not_written() -> None:
    """A dataset rendered before these settings existed matches: the text is what it was then."""
    written = {
        "note": "Rendered faces, no recordings: nothing measured on them says anything about people.",
        "renderer": 1,
        "subjects": 40,
        "clips_per_subject": 24,
        "size": 112,
        "strength": [1.2, 1.5],
        "emotions": ["happy", "surprise", "disgust"],
        "seed": 0,
        "quality": 95,
    }
    assert SynthConfig(out=Path()).as_text() == json.dumps(written, indent=2) + "\n"


def test_drift_multiplies_the_heads_movement(tmp_path: Path) -> None:
    plans = [
        plan_subject(small(tmp_path, drift=factor), np.random.default_rng(3)) for factor in (0.0, 1.0, 8.0)
    ]
    for still, usual, strong in zip(*plans, strict=True):
        assert np.ptp(still.pose, axis=0) == pytest.approx(0, abs=1e-12)
        assert strong.pose - still.pose == pytest.approx(8 * (usual.pose - still.pose))
        assert (strong.clips, strong.frames) == (usual.clips, usual.frames)


@pytest.mark.parametrize("units", ["4+9", "20"])  # up and down, to the sides
def test_displacement_in_the_scene_is_the_strength_at_the_faces_size(scene: Scene, units: str) -> None:
    # A texture whose colours are its own coordinates shows where each point of the picture has come from.
    made = Scene.__new__(Scene)
    made.__dict__.update(scene.__dict__)
    rows, columns = np.mgrid[: scene.texture.shape[0], : scene.texture.shape[1]].astype(np.float32)
    made.texture = np.dstack((columns, rows, rows, np.ones_like(rows))) / 2
    made.texture[..., 3] = 1
    how = Variation(right=1.0, left=0.8, dx=0.0, dy=0.0, reach=1.0)
    field = movement_field(scene.face, units, how, *scene.grid)
    for pose in (np.zeros(4), np.array((0.013, -0.008, 0.0, 0.0))):
        rest, moved = made.view(pose, field, 0.0), made.view(pose, field, 1.3)
        length = np.linalg.norm((moved - rest)[..., :2], axis=-1)
        assert length.max() == pytest.approx(1.3 * scene.side / 112, rel=0.02)
        y, x = (int(value) for value in scene.middle[::-1])
        drift = rest[y, x, :2] - made.view(np.zeros(4), None, 0.0)[y, x, :2]
        assert drift == pytest.approx(-pose[:2] * scene.side, abs=0.02)


def test_shoulders_stay_when_the_head_turns(scene: Scene) -> None:
    rest = scene.view(np.zeros(5), None, 0.0)
    turned = scene.view(np.array((0.05, 0.0, 0.05, 0.0, 0.05)), None, 0.0)
    changed = np.abs(turned - rest).max(axis=-1)
    top = scene.part[0].start + int(np.searchsorted(scene.y, 0.71))
    assert changed[top:].max() < 1e-3
    x, y = (int(value) for value in scene.middle)
    assert changed[y - 40 : y + 40, x - 40 : x + 40].max() > 30


def test_lids_cover_the_eyes_and_nothing_else(scene: Scene) -> None:
    face, side = scene.face, scene.side
    views = [scene.view(np.zeros(4), None, 0.0, lids=closed) for closed in (0.0, 0.5, 1.0)]
    x, y = scene.middle
    changed = np.abs(views[2] - views[0]).max(axis=-1) > 3
    around = np.zeros_like(changed)
    for middle in (face.eye_x, -face.eye_x):
        left, top = int(x + (middle - 0.09) * side), int(y + (face.eye_y - 0.10) * side)
        around[top : top + int(0.17 * side), left : left + int(0.18 * side)] = True
    assert changed[around].sum() > 50 and not changed[~around].any()
    # In the middle of an eye the dark pupil gives way to skin; half closed, it is still seen below the lid.
    at = int(y + (face.eye_y + 0.25 * face.eye_h) * side), int(x + face.eye_x * side)
    dark, half, skin = (view[at].mean() for view in views)
    assert skin > dark + 20 and abs(half - dark) < abs(half - skin)
    again = scene.view(np.zeros(4), None, 0.0)
    assert np.array_equal(again, views[0])  # the texture is as it was


def test_the_jaw_moves_the_lower_face_alone(scene: Scene) -> None:
    face, side = scene.face, scene.side
    rest = scene.view(np.zeros(4), None, 0.0)
    opened = scene.view(np.zeros(4), None, 0.0, mouth=(0.03, 0.0))
    changed = np.abs(opened - rest).max(axis=-1) > 3
    line = int(scene.middle[1] + (face.mouth_y - 0.02) * side)
    end = int(scene.middle[1] + (face.middle + face.height + 0.15) * side)
    assert changed[line:end].sum() > 100
    assert not changed[:line].any() and not changed[end:].any()


def test_open_and_closed_are_what_they_were(scene: Scene) -> None:
    for part, pixels in close_lids(scene.face, scene.texture, scene.fine, scene.pad, 0.0):
        assert np.abs(pixels - scene.texture[part]).max() < 0.1
    part, pixels = open_mouth(scene.face, scene.texture, scene.fine, scene.pad, (0.0, 0.0))
    assert np.abs(pixels - scene.texture[part]).max() < 0.1


def test_faces_lie_anywhere_and_wholly_inside() -> None:
    made = Scene(random_face(np.random.default_rng(1)), (342, 256), np.random.default_rng(2))
    rng = np.random.default_rng(3)
    places = []
    for _ in range(12):
        made.place(rng)
        places.append(made.middle)
        low, high = made.middle - 0.47 * made.side, made.middle + 0.46 * made.side
        assert (low >= 0).all() and (high <= (342, 256)).all()
    assert np.ptp(np.array(places)[:, 0]) > 60
    assert 100 <= 2 * made.face.height * made.side <= 145


def test_one_subject_is_the_same_in_every_call(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    for one, other in zip(islice(subject_frames(cfg, 2), 3), islice(subject_frames(cfg, 2), 3), strict=True):
        assert np.array_equal(one[2], other[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scene": "640"}, "--scene expected width x height"),
        ({"scene": "641x480"}, "--scene expected .* even"),
        ({"scene": "480x640"}, "--scene expected"),
        ({"scene": "64x48"}, "--scene expected"),
        ({"size": 96}, "--size expected no --scene beside it, got 96"),
        ({"drift": -1.0}, "--drift expected 0..10, got -1"),
        ({"drift": float("nan")}, "--drift expected"),
        ({"minutes": 2.0}, "--minutes expected --long beside it, got 2"),
        ({"recordings": 2}, "--recordings expected --long"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(small(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
