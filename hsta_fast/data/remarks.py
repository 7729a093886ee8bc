"""What a user should know about clips and is no fault: long ones, low frame rates, small faces, dark frames.

Each kind is one sentence with the count and the first clips, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

LONGEST = 2.0  # seconds; a micro-expression lasts at most half a second
SLOWEST = 60  # frames a second; below (`is_slow`), an onset of a tenth of a second has less than six frames
SMALLEST_FACE = 0.5  # of the frame's height, and of its width
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


def is_slow(rate: float) -> bool:
    """Whether frames a second are fewer than `SLOWEST`; 59.94 are not, nor 60 on a coarse clock."""
    return round(rate) < SLOWEST


def timing_remarks(clips: Sequence[Timing]) -> list[str]:
    """Remarks on micro-expressions longer than `LONGEST`, and on clips of a rate under `SLOWEST`."""
    micro = [clip for clip in clips if clip.is_micro]
    long = [f"{clip.name} ({clip.seconds:.1f} s)" for clip in micro if clip.seconds > LONGEST]
    slow = [f"{clip.name} ({clip.rate:.4g})" for clip in clips if is_slow(clip.rate)]
    return [
        *_remark(long, len(micro), f"micro-expressions last longer than {LONGEST:g} s"),
        *_remark(slow, len(clips), f"clips have fewer than {SLOWEST} frames a second"),
    ]


@dataclass(frozen=True)
class FaceSizes:
    """How large faces are, one for each person: parts of the frame's height.

    people: in whose frames a face was looked for; found: those with one. cropped: whether every face fills
    `SMALLEST_FACE` of the frame's height and of its width, as after cropping.
    """

    people: int
    found: int
    smallest: float
    median: float
    largest: float
    cropped: bool


def face_sizes(people: int, faces: Sequence[tuple[str, float, float]]) -> FaceSizes | None:
    """The sizes of faces (clip, part of the frame's height, part of its width); None if none was found."""
    if not faces:
        return None
    heights = [round(height, 3) for _, height, _ in faces]
    cropped = all(min(parts) >= SMALLEST_FACE for _, *parts in faces)
    return FaceSizes(people, len(faces), min(heights), round(median(heights), 3), max(heights), cropped)


def face_remarks(people: int, faces: Sequence[tuple[str, float, float]]) -> list[str]:
    """How large faces are, and whether they are cropped, if one was found; faces: see `face_sizes`."""
    sizes = face_sizes(people, faces)
    if sizes is None:
        return []
    if sizes.cropped:
        span = (
            f"{sizes.smallest:.0%} to {sizes.largest:.0%} of the frame's height (median {sizes.median:.0%})"
        )
        return [f"{len(faces)} of {people} faces were found, and fill {span}: the frames are cropped"]
    small = [f"{name} ({min(parts):.0%})" for name, *parts in faces if min(parts) < SMALLEST_FACE]
    what = "faces fill less than half of the frame's height or width: the frames are not cropped, train with "
    return _remark(small, len(faces), f"{what}--crop-face")


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
