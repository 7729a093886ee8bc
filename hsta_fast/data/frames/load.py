"""Everything that the model is shown, from the cache if it is there: apexes, frames, optical flow."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...faces import PLAIN, PictureRecipe
from ..clips import ClipTable
from ..sampling import Sampling
from .apex import Apex, apex_fingerprint, lacks_apex, search_apexes
from .cache import Cache, CachedArrays
from .flow import flow_fingerprint, flow_pairs, load_flow
from .store import FrameStore, frame_fingerprint, load_frames
from .views import clip_views


def load_inputs(
    table: ClipTable,
    sampling: Sampling,
    size: int,
    *,
    apex: Apex = "annotated",
    recipe: PictureRecipe = PLAIN,
    cache: Cache | None = None,
    strict: bool = False,
    progress: bool = True,
) -> tuple[ClipTable, FrameStore, CachedArrays | None]:
    """The clips that can be shown, their frames, and their flow if `sampling` asks for it.

    apex: as annotated; or found by motion, for clips without one ("motion") or for all ("motion-all").
    recipe: what is done to the pictures before they are shown, also to the search for apexes and to the flow.
    Raises what `clip_views`, `load_frames` and `load_flow` raise.
    """
    table, views = clip_views(table, recipe, cache=cache, strict=strict, progress=progress)
    if apex != "annotated":
        wanted = lacks_apex(table) if apex == "motion" else np.ones(len(table), dtype=bool)
        table = search_apexes(table, wanted, views=views, cache=cache, progress=progress)
    table, store = load_frames(
        table, sampling, size, views=views, cache=cache, strict=strict, progress=progress
    )
    if sampling.flow is None:
        return table, store, None
    pairs = flow_pairs(table, sampling, store)
    return table, store, load_flow(store, pairs, sampling.flow, cache=cache, progress=progress)


def describe_inputs(
    sampling: Sampling, size: int, apex: Apex, recipe: PictureRecipe = PLAIN
) -> dict[str, Any]:
    """How the model's inputs are made, as plain values: the entry "pictures" of a run's config.json.

    Raises what `FaceCrop.fingerprint` raises.
    """
    special: object = list(sampling.special)
    if sampling.flow:
        special = {"first": "onset -> apex", "second": "apex -> offset", **flow_fingerprint(sampling.flow)}
    how: object = "annotated, else the middle frame"
    if apex != "annotated":
        how = {
            "by motion": "where none is annotated" if apex == "motion" else "in every clip",
            **apex_fingerprint(),
        }
    return {"frames": frame_fingerprint(size), "special": special, "apex": how, **recipe.fingerprint()}
