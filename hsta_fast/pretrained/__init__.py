"""Pretrained weights of other models, and of our own, as the start of an HSTA (docs/pretrained.md)."""

from .branch import LayerChoice, choose_layers
from .read import OURS
from .report import InitReport, Row
from .start import OF_THE_SOURCE, PretrainedStart, in_words, notes_of

__all__ = [
    "OF_THE_SOURCE",
    "OURS",
    "InitReport",
    "LayerChoice",
    "PretrainedStart",
    "Row",
    "choose_layers",
    "in_words",
    "notes_of",
]
