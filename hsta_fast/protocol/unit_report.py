"""The report of a run of action units: report.html, summary.json, scores.tex, and its table as text.

Reads and writes the files of a run as report.py does for classes; there is no confusion matrix.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..clips import counted, natural_key, subject_ids
from . import page
from .gallery import Gallery
from .latex import escape, remarks, tabular
from .predictions import read_unit_predictions
from .run_scores import (
    NUM_FOLDS,
    PROVENANCE,
    RunFiles,
    in_order_of_folds,
    notes_on_scores,
    read_run_settings,
    run_files,
)
from .unit_scores import (
    Interval,
    UnitScores,
    always_present,
    predicted_of,
    score_table,
    truth_of,
    unit_intervals,
    unit_scores_by,
)

TEMPLATE = Path(__file__).with_name("units.html.j2")


@dataclass(frozen=True, kw_only=True)
class UnitRun(RunFiles):
    """The files of a run of action units, checked, and its scores.

    datasets, folds: the scores of the clips of each; subjects: subject, fold, clips, all_right (clips of
    which every unit is right), share_right (of the decisions); one row per (subject, fold).
    """

    units: list[str]
    scores: UnitScores
    baseline: UnitScores
    intervals: dict[str, Interval] | None
    datasets: Mapping[str, UnitScores]
    folds: Mapping[str, UnitScores]
    subjects: pd.DataFrame


def read_unit_run(run_dir: Path) -> UnitRun:
    """A run's settings, predictions and scores.

    Raises:
        ValueError: a file is missing or cannot be read; the message names the file and the place in it.
    """
    config = read_run_settings(run_dir)
    rows, units = read_unit_predictions(run_dir / "predictions.csv")
    predictions = in_order_of_folds(rows)
    scores, folds = score_table(predictions, units), unit_scores_by(predictions, units, "fold")
    notes = notes_on_scores(predictions, units, scores.support, config[NUM_FOLDS], len(folds), "the mean F1")
    return UnitRun(
        **vars(run_files(run_dir, config, predictions, notes)),
        units=units,
        scores=scores,
        baseline=always_present(predictions, units),
        intervals=unit_intervals(predictions, units),
        datasets=unit_scores_by(predictions, units, "dataset"),
        folds=folds,
        subjects=_subjects(predictions, units),
    )


def unit_table(run: UnitRun) -> str:
    """The scores of a run as text: the mean F1, its interval and baseline, and F1 of each unit."""
    lines = [f"{run.name}: {extent(run)}", *(f"LEAKY: {reason}" for reason in run.leaky)]
    lines += [*(f"note: {note}" for note in run.notes), ""]
    lines += [f"{'mean over units':<18}{'F1':>13}{'F1 both':>13}"]
    lines += [f"{name:<18}" + "".join(f"{cell:>13}" for cell in cells) for name, *cells in pooled_rows(run)]
    lines += [
        "",
        f"{'unit':<8}{'F1':>8}{'95 %':>13}{'present':>9}{'F1 both':>9}{'clips':>7}{'predicted':>11}",
    ]
    lines += [
        f"{name:<8}{f1:>8}{interval:>13}{present:>9}{both:>9}{clips:>7}{predicted:>11}"
        for name, f1, interval, present, both, clips, predicted in unit_rows(run)
    ]
    if len(run.datasets) > 1:
        heads, rows = dataset_rows(run)
        width = max(18, *(len(row[0]) + 2 for row in rows))
        lines += ["", f"{heads[0]:<{width}}" + "".join(f"{head:>8}" for head in heads[1:])]
        lines += [f"{row[0]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
    return "\n".join(lines)


def render_page(
    run: UnitRun,
    faults: list[tuple[Any, ...]],
    curves: bytes,
    gallery: Gallery | None,
    trained: Mapping[str, float] | None,
    common: Mapping[str, Any],
) -> str:
    """report.html; common: the variables that the page of any run has."""
    meanings = {"f1": "mean over units of F1", "f1_both": "mean over units of F1 of present and absent"}
    cards = [
        {
            "name": {"f1": "F1", "f1_both": "F1 both"}[name],
            "meaning": meaning,
            "value": getattr(run.scores, name),
            "baseline": getattr(run.baseline, name),
            "interval": _interval(run, name),
        }
        for name, meaning in meanings.items()
    ]
    heads, rows = dataset_rows(run)
    folds = [
        (name, len(part), subject_ids(part).nunique(), own.f1, own.f1_both)
        for (name, own), (_, part) in zip(
            run.folds.items(), run.predictions.groupby("fold", sort=False), strict=True
        )
    ]
    return page.render(
        TEMPLATE,
        extent=extent(run),
        cards=cards,
        baseline_name="always present",
        pooled=pooled_rows(run),
        units=unit_rows(run),
        dataset_heads=heads,
        datasets=rows,
        folds=[tuple("-" if isinstance(c, float) and math.isnan(c) else c for c in row) for row in folds],
        subjects=list(run.subjects.itertuples(index=False, name=None)),
        faults=faults,
        curves=curves,
        gallery=gallery,
        trained=trained,
        **common,
    )


def unit_summary(run: UnitRun, trained: Mapping[str, float] | None) -> dict[str, Any]:
    """The content of summary.json."""
    intervals = run.intervals or {}
    several = len(run.datasets) > 1
    return {
        "run": run.name,
        "task": "units",
        "notes": run.notes,
        "leaky": run.leaky,
        "epoch": run.epoch,
        "folds": len(run.folds),
        "num_folds": run.num_folds,
        "subjects": int(run.subjects["subject"].nunique()),
        "clips": run.scores.num_clips,
        "pooled": _means(run.scores),
        "interval": run.intervals and {name: intervals[name] for name in ("f1", "f1_both")},
        "always_present": _means(run.baseline),
        "units": [
            {
                "name": unit,
                "f1": float(run.scores.of_unit[k]),
                "f1_both": float(run.scores.both[k]),
                "interval": intervals.get(unit),
                "always_present": float(run.baseline.of_unit[k]),
                "clips": int(run.scores.support[k]),
                "predicted": int(run.scores.predicted[k]),
            }
            for k, unit in enumerate(run.units)
        ],
        "per_dataset": [
            {"dataset": name, "clips": own.num_clips, **_means(own)}
            | {"units": {unit: _or_none(f1) for unit, f1 in zip(run.units, own.of_unit, strict=True)}}
            for name, own in run.datasets.items()
        ],
        "mean_of_datasets": _mean_of(run.datasets) if several else None,
        "per_fold": [
            {"fold": name, "clips": own.num_clips, **_means(own)} for name, own in run.folds.items()
        ],
        "per_fold_mean": _mean_of(run.folds),
        "trained": trained and dict(trained),
        "provenance": run.config.get(PROVENANCE, []),
    }


def unit_latex(run: UnitRun) -> str:
    """scores.tex: F1 of each unit, and the means."""
    leaky = " (leaky)" if run.leaky else ""
    head = [escape(run.name) + leaky, "F1", r"95\,\%", "always present", "clips"]
    units = [
        [unit, f1, interval.replace("-", "--"), present, str(clips)]
        for unit, f1, interval, present, _, clips, _ in unit_rows(run)
    ]
    mean = ["mean", f"{run.scores.f1:.3f}", _interval(run, "f1").replace("-", "--")]
    mean += [f"{run.baseline.f1:.3f}", str(run.scores.num_clips)]
    return tabular(head, [units, [mean]], remarks(run.leaky, run.notes))


def extent(run: UnitRun) -> str:
    """What the scores are of, in words."""
    subjects = counted(run.subjects["subject"].nunique(), "subject")
    clips, units = counted(run.scores.num_clips, "clip"), counted(len(run.units), "action unit")
    return f"{clips}, {subjects}, {units}, {len(run.folds)} of {run.num_folds} folds"


def pooled_rows(run: UnitRun) -> list[list[str]]:
    """Name, mean F1, mean F1 of present and absent; formatted."""
    rows = [
        [name, *(f"{value:.3f}" for value in _means(scores).values())]
        for name, scores in (
            ("model" + " (leaky)" * bool(run.leaky), run.scores),
            ("always present", run.baseline),
        )
    ]
    if run.intervals is not None:
        rows.insert(1, ["95 % over subjects", _interval(run, "f1"), _interval(run, "f1_both")])
    return rows


def unit_rows(run: UnitRun) -> list[tuple[str, str, str, str, str, int, int]]:
    """Unit, F1, its interval, F1 of the baseline, F1 of both, clips that show it, clips predicted to."""
    return [
        (
            unit,
            f"{run.scores.of_unit[k]:.3f}",
            _interval(run, unit),
            f"{run.baseline.of_unit[k]:.3f}",
            f"{run.scores.both[k]:.3f}",
            int(run.scores.support[k]),
            int(run.scores.predicted[k]),
        )
        for k, unit in enumerate(run.units)
    ]


def dataset_rows(run: UnitRun) -> tuple[list[str], list[list[str]]]:
    """F1 by dataset (rows) and unit (columns), with the mean of each, and the pooled scores last.

    A unit that no clip of the dataset shows has none there, and is left out of the dataset's mean.
    """
    heads = ["dataset", *run.units, "mean", "both", "clips"]
    rows = [
        [name, *map(_cell, own.of_unit), _cell(own.f1), _cell(own.f1_both), str(own.num_clips)]
        for name, own in run.datasets.items()
    ]
    if len(rows) > 1:
        of_units = np.array([own.of_unit for own in run.datasets.values()])
        shown = [column[~np.isnan(column)] for column in of_units.T]
        means = [column.mean() if len(column) else math.nan for column in shown]
        both = _mean_of(run.datasets)
        rows.append(["mean of datasets", *map(_cell, means), *(_cell(both[n]) for n in both), ""])
    pooled = run.scores
    rows.append(
        [
            "pooled",
            *map(_cell, pooled.of_unit),
            _cell(pooled.f1),
            _cell(pooled.f1_both),
            str(pooled.num_clips),
        ]
    )
    return heads, rows


def _means(scores: UnitScores) -> dict[str, float | None]:
    return {"f1": _or_none(scores.f1), "f1_both": _or_none(scores.f1_both)}


def _mean_of(parts: Mapping[str, UnitScores]) -> dict[str, float]:
    """Unweighted means over folds or datasets, of those that show a unit."""
    table = pd.DataFrame([_means(own) for own in parts.values()], dtype=np.float64)
    return {name: float(table[name].mean()) for name in ("f1", "f1_both")}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _interval(run: UnitRun, name: str) -> str:
    if run.intervals is None:
        return "-"
    low, high = run.intervals[name]
    return f"{low:.3f}-{high:.3f}"


def _subjects(predictions: pd.DataFrame, units: list[str]) -> pd.DataFrame:
    right = truth_of(predictions, units) == predicted_of(predictions, units)
    rows = predictions[["fold"]].assign(
        subject=subject_ids(predictions), whole=right.all(1), share=right.mean(1)
    )
    groups = rows.groupby(["subject", "fold"], sort=False)
    counts = groups.agg(clips=("whole", "size"), all_right=("whole", "sum"), share_right=("share", "mean"))
    return counts.reset_index().sort_values("subject", key=lambda ids: ids.map(natural_key), kind="stable")
