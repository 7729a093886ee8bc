"""Movement enlarged: against a grating whose movement is known."""

import cv2
import numpy as np
import pytest

from hsta_fast.faces import PictureRecipe, magnify
from hsta_fast.faces.magnify import band_weights

SIZE = 112


def grating(wavelength: float, shift: float) -> np.ndarray:
    """Vertical stripes, moved to the right by `shift` pixels; uint8 (SIZE, SIZE)."""
    x = np.arange(SIZE) - shift
    wave = 127.5 + 100 * np.cos(2 * np.pi * x / wavelength)
    return np.rint(np.tile(wave, (SIZE, 1))).astype(np.uint8)


def shift_of(picture: np.ndarray, wavelength: float) -> float:
    """How far a grating has moved, by its phase, in pixels."""
    columns = np.arange(16, 96)
    window = np.hanning(len(columns))
    phase = np.angle((picture.mean(0)[16:96] * window) @ np.exp(-2j * np.pi * columns / wavelength))
    return float(-phase * wavelength / (2 * np.pi))


def times_as_far(wavelength: float, factor: float) -> float:
    """How many times as far as half a pixel a grating moves."""
    onset, now = grating(wavelength, 0), grating(wavelength, 0.5)
    return 2 * (shift_of(magnify(now, onset, factor), wavelength) - shift_of(onset, wavelength))


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_coarse_structure_moves_factor_times_as_far(factor: float) -> None:
    assert times_as_far(32.0, factor) == pytest.approx(factor, rel=0.2)
    assert times_as_far(4.0, factor) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("wavelength", [6.0, 9.0, 12.0, 18.0, 24.0])
def test_no_band_moves_further_than_an_eighth_of_its_wavelength(wavelength: float) -> None:
    """Further, adding a difference no longer moves an edge but doubles it."""
    assert 1.1 < times_as_far(wavelength, 20.0) < wavelength / 8 / 0.5
    assert times_as_far(wavelength, 20.0) > times_as_far(wavelength, 2.0) - 0.01


def test_bands_are_weighed_by_their_wavelength() -> None:
    weights = band_weights(4.0, SIZE)
    assert weights == sorted(weights) and weights[0] == 0 and weights[-1] == 3.0
    assert band_weights(1.0, SIZE) == [0.0] * len(weights)
    assert len(band_weights(4.0, 2 * SIZE)) == len(weights) + 1


def test_noise_and_light_stay() -> None:
    rng = np.random.default_rng(0)
    onset = cv2.GaussianBlur(rng.integers(60, 190, (SIZE, SIZE, 3)).astype(np.uint8), (0, 0), 3)
    noise = rng.normal(0, 3, onset.shape)
    now = np.clip(np.rint(onset + noise + 10), 0, 255).astype(np.uint8)
    added = magnify(now, onset, 8.0).astype(float) - now
    assert np.abs(added.mean()) < 0.3  # ten grey levels of light are not made more
    assert added.std() < 3.0


def test_nothing_is_added_where_nothing_moves() -> None:
    onset = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    assert np.array_equal(magnify(onset, onset, 10.0), onset)
    now = np.roll(onset, 1, axis=1)
    assert np.array_equal(magnify(now, onset, 1.0), now)
    assert magnify(now[:5, :5], onset[:5, :5], 4.0).shape == (5, 5, 3)  # too small for a pyramid


def test_the_factor_has_bounds() -> None:
    onset = np.zeros((8, 8, 3), np.uint8)
    for factor in (0.5, 51.0, float("nan")):
        with pytest.raises(ValueError, match="factor expected 1 to 50"):
            magnify(onset, onset, factor)
        with pytest.raises(ValueError, match=r"magnify expected 0 \(not\), or 1 to 50"):
            PictureRecipe(magnify=factor)
    assert PictureRecipe().is_plain and PictureRecipe().fingerprint() == {}
    assert not PictureRecipe(magnify=2.0).is_plain
