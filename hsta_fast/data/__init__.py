"""Clips from disk: readers, labels, frame sampling, decoded frames, batches, and rendered data."""

from .casme3 import read_casme3
from .clips import ClipTable, Fault
from .dataset import Augment, Balance, Batch, ClipData, steps
from .frames import FrameStore, load_frames
from .labelfile import label_set
from .labels import LABEL_SETS, LabelSet, apply_labels, objective_class
from .readers import READERS, DatasetName, read_dataset, read_datasets, recognise
from .sampling import Sampling, SpecialFrame, random_frames, uniform_frames
from .synthetic import SynthConfig, render

__all__ = [
    "LABEL_SETS",
    "READERS",
    "Augment",
    "Balance",
    "Batch",
    "ClipData",
    "ClipTable",
    "DatasetName",
    "Fault",
    "FrameStore",
    "LabelSet",
    "Sampling",
    "SpecialFrame",
    "SynthConfig",
    "apply_labels",
    "label_set",
    "load_frames",
    "objective_class",
    "random_frames",
    "read_casme3",
    "read_dataset",
    "read_datasets",
    "recognise",
    "render",
    "steps",
    "uniform_frames",
]
