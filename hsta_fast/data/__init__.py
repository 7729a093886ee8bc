"""Clips from disk: readers, labels, sampling, frames and flow in a cache and batches."""

from .action_units import action_units, objective_class
from .clips import ClipTable, Fault
from .dataset import Augment, Balance, ClipData, classes_of, steps, times_shown
from .frames.apex import Apex
from .frames.cache import Cache, CachedArrays
from .frames.flow import check_flow_method
from .frames.load import describe_inputs, load_inputs
from .frames.store import FrameStore, load_frames
from .labels.files import label_set
from .labels.sets import LABEL_SETS, LabelSet, apply_labels, default_labels
from .labels.units import apply_units, unit_targets
from .loading import Batch
from .neutral import NEUTRAL, add_neutral
from .readers.base import Expression
from .readers.casme3 import read_casme3
from .readers.registry import READERS, DatasetName, read_dataset, read_datasets, recognise
from .sampling import FlowMethod, Sampling, SpecialFrame, random_frames, uniform_frames

__all__ = [
    "LABEL_SETS",
    "NEUTRAL",
    "READERS",
    "Apex",
    "Augment",
    "Balance",
    "Batch",
    "Cache",
    "CachedArrays",
    "ClipData",
    "ClipTable",
    "DatasetName",
    "Expression",
    "Fault",
    "FlowMethod",
    "FrameStore",
    "LabelSet",
    "Sampling",
    "SpecialFrame",
    "action_units",
    "add_neutral",
    "apply_labels",
    "apply_units",
    "check_flow_method",
    "classes_of",
    "default_labels",
    "describe_inputs",
    "label_set",
    "load_frames",
    "load_inputs",
    "objective_class",
    "random_frames",
    "read_casme3",
    "read_dataset",
    "read_datasets",
    "recognise",
    "steps",
    "times_shown",
    "uniform_frames",
    "unit_targets",
]
