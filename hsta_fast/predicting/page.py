"""predict.html: the timeline of a video, its intervals, and where the models look; one file by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..clips import counted
from ..model import HSTAConfig
from ..protocol import Picture
from ..protocol.page import render
from ..protocol.report import import_matplotlib
from .clip_inputs import Clip, ClipInputs
from .ensemble import Ensemble
from .looks import look_pictures, looks, movement_pictures
from .result import PredictedInterval, Prediction, clock, how_sure, why_none

SHOWN = 24  # intervals with pictures; more would make a page of many megabytes
_TEMPLATE = Path(__file__).with_name("predict.html.j2")

Rows = list[tuple[str, list[Picture]]]


@dataclass
class Pictures:
    """Collects the pictures of a video's intervals while it is predicted.

    Attributes:
        ensemble: the models.
        device: where they run.
        wanted: onset and offset of the intervals that are shown.
        movement: the pictures of their movement.
        looks: those of where the models look.
    """

    ensemble: Ensemble
    device: torch.device
    wanted: set[tuple[int, int]] = field(default_factory=set)
    movement: dict[tuple[int, int], list[Picture]] = field(default_factory=dict)
    looks: dict[tuple[int, int], Rows] = field(default_factory=dict)

    def begin(self, clips: Sequence[Clip]) -> None:
        """Choose the clips that are shown: those with the highest scores of spotting."""
        best = sorted(clips, key=lambda clip: -(clip.score or 0))[:SHOWN]
        self.wanted = {(clip.onset, clip.offset) for clip in best}

    def add(self, clips: Sequence[ClipInputs], predicted: Sequence[PredictedInterval]) -> None:
        """Draw the clips of a group that are shown."""
        chosen = [clip for clip in clips if (clip.clip.onset, clip.clip.offset) in self.wanted]
        if not chosen:
            return
        config: HSTAConfig = next(self.ensemble.models())[1].config
        for clip, found in zip(chosen, looks(self.ensemble, chosen, self.device), strict=True):
            key = clip.clip.onset, clip.clip.offset
            self.movement[key] = movement_pictures(clip)
            self.looks[key] = look_pictures(clip, found, config)


def page(prediction: Prediction, pictures: Pictures) -> str:
    """The page as text.

    Args:
        prediction: what it shows.
        pictures: of its intervals, as far as they are shown.
    """
    import_matplotlib()
    from .timeline import color_of, timeline

    what = "spotted movement" if prediction.spotted else "clip"
    width, height = prediction.size
    rate = "frame rate not known" if prediction.rate is None else f"{prediction.rate:.4g} frames a second"
    long = "" if prediction.times is None else f", {clock(float(prediction.times[-1]))} long"
    models = len(prediction.models)
    shown = [one for one in prediction.intervals if (one.onset, one.offset) in pictures.movement]
    hidden = len(prediction.intervals) - len(shown)
    return render(
        _TEMPLATE,
        title=Path(prediction.video).name,
        extent=f"{counted(prediction.frames, 'frame')} of {width} x {height} pixels, {rate}{long}",
        by=f"Predicted by {prediction.predictor}",
        warnings=prediction.warnings,
        timeline=timeline(prediction) if prediction.spotted else None,
        heading=counted(len(prediction.intervals), what),
        heads=["", "class", "probability", "onset", "apex", "offset", *_spotting_head(prediction), "models"],
        rows=[_row(prediction, number, one) for number, one in enumerate(prediction.intervals, 1)],
        calibration=how_sure(prediction.calibration, models),
        why_none=why_none(prediction),
        has_gaps=prediction.seen is not None and not prediction.seen.all(),
        boxed=any(one.face is not None for one in shown),
        failed=prediction.failed,
        intervals=[
            {
                "title": _title(prediction, one),
                "predicted": one.predicted,
                "unsure": one.unsure,
                "color": color_of(prediction.classes, one.predicted),
                "where": _where(one),
                "shares": [
                    {
                        "name": name,
                        "value": (one.calibrated or one.probabilities)[name],
                        "raw": f"{one.probabilities[name]:.2f} uncalibrated" if one.calibrated else "",
                        "color": color_of(prediction.classes, name),
                    }
                    for name in prediction.classes
                ],
                "movement": pictures.movement[one.onset, one.offset],
                "looks": pictures.looks[one.onset, one.offset],
            }
            for one in shown
        ],
        left_out=f"{counted(hidden, 'interval', 'are')} shown without pictures: those with the lowest "
        f"scores of spotting, after the first {SHOWN}." * (hidden > 0),
    )


def _spotting_head(prediction: Prediction) -> list[str]:
    return ["score"] if prediction.spotted else []


def _title(prediction: Prediction, one: PredictedInterval) -> str:
    number = prediction.intervals.index(one) + 1
    return f"{number}. {clock(one.seconds[0])}" if one.seconds else f"{number}. frame {one.onset}"


def _where(one: PredictedInterval) -> str:
    frames = f"onset {one.onset}, apex {one.apex}, offset {one.offset}"
    if one.seconds is None:
        return f"frames: {frames}"
    return f"frames: {frames}; {1000 * (one.seconds[2] - one.seconds[0]):.0f} ms from onset to offset"


def _row(prediction: Prediction, number: int, one: PredictedInterval) -> list[Any]:
    places = one.seconds and [clock(value) for value in one.seconds]
    verdict = f"{one.predicted}, unsure" if one.unsure else one.predicted
    agree = f"{one.votes[one.predicted]} of {sum(one.votes.values())}"
    score = [f"{one.score:.1f}"] if prediction.spotted and one.score is not None else []
    where = places or [str(number) for number in (one.onset, one.apex, one.offset)]
    return [str(number), verdict, f"{one.confidence:.2f}", *where, *score, agree]
