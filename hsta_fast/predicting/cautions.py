"""What every output says to its reader: what a prediction is not, and what is unusual about this video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..data.frames.stream import FrameStream
from ..data.remarks import SLOWEST, is_slow
from ..faces import Face
from ..spotting.spotter import Kind
from .calibration import FEWEST_CLIPS
from .clip_inputs import Recipe
from .ensemble import Ensemble

FEELING = (
    "a facial movement is not a feeling: nothing here says what somebody feels, means or hides, and it must "
    "not be used to judge people"
)
SMALL_FACE = 100  # pixels; below, a movement of 1 % of the face is less than a pixel
SAID: frozenset[Kind] = frozenset({"low rate", "small face"})  # kinds of `Spotted.notes` that `cautions` says


def cautions(
    ensemble: Ensemble,
    stream: FrameStream,
    faces: Sequence[Face],
    boxes: Mapping[int, Face],
    recipe: Recipe,
) -> list[str]:
    """Sentences for the reader, the most important first.

    Args:
        ensemble: the models.
        stream: the recording.
        faces: those that were found in the intervals.
        boxes: those that were found all over the recording.
        recipe: how clips were shown.
    """
    found = [FEELING, *(f"the model's file says: {text.rstrip('.')}" for text in ensemble.caveats)]
    if stream.rate is None:
        found.append("the frame rate is not known (--fps gives it): times are missing")
    elif is_slow(stream.rate):
        found.append(
            f"{stream.rate:.4g} frames a second: a micro-expression lasts 1/25 to 1/3 second, and models are "
            f"trained on recordings of {SLOWEST} and more"
        )
    heights = [face.height for face in faces]
    if boxes:  # the median: one of many may be wrong
        heights.append(float(np.median([face.height for face in boxes.values()])))
    if heights and min(heights) < SMALL_FACE:
        found.append(
            f"the face is {min(heights):.0f} pixels high: a micro-expression moves it by about 1 %, which is "
            "less than a pixel"
        )
    found.append(_other_data(recipe, has_face=bool(faces or boxes)))
    if ensemble.calibration is None:
        found.append(_uncalibrated(ensemble))
    return [*found, *stream.remarks]


def _other_data(recipe: Recipe, *, has_face: bool) -> str:
    others = "the model has seen other people, cameras and light than these"
    inputs = recipe.inputs
    if not has_face and (recipe.crop_face is not None or recipe.framing is not None):
        return others
    if recipe.crop_face is not None and recipe.crop_face == inputs.crop_face:
        return f"{others}; faces are cut out as in the training"
    if recipe.crop_face is not None:
        return f"{others}; faces are cut out with a margin of {recipe.crop_face:g}, other than in training"
    if recipe.framing is not None:
        return f"{others}; the face is shown where faces lay in its pictures"
    if inputs.framing is None and inputs.crop_face is None:
        return (
            f"{others}, and its file does not say where faces lay: pictures are shown whole, which is wrong "
            "unless the face lies as in the training (--crop-face cuts it out)"
        )
    return f"{others}; pictures are shown whole, as asked for"


def _uncalibrated(ensemble: Ensemble) -> str:
    if len(ensemble.readers) == 1 and ensemble.size == 0:
        return (
            "the model comes without its run: its probabilities are not calibrated, and none is called unsure"
        )
    return (
        f"the run has no predictions.csv, or fewer than {FEWEST_CLIPS} clips in it: its probabilities are "
        "not calibrated, and none is called unsure"
    )
