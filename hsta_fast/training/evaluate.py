"""Predictions of a trained model as a table, and the scores of a run computed again from its saved models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ..checkpoint import load_model
from ..clips import KEY
from ..int8 import quantize_int8
from ..protocol import THRESHOLD, Fold, read_predictions, score, score_table, table, units_among
from .config import from_json
from .gallery import add_missing_gallery
from .loop import predict
from .run_checks import check_clips, read_run_config
from .run_folder import fold_folder
from .setup import Experiment, decode, known_after_decoding, plan, with_data_roots


def predictions_table(exp: Experiment, fold: Fold, logits: Tensor) -> pd.DataFrame:
    """One row per test clip: its key, fold, label, predicted class, and the probability of each class.

    Of action units: its key, fold, and for each unit the truth, 0 or 1, and the probability.
    logits: (test clips, classes), float32.
    """
    rows = exp.data.table.clips.iloc[fold.test][list(KEY)]
    if exp.cfg.task == "units":
        probabilities, truth = logits.double().sigmoid().cpu().numpy(), exp.data.labels[fold.test]
        of_units = {"fold": np.full(len(rows), fold.name)}
        for i, unit in enumerate(exp.labels.classes):
            of_units |= {unit: truth[:, i], f"p_{unit}": probabilities[:, i]}
        return rows.reset_index(drop=True).assign(**of_units)
    probabilities = logits.double().softmax(1).cpu().numpy()
    predicted = {"fold": fold.name, "label": exp.data.labels[fold.test], "predicted": probabilities.argmax(1)}
    of_class = {f"p_{name}": probabilities[:, i] for i, name in enumerate(exp.labels.classes)}
    return rows.reset_index(drop=True).assign(**predicted, **of_class)


def evaluate(path: Path, data: Sequence[Path] = (), *, int8: bool = False) -> str:
    """Predict the test clips of a run's finished folds again with its saved models, and score the result.

    Args:
        path: the run's folder.
        data: where the datasets are now, if they have moved: one folder for each of --data and --more-data.
        int8: round the models with `quantize_int8` first, and predict on the CPU.

    Returns:
        The run's table of scores as saved, then the new scores and how the predictions differ. A run without
        a gallery of misclassified clips (made before there was one) gets it in its report.

    Raises:
        ValueError: `path` is not a run, has no finished fold, or its data have changed.
    """
    cfg = from_json(read_run_config(path))
    if next(path.glob("folds/*/predictions.csv"), None) is None:  # before its frames are decoded
        raise ValueError(f"{path} has no finished fold yet")
    cfg = replace(cfg, device="cpu", dtype="float32") if int8 else cfg
    planned = plan(with_data_roots(cfg, data) if data else cfg, run=path)
    unknown = known_after_decoding(cfg)
    check_clips(path / "clips.csv", planned.clips.clips, decoded=False, unknown=unknown)
    exp = decode(planned)
    check_clips(path / "clips.csv", exp.data.table.clips)
    now = _predict_again(exp, path, int8)
    both = _match_saved(now, path / "predictions.csv")
    of_classes = [column for column in now.columns if column.startswith("p_")]
    before = both[[f"{column}_before" for column in of_classes]].to_numpy()
    largest = np.abs(both[of_classes].to_numpy() - before).max()
    if units := units_among(now.columns):
        is_predicted = both[of_classes].to_numpy() >= THRESHOLD
        changed = int((is_predicted != (before >= THRESHOLD)).any(1).sum())
        new_scores = f"mean F1 of units {score_table(now, units).f1:.3f}"
    else:
        changed = int((both["predicted"] != both["predicted_before"]).sum())
        unscored = int(exp.cfg.with_neutral)
        new = score(now["label"], now["predicted"], len(of_classes), absent="zero", unscored=unscored)
        new_scores = f"UF1 {new.uf1:.3f}, UAR {new.uar:.3f}, ACC {new.acc:.3f}"
    added = add_missing_gallery(exp, path)
    models = "the saved models" + " in int8" * int8
    return (
        f"{table(path)}\n\npredicted again with {models}: {new_scores} on {len(now)} clips; "
        f"{changed} predictions differ from predictions.csv, probabilities by at most {largest:.1e}"
        + (added and f"\n\n{added}")
    )


def _predict_again(exp: Experiment, path: Path, int8: bool) -> pd.DataFrame:
    """The predictions table of a run's finished folds, from their saved models."""
    parts = []
    for number, fold in enumerate(exp.folds):
        folder = fold_folder(path, number)
        if (folder / "predictions.csv").exists():
            model = load_model(folder / "model.safetensors").to(exp.device)
            model = quantize_int8(model) if int8 else model
            parts.append(predictions_table(exp, fold, predict(exp, model, fold.test)))
    return pd.concat(parts, ignore_index=True)


def _match_saved(now: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows of `now`, each with the columns of the same clip in the csv `path`, named *_before.

    Raises:
        ValueError: the csv has other clips, labels or folds.
    """
    before = read_predictions(path)
    both = now.merge(before, on=list(KEY), suffixes=("", "_before"))
    if not len(both) == len(now) == len(before):
        raise ValueError(
            f"{path} expected the {len(now)} clips of the finished folds, got {len(before)} clips, "
            f"{len(both)} of them among those"
        )
    told = ["fold", *(units_among(now.columns) or ["label"])]
    changed = sum(int((both[column] != both[f"{column}_before"]).sum()) for column in told)
    if changed:
        raise ValueError(f"{path} expected the labels and folds of the run, got {changed} others")
    return both
