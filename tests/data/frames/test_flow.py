"""Optical flow of known movements, and flow from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hsta_fast.data.frames import flow as flow_module
from hsta_fast.data.frames.cache import Cache, CachedArrays
from hsta_fast.data.frames.flow import SCALE, dense_flow, flow_pairs, load_flow
from hsta_fast.data.frames.store import FrameStore, load_frames
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.data.sampling import FlowMethod, Sampling
from hsta_fast.synth.face import grid, movement_field, random_face
from hsta_fast.synth.layouts import EXPRESSIONS
from hsta_fast.synth.painter import paint_face
from hsta_fast.synth.plan import plan_subject
from hsta_fast.synth.render import FINE, Camera
from hsta_fast.synth.settings import SynthConfig

SIZE = 112
CONTRIB = hasattr(cv2, "optflow")
METHODS: list[FlowMethod] = ["dis", "farneback", "tvl1"] if CONTRIB else ["dis", "farneback"]


def planes(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    """A smooth random picture, larger than `SIZE`, uint8 (160, 160, 3)."""
    noise = np.random.default_rng(0).normal(size=(160, 160, 1)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.repeat(np.clip(128 + 300 * smooth, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-3, -1)])
def test_a_known_shift_is_found(texture: np.ndarray, method: FlowMethod, right: int, down: int) -> None:
    """u is to the right, v down, in hundredths of the side; the third channel is their length."""
    before = texture[20 : 20 + SIZE, 20 : 20 + SIZE]
    after = texture[20 - down : 20 - down + SIZE, 20 - right : 20 - right + SIZE]
    flow = dense_flow(method, planes(before), planes(after))
    assert flow.shape == (3, SIZE, SIZE) and flow.dtype == np.float32
    inner = flow[:, 16:-16, 16:-16]
    expected = np.array([right, down, np.hypot(right, down)]) * SCALE / SIZE
    assert np.abs(np.median(inner, axis=(1, 2)) - expected).max() < 0.1
    np.testing.assert_allclose(flow[2], np.hypot(flow[0], flow[1]), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("picture", ["texture", "grey", "black and small"])
def test_equal_and_empty_pictures_have_no_flow(texture: np.ndarray, method: FlowMethod, picture: str) -> None:
    """A face without corners is not an error."""
    pictures = {"texture": texture[:SIZE, :SIZE], "grey": np.full((SIZE, SIZE, 3), 90, np.uint8)}
    frame = planes(pictures.get(picture, np.zeros((32, 32, 3), np.uint8)))
    flow = dense_flow(method, frame, frame)
    assert np.median(np.abs(flow)) < 1e-3
    assert np.abs(flow).max() < (0.5 if method == "farneback" else 1e-3)  # it finds some at the very edge


@pytest.mark.parametrize(("method", "error"), [("dis", 0.6), ("farneback", 0.8)])
def test_the_movement_of_a_rendered_face_is_found(tmp_path: Path, method: Any, error: float) -> None:
    """Onset to apex with the head still: the flow is the rendered field, in spite of the noise."""
    cfg, rng = SynthConfig(out=tmp_path, size=SIZE, clips_per_subject=3), np.random.default_rng(1)
    face = random_face(rng)
    camera = Camera(SIZE, paint_face(face, SIZE * FINE, rng))
    x, y = grid(camera.fine)
    plan = plan_subject(cfg, rng)[0]
    for clip, word in zip(plan.clips, ("happy", "surprise", "disgust"), strict=True):
        field = movement_field(face, EXPRESSIONS[word][0], clip.how, x, y)
        still, lamp = np.zeros(4), np.array((1.0, 0.0, 0.0))
        onset, apex = (
            camera.shoot(camera.view(still, field, strength), lamp, 1.0, rng)
            for strength in (0.0, clip.strength)
        )
        truth = cv2.resize(field, (SIZE, SIZE), interpolation=cv2.INTER_AREA) * clip.strength * SCALE / SIZE
        found = dense_flow(method, planes(onset), planes(apex))[:2].transpose(1, 2, 0)
        moves = np.linalg.norm(truth, axis=-1) > 0.1
        assert np.linalg.norm((found - truth)[moves]) < error * np.linalg.norm(truth[moves]), word


def test_the_flow_does_not_depend_on_the_threads(texture: np.ndarray) -> None:
    before, after = planes(texture[:SIZE, :SIZE]), planes(texture[3 : SIZE + 3, 2 : SIZE + 2])
    found, threads = [], cv2.getNumThreads()
    for number in (1, 2, 7):
        cv2.setNumThreads(number)
        found.append(dense_flow("dis", before, after))
        assert cv2.getNumThreads() == number
    cv2.setNumThreads(threads)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def stored(faces: Path, sampling: Sampling) -> tuple[Any, FrameStore]:
    return load_frames(read_casme3(faces), sampling, 48, progress=False)


def test_the_flow_of_each_clip_is_computed_once(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(num_frames=2, flow="dis", offset_cap=3)
    table, store = stored(faces, sampling)
    pairs = flow_pairs(table, sampling)
    assert len(pairs) == 2 * len(table)
    row = table.clips.iloc[5]
    onset, apex, offset = (row["frames"][row[name] - row["onset"]] for name in ("onset", "apex", "offset"))
    assert pairs[10:12] == [(onset, apex), (apex, offset)]

    def opened() -> CachedArrays:
        return load_flow(store, pairs, "dis", cache=Cache(folder=tmp_path, limit=10**9))

    plain, first = load_flow(store, pairs, "dis"), opened()
    monkeypatch.setattr(flow_module, "dense_flow", None)  # not needed any more
    again = opened()
    for i, (before, after) in enumerate(pairs):
        assert np.array_equal(plain[i], first[i]) and np.array_equal(plain[i], again[i])
        expected = dense_flow("dis", *(store.pixels[store.rows[path]] for path in (before, after)))
        assert np.array_equal(again[i], expected)
    assert again.in_memory == 0 and again[0].dtype == np.float32
    monkeypatch.undo()
    other = load_flow(store, pairs, "farneback", cache=Cache(folder=tmp_path, limit=10**9))
    assert not np.array_equal(other[0], again[0])


def test_a_flow_is_known_by_where_from_and_where_to(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = stored(faces, Sampling(num_frames=2, flow="dis", offset_cap=3))
    a, b = list(store.rows)[:2]

    def opened(*pairs: tuple[str, str]) -> CachedArrays:
        return load_flow(store, pairs, "dis", cache=Cache(folder=tmp_path, limit=10**9))

    there, back = opened((a, b))[0], opened((b, a))[0]
    assert np.array_equal(there, dense_flow("dis", *(store.pixels[store.rows[n]] for n in (a, b))))
    assert np.array_equal(back, dense_flow("dis", *(store.pixels[store.rows[n]] for n in (b, a))))
    folders = len(list(tmp_path.iterdir()))
    monkeypatch.setattr(cv2, "__version__", "another")
    opened((a, b))
    assert len(list(tmp_path.iterdir())) == folders + 1


def test_a_flow_that_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((3, 32, 32), np.uint8)
    flow = np.zeros((32, 32, 2), np.float32)
    flow[3, 4, 1] = np.nan
    monkeypatch.setattr(flow_module, "pixel_flow", lambda *_: flow)
    with pytest.raises(ValueError, match="dis gave values that are not finite"):
        dense_flow("dis", picture, picture)


def test_the_control_has_no_flow(faces: Path) -> None:
    sampling = Sampling(num_frames=2, flow="dis", onset_only=True)
    table, store = stored(faces, sampling)
    items = load_flow(store, flow_pairs(table, sampling), "dis")
    assert max(np.abs(items[i]).max() for i in range(len(items))) < 1e-3


def test_what_cannot_be_computed_is_named(faces: Path) -> None:
    table, store = load_frames(read_casme3(faces), Sampling(num_frames=2, flow="dis"), 24, progress=False)
    with pytest.raises(ValueError, match="at least 32 pixels, got 24"):
        load_flow(store, flow_pairs(table, Sampling(flow="dis")), "dis")
    if not CONTRIB:
        _, store = stored(faces, Sampling(num_frames=2))
        with pytest.raises(
            ValueError, match="tvl1 expected OpenCV's extra modules, got none: install opencv-contrib"
        ):
            load_flow(store, [], "tvl1")
