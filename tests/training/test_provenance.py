"""How a run was made, as config.json, summary.json, the report and the log tell it."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsta_fast.model import HSTA
from hsta_fast.presets import model_config
from hsta_fast.training import loop, provenance, runner, setup
from hsta_fast.training.config import TrainConfig, recipe_config
from hsta_fast.training.optim import learning_rate
from hsta_fast.training.provenance import command_line, num_parameters, source_version
from hsta_fast.training.run_checks import delete_run
from hsta_fast.training.run_folder import RunFolder

A, B = "a" * 40, "b" * 64  # commits, of SHA-1 and of SHA-256


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/home/me/venv/bin/hsta-fast", "train", "--name", "a b"], "hsta-fast train --name 'a b'"),
        (["/x/hsta_fast/__main__.py", "train"], "python -m hsta_fast train"),
        (["/home/me/notebook/kernel.py", "-f", "/home/me/connection.json"], None),
        ([], None),
    ],
)
def test_the_command_is_as_typed_and_names_no_folder_of_the_program(
    argv: list[str], expected: str | None
) -> None:
    assert command_line(argv) == expected


def clone(root: Path, head: str, **files: str) -> Path:
    """A folder that looks like a clone of this project; `files` are those of .git."""
    (root / ".git").mkdir(parents=True)
    (root / "pyproject.toml").write_text('name = "hsta_fast"\n')
    (root / ".git" / "HEAD").write_text(head + "\n")
    for name, text in files.items():
        path = root / ".git" / name.replace("__", "/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_the_commit_of_a_clone_is_read_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    branch, packed = "ref: refs/heads/main", f"# pack-refs\n{B} refs/heads/other\n{A} refs/heads/main"
    clones = {
        "detached": (clone(tmp_path / "detached", A), A),
        "loose": (clone(tmp_path / "loose", branch, refs__heads__main=B, packed_refs=packed), B),
        "packed": (clone(tmp_path / "packed", branch, packed_refs=packed), A),
        "unborn": (clone(tmp_path / "unborn", branch), None),
        "damaged": (clone(tmp_path / "damaged", "?" * 40), None),
        "absent": (tmp_path, None),
    }
    tree = clone(tmp_path / "loose" / "tree", "")
    shutil.rmtree(tree / ".git")
    (tree / ".git").write_text("gitdir: ../.git/worktrees/tree\n")
    of_tree = tmp_path / "loose" / ".git" / "worktrees" / "tree"
    of_tree.mkdir(parents=True)
    (of_tree / "HEAD").write_text("ref: refs/heads/main\n")
    (of_tree / "commondir").write_text("../..\n")
    other = clone(tmp_path / "other", A)
    (other / "pyproject.toml").write_text('name = "theirs"\n')
    for root, expected in [*clones.values(), (tree, B), (other, None)]:
        assert source_version(root) == {"commit": expected, "modified": None}, root


def test_git_says_whether_the_clone_is_modified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook of another repository
    environment = {name: value for name, value in os.environ.items() if name != "GIT_DIR"}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "pyproject.toml").write_text('name = "hsta_fast"\n')
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True, env=environment)
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, env=environment)
    (tmp_path / "new.txt").write_text("not under version control")
    assert source_version.__wrapped__(tmp_path) == {"commit": done.stdout.strip(), "modified": False}
    (tmp_path / "pyproject.toml").write_text('name = "hsta_fast"\nversion = "2"\n')
    assert source_version.__wrapped__(tmp_path) == {"commit": done.stdout.strip(), "modified": True}


def test_parameters_are_counted_without_making_them() -> None:
    before, config = torch.get_rng_state(), model_config("hsta_tiny", num_classes=3)
    counted = num_parameters(config)
    assert torch.equal(before, torch.get_rng_state())
    assert counted == sum(parameter.numel() for parameter in HSTA(config).parameters())
    assert num_parameters(model_config("hsta_base", num_classes=7)) == 81_887_623


@pytest.fixture(scope="module")
def small(faces: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32}
    settings |= {"num_frames": 2, "labels": "emotion3", "protocol": "kfold", "folds": 2, "batch_size": 6}
    return settings | {"lr": 1e-3, "warmup_epochs": 1, "epochs": 4, "save_every": 1, "data": faces}


def stop_at(epochs: int, error: type[BaseException]) -> Callable[[TrainConfig, float], float]:
    """A learning rate that raises `error` at the start of this epoch of all that are trained."""
    begun = 0

    def rate(cfg: TrainConfig, epoch: float) -> float:
        nonlocal begun
        begun += float(epoch).is_integer()
        if begun == epochs:
            raise error  # a new instance: one kept here would keep the run locked
        return learning_rate(cfg, epoch)

    return rate


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def resumed(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, said: dict[str, str]) -> Path:
    """A run that Ctrl-C ended in the third epoch of its second fold; continued, with TensorBoard."""
    cfg = recipe_config("paper", **small, runs=tmp_path_factory.mktemp("runs"), name="run")
    patch = pytest.MonkeyPatch()
    patch.setattr("sys.argv", ["/usr/local/bin/hsta-fast", "train", "--data", "faces"])
    stop, config_file, plan = stop_at(7, KeyboardInterrupt), cfg.runs / "run" / "config.json", setup.plan

    def rate(cfg: TrainConfig, epoch: float) -> float:
        if epoch == 0 and "begun" not in said:
            said["begun"] = config_file.read_text()
            time.sleep(0.3)
        said["killed"] = config_file.read_text()  # what a kill would leave now
        return stop(cfg, epoch)

    def slow_plan(*args: Any, **settings: Any) -> Any:
        time.sleep(0.6)
        return plan(*args, **settings)

    patch.setattr(loop, "learning_rate", rate)
    patch.setattr(runner, "plan", slow_plan)
    with pytest.raises(KeyboardInterrupt):
        runner.main(cfg)
    patch.undo()
    said["interrupted"] = (cfg.runs / "run" / "config.json").read_text()
    return runner.main(replace(cfg, resume=True, log=("tensorboard",)))


def test_the_scalars_of_a_fold_are_its_metrics(resumed: Path) -> None:
    """Those of the first start too, which had no TensorBoard; the fold that it finished has none."""
    assert [path.name for path in (resumed / "tensorboard").iterdir()] == ["02"]
    events = EventAccumulator(str(resumed / "tensorboard" / "02")).Reload()
    lines = [json.loads(line) for line in (resumed / "folds/02/metrics.jsonl").read_text().splitlines()]
    for name in ("train_loss", "train_acc", "test_loss", "test_acc", "lr", "clips_per_second"):
        values = [(event.step, event.value) for event in events.Scalars(name)]
        assert values == [(line["epoch"], np.float32(line[name])) for line in lines], name


def test_each_start_is_an_entry_of_the_configuration(resumed: Path, said: dict[str, str]) -> None:
    [alone] = json.loads(said["interrupted"])["provenance"]
    first, second = json.loads((resumed / "config.json").read_text())["provenance"]
    assert alone == first and first["ended"] == "Ctrl-C" and second["ended"] == "finished"
    assert first["command"] == "hsta-fast train --data faces" and second["command"] is None
    assert first["started"] <= second["started"] and first["seconds"] > 0 < second["seconds"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["started"])
    assert first["torch"] == str(torch.__version__) and first["dtype"] in ("float32", "bfloat16")
    assert first["device"].startswith(("cpu: ", "cuda:0: ")) and first["workers"] == 1
    assert first["threads"] == torch.get_num_threads()
    model = json.loads((resumed / "config.json").read_text())["architecture"]
    assert first["parameters"] > 100_000 and model["widths"] == [96, 192]
    text = json.dumps([first, second])
    for private in (str(Path.home()), os.uname().nodename, str(provenance.__file__)):
        assert f'"{private}"' not in text and f"{private}/" not in text


def test_the_seconds_count_reading_the_annotation_and_outlive_a_kill(
    resumed: Path, said: dict[str, str]
) -> None:
    begun, killed, ended = (
        json.loads(said[when])["provenance"][-1] for when in ("begun", "killed", "interrupted")
    )
    assert 0.6 <= begun["seconds"] < killed["seconds"] <= ended["seconds"]
    assert begun["ended"] is None and begun | killed == killed


def test_summary_and_report_tell_it_too(resumed: Path) -> None:
    summary = json.loads((resumed / "summary.json").read_text())
    assert summary["provenance"] == json.loads((resumed / "config.json").read_text())["provenance"]
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    trained = summary["trained"]
    assert trained["epochs"] == len(lines) == 8
    assert trained["seconds"] == pytest.approx(sum(line["seconds"] for line in lines), rel=1e-12)
    clips = sum(line["clips_per_second"] * line["seconds"] for line in lines)
    assert clips == pytest.approx(8 * 12) and trained["clips_per_second"] == pytest.approx(
        clips / trained["seconds"]
    )
    page = (resumed / "report.html").read_text()
    section = page[page.index("How it was made") : page.index("Settings</h2>")]
    assert "hsta-fast train --data faces" in section and "Ctrl-C" in section and "8 epochs in" in section
    assert section.count(str(torch.__version__)) == 1, "the second start tells only what is new"
    assert "provenance" not in page[page.index("Settings</h2>") :]


def test_the_log_tells_both_starts(resumed: Path) -> None:
    lines = [line.split(" ", 1)[1] for line in (resumed / "run.log").read_text().splitlines()]
    started, ended, again = (
        next(i for i, line in enumerate(lines) if line.startswith(words))
        for words in ("started: hsta_fast ", "ended by Ctrl-C", "resumed: hsta_fast ")
    )
    assert started == 0 < ended < again and "hsta-fast train --data faces" in lines[started]
    assert lines[again - 1 : again] == ["ended by Ctrl-C"]
    assert "fold 2 (2 of 2): resumed at epoch 2 of 4" in lines[again:]
    assert sum(": epoch " in line for line in lines) == 8
    finished = [line for line in lines if ": finished; " in line]
    summary = json.loads((resumed / "summary.json").read_text())
    assert finished[1] == f"fold 2 (2 of 2): finished; UF1 of 2 of 2 folds {summary['pooled']['uf1']:.3f}"
    assert lines[-1].startswith("ended: all requested folds are finished; 8 epochs trained in ")


def test_a_run_of_an_older_version_continues(resumed: Path, small: dict[str, Any], tmp_path: Path) -> None:
    run = shutil.copytree(resumed, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config["provenance"], config["log"]
    (run / "config.json").write_text(json.dumps(config))
    (run / "run.log").unlink()
    before = (run / "predictions.csv").read_bytes()
    runner.main(recipe_config("paper", **small, runs=tmp_path, name="run", resume=True))
    [only] = json.loads((run / "config.json").read_text())["provenance"]
    assert only["ended"] == "finished" and (run / "predictions.csv").read_bytes() == before
    summary = json.loads((run / "summary.json").read_text())
    assert [start["ended"] for start in summary["provenance"]] == ["finished"]


def test_an_error_is_told_and_a_kill_leaves_the_last_state(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", {"classes": [], "num_folds": 1}, resume=False)
    run.write_start({"started": 1})
    run.write_start({"started": 1, "ended": "ValueError: x"})
    del run
    again = RunFolder(tmp_path / "run", {"classes": [], "num_folds": 1}, resume=True)
    again.write_start({"started": 2})
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["provenance"] == [{"started": 1, "ended": "ValueError: x"}, {"started": 2}]


def test_deleting_the_run_leaves_nothing_of_it(resumed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(resumed, tmp_path / "run")
    # Claims, of a disk without locks.
    for lock in ("folds/01/.lock", ".writing.lock", ".opening.lock", "folds/01/.writing.lock"):
        for end in (".7", ".gate.12", "-1.3"):
            (run / f"{lock}{end}").touch()
    assert (run / "run.log").exists() and delete_run(run) == 2
    assert [path.name for path in run.iterdir()] == [".lock"]
