"""Runs under each protocol: what is trained and tested, which epoch is chosen, what is marked leaky."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from safetensors import safe_open

from hsta_fast.checkpoint import load_model
from hsta_fast.clips import subject_ids
from hsta_fast.protocol import audit, best_epoch, read_predictions
from hsta_fast.training import loop, runner
from hsta_fast.training.ablate import ablate
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.fold import choose_epoch, train_fold
from hsta_fast.training.loop import fit
from hsta_fast.training.optim import learning_rate
from hsta_fast.training.progress import Progress
from hsta_fast.training.run_folder import FoldFolder
from hsta_fast.training.setup import set_up
from hsta_fast.training.splits import inner_of

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make_config(faces: Path, tmp_path: Path) -> MakeConfig:
    """A quick configuration on the shared rendered faces (4 subjects of 6 clips), with changes."""
    small: dict[str, Any] = {"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32}
    small |= {"num_frames": 2, "labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 6}
    small |= {"lr": 1e-3, "warmup_epochs": 1, "epochs": 3, "data": faces, "runs": tmp_path / "runs"}

    def make(**changes: Any) -> TrainConfig:
        return recipe_config("paper", **{**small, **changes})

    return make


@pytest.fixture
def two_sets(faces: Path, tmp_path: Path) -> dict[str, Any]:
    """Half of the rendered subjects as a dataset "a", the other half as "b"."""
    table = pd.read_csv(faces / "annotation.csv")
    subjects = table["Subject"].unique()
    for name, half in (("a", subjects[:2]), ("b", subjects[2:])):
        for subject in half:
            shutil.copytree(faces / subject, tmp_path / name / subject)
        rows = table[table["Subject"].isin(half)]
        own = {"dataset": name, "subject": rows["Subject"], "clip": rows["Filename"]}
        own |= {"path": rows["Subject"] + "/" + rows["Filename"] + "/color", "emotion": rows["emotion"]}
        own |= {word: rows[word.title()] for word in ("onset", "apex", "offset")}
        pd.DataFrame(own).to_csv(tmp_path / name / "clips.csv", index=False)
    return {"data": tmp_path / "a", "more_data": (tmp_path / "b",)}


def test_the_composite(make_config: MakeConfig, two_sets: dict[str, Any], tmp_path: Path) -> None:
    run = runner.main(make_config(**two_sets, protocol="composite", epochs=1))
    predictions = read_predictions(run / "predictions.csv")
    assert predictions["fold"].nunique() == 4
    assert (predictions["fold"] == predictions["dataset"] + "/" + predictions["subject"]).all()
    summary = json.loads((run / "summary.json").read_text())
    assert [row["dataset"] for row in summary["per_dataset"]] == ["a", "b"]
    assert not audit(run / "predictions.csv", run / "clips.csv", run / "folds.csv")[1]
    assert "0 predictions differ" in evaluate(run)
    both = [two_sets["data"].rename(tmp_path / "a2"), two_sets["more_data"][0].rename(tmp_path / "b2")]
    assert "0 predictions differ" in evaluate(run, both)
    with pytest.raises(ValueError, match="--data expected a folder for each of .*a, .*b, got 1 for 2"):
        evaluate(run, both[:1])
    two_sets |= {"data": both[0], "more_data": tuple(both[1:])}
    with pytest.raises(ValueError, match="at least 2 datasets, got b"):
        set_up(make_config(**two_sets, protocol="composite", datasets=("b",)))
    with pytest.raises(ValueError, match=r"--datasets expected some of a, b, got c"):
        set_up(make_config(**two_sets, datasets=("c",)))


def test_from_one_data_set_to_another(make_config: MakeConfig, two_sets: dict[str, Any]) -> None:
    cfg = make_config(**two_sets, protocol="cross-dataset", train_on=("b",), test_on=("a",), epochs=1)
    run = runner.main(cfg)
    predictions = read_predictions(run / "predictions.csv")
    assert set(predictions["dataset"]) == {"a"} and len(predictions) == 12
    assert set(predictions["fold"]) == {"b to a"}
    assert sum(json.loads((run / "config.json").read_text())["train_counts"]["b to a"]) == 12
    with pytest.raises(ValueError, match="--train-on expected --protocol cross-dataset"):
        make_config(train_on=("a",))


def test_several_seeds_decode_once(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of all seeds, and of an ablation's rows, read their frames from one cache."""
    runner.main(make_config(epochs=1))
    monkeypatch.setattr(cv2, "imdecode", None)
    cfg = make_config(epochs=1, seeds=2, name="seeds")
    run = runner.main(cfg)
    assert ablate(make_config(epochs=1, seeds=2, name="table"), "2", ["a1"])
    assert (run / "seed1" / "predictions.csv").exists()
    assert [path.parent for path in cfg.runs.rglob("recipe.json")] == list((cfg.runs / ".cache").iterdir())
    # With --cache none, the run of a seed has no cache either.
    assert make_config(cache="none").child_run("seed0").cache_folder() is None


def some_macro(faces: Path, folder: Path) -> Path:
    """The rendered faces with every third clip annotated as a macro-expression."""
    shutil.copytree(faces, folder)
    table = pd.read_csv(folder / "annotation.csv")
    kinds = np.where(np.arange(len(table)) % 3 == 0, "Macro-expression", "Micro-expression")
    table.assign(**{"Expression type": kinds}).to_csv(folder / "annotation.csv", index=False)
    return folder


def test_macro_expressions_train_and_are_never_tested(
    make_config: MakeConfig, faces: Path, tmp_path: Path
) -> None:
    data = some_macro(faces, tmp_path / "macro")
    exp = set_up(make_config(data=data, macro=True, protocol="loso"))
    people = np.array(subject_ids(exp.data.table.clips))
    macro = (exp.data.table.clips["expression"] == "macro").to_numpy()
    assert macro.sum() == 8
    for fold in exp.folds:
        assert not macro[fold.test].any() and macro[fold.train].sum() == 6
        assert fold.name not in people[fold.train]
    run = runner.main(make_config(data=data, macro=True, epochs=1))
    assert len(read_predictions(run / "predictions.csv")) == 16
    text, leaks = audit(run / "predictions.csv", run / "clips.csv", run / "folds.csv")
    assert not leaks and "by folds.csv" in text
    with pytest.raises(ValueError, match="--macro expected macro-expressions in the dataset, got none"):
        set_up(make_config(macro=True))


def test_published_folds_stamp_every_output(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner.main(make_config(protocol="published-folds", select="best-test-epoch"))
    assert json.loads((run / "config.json").read_text())["leaky"]
    predictions = read_predictions(run / "predictions.csv")
    assert predictions["leaky"].str.contains("--protocol published-folds").all()
    assert predictions["leaky"].str.contains("--select best-test-epoch").all()
    assert all("leaky" in json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert json.loads((run / "summary.json").read_text())["leaky"]
    out = capsys.readouterr().out
    assert out.index("LEAKY: --protocol published-folds") < out.index("clips of"), "before it trains"
    for text in (out, (run / "report.html").read_text(), evaluate(run)):
        assert "LEAKY: --protocol published-folds" in text and "LEAKY: --select best-test-epoch" in text
        assert "are of people who are in training" in text
    for name in ("clips.csv", "faults.csv", "folds.csv"):
        table = pd.read_csv(run / name)
        assert "leaky" in table and (table["leaky"].str.contains("--protocol published-folds")).all(), name
    with safe_open(run / "folds" / "01" / "model.safetensors", framework="pt") as file:
        assert "--protocol published-folds" in file.metadata()["leaky"]
    assert load_model(run / "folds" / "01" / "model.safetensors")
    for name in ("curves.png", "confusion.png"):
        top = imread(run / name)[:60, :, :3]
        assert ((top[..., 0] > 0.5) & (top[..., 1] < 0.2)).any(), "red letters across the top"
    assert audit(run / "predictions.csv")[1]


def test_seeds_of_a_leaky_run_are_stamped(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runner.main(make_config(protocol="published-folds", epochs=1, seeds=2))
    assert pd.read_csv(folder / "seeds.csv")["leaky"].str.contains("published-folds").all()
    table = capsys.readouterr().out.split("2 seeds, pooled scores", 1)[1]
    assert table.startswith(" of each, LEAKY\nLEAKY: --protocol published-folds")


def test_a_run_goes_on_with_the_folds_and_clips_it_was_started_on_alone(
    make_config: MakeConfig, two_sets: dict[str, Any], faces: Path, tmp_path: Path
) -> None:
    cfg = make_config(**two_sets, epochs=1, only=("1",), name="x")
    run = runner.main(cfg)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    swapped = {"data": two_sets["more_data"][0], "more_data": (two_sets["data"],)}
    with pytest.raises(ValueError, match="was started on these clips in another order"):
        runner.main(make_config(**swapped, epochs=1, name="x", resume=True))
    table = pd.read_csv(two_sets["data"] / "clips.csv")
    table.assign(apex=table["apex"] + (table.index == 0)).to_csv(two_sets["data"] / "clips.csv", index=False)
    with pytest.raises(ValueError, match="other clips, apexes or labels: of its 24 clips 23 are among"):
        runner.main(make_config(**two_sets, epochs=1, name="x", resume=True))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    first = runner.main(make_config(epochs=1, name="first", protocol="kfold"))
    files = shutil.copy(first / "folds.csv", tmp_path / "folds.csv")
    by_clip = {"protocol": "published-folds", "fold_files": files, "epochs": 1, "name": "y"}
    runner.main(make_config(**by_clip, only=("1",)))
    rows = pd.read_csv(files)
    rows["fold"] = 3 - rows["fold"]
    rows.to_csv(files, index=False)
    with pytest.raises(
        ValueError,
        match="y was started on other folds .* give the same --folds, --seed",
    ):
        runner.main(make_config(**by_clip, resume=True))


def test_a_prediction_that_was_changed_is_no_prediction_of_the_run(make_config: MakeConfig) -> None:
    run = runner.main(make_config(epochs=1))
    path = run / "predictions.csv"
    whole = pd.read_csv(path)
    whole.assign(label=whole["predicted"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match="expected the labels and folds of the run, got [0-9]+ others"):
        evaluate(run)
    pd.concat([whole, whole.iloc[:2].assign(subject="spNO.9")]).to_csv(path, index=False)
    with pytest.raises(
        ValueError, match="expected the 24 clips of the finished folds, got 26 clips, 24 of them"
    ):
        evaluate(run)


def test_the_same_frames_under_two_names_are_one_person(
    make_config: MakeConfig, two_sets: dict[str, Any], faces: Path
) -> None:
    """With and without a cache; by name alone, this person would be in training and test at once."""
    for cache in ("auto", "none"):
        exp = set_up(make_config(data=faces, more_data=(two_sets["data"],), cache=cache))
        assert set(exp.data.table.clips["dataset"]) == {"casme3"} and len(exp.data) == 24
        assert len(exp.data.table.faults) == 12
        assert "one person under two names: the frames of a " in exp.data.table.faults[0].what


def test_no_other_run_is_stamped(make_config: MakeConfig) -> None:
    run = runner.main(make_config(epochs=1, select="inner", inner_folds=2))
    config = json.loads((run / "config.json").read_text())
    assert config["leaky"] == []
    for name in ("predictions.csv", "metrics.jsonl", "seeds.csv"):
        assert not (run / name).exists() or "leaky" not in (run / name).read_text()


def test_folds_from_the_file_of_another_run(make_config: MakeConfig) -> None:
    first = runner.main(make_config(epochs=1, name="first"))
    again = make_config(epochs=1, name="again", protocol="published-folds", fold_files=first / "folds.csv")
    run = runner.main(again)
    key = ["subject", "clip", "onset", "fold"]
    ours, theirs = (read_predictions(r / "predictions.csv") for r in (run, first))
    pd.testing.assert_frame_equal(ours[key], theirs[key])
    assert json.loads((run / "config.json").read_text())["leaky"]
    with pytest.raises(ValueError, match="--fold-files expected --protocol published-folds"):
        make_config(fold_files=first / "folds.csv")


def test_the_best_test_epoch_is_that_of_the_curve(make_config: MakeConfig) -> None:
    """The saved model predicts what it did after the epoch with the best score on the test clips."""
    run = runner.main(make_config(select="best-test-epoch", epochs=5, only=("1",)))
    predictions = read_predictions(run / "predictions.csv")
    [epoch] = set(predictions["epoch"].astype(int))
    exp = set_up(make_config(select="best-test-epoch", epochs=5))
    folder = experiment_folder(run)
    _, predicted = fit(exp, folder, exp.folds[0], (0,), 5, Progress())
    assert best_epoch(exp.data.labels[exp.folds[0].test], predicted, 3) + 1 == epoch
    assert predicted[epoch - 1].tolist() == predictions["predicted"].tolist()
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[epoch - 1])
    assert line["test_acc"] == pytest.approx((predictions["label"] == predictions["predicted"]).mean())


def experiment_folder(run: Path) -> FoldFolder:
    """A fold folder next to those of a run."""
    folder = FoldFolder(run / "beside")
    folder.path.mkdir()
    return folder


def test_inner_folds_choose_the_epoch_without_the_test_clips(make_config: MakeConfig) -> None:
    """With every label of the test clips changed, the chosen epoch and the model are the same."""
    cfg = make_config(select="inner", inner_folds=2, epochs=4, only=("1",))
    run = runner.main(cfg)
    [epoch] = set(read_predictions(run / "predictions.csv")["epoch"].astype(int))
    exp = set_up(cfg)
    parts = inner_of(exp.cfg, exp.data.table, exp.folds[0])
    predicted = [np.load(run / "folds" / "01" / "inner" / f"{i + 1:02d}" / "answers.npy") for i in range(2)]
    with pytest.raises(ValueError, match="--inner-folds expected 2 to 2, the number of training subjects of"):
        inner_of(replace(cfg, inner_folds=9), exp.data.table, exp.folds[0])
    assert [array.shape for array in predicted] == [(4, len(part.test)) for part in parts]
    truth = np.concatenate([exp.data.labels[part.test] for part in parts])
    assert epoch == best_epoch(truth, np.concatenate(predicted, axis=1), 3) + 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, epoch + 1))
    changed = exp.data.labels.copy()
    changed[exp.folds[0].test] = (changed[exp.folds[0].test] + 1) % 3
    exp.data.labels = changed
    folder = experiment_folder(run)
    train_fold(exp, folder, 0)
    first, second = (load_model(p / "model.safetensors") for p in (run / "folds" / "01", folder.path))
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_predictions_of_all_inner_folds_choose_together(make_config: MakeConfig, tmp_path: Path) -> None:
    """Planted predictions: the first inner fold alone would choose epoch 1, the second 3, both together 2."""
    exp = set_up(make_config(select="inner", inner_folds=2))
    folder = FoldFolder(tmp_path / "planted")
    for i, (inner, right) in enumerate(
        zip(inner_of(exp.cfg, exp.data.table, exp.folds[0]), ([6, 5, 0], [0, 5, 6]), strict=True)
    ):
        truth = exp.data.labels[inner.test]
        assert len(truth) == 6
        predicted = [np.where(np.arange(6) < n, truth, (truth + 1) % 3) for n in right]
        folder.inner(i).path.mkdir(parents=True)
        np.save(folder.inner(i).path / "answers.npy", np.array(predicted))
    assert choose_epoch(exp, folder, 0) == 2


@pytest.mark.parametrize(
    ("select", "older"), [("inner", False), ("best-test-epoch", False), ("best-test-epoch", True)]
)
def test_a_run_that_chooses_its_epoch_goes_on_after_a_stop(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, select: str, older: bool
) -> None:
    """older: from a state of a version that named the predictions "answers"."""
    settings = {"select": select, "inner_folds": 2, "epochs": 4, "save_every": 2, "only": ("1",)}
    whole = runner.main(make_config(name="whole", **settings))

    class StoppedError(Exception):
        pass

    epochs = 0

    def stop_midway(cfg: TrainConfig, epoch: float) -> float:
        nonlocal epochs
        epochs += float(epoch).is_integer()
        if epochs == (7 if select == "inner" else 4):
            raise StoppedError
        return learning_rate(cfg, epoch)

    monkeypatch.setattr(loop, "learning_rate", stop_midway)
    with pytest.raises(StoppedError):
        runner.main(make_config(name="broken", **settings))
    monkeypatch.undo()
    if older:
        [path] = (make_config().runs / "broken").rglob("state.pt")
        state = torch.load(path, weights_only=True)
        torch.save({("answers" if key == "predictions" else key): state[key] for key in state}, path)
    run = runner.main(make_config(name="broken", resume=True, **settings))
    assert (run / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
    assert not list(run.rglob("state.pt"))
