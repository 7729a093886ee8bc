"""CUDA graphs for inference: the kernels of a forward are launched at once, not one by one from Python."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .ops.checks import check, short

_WARM_UP = 3  # forwards before a capture: they compile kernels, and fill caches that a capture cannot


class _Captured(NamedTuple):
    """A graph, the memory that it reads its frames from, and the memory that it writes the logits to."""

    graph: torch.cuda.CUDAGraph
    frames: dict[str, Tensor]
    logits: Tensor


class GraphedModel:
    """Calls `model` in inference mode through a CUDA graph, one for each shape and dtype of the frames.

    A graph pays for small batches, whose kernels are shorter than their launches. It is captured at the first
    call with a shape, which takes as long as several forwards, and keeps the memory of one forward. Values
    written into the parameters count (a step of an optimiser, `load_state_dict`); after anything that
    replaces the parameters, such as `model.to`, make a new GraphedModel. Call it from one thread at a time.

    Frames on a CPU go to the model without a graph, after one warning.

    Args:
        model: an `HSTA` in eval mode, or torch.compile of one.

    Raises:
        ValueError: `model` is no module.
    """

    def __init__(self, model: nn.Module) -> None:
        check(isinstance(model, nn.Module), "model", "an HSTA in eval mode", short(model))
        self.model = model
        self._captured: dict[object, _Captured] = {}
        self._warned = False

    @torch.inference_mode()
    def __call__(self, video: Tensor | None = None, special: Tensor | None = None) -> Tensor:
        """Clips to logits (B, num_classes), as `HSTA.forward`; autocast counts as there.

        Raises:
            ValueError: the model is in training mode, or refuses the frames. Float frames with the values of
                bytes are refused at the first call with a shape only.
        """
        if self.model.training:
            raise ValueError("model expected eval mode, got training mode: call model.eval()")
        frames = {name: x for name, x in (("video", video), ("special", special)) if x is not None}
        for name, x in frames.items():
            check(isinstance(x, Tensor), name, "a tensor (B, 3, T, H, W)", short(x))
        devices = {x.device for x in frames.values()}
        if len(devices) != 1 or next(iter(devices)).type != "cuda":
            self._warn(", ".join(sorted(map(str, devices))))
            return self.model(**frames)
        key = _key(frames)
        if key not in self._captured:
            self._captured[key] = self._capture(frames)
        captured = self._captured[key]
        for name, x in frames.items():
            captured.frames[name].copy_(x, non_blocking=True)
        captured.graph.replay()
        return captured.logits.clone()  # the next replay overwrites them

    def _warn(self, devices: str) -> None:
        if not self._warned:
            self._warned = True
            text = f"CUDA graphs expected frames on one CUDA device, got {devices or 'none'}: called without"
            warnings.warn(text, stacklevel=4)  # the line that called the GraphedModel

    def _capture(self, frames: Mapping[str, Tensor]) -> _Captured:
        [device] = {x.device for x in frames.values()}
        given = {name: x.clone() for name, x in frames.items()}
        # A cached cast of a weight would be freed at the end of the caller's context, but not by the graph.
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with (
            torch.cuda.device(device),
            torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False),
        ):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self.model(**given)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as one that loads frames, may go on using the device.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits = self.model(**given)
        return _Captured(graph, given, logits)


def _key(frames: Mapping[str, Tensor]) -> object:
    """What a graph is captured for."""
    autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return autocast, tuple((name, x.shape, x.dtype, x.device) for name, x in frames.items())
