"""A recording of seconds with a rendered face in a larger frame, some frames of which move."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from hsta_fast.data.frames.decode import decode_image
from tests.data.frames.video_files import encode


def write_recording(
    path: Path, frames: list[Path], *, rate: int = 100, still: int = 30, side: int = 160
) -> Path:
    """The images `frames`, the first one repeated `still` times before them and the last one after them."""
    faces = [decode_image(frame.read_bytes()) for frame in frames]
    faces = [faces[0]] * still + faces + [faces[-1]] * still
    shown = []
    for face in faces:
        picture = np.full((240, 320, 3), 90, np.uint8)
        picture[40 : 40 + side, 90 : 90 + side] = cv2.resize(
            face, (side, side), interpolation=cv2.INTER_CUBIC
        )
        shown.append(picture)
    return encode(path, "libx264", shown, rate=rate, options={"crf": "12"})
