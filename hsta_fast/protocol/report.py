"""The report of a run: everything its predictions say, in one html file that needs nothing else.

Reads from the run directory config.json, metrics.jsonl, predictions.csv and, where there is one, faults.csv.
Writes curves.png, confusion.png, summary.json and report.html.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from ..files import write_bytes, write_text
from . import plots
from .folds import natural_key
from .metrics import (
    Scores,
    class_names,
    majority_baseline,
    per_fold,
    read_predictions,
    read_text_table,
    score,
    subject_ids,
)

# Keys of config.json that the report understands; all others are shown as they are.
_NOTES, _NUM_FOLDS, _TRAIN_COUNTS = "notes", "num_folds", "train_counts"
_CURVES = ("train_loss", "train_acc", "test_loss", "test_acc")
_FAULTS = ("dataset", "subject", "clip", "onset", "what", "action")
_EPOCH = "the last one, fixed in advance; none was chosen by looking at test clips."


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run directory, read, checked and scored."""

    name: str
    config: dict[str, Any]
    notes: list[str]
    num_folds: int
    predictions: pd.DataFrame
    classes: list[str]
    scores: Scores
    baseline: Scores
    folds: pd.DataFrame
    fold_mean: dict[str, float]
    subjects: pd.DataFrame


def write_report(run_dir: Path) -> Path:
    """Score the finished folds of a run; write its pictures, summary.json and report.html; return the last.

    config.json is an object, shown as a table. Keys with a meaning here: "num_folds" (int, how many folds the
    run is to have), "train_counts" ({fold: number of training clips of each class}, for the majority
    baseline) and, where there is something to say, "notes" (list of str, shown as banners). faults.csv
    (dataset, subject, clip, onset, what, action) may be absent or empty. A class without a test clip counts
    as zero, and a banner says so. ValueError names the file and the place of what cannot be read.
    """
    run_dir = Path(run_dir)
    run = _read_run(run_dir)
    metrics = _read_metrics(run_dir / "metrics.jsonl")
    faults = _read_faults(run_dir / "faults.csv")
    curves = plots.png(plots.learning_curves(metrics))
    confusion = plots.png(plots.confusion_matrix(run.scores.confusion, run.classes))
    summary = json.dumps(_summary(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(run_dir / "curves.png", curves)
    write_bytes(run_dir / "confusion.png", confusion)
    write_text(run_dir / "summary.json", summary)
    report = run_dir / "report.html"
    write_text(report, _page(run, faults, curves=curves, confusion=confusion))
    return report


def table(run_dir: Path) -> str:
    """The scores of a run as text: pooled UF1, UAR, ACC beside the baseline, F1 and recall of each class.

    Reads config.json and predictions.csv as `write_report` does, with the same errors.
    """
    run = _read_run(Path(run_dir))
    lines = [f"{run.name}: {_extent(run)}", *(f"note: {note}" for note in run.notes), ""]
    lines += [f"{'pooled':<18}{'UF1':>8}{'UAR':>8}{'ACC':>8}"]
    for name, scores in (("model", run.scores), ("majority class", run.baseline)):
        lines.append(f"{name:<18}" + "".join(f"{value:>8.3f}" for value in _headline(scores).values()))
    width = max(18, *(len(name) + 2 for name in run.classes))
    lines += ["", f"{'class':<{width}}{'F1':>8}{'recall':>8}{'clips':>8}"]
    lines += [f"{name:<{width}}{f1:>8}{recall:>8}{clips:>8}" for name, f1, recall, clips in _class_rows(run)]
    return "\n".join(lines)


def _read_run(run_dir: Path) -> _Run:
    needed = ("config.json", "metrics.jsonl", "predictions.csv")
    missing = [name for name in needed if not (run_dir / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir}: wanted a run with {', '.join(needed)}; missing: {', '.join(missing)}")
    path = run_dir / "config.json"
    config = _json(path, path.read_text(encoding="utf-8"))
    notes, num_folds = config.get(_NOTES, []), config.get(_NUM_FOLDS)
    train_counts = config.get(_TRAIN_COUNTS)
    if not isinstance(num_folds, int) or num_folds < 1:
        raise ValueError(f"{path}: wanted {_NUM_FOLDS!r}, a positive integer, got {num_folds!r}")
    if not isinstance(train_counts, dict):
        raise ValueError(f"{path}: wanted {_TRAIN_COUNTS!r}, an object, got {train_counts!r}")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError(f"{path}: wanted {_NOTES!r}, a list of strings, got {notes!r}")
    predictions = read_predictions(run_dir / "predictions.csv")
    predictions = predictions.sort_values("fold", key=lambda folds: folds.map(natural_key), kind="stable")
    classes = class_names(predictions)
    scores = score(predictions["label"], predictions["predicted"], len(classes), absent="zero")
    folds, fold_mean = per_fold(predictions, len(classes))
    return _Run(
        name=run_dir.resolve().name,
        config=config,
        notes=[*notes, *_findings(predictions, classes, scores, num_folds, len(folds))],
        num_folds=num_folds,
        predictions=predictions,
        classes=classes,
        scores=scores,
        baseline=majority_baseline(predictions, train_counts, len(classes)),
        folds=folds,
        fold_mean=fold_mean,
        subjects=_subjects(predictions),
    )


def _findings(
    predictions: pd.DataFrame, classes: Sequence[str], scores: Scores, num_folds: int, done: int
) -> list[str]:
    """What a reader of the scores must know and the predictions alone tell."""
    notes = []
    if done < num_folds:
        notes.append(f"Unfinished: {done} of {num_folds} folds. The scores are of these folds only.")
    absent = [name for name, n in zip(classes, scores.support, strict=True) if n == 0]
    if absent:
        notes.append(f"No test clip of {', '.join(absent)}: counted as 0 in UF1 and UAR.")
    folds_of = predictions["fold"].groupby(subject_ids(predictions)).nunique()
    shared = sorted(folds_of.index[folds_of > 1], key=natural_key)
    if shared:
        # Whoever is tested in two folds was trained on in at least one of them.
        notes.append(f"Leak: subjects tested in more than one fold, so also trained on: {', '.join(shared)}.")
    return notes


def _subjects(predictions: pd.DataFrame) -> pd.DataFrame:
    """subject, fold, clips, correct, acc; one row a (subject, fold), in natural order of the subjects."""
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
            raise ValueError(f"{path}: line {number}: wanted numbers for epoch and {_CURVES}, got {line}")
        rows.append({key: row[key] for key in ("fold", "epoch", *_CURVES)})
    if not rows:
        raise ValueError(f"{path}: wanted a line for each epoch, got none")
    # A resumed run writes the epoch in which it was killed once more.
    return pd.DataFrame(rows).drop_duplicates(["fold", "epoch"], keep="last")


def _read_faults(path: Path) -> pd.DataFrame:
    if not path.exists() or not path.stat().st_size:
        return pd.DataFrame(columns=list(_FAULTS))
    return read_text_table(path, _FAULTS)[list(_FAULTS)]


def _json(path: Path, text: str, place: str = "") -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{place} wanted a JSON object, got: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}:{place} wanted a JSON object, got {type(value).__name__}")
    return value


def _summary(run: _Run) -> dict[str, Any]:
    scores = run.scores
    classes = zip(run.classes, scores.f1, scores.recall, scores.support, strict=True)
    return {
        "run": run.name,
        "notes": run.notes,
        "epoch": _EPOCH,
        "folds": len(run.folds),
        "num_folds": run.num_folds,
        "subjects": int(run.subjects["subject"].nunique()),
        "clips": scores.num_clips,
        "pooled": _headline(scores),
        "majority_baseline": _headline(run.baseline),
        "classes": [
            {"name": name, "f1": float(f1), "recall": float(recall), "clips": int(n)}
            for name, f1, recall, n in classes
        ],
        "confusion": scores.confusion.tolist(),
        "per_fold": run.folds.to_dict(orient="records"),
        "per_fold_mean": run.fold_mean,
    }


def _headline(scores: Scores) -> dict[str, float]:
    return {"uf1": scores.uf1, "uar": scores.uar, "acc": scores.acc}


def _extent(run: _Run) -> str:
    subjects = run.subjects["subject"].nunique()
    return f"{run.scores.num_clips} clips, {subjects} subjects, {len(run.folds)} of {run.num_folds} folds"


def _class_rows(run: _Run) -> list[tuple[str, str, str, int]]:
    """Name, F1, recall and clips of each class, as shown."""
    columns = zip(run.classes, run.scores.f1, run.scores.recall, run.scores.support, strict=True)
    return [(name, f"{f1:.3f}", f"{recall:.3f}", int(clips)) for name, f1, recall, clips in columns]


def _page(run: _Run, faults: pd.DataFrame, *, curves: bytes, confusion: bytes) -> str:
    meanings = ("mean F1 over classes", "mean recall over classes", "share of clips right")
    baselines = _headline(run.baseline).values()
    cards = [
        _card(name.upper(), meaning, value, baseline)
        for (name, value), meaning, baseline in zip(
            _headline(run.scores).items(), meanings, baselines, strict=True
        )
    ]
    foot = ("mean of folds (not the score)", "", "", *(f"{value:.3f}" for value in run.fold_mean.values()))
    settings = _flat({key: value for key, value in run.config.items() if key not in (_NOTES, _TRAIN_COUNTS)})
    return _PAGE.substitute(
        name=html.escape(run.name),
        extent=html.escape(_extent(run)),
        notes="".join(f'<p class="note">{html.escape(note)}</p>' for note in run.notes),
        cards="".join(cards),
        epoch=html.escape(_EPOCH),
        classes=_table(("class", "F1", "recall", "clips"), _class_rows(run), words=1),
        confusion=_picture(confusion, "Confusion matrix: rows the truth, columns the prediction", "square"),
        curves=_picture(curves, "Learning curves: loss and accuracy per epoch, train and test", "wide"),
        folds=_table(
            ("fold", "subjects", "clips", "UF1", "UAR", "ACC"), _rows(run.folds), words=1, foot=foot
        ),
        subjects=_table(("subject", "fold", "clips", "right", "ACC"), _rows(run.subjects), words=2),
        faults=_table(_FAULTS, _rows(faults), words=6) if len(faults) else "<p>None.</p>",
        num_faults=len(faults),
        config=_table(("setting", "value"), settings, words=2),
    )


def _card(name: str, meaning: str, value: float, baseline: float) -> str:
    return (
        f'<div class="card"><h3>{name}</h3><p class="value">{value:.3f}</p>'
        f'<div class="bar"><b style="width:{100 * value:.1f}%"></b>'
        f'<i style="left:{100 * baseline:.1f}%"></i></div>'
        f"<p>majority class {baseline:.3f}</p><p>{meaning}</p></div>"
    )


def _rows(frame: pd.DataFrame) -> list[list[Any]]:
    """The cells as shown: fractions with three decimals."""
    return [
        [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]
        for row in frame.itertuples(index=False)
    ]


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], *, words: int, foot: Sequence[str] = ()
) -> str:
    """An html table, every cell escaped; the first `words` columns are text, the others numbers."""

    def line(cells: Sequence[Any], tag: str) -> str:
        kinds = ["" if i < words else ' class="n"' for i in range(len(cells))]
        return "".join(f"<{tag}{k}>{html.escape(str(c))}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    end = f"<tfoot><tr>{line(foot, 'td')}</tr></tfoot>" if foot else ""
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>\n{body}</tbody>{end}</table></div>'


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as ("outer.inner", value) lines."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            lines += _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append((f"{prefix}{key}", text))
    return lines


def _picture(png: bytes, words: str, kind: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img class="{kind}" alt="{html.escape(words)}" src="data:image/png;base64,{data}">'


# The policy in the head makes a browser refuse anything from outside this file. Pictures keep a white ground.
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$name</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --soft: #57606a; --ground: #ffffff; --panel: #f6f8fa;
  --line: #d8dee4; --model: #0072b2; --note: #fff4d6; --note-line: #c98a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --ground: #0f1318;
  --panel: #181d24; --line: #313842; --model: #56b4e9; --note: #32290f; --note-line: #e0a72e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .6rem; font-size: 1.15rem; }
h3 { margin: 0; font-size: .95rem; color: var(--soft); }
p { margin: .3rem 0; }
.soft, .card p { color: var(--soft); font-size: .9rem; }
.note { margin: .8rem 0; padding: .6rem .9rem; border-left: 4px solid var(--note-line);
  background: var(--note); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem;
  margin: 1.5rem 0 .6rem; }
.card { padding: 1rem; border: 1px solid var(--line); border-radius: 8px; background: var(--panel); }
.card .value { margin: 0; font-size: 2.4rem; line-height: 1.2; color: var(--ink); }
.bar { position: relative; height: 6px; margin: .4rem 0 .6rem; border-radius: 3px; background: var(--line); }
.bar b { display: block; height: 100%; border-radius: 3px; background: var(--model); }
.bar i { position: absolute; top: -4px; width: 2px; height: 14px; background: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 24rem); font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.n { padding-left: .8rem; text-align: right; }
tfoot td { color: var(--soft); font-style: italic; }
img { display: block; width: 100%; height: auto; padding: .5rem; border: 1px solid var(--line);
  border-radius: 8px; background: #ffffff; }
img.square { max-width: 36rem; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  img, .card, .note, tr { break-inside: avoid; } * { print-color-adjust: exact; } }
</style>
</head>
<body>
<h1>$name</h1>
<p class="soft">$extent</p>
$notes
<div class="cards">$cards</div>
<p class="soft">Counts are pooled over all folds before scoring. The tick on a bar is the majority class: in
each fold, the answer is always the most frequent class of its training clips.</p>
<p class="soft">Epoch scored: $epoch</p>
<h2>Classes</h2>
$classes
<h2>Confusion matrix</h2>
$confusion
<h2>Learning curves</h2>
$curves
<h2>Folds</h2>
<p class="soft">Each fold by itself, over the classes it has clips of. The mean of folds is shown for
comparison; it weighs small folds like large ones.</p>
$folds
<h2>Subjects</h2>
$subjects
<h2>Faults of the data ($num_faults)</h2>
$faults
<h2>Settings</h2>
$config
</body>
</html>
""")
