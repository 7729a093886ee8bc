"""Blinks and speech: the lids and the mouth of a painted face, moved on its texture.

Unlike an expression's field, a lid slides over the eye and the lips part, so a point of the picture may show
what lay far from it before. A texture's pixel (column, row) is the point ((column - pad) / pixels - 0.5, ...)
of the face.
"""

from __future__ import annotations

import cv2
import numpy as np

from .face import Array, Face


def _patch(
    pixels: int, pad: int, left: float, right: float, top: float, bottom: float
) -> tuple[tuple[slice, slice], Array, Array]:
    """The texture's part between these coordinates, x of its columns (1, W) and y of its rows (H, 1)."""
    first_x, last_x, first_y, last_y = (
        int((value + 0.5) * pixels + pad) for value in (left, right, top, bottom)
    )
    x = (np.arange(first_x, last_x, dtype=np.float32) - pad) / pixels - 0.5
    y = (np.arange(first_y, last_y, dtype=np.float32) - pad) / pixels - 0.5
    return (slice(first_y, last_y), slice(first_x, last_x)), x[None, :], y[:, None]


def _moved(texture: Array, x: Array, y: Array, pixels: int, pad: int) -> Array:
    """The texture at points x and y of the face."""
    map_x, map_y = np.broadcast_arrays((x + 0.5) * pixels + pad, (y + 0.5) * pixels + pad)
    moved = cv2.remap(
        texture,
        map_x.astype(np.float32),
        map_y.astype(np.float32),
        cv2.INTER_LINEAR,
        None,
        cv2.BORDER_REPLICATE,
    )
    return np.asarray(moved, np.float32)


Changed = tuple[tuple[slice, slice], Array]  # a part of the texture, and what it holds now


def close_lids(face: Face, texture: Array, pixels: int, pad: int, closed: float) -> list[Changed]:
    """The texture's parts with the upper lids down: closed 0 (as painted) .. 1 (on the lower lids).

    The skin between the crease and the lashes stretches over the eyeball, the lashes go down with its edge.
    """
    changed = []
    for side in (1, -1):
        near, far = face.eye_x - 1.1 * face.eye_w, face.eye_x + 1.1 * face.eye_w
        left, right = (near, far) if side == 1 else (-far, -near)
        part, x, y = _patch(pixels, pad, left, right, face.eye_y - 0.085, face.eye_y + 0.05)
        ex = (x * side - face.eye_x) / face.eye_w
        opening = np.clip(1 - ex**2, 0, 1)
        middle = face.eye_y - face.slant * ex
        upper = middle - face.eye_h * opening**0.75 * (1 - 0.18 * ex)
        lower = middle + 0.62 * face.eye_h * opening**0.9 * (1 + 0.2 * ex)
        down = closed * (lower - upper)
        lashes, top = upper - 0.011, upper - 0.011 - 0.035
        stretched = top + (y - top) * (lashes - top) / (lashes + down - top)
        source = np.where(y > lashes + down, y - down, np.where(y > top, stretched, y))
        source = np.where(y > upper + down + 0.005, y, source)
        changed.append((part, _moved(texture, x, source, pixels, pad)))
    return changed


def open_mouth(face: Face, texture: Array, pixels: int, pad: int, mouth: tuple[float, float]) -> Changed:
    """The texture's part with the jaw down by mouth[0] sides; mouth[1] 0..1 draws the corners together."""
    down, round_ = mouth
    chin = face.middle + face.height
    part, x, y = _patch(pixels, pad, -0.34, 0.34, face.mouth_y - 0.10, chin + 0.14)
    near_mouth = np.exp(-0.5 * ((y - face.mouth_y) / 0.045) ** 2)
    wide = x * (1 + 0.22 * round_ * near_mouth * np.exp(-0.5 * (x / (1.3 * face.mouth_w)) ** 2))
    mx = wide / face.mouth_w
    open_ = np.clip(1 - mx**2, 0, 1)
    curve = face.mouth_curve * (np.minimum(mx**2, 1) - 0.3)
    line = face.mouth_y + 0.0025 * np.cos(2.2 * np.pi * mx) * open_ - curve
    # At the lips the corners stay together; further down the whole jaw moves, and the neck below it does not.
    at_lips = np.clip(1 - (y - line) / 0.07, 0, 1) ** 2
    jaw = np.exp(-0.5 * (wide / 0.15) ** 2)
    below = np.clip((chin + 0.13 - y) / 0.10, 0, 1)
    moves = down * (jaw + at_lips * (open_**0.7 - jaw)) * below * below * (3 - 2 * below)
    source = np.where(y > line, np.maximum(y - moves, line), y)
    return part, _moved(texture, wide, source, pixels, pad)
