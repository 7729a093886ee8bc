"""All that a run shows to the model, out of the cache or into it: apexes, frames, optical flow."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..clips import ClipTable
from ..sampling import Sampling
from .apex import Apex, apex_recipe, lacks_apex, search_apexes
from .cache import Cache, Items
from .flow import flow_pairs, flow_recipe, load_flow
from .store import FrameStore, frame_recipe, load_frames


def load_pictures(
    table: ClipTable,
    sampling: Sampling,
    size: int,
    *,
    apex: Apex = "annotated",
    cache: Cache | None = None,
    strict: bool = False,
    progress: bool = True,
) -> tuple[ClipTable, FrameStore, Items | None]:
    """The clips that can be shown, their frames, and their flow where `sampling` wants it.

    apex: as annotated; or by motion, for clips without one ("motion") or for all ("motion-all").
    See `search_apexes`, `load_frames` and `load_flow` for what they raise.
    """
    if apex != "annotated":
        wanted = lacks_apex(table) if apex == "motion" else np.ones(len(table), dtype=bool)
        table = search_apexes(table, wanted, cache=cache, progress=progress)
    table, store = load_frames(table, sampling, size, cache=cache, strict=strict, progress=progress)
    if sampling.flow is None:
        return table, store, None
    pairs = flow_pairs(table, sampling)
    return table, store, load_flow(store, pairs, sampling.flow, cache=cache, progress=progress)


def picture_recipe(sampling: Sampling, size: int, apex: Apex) -> dict[str, Any]:
    """Everything about the pictures that a run should say of itself, as plain values."""
    special: object = list(sampling.special)
    if sampling.flow:
        special = {"first": "onset -> apex", "second": "apex -> offset", **flow_recipe(sampling.flow)}
    how: object = "annotated, else the middle frame"
    if apex != "annotated":
        how = {
            "by motion": "where none is annotated" if apex == "motion" else "in every clip",
            **apex_recipe(),
        }
    return {"frames": frame_recipe(size), "special": special, "apex": how}
