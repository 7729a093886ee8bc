"""How a run starts: what is refused before any frame is decoded, what a failed run leaves, --overwrite."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hsta_fast.data.frames import store
from hsta_fast.training import loop, run_checks, run_folder, runner
from hsta_fast.training.ablate import ablate
from hsta_fast.training.config import TrainConfig
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.optim import NonFiniteLossError, learning_rate
from hsta_fast.training.run_folder import RunFolder
from hsta_fast.training.setup import fill_cache
from hsta_fast.training.workers import Workers
from tests.data.fake_datasets import csv_copy, csv_row
from tests.training.commands import start

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make_config(faces: Path, tmp_path: Path) -> MakeConfig:
    """A quick configuration on the shared rendered faces, with changes; it is not checked."""
    small: dict[str, Any] = {"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32}
    small |= {"num_frames": 2, "labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 6}
    small |= {"lr": 1e-3, "warmup_epochs": 1, "epochs": 1, "data": faces, "runs": tmp_path / "runs"}

    def make(**changes: Any) -> TrainConfig:
        return TrainConfig(**{**small, **changes})

    return make


class DecodedError(Exception):
    """A frame's file was read."""


@pytest.fixture
def no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the first frame's file fails in a way that no caller expects."""

    def read(*_: object, **__: object) -> None:
        raise DecodedError

    monkeypatch.setattr(store, "content_keys", read)


@pytest.mark.usefixtures("no_frames")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resume": True}, "--resume expected a run in .*hsta, got none: without --resume it is started"),
        ({"resume": True, "seeds": 2}, "--resume expected a run in .*hsta, got none"),
        ({"resume": True, "overwrite": True}, "--overwrite expected no --resume beside it, got both"),
        ({"epochs": 4, "warmup_epochs": 5}, "--warmup-epochs expected at most --epochs 4, got 5"),
        (
            {"name": "\U0001f600" * 90},
            "--name expected one folder name of at most 100 characters and 255 bytes",
        ),
        ({"runs": Path(os.fsdecode(b"caf\xe9"))}, "--runs expected a path in UTF-8"),
        ({"balance": "odd"}, "--balance expected one of .*even.*, got 'odd'"),
        ({"offset_cap": 0}, "--offset-cap expected a whole number >= 1, got 0"),
        ({"special": ("onset", "x")}, "special expected two of"),
        ({"device": "cuda:99"}, "--device expected a device of this machine"),
        ({"labels": "none.csv"}, "none.csv: expected a table, got: no such file"),
        ({"folds": 9}, "--folds expected 2 to 4, the number of subjects, got 9"),
        ({"only": ("7",)}, "--only expected folds of 1, 2, got 7"),
        ({"datasets": ("b",)}, "--datasets expected some of casme3, got b"),
        ({"protocol": "composite"}, "composite expected at least 2 datasets"),
        (
            {"protocol": "cross-dataset", "train_on": ("a",), "test_on": ("b",)},
            "--train-on expected datasets among casme3",
        ),
        ({"macro": True}, "--macro expected macro-expressions in the dataset, got none"),
        (
            {"select": "inner", "inner_folds": 3},
            "--inner-folds expected 2 to 2, the number of training subjects of fold 1, got 3",
        ),
    ],
)
def test_what_needs_no_frame_is_refused_before_any_is_read(
    make_config: MakeConfig, changes: dict[str, Any], said: str
) -> None:
    cfg = make_config(**changes)
    with pytest.raises(ValueError, match=said):
        runner.main(cfg)
    assert not cfg.runs.exists()


@pytest.mark.usefixtures("no_frames")
def test_folds_of_one_person_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    rows = [csv_row(clip=clip, emotion=emotion) for clip, emotion in (("a", "happy"), ("b", "surprise"))]
    root = csv_copy(tmp_path / "one", rows)
    with pytest.raises(ValueError, match="^--folds expected data of at least 2 subjects, got 1$"):
        runner.main(make_config(data=root))


@pytest.mark.usefixtures("no_frames")
def test_a_plan_without_a_mistake_reads_frames(make_config: MakeConfig) -> None:
    for changes in ({}, {"select": "inner", "inner_folds": 2}, {"epochs": 1, "warmup_epochs": 1}):
        with pytest.raises(DecodedError):
            runner.main(make_config(**changes))


@pytest.mark.usefixtures("no_frames")
def test_a_folder_that_cannot_be_written_is_said_first(make_config: MakeConfig, tmp_path: Path) -> None:
    """Before the data are looked for."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="--name expected a folder .*, got .*/file: not a directory"):
        runner.main(make_config(runs=tmp_path, name="file", data=tmp_path / "nowhere"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    nowhere = tmp_path / "nowhere"
    for runs in (
        tmp_path / "file",
        tmp_path / "file" / "x",
        Path("/proc"),
        tmp_path / ("x" * 300),
        tmp_path / "link",
    ):
        expected = "--runs expected a folder that can be created and written, got"
        for children in ({}, {"seeds": 2}):
            with pytest.raises(OSError, match=expected):
                runner.main(make_config(runs=runs, data=nowhere, **children))
        with pytest.raises(OSError, match=expected):
            ablate(make_config(runs=runs, data=nowhere), "2", ["a1"])
    with pytest.raises(OSError, match="--cache expected a folder that can be created and written, got"):
        fill_cache(make_config(cache="/proc/x", data=nowhere))
    with pytest.raises(ValueError, match="--warmup-epochs expected at most"):
        fill_cache(make_config(warmup_epochs=9, data=nowhere))


def test_a_run_that_cannot_be_continued_is_refused_before_any_frame_is_read(
    make_config: MakeConfig, faces: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = runner.main(make_config(name="a", only=("1",)))
    runner.main(make_config(name="many", only=("1",)).child_run("seed4", seed=4))
    request.getfixturevalue("no_frames")
    data = shutil.copytree(faces, tmp_path / "data")
    table = pd.read_csv(data / "annotation.csv")
    rotated = table.groupby("Subject")["emotion"].transform(lambda words: np.roll(words, 1))
    for changed in (table.iloc[1:], table.assign(emotion=rotated)):
        changed.to_csv(data / "annotation.csv", index=False)
        with pytest.raises(ValueError, match="other clips, apexes or labels: of its 24 clips"):
            runner.main(make_config(name="a", only=("1",), resume=True, data=data))
    with pytest.raises(ValueError, match="a exists: give --resume to continue it, --overwrite to delete"):
        runner.main(make_config(name="a", data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="a is a run of one seed"):
        runner.main(make_config(name="a", seeds=2, data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="many holds several runs, of --seeds or of ablate"):
        runner.main(make_config(name="many", data=tmp_path / "nowhere"))
    # All seeds before the first: seed 3 is new, seed 4 exists.
    with pytest.raises(ValueError, match="seed4 exists"):
        runner.main(make_config(name="many", seed=3, seeds=2, data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"cannot be continued: lr was 0\.001, is 1"):
        runner.main(make_config(name="many", seed=3, seeds=2, lr=1.0, resume=True, data=tmp_path / "nowhere"))
    lock = RunFolder(run, {}, resume=True)  # as another process would
    for how in ({"resume": True}, {"overwrite": True}, {}):
        with pytest.raises(ValueError, match="a is in use"):
            runner.main(make_config(name="a", data=tmp_path / "nowhere", **how))
    del lock
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        runner.main(make_config(name="a", resume=True, data=tmp_path / "nowhere"))


def test_evaluate_of_a_run_without_a_finished_fold_reads_no_frame(
    make_config: MakeConfig, request: pytest.FixtureRequest
) -> None:
    run = runner.main(make_config(only=("1",)))
    request.getfixturevalue("no_frames")
    (run / "folds" / "01" / "predictions.csv").unlink()
    with pytest.raises(ValueError, match="has no finished fold yet"):
        evaluate(run)


def files_of(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_a_run_that_failed_before_its_first_checkpoint_does_not_block_its_name(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss becomes infinite in the second epoch, with five between checkpoints."""
    monkeypatch.setattr(loop, "learning_rate", lambda cfg, e: learning_rate(cfg, e) if e < 1 else 1e30)
    for how in ({}, {}, {"resume": True}):
        with pytest.raises(NonFiniteLossError):
            runner.main(make_config(epochs=5, **how))
    monkeypatch.undo()
    path = make_config().runs / "hsta"
    assert (path / "folds" / "01" / "metrics.jsonl").exists() and not list(path.rglob("state.pt"))
    (path / "log.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="epochs was 5, is 2; .*; it has no checkpoint, so without --resume it"
    ):
        runner.main(make_config(epochs=2, lr=1e-4, only=("2",), resume=True))
    run = runner.main(make_config(epochs=2, lr=1e-4, only=("2",)))
    assert (run / "log.txt").read_text() == "mine"
    metrics = pd.read_json(run / "metrics.jsonl", lines=True)
    assert metrics["fold"].tolist() == [2, 2], "nothing of the failed run is in the new one"
    with pytest.raises(ValueError, match="exists: give --resume"):
        runner.main(make_config(epochs=2, lr=1e-4))


def test_overwrite_deletes_the_run_and_nothing_else(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner.main(make_config(select="inner", inner_folds=2))
    fresh = files_of(run)
    mine = {"log.txt", "folds/notes.txt", "folds/01/inner/a/state.pt", "folds/old/state.pt", "2024/state.pt"}
    for name in mine:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    (run / "folds" / "02").rename(elsewhere)
    (run / "folds" / "02").symlink_to(elsewhere)
    (run / "folds" / "01" / "model.safetensors").rename(tmp_path / "kept")
    (run / "folds" / "01" / "model.safetensors").symlink_to(tmp_path / "kept")
    before = files_of(elsewhere)
    # Data that cannot be used: the old run is still there.
    with pytest.raises(ValueError, match="expected the folder of a dataset"):
        runner.main(make_config(data=tmp_path / "nowhere", overwrite=True))
    assert (run / "config.json").exists()
    capsys.readouterr()
    runner.main(make_config(lr=1e-4, only=("2",), overwrite=True))
    assert "the run that was here is deleted, 2 finished folds (--overwrite)" in capsys.readouterr().out
    assert files_of(elsewhere) == before and (tmp_path / "kept").stat().st_size > 1000
    now = {name for name in files_of(run) if not name.startswith("folds/02/")}
    assert mine < now and now - mine < fresh and not list(run.glob("folds/01/*.*"))
    assert "run that was here" not in capsys.readouterr().out
    other = make_config(name="other", overwrite=True)
    (other.runs / "other").mkdir()
    runner.main(replace(other, only=("1",)))  # an empty folder, as a kill leaves it


@pytest.mark.usefixtures("no_frames")
@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize(
    "names", [("config.json", "report.html"), ("model.safetensors",), ("clips.csv",), ("folds/01/state.pt",)]
)
def test_files_of_others_are_never_taken_for_those_of_a_run(
    make_config: MakeConfig, names: tuple[str, ...], how: dict[str, Any]
) -> None:
    """Such as the folder of a model from elsewhere, with a config.json of its own."""
    folder = make_config().runs / "mine"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"data": "mine"}')
    said = (
        "--name expected a run or a new folder, got .*mine with |--resume expected a run in .*mine, got none"
    )
    with pytest.raises(ValueError, match=said):
        runner.main(make_config(name="mine", **how))
    assert files_of(folder) == set(names)


def test_a_failed_run_leaves_its_name_to_several_and_the_reverse(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda *_: 1e30)
    for name, seeds in (("one", 1), ("many", 2)):
        with pytest.raises(NonFiniteLossError):
            runner.main(make_config(name=name, seeds=seeds, epochs=2))
    monkeypatch.undo()
    assert (make_config().runs / "many" / "seed0" / "config.json").exists()
    several = runner.main(make_config(name="one", seeds=2, only=("1",)))
    assert not (several / "config.json").exists() and (several / "seeds.csv").exists()
    one = runner.main(make_config(name="many", only=("1",)))
    assert (one / "report.html").exists()


@pytest.mark.parametrize("deletions", [1, 4, 9])
def test_killed_while_it_is_overwritten(make_config: MakeConfig, deletions: int) -> None:
    """kill -9 after some files are deleted: what is left is continued, or overwritten, to the same result."""
    run = runner.main(make_config())
    whole = (run / "predictions.csv").read_text()
    trap = f"""
import os, pathlib
from hsta_fast.training import run_checks
unlink, deleted = pathlib.Path.unlink, []
def cut(self, missing_ok=False):
    if self.exists() and self.name in run_checks.FILES:
        deleted.append(self)
    unlink(self, missing_ok)
    if len(deleted) == {deletions}:
        os.kill(os.getpid(), 9)
pathlib.Path.unlink = cut
"""
    flags = {"data": make_config().data, "runs": make_config().runs, "model": "hsta_tiny", "num-layers": 1}
    flags |= {"n-video": 1, "image-size": 32, "num-frames": 2, "labels": "emotion3", "protocol": "kfold"}
    flags |= {"folds": 2, "batch-size": 6, "lr": 1e-3, "warmup-epochs": 1, "epochs": 1}
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    assert start("train", *words, "--overwrite", before=trap).wait() == -signal.SIGKILL
    assert runner.main(make_config(resume=True)) == run
    assert (run / "predictions.csv").read_text() == whole
    assert start("train", *words, "--overwrite", before=trap).wait() == -signal.SIGKILL
    runner.main(make_config(overwrite=True))
    assert (run / "predictions.csv").read_text() == whole


def test_seeds_and_rows_that_are_not_there_start_on_resume(make_config: MakeConfig) -> None:
    runner.main(make_config(name="many", only=("1",), seeds=1).child_run("seed1", seed=1))
    cfg = make_config(name="many", only=("1",), seeds=2, resume=True)
    seeds = runner.main(cfg) / "seeds.csv"
    assert pd.read_csv(seeds)["seed"].tolist() == [0, 1]
    first = cfg.runs / "many" / "seed0" / "folds" / "01" / "model.safetensors"
    before = first.stat().st_mtime_ns
    runner.main(replace(cfg, resume=False, overwrite=True))
    assert first.stat().st_mtime_ns != before
    ablate(make_config(name="table", only=("1",)), "2", ["a1"])
    ablate(make_config(name="table", only=("1",), resume=True), "2", ["a1", "a5"])
    with pytest.raises(ValueError, match="--resume expected a run in .*tabel, got none"):
        ablate(make_config(name="tabel", only=("1",), resume=True), "2", ["a1"])


def test_a_restart_by_the_launcher_continues_and_deletes_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first start ended before it had created the run's folder."""
    monkeypatch.setattr(runner, "workers", lambda: Workers(0, 1, 0, 1))
    run = runner.main(make_config(overwrite=True))
    model = run / "folds" / "01" / "model.safetensors"
    before = model.stat().st_mtime_ns
    for how in ({"overwrite": True}, {"resume": True}, {}):
        runner.main(make_config(**how))
        assert model.stat().st_mtime_ns == before
    # An older run, which the first start was to overwrite, or was refused for.
    for module in (run_checks, run_folder):
        monkeypatch.setattr(module, "launcher", lambda: "another")
    with pytest.raises(ValueError, match="exists: give --resume"):
        runner.main(make_config())
    runner.main(make_config(overwrite=True))
    assert model.stat().st_mtime_ns != before


def test_auto_is_resolved_before_anything_is_written(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json has the name of the label set, as the runs of before had, and they may be continued."""
    cfg = make_config(labels="auto")
    run = runner.main(cfg)
    said = (
        "remark: --labels auto is emotion7 (others, disgust, surprise, fear, anger, sad, happy), the default"
    )
    out = capsys.readouterr().out
    assert f"{said} for casme3\n" in out and out.count("--labels auto") == 1
    assert json.loads((run / "config.json").read_text())["labels"] == "emotion7"
    for labels in ("auto", "emotion7"):
        assert runner.main(replace(cfg, labels=labels, resume=True)) == run
    with pytest.raises(ValueError, match="labels was 'emotion7', is 'emotion3'"):
        runner.main(replace(cfg, labels="emotion3", resume=True))
    assert "0 predictions differ" in evaluate(run)
