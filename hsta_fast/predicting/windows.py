"""Parts of a recording scored by a run's models, for the intervals that `hsta-fast spot --model` refines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..data.frames.stream import FrameStream
from ..faces import Detector
from ..spotting import Interval
from ..spotting.refine import Score
from ..training.setup import find_device
from .clip_inputs import Clip
from .ensemble import load_ensemble
from .predict import predict_clips
from .request import Request


def window_score(
    model: Path, detector: Detector, face: int | None
) -> tuple[Callable[[FrameStream], Score], tuple[str, ...]]:
    """What scores windows of a recording, and the classes of the models, "nothing" the last one.

    Raises:
        ValueError: the model cannot be used, or does not know "nothing".
    """
    ensemble = load_ensemble(model)
    classes, device = ensemble.inputs.classes, find_device("auto")
    if not ensemble.inputs.neutral:
        raise ValueError(
            f"--model expected a run that was trained with --with-neutral, got {model}; hsta-fast predict "
            "classifies spotted intervals with any run"
        )
    recipe = Request(detector=detector, face=face).recipe(ensemble.inputs, ensemble.sampling)

    def of(stream: FrameStream) -> Score:
        def score(windows: Sequence[Interval]) -> np.ndarray:
            places = {(one.onset, one.offset): one.apex for one in windows}
            clips = [Clip(onset, offset, apex) for (onset, offset), apex in places.items()]
            found = {
                (one.onset, one.offset): [one.probabilities[name] for name in classes]
                for one in predict_clips(ensemble, stream, clips, recipe, device, failed=[])
            }
            unknown = [float("nan")] * len(classes)
            return np.array([found.get((one.onset, one.offset), unknown) for one in windows])

        return score

    return of, classes
