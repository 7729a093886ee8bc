"""What is predicted of a video, as values, JSON, rows of a table, and text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ..clips import counted
from ..faces import Face
from ..files import one_line
from .calibration import Calibration

UNCALIBRATED = "not calibrated: how often such a prediction is right is not known"


def how_sure(calibration: Calibration | None, models: int) -> str:
    """The sentence on probabilities; models: how many are averaged."""
    if calibration is None:
        return UNCALIBRATED
    clause = f"; measured on single models, not on the mean of {models} that is shown here"
    return f"{calibration}{clause * (models > 1)}"


@dataclass(frozen=True, kw_only=True)
class PredictedInterval:
    """One clip, or one spotted movement.

    Attributes:
        onset: number of its first frame, from 0.
        apex: number of the frame in which the movement is largest.
        offset: number of its last frame.
        seconds: the times of these three from the start of the video; None where no rate is known.
        score: that of spotting; None for a clip that was given.
        probabilities: by class; the mean over the models, as `hsta-fast evaluate` has them for one model.
        calibrated: the same from logits that were divided by the temperature; None without calibration.
        answers: the classes that it may have: of a spotted movement all but "nothing", which was ruled out.
        votes: by class, how many of the models predict it.
        unsure: whether its calibrated probability is below the threshold; None without calibration.
        face: in pixels of the video; None if none was looked for.
        lost_face: of a clip that was given, whether the face is elsewhere, or nowhere, in its last frame.
    """

    onset: int
    apex: int
    offset: int
    seconds: tuple[float, float, float] | None
    score: float | None
    probabilities: Mapping[str, float]
    calibrated: Mapping[str, float] | None
    answers: tuple[str, ...]
    votes: Mapping[str, int]
    unsure: bool | None
    face: Face | None
    lost_face: bool = False

    @property
    def predicted(self) -> str:
        """The class with the largest probability among `answers`."""
        shares = self.calibrated or self.probabilities
        return max(self.answers, key=lambda name: shares[name])

    @property
    def confidence(self) -> float:
        """Its probability, calibrated where there is a calibration."""
        return (self.calibrated or self.probabilities)[self.predicted]

    def as_json(self) -> dict[str, Any]:
        """Plain values: see docs/predict.md."""
        names = ("onset", "apex", "offset")
        times = dict(zip(names, self.seconds, strict=True)) if self.seconds else None
        face = self.face and {
            name: getattr(self.face, name) for name in ("x", "y", "width", "height", "score")
        }
        return {
            **{name: getattr(self, name) for name in names},
            "seconds": times,
            "score": self.score,
            "class": self.predicted,
            "probability": self.confidence,
            "unsure": self.unsure,
            "probabilities": dict(self.probabilities),
            "calibrated": self.calibrated and dict(self.calibrated),
            "votes": dict(self.votes),
            "face": face,
        }


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is predicted of one video.

    Attributes:
        video: its path as it was given.
        frames: how many it has.
        rate: frames a second; None where it is not known.
        size: (width, height) of its frames.
        intervals: in order of their onsets.
        failed: sentences on intervals that could not be predicted.
        dropped: how many spotted movements the models took for nothing.
        spotted: whether the intervals were spotted; False for a clip that was given.
        model: name of the run or of the model's file.
        models: the names of the models whose probabilities are averaged.
        classes: in the order of the logits.
        calibration: None where there is none.
        warnings: what a reader must know, the most important first.
        energy: of a spotted video, the movement at each frame, float32 (frames,); else None.
        threshold: what counts as one, likewise.
        times: of each frame in seconds, float64 (frames,), likewise.
        seen: whether a face was seen at each frame, bool (frames,), likewise.
        boxes: the face at some of the frames, in pixels of the video.
    """

    video: str
    frames: int
    rate: float | None
    size: tuple[int, int]
    intervals: tuple[PredictedInterval, ...]
    failed: tuple[str, ...]
    spotted: bool
    model: str
    models: tuple[str, ...]
    classes: tuple[str, ...]
    calibration: Calibration | None
    warnings: tuple[str, ...]
    dropped: int = 0
    energy: np.ndarray | None = None
    threshold: np.ndarray | None = None
    times: np.ndarray | None = None
    seen: np.ndarray | None = None
    boxes: Mapping[int, Face] = field(default_factory=dict)

    @property
    def predictor(self) -> str:
        """The model in words: of a run also its fold, or how many models it has."""
        if self.models == (self.model,):
            return self.model
        of = f"fold {self.models[0]}" if len(self.models) == 1 else f"the mean of {len(self.models)} models"
        return f"{self.model} ({of})"

    def as_json(self) -> dict[str, Any]:
        """Plain values: see docs/predict.md."""
        width, height = self.size
        return {
            "video": self.video,
            "frames": self.frames,
            "rate": self.rate,
            "width": width,
            "height": height,
            "spotted": self.spotted,
            "model": self.model,
            "models": list(self.models),
            "classes": list(self.classes),
            "calibration": self.calibration and self.calibration.as_json(),
            "intervals": [interval.as_json() for interval in self.intervals],
            "failed": list(self.failed),
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """The text that the command prints."""
        width, height = self.size
        rate = "" if self.rate is None else f" at {self.rate:.4g} a second"
        lines = [f"{one_line(self.video)}: {counted(self.frames, 'frame')} of {width} x {height}{rate}"]
        lines += [f"warning: {warning}" for warning in self.warnings]
        what = "spotted movement" if self.spotted else "clip"
        lines.append(f"{counted(len(self.intervals), what)}, predicted by {self.predictor}")
        lines += _table(self)
        if self.dropped:
            lines.append(f"the models took {counted(self.dropped, 'spotted movement')} for nothing")
        lines += [f"not predicted: {what}" for what in self.failed]
        lines.append(f"probabilities: {how_sure(self.calibration, len(self.models))}")
        return "\n".join(lines)


def why_none(prediction: Prediction) -> str:
    """Why a spotted video has no interval."""
    if not prediction.boxes:
        return "the face was not found"
    if prediction.failed:
        return "what was spotted could not be predicted"
    if prediction.dropped:
        return f"the models took {counted(prediction.dropped, 'spotted movement')} for nothing"
    return "no movement of the face is above the threshold"


def _table(prediction: Prediction) -> list[str]:
    if not prediction.intervals:
        return []
    rows = [["time", "onset", "apex", "offset", "class", "", *prediction.classes]]
    for one in prediction.intervals:
        time = f"{clock(one.seconds[0])}" if one.seconds else "-"
        shares = one.calibrated or one.probabilities
        verdict = "unsure" if one.unsure else ""
        numbers = [f"{shares[name]:.2f}" for name in prediction.classes]
        rows.append([time, *map(str, (one.onset, one.apex, one.offset)), one.predicted, verdict, *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = {4, 5}
    return [
        "  ".join(
            cell.ljust(width) if place in text else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def clock(seconds: float) -> str:
    """A time as minutes and seconds, 1:02.345, with hours where there are any."""
    minutes, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{rest:06.3f}"


def table(predictions: Iterable[Prediction], classes: Sequence[str], *, calibrated: bool) -> pd.DataFrame:
    """One row for each interval: see docs/predict.md. The columns are the same without any."""
    places = [f"{name}_seconds" for name in ("onset", "apex", "offset")]
    columns = ["video", "onset", "apex", "offset", *places, "score", "class", "probability", "unsure"]
    columns += [f"p_{name}" for name in classes]
    columns += [f"calibrated_{name}" for name in classes] if calibrated else []
    columns += [f"face_{name}" for name in ("x", "y", "width", "height")]
    found = []
    for prediction in predictions:
        for one in prediction.intervals:
            values = one.as_json()
            times, face = values["seconds"] or {}, values["face"] or {}
            row = {"video": prediction.video, "onset": one.onset, "apex": one.apex, "offset": one.offset}
            row |= {f"{name}_seconds": times.get(name) for name in ("onset", "apex", "offset")}
            row |= {"score": one.score, "class": one.predicted, "probability": one.confidence}
            row |= {"unsure": one.unsure} | {f"p_{name}": share for name, share in one.probabilities.items()}
            row |= {f"calibrated_{name}": share for name, share in (one.calibrated or {}).items()}
            row |= {f"face_{name}": face.get(name) for name in ("x", "y", "width", "height")}
            found.append(row)
    return pd.DataFrame(found, columns=columns)
