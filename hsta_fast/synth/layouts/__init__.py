"""Layouts of rendered data: the paths of each dataset's frames, and its annotation file.

Names, number widths, columns, sheets and emotion words are those of the datasets, as described in their
readers. The frames are the same in all layouts, but grey in SAMM and 4DME.
"""

from . import casme, dfme, mmew, oulu, samm
from .layout import EXPRESSIONS, Layout, RenderedClip

LAYOUTS: dict[str, Layout] = casme.LAYOUTS | samm.LAYOUTS | oulu.LAYOUTS | mmew.LAYOUTS | dfme.LAYOUTS

__all__ = ["EXPRESSIONS", "LAYOUTS", "Layout", "RenderedClip"]
