"""--with-neutral: a class of stretches without an expression, in training alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hsta_fast.checkpoint import load_model
from hsta_fast.data import NEUTRAL
from hsta_fast.protocol import audit
from hsta_fast.protocol.metrics import bootstrap_interval, majority_baseline, score, unscored_classes
from hsta_fast.protocol.run_scores import read_run
from hsta_fast.training import runner
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.setup import decode, plan, set_up

from ..data.test_neutral import write_recordings


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("neutral")
    return recipe_config(
        "paper",
        data=write_recordings(folder / "data"),
        runs=folder / "runs",
        labels="emotion7",
        **{"model": "hsta_tiny", "num_layers": 1, "image_size": 32, "epochs": 1, "warmup_epochs": 0},
        **{"batch_size": 4, "cache": "none", "gallery": 0, "device": "cpu", "dtype": "float32"},
        with_neutral=True,
    )


@pytest.fixture(scope="module")
def run(cfg: TrainConfig) -> Path:
    return runner.main(cfg)


def test_a_fold_trains_on_stretches_of_other_people_and_tests_none(cfg: TrainConfig) -> None:
    exp = set_up(cfg)
    neutral = (exp.data.table.clips["expression"] == NEUTRAL).to_numpy()
    assert neutral.any() and exp.labels.classes[-1] == "nothing"
    for fold in exp.folds:
        assert neutral[fold.train].any() and not neutral[fold.test].any()
        assert not set(exp.data.subjects[fold.train]) & set(exp.data.subjects[fold.test])


def test_a_fold_whose_training_lacks_the_class_is_named(cfg: TrainConfig) -> None:
    planned = plan(cfg)
    clips = planned.clips.clips
    left = (clips["expression"] != NEUTRAL) | (clips["subject"] == clips["subject"].iloc[0])
    table = replace(planned.clips, clips=clips[left].reset_index(drop=True))
    exp = decode(replace(planned, clips=table))
    alone = next(
        fold.name for fold in exp.folds if clips["subject"].iloc[0] in exp.data.subjects[fold.test][0]
    )
    said = [remark for remark in exp.remarks if remark.startswith("No training clip of fold")]
    assert said == [f"No training clip of fold {alone} shows nothing, so no model could learn that."]
    assert not [remark for remark in set_up(cfg).remarks if remark.startswith("No training clip of fold")]


def test_shuffled_labels_stay_among_the_clips(cfg: TrainConfig) -> None:
    exp = set_up(replace(cfg, shuffle_labels=True))
    neutral = (exp.data.table.clips["expression"] == NEUTRAL).to_numpy()
    assert (exp.data.labels[neutral] == len(exp.labels.classes) - 1).all()
    assert (exp.data.labels[~neutral] < len(exp.labels.classes) - 1).all()


def test_the_scores_are_those_of_the_label_set(cfg: TrainConfig, run: Path) -> None:
    found = read_run(run)
    assert found.classes[-1] == "nothing" and found.config["with_neutral"] is True
    f1 = found.scores.f1
    assert found.scores.uf1 == pytest.approx(f1[:-1].mean())
    assert any("'nothing'" in note and "an error" in note for note in found.notes)
    assert not any("No test clip of nothing" in note for note in found.notes)
    text, _ = audit(run / "predictions.csv", run / "clips.csv", run / "folds.csv")
    assert f"{found.scores.uf1:.3f}" in text
    assert f"UF1 {found.scores.uf1:.3f}" in evaluate(run)


def test_the_model_says_that_it_knows_nothing(run: Path) -> None:
    inputs = load_model(next(run.glob("folds/*/model.safetensors"))).inputs
    assert inputs is not None and inputs.neutral and inputs.classes[-1] == "nothing"


def test_a_run_continues_with_the_same_stretches_and_refuses_others(cfg: TrainConfig, run: Path) -> None:
    clips = (run / "clips.csv").read_text()
    runner.main(replace(cfg, resume=True))
    assert (run / "clips.csv").read_text() == clips
    assert (pd.read_csv(run / "clips.csv")["expression"] == NEUTRAL).any()
    with pytest.raises(ValueError, match="with_neutral was True, is False"):
        runner.main(replace(cfg, resume=True, with_neutral=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "units", "labels": "auto"}, "--task expected emotion with --with-neutral, got 'units'"),
        ({"onset_only": True}, "--onset-only expected False with --with-neutral, got True"),
        ({"protocol": "published-folds"}, "--protocol expected folds by subject with --with-neutral"),
    ],
)
def test_what_has_no_stretches_is_refused(cfg: TrainConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(cfg, **changes).check()


def test_the_answer_nothing_is_an_error_and_no_class_of_the_means() -> None:
    classes = ["a", "b", "nothing"]
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 2])
    assert unscored_classes(classes, truth) == 1 and unscored_classes(classes, np.array([2])) == 0
    found = score(truth, predicted, 3, unscored=1)
    assert found.uf1 == pytest.approx(2 / 3) and found.uar == 0.5 and found.acc == 0.5
    table = pd.DataFrame({"label": truth, "predicted": predicted, "fold": "1", "dataset": "d"})
    table["subject"] = ["1", "2", "1", "2"]
    interval = bootstrap_interval(table, 3, unscored=1)
    assert interval is not None and interval["uf1"] == (0, 1)
    baseline = majority_baseline(table, {"1": [1, 2, 9]}, 3, unscored=1)
    assert baseline.acc == 0.5 and baseline.confusion[:, 2].sum() == 0
