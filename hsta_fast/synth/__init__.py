"""Renders faces with micro-expressions, and writes them in the layouts of the datasets."""

from .render import render
from .settings import SynthConfig

__all__ = ["SynthConfig", "render"]
