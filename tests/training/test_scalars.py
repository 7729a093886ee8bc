"""Scalars for TensorBoard, read back with its own reader."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsta_fast.training import runner
from hsta_fast.training.config import from_json, recipe_config, to_json
from hsta_fast.training.run_checks import delete_run
from hsta_fast.training.run_folder import RunFolder, scalars_folder
from hsta_fast.training.scalars import FoldScalars

NAMES = ("train_loss", "train_acc", "test_loss", "test_acc", "lr", "clips_per_second")


def line(epoch: int, factor: float = 1.0, **more: Any) -> dict[str, Any]:
    """The metrics of an epoch; exact in float32, the dtype of an event."""
    return (
        {"fold": "1", "epoch": epoch}
        | {name: factor * (epoch + i / 8) for i, name in enumerate(NAMES)}
        | more
    )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(epoch, value) of each scalar, as TensorBoard would show it."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def expected(lines: list[dict[str, Any]], prefix: str = "") -> dict[str, list[tuple[int, float]]]:
    return {prefix + name: [(metrics["epoch"], metrics[name]) for metrics in lines] for name in NAMES}


def test_every_epoch_is_on_disk_at_once_and_only_once_after_a_resume(tmp_path: Path) -> None:
    first = [line(1), line(2), line(3)]
    killed = FoldScalars(tmp_path, [])
    for metrics in first:
        killed.epoch(metrics)
    assert scalars(tmp_path) == expected(first), "before it is closed"
    # The checkpoint is that of epoch 2; the third is trained again.
    again = FoldScalars(tmp_path, [json.dumps(metrics) for metrics in first[:2]])
    again.epoch(line(3, factor=2))
    again.close()
    killed.close()
    assert scalars(tmp_path) == expected([*first[:2], line(3, factor=2)])


def test_those_of_a_leaky_run_are_marked(tmp_path: Path) -> None:
    leaky = line(1, leaky="the epoch was chosen by its score on the test clips")
    FoldScalars(tmp_path, [json.dumps(leaky)]).close()
    assert scalars(tmp_path) == expected([leaky], prefix="leaky/")


def test_a_deleted_run_takes_its_scalars_along(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", {"classes": [], "num_folds": 1}, resume=False)
    FoldScalars(scalars_folder(run.path, 0), [json.dumps(line(1))]).close()
    (run.path / "tensorboard" / "mine").mkdir()
    (run.path / "tensorboard" / "mine" / "events.out.tfevents.1").touch()
    elsewhere = tmp_path / "elsewhere"
    scalars_folder(run.path, 0).rename(elsewhere)
    scalars_folder(run.path, 0).symlink_to(elsewhere)
    FoldScalars(scalars_folder(run.path, 1), [json.dumps(line(1))]).close()
    delete_run(run.path)
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*")}
    assert left == {".lock", "tensorboard", "tensorboard/mine", "tensorboard/mine/events.out.tfevents.1"}
    assert len(scalars(elsewhere)) == len(NAMES), "a link's target stays"


def test_a_missing_tensorboard_is_said_before_any_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    cfg = recipe_config("paper", data=tmp_path / "nowhere", runs=tmp_path / "runs", log=("tensorboard",))
    with pytest.raises(
        ValueError, match=r"--log tensorboard expected .*pip install 'hsta_fast\[tensorboard\]'"
    ):
        runner.main(cfg)
    assert not cfg.runs.exists()
    assert from_json(to_json(cfg)) == cfg, "a finished run is read without the package"
    with pytest.raises(ValueError, match="--log expected tensorboard, got"):
        recipe_config("paper", data=tmp_path, log=("wandb",))
