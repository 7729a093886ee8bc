"""A recording with a rendered face in a larger frame, some frames of which move; the clips of a run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from hsta_fast.data.frames.decode import decode_image
from hsta_fast.data.readers.casme3 import read_casme3
from hsta_fast.protocol import read_predictions
from tests.data.frames.video_files import encode

KEY = ["subject", "clip", "onset"]


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


def clips_of(data: Path, run: Path) -> pd.DataFrame:
    """The run's predictions, with each clip's frames, apex and offset."""
    clips = read_casme3(data).clips[[*KEY, "apex", "offset", "frames"]]
    return read_predictions(run / "predictions.csv").merge(clips, on=KEY)
