"""Rendered faces that perform micro-expressions, on disk in the layouts of the data sets."""

from .render import SynthConfig, render

__all__ = ["SynthConfig", "render"]
