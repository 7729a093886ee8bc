"""Spotting: where in a long recording a micro-expression may be. No torch."""

from .intervals import Interval
from .settings import SpotSettings
from .spotter import Spotted, spot

__all__ = ["Interval", "SpotSettings", "Spotted", "spot"]
