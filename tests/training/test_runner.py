"""Training on rendered data: killed and resumed, stopped by NaN or a full disk, and its run folder."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from hsta_fast import ModelInputs, info, ops
from hsta_fast.checkpoint import load_model
from hsta_fast.protocol import read_predictions
from hsta_fast.training import loop, runner
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.optim import NonFiniteLossError, learning_rate
from hsta_fast.training.setup import RENDERED, describe, fill_cache, pick_device, set_up
from tests.training.commands import output, start

SMALL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 48, "num_frames": 2},
    **{
        "labels": "emotion3",
        "protocol": "kfold",
        "folds": 2,
        "batch_size": 6,
        "lr": 1e-3,
        "warmup_epochs": 1,
        "dtype": "float32",
    },
}
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make_config(faces: Path, tmp_path: Path) -> MakeConfig:
    """A quick configuration on the shared rendered faces, with changes."""

    def make(**changes: Any) -> TrainConfig:
        return recipe_config("paper", **{**SMALL, "data": faces, "runs": tmp_path / "runs", **changes})

    return make


@pytest.fixture(scope="module")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one epoch in one process, unbroken: only to be read."""
    runs = tmp_path_factory.mktemp("whole")
    return runner.main(recipe_config("paper", **SMALL, data=faces, runs=runs, epochs=1, name="whole"))


def outcome(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """The results of a run: its predictions, and its metrics without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["clips_per_second"]
    lines.sort(key=lambda line: (line["fold"], line["epoch"]))
    return (run / "predictions.csv").read_text(), lines


def lines_of(run: Path) -> int:
    """The number of epochs that a run has recorded, in finished and unfinished folds."""
    return sum(len(path.read_text().splitlines()) for path in run.glob("folds/*/metrics.jsonl"))


def test_a_run_leaves_all_its_files(make_config: MakeConfig) -> None:
    cfg = make_config(epochs=2, name="whole")
    run = runner.main(cfg)
    assert {p.name for p in run.iterdir()} >= {
        *("config.json", "clips.csv", "faults.csv", "metrics.jsonl", "predictions.csv", "summary.json"),
        *("curves.png", "confusion.png", "report.html"),
    }
    config = json.loads((run / "config.json").read_text())
    assert config["classes"] == ["negative", "positive", "surprise"] and config["num_folds"] == 2
    assert config["notes"] == [RENDERED] and config["architecture"]["widths"] == [96, 192]
    predictions = read_predictions(run / "predictions.csv")
    assert len(predictions) == 24 == len(predictions[["subject", "clip", "onset"]].drop_duplicates())
    shares = predictions[[f"p_{name}" for name in config["classes"]]].to_numpy()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert (shares.argmax(1) == predictions["predicted"]).all()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(m["fold"], m["epoch"]) for m in metrics] == [("1", 1), ("1", 2), ("2", 1), ("2", 2)]
    assert not list(run.rglob("state.pt")) and not list(run.rglob("*.tmp"))
    assert "on 24 clips; 0 predictions differ" in evaluate(run)
    assert "with the saved models in int8: UF1" in evaluate(run, int8=True)
    model = load_model(run / "folds" / "01" / "model.safetensors")
    assert model.inputs is not None  # where the face lies: tests/training/test_face_recipes.py
    expected = ModelInputs(classes=tuple(config["classes"]), image_size=48, num_frames=2)
    assert replace(model.inputs, framing=None) == expected
    tested = set("casme3/" + predictions[predictions["fold"].astype(str) == "1"]["subject"])
    trained = json.dumps(sorted({f"casme3/spNO.{n}" for n in (1, 2, 3, 4)} - tested))
    assert model.notes == {"caveats": RENDERED, "trained_subjects": trained}
    with safe_open(run / "folds" / "01" / "model.safetensors", framework="pt") as file:
        metadata = " ".join(file.metadata().values())
    assert str(cfg.data) not in metadata and str(cfg.runs) not in metadata


def test_the_same_seed_gives_the_same_run_and_another_does_not(make_config: MakeConfig, whole: Path) -> None:
    runs = [runner.main(make_config(epochs=1, name=f"r{i}", seed=i)) for i in range(2)]
    first, again, other = (outcome(run) for run in (whole, *runs))
    assert first == again
    assert first[1] != other[1]


def test_bytes_reach_the_embedding_and_the_run_says_what_embeds(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    embed, seen = ops.tubelet_embed, set()

    def watched(video: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.add((video.dtype, video.device.type, video.shape[2], kwargs["mean"] is not None))
        return embed(video, *args, **kwargs)

    monkeypatch.setattr(ops, "tubelet_embed", watched)
    cfg = make_config(epochs=1, name="bytes", num_frames=4, only=("1",))
    runner.main(cfg)
    device, dtype, _ = pick_device(cfg.device, cfg.dtype)
    assert seen == {(torch.uint8, device.type, frames, True) for frames in (2, 4)}  # both branches
    choice = info(dtype)["ops"][{"cpu": "cpu", "cuda": "cuda:0"}[device.type]]["tubelet_embed"]
    assert f"tubelet_embed          {choice['impl']:10s} {choice['reason']}" in capsys.readouterr().out


def test_folds_do_not_depend_on_each_other(make_config: MakeConfig, whole: Path) -> None:
    second = runner.main(make_config(epochs=1, name="second", only=("2",)))
    both = read_predictions(whole / "predictions.csv")
    part = read_predictions(second / "predictions.csv")
    pd.testing.assert_frame_equal(both[both["fold"] == "2"].reset_index(drop=True), part)


def command(cfg: TrainConfig, *flags: str) -> list[str]:
    """The command line of `cfg`."""
    given = {
        "data": cfg.data,
        "runs": cfg.runs,
        "name": cfg.name,
        "epochs": cfg.epochs,
        "save-every": cfg.save_every,
    }
    given |= {"model": cfg.model, "num-layers": cfg.num_layers, "n-video": cfg.n_video, "labels": cfg.labels}
    given |= {"image-size": cfg.image_size, "num-frames": cfg.num_frames, "protocol": cfg.protocol}
    given |= {
        "folds": cfg.folds,
        "batch-size": cfg.batch_size,
        "lr": cfg.lr,
        "warmup-epochs": cfg.warmup_epochs,
        "dtype": cfg.dtype,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["train", *words, *flags]


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.full)])
def test_killed_at_random_moments_and_resumed(make_config: MakeConfig, kills: int) -> None:
    """kill -9, and --resume after each: the same numbers as an unbroken run, with every random part on."""
    settings = {"epochs": 12, "save_every": 3}
    random_too = ("--dropout", "0.1", "--drop-path", "0.1", "--flip", "--crop", "1")
    unbroken = make_config(name="unbroken", **settings)
    broken = make_config(name="broken", **settings)
    output(*command(unbroken, *random_too))
    moments = random.Random(time.time())
    for number in range(kills):
        # Each goal lies in its own part of the 24 epochs, before the last one: there is a run to kill.
        goal = 22 * number // kills + moments.randint(0, 22 // kills)
        # A process that is killed before it has created the run leaves nothing to resume.
        resume = ["--resume"] if (broken.runs / "broken" / "config.json").exists() else []
        process = start(*command(broken, *resume, *random_too))
        while process.poll() is None and lines_of(broken.runs / "broken") < goal:
            time.sleep(0.01)
        time.sleep(moments.random() * 0.2)
        assert process.poll() is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert "report.html" in output(*command(broken, "--resume", *random_too))
    assert outcome(broken.runs / "broken") == outcome(unbroken.runs / "unbroken")
    for fold in ("01", "02"):
        ours, theirs = (
            load_model(cfg.runs / cfg.name / "folds" / fold / "model.safetensors").state_dict()
            for cfg in (broken, unbroken)
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_finished_folds_are_not_repeated(make_config: MakeConfig) -> None:
    cfg = make_config(epochs=1, name="again")
    run = runner.main(cfg)
    model = run / "folds" / "01" / "model.safetensors"
    before = model.stat().st_mtime_ns
    runner.main(make_config(epochs=1, name="again", resume=True))
    assert model.stat().st_mtime_ns == before


def test_a_run_is_neither_overwritten_nor_continued_otherwise(make_config: MakeConfig) -> None:
    runner.main(make_config(epochs=1, name="mine", only=("1",)))
    nowhere = make_config().runs / "nowhere"  # both are said before any data are read
    for changes in ({}, {"data": nowhere}):
        with pytest.raises(ValueError, match="mine exists: give --resume"):
            runner.main(make_config(epochs=1, name="mine", **changes))
        with pytest.raises(ValueError, match=r"cannot be continued: .*lr was 0\.001, is 0\.1"):
            runner.main(make_config(epochs=1, name="mine", only=("1",), lr=0.1, resume=True, **changes))


def test_two_processes_do_not_train_the_same_run(make_config: MakeConfig) -> None:
    cfg = make_config(name="shared", epochs=500)
    first = start(*command(cfg))
    try:
        while not lines_of(cfg.runs / "shared"):
            assert first.poll() is None
            time.sleep(0.05)
        with pytest.raises(ValueError, match="is in use"):
            runner.main(make_config(name="shared", epochs=500, resume=True))
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()


def test_a_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that overflows, after two good epochs: training really diverges, no NaN is planted."""
    settings = {"name": "nan", "epochs": 8, "save_every": 1, "only": ("1",)}
    rate = learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda cfg, epoch: rate(cfg, epoch) if epoch < 2 else 1e30)
    with pytest.raises(NonFiniteLossError, match=r"epoch \d.*: loss expected a finite number, .*state.pt"):
        runner.main(make_config(**settings))
    monkeypatch.undo()
    folder = make_config(**settings).runs / "nan" / "folds" / "01"
    assert not (folder / "predictions.csv").exists()
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    run = runner.main(make_config(**settings, resume=True))
    assert len(read_predictions(run / "predictions.csv")) == 12


def test_a_full_disk_while_saving(make_config: MakeConfig) -> None:
    """The disk fills while saving: one clear line, the first checkpoint stays whole, and the run resumes."""
    cfg = make_config(name="full", epochs=30, save_every=1, only=("1",))
    state = cfg.runs / "full" / "folds" / "01" / "state.pt"
    args = command(cfg, "--only", "1")
    first = start(*args)
    while not state.exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = state.read_bytes()
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)); "
    full = start(*args, "--resume", before=limit)
    _, err = full.communicate()
    assert full.returncode == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: could not write") and "state.pt" in last and "untouched" in last
    assert "Traceback" not in err
    assert state.read_bytes() == before
    assert not [p for p in (cfg.runs / "full").rglob("*") if p.name.endswith(".tmp")]
    run = runner.main(make_config(name="full", epochs=30, save_every=1, only=("1",), resume=True))
    assert len(read_predictions(run / "predictions.csv")) == 12


@pytest.mark.parametrize(
    "kill_after", ["folds/01/predictions.csv", "folds/02/predictions.csv", "predictions.csv"]
)
def test_killed_right_after_a_file_is_in_place(make_config: MakeConfig, whole: Path, kill_after: str) -> None:
    """kill -9 at the moment when a fold's last file, or the pooled one, is in place; then --resume."""
    cfg = make_config(epochs=1, name="killed")
    place = cfg.runs / "killed" / kill_after
    trap = f"import os; move, target = os.replace, {str(place)!r}; "
    trap += "os.replace = lambda a, b: (move(a, b), os.kill(os.getpid(), 9) if str(b) == target else None); "
    assert start(*command(cfg), before=trap).wait() == -signal.SIGKILL and place.exists()
    run = runner.main(make_config(epochs=1, name="killed", resume=True))
    assert outcome(run) == outcome(whole)
    pooled = [json.loads((r / "summary.json").read_text())["pooled"] for r in (run, whole)]
    assert pooled[0] == pooled[1]
    assert not list(run.rglob("state.pt")) and not list(run.rglob("*.tmp"))


def test_a_run_may_be_moved_and_cut_into_folds(make_config: MakeConfig, whole: Path, tmp_path: Path) -> None:
    runner.main(make_config(epochs=1, name="cut", only=("2",)))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "runs" / "cut", tmp_path / "elsewhere" / "moved")
    run = runner.main(make_config(epochs=1, name="moved", runs=tmp_path / "elsewhere", resume=True))
    assert outcome(run) == outcome(whole)


def test_controls_and_the_published_recipe(make_config: MakeConfig, faces: Path, tmp_path: Path) -> None:
    exp = set_up(make_config(shuffle_labels=True, onset_only=True))
    plain = set_up(make_config())
    assert sorted(exp.data.labels) == sorted(plain.data.labels)
    assert not np.array_equal(exp.data.labels, plain.data.labels)
    batch = next(exp.data.batches([0], batch_size=1, seed=(0,), train=False))
    frames = torch.cat([batch.video, batch.special], dim=2)
    assert (frames == frames[:, :, :1]).all()
    notes = describe(exp)["notes"]
    assert any("shuffled" in note for note in notes) and any("onset frame" in note for note in notes)
    settings = {**SMALL, "data": faces, "runs": tmp_path, "epochs": 1, "only": ("1",), "name": "published"}
    settings |= {"onset_only": True}
    run = runner.main(recipe_config("published", **settings))
    model = load_model(run / "folds" / "01" / "model.safetensors")
    assert model.inputs is not None and (model.inputs.sampling, model.inputs.offset_cap) == ("random", 50)
    assert model.inputs.onset_only and "Control: every frame is the onset frame." in model.notes["caveats"]


@pytest.mark.parametrize(
    "changes", [{"loss": "mse", "label_smoothing": 0.1}, {"class_weights": True, "clip_grad": 0.1}]
)
@pytest.mark.parametrize("branches", [("video",), ("special",), ("special", "video")])
def test_every_loss_and_branch_trains(
    make_config: MakeConfig, changes: dict[str, Any], branches: Any
) -> None:
    run = runner.main(make_config(epochs=1, only=("1",), branches=branches, flip=True, crop=2, **changes))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["train_loss"] for line in lines]).all()


def test_the_cache_changes_no_number(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cache, while filling it, and from it without decoding: the same run."""
    settings: dict[str, Any] = {"epochs": 1, "flip": True, "crop": 2}
    plain = runner.main(make_config(name="plain", cache="none", **settings))
    cfg = make_config(name="filling", **settings)
    filling = runner.main(cfg)
    assert list((cfg.runs / ".cache").rglob("*.chunk"))
    monkeypatch.setattr(cv2, "imdecode", None)
    out_of_it = runner.main(make_config(name="out", cache=str(cfg.runs / ".cache"), **settings))
    assert outcome(plain) == outcome(filling) == outcome(out_of_it)
    # The cache may change when a run is continued.
    runner.main(make_config(name="out", cache="auto", cache_gb=1.0, resume=True, **settings))


def test_optical_flow_and_apexes_by_motion(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"flow": "dis", "apex": "motion-all", "flip": True, "only": ("1",)}
    cfg = make_config(epochs=1, name="flow", **settings)
    assert str(cfg.runs / ".cache") in fill_cache(cfg)
    batch = next(set_up(cfg).data.batches([0, 5], batch_size=2, seed=(0,), train=False))
    assert batch.special.dtype == torch.float32 and batch.special.shape == (2, 3, 2, 48, 48)
    capsys.readouterr()
    run = runner.main(cfg)
    said = capsys.readouterr().out
    assert "method dis" in said and "by motion in every clip" in said
    pictures = json.loads((run / "config.json").read_text())["pictures"]
    assert pictures["special"]["method"] == "dis" and pictures["special"]["scale"] == 100
    assert pictures["frames"]["size"] == 48 and pictures["apex"]["flow"] == "farneback"
    assert "0 predictions differ" in evaluate(run)
    inputs = load_model(run / "folds" / "01" / "model.safetensors").inputs
    assert inputs is not None and (inputs.flow, inputs.apex) == ("dis", "motion-all")
    again = runner.main(make_config(epochs=1, name="again", cache="none", **settings))
    assert outcome(run) == outcome(again)


def test_leave_one_subject_out(make_config: MakeConfig) -> None:
    run = runner.main(make_config(epochs=1, protocol="loso"))
    predictions = read_predictions(run / "predictions.csv")
    assert (predictions["fold"] == "casme3/" + predictions["subject"]).all()


def test_devices() -> None:
    device, dtype, why = pick_device("cpu", "bfloat16")
    assert (device.type, dtype, why) == ("cpu", torch.bfloat16, "as asked for")
    assert pick_device("auto", "auto")[2]
    for wrong in ("gpu", "cuda:99", "cpu:3", "meta"):
        with pytest.raises(ValueError, match="--device"):
            pick_device(wrong, "auto")


def test_faulty_clips_are_listed_and_strict_raises(
    make_config: MakeConfig, faces: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(faces, copy)
    table = pd.read_csv(copy / "annotation.csv")
    row = table.iloc[0]
    broken = copy / row["Subject"] / row["Filename"] / "color" / f"{row['Onset']}.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    run = runner.main(make_config(data=copy, epochs=1, name="faulty"))
    faults = pd.read_csv(run / "faults.csv")
    assert len(faults) == 1 and "truncated" in faults["what"][0] and faults["action"][0] == "clip left out"
    assert len(read_predictions(run / "predictions.csv")) == 23
    filled = fill_cache(make_config(data=copy))
    assert "1 faults of the dataset, all listed by hsta-fast doctor; the first ones:\n" in filled
    with pytest.raises(ValueError, match=f"{row['Onset']}.jpg"):
        runner.main(make_config(data=copy, epochs=1, name="strict", strict=True))


def test_evaluate_expects_a_run_with_the_same_clips(
    make_config: MakeConfig, faces: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="is not a run"):
        evaluate(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(faces, copy)
    run = runner.main(make_config(data=copy, epochs=1, name="changed"))
    table = pd.read_csv(copy / "annotation.csv")
    assert "0 predictions differ" in evaluate(run, [faces])  # the same clips, elsewhere
    # The second: as many clips of each class and subject as before, but other ones.
    rotated = table.groupby("Subject")["emotion"].transform(lambda words: np.roll(words, 1))
    for changed in (table.iloc[1:], table.assign(emotion=rotated)):
        changed.to_csv(copy / "annotation.csv", index=False)
        with pytest.raises(ValueError, match="other clips, apexes or labels: of its 24 clips"):
            evaluate(run)
        with pytest.raises(ValueError, match=r"other clips, apexes or labels|cannot be continued"):
            runner.main(make_config(data=copy, epochs=1, name="changed", resume=True))
