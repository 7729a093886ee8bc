"""The misclassified clips that a report shows: which ones, and their pictures, which each fold has left."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..clips import KEY, natural_key
from ..files import write_text
from .predictions import units_among
from .run_scores import read_json
from .unit_scores import predicted_of, truth_of

GALLERY = "gallery.json"  # in the folder of a fold
PER_PAIR = 4  # the most clips of one (true, predicted) pair of classes

ClipKey = tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A picture of a clip: JPEG bytes, and what they show."""

    title: str
    jpeg: bytes


@dataclass(frozen=True, kw_only=True)
class WrongClip:
    """A misclassified clip, its fold, and the probability of the class that was predicted for it."""

    key: ClipKey
    fold: str
    truth: str
    predicted: str
    probability: float
    pictures: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The clips that are shown, and how many are misclassified in all."""

    clips: list[WrongClip]
    errors: int


def worst_errors(predictions: pd.DataFrame, count: int) -> pd.DataFrame:
    """The misclassified clips with the highest probability of the wrong class, the highest first.

    At most PER_PAIR clips of each pair (label, predicted), at most `count` in all; equal probabilities are
    in natural order of the keys. Whatever a run shows of a fold, the fold by itself shows too.

    Args:
        predictions: dataset, subject, clip, onset, label, predicted, and the p_<class name> in order; or
            those of action units, see `worst_decisions`.
        count: the most clips.

    Returns:
        Those rows, with their index and a column `probability`.
    """
    if units := units_among(predictions.columns):
        predictions = worst_decisions(predictions, units)
    shares = predictions[[c for c in predictions.columns if str(c).startswith("p_")]].to_numpy()
    rows = predictions.assign(probability=shares[np.arange(len(shares)), predictions["predicted"]])
    wrong = rows[rows["label"] != rows["predicted"]]
    names = [tuple(natural_key(part) for part in key) for key in _keys(wrong)]
    order = sorted(range(len(wrong)), key=lambda i: (-wrong["probability"].iloc[i], names[i]))
    wrong = wrong.iloc[order]
    return wrong[wrong.groupby(["label", "predicted"]).cumcount() < PER_PAIR].head(count)


def worst_decisions(predictions: pd.DataFrame, units: Sequence[str]) -> pd.DataFrame:
    """Predictions of action units as predictions of classes: each clip as its most confident wrong decision.

    The classes are `pairs_of(units)`. A clip without a wrong decision has one of its right ones.
    """
    shares = predictions[[f"p_{unit}" for unit in units]].to_numpy(dtype=np.float64)
    truth, predicted = truth_of(predictions, units), predicted_of(predictions, units)
    confidence = np.where(predicted == 1, shares, 1 - shares)
    unit = np.where(truth != predicted, confidence, -1).argmax(1)
    rows = np.arange(len(predictions))
    both = np.stack([1 - shares, shares], 2).reshape(len(rows), 2 * len(units))
    return predictions[[*KEY, "fold"]].assign(
        label=2 * unit + truth[rows, unit],
        predicted=2 * unit + predicted[rows, unit],
        **{f"p_{name}": both[:, place] for place, name in enumerate(pairs_of(units))},
    )


def pairs_of(units: Sequence[str]) -> list[str]:
    """The two decisions of each unit, as names of classes."""
    return [name for unit in units for name in (f"no {unit}", unit)]


def write_gallery(folder: Path, count: int, errors: pd.DataFrame, pictures: Sequence[list[Picture]]) -> None:
    """Write the pictures of a fold's clips, the rows of `errors`; count: the most clips of the run."""
    clips = [
        dict(zip(KEY, key, strict=True))
        | {"pictures": [{"title": p.title, "jpeg": b64encode(p.jpeg).decode()} for p in shown]}
        for key, shown in zip(_keys(errors), pictures, strict=True)
    ]
    write_text(folder / GALLERY, json.dumps({"count": count, "clips": clips}, ensure_ascii=False) + "\n")


def read_gallery(run_dir: Path, predictions: pd.DataFrame, classes: Sequence[str]) -> Gallery | None:
    """The gallery of a run, from the pictures in the folders of its folds; None if there are none.

    Of action units, `classes` are the units.

    Raises:
        ValueError: a file of pictures is damaged; the message names it.
    """
    count, pictures = 0, dict[ClipKey, list[Picture]]()
    for path in sorted(run_dir.glob(f"folds/*/{GALLERY}")):
        of_run, of_clips = _read(path)
        count = max(count, of_run)
        pictures |= of_clips
    if units_among(predictions.columns):
        predictions, classes = worst_decisions(predictions, classes), pairs_of(classes)
    shown = worst_errors(predictions, count)
    clips = [
        WrongClip(
            key=key,
            fold=fold,
            truth=classes[label],
            predicted=classes[predicted],
            probability=probability,
            pictures=pictures[key],
        )
        for key, fold, label, predicted, probability in zip(
            _keys(shown),
            *(shown[column] for column in ("fold", "label", "predicted", "probability")),
            strict=True,
        )
        if key in pictures
    ]
    errors = int((predictions["label"] != predictions["predicted"]).sum())
    return Gallery(clips=clips, errors=errors) if clips else None


def _read(path: Path) -> tuple[int, Mapping[ClipKey, list[Picture]]]:
    saved = read_json(path, path.read_text(encoding="utf-8"))
    try:
        return int(saved["count"]), {
            tuple(str(clip[column]) for column in KEY): [
                Picture(str(picture["title"]), b64decode(picture["jpeg"])) for picture in clip["pictures"]
            ]
            for clip in saved["clips"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the pictures of a fold, got: {error!r}; delete the file"
        ) from error


def _keys(rows: pd.DataFrame) -> list[ClipKey]:
    return list(rows[list(KEY)].astype(str).itertuples(index=False, name=None))
