"""`hsta-fast pretrain` on rendered clips: its files, its model, and what continues or refuses it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hsta_fast import load_model
from hsta_fast.model import HSTA
from hsta_fast.pretraining import loop
from hsta_fast.pretraining.run import RENDERED, pretrain
from hsta_fast.pretraining.settings import PretrainConfig
from hsta_fast.training import stopping
from hsta_fast.training.loop import seed_torch
from hsta_fast.training.optim import NonFiniteLossError, learning_rate
from tests.training.commands import start

# float32 on the CPU: "auto" depends on the machine.
SMALL: dict[str, Any] = {
    **{"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32, "num_frames": 2},
    **{"dtype": "float32", "device": "cpu", "epochs": 2, "warmup_epochs": 1, "batch_size": 8, "crop": 2},
}
FLAGS = (
    *("--model=hsta_tiny", "--num-layers=1", "--n-video=1", "--image-size=32", "--num-frames=2"),
    *("--dtype=float32", "--warmup-epochs=1", "--batch-size=8"),
)
IMPORTED = ("hsta_fast.cli", "hsta_fast.pretraining.run")
MakeConfig = Callable[..., PretrainConfig]


@pytest.fixture
def make_config(faces: Path, tmp_path: Path) -> MakeConfig:
    def make(**changes: Any) -> PretrainConfig:
        return PretrainConfig(**{**SMALL, "data": faces, "runs": tmp_path / "runs", **changes})

    return make


@pytest.fixture(scope="module")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining of two epochs, unbroken: only to be read."""
    runs = tmp_path_factory.mktemp("whole")
    pretrain(PretrainConfig(**SMALL, data=faces, runs=runs, leave_out=("casme3/spno.4",)))
    return runs / "pretrain"


def metrics_of(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "clips_per_second")} for line in lines]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path / "model.safetensors").state_dict()


def test_it_leaves_its_files_and_a_model_that_says_what_it_has_seen(whole: Path) -> None:
    names = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    files = ("clips.csv", "config.json", "faults.csv", "loss.png", "metrics.jsonl", "model.safetensors")
    assert names == {*files, "reconstruction.png", "run.log"}
    model = load_model(whole / "model.safetensors")
    seen = ["casme3/spNO.1", "casme3/spNO.2", "casme3/spNO.3"]
    assert json.loads(model.notes["pretrained_subjects"]) == seen
    assert "18 clips without labels of 3 subjects (casme3)" in model.notes["pretraining"]
    assert model.notes["caveats"] == RENDERED
    clips = pd.read_csv(whole / "clips.csv")
    assert len(clips) == 18 and set(clips["subject"]) == {"spNO.1", "spNO.2", "spNO.3"}
    config = json.loads((whole / "config.json").read_text())
    assert config["objective"] == "masked tube reconstruction" and config["epochs"] == 2
    assert [entry["ended"] for entry in config["provenance"]] == ["finished"]
    for name in ("loss.png", "reconstruction.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")


def test_csta_and_head_stay_at_their_initialisation_and_all_else_has_moved(whole: Path) -> None:
    model = load_model(whole / "model.safetensors")
    seed_torch(0, 0)
    fresh = HSTA(model.config).state_dict()
    for name, weight in model.state_dict().items():
        is_same = torch.equal(weight, fresh[name])
        assert is_same == (".csta." in name or name.startswith("head.")), name


def test_the_loss_of_each_branch_falls(make_config: MakeConfig, tmp_path: Path) -> None:
    pretrain(make_config(epochs=12, target="pixels", lr=2e-3))
    first, last = (metrics_of(tmp_path / "runs/pretrain")[i] for i in (0, -1))
    for name in ("loss_special", "loss_video"):
        assert last[name] < 0.9 * first[name]


@pytest.mark.parametrize("step", [2, 3])  # in the middle of an epoch, and after its last step
def test_one_stopped_by_a_signal_ends_with_the_numbers_of_an_uninterrupted_one(
    make_config: MakeConfig, whole: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    cfg = make_config(name="stopped", leave_out=("casme3/spNO.4",))
    path, steps = cfg.runs / "stopped", 0
    monkeypatch.setattr(stopping._Request, "asked", False)

    def signalled(cfg: Any, epoch: float) -> float:
        nonlocal steps
        steps += epoch >= 1
        monkeypatch.setattr(stopping._Request, "asked", steps == step)
        return learning_rate(cfg, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", signalled)
        with pytest.raises(stopping.Stopped, match=f"SIGUSR1 in epoch 2, after step {step} of 3; saved"):
            pretrain(cfg)
    monkeypatch.setattr(stopping._Request, "asked", False)
    assert (path / "state.pt").exists() and not (path / "model.safetensors").exists()
    pretrain(make_config(name="stopped", leave_out=("casme3/spNO.4",), resume=True))
    assert metrics_of(path) == metrics_of(whole)
    for name, weight in weights_of(whole).items():
        assert torch.equal(weights_of(path)[name], weight), name
    ended = [entry["ended"] for entry in json.loads((path / "config.json").read_text())["provenance"]]
    assert ended[0].startswith("Stopped: SIGUSR1") and ended[1] == "finished"


def test_a_finished_one_that_is_resumed_stays_as_it_is(whole: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "pretrain")
    settings = SMALL | {"data": faces, "runs": tmp_path, "leave_out": ("casme3/spno.4",)}
    text = pretrain(PretrainConfig(**settings, resume=True))
    assert "is finished" in text
    assert (tmp_path / "pretrain/model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()
    with pytest.raises(ValueError, match="started with other settings.*epochs was 2, is 3"):
        pretrain(PretrainConfig(**settings | {"epochs": 3}, resume=True))
    with pytest.raises(ValueError, match="exists: give --resume to continue it, --overwrite"):
        pretrain(PretrainConfig(**settings))
    pretrain(PretrainConfig(**settings | {"epochs": 1}, overwrite=True))
    assert len(metrics_of(tmp_path / "pretrain")) == 1


def test_other_clips_cannot_continue_it(whole: Path, faces: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(faces, own)
    table = pd.read_csv(own / "annotation.csv")
    table.iloc[1:].to_csv(own / "annotation.csv", index=False)
    shutil.copytree(whole, tmp_path / "pretrain")
    (tmp_path / "pretrain/model.safetensors").unlink()
    settings = SMALL | {"data": own, "runs": tmp_path, "leave_out": ("casme3/spno.4",)}
    with pytest.raises(ValueError, match="started on other clips.*of its 18 clips 17 are among the 17 clips"):
        pretrain(PretrainConfig(**settings, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": True}, "--resume expected a pretraining in .*, got none"),
        ({"resume": True, "overwrite": True}, "--overwrite expected no --resume beside it, got both"),
        (
            {"target": "pixel"},
            "--target expected one of difference, pixels, got 'pixel'; did you mean pixels",
        ),
        ({"mask_ratio": 1.0}, "--mask-ratio expected a number between 0 and 1, got 1.0"),
        ({"visible_weight": -1.0}, "--visible-weight expected a finite number >= 0, got -1.0"),
        ({"decoder_layers": 0}, "--decoder-layers expected a whole number >= 1, got 0"),
        ({"image_size": 30}, "--image-size expected at least 32, two patches of the video branch, got 30"),
        ({"num_frames": 3}, "--num-frames expected a multiple of the tubelet depth 2, got 3"),
        ({"warmup_epochs": 5}, "--warmup-epochs expected at most --epochs 2, got 5"),
        ({"name": "a/b"}, "--name expected one folder name"),
        ({"leave_out": ("casme3/spNO.44",)}, "--leave-out expected subjects such as casme3/spNO.1, got 'cas"),
        (
            {"leave_out": tuple(f"casme3/spNO.{n}" for n in range(1, 5))},
            "--leave-out expected fewer than all",
        ),
    ],
)
def test_a_wrong_setting_is_named_and_leaves_no_folder(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(make_config(**changes))
    assert not list(tmp_path.glob("runs/*/config.json"))


def test_a_folder_of_something_else_is_left_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "runs/pretrain"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"classes": [], "num_folds": 1}')
    for changes in ({}, {"overwrite": True}):
        with pytest.raises(ValueError, match="--name expected a pretraining or a new folder, got .*config"):
            pretrain(make_config(**changes))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_loss_that_is_no_number_ends_it(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 2: loss expected a finite number"):
        pretrain(make_config(lr=1e38, warmup_epochs=0, clip_grad=None, leave_out=("casme3/spNO.4",)))
    entry = json.loads((tmp_path / "runs/pretrain/config.json").read_text())["provenance"][-1]
    assert entry["ended"].startswith("NonFiniteLossError")


def test_a_plain_table_needs_no_column_of_emotions(
    faces: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(faces, own, ignore=shutil.ignore_patterns("*.csv", "synthetic.json"))
    subjects = ("spNO.1", "spNO.2")
    rows = [{"subject": subject, "clip": "1", "path": f"{subject}/a/color"} for subject in subjects]
    pd.DataFrame(rows).to_csv(own / "clips.csv", index=False)
    text = pretrain(make_config(data=own, branches=("video",), epochs=1))
    assert "1 epochs trained" in text
    model = load_model(tmp_path / "runs/pretrain/model.safetensors")
    assert json.loads(model.notes["pretrained_subjects"]) == ["csv/spNO.1", "csv/spNO.2"]
    assert "caveats" not in model.notes and model.config.branches == ("video",)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_the_command_ends_with_a_status_and_one_line(
    faces: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    words = ("pretrain", "--data", faces, "--runs", tmp_path, *FLAGS, "--epochs=900")
    process = start(*words, imported=IMPORTED)
    while not list(tmp_path.glob("*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, number)
    _, err = process.communicate(60)
    assert process.returncode == status
    last = err.splitlines()[-1]
    if status == 75:
        assert last.startswith("stopped by SIGUSR1 in epoch ") and last.endswith("--resume continues the run")
        assert list(tmp_path.glob("*/state.pt"))
    else:
        assert last == "interrupted; --resume continues the run if it has begun"
