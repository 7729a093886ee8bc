"""The report of a run: all scores of its predictions, in one html file that needs no other file.

Reads config.json, metrics.jsonl, predictions.csv and, if present, faults.csv from the run's folder. Writes
curves.png, confusion.png, summary.json and report.html into it.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..clips import KEY, natural_key, subject_ids
from ..files import write_bytes, write_text
from . import page
from .metrics import Scores, bootstrap_interval, majority_baseline, per_dataset, per_fold, score
from .predictions import load_predictions, read_text_table

# Keys of config.json that have a meaning here; the report lists all others as settings.
_NOTES, _NUM_FOLDS, _TRAIN_COUNTS, _LEAKY = "notes", "num_folds", "train_counts", "leaky"
_PROVENANCE = "provenance"
_CURVES = ("train_loss", "train_acc", "test_loss", "test_acc")
_FAULTS = (*KEY, "what", "action")
_EPOCHS = {
    "last": "the last one, fixed in advance; none was chosen by looking at test clips.",
    "inner": "in each fold the best on inner folds of its training subjects; no test clip was looked at.",
    "best-test-epoch": "in each fold the best on its own test clips, which makes the scores leaky.",
}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run's files, checked, and its scores."""

    name: str
    config: dict[str, Any]
    notes: list[str]
    leaky: list[str]
    epoch: str
    num_folds: int
    predictions: pd.DataFrame
    classes: list[str]
    scores: Scores
    baseline: Scores
    interval: dict[str, tuple[float, float]] | None
    datasets: pd.DataFrame
    folds: pd.DataFrame
    fold_mean: dict[str, float]
    subjects: pd.DataFrame


def import_matplotlib() -> None:
    """Import matplotlib, which a command that draws nothing does not need.

    Its import fails where MPLBACKEND names a backend that is not installed, such as that of a notebook. The
    figures here need no backend, so such a name is ignored.

    Raises:
        ValueError: matplotlib cannot be imported, for instance because a matplotlibrc is not UTF-8.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except ValueError as error:
        raise ValueError(f"matplotlib, which draws the report, cannot be imported: {error}") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:  # for pyplot, if the caller uses it
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def write_report(run_dir: Path, trained: Mapping[str, float] | None = None) -> Path:
    """Score the finished folds of a run and write its figures, summary.json and report.html.

    config.json needs "num_folds", an int, the number of folds that the run will have, and "train_counts",
    {fold: number of training clips of each class}, for the majority baseline. Optional are "notes", a list of
    str shown as banners; "leaky", a list of str, why the scores are not to be trusted, shown on every output;
    and "select", how the epoch was chosen; "provenance", a list with a dictionary of how the run was made for
    each of its starts. All other keys are listed as settings.

    trained: what the trainings took: "epochs", "seconds", "clips_per_second".

    faults.csv (dataset, subject, clip, onset, what, action) may be absent or empty. A class without a test
    clip counts as zero, and a banner says so.

    Returns:
        The path of report.html.

    Raises:
        ValueError: a file is missing or cannot be read; the message names the file and the place in it.
    """
    import_matplotlib()
    from . import plots

    run_dir = Path(run_dir)
    run = _read_run(run_dir)
    metrics = _read_metrics(run_dir / "metrics.jsonl")
    faults = _read_faults(run_dir / "faults.csv")
    leaky = bool(run.leaky)
    curves = plots.png(plots.learning_curves(metrics, leaky=leaky))
    matrices = {"": run.scores.confusion}
    if len(run.datasets) > 1:
        own = per_dataset(run.predictions, len(run.classes))
        matrices |= {name: scores.confusion for name, scores in own.items()}
    confusions = {
        name: plots.png(plots.confusion_matrix(matrix, run.classes, leaky=leaky))
        for name, matrix in matrices.items()
    }
    summary = json.dumps(_summary(run, trained), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(run_dir / "curves.png", curves)
    write_bytes(run_dir / "confusion.png", confusions[""])
    write_text(run_dir / "summary.json", summary)
    report = run_dir / "report.html"
    write_text(report, _page(run, faults, curves, confusions, trained))
    return report


def table(run_dir: Path) -> str:
    """The scores of a run as text: pooled UF1, UAR, ACC and their baseline, F1 and recall of each class.

    Reads config.json and predictions.csv like `write_report`, with the same errors.
    """
    run = _read_run(Path(run_dir))
    lines = [f"{run.name}: {_extent(run)}", *(f"LEAKY: {reason}" for reason in run.leaky)]
    lines += [*(f"note: {note}" for note in run.notes), ""]
    lines += [f"{'pooled':<18}{'UF1':>13}{'UAR':>13}{'ACC':>13}"]
    lines += [f"{name:<18}" + "".join(f"{cell:>13}" for cell in cells) for name, *cells in _pooled_rows(run)]
    if len(run.datasets) > 1:
        lines += ["", f"{'dataset':<18}{'UF1':>13}{'UAR':>13}{'ACC':>13}"]
        for name, _, _, *values in run.datasets.itertuples(index=False):
            lines.append(f"{name:<18}" + "".join(f"{value:>13.3f}" for value in values))
    width = max(18, *(len(name) + 2 for name in run.classes))
    lines += ["", f"{'class':<{width}}{'F1':>8}{'recall':>8}{'clips':>8}"]
    lines += [f"{name:<{width}}{f1:>8}{recall:>8}{clips:>8}" for name, f1, recall, clips in _class_rows(run)]
    return "\n".join(lines)


def summary_of(run_dir: Path) -> dict[str, Any]:
    """The content of the summary.json that `write_report` wrote; ValueError if there is none."""
    path = Path(run_dir) / "summary.json"
    if not path.is_file():
        raise ValueError(f"{path}: expected the scores of a finished run, got no such file")
    return _json(path, path.read_text(encoding="utf-8"))


def _read_run(run_dir: Path) -> _Run:
    needed = ("config.json", "metrics.jsonl", "predictions.csv")
    missing = [name for name in needed if not (run_dir / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir}: expected a run with {', '.join(needed)}; missing: {', '.join(missing)}")
    path = run_dir / "config.json"
    config = _json(path, path.read_text(encoding="utf-8"))
    notes, num_folds = config.get(_NOTES, []), config.get(_NUM_FOLDS)
    train_counts = config.get(_TRAIN_COUNTS)
    if not isinstance(num_folds, int) or num_folds < 1:
        raise ValueError(f"{path}: {_NUM_FOLDS} expected a positive integer, got {num_folds!r}")
    if not isinstance(train_counts, dict):
        raise ValueError(f"{path}: {_TRAIN_COUNTS} expected an object, got {train_counts!r}")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError(f"{path}: {_NOTES} expected a list of strings, got {notes!r}")
    leaky = config.get(_LEAKY, [])
    if not isinstance(leaky, list) or not all(isinstance(reason, str) for reason in leaky):
        raise ValueError(f"{path}: {_LEAKY} expected a list of strings, got {leaky!r}")
    loaded = load_predictions(run_dir / "predictions.csv", strict=True)
    classes = loaded.classes
    predictions = loaded.rows.sort_values("fold", key=lambda folds: folds.map(natural_key), kind="stable")
    scores = score(predictions["label"], predictions["predicted"], len(classes), absent="zero")
    folds, fold_mean = per_fold(predictions, len(classes))
    return _Run(
        name=run_dir.resolve().name,
        config=config,
        notes=[*notes, *_notes(predictions, classes, scores, num_folds, len(folds))],
        leaky=leaky,
        epoch=_epoch(config, predictions),
        num_folds=num_folds,
        predictions=predictions,
        classes=classes,
        scores=scores,
        baseline=majority_baseline(predictions, train_counts, len(classes)),
        interval=bootstrap_interval(predictions, len(classes)),
        datasets=_datasets(predictions, len(classes)),
        folds=folds,
        fold_mean=fold_mean,
        subjects=_subjects(predictions),
    )


def _notes(
    predictions: pd.DataFrame, classes: Sequence[str], scores: Scores, num_folds: int, done: int
) -> list[str]:
    """What a reader of the scores must know, as far as the predictions tell."""
    notes = []
    if done < num_folds:
        notes.append(f"Unfinished: {done} of {num_folds} folds. The scores are of these folds only.")
    absent = [name for name, n in zip(classes, scores.support, strict=True) if n == 0]
    if absent:
        notes.append(f"No test clip of {', '.join(absent)}: counted as 0 in UF1 and UAR.")
    folds_of = predictions["fold"].groupby(subject_ids(predictions)).nunique()
    shared = sorted(folds_of.index[folds_of > 1], key=natural_key)
    if shared:
        # A subject tested in two folds is training data of at least one of them.
        notes.append(f"Leak: subjects tested in more than one fold, so also trained on: {', '.join(shared)}.")
    return notes


def _epoch(config: dict[str, Any], predictions: pd.DataFrame) -> str:
    """How the scored epoch was chosen and, if folds choose their own, which one each chose."""
    how = _EPOCHS.get(config.get("select", "last"), "unknown")
    if config.get("select", "last") == "last" or "epoch" not in predictions:
        return how
    chosen = predictions.drop_duplicates("fold")[["fold", "epoch"]].itertuples(index=False, name=None)
    return f"{how} " + ", ".join(f"{fold}: {epoch}" for fold, epoch in chosen)


def _datasets(predictions: pd.DataFrame, num_classes: int) -> pd.DataFrame:
    """dataset, subjects, clips, uf1, uar, acc; one row per dataset."""
    people = predictions.groupby("dataset")["subject"].nunique()
    rows = [
        {"dataset": name, "subjects": int(people[name]), "clips": own.num_clips} | _headline(own)
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


def _read_metrics(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = _json(path, line, f" line {number}:")
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


def _read_faults(path: Path) -> pd.DataFrame:
    if not path.exists() or not path.stat().st_size:
        return pd.DataFrame(columns=list(_FAULTS))
    return read_text_table(path, _FAULTS)[list(_FAULTS)]


def _json(path: Path, text: str, place: str = "") -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{place} expected a JSON object, got: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{place} expected a JSON object, got {type(value).__name__}")
    return value


def _summary(run: _Run, trained: Mapping[str, float] | None) -> dict[str, Any]:
    scores = run.scores
    classes = zip(run.classes, scores.f1, scores.recall, scores.support, strict=True)
    return {
        "run": run.name,
        "notes": run.notes,
        "leaky": run.leaky,
        "epoch": run.epoch,
        "folds": len(run.folds),
        "num_folds": run.num_folds,
        "subjects": int(run.subjects["subject"].nunique()),
        "clips": scores.num_clips,
        "pooled": _headline(scores),
        "interval": run.interval,
        "majority_baseline": _headline(run.baseline),
        "per_dataset": run.datasets.to_dict(orient="records"),
        "classes": [
            {"name": name, "f1": float(f1), "recall": float(recall), "clips": int(n)}
            for name, f1, recall, n in classes
        ],
        "confusion": scores.confusion.tolist(),
        "per_fold": run.folds.to_dict(orient="records"),
        "per_fold_mean": run.fold_mean,
        "trained": trained and dict(trained),
        "provenance": run.config.get(_PROVENANCE, []),
    }


def _headline(scores: Scores) -> dict[str, float]:
    return {"uf1": scores.uf1, "uar": scores.uar, "acc": scores.acc}


def _extent(run: _Run) -> str:
    subjects = run.subjects["subject"].nunique()
    return f"{run.scores.num_clips} clips, {subjects} subjects, {len(run.folds)} of {run.num_folds} folds"


def _class_rows(run: _Run) -> list[tuple[str, str, str, int]]:
    """Name, F1, recall and clips of each class, formatted."""
    columns = zip(run.classes, run.scores.f1, run.scores.recall, run.scores.support, strict=True)
    return [(name, f"{f1:.3f}", f"{recall:.3f}", int(clips)) for name, f1, recall, clips in columns]


def _page(
    run: _Run,
    faults: pd.DataFrame,
    curves: bytes,
    confusions: dict[str, bytes],
    trained: Mapping[str, float] | None,
) -> str:
    meanings = ("mean F1 over classes", "mean recall over classes", "share of clips right")
    scores, baselines = _headline(run.scores), _headline(run.baseline)
    known = (_NOTES, _TRAIN_COUNTS, _LEAKY, _PROVENANCE)
    return page.render(
        title=run.name + (" (leaky)" if run.leaky else ""),
        extent=_extent(run),
        leaky=run.leaky,
        notes=run.notes,
        cards=[
            {
                "name": name.upper(),
                "meaning": meaning,
                "value": scores[name],
                "baseline": baselines[name],
                "interval": _interval(run, name),
            }
            for name, meaning in zip(scores, meanings, strict=True)
        ],
        epoch=run.epoch,
        pooled=_pooled_rows(run),
        datasets=_rows(run.datasets),
        classes=_class_rows(run),
        confusions={
            f"Confusion matrix{name and f' of {name}'}: rows the truth, columns the prediction": png
            for name, png in confusions.items()
        },
        curves=curves,
        folds=_rows(run.folds),
        fold_mean=list(run.fold_mean.values()),
        subjects=_rows(run.subjects),
        faults=_rows(faults),
        starts=_starts(run.config.get(_PROVENANCE, [])),
        trained=trained,
        settings=page.flatten({key: value for key, value in run.config.items() if key not in known}),
    )


def _starts(entries: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, str]]]:
    """The lines of each start of a run: of the first one all, of the others their end and what is new."""
    starts: list[list[tuple[str, str]]] = []
    before: Mapping[str, Any] = {}
    for entry in entries:
        new = {key: value for key, value in entry.items() if value is not None and value != before.get(key)}
        ended = entry.get("ended") or "not yet, or killed"
        starts.append(page.flatten({**new, "ended": ended}))
        before = entry
    return starts


def _rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame.itertuples(index=False, name=None))


def _pooled_rows(run: _Run) -> list[list[str]]:
    """The rows of the pooled table: name, UF1, UAR, ACC, formatted."""
    lines = [("model" + (" (leaky)" if run.leaky else ""), run.scores), ("majority class", run.baseline)]
    rows = [[name, *(f"{value:.3f}" for value in _headline(scores).values())] for name, scores in lines]
    if run.interval is not None:
        rows.insert(1, ["95 % over subjects", *(_interval(run, name) for name in ("uf1", "uar", "acc"))])
    return rows


def _interval(run: _Run, name: str) -> str:
    if run.interval is None:
        return "one subject: no interval"
    low, high = run.interval[name]
    return f"{low:.3f}-{high:.3f}"
