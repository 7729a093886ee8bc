"""Parts of a recording scored by a run's models, for the intervals that `hsta-fast spot --model` refines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..data.frames.stream import FrameStream
from ..faces import Detector
from ..spotting.refine import Score
from ..training.setup import find_device
from .ensemble import load_ensemble
from .recording import predict_clips
from .refining import score_by
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
        return score_by(
            lambda clips: predict_clips(ensemble, stream, clips, recipe, device, failed=[]), classes
        )

    return of, classes
