"""Video files of a plain table: how many frames they have, and when each is shown."""

from __future__ import annotations

import re
from math import isclose
from pathlib import Path

from ...files import inside
from ..frames.video import Timeline, read_timeline
from .folders import remembered

# "1.25 s", "850 ms", "0:01.250" and "1:02:03": seconds, milliseconds, minutes or hours before them.
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+) ?(s|sec|seconds?|ms)", re.IGNORECASE)
_CLOCK = re.compile(r"(?:([0-9]{1,3}):)?([0-9]{1,3}):([0-9]{1,2}(?:\.[0-9]*)?)")

SAME_RATE = 0.01  # relative: 29.97 and 30 frames a second are one, and clocks of milliseconds round


def seconds(cell: str) -> float | None:
    """The time that a cell with a unit holds, in seconds; None for any other text, plain numbers included."""
    if match := _SECONDS.fullmatch(cell):
        return float(match[1]) / (1000 if match[2].lower() == "ms" else 1)
    if match := _CLOCK.fullmatch(cell):
        return 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3])
    return None


class VideoFiles:
    """The video files below `root`, each looked through once; their frames are 0, 1, 2, ..."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._timelines: dict[str, Timeline | ValueError] = {}

    def timeline(self, path: str) -> Timeline:
        """When each frame of the file is shown; ValueError if it is no readable video."""
        return remembered(self._timelines, path, self._read)

    def frame(self, path: str, cell: str, fps: float | None = None) -> str:
        """The frame number that a cell names: itself, or for a time the frame whose start is nearest.

        fps: the camera's frames a second; ValueError for a time where the file is shown at another rate.
        """
        time = seconds(cell)
        if time is None:
            return cell
        timeline = self.timeline(path)
        rate = timeline.rate(0, len(timeline) - 1)
        if fps is not None and rate is not None and not isclose(fps, rate, rel_tol=SAME_RATE):
            raise ValueError(
                f"{path}: onset and offset expected frame numbers, got {cell!r}: the file shows {rate:.4g} "
                f"frames a second and the camera took {fps:.4g}, so a time could mean two frames"
            )
        return str(timeline.at(time))

    def count(self, path: str) -> int:
        """How many frames the file has; ValueError if it is cut or damaged, so that nobody knows."""
        timeline = self.timeline(path)
        if timeline.certain is not None:
            raise ValueError(
                f"{path}: expected a whole video, it is cut or damaged after {timeline.certain} frames: "
                "copy it again, or give an offset before that"
            )
        return len(timeline)

    def rate(self, path: str, onset: int, offset: int) -> float | None:
        """Frames a second between two frames; None where it cannot be told."""
        timeline = self.timeline(path)
        return timeline.rate(onset, offset) if 0 <= onset < offset < len(timeline) else None

    def frames(self, path: str, onset: int, offset: int) -> tuple[str, ...]:
        """Frames onset..offset as "path#number"; ValueError if the file has fewer, or has lost some."""
        timeline = self.timeline(path)
        length, why = len(timeline), ""
        if timeline.certain is not None:
            length, why = timeline.certain, " (the video is cut or damaged after them)"
        if onset < 0 or offset >= length:
            expected = f"frames in 0..{length - 1}{why}" if length else "a whole video, it is cut or damaged"
            raise ValueError(f"{path}: onset and offset expected {expected}, got {onset} and {offset}")
        return tuple(f"{path}#{number}" for number in range(onset, offset + 1))

    def _read(self, path: str) -> Timeline:
        try:
            return read_timeline(inside(self.root, path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
