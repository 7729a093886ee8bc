"""Enlarges the movement since the onset: linear Eulerian magnification (Wu et al., SIGGRAPH 2012).

The difference from the onset is split into the bands of a Laplacian pyramid, and each band is added again
some times. Adding a difference (factor - 1) times moves an edge `factor` times as far only while the whole
movement is below an eighth of the band's wavelength; the finer bands are therefore added fewer times, the
finest not at all, which also keeps the camera's noise as it was. What is left above the coarsest band,
changes of light, stays too.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

MOVEMENT = 0.005  # of the picture's side, the movement for which the bands are weighed: 1.1 pixels of 224
WAVELENGTH = 4.0  # pixels, of the finest band; of each coarser one twice as many
COARSEST = 8  # pixels; pictures of the pyramid below this side are light, and left as they are
LARGEST_FACTOR = 50.0


def magnify_fingerprint(factor: float) -> dict[str, Any]:
    """Everything that an enlarged picture depends on besides the two pictures.

    Raise `version` whenever a change of the code changes the bytes.
    """
    how = {"method": "linear Eulerian, from the onset", "movement": MOVEMENT, "wavelength": WAVELENGTH}
    return {"factor": factor, **how, "coarsest": COARSEST, "version": 1}


def band_weights(factor: float, size: int) -> list[float]:
    """How many times each band is added, the finest first, for pictures of `size` pixels."""
    weights, side, wavelength = [], size, WAVELENGTH
    while side >= COARSEST:
        weights.append(min(max(wavelength / (8 * MOVEMENT * size) - 1, 0.0), factor - 1))
        side, wavelength = (side + 1) // 2, 2 * wavelength
    return weights


def magnify(picture: np.ndarray, onset: np.ndarray, factor: float) -> np.ndarray:
    """The picture with its movement since `onset` enlarged; both uint8 (h, w) or (h, w, 3), as the result.

    Raises ValueError if the factor is not from 1 to `LARGEST_FACTOR`.
    """
    if not 1 <= factor <= LARGEST_FACTOR:
        raise ValueError(f"factor expected 1 to {LARGEST_FACTOR:g}, got {factor}")
    rest = picture.astype(np.float32) - onset
    bands: list[np.ndarray] = []
    for weight in band_weights(factor, min(picture.shape[:2])):
        coarse = cv2.pyrDown(rest)
        bands.append(weight * (rest - cv2.pyrUp(coarse, dstsize=rest.shape[1::-1])))
        rest = coarse
    added = np.zeros_like(rest)
    for band in reversed(bands):
        added = cv2.pyrUp(added, dstsize=band.shape[1::-1]) + band
    return np.clip(np.rint(picture + added), 0, 255).astype(np.uint8)
