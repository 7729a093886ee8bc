"""The movement of the head, undone: against a movement that is known."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.faces import Alignment, ClipView, Face
from hsta_fast.faces.stabilise import follow_head, onset_reference
from hsta_fast.synth.render import subject_frames
from hsta_fast.synth.settings import SynthConfig


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    frames = subject_frames(SynthConfig(out=Path(), size=224, clips_per_subject=3), 1)
    return next(frames)[2]


def similarity(degrees: float, scale: float, right: float, down: float, middle: float = 112) -> np.ndarray:
    """(2, 3), of the middles of pixels; positive angles are clockwise."""
    motion = cv2.getRotationMatrix2D((middle - 0.5, middle - 0.5), -degrees, scale)
    return motion + np.array([[0, 0, right], [0, 0, down]])


def moved(picture: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The picture moved, with new noise of the camera."""
    size = picture.shape[1::-1]
    there = cv2.warpAffine(picture, motion, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    noise = np.random.default_rng(0).normal(0, 2, picture.shape)
    return np.clip(there + noise, 0, 255).astype(np.uint8)


SQUARES = {
    "whole": Alignment.whole(224, 224),
    "a crop": Alignment((30.0, 24.0), (160.0, 0.0), (0.0, 160.0), Face(45, 40, 130, 150)),
    "a levelled crop": Alignment((30.0, 40.0), (160.0, -12.0), (12.0, 160.0), Face(45, 40, 130, 150)),
}


@pytest.mark.parametrize("name", SQUARES)
def test_the_square_moves_with_the_head(face: np.ndarray, name: str) -> None:
    """Each place of the face goes where the movement takes it, to a fifth of a pixel."""
    square = SQUARES[name]
    motion = similarity(2.0, 1.02, 3.3, -2.6)
    followed = follow_head(moved(face, motion), square, onset_reference(face, square))
    for at in ((0.25, 0.2), (0.75, 0.2), (0.5, 0.5), (0.25, 0.8), (0.75, 0.8)):
        before, after = (
            np.array(s.corner) + at[0] * np.array(s.right) + at[1] * np.array(s.down)
            for s in (square, followed)
        )
        expected = motion[:, :2] @ (before - 0.5) + motion[:, 2] + 0.5
        assert np.abs(after - expected).max() < 0.2


@pytest.mark.parametrize("middle", [(112, 165), (112, 75)], ids=["mouth", "brows"])
def test_an_expression_is_not_taken_for_the_head(face: np.ndarray, middle: tuple[int, int]) -> None:
    """The mouth or the brows alone move by three pixels: the square stays."""
    y, x = np.mgrid[:224, :224].astype(np.float32)
    push = 3 * np.exp(-(((x - middle[0]) / 40) ** 2) - ((y - middle[1]) / 15) ** 2).astype(np.float32)
    moves = cv2.remap(face, x, y + push, cv2.INTER_LINEAR)
    square = SQUARES["a crop"]
    followed = follow_head(moves, square, onset_reference(face, square))
    assert np.abs(np.array(followed.corner) - square.corner).max() < 0.25
    assert np.abs(np.array(followed.right) - square.right).max() < 0.25


def test_a_small_picture_is_followed_too(face: np.ndarray) -> None:
    """48 pixels with the camera's noise: to a tenth of a pixel."""
    there = moved(face, similarity(0.0, 1.0, 9.333, -4.667))
    small, after = (cv2.resize(one, (48, 48), interpolation=cv2.INTER_AREA) for one in (face, there))
    noise = np.random.default_rng(1).normal(0, 2, after.shape)
    after = np.clip(after + noise, 0, 255).astype(np.uint8)
    whole = Alignment.whole(48, 48)
    followed = follow_head(after, whole, onset_reference(small, whole))
    middle = np.array(followed.corner) + np.array(followed.right) / 2 + np.array(followed.down) / 2
    assert np.abs(middle - (26, 23)).max() < 0.1


def test_the_onset_keeps_its_bytes(face: np.ndarray) -> None:
    view = ClipView.of(face, None, stabilise=True)
    assert np.array_equal(view.show(face, 224), face)
    assert ClipView.of(face, None, stabilise=False).reference is None


def test_what_is_left_is_much_less_than_the_drift(face: np.ndarray) -> None:
    there = moved(face, similarity(1.0, 1.0, 2.0, 1.0))
    still = ClipView.of(face, SQUARES["a crop"], stabilise=True)
    loose = ClipView.of(face, SQUARES["a crop"], stabilise=False)
    onset = loose.show(face, 112).astype(float)
    left, drift = (np.abs(view.show(there, 112) - onset).mean() for view in (still, loose))
    assert left < 0.35 * drift


def test_a_picture_that_cannot_be_followed_is_one_line(face: np.ndarray) -> None:
    view = ClipView.of(face, None, stabilise=True)
    other = np.random.default_rng(1).integers(0, 256, face.shape, np.uint8)
    for picture in (np.full_like(face, 90), other):
        with pytest.raises(ValueError, match=r"^expected a face whose points can be followed[^\n]*$"):
            view.show(picture, 112)
    with pytest.raises(ValueError, match="0 of them could be"):
        ClipView.of(np.full_like(face, 90), None, stabilise=True).show(face, 112)
