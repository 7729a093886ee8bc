"""A small run directory with random predictions, as training would leave it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

CLASSES = ("negative", "positive", "surprise")


@pytest.fixture
def predictions() -> pd.DataFrame:
    """60 clips of 8 subjects in 4 folds of unequal size, about 70 % of them right."""
    rng = np.random.default_rng(0)
    rows = []
    for i, subject in enumerate(rng.integers(0, 8, size=60)):
        label = int(rng.choice(3, p=(0.5, 0.3, 0.2)))
        predicted = label if rng.random() < 0.6 else int(rng.integers(3))
        row = {"dataset": "casme3", "subject": f"spNO.{subject + 1}", "clip": "b", "onset": i}
        row |= {"fold": str(subject % 4 + 1), "label": label, "predicted": predicted}
        rows.append(row | {f"p_{name}": float(predicted == k) for k, name in enumerate(CLASSES)})
    return pd.DataFrame(rows)


@pytest.fixture
def make_run(tmp_path: Path, predictions: pd.DataFrame) -> Callable[..., Path]:
    """Writes a run; keyword arguments replace keys of config.json, `table` the predictions."""

    def make(table: pd.DataFrame = predictions, **config: object) -> Path:
        run = tmp_path / "rendered"
        run.mkdir()
        table.to_csv(run / "predictions.csv", index=False)
        # What a fold is trained on differs from what it is tested on: the majority is another class in each.
        counts = {fold: np.roll([9, 5, 2], i).tolist() for i, fold in enumerate(sorted(set(table["fold"])))}
        settings = {"num_folds": 4, "train_counts": counts, "seed": 3, "model": {"width": [96, 192]}} | config
        (run / "config.json").write_text(json.dumps(settings))
        lines = [
            {"fold": fold, "epoch": epoch, "lr": 1e-3, "train_loss": 1 / epoch, "train_acc": 1 - 0.5 / epoch}
            | {"test_loss": 1.2 / epoch, "test_acc": 1 - 0.6 / epoch, "seconds": 1.0, "clips_per_second": 9.0}
            for fold in sorted(set(table["fold"]))
            for epoch in range(1, 6)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return make
