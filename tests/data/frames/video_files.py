"""Writes small video files for the tests, each of a kind that people have."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def greys(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frame k is a grey of 8 k."""
    return [np.full((height, width, 3), 8 * k, np.uint8) for k in range(count)]


def encode(
    path: Path,
    codec: str,
    frames: Sequence[np.ndarray],
    pixels: str = "yuv420p",
    *,
    rate: int = 30,
    times: Sequence[int] | None = None,
    clock: int = 1000,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    rotation: tuple[int, bool, bool] | None = None,
) -> Path:
    """The RGB `frames` in a container by the name's ending; `times` in units of 1 / `clock` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unit = Fraction(1, clock if times else rate)
    with av.open(str(path), "w", container_options=container or {}) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = unit
        stream.codec_context.thread_count = 1  # the same file on every machine
        if rotation:
            stream.set_display_rotation(*rotation)
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = times[k] if times else k, unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path
