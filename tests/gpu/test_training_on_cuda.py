"""A training run in bfloat16 on a CUDA device."""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu.needs import needs_data_packages

pytestmark = [pytest.mark.gpu, needs_data_packages]


def test_a_training_run_in_bfloat16(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps become a graph, while the loader's thread copies batches to the device."""
    from hsta_fast.protocol import read_predictions
    from hsta_fast.training import runner
    from hsta_fast.training.config import recipe_config
    from hsta_fast.training.evaluate import evaluate
    from hsta_fast.training.step_graph import StepGraph

    capture, captured = StepGraph._capture, []

    def watched(*arguments: Any) -> bool:
        captured.append(capture(*arguments))
        return captured[-1]

    monkeypatch.setattr(StepGraph, "_capture", watched)

    cfg = recipe_config(
        "paper",
        data=faces,
        runs=tmp_path,
        model="hsta_base",  # the other tests compile its kernels
        num_layers=1,
        image_size=48,
        labels="emotion3",
        protocol="kfold",
        folds=2,
        epochs=3,
        batch_size=4,
        warmup_epochs=1,
        device="cuda",
    )
    run = runner.main(cfg)
    assert captured == [True, True]  # one for each fold
    assert len(read_predictions(run / "predictions.csv")) == 24
    assert "0 predictions differ" in evaluate(run)
