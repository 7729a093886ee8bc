"""The report of a run: all scores of its predictions, in one html file that needs no other file.

Reads config.json, metrics.jsonl, predictions.csv and, if present, faults.csv and the galleries of the folds
from the run's folder. Writes report.html, summary.json, scores.tex and the figures into it: curves and
confusion, of several datasets also confusion-datasets, each as png and svg.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd

from ..clips import counted
from ..files import write_bytes, write_text
from . import page
from .gallery import PER_PAIR, Gallery, read_gallery
from .latex import latex_table
from .metrics import per_dataset
from .run_scores import (
    LEAKY,
    NOTES,
    PROVENANCE,
    TRAIN_COUNTS,
    RunScores,
    headline,
    read_faults,
    read_json,
    read_metrics,
    read_run,
)
from .unit_report import UnitRun, read_unit_run, render_page, unit_latex, unit_summary, unit_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Title(TypedDict):
    title: str
    leaky: bool


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
    clip counts as zero, and a banner says so. Pictures of misclassified clips are shown if the folders of the
    folds have them (`write_gallery`).

    Returns:
        The path of report.html.

    Raises:
        ValueError: a file is missing or cannot be read; the message names the file and the place in it.
    """
    import_matplotlib()
    from . import plots

    run_dir = Path(run_dir)
    if is_of_units(run_dir):
        return _write_unit_report(run_dir, trained)
    run = read_run(run_dir)
    metrics = read_metrics(run_dir / "metrics.jsonl")
    faults = read_faults(run_dir / "faults.csv")
    gallery = read_gallery(run_dir, run.predictions, run.classes)
    figures = {
        f"{name}.{kind}": picture
        for name, figure in _figures(run, metrics).items()
        for kind, picture in plots.png_and_svg(figure).items()
    }
    confusions = {"": figures["confusion.png"]} | {
        name: plots.png(plots.confusion_matrix(matrix, run.classes, **_title(run, name)))
        for name, matrix in _matrices(run).items()
    }
    summary = json.dumps(_summary(run, trained), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, figure in figures.items():
        write_bytes(run_dir / name, figure)
    write_text(run_dir / "summary.json", summary)
    write_text(run_dir / "scores.tex", latex_table(json.loads(summary)))
    report = run_dir / "report.html"
    write_text(report, _page(run, faults, figures["curves.png"], confusions, gallery, trained))
    return report


def is_of_units(run_dir: Path) -> bool:
    """Whether a run predicts action units; False if it has no config.json."""
    path = run_dir / "config.json"
    return path.is_file() and read_json(path, path.read_text(encoding="utf-8")).get("task") == "units"


def _write_unit_report(run_dir: Path, trained: Mapping[str, float] | None) -> Path:
    """`write_report` of a run of action units."""
    from . import plots

    run = read_unit_run(run_dir)
    faults = _rows(read_faults(run_dir / "faults.csv"))
    gallery = read_gallery(run_dir, run.predictions, run.units)
    curves = plots.png_and_svg(
        plots.learning_curves(read_metrics(run_dir / "metrics.jsonl"), title=run.name, leaky=bool(run.leaky))
    )
    for kind, picture in curves.items():
        write_bytes(run_dir / f"curves.{kind}", picture)
    summary = json.dumps(unit_summary(run, trained), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(run_dir / "summary.json", summary)
    write_text(run_dir / "scores.tex", unit_latex(run))
    report = run_dir / "report.html"
    write_text(report, render_page(run, faults, curves["png"], gallery, trained, _common(run)))
    return report


def _figures(run: RunScores, metrics: pd.DataFrame) -> dict[str, "Figure"]:
    """The figures of a run by the names of their files."""
    from . import plots

    figures = {
        "curves": plots.learning_curves(metrics, **_title(run)),
        "confusion": plots.confusion_matrix(run.scores.confusion, run.classes, **_title(run)),
    }
    if matrices := _matrices(run):
        figures["confusion-datasets"] = plots.confusion_matrices(matrices, run.classes, **_title(run))
    return figures


def _matrices(run: RunScores) -> dict[str, np.ndarray]:
    """The confusion matrix of each dataset, if there are several."""
    if len(run.datasets) == 1:
        return {}
    own = per_dataset(run.predictions, len(run.classes))
    return {name: scores.confusion for name, scores in own.items()}


def _title(run: RunScores, dataset: str = "") -> _Title:
    return {"title": run.name + (dataset and f", {dataset}"), "leaky": bool(run.leaky)}


def table(run_dir: Path) -> str:
    """The scores of a run as text: pooled UF1, UAR, ACC and their baseline, F1 and recall of each class.

    Reads config.json and predictions.csv like `write_report`, with the same errors.
    """
    if is_of_units(Path(run_dir)):
        return unit_table(read_unit_run(Path(run_dir)))
    run = read_run(Path(run_dir))
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
    return read_json(path, path.read_text(encoding="utf-8"))


def _summary(run: RunScores, trained: Mapping[str, float] | None) -> dict[str, Any]:
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
        "pooled": headline(scores),
        "interval": run.interval,
        "majority_baseline": headline(run.baseline),
        "per_dataset": run.datasets.to_dict(orient="records"),
        "classes": [
            {"name": name, "f1": float(f1), "recall": float(recall), "clips": int(n)}
            for name, f1, recall, n in classes
        ],
        "confusion": scores.confusion.tolist(),
        "per_fold": run.folds.to_dict(orient="records"),
        "per_fold_mean": run.fold_mean,
        "trained": trained and dict(trained),
        "provenance": run.config.get(PROVENANCE, []),
    }


def _extent(run: RunScores) -> str:
    subjects = counted(run.subjects["subject"].nunique(), "subject")
    return f"{counted(run.scores.num_clips, 'clip')}, {subjects}, {len(run.folds)} of {run.num_folds} folds"


def _class_rows(run: RunScores) -> list[tuple[str, str, str, int]]:
    """Name, F1, recall and clips of each class, formatted."""
    columns = zip(run.classes, run.scores.f1, run.scores.recall, run.scores.support, strict=True)
    return [(name, f"{f1:.3f}", f"{recall:.3f}", int(clips)) for name, f1, recall, clips in columns]


def _page(
    run: RunScores,
    faults: pd.DataFrame,
    curves: bytes,
    confusions: dict[str, bytes],
    gallery: Gallery | None,
    trained: Mapping[str, float] | None,
) -> str:
    meanings = ("mean F1 over classes", "mean recall over classes", "share of clips right")
    scores, baselines = headline(run.scores), headline(run.baseline)
    return page.render(
        extent=_extent(run),
        baseline_name="majority class",
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
        pooled=_pooled_rows(run),
        datasets=_rows(run.datasets),
        classes=_class_rows(run),
        confusions={
            f"Confusion matrix{name and f' of {name}'}: rows the truth, columns the prediction": png
            for name, png in confusions.items()
        },
        gallery=gallery,
        curves=curves,
        folds=_rows(run.folds),
        fold_mean=list(run.fold_mean.values()),
        subjects=_rows(run.subjects),
        faults=_rows(faults),
        trained=trained,
        **_common(run),
    )


def _common(run: RunScores | UnitRun) -> dict[str, Any]:
    """The variables that the page of any run has."""
    known = (NOTES, TRAIN_COUNTS, LEAKY, PROVENANCE)
    return {
        "title": run.name + (" (leaky)" if run.leaky else ""),
        "leaky": run.leaky,
        "notes": run.notes,
        "epoch": run.epoch,
        "per_pair": PER_PAIR,
        "starts": _starts(run.config.get(PROVENANCE, [])),
        "settings": page.flatten({key: value for key, value in run.config.items() if key not in known}),
    }


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


def _pooled_rows(run: RunScores) -> list[list[str]]:
    """The rows of the pooled table: name, UF1, UAR, ACC, formatted."""
    lines = [("model" + (" (leaky)" if run.leaky else ""), run.scores), ("majority class", run.baseline)]
    rows = [[name, *(f"{value:.3f}" for value in headline(scores).values())] for name, scores in lines]
    if run.interval is not None:
        rows.insert(1, ["95 % over subjects", *(_interval(run, name) for name in ("uf1", "uar", "acc"))])
    return rows


def _interval(run: RunScores, name: str) -> str:
    if run.interval is None:
        return "one subject: no interval"
    low, high = run.interval[name]
    return f"{low:.3f}-{high:.3f}"
