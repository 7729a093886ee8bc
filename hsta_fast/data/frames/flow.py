"""Dense optical flow instead of the special frames: onset -> apex, then apex -> offset.

Three channels: u (to the right), v (down) and their magnitude, float32, in hundredths of the picture's side.
A micro-expression moves the skin by about 1 % of the side of a cropped face, so the values are of order one
at any size and the model uses them unchanged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from ...clips import KEY, identity
from ..clips import ClipTable
from ..sampling import FlowMethod, Sampling, flow_positions
from .cache import Cache, CachedArrays, Made, load_arrays
from .chunks import ArraySpec, digest
from .store import FrameStore, frame_fingerprint

SCALE = 100.0  # the value for a movement over the whole side of the picture
SMALLEST = 32  # pixels; the image pyramids of the methods need about that many

# Grey pictures (H, W) uint8, from and to -> displacement in pixels (H, W, 2) float32.
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Parameters of each method. DIS: the finest scale is the full resolution, because the movement is about a
# pixel long, and patches overlap more than in OpenCV's presets.
PARAMETERS: dict[FlowMethod, dict[str, Any]] = {
    "dis": {"preset": "medium", "finest_scale": 0, "patch_size": 12, "patch_stride": 4},
    "farneback": {
        "pyr_scale": 0.5,
        "levels": 4,
        "winsize": 15,
        "iterations": 5,
        "poly_n": 5,
        "poly_sigma": 1.1,
    },
    "tvl1": {"preset": "default"},
}


def flow_fingerprint(method: FlowMethod) -> dict[str, Any]:
    """Everything that a flow depends on besides its frames.

    Raise `version` whenever a change of the code changes the bytes.
    """
    how = {"method": method, **PARAMETERS[method], "scale": SCALE, "unit": "100 = the picture's side"}
    return {**how, "pictures": "grey, at the size of the frames", "version": 1}


def _dis() -> Method:
    chosen = PARAMETERS["dis"]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow.setFinestScale(chosen["finest_scale"])
    flow.setPatchSize(chosen["patch_size"])
    flow.setPatchStride(chosen["patch_stride"])
    # A flow as the third argument would be the initial estimate.
    return lambda a, b: flow.calc(a, b, None)  # type: ignore[call-overload]


def _farneback() -> Method:
    chosen = PARAMETERS["farneback"]

    def calc(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        out = np.empty((*before.shape, 2), np.float32)
        return cv2.calcOpticalFlowFarneback(before, after, out, flags=0, **chosen)

    return calc


def _tvl1() -> Method:
    if not hasattr(cv2, "optflow"):
        raise ValueError(
            "flow tvl1 expected OpenCV's extra modules, got none: install opencv-contrib-python-headless "
            "instead of opencv-python-headless, or use dis or farneback"
        )
    flow = cv2.optflow.DualTVL1OpticalFlow_create()
    return lambda a, b: flow.calc(a, b, None)


_METHODS: dict[FlowMethod, Callable[[], Method]] = {"dis": _dis, "farneback": _farneback, "tvl1": _tvl1}
_OF_THREAD = threading.local()  # OpenCV's flow objects keep buffers: one object per thread


def check_flow_method(method: FlowMethod) -> None:
    """Raise ValueError if this OpenCV does not have the method."""
    _METHODS[method]()


def _method(method: FlowMethod) -> Method:
    made = _OF_THREAD.__dict__
    if method not in made:
        made[method] = _METHODS[method]()
    return made[method]


def grey(picture: np.ndarray) -> np.ndarray:
    """RGB planes (3, H, W) uint8 -> (H, W) uint8."""
    return cv2.cvtColor(np.ascontiguousarray(picture.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)


def pixel_flow(method: FlowMethod, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Displacement in pixels (H, W, 2) float32, from grey pictures (H, W) uint8."""
    return np.asarray(_method(method)(before, after), dtype=np.float32)


def dense_flow(method: FlowMethod, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The flow from `before` to `after`: u, v, magnitude, float32 (3, H, W), in hundredths of the side.

    `before`, `after`: uint8 RGB planes (3, H, W), H = W.
    Raises ValueError if OpenCV fails or the flow is not finite.
    """
    size = before.shape[-1]
    try:
        moved = pixel_flow(method, grey(before), grey(after)) * np.float32(SCALE / size)
    except cv2.error as error:
        raise ValueError(f"expected optical flow, OpenCV says {error.err}") from error
    if not np.isfinite(moved).all():
        raise ValueError(f"expected optical flow, {method} gave values that are not finite")
    u, v = moved[..., 0], moved[..., 1]
    return np.stack([u, v, np.hypot(u, v)])


def load_flow(
    store: FrameStore,
    pairs: Sequence[tuple[str, str]],
    method: FlowMethod,
    *,
    cache: Cache | None = None,
    progress: bool = False,
) -> CachedArrays:
    """`dense_flow` of each pair of pictures in the store, float32 (3, size, size), computed once if cached.

    Raises:
        ValueError: the method is not installed, the pictures are too small, or a flow cannot be computed.
    """
    if store.size < SMALLEST:
        raise ValueError(f"optical flow expected pictures of at least {SMALLEST} pixels, got {store.size}")
    _METHODS[method]()  # raises if it is not installed
    spec = ArraySpec(
        name="flow",
        fingerprint={
            **flow_fingerprint(method),
            "frames": frame_fingerprint(store.size) | store.views.recipe.fingerprint(),
            "opencv": cv2.__version__,
        },
        shape=(3, store.size, store.size),
        dtype="float32",
    )
    keys = [digest(f"{store.keys[a]} -> {store.keys[b]}".encode()) for a, b in pairs]

    def make(numbers: list[int]) -> list[Made]:
        flows: list[Made] = []
        for before, after in (pairs[number] for number in numbers):
            try:
                rows = store.rows[before], store.rows[after]
                flows.append(dense_flow(method, *(store.pixels[row] for row in rows)))
            except ValueError as error:
                flows.append(error)
        return flows

    items = load_arrays(spec, keys, make, cache=cache, progress=progress)
    for number, what in items.errors.items():
        raise ValueError(f"{' -> '.join(pairs[number])}: {what}")
    return items


def flow_pairs(
    table: ClipTable, sampling: Sampling, store: FrameStore | None = None
) -> list[tuple[str, str]]:
    """(from, to) of the two flows of each clip, in the order of the table: paths, or pictures of `store`."""
    pairs = []
    for clip in table.clips.to_dict("records"):
        frames = clip["frames"]
        if store is not None:
            name = identity(*(clip[key] for key in KEY))
            frames = [store.name(name, path) for path in frames]
        for before, after in flow_positions(sampling, len(frames), clip["apex"] - clip["onset"]):
            pairs.append((frames[before], frames[after]))
    return pairs
