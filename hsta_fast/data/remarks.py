"""What a user should know about clips and is no fault: long ones, low frame rates, small faces, dark frames.

Each kind is one sentence with the count and the first clips, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST = 2.0  # seconds; a micro-expression lasts at most half a second
SLOWEST = 60  # frames a second; below, an onset of a tenth of a second has less than six frames
SMALLEST_FACE = 0.5  # of the frame's height
DARKEST = 64  # of 255; data of 14 bits in 16 stay below, and few pictures that people took
NAMED = 3  # examples in a remark


@dataclass(frozen=True)
class Timing:
    """A clip whose frame rate is known; rate: frames a second."""

    name: str
    is_micro: bool
    frames: int
    rate: float

    @property
    def seconds(self) -> float:
        """How long the clip lasts."""
        return self.frames / self.rate


def timing_remarks(clips: Sequence[Timing]) -> list[str]:
    """Remarks on micro-expressions longer than `LONGEST`, and on clips of a rate under `SLOWEST`."""
    micro = [clip for clip in clips if clip.is_micro]
    long = [f"{clip.name} ({clip.seconds:.1f} s)" for clip in micro if clip.seconds > LONGEST]
    # Rounded: 60 frames a second on a clock of milliseconds are 59.98.
    slow = [f"{clip.name} ({clip.rate:.4g})" for clip in clips if round(clip.rate) < SLOWEST]
    return [
        *_remark(long, len(micro), f"micro-expressions last longer than {LONGEST:g} s"),
        *_remark(slow, len(clips), f"clips have fewer than {SLOWEST} frames a second"),
    ]


def face_remarks(heights: Iterable[tuple[str, float]]) -> list[str]:
    """Remarks on faces smaller than `SMALLEST_FACE`; heights: (clip, face height / frame height)."""
    faces = list(heights)
    small = [f"{name} ({height:.0%})" for name, height in faces if height < SMALLEST_FACE]
    return _remark(small, len(faces), "faces are smaller than half of the frame's height: crop the frames")


def border_remarks(outside: Iterable[tuple[str, float]], most: float) -> list[str]:
    """Remarks on crops beyond the border of the picture; outside: (clip, the part of its crop that is)."""
    crops = list(outside)
    found = [f"{name} ({part:.0%})" for name, part in crops if part > most]
    what = f"crops lie by more than {most:.0%} outside of the picture, whose border is repeated there"
    return _remark(found, len(crops), what)


def darkness_remarks(brightest: Iterable[tuple[str, float]]) -> list[str]:
    """Remarks on dark pictures; brightest: (clip, the value below which are 99.9 % of all, of 255)."""
    frames = list(brightest)
    dark = [f"{name} ({value:.0f})" for name, value in frames if value < DARKEST]
    what = "onset frames use less than a quarter of the range (a dark scene, or 14 bits stored as 16)"
    return _remark(dark, len(frames), what)


def _remark(found: Sequence[str], count: int, what: str) -> list[str]:
    more = ", ..." if len(found) > NAMED else ""
    return [f"{len(found)} of {count} {what}: {', '.join(found[:NAMED])}{more}"] if found else []
