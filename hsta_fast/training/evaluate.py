"""Scores a run again from its saved models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..checkpoint import load_model
from ..clips import KEY
from ..protocol import read_predictions, score, table
from .config import from_json
from .loop import predict, predictions_table
from .run_folder import check_clips, fold_folder, read_config
from .setup import moved, prepare


def evaluate(path: Path, data: Sequence[Path] = ()) -> str:
    """Predict the test clips of a run's finished folds anew, from its saved models, and score that.

    Args:
        path: the run's folder.
        data: where the data sets are now, if they have moved: one folder for each of --data and --more-data.

    Returns:
        The run's table of scores on record, then the new scores and how the predictions differ.

    Raises:
        ValueError: `path` is no run, has no finished fold, or its data are not what they were.
    """
    cfg = from_json(read_config(path))
    exp = prepare(moved(cfg, data) if data else cfg)
    check_clips(path / "clips.csv", exp.data.table.clips)
    parts = []
    for number, fold in enumerate(exp.folds):
        folder = fold_folder(path, number)
        if (folder / "predictions.csv").exists():
            model = load_model(folder / "model.safetensors").to(exp.device)
            parts.append(predictions_table(exp, fold, predict(exp, model, fold.test)))
    if not parts:
        raise ValueError(f"{path} has no finished fold yet")
    now = pd.concat(parts, ignore_index=True)
    key = list(KEY)
    before = read_predictions(path / "predictions.csv")
    both = now.merge(before, on=key, suffixes=("", "_before"))
    if not len(both) == len(now) == len(before):
        raise ValueError(
            f"{path / 'predictions.csv'} wants the {len(now)} clips of the finished folds, got {len(before)} "
            f"clips, {len(both)} of them among those"
        )
    other = int((both["label"] != both["label_before"]).sum() + (both["fold"] != both["fold_before"]).sum())
    if other:
        raise ValueError(
            f"{path / 'predictions.csv'} has other labels or folds than the run, in {other} places"
        )
    shares = [column for column in now.columns if column.startswith("p_")]
    changed = int((both["predicted"] != both["predicted_before"]).sum())
    largest = np.abs(both[shares].to_numpy() - both[[f"{s}_before" for s in shares]].to_numpy()).max()
    new = score(now["label"], now["predicted"], len(shares), absent="zero")
    return (
        f"{table(path)}\n\npredicted anew from the saved models: UF1 {new.uf1:.3f}, UAR {new.uar:.3f}, "
        f"ACC {new.acc:.3f} on {len(now)} clips; {changed} answers differ from predictions.csv, "
        f"probabilities by at most {largest:.1e}"
    )
