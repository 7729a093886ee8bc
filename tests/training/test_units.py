"""Runs that predict action units: trained, resumed, evaluated again, audited; what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hsta_fast.checkpoint import load_model
from hsta_fast.export import _Inference
from hsta_fast.model_card import model_card
from hsta_fast.protocol import audit, compare_runs, read_predictions
from hsta_fast.synth import SynthConfig, render
from hsta_fast.training import loop, runner
from hsta_fast.training.ablate import ablate
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.optim import MAX_WEIGHT, UnitLoss, learning_rate, positive_weights
from hsta_fast.training.setup import set_up

MakeConfig = Callable[..., TrainConfig]
UNITS = ["AU1", "AU2", "AU4", "AU9", "AU12"]


@pytest.fixture(scope="module")
def unit_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 rendered subjects with 9 clips of happiness, surprise and disgust each."""
    out = tmp_path_factory.mktemp("faces")
    return render(SynthConfig(out=out, subjects=4, clips_per_subject=9, size=32, processes=1))


@pytest.fixture
def make_config(unit_faces: Path, tmp_path: Path) -> MakeConfig:
    """A quick configuration, with changes."""
    small: dict[str, Any] = {"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32}
    small |= {"num_frames": 2, "task": "units", "protocol": "kfold", "folds": 2, "batch_size": 6}
    small |= {"lr": 1e-3, "warmup_epochs": 1, "epochs": 1, "data": unit_faces, "runs": tmp_path / "runs"}
    small |= {"dtype": "float32", "gallery": 2}

    def make(**changes: Any) -> TrainConfig:
        return recipe_config("paper", **{**small, **changes})

    return make


def test_a_run_of_units(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner.main(make_config())
    config = json.loads((run / "config.json").read_text())
    assert config["task"] == "units" and config["classes"] == UNITS
    predictions = read_predictions(run / "predictions.csv")
    assert len(predictions) == 36 and predictions[UNITS].sum().tolist() == [12] * 5
    trained = np.array([config["train_counts"][fold] for fold in ("1", "2")])
    assert trained.sum(0).tolist() == [12] * 5
    assert "action unit" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert [row["name"] for row in summary["units"]] == UNITS and 0 <= summary["pooled"]["f1"] <= 1
    page = (run / "report.html").read_text()
    assert "always present" in page and "say nothing about people" in page
    assert f"{summary['pooled']['f1']:.3f}" in page and "no AU" in page  # the gallery's classes
    text = evaluate(run)
    assert "0 predictions differ" in text and f"mean F1 of units {summary['pooled']['f1']:.3f}" in text
    text, status = audit(run / "predictions.csv", run / "clips.csv", run / "folds.csv")
    assert status == 0 and f"{summary['pooled']['f1']:.4f}" in text and "No subject is in training" in text
    with pytest.raises(ValueError, match="expected one class a clip, got the action units AU1, AU2"):
        compare_runs([run, run / "predictions.csv"])
    model = load_model(run / "folds" / "01" / "model.safetensors")
    assert model.inputs is not None and (model.inputs.task, [*model.inputs.classes]) == ("units", UNITS)
    card = model_card(model, run, "1")
    assert ".sigmoid()" in card and "5 action units" in card and "softmax" not in card
    frames = [torch.randint(0, 256, (1, 3, 2, 32, 32), dtype=torch.uint8) for _ in range(2)]
    logits, shares = _Inference(model)(*frames)  # what a file of `export` computes
    torch.testing.assert_close(shares, logits.sigmoid(), rtol=0, atol=0)


def test_a_relabelled_clip_is_found_by_the_audit(make_config: MakeConfig, tmp_path: Path) -> None:
    run = runner.main(make_config(only=("1",)))
    clips, predictions = pd.read_csv(run / "clips.csv"), read_predictions(run / "predictions.csv")
    first = clips.index[clips["subject"] == predictions["subject"][0]][0]
    clips.loc[first, "label"] = {"AU12": "AU1+AU2"}.get(clips.loc[first, "label"], "AU12")
    clips.to_csv(tmp_path / "clips.csv", index=False)
    assert (
        "1 clip has another label in clips.csv" in audit(run / "predictions.csv", tmp_path / "clips.csv")[0]
    )
    moved = pd.concat([predictions, predictions.iloc[:1].assign(fold="2", onset=9999)])
    moved.to_csv(tmp_path / "leak.csv", index=False)
    text, status = audit(tmp_path / "leak.csv")
    assert status == 1 and "tested in more than one fold" in text


@pytest.mark.parametrize("select", ["inner", "best-test-epoch"])
def test_a_run_of_units_goes_on_after_a_stop(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, select: str
) -> None:
    settings = {"select": select, "inner_folds": 2, "epochs": 3, "save_every": 1, "only": ("1",)}
    whole = runner.main(make_config(name="whole", **settings))

    class StoppedError(Exception):
        pass

    epochs = 0

    def stop_midway(cfg: TrainConfig, epoch: float) -> float:
        nonlocal epochs
        epochs += float(epoch).is_integer()
        if epochs == 3:
            raise StoppedError
        return learning_rate(cfg, epoch)

    monkeypatch.setattr(loop, "learning_rate", stop_midway)
    with pytest.raises(StoppedError):
        runner.main(make_config(name="broken", **settings))
    monkeypatch.undo()
    run = runner.main(make_config(name="broken", resume=True, **settings))
    assert (run / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()


def test_leave_one_dataset_out_and_seeds(
    make_config: MakeConfig, unit_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(unit_faces / "annotation.csv")
    for name, half in (("a", table["Subject"].unique()[:2]), ("b", table["Subject"].unique()[2:])):
        for subject in half:
            shutil.copytree(unit_faces / subject, tmp_path / name / subject)
        rows = table[table["Subject"].isin(half)]
        own = {"dataset": name, "subject": rows["Subject"], "clip": rows["Filename"]}
        own |= {"path": rows["Subject"] + "/" + rows["Filename"] + "/color", "action units": rows["AU"]}
        own |= {word: rows[word.title()] for word in ("onset", "apex", "offset")}
        pd.DataFrame(own).to_csv(tmp_path / name / "clips.csv", index=False)
    two = {"data": tmp_path / "a", "more_data": (tmp_path / "b",), "protocol": "leave-one-dataset-out"}
    folder = runner.main(make_config(**two, seeds=2))
    assert "seed                    F1 F1 both" in capsys.readouterr().out
    run = folder / "seed1"
    predictions = read_predictions(run / "predictions.csv")
    assert (predictions["fold"] == predictions["dataset"]).all() and predictions["fold"].nunique() == 2
    summary = json.loads((run / "summary.json").read_text())
    each = [row["f1"] for row in summary["per_dataset"]]
    assert summary["mean_of_datasets"]["f1"] == pytest.approx(np.mean(each))
    assert list(pd.read_csv(folder / "seeds.csv")) == ["seed", "f1", "f1_both"]
    exp = set_up(make_config(**two))
    assert [exp.data.subjects[fold.train][0][0] for fold in exp.folds] == ["b", "a"]
    assert not [remark for remark in exp.remarks if remark.startswith("No training clip of fold")]
    # A unit that one data set alone shows.
    for name, before, now in (("a", "1+2", "1+2+9"), ("b", "4+9", "4")):
        path = tmp_path / name / "clips.csv"
        path.write_text(path.read_text().replace(before, now))
    exp = set_up(make_config(**two))
    said = [remark for remark in exp.remarks if remark.startswith("No training clip of fold")]
    assert said == ["No training clip of fold a shows AU9, so no model could learn that."]


def test_shuffled_labels_are_the_same_labels(make_config: MakeConfig) -> None:
    plain, shuffled = (set_up(make_config(shuffle_labels=yes)).data.labels for yes in (False, True))
    assert (plain.sum(0) == shuffled.sum(0)).all() and (plain != shuffled).any()
    assert sorted(map(tuple, plain)) == sorted(map(tuple, shuffled))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "emotion3"}, "--labels expected auto with --task units, got 'emotion3'"),
        ({"loss": "mse"}, "--loss expected ce with --task units: binary cross entropy, got 'mse'"),
        ({"class_weights": True}, "--class-weights expected no such flag with --task units"),
        ({"task": "unit"}, "--task expected one of emotion, units, got 'unit'"),
    ],
)
def test_settings_that_do_not_apply_are_refused(
    make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_the_papers_tables_are_of_emotions(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="--task expected emotion, which the paper's tables are of"):
        ablate(make_config(), "2")


def test_an_older_run_is_one_of_emotions(make_config: MakeConfig) -> None:
    emotions = {"task": "emotion", "labels": "emotion3", "only": ("1",), "name": "old"}
    run = runner.main(make_config(**emotions))
    config = json.loads((run / "config.json").read_text())
    del config["task"]
    (run / "config.json").write_text(json.dumps(config))
    assert runner.main(make_config(**emotions, resume=True)) == run
    with pytest.raises(ValueError, match="task was 'emotion', is 'units'"):
        runner.main(make_config(name="old", resume=True))


def loss_by_hand(logits: Tensor, label: Tensor, weights: np.ndarray, smoothing: float) -> float:
    """The mean of -w t log p - (1 - t) log(1 - p) in float64, one number after the other."""
    total = 0.0
    for row, shown in zip(logits.tolist(), label.tolist(), strict=True):
        for x, y, weight in zip(row, shown, weights, strict=True):
            p, t = 1 / (1 + np.exp(-x)), y * (1 - smoothing) + smoothing / 2
            total -= weight * t * np.log(p) + (1 - t) * np.log(1 - p)
    return total / logits.numel()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_a_weighted_cross_entropy_of_each_unit(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64)
    label, weights = torch.randint(0, 2, (6, 3)), np.array([1.0, 2.5, 7.0])
    loss = UnitLoss(weights, smoothing=smoothing)
    whole = loss(logits, label)
    assert whole.item() == pytest.approx(loss_by_hand(logits, label, weights, smoothing), abs=1e-12)
    plain = UnitLoss(np.ones(3))(logits, label)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(logits, label.double()))
    # The parts of a batch add up to it.
    total = loss.total_weight(label)
    parts = [loss(logits[rows], label[rows], total) for rows in (slice(0, 4), slice(4, 6))]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_weights_balance_what_is_shown_up_to_a_bound() -> None:
    targets = np.zeros((200, 3), dtype=np.int64)
    targets[:50, 0], targets[:2, 1] = 1, 1
    ones = np.ones(200)
    np.testing.assert_allclose(positive_weights(targets, ones), [3, MAX_WEIGHT, MAX_WEIGHT])
    often = np.where(targets[:, 0] == 1, 3.0, 1.0)
    assert positive_weights(targets, often)[0] == pytest.approx(1)
