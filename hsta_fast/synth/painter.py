"""Paints a face: an albedo map, lit by one lamp over a height map, painted back to front.

Shading, the nose's shadow and the lids are consistent because they use one height map. Coordinates are those
of face.py; colours are computed in linear light.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .face import MARGIN, Array, Face, grid, margin_pixels, top_of_clothes


def _ramp(low: float, high: float, value: Array) -> Array:
    """Smooth step from 0 at `low` to 1 at `high`; `high` may be the smaller one."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _blob(x: Array, y: Array, cx: float, cy: float, sx: float, sy: float) -> Array:
    return np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))


def _linear(colour: tuple[float, float, float]) -> Array:
    return np.array(colour, np.float32) ** 2.2


class _Painter:
    """Paints one face, back to front, on the texture's grid."""

    def __init__(self, face: Face, pixels: int, rng: np.random.Generator, margin: float = MARGIN) -> None:
        self.face, self.pixels, self.rng, self.margin = face, pixels, rng, margin
        self.x, self.y = grid(pixels, margin)
        self.person = np.zeros_like(self.x)  # how much of a pixel is the person, 0..1, the rest is background
        self.picture = np.ones((*self.x.shape, 3), np.float32) * _linear(face.background)
        down = np.clip((self.y - face.middle) / face.height, 0, 1)
        self.half_width = face.width * (1 - face.taper * down**1.6)
        p = face.square
        self.radius = (
            np.abs(self.x / self.half_width) ** p + np.abs((self.y - face.middle) / face.height) ** p
        ) ** (1 / p)

    def noise(self, size: float, stretch: float = 1.0) -> Array:
        """Smooth noise of unit variance. size: grain in picture sides; stretch: its height over its width."""
        # Coarse noise is drawn on a coarser grid: it looks the same and costs a fraction.
        sigma = max(size * self.pixels, 0.3)
        step = max(1.0, sigma / 3)
        side = round(len(self.x) / step)
        white = self.rng.standard_normal((side, side), np.float32)
        soft = cv2.GaussianBlur(white, (0, 0), sigma / step, sigmaY=sigma / step * stretch)
        soft = cv2.resize(soft, self.x.shape, interpolation=cv2.INTER_CUBIC)
        return soft / soft.std()

    def mix(self, colour: Array, mask: Array) -> None:
        """Blend a colour (3,) or picture (P, P, 3) over the picture with the mask (P, P), 0..1."""
        self.picture += mask[..., None] * (colour - self.picture)
        self.person = np.maximum(self.person, mask)

    def darken(self, mask: Array, by: float) -> None:
        self.picture *= (1 - by * np.clip(mask, 0, 1))[..., None]

    def strokes(self, lines: list[NDArray[np.float64]], levels: Array, thickness: float) -> Array:
        """A mask (P, P), 0..1, of anti-aliased hairs; each line is (K, 2) points in picture coordinates."""
        mask = np.zeros(self.x.shape, np.uint8)
        pad = margin_pixels(self.pixels, self.margin)
        for line, level in zip(lines, levels, strict=True):
            points = np.round(((line + 0.5) * self.pixels + pad - 0.5) * 16).astype(np.int32)
            cv2.polylines(
                mask,
                [points],
                False,
                int(255 * level),
                max(1, round(thickness * self.pixels)),
                cv2.LINE_AA,
                4,
            )
        return mask.astype(np.float32) / 255

    def light(self, height: Array, shine: float) -> tuple[Array, Array]:
        """Diffuse light and highlight, each (P, P), of a height map under the subject's lamp."""
        gy, gx = np.gradient(height * self.pixels)
        length = np.sqrt(gx**2 + gy**2 + 1)
        lx, ly, lz = self.face.light
        towards = (-gx * lx - gy * ly + lz) / length
        diffuse = np.clip((towards + 0.25) / 1.25, 0, None)
        half = np.array((lx, ly, lz + 1)) / np.linalg.norm((lx, ly, lz + 1))
        glint = np.clip((-gx * half[0] - gy * half[1] + half[2]) / length, 0, None) ** 28
        return self.face.ambient + (1 - self.face.ambient) * 1.15 * diffuse, shine * glint

    # -- parts, back to front

    def paint(self) -> Array:
        self.picture *= (
            1 + 0.12 * self.x * self.face.light[0] * 4 - 0.15 * self.y + 0.03 * self.noise(0.12)
        )[..., None]
        if not self.face.bald:
            self.back_hair()
        self.neck_and_clothes()
        self.ears()
        self.head()
        for side in (1, -1):
            self.eye(side)
            self.brow(side)
        self.mouth()
        if not self.face.bald:
            self.front_hair()
        picture = np.clip(self.picture, 0, None)
        # Like a camera's exposure, move the mean part of the way to a middle grey.
        picture *= (0.22 / picture.mean()) ** 0.35
        picture = picture / (1 + np.clip(picture - 0.75, 0, None))
        return (np.clip(picture, 0, 1) ** (1 / 2.2) * 255).astype(np.float32)

    def hair_picture(self) -> Array:
        face, x, y = self.face, self.x, self.y
        angle = np.arctan2(x - face.parting * 0.6, y + 0.62 - 0.3 * np.abs(x))
        wave = 0.02 * self.noise(0.05) + 0.10 * face.hair_curl * self.noise(0.02)
        count = 720
        line = cv2.GaussianBlur(self.rng.standard_normal((1, count)).astype(np.float32), (0, 0), 1.0)
        at = ((angle + wave) / np.pi + 0.5) * (count - 1)
        strands = cv2.remap(line, at.astype(np.float32), np.zeros_like(at, np.float32), cv2.INTER_LINEAR)
        strands = (1 - 0.6 * face.hair_curl) * strands / line.std() + 0.8 * face.hair_curl * self.noise(0.006)
        volume = np.sqrt(np.clip(1.25 - (x / 0.46) ** 2 - ((y + 0.05) / 0.5) ** 2, 0.02, None))
        diffuse, glint = self.light(0.28 * volume, 0.30)
        bright = diffuse * (1 + 0.28 * strands) + glint * (1 - face.hair_curl) * (1 + 0.6 * strands)
        return (
            _linear(face.hair) * np.clip(bright, 0.15, None)[..., None]
            + 0.01 * np.clip(bright, 0, 1)[..., None]
        )

    def back_hair(self) -> None:
        face, x, y = self.face, self.x, self.y
        self.hair = self.hair_picture()
        v = face.hair_volume
        ragged = 0.006 * self.noise(0.012, 3.0)
        # Short hair lies closer to the head further down.
        v_side = v if face.hair_length > 0 else v * _ramp(0.03, -0.25, y - face.middle)
        cap = (
            np.abs(x / (face.width + v_side)) ** 2.2
            + np.abs((y - face.middle) / (face.height + 0.6 * v)) ** 2.2
        )
        top = _ramp(1.02, 0.96, cap ** (1 / 2.2) + ragged) * _ramp(0.04, -0.02, y - face.middle)
        edge = face.width + 0.9 * v + 0.02 * np.sin(9 * y + face.parting * 40)
        hang = _ramp(0.008, -0.008, np.abs(x) - edge + ragged)
        hang *= _ramp(-0.07, -0.04, y - face.middle) * _ramp(0.03, -0.03, y - face.hair_length + 2 * ragged)
        self.mix(self.hair, np.maximum(top, hang) if face.hair_length > 0 else top)

    def neck_and_clothes(self) -> None:
        face, x, y = self.face, self.x, self.y
        chin = face.middle + face.height
        wide = face.width * (1 - face.taper) * 0.80 + 0.25 * np.clip(y - chin + 0.02, 0, None)
        neck = _ramp(0.006, -0.006, np.abs(x) - wide) * _ramp(0.10, 0.13, y)
        shade = 0.30 + 0.45 * _ramp(-0.02, 0.25, y - chin) + 0.25 * face.light[0] * x / wide
        shade *= np.sqrt(np.clip(1.15 - (x / wide) ** 2, 0.1, 1))
        self.mix(_linear(face.skin) * shade[..., None], neck)
        collar = _ramp(-0.005, 0.005, y - top_of_clothes(face, x, wide=self.margin > MARGIN))
        self.mix(_linear(face.clothes) * (0.7 + 0.04 * self.noise(0.004))[..., None], collar)

    def ears(self) -> None:
        face = self.face
        for side in (1, -1):
            x = self.x * side - (face.width * 0.985 + 0.006)
            y = self.y - (face.eye_y + 0.075)
            r = np.sqrt((x / 0.038) ** 2 + (y / (0.082 - 0.2 * x)) ** 2)
            shade = 0.75 - 0.35 * _blob(x, y, -0.006, 0.005, 0.012, 0.036) + 0.10 * face.light[0] * side
            skin = _linear(face.skin) * np.array((1.0, 0.88, 0.86), np.float32)
            self.mix(skin * shade[..., None], _ramp(1.06, 0.94, r))

    def relief(self) -> Array:
        """Height of the head above the picture plane (P, P), in picture sides."""
        f, x, y = self.face, self.x, self.y
        ax = np.abs(x)
        height = 0.30 * np.sqrt(np.clip(1.04 - self.radius**2, 0.0008, None))
        along = np.clip((y - f.eye_y + 0.02) / (f.nose_y - f.eye_y), 0, 1)
        bridge = np.exp(-0.5 * (x / (0.020 + 0.012 * along)) ** 2) * _ramp(
            f.nose_y + 0.030, f.nose_y - 0.015, y
        )
        height += f.nose_high * (0.25 + 0.75 * along) * bridge * _ramp(f.eye_y - 0.10, f.eye_y + 0.02, y)
        height += 0.35 * f.nose_high * _blob(x, y, 0, f.nose_y - 0.012, 0.028, 0.022)
        height += 0.33 * f.nose_high * _blob(ax, y, 0.72 * f.nose_w, f.nose_y - 0.004, 0.017, 0.019)
        height -= 0.026 * _blob(ax, y, f.eye_x - 0.005, f.eye_y - 0.004, 0.060, 0.036)
        height += 0.013 * _blob(ax, y, f.eye_x, f.eye_y, 0.036, 0.026)
        height += 0.012 * _blob(ax, y, f.brow_in + 0.45 * f.brow_w, f.brow_y + 0.012, 0.075, 0.022)
        height += 0.020 * _blob(ax, y, f.eye_x + 0.045, f.eye_y + 0.115, 0.060, 0.050)
        height += 0.016 * _blob(x, y, 0, f.mouth_y + 0.125, 0.060, 0.040)
        height -= 0.006 * _blob(x, y, 0, f.mouth_y + 0.060, 0.060, 0.014)
        height -= 0.004 * _blob(x, y, 0, 0.5 * (f.nose_y + f.mouth_y) + 0.008, 0.010, 0.022)
        return height

    def head(self) -> None:
        f, x, y = self.face, self.x, self.y
        ax = np.abs(x)
        albedo = np.ones_like(self.picture) * _linear(f.skin)
        # Cheeks, nose and chin are redder; the skin around the eyes is darker.
        red = 0.6 * _blob(ax, y, f.eye_x + 0.03, f.eye_y + 0.14, 0.07, 0.05) + 0.5 * _blob(
            x, y, 0, f.nose_y - 0.01, 0.05, 0.03
        )
        red = np.clip(red + 0.12 * self.noise(0.03) + 0.1 * self.noise(0.008), -0.4, 1)[..., None]
        albedo *= 1 - red * np.array((0.02, 0.16, 0.14), np.float32)
        albedo *= (1 + 0.045 * self.noise(0.05) + 0.02 * self.noise(0.012) + 0.018 * self.noise(0.003))[
            ..., None
        ]
        tired = _blob(ax, y, f.eye_x - 0.008, f.eye_y + f.eye_h + 0.022, 0.045, 0.014) * (0.35 + 0.5 * f.age)
        albedo *= 1 - 0.30 * tired[..., None] * np.array((0.8, 1.0, 0.9), np.float32)
        spots = _ramp(1.6, 2.4, self.noise(0.0045)) * _blob(ax, y, 0.09, f.nose_y - 0.06, 0.12, 0.06)
        albedo *= 1 - 0.5 * f.freckles * spots[..., None] * np.array((0.5, 0.9, 1.0), np.float32)
        jaw = _ramp(f.nose_y + 0.02, f.mouth_y + 0.01, y + 0.25 * np.clip(ax - 0.12, 0, None))
        jaw *= 1 - 0.9 * _blob(x, y, 0, f.mouth_y, 0.9 * f.mouth_w, 0.026)
        stubble = jaw * f.beard * np.clip(0.62 + 0.16 * self.noise(0.0022) + 0.08 * self.noise(0.02), 0, 1)
        albedo += 0.65 * stubble[..., None] * (_linear(f.hair) * 0.8 + 0.01 - albedo)
        relief = self.relief() + 0.00018 * self.noise(0.003) + 0.0010 * self.noise(0.025)
        diffuse, glint = self.light(relief, 0.16)
        skin = (
            albedo * diffuse[..., None]
            + (0.45 * glint * (1 - 0.8 * jaw * f.beard))[..., None]
            * np.array((1, 0.97, 0.93), np.float32)
            * 0.5
        )
        mask = _ramp(1.012, 0.988, self.radius)
        self.mix(skin, mask)
        # Folds from the nose to the corners of the mouth, and the shadow of the nose.
        lx = f.light[0]
        t = np.clip((y - f.nose_y + 0.02) / (f.mouth_y - f.nose_y + 0.01), 0, 1.15)
        fold = np.exp(
            -0.5 * ((ax - f.nose_w - 0.012 - (f.mouth_w - f.nose_w + 0.022) * t) / (0.006 + 0.006 * t)) ** 2
        )
        fold *= _ramp(-0.03, 0.01, y - f.nose_y) * _ramp(0.015, -0.03, y - f.mouth_y)
        self.darken(fold, 0.06 + 0.20 * f.age)
        brow_folds = sum(
            np.exp(-0.5 * ((y - f.brow_y + d + 0.12 * x**2) / 0.004) ** 2) for d in (0.06, 0.095)
        )
        self.darken(brow_folds * _ramp(0.20, 0.10, ax), 0.14 * f.age**2)
        self.darken(_blob(x, y, -0.05 * lx, f.nose_y + 0.024, 0.75 * f.nose_w, 0.011), 0.42)
        self.darken(
            _blob(x + np.sign(lx) * (0.55 * f.nose_w + 0.012), y, 0, f.nose_y - 0.02, 0.012, 0.035),
            0.45 * abs(lx),
        )
        self.darken(_blob(ax, y, f.nose_w + 0.004, f.nose_y - 0.002, 0.005, 0.014), 0.30)
        nostril = _blob(ax, y, 0.42 * f.nose_w, f.nose_y + 0.010, 0.010, 0.0055)
        self.darken(_ramp(0.35, 0.9, nostril), 0.80)

    def eye(self, side: int) -> None:
        f = self.face
        ex = (self.x * side - f.eye_x) / f.eye_w
        y = self.y - f.eye_y + f.slant * ex
        opening = np.clip(1 - ex**2, 0, 1)
        upper = -f.eye_h * opening**0.75 * (1 - 0.18 * ex)
        lower = 0.62 * f.eye_h * opening**0.9 * (1 + 0.2 * ex)
        soft = 0.003
        inside = _ramp(-soft, soft, y - upper) * _ramp(-soft, soft, lower - y) * (np.abs(ex) < 1)
        # On the skin: the crease, and the edge of the lid.
        wide = _ramp(1.25, 0.8, np.abs(ex))
        self.darken(np.exp(-0.5 * ((y - 1.08 * upper + f.crease) / 0.0045) ** 2) * wide, 0.42)
        self.darken(np.exp(-0.5 * ((y - lower - 0.011) / 0.006) ** 2) * wide, 0.12 + 0.1 * f.age)
        # Eyeball, iris, pupil, highlight.
        ball = np.ones_like(self.picture) * np.array((0.66, 0.62, 0.58), np.float32)
        ball *= (1 - 0.45 * np.abs(ex) ** 3)[..., None]
        ball -= np.array((0.0, 0.07, 0.07), np.float32) * _blob(ex, y, -0.95, 0.003, 0.12, 0.01)[..., None]
        ix, iy = self.x * side - f.eye_x, self.y - f.eye_y + 0.18 * f.eye_h
        r = np.sqrt(ix**2 + iy**2) / f.iris
        angle = np.arctan2(iy, ix)
        rays = 1 + 0.25 * np.sin(23 * angle + 3 * np.sin(5 * angle)) + 0.45 * (0.9 - r) * (iy > -1)
        iris = (
            _linear(f.iris_colour)
            * (1.5 * np.clip(rays, 0.2, None) * (1 - 0.75 * _ramp(0.75, 1.0, r)))[..., None]
        )
        edge = 0.12
        ball += _ramp(1 + edge, 1 - edge, r)[..., None] * (iris - ball)
        ball *= (1 - 0.97 * _ramp(0.42 + edge, 0.42 - edge, r))[..., None]
        ball *= 0.72 + 0.28 * float(_linear(f.skin).mean() / 0.5)
        ball *= (0.45 + 0.55 * _ramp(0.0, 0.016, y - upper))[..., None] * (f.ambient + 0.35)
        self.mix(ball, inside)
        lx, ly, _ = f.light
        gx, gy = f.eye_x * side + 0.014 * lx, f.eye_y - 0.18 * f.eye_h - 0.010 + 0.004 * ly
        self.mix(
            np.full(3, 0.95, np.float32),
            0.9 * _ramp(0.25, 0.6, _blob(self.x, self.y, gx, gy, 0.0055, 0.005)) * inside,
        )
        # Lashes: a dark edge, thicker to the outside, and short hairs.
        rim = np.exp(-0.5 * ((y - upper + 0.001) / (0.0042 + 0.0012 * ex)) ** 2) * _ramp(
            1.06, 0.9, np.abs(ex)
        )
        self.darken(rim, 0.85)
        self.darken(np.exp(-0.5 * ((y - lower) / 0.0028) ** 2) * _ramp(1.0, 0.7, np.abs(ex)), 0.35)
        lines = []
        for at in np.linspace(-0.75, 1.0, 26):
            root_y = f.eye_y - f.slant * at - f.eye_h * (1 - min(at * at, 1.0)) ** 0.75 * (1 - 0.18 * at)
            root = np.array((side * (f.eye_x + at * f.eye_w), root_y))
            length = self.rng.uniform(0.008, 0.014) * (0.8 + 0.35 * at)
            tip = root + length * np.array((side * (0.25 + 0.75 * at), -0.75))
            lines.append(np.stack((root, 0.5 * (root + tip) + (0, 0.0015), tip)))
        self.darken(self.strokes(lines, np.full(len(lines), 0.8, np.float32), 0.0022), 0.75)

    def brow(self, side: int) -> None:
        f = self.face
        lines = []
        for at, across in self.rng.uniform((0, -1), (1, 1), (260, 2)):
            thick = f.brow_thick * (0.6 + 0.4 * min(1, 4 * at)) * (1 - 0.7 * max(0, at - 0.45) / 0.55)
            x = f.brow_in + at * f.brow_w
            y = f.brow_y + 0.007 - f.brow_arch * np.sin(np.pi * (0.06 + 0.78 * at)) + 0.008 * at**3
            turn = -0.85 + 1.0 * at**0.6 + 0.45 * across * (1 - 0.5 * at) + self.rng.normal(0, 0.12)
            length = self.rng.uniform(0.010, 0.020) * (0.7 + 0.3 * min(1, 3 * at))
            middle = np.array((x, y + 0.5 * thick * across))
            half = 0.5 * length * np.array((np.cos(turn), np.sin(turn)))
            lines.append(np.stack((middle - half, middle + half)) * (side, 1))
        levels = self.rng.uniform(0.35, 0.9, len(lines)).astype(np.float32) * (0.55 + 0.45 * f.brow_dense)
        mask = cv2.GaussianBlur(self.strokes(lines, levels, 0.0025), (0, 0), 0.0012 * self.pixels)
        under = cv2.GaussianBlur(mask, (0, 0), 0.006 * self.pixels)
        colour = 0.65 * _linear(f.hair) + 0.004
        self.mix(colour, 0.6 * f.brow_dense * np.clip(1.5 * under, 0, 1))
        self.mix(colour, 0.9 * np.clip(1.5 * mask, 0, 1))

    def mouth(self) -> None:
        f, x = self.face, self.x
        mx = x / f.mouth_w
        open_ = np.clip(1 - mx**2, 0, 1)
        line = f.mouth_y + 0.0025 * np.cos(2.2 * np.pi * mx) * open_ - f.mouth_curve * (mx**2 - 0.3)
        y = self.y - line
        bow = (
            1
            - 0.30 * np.exp(-0.5 * (mx / 0.10) ** 2)
            + 0.10 * np.exp(-0.5 * ((np.abs(mx) - 0.25) / 0.14) ** 2)
        )
        upper, lower = f.lip_up * open_**0.8 * bow, f.lip_low * open_**0.62
        soft = 0.004
        top = _ramp(-soft, soft, y + upper) * _ramp(soft, -soft, y) * (np.abs(mx) < 1)
        bottom = _ramp(-soft, soft, lower - y) * _ramp(-soft, soft, y) * (np.abs(mx) < 1)
        bulge = (
            0.022 * np.sqrt(np.clip(1.02 - ((y - 0.5 * lower) / (0.5 * lower + 1e-3)) ** 2, 0, 1)) * bottom
        )
        bulge = cv2.GaussianBlur(
            bulge + 0.010 * top * np.clip(1 + y / (upper + 1e-3), 0, 1), (0, 0), 0.004 * self.pixels
        )
        diffuse, glint = self.light(self.relief() + bulge, 0.22)
        grooves = 1 + 0.07 * self.noise(0.0025, 3.5) + 0.04 * self.noise(0.01)
        lips = _linear(f.lips) * (diffuse * grooves)[..., None] + 0.35 * (glint * bottom)[..., None]
        self.mix(lips * 0.86, 0.88 * top)
        self.mix(lips, 0.85 * bottom)
        self.darken(np.exp(-0.5 * (y / 0.0040) ** 2) * _ramp(1.07, 0.92, np.abs(mx)), 0.78)
        self.darken(_blob(np.abs(x), self.y, f.mouth_w, f.mouth_y - 0.7 * f.mouth_curve, 0.008, 0.006), 0.30)
        self.darken(_blob(x, y, 0, f.lip_low + 0.012, 0.6 * f.mouth_w, 0.009), 0.24)

    def front_hair(self) -> None:
        f, x, y = self.face, self.x, self.y
        ragged = 0.010 * self.noise(0.010, 3.0) + 0.004 * self.noise(0.004, 3.0)
        side_drop = np.clip((np.abs(x) - 0.10) / (f.width - 0.10), 0, 1.5) ** 2.6
        line = (
            f.hairline
            + side_drop * (0.26 + (0.10 if f.hair_length > 0.2 else 0.02))
            + 0.25 * np.abs(x - f.parting) * 0.2
        )
        hair = _ramp(0.014, -0.014, y - line + ragged) * _ramp(1.02, 0.99, self.radius * 0.985)
        self.darken(cv2.GaussianBlur(hair, (0, 0), 0.012 * self.pixels) * (1 - hair), 0.35)
        self.mix(self.hair, hair)


def paint_face(face: Face, pixels: int, rng: np.random.Generator) -> Array:
    """The face's texture, (P, P, 3) float32 RGB 0..255 with P = pixels + 2 * margin_pixels(pixels)."""
    return _Painter(face, pixels, rng).paint()


def paint_person(face: Face, pixels: int, rng: np.random.Generator, margin: float) -> tuple[Array, Array]:
    """As `paint_face` with a wider margin, and how much of each pixel is the person, (P, P) 0..1."""
    painter = _Painter(face, pixels, rng, margin)
    return painter.paint(), painter.person
