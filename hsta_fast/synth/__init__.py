"""Renders faces with micro-expressions, and writes them in the layouts of the datasets."""

from .render import SynthConfig, render

__all__ = ["SynthConfig", "render"]
