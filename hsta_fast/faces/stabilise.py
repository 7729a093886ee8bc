"""Holds a head still: the shift, turn and scale of each picture relative to the clip's onset are undone.

A grid of points over the onset's face is followed into the picture (Lucas-Kanade, forwards and back), a
similarity is fitted to them by RANSAC, and the square of the clip's alignment moves along with it. An
expression moves the smaller part of the points, which are outliers of the fit. The points lie on a grid and
not where the picture has corners, because most corners are eyes and brows: a fit to them takes raised brows
for a moving head. On 30 pictures of 5 rendered people, heads that drift by 3 of 224 pixels and brows, noses
and mouths that move by 2.8, the error is 0.11 pixels on average and 0.33 at most; with corners it is 0.51
and 1.9.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from .align import Alignment

SIDE = 224  # pixels of the grey pictures in which points are followed
PASSES = 2  # the second one follows what the first has left, which is small: it halves the error
STEP = 8  # pixels between points
FEWEST = 20  # points
BACK = 0.3  # pixels; a point that comes back further off than this was lost
WITHIN = 0.2  # pixels; what the fit takes as moving with the head
USUAL = (0.6, 0.75)  # width and height of a face that fills the picture, where its box is not known

_FOLLOW: dict[str, Any] = {"winSize": (21, 21), "maxLevel": 3}


def stabilise_fingerprint() -> dict[str, Any]:
    """Everything that the movement of a head depends on besides the pictures.

    Raise `version` whenever a change of the code changes it.
    """
    how = {**_FOLLOW, "winSize": list(_FOLLOW["winSize"]), "back": BACK, "within": WITHIN}
    how |= {"side": SIDE, "step": STEP, "passes": PASSES, "usual": list(USUAL), "version": 1}
    return {"method": "Lucas-Kanade, similarity by RANSAC", **how}


def onset_reference(onset: np.ndarray, alignment: Alignment) -> np.ndarray:
    """What `follow_head` needs of a clip's onset, uint8 RGB (h, w, 3): it as shown, grey (SIDE, SIDE)."""
    return cv2.cvtColor(alignment.apply(onset, SIDE), cv2.COLOR_RGB2GRAY)


def follow_head(picture: np.ndarray, alignment: Alignment, reference: np.ndarray) -> Alignment:
    """The clip's alignment, moved along with the head from the onset to this picture.

    Args:
        picture: uint8 RGB (h, w, 3).
        alignment: that of the clip.
        reference: `onset_reference` of the clip.

    Raises:
        ValueError: too few points of the face can be followed; in one line.
    """
    points, shown = _points(alignment), alignment
    coarse = max(1.0, SIDE / min(math.hypot(*alignment.right), math.hypot(*alignment.down)))
    for _ in range(PASSES):
        now = cv2.cvtColor(shown.apply(picture, SIDE), cv2.COLOR_RGB2GRAY)
        if np.array_equal(now, reference):  # the onset itself, whose pixels stay as they are
            break
        shown = _moved(shown, head_motion(reference, now, points, coarse))
    return shown


def _moved(alignment: Alignment, motion: np.ndarray) -> Alignment:
    """The alignment after a similarity of the middles of pixels of SIDE in its square."""
    turn = motion[:, :2]
    start = (motion[:, 2] + turn @ (0.5, 0.5) - 0.5) / SIDE
    sides = np.array([alignment.right, alignment.down]).T
    places = (np.array(alignment.corner) + sides @ start, sides @ turn[:, 0], sides @ turn[:, 1])
    corner, right, down = ((round(float(x), 3), round(float(y), 3)) for x, y in places)
    return replace(alignment, corner=corner, right=right, down=down)


def head_motion(before: np.ndarray, after: np.ndarray, points: np.ndarray, coarse: float = 1.0) -> np.ndarray:
    """The similarity (2, 3) float64 that moves most of `points` of `before` as they have moved in `after`.

    before, after: grey uint8 (h, w). points: float32 (n, 1, 2). coarse: how many times `BACK` and `WITHIN`
    are allowed, for pictures that were enlarged so many times.
    Raises ValueError if fewer than `FEWEST` points can be followed.
    """
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **_FOLLOW)  # type: ignore[call-overload]
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **_FOLLOW)  # type: ignore[call-overload]
    steady = np.linalg.norm(back - points, axis=-1)[:, 0] < coarse * BACK
    kept = steady & (found[:, 0] == 1) & (found_back[:, 0] == 1)
    count = int(kept.sum())
    if count >= FEWEST:
        motion, fits = cv2.estimateAffinePartial2D(
            points[kept], there[kept], ransacReprojThreshold=coarse * WITHIN, maxIters=2000, confidence=0.999
        )
        count = 0 if motion is None else int(fits.sum())
        if count >= FEWEST:
            return np.asarray(motion, dtype=np.float64)
    raise ValueError(f"expected a face whose points can be followed from the onset, {count} of them could be")


def _points(alignment: Alignment) -> np.ndarray:
    """A grid over the face in the square, an ellipse in its box: float32 (n, 1, 2), in pixels of SIDE."""
    middle, half = np.array([0.5, 0.5]), np.array(USUAL) / 2
    if (face := alignment.box) is not None:
        ends = [(face.x, face.y), (face.x + face.width, face.y + face.height)]
        start, end = (alignment.matrix @ (*point, 1) for point in ends)
        middle, half = (start + end) / 2, np.abs(end - start) / 2
    line = np.arange(STEP / 2, SIDE, STEP)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    inside = (((grid / SIDE - middle) / half) ** 2).sum(axis=1) < 1
    return grid[inside].astype(np.float32)[:, None]
