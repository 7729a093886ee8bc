"""How sure a prediction is: a temperature and a threshold from a run's own held-out predictions.

1. Temperature scaling (Guo et al., 2017): probabilities softmax(log p / T), with the T that minimises the
   negative log-likelihood of the true classes of the test clips, each predicted by the model that had not
   seen its subject.
2. The threshold: the smallest confidence (the largest probability) at which the predictions that have at
   least this one are right in the wanted part of the cases.

Both are fitted on the clips on which they are stated: two numbers, from as many clips as the run has tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from ..protocol.predictions import run_predictions

FEWEST_CLIPS = 50  # with fewer, a temperature is a guess
FEWEST_SURE = 20  # sure predictions of which an accuracy is stated
TEMPERATURES = (0.05, 20.0)  # the range that is searched


@dataclass(frozen=True)
class Calibration:
    """A temperature and a threshold, and what they were fitted on.

    Attributes:
        temperature: T; above 1 where the model was too sure.
        threshold: the smallest calibrated probability that is sure; None where no threshold reaches the
            wanted accuracy, so that every prediction is unsure.
        wanted: the accuracy that the sure predictions were to have.
        clips: held-out predictions.
        sure_clips: those with at least the threshold.
        accuracy: of all of them.
        accuracy_sure: of the sure ones; None if there are none.
        accuracy_unsure: of the others; None if there are none.
    """

    temperature: float
    threshold: float | None
    wanted: float
    clips: int
    sure_clips: int
    accuracy: float
    accuracy_sure: float | None
    accuracy_unsure: float | None

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """softmax(logits / T) over the last axis."""
        return np.asarray(softmax(logits / self.temperature, axis=-1))

    def is_sure(self, confidence: float) -> bool:
        """Whether a largest calibrated probability reaches the threshold."""
        return self.threshold is not None and confidence >= self.threshold

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        """In one sentence."""
        fitted = f"temperature {self.temperature:.2f}, fitted on {self.clips} held-out clips of the run"
        if self.threshold is None:
            return (
                f"{fitted} (accuracy {self.accuracy:.2f}); no threshold gives {self.wanted:.2f}, so every "
                "prediction is unsure"
            )
        below = "" if self.accuracy_unsure is None else f", below it in {self.accuracy_unsure:.0%}"
        return (
            f"{fitted}; a prediction is unsure below {self.threshold:.2f}: from there on "
            f"{self.accuracy_sure:.0%} of {self.sure_clips} clips were right{below}"
        )


def calibrate(path: Path, classes: Sequence[str], wanted: float) -> Calibration | None:
    """The calibration from a run's predictions.csv; None if it is not there, or has few clips.

    Args:
        path: predictions.csv.
        classes: the class names of the run's models, in their order.
        wanted: the accuracy that sure predictions should have.

    Raises:
        ValueError: the table cannot be read, or has other classes.
    """
    if not path.exists():  # only its calibration needs it
        return None
    found = run_predictions(path)
    if found.classes != list(classes):
        got = ", ".join(found.classes)
        raise ValueError(f"{path} expected the classes {', '.join(classes)} of the models, got {got}")
    if len(found.rows) < FEWEST_CLIPS:
        return None
    probabilities = found.rows[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    return fit(probabilities, found.rows["label"].to_numpy(np.int64), wanted)


def fit(probabilities: np.ndarray, labels: np.ndarray, wanted: float) -> Calibration:
    """The calibration for held-out probabilities (n, classes), float64, and their true classes (n,)."""
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    temperature = best_temperature(logits, labels)
    scaled = softmax(logits / temperature, axis=-1)
    confidence, right = scaled.max(1), scaled.argmax(1) == labels
    threshold = lowest_threshold(confidence, right, wanted)
    sure = np.zeros(len(labels), bool) if threshold is None else confidence >= threshold
    return Calibration(
        temperature=temperature,
        threshold=threshold,
        wanted=wanted,
        clips=len(labels),
        sure_clips=int(sure.sum()),
        accuracy=float(right.mean()),
        accuracy_sure=float(right[sure].mean()) if sure.any() else None,
        accuracy_unsure=float(right[~sure].mean()) if not sure.all() else None,
    )


def negative_log_likelihood(temperature: float, logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log softmax(logits / T) at the true classes."""
    scaled = logits / temperature
    top = scaled.max(1)
    sums = top + np.log(np.exp(scaled - top[:, None]).sum(1))
    return float((sums - scaled[np.arange(len(labels)), labels]).mean())


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T of `TEMPERATURES` with the smallest negative log-likelihood, which is convex in 1 / T."""
    from scipy.optimize import minimize_scalar

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(np.exp(log_t), logits, labels),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def lowest_threshold(confidence: np.ndarray, right: np.ndarray, wanted: float) -> float | None:
    """The smallest confidence at which predictions with at least this one are right in `wanted` of the cases.

    None if there is none that leaves `FEWEST_SURE` predictions.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last_of_equal = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    fits = last_of_equal & (accuracy >= wanted) & (np.arange(1, len(order) + 1) >= FEWEST_SURE)
    return float(sorted_confidence[np.flatnonzero(fits)[-1]]) if fits.any() else None
