"""Clips from disk: readers, labels, sampling, frames and flow in a cache, batches, and rendered data."""

from .apex import Apex
from .cache import Cache, Items
from .casme3 import read_casme3
from .clips import ClipTable, Fault
from .dataset import Augment, Balance, ClipData, steps
from .frames import FrameStore, load_frames
from .labelfile import label_set
from .labels import LABEL_SETS, LabelSet, apply_labels, objective_class
from .loading import Batch
from .pictures import load_pictures, picture_recipe
from .readers import READERS, DatasetName, read_dataset, read_datasets, recognise
from .rows import Expression
from .sampling import FlowMethod, Sampling, SpecialFrame, random_frames, uniform_frames
from .synthetic import SynthConfig, render

__all__ = [
    "LABEL_SETS",
    "READERS",
    "Apex",
    "Augment",
    "Balance",
    "Batch",
    "Cache",
    "ClipData",
    "ClipTable",
    "DatasetName",
    "Expression",
    "Fault",
    "FlowMethod",
    "FrameStore",
    "Items",
    "LabelSet",
    "Sampling",
    "SpecialFrame",
    "SynthConfig",
    "apply_labels",
    "label_set",
    "load_frames",
    "load_pictures",
    "objective_class",
    "picture_recipe",
    "random_frames",
    "read_casme3",
    "read_dataset",
    "read_datasets",
    "recognise",
    "render",
    "steps",
    "uniform_frames",
]
