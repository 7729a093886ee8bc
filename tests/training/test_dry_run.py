"""--dry-run: everything up to the first step, and no run on disk."""

import json
import re
from pathlib import Path

import pytest
import torch

from hsta_fast.training.config import recipe_config, to_json
from hsta_fast.training.loop import build, save_checkpoint
from hsta_fast.training.run_folder import FoldFolder, fold_folder
from hsta_fast.training.setup import set_up
from hsta_fast.training.step import TrainStep
from tests.test_cli import refusal, run
from tests.test_usage import bound
from tests.training.commands import QUICK


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with the time of its last change; folders too."""
    paths = sorted(folder.rglob("*"))
    return {
        str(path): (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes()) for path in paths
    }


@pytest.fixture
def flags(faces: Path, tmp_path: Path) -> list[str]:
    """A run of one step an epoch."""
    return ["--data", str(faces), "--runs", str(tmp_path / "runs"), *QUICK, "--batch-size", "24"]


def test_a_dry_run_computes_the_first_loss_and_writes_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    run(monkeypatch, "train", *flags, "--dry-run")
    out = capsys.readouterr().out
    assert [path.name for path in runs.iterdir()] == [".cache"]
    assert "24 clips of 4 subjects: 8 negative, 8 positive, 8 surprise" in out
    assert "folds to train: 2 of 2; epochs: 1; steps an epoch: 1; steps in all: 2" in out
    assert "video (12, 3, 2, 32, 32)" in out and f"it would be in {runs / 'hsta'}" in out
    assert re.search(r"memory of a step of 12 clips: 0\.0\d GB, \d\.\d MB a clip \(estimate\)", out)
    [parameters] = re.findall(r"hsta_tiny: ([\d,]+) parameters", out)
    [loss] = re.findall(r"loss (\S+) before", out)
    run(monkeypatch, "train", *flags)
    folds = [json.loads(line) for line in (runs / "hsta" / "metrics.jsonl").read_text().splitlines()]
    assert folds[0]["train_loss"] == pytest.approx(float(loss), rel=1e-5)
    config = json.loads((runs / "hsta" / "config.json").read_text())
    assert "dry_run" not in config and "dry_run" not in to_json(recipe_config("paper", data=Path("x")))
    exp = set_up(bound("train", *flags).joined())
    model = build(exp, FoldFolder(tmp_path / "none"), exp.folds[0], (0,)).model
    assert int(parameters.replace(",", "")) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_device_without_enough_memory_names_the_flags_that_save_it(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], dry: tuple[str, ...]
) -> None:
    """In one line, of which torch says the first part."""

    def backward(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has less")

    monkeypatch.setattr(TrainStep, "backward", backward)
    said = refusal(monkeypatch, "train", *flags, "--accumulate", "4", *dry)
    assert said == (
        "error: --batch-size 24 expected a device with more memory (--accumulate 4, --memory fast), got CUDA "
        "out of memory. Tried to allocate 2.00 GiB. GPU 0 has less: give --memory balanced or small or "
        "--accumulate 8"
    )
    least = ["--accumulate", "24", "--memory", "small", "--name", "other"]
    said = refusal(monkeypatch, "train", *flags, *least, *dry)
    assert said.endswith("GPU 0 has less: give fewer --num-frames or a smaller --model")


def test_micro_batches_and_memory_change_when_a_run_continues(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], tmp_path: Path
) -> None:
    """They change numbers by rounding alone, so a run may continue with others; its metrics are the same."""
    more, losses = ["--only", "1", "--epochs", "2", "--class-weights"], []
    ways: list[tuple[str, list[str], list[str]]] = [
        ("plain", [], []),
        ("parts", ["--memory", "small"], ["--accumulate", "4"]),
    ]
    for name, first, then in ways:
        run(monkeypatch, "train", *flags, *more, "--name", name, *first)
        if then:
            for file in ("predictions.csv", "state.pt"):  # of the first fold
                (tmp_path / "runs" / name / "folds" / "01" / file).unlink(missing_ok=True)
            run(monkeypatch, "train", *flags, *more, "--name", name, *then, "--resume")
        lines = (tmp_path / "runs" / name / "folds" / "01" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train_loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_dry_run_leaves_the_run_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "hsta"
    more = ["--epochs", "3", "--save-every", "1"]
    run(monkeypatch, "train", *flags, *more, "--only", "1")
    exp = set_up(bound("train", *flags, *more).joined())
    training = build(exp, FoldFolder(fold_folder(path, 1)), exp.folds[1], (1,))
    training.epochs_done = 2
    save_checkpoint(training)
    before = contents(path)
    capsys.readouterr()
    run(monkeypatch, "train", *flags, *more, "--resume", "--dry-run")
    out = capsys.readouterr().out
    assert "folds to train: 1 of 2; epochs: 3; steps an epoch: 1; steps in all: 1" in out
    assert "fold 1: finished\nfold 2: continues after epoch 2\n" in out
    run(monkeypatch, "train", *flags, *more, "--overwrite", "--dry-run")
    out = capsys.readouterr().out
    assert "folds to train: 2 of 2" in out and "was here is deleted" not in out
    for words, said in (
        (more, f"{path} exists: give --resume"),
        ([*more, "--resume", "--lr", "1"], "was started with other settings"),
        ([*more, "--resume", "--name", "none"], "--resume expected a run in"),
        ([*more, "--seeds", "2"], "is a run of one seed"),
        ([*more, "--only", "nobody", "--name", "new"], "--only expected folds of"),
    ):
        assert said in refusal(monkeypatch, "train", *flags, *words, "--dry-run")
    assert contents(path) == before
    assert sorted(child.name for child in path.parent.iterdir()) == [".cache", "hsta"]


def test_seeds_inner_folds_and_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], tmp_path: Path
) -> None:
    run(monkeypatch, "train", *flags, "--seeds", "2", "--select", "inner", "--inner-folds", "2", "--dry-run")
    out = capsys.readouterr().out
    assert out.count("first batch of fold 1") == 2 and "as many on each of 2 inner folds" in out
    assert "video (6, 3, 2, 32, 32)" in out, "of the first inner fold"
    words = ["--table", "1", "--rows", "video 0", "video 1", "--dry-run"]
    run(monkeypatch, "ablate", *flags, *words)
    out = capsys.readouterr().out
    assert out.count("first batch") == 2 and out.endswith("video 0: can be run\nvideo 1: can be run\n")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


def test_a_run_without_a_checkpoint_stays(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], tmp_path: Path
) -> None:
    """A run of several seeds would delete it."""
    path = tmp_path / "runs" / "hsta"
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"classes": [], "num_folds": 2}')
    before = contents(path)
    for more in ([], ["--seeds", "2"]):
        run(monkeypatch, "train", *flags, *more, "--dry-run")
    assert contents(path) == before
