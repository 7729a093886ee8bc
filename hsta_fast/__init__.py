"""hsta_fast: Hierarchical Space-Time Attention for micro-expression recognition."""

from typing import TYPE_CHECKING, Any

from . import interrupt  # noqa: F401 (before torch is imported)

# isort: split
from . import crossmodal, hub, layers, reference
from .adapters import accelerate
from .checkpoint import load_model, load_published, save_model
from .csta_maps import AttentionMaps, attention_maps
from .environment import info
from .export import export_onnx, export_pt2
from .graphs import GraphedModel
from .inputs import ModelInputs
from .int8 import quantize_int8
from .model import HSTA, HSTAConfig
from .ops import (
    attention_pool,
    cls_cross_attention,
    few_query_attention,
    space_time_attention,
    tubelet_embed,
)
from .presets import create_model, list_models
from .recompute import set_memory

if TYPE_CHECKING:
    from .predicting import predict as predict  # (imported by __getattr__)

__version__ = "0.1.0"

__all__ = [
    "HSTA",
    "AttentionMaps",
    "GraphedModel",
    "HSTAConfig",
    "ModelInputs",
    "accelerate",
    "attention_maps",
    "attention_pool",
    "cls_cross_attention",
    "create_model",
    "crossmodal",
    "export_onnx",
    "export_pt2",
    "few_query_attention",
    "hub",
    "info",
    "layers",
    "list_models",
    "load_model",
    "load_published",
    "quantize_int8",
    "reference",
    "save_model",
    "set_memory",
    "space_time_attention",
    "tubelet_embed",
]


def __getattr__(name: str) -> Any:
    if name == "predict":  # it loads OpenCV, pandas and more
        from .predicting import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
