"""Faces: found in a picture, and cut out of all pictures of a clip by one transform."""

from .align import Alignment, FaceCrop, Framing, align_clip, align_to, framing_of
from .detect import Box, Detector, Face, find_faces

__all__ = [
    "Alignment",
    "Box",
    "Detector",
    "Face",
    "FaceCrop",
    "Framing",
    "align_clip",
    "align_to",
    "find_faces",
    "framing_of",
]
