"""One rendered face: its geometry, and the displacement fields of its action units.

Coordinates: x to the right, y down, (0, 0) the middle of the picture, one unit = the picture's side. Left and
right are as seen in the picture. Colours are sRGB, 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# The texture extends this far beyond the picture on each side, so that a drifting head shows no border.
MARGIN = 0.08

# From light to dark. A subject's skin is a mix of two neighbours, with some random hue and saturation.
SKIN = np.array(
    [(0.95, 0.82, 0.74), (0.90, 0.74, 0.63), (0.84, 0.66, 0.52), (0.74, 0.55, 0.41), (0.60, 0.42, 0.30),
     (0.47, 0.32, 0.23), (0.34, 0.23, 0.17)]
)  # fmt: skip
HAIR = np.array(
    [(0.07, 0.06, 0.06), (0.13, 0.09, 0.07), (0.25, 0.16, 0.10), (0.40, 0.27, 0.16), (0.62, 0.47, 0.28),
     (0.40, 0.21, 0.13), (0.55, 0.54, 0.53)]
)  # fmt: skip
IRIS = np.array(
    [(0.20, 0.12, 0.07), (0.33, 0.21, 0.10), (0.38, 0.36, 0.18), (0.32, 0.42, 0.48), (0.36, 0.42, 0.40)]
)


@dataclass(frozen=True, kw_only=True)
class Face:
    """The constant properties of one subject: lengths in picture sides, colours in sRGB 0..1."""

    width: float  # half the width of the head at the cheek bones
    height: float  # half the height of the head, crown to chin
    middle: float  # y of the head's middle
    taper: float  # how much narrower the jaw is than the cheek bones, 0..1
    square: float  # exponent of the outline: 2 an ellipse, more = squarer
    eye_x: float  # distance of an eye's middle from the middle line
    eye_y: float
    eye_w: float  # half the width of an eye
    eye_h: float  # height of the upper lid over the eye's middle
    slant: float  # rise of the outer corner over the inner one
    crease: float  # distance of the lid crease above the lid's edge
    iris: float  # radius
    brow_y: float
    brow_in: float  # distance of the inner end from the middle line
    brow_w: float  # length
    brow_arch: float
    brow_thick: float
    brow_dense: float  # 0..1
    nose_y: float
    nose_w: float  # half the width over the wings
    nose_high: float  # how far the tip stands out
    mouth_y: float
    mouth_w: float  # half the width
    mouth_curve: float  # rise of the corners at rest
    lip_up: float
    lip_low: float
    skin: tuple[float, float, float]
    lips: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris_colour: tuple[float, float, float]
    background: tuple[float, float, float]
    clothes: tuple[float, float, float]
    bald: bool
    hairline: float  # y of the hairline on the middle line
    hair_volume: float
    hair_length: float  # y down to which hair hangs beside the head; 0 none hangs
    hair_curl: float  # 0 strands .. 1 curls
    parting: float  # x of the parting
    beard: float  # 0 none .. 1 stubble
    freckles: float
    age: float  # 0..1, depth of folds
    light: tuple[float, float, float]  # unit vector towards the lamp; z towards the camera
    ambient: float


def _mix(table: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """The colour at position `at` in 0..1 along a table of colours."""
    steps = np.linspace(0.0, 1.0, len(table))
    return np.array([np.interp(at, steps, table[:, channel]) for channel in range(3)])


def _colour(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = np.clip(values, 0.02, 0.98)
    return float(red), float(green), float(blue)


def random_face(rng: np.random.Generator) -> Face:
    """Draw one subject: geometry, colours and lamp, each from its own wide range."""

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    tone = u(0.0, 1.0)
    skin = np.clip(_mix(SKIN, tone) * rng.normal(1.0, (0.02, 0.025, 0.035)), 0, 1)
    # Dark skin comes mostly with dark hair and eyes, light skin with any.
    hair = HAIR[rng.integers(len(HAIR))] if u(0, 1) > 0.25 + 0.75 * tone else HAIR[rng.integers(2)]
    iris = IRIS[rng.integers(len(IRIS))] if u(0, 1) > 0.3 + 0.7 * tone else IRIS[rng.integers(2)]
    lips = skin * (0.86, 0.62, 0.62) * u(0.9, 1.06) + np.array((u(0.0, 0.08), 0.0, 0.0))
    eye_y = u(-0.055, -0.015)
    nose_y = eye_y + u(0.150, 0.180)
    mouth_y = nose_y + u(0.085, 0.105)
    eye_x = u(0.128, 0.152)
    long_hair = u(0, 1) < 0.45
    grey = u(0.25, 0.75)
    lamp = np.array((u(-0.65, 0.65), u(-0.6, -0.15), 1.0))
    light = lamp / np.linalg.norm(lamp)
    return Face(
        width=u(0.300, 0.352),
        height=u(0.425, 0.455),
        middle=u(-0.025, -0.005),
        taper=u(0.10, 0.34),
        square=u(2.05, 2.55),
        eye_x=eye_x,
        eye_y=eye_y,
        eye_w=u(0.058, 0.072),
        eye_h=u(0.020, 0.031),
        slant=u(-0.006, 0.014),
        crease=u(0.008, 0.022),
        iris=u(0.0275, 0.031),
        brow_y=eye_y - u(0.078, 0.105),
        brow_in=u(0.042, 0.066),
        brow_w=u(0.150, 0.190),
        brow_arch=u(0.008, 0.032),
        brow_thick=u(0.013, 0.028),
        brow_dense=u(0.45, 1.0),
        nose_y=nose_y,
        nose_w=u(0.050, 0.078),
        nose_high=u(0.055, 0.095),
        mouth_y=mouth_y,
        mouth_w=u(0.092, 0.128),
        mouth_curve=u(0.0, 0.009),
        lip_up=u(0.014, 0.028),
        lip_low=u(0.020, 0.036),
        skin=_colour(skin),
        lips=_colour(lips),
        hair=_colour(hair * u(0.8, 1.25)),
        iris_colour=_colour(iris * u(0.85, 1.2)),
        background=_colour(grey + rng.normal(0, 0.04, 3)),
        clothes=_colour(u(0.08, 0.7) + rng.normal(0, 0.08, 3)),
        bald=not long_hair and u(0, 1) < 0.2,
        hairline=u(-0.345, -0.255),
        hair_volume=u(0.035, 0.075),
        hair_length=u(0.25, 0.7) if long_hair else 0.0,
        hair_curl=u(0.0, 1.0),
        parting=u(-0.15, 0.15),
        beard=max(0.0, u(-1.2, 1.0)),
        freckles=max(0.0, u(-1.5, 1.0)),
        age=u(0.0, 1.0),
        light=(float(light[0]), float(light[1]), float(light[2])),
        ambient=u(0.34, 0.56),
    )


def grid(pixels: int, margin: float = MARGIN) -> tuple[Array, Array]:
    """Coordinates x and y of the texture, each (P, P) float32; `pixels` = pixels along a picture side."""
    pad = margin_pixels(pixels, margin)
    line = (np.arange(-pad, pixels + pad, dtype=np.float32) + 0.5) / pixels - 0.5
    x, y = np.meshgrid(line, line)
    return x, y


def margin_pixels(pixels: int, margin: float = MARGIN) -> int:
    """How many pixels the texture extends beyond the picture on each side."""
    return round(margin * pixels)


def top_of_clothes(face: Face, x: Array, *, wide: bool) -> Array:
    """The y at which clothes begin at each x; wide: to the ends of the shoulders, not of the picture."""
    chin = face.middle + face.height
    collar = chin + 0.085 - 0.16 * x**2 - 0.05 * np.abs(x)
    if not wide:
        return collar
    end = np.clip(np.abs(x) - 0.72, 0, None)
    return np.maximum(collar, chin + 0.02 + 0.28 * np.abs(x) + 12 * end**2)


# Factor on the sigmas below, which are those of the muscle itself: the skin around it moves too.
REACH = 1.8

# One push on the right half (x > 0): centre (x, y), Gaussian width (sigma x, sigma y), direction (x, y).
Push = tuple[float, float, float, float, float, float]


def _pushes(face: Face, unit: int) -> list[Push]:
    """How one FACS action unit moves the right half of the picture; the left half mirrors it."""
    lid_up = face.eye_y - face.eye_h
    lid_low = face.eye_y + 0.6 * face.eye_h
    outer = face.brow_in + 0.80 * face.brow_w
    if unit == 1:  # inner brow raiser
        return [(face.brow_in + 0.15 * face.brow_w, face.brow_y, 0.045, 0.048, 0.0, -1.0)]
    if unit == 2:  # outer brow raiser
        return [(outer, face.brow_y, 0.050, 0.045, 0.0, -0.9)]
    if unit == 4:  # brow lowerer: down and together
        return [(face.brow_in + 0.20 * face.brow_w, face.brow_y, 0.050, 0.045, -0.35, 0.85)]
    if unit == 5:  # upper lid raiser
        return [(face.eye_x, lid_up, 0.050, 0.024, 0.0, -1.0)]
    if unit == 7:  # lid tightener
        return [(face.eye_x, lid_low, 0.050, 0.024, -0.15, -0.9)]
    if unit == 9:  # nose wrinkler; it also lifts the upper lip
        return [
            (0.9 * face.nose_w, face.nose_y - 0.015, 0.036, 0.042, 0.05, -1.0),
            (0.45 * face.mouth_w, face.mouth_y - 1.2 * face.lip_up, 0.036, 0.026, 0.0, -0.7),
        ]
    if unit == 12:  # lip corner puller: up and out, the cheek follows
        return [
            (face.mouth_w, face.mouth_y, 0.042, 0.036, 0.60, -0.75),
            (face.mouth_w + 0.03, face.mouth_y - 0.09, 0.045, 0.040, 0.15, -0.45),
        ]
    if unit == 15:  # lip corner depressor
        return [(face.mouth_w, face.mouth_y + 0.006, 0.042, 0.036, 0.10, 1.0)]
    if unit == 20:  # lip stretcher
        return [(face.mouth_w, face.mouth_y + 0.004, 0.046, 0.036, 1.0, 0.10)]
    raise ValueError(f"action unit expected one of 1, 2, 4, 5, 7, 9, 12, 15, 20, got {unit}")


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How the movement of one clip differs from others of the same subject and label."""

    right: float  # weight of the right half
    left: float  # weight of the left half
    dx: float  # shift of the pushes' centres, away from the middle line
    dy: float
    reach: float  # factor on the pushes' width


def movement_field(face: Face, action_units: str, how: Variation, x: Array, y: Array) -> Array:
    """The displacement field of action units such as "4+9" at x and y (P, P): float32 (P, P, 2).

    It is scaled so that the largest displacement is 1. Raises ValueError for an unknown action unit.
    """
    field = np.zeros((*x.shape, 2), np.float32)
    for unit in action_units.split("+"):
        for cx, cy, sx, sy, vx, vy in _pushes(face, int(unit)):
            for side, weight in ((1, how.right), (-1, how.left)):
                away_x = (x * side - cx - how.dx) / (sx * REACH * how.reach)
                away_y = (y - cy - how.dy) / (sy * REACH * how.reach)
                push = weight * np.exp(-0.5 * (away_x**2 + away_y**2))
                field[..., 0] += side * vx * push
                field[..., 1] += vy * push
    return field / np.linalg.norm(field, axis=-1).max()
