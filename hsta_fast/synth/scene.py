"""A face somewhere in a larger frame: the person before a background, and what the face does.

Everything about the face is in its own coordinates (face.py): (0, 0) its middle, one unit = the side of the
picture that the face would fill.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .deform import close_lids, open_mouth
from .face import Array, Face, margin_pixels, top_of_clothes
from .painter import paint_person
from .plan import REFERENCE_SIZE

FINE = 2  # texture pixels per picture pixel
MARGIN = 0.34  # the texture extends this far beyond the unit square
# The part of the frame that is drawn anew in each picture: to the left and right, up and down.
SIDEWAYS, UP, DOWN = 0.62, 0.66, 0.80
FOLLOWS, STILL = 0.46, 0.70  # y down to which all moves with the head, and from which nothing does
HEAD = (200.0, 260.0)  # height of a head in pixels, in a frame of 480 lines


def grain(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Noise of a sensor (height, width, 3): most of it is common to the three channels."""
    noise = rng.standard_normal((*shape, 4), np.float32)
    return noise[..., :1] + 0.4 * noise[..., 1:]


def grain_size(picture: Array) -> Array:
    """Bright pixels have more noise: a factor for each pixel of a picture 0..255."""
    return np.sqrt(0.3 + np.clip(picture, 0, 255) / 180)


class Scene:
    """Turns one subject, somewhere in a frame, into pictures; `place` comes first."""

    def __init__(self, face: Face, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.face, (self.width, self.height) = face, size
        head = rng.uniform(*HEAD) * self.height / 480
        self.side = round(head / (2 * face.height))  # of the unit square, in pixels of the frame
        self.fine = FINE * self.side
        self.pad = margin_pixels(self.fine, MARGIN)
        colours, person = paint_person(face, self.fine, rng, MARGIN)
        layers = np.dstack((colours * person[..., None], person)).astype(np.float32)
        # The mean of 2 x 2 texture pixels, so that one sample of it is the mean over a pixel of the frame.
        self.texture: Array = np.asarray(cv2.blur(layers, (2, 2)), np.float32)
        self.lines = (np.arange(self.height, dtype=np.float32) + 0.5) / self.height - 0.5
        self.columns = (np.arange(self.width, dtype=np.float32) + 0.5) / self.width - 0.5

    def place(self, rng: np.random.Generator) -> None:
        """Put the person at a random place of a new background."""
        side = self.side
        middle = rng.uniform((0.5 * side, 0.54 * side), (self.width - 0.5 * side, self.height - 0.5 * side))
        self.middle = np.round(middle)
        left, top = np.maximum(self.middle - np.array((SIDEWAYS, UP)) * side, 0).astype(int)
        right, bottom = np.minimum(
            self.middle + np.array((SIDEWAYS, DOWN)) * side, (self.width, self.height)
        ).astype(int)
        self.part = slice(top, bottom), slice(left, right)
        self.background = self._background(rng)
        self.x = ((np.arange(left, right) + 0.5 - self.middle[0]) / side).astype(np.float32)
        self.y = ((np.arange(top, bottom) + 0.5 - self.middle[1]) / side).astype(np.float32)
        fade = np.clip((STILL - self.y) / (STILL - FOLLOWS), 0, 1)
        self.follows = fade * fade * (3 - 2 * fade)  # 1 where a row moves with the head, 0 where it is still
        x, y = np.meshgrid(self.x, self.y)
        self.grid: tuple[Array, Array] = (x, y)

    def _background(self, rng: np.random.Generator) -> Array:
        """A wall with a shadow of something on it, and the shoulders: (height, width, 3) float32."""
        face, x, y = self.face, self.columns[None, :], self.lines[:, None]
        light = 1 + 0.25 * x * np.sign(face.light[0]) - 0.15 * y
        soft = cv2.resize(
            rng.standard_normal((6, 8)).astype(np.float32),
            (self.width, self.height),
            interpolation=cv2.INTER_CUBIC,
        )
        wall = np.array(face.background) * 255 * (light * (1 + 0.012 * soft))[..., None]
        for _ in range(int(rng.integers(1, 4))):  # frames, shelves, a door: upright boxes with soft edges
            cx, cy, half_w, half_h = rng.uniform((-0.5, -0.5, 0.04, 0.05), (0.5, 0.3, 0.16, 0.22))
            box = np.minimum(half_w - np.abs(x - cx), half_h - np.abs(y - cy)) * self.height
            colour = np.array(face.background) + rng.normal(0, 0.1) + rng.normal(0, 0.025, 3)
            lit = 255 * np.clip(colour, 0.05, 0.95) * light[..., None]
            wall += np.clip(box, 0, 1)[..., None] * (lit - wall)
        face_x = ((np.arange(self.width) + 0.5 - self.middle[0]) / self.side)[None, :]
        face_y = ((np.arange(self.height) + 0.5 - self.middle[1]) / self.side)[:, None]
        below = (face_y - top_of_clothes(face, face_x, wide=True)) * self.side + 0.5
        # The texture's own cloth, from its lower edge, goes on below and beside it.
        row, half = round(0.14 * self.fine), round(0.4 * self.fine)
        middle = self.texture.shape[1] // 2
        cloth = self.texture[-row - 2 : -2 : FINE, middle - half : middle + half : FINE, :3]
        more = max(0, self.height - len(cloth)), max(0, self.width - cloth.shape[1])
        cloths = cv2.copyMakeBorder(cloth, 0, more[0], 0, more[1], cv2.BORDER_REFLECT)
        wall += np.clip(below, 0, 1)[..., None] * (cloths[: self.height, : self.width] - wall)
        return np.clip(wall, 0, 255).astype(np.float32)

    def view(
        self,
        pose: Array,
        field: Array | None,
        displacement: float,
        lids: float = 0.0,
        mouth: tuple[float, float] = (0.0, 0.0),
    ) -> Array:
        """The noise-free view, (height, width, 3) float32.

        pose: x, y in sides of the face, angle in radians, log of the scale, and, if there is a fifth number,
            log of a horizontal squeeze.
        field: the unit field (see `movement_field`) on `grid`, by which the face is moved; None for none.
        displacement: its largest movement in pixels of a face that fills 112 x 112.
        lids: 0 open .. 1 closed.
        mouth: how far the jaw is down, in sides, and how round the lips are, 0..1.
        """
        changed = close_lids(self.face, self.texture, self.fine, self.pad, lids) if lids > 0 else []
        if mouth != (0.0, 0.0):
            changed.append(open_mouth(self.face, self.texture, self.fine, self.pad, mouth))
        dx, dy, angle, log_scale, *squeeze = (float(value) for value in pose)
        cos, sin = math.cos(angle) * math.exp(-log_scale), math.sin(angle) * math.exp(-log_scale)
        narrow = math.exp(squeeze[0]) if squeeze else 1.0
        # Frame -> face: the inverse shift, rotation and squeeze; a still row keeps its place.
        (a, b), (d, e) = (narrow * cos, narrow * sin), (-sin, cos)
        follows = self.follows
        from_y = self.y * follows
        map_x = np.outer(1 + follows * (a - 1), self.x)
        map_x += (b * from_y - follows * (a * dx + b * dy))[:, None]
        map_y = np.outer(follows * d, self.x)
        map_y += (self.y + (e - 1) * from_y - follows * (d * dx + e * dy))[:, None]
        if field is not None and displacement > 0:
            at_x, at_y = (
                (map_x - self.x[0]) * self.side,
                (map_y - self.y[0]) * self.side,
            )
            push = cv2.remap(field, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            map_x -= displacement / REFERENCE_SIZE * push[..., 0]
            map_y -= displacement / REFERENCE_SIZE * push[..., 1]
        map_x *= self.fine
        map_y *= self.fine
        map_x += self.fine / 2 + self.pad
        map_y += self.fine / 2 + self.pad
        before = [(part, self.texture[part].copy()) for part, _ in changed]
        for part, pixels in changed:
            self.texture[part] = pixels
        person = cv2.remap(self.texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for part, pixels in before:
            self.texture[part] = pixels
        view = self.background.copy()
        around = view[self.part]
        around *= 1 - person[..., 3:]
        around += person[..., :3]
        return view

    def shoot(self, view: Array, lamp: Array, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The view with its light and the sensor's noise, (height, width, 3) uint8."""
        picture = self.lit(view, lamp)
        picture += noise * grain(picture.shape[:2], rng) * grain_size(picture)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def lit(self, view: Array, lamp: Array) -> Array:
        """The view under a lamp: gain, and its slope over the frame's x and y."""
        gain, slope_x, slope_y = lamp.astype(np.float32)
        return view * (gain + slope_x * self.columns[None, :] + slope_y * self.lines[:, None])[..., None]
