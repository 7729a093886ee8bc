"""The regions of a face, and how much the skin of each has moved between two pictures of it.

A picture here is a square crop around the face, grey, `SIDE` pixels wide. The regions follow from the box
of the face alone, so they are wide enough for people and detectors to differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..faces import Face, resize

SIDE = 128  # pixels of a crop
CROP = 1.15  # side of the crop over the height of the face's box

# Left, top, right, bottom in parts of the box's width and height; left as seen in the picture.
REGIONS = {
    "left brow": (0.08, 0.16, 0.42, 0.34),
    "right brow": (0.58, 0.16, 0.92, 0.34),
    "nose": (0.33, 0.50, 0.67, 0.72),
    "left mouth corner": (0.20, 0.66, 0.42, 0.84),
    "right mouth corner": (0.58, 0.66, 0.80, 0.84),
    "chin": (0.35, 0.84, 0.65, 1.00),
}
EYES = (0.12, 0.34, 0.42, 0.48), (0.58, 0.34, 0.88, 0.48)  # left and right, as `REGIONS`
_STEP = 6  # pixels between the points to which the movement of the head is fitted
_STEADY = 0.7  # part of the points that it is fitted to, as in data/frames/apex.py


@dataclass(frozen=True)
class Area:
    """The square of a picture that is cropped around a face, in whole pixels, and the face's box in it."""

    left: int
    top: int
    side: int
    face: Face

    @classmethod
    def around(cls, face: Face) -> Area:
        """The area around a face's box."""
        side = max(8, round(CROP * face.height))
        x, y = face.middle
        return cls(round(x - side / 2), round(y - side / 2), side, face)

    def crop(self, picture: np.ndarray) -> np.ndarray:
        """The area of a grey picture (h, w) uint8, as (SIDE, SIDE); its edges go on beyond the picture."""
        height, width = picture.shape
        right, bottom = self.left + self.side, self.top + self.side
        inside = picture[max(0, self.top) : max(0, bottom), max(0, self.left) : max(0, right)]
        beyond = max(0, -self.top), max(0, bottom - height), max(0, -self.left), max(0, right - width)
        if any(beyond):
            inside = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REPLICATE)
        return np.ascontiguousarray(resize(inside, SIDE, SIDE))

    def rectangle(self, region: tuple[float, float, float, float]) -> tuple[slice, slice]:
        """Rows and columns of a region in the crop; at least two of each, inside of it."""
        scale, face = SIDE / self.side, self.face

        def part(low: float, high: float, start: float, length: float, origin: int) -> slice:
            first = min(max(0, round((start + low * length - origin) * scale)), SIDE - 2)
            return slice(first, min(max(first + 2, round((start + high * length - origin) * scale)), SIDE))

        left, top, right, bottom = region
        return part(top, bottom, face.y, face.height, self.top), part(
            left, right, face.x, face.width, self.left
        )


class Regions:
    """The regions of one crop, and the points to which the movement of the head is fitted."""

    def __init__(self, area: Area) -> None:
        self.area = area
        self.rectangles = [area.rectangle(region) for region in REGIONS.values()]
        self.eyes = [area.rectangle(region) for region in EYES]
        self.unit = 100 * area.side / (SIDE * area.face.height)  # of a pixel, in hundredths of the face
        rows, columns = np.mgrid[_STEP // 2 : SIDE : _STEP, _STEP // 2 : SIDE : _STEP].reshape(2, -1)
        scale = area.side / SIDE
        x = (area.left + columns * scale - area.face.x) / area.face.width
        y = (area.top + rows * scale - area.face.y) / area.face.height
        skin = ((x - 0.5) / 0.55) ** 2 + ((y - 0.5) / 0.6) ** 2 < 1
        for left, top, right, bottom in EYES:  # lids and eyeballs move by themselves
            skin &= ~((x > left) & (x < right) & (y > top) & (y < bottom))
        self._rows, self._columns = rows[skin], columns[skin]
        self._places = _places(self._columns, self._rows)
        middles = [((c.start + c.stop - 1) / 2, (r.start + r.stop - 1) / 2) for r, c in self.rectangles]
        self._middles = _places(*np.array(middles).T)

    def movement(self, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The movement of each region without the head's, (R, 2), and that of the head, (2,).

        flow: displacement in pixels (SIDE, SIDE, 2) float32. The result is in hundredths of the face's
        height. The head's movement is an affine field, fitted by least squares and fitted again twice to
        the part of the points that it fits best.
        """
        points = flow[self._rows, self._columns]
        steady = np.ones(len(points), dtype=bool)
        last = int(_STEADY * len(points))
        for _ in range(3):
            chosen = self._places[steady]
            head = np.linalg.lstsq(chosen.T @ chosen, chosen.T @ points[steady], rcond=None)[0]
            left = ((points - self._places @ head) ** 2).sum(axis=1)
            steady = left <= np.partition(left, last)[last]
        mean = np.array([cv2.mean(flow[rectangle])[:2] for rectangle in self.rectangles])
        return (mean - self._middles @ head) * self.unit, head[0] * self.unit


def _places(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """1, x, y of points in a crop, the middle at 0 and the side 1; float64 (n, 3)."""
    x, y = (np.asarray(v, dtype=np.float64) / SIDE - 0.5 for v in (columns, rows))
    return np.stack([np.ones(len(x)), x, y], axis=1)


def changed_eyes(before: np.ndarray, now: np.ndarray, regions: Regions) -> float:
    """How much both eyes look different, 0 not at all to 1: of the two, the eye that changed less.

    It is 1 - the normalised correlation at the best shift of up to 2 pixels: neither light nor a movement
    of the whole eye counts, but a lid that covers the iris does.
    """
    reach, changed = 2, []
    for rows, columns in regions.eyes:
        wide = now[
            max(0, rows.start - reach) : rows.stop + reach,
            max(0, columns.start - reach) : columns.stop + reach,
        ]
        score = cv2.matchTemplate(
            cv2.blur(wide, (3, 3)), cv2.blur(before[rows, columns], (3, 3)), cv2.TM_CCOEFF_NORMED
        )
        changed.append(1 - float(score.max()))
    return min(changed)
