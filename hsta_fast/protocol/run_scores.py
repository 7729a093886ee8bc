"""What a run's folder holds, checked: settings, metrics, faults of the data, predictions and their scores."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..clips import KEY, natural_key, subject_ids
from .metrics import (
    Scores,
    bootstrap_interval,
    majority_baseline,
    per_dataset,
    per_fold,
    score,
    unscored_classes,
)
from .predictions import read_text_table, run_predictions

# Keys of config.json that have a meaning in the report, which lists all others as settings.
NOTES, NUM_FOLDS, TRAIN_COUNTS, LEAKY = "notes", "num_folds", "train_counts", "leaky"
PROVENANCE = "provenance"
_CURVES = ("train_loss", "train_acc", "test_loss", "test_acc")
_FAULTS = (*KEY, "what", "action")
_EPOCHS = {
    "last": "the last one, fixed in advance; none was chosen by looking at test clips.",
    "inner": "in each fold the best on inner folds of its training subjects; no test clip was looked at.",
    "best-test-epoch": "in each fold the best on its own test clips, which makes the scores leaky.",
}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """A run's files, checked: what is the same whatever it predicts.

    notes: what a reader of its scores must know; leaky: why its scores are too high; epoch: which one was
    tested, in words; predictions: in the order of folds.
    """

    name: str
    config: dict[str, Any]
    notes: list[str]
    leaky: list[str]
    epoch: str
    num_folds: int
    predictions: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class RunScores(RunFiles):
    """A run's files, checked, and its scores."""

    classes: list[str]
    scores: Scores
    baseline: Scores
    interval: dict[str, tuple[float, float]] | None
    datasets: pd.DataFrame
    folds: pd.DataFrame
    fold_mean: dict[str, float]
    subjects: pd.DataFrame


def read_run(run_dir: Path) -> RunScores:
    """A run's settings, predictions and scores.

    Raises:
        ValueError: a file is missing or cannot be read; the message names the file and the place in it.
    """
    config = read_run_settings(run_dir)
    loaded = run_predictions(run_dir / "predictions.csv")
    classes = loaded.classes
    predictions = in_order_of_folds(loaded.rows)
    unscored = unscored_classes(classes, predictions["label"])
    columns = predictions["label"], predictions["predicted"]
    scores = score(*columns, len(classes), absent="zero", unscored=unscored)
    folds, fold_mean = per_fold(predictions, len(classes))
    scored = len(classes) - unscored
    notes = notes_on_scores(
        predictions, classes[:scored], scores.support[:scored], config[NUM_FOLDS], len(folds), "UF1 and UAR"
    )
    return RunScores(
        **vars(run_files(run_dir, config, predictions, notes)),
        classes=classes,
        scores=scores,
        baseline=majority_baseline(predictions, config[TRAIN_COUNTS], len(classes), unscored=unscored),
        interval=bootstrap_interval(predictions, len(classes), unscored=unscored),
        datasets=_datasets(predictions, len(classes)),
        folds=folds,
        fold_mean=fold_mean,
        subjects=_subjects(predictions),
    )


def run_files(
    run_dir: Path, config: dict[str, Any], predictions: pd.DataFrame, notes: Sequence[str]
) -> RunFiles:
    """The files of the run with this config.json; notes: what its predictions give rise to."""
    return RunFiles(
        name=run_dir.resolve().name,
        config=config,
        notes=[*config.get(NOTES, []), *notes],
        leaky=config.get(LEAKY, []),
        epoch=epoch_in_words(config, predictions),
        num_folds=config[NUM_FOLDS],
        predictions=predictions,
    )


def read_run_settings(run_dir: Path) -> dict[str, Any]:
    """The config.json of a run that has predictions, its keys with a meaning here checked.

    Raises:
        ValueError: a file is missing, or config.json cannot be read; the message names it.
    """
    needed = ("config.json", "metrics.jsonl", "predictions.csv")
    missing = [name for name in needed if not (run_dir / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir}: expected a run with {', '.join(needed)}; missing: {', '.join(missing)}")
    path = run_dir / "config.json"
    config = read_json(path, path.read_text(encoding="utf-8"))
    notes, num_folds = config.get(NOTES, []), config.get(NUM_FOLDS)
    train_counts = config.get(TRAIN_COUNTS)
    if not isinstance(num_folds, int) or num_folds < 1:
        raise ValueError(f"{path}: {NUM_FOLDS} expected a positive integer, got {num_folds!r}")
    if not isinstance(train_counts, dict):
        raise ValueError(f"{path}: {TRAIN_COUNTS} expected an object, got {train_counts!r}")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError(f"{path}: {NOTES} expected a list of strings, got {notes!r}")
    leaky = config.get(LEAKY, [])
    if not isinstance(leaky, list) or not all(isinstance(reason, str) for reason in leaky):
        raise ValueError(f"{path}: {LEAKY} expected a list of strings, got {leaky!r}")
    starts = config.get(PROVENANCE, [])
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ValueError(f"{path}: {PROVENANCE} expected a list of objects, got {starts!r}")
    return config


def notes_beside(predictions: Path) -> list[str]:
    """The notes of the run whose predictions this file holds; none if it does not lie in a run's folder."""
    if predictions.name != "predictions.csv":
        return []
    try:
        return list(read_run_settings(predictions.parent).get(NOTES, []))
    except ValueError:  # another program's folder
        return []


def in_order_of_folds(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows, the folds in natural order."""
    return predictions.sort_values("fold", key=lambda folds: folds.map(natural_key), kind="stable")


def notes_on_scores(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    support: Iterable[int],
    num_folds: int,
    done: int,
    means: str,
) -> list[str]:
    """What a reader of the scores must know, as far as the predictions tell.

    support: the test clips of each class; done: the finished folds; means: the scores that are means over
    the classes.
    """
    notes = []
    if done < num_folds:
        notes.append(unfinished(done, num_folds))
    absent = [name for name, n in zip(classes, support, strict=True) if n == 0]
    if absent:
        notes.append(f"No test clip of {', '.join(absent)}: counted as 0 in {means}.")
    folds_of = predictions["fold"].groupby(subject_ids(predictions)).nunique()
    shared = sorted(folds_of.index[folds_of > 1], key=natural_key)
    if shared:
        # A subject tested in two folds is training data of at least one of them.
        notes.append(f"Leak: subjects tested in more than one fold, so also trained on: {', '.join(shared)}.")
    return notes


def unfinished(done: int, num_folds: int) -> str:
    """The note of a run that has `done` of its folds."""
    return f"Unfinished: {done} of {num_folds} folds. The scores are of these folds only."


def epoch_in_words(config: dict[str, Any], predictions: pd.DataFrame) -> str:
    """How the scored epoch was chosen and, if folds choose their own, which one each chose."""
    how = _EPOCHS.get(config.get("select", "last"), "unknown")
    if config.get("select", "last") == "last" or "epoch" not in predictions:
        return how
    chosen = predictions.drop_duplicates("fold")[["fold", "epoch"]].itertuples(index=False, name=None)
    return f"{how} " + ", ".join(f"{fold}: {epoch}" for fold, epoch in chosen)


def headline(scores: Scores) -> dict[str, float]:
    """UF1, UAR and ACC."""
    return {"uf1": scores.uf1, "uar": scores.uar, "acc": scores.acc}


def _datasets(predictions: pd.DataFrame, num_classes: int) -> pd.DataFrame:
    """dataset, subjects, clips, uf1, uar, acc; one row per dataset."""
    people = predictions.groupby("dataset")["subject"].nunique()
    rows = [
        {"dataset": name, "subjects": int(people[name]), "clips": own.num_clips} | headline(own)
        for name, own in per_dataset(predictions, num_classes).items()
    ]
    return pd.DataFrame(rows)


def _subjects(predictions: pd.DataFrame) -> pd.DataFrame:
    """subject, fold, clips, correct, acc; one row per (subject, fold), in natural order of subjects."""
    rows = predictions.assign(subject=subject_ids(predictions))
    rows["correct"] = (rows["label"] == rows["predicted"]).astype(int)
    groups = rows.groupby(["subject", "fold"], sort=False)["correct"]
    counts = groups.agg(clips="size", correct="sum", acc="mean")
    return counts.reset_index().sort_values("subject", key=lambda ids: ids.map(natural_key), kind="stable")


def read_metrics(path: Path) -> pd.DataFrame:
    """fold, epoch and the four curves, one row per epoch of a fold; ValueError if a line is not whole."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = read_json(path, line, f" line {number}:")
        missing = [key for key in ("fold", "epoch", *_CURVES) if key not in row]
        if missing:
            raise ValueError(f"{path}: line {number}: missing: {', '.join(missing)}")
        if not all(isinstance(row[key], int | float) for key in ("epoch", *_CURVES)):
            raise ValueError(f"{path}: line {number}: expected numbers for epoch and {_CURVES}, got {line}")
        rows.append({key: row[key] for key in ("fold", "epoch", *_CURVES)})
    if not rows:
        raise ValueError(f"{path}: expected one line per epoch, got none")
    # A resumed run repeats the epoch in which it was killed.
    return pd.DataFrame(rows).drop_duplicates(["fold", "epoch"], keep="last")


def read_faults(path: Path) -> pd.DataFrame:
    """dataset, subject, clip, onset, what, action; no rows if there is no file."""
    if not path.exists() or not path.stat().st_size:
        return pd.DataFrame(columns=list(_FAULTS))
    return read_text_table(path, _FAULTS)[list(_FAULTS)]


def read_json(path: Path, text: str, place: str = "") -> dict[str, Any]:
    """The JSON object in `text`, which was read from `path`; ValueError if it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{place} expected a JSON object, got: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{place} expected a JSON object, got {type(value).__name__}")
    return value
