"""Several workers: the numbers of a single process, and no fold trained twice, even if a worker is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hsta_fast.synth import SynthConfig, render
from hsta_fast.training import runner
from hsta_fast.training.config import recipe_config
from hsta_fast.training.run_folder import FoldFolder, RunFolder
from hsta_fast.training.setup import describe, set_up
from hsta_fast.training.workers import Workers, workers
from tests.forked import Forked
from tests.training.commands import output, without_agent

SUBJECTS = 8
FLAGS = (
    *("--model", "hsta_tiny", "--num-layers", "1", "--n-video", "1", "--image-size", "32"),
    *("--num-frames", "2", "--labels", "emotion3", "--protocol", "loso", "--epochs", "3"),
    *("--warmup-epochs", "1", "--batch-size", "6", "--lr", "1e-3", "--save-every", "1"),
)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
OF_AGENT = ("hsta_fast.cli", "hsta_fast.training.runner", "torch.distributed.launcher.api")
# torchrun's agent; its workers are forks of it, which have torch imported.
AGENT = """
from hsta_fast.cli import main
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
rendezvous = {"run_id": "again", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
workers = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "start_method": "fork"}
elastic_launch(LaunchConfig(**workers, **rendezvous, max_restarts=1, monitor_interval=0.05), main)()
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("people")
    return render(SynthConfig(out=out, subjects=SUBJECTS, clips_per_subject=3, size=32, processes=1))


def words(people: Path, runs: Path, name: str, *more: str) -> list[str]:
    return ["train", "--data", str(people), "--runs", str(runs), "--name", name, *FLAGS, *more]


@pytest.fixture(scope="module")
def alone(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process."""
    runs = tmp_path_factory.mktemp("alone")
    output(*words(people, runs, "alone"))
    return runs / "alone"


def same_outcome(run: Path, alone: Path) -> None:
    """The same bytes of predictions, the same scores, every epoch of every fold trained once."""
    assert (run / "predictions.csv").read_bytes() == (alone / "predictions.csv").read_bytes()
    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, alone))
    times: dict[str, Any] = {"run": "", "trained": None, "provenance": []}
    assert ours | times == theirs | times and ours["trained"]["epochs"] == theirs["trained"]["epochs"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [(line["fold"], line["epoch"]) for line in lines]
    assert len(epochs) == len(set(epochs)) == 3 * SUBJECTS
    assert not list(run.rglob("state.pt")) and not list(run.rglob("*.tmp"))


def begun(run: Path) -> list[Path]:
    return [path for path in run.glob("folds/*/metrics.jsonl") if path.read_text()]


def finished(run: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("folds/*/predictions.csv")}


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(run: Path, folds: int, process: subprocess.Popen[bytes] | Forked) -> None:
    """Wait until `folds` folds are finished and at least one more is being trained."""
    while not (len(finished(run)) >= folds and len(begun(run)) > len(finished(run))):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)


def test_two_processes_give_the_predictions_of_one(people: Path, alone: Path, tmp_path: Path) -> None:
    args = [*TORCHRUN, "-m", "hsta_fast", *words(people, tmp_path, "two")]
    done = subprocess.run(args, capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1, "one process speaks"
    run = tmp_path / "two"
    same_outcome(run, alone)
    [start] = json.loads((run / "config.json").read_text())["provenance"]
    assert start["workers"] == 2 and start["ended"] == "finished"
    log = [line.split(maxsplit=3)[1:] for line in (run / "run.log").read_text().splitlines()]
    assert [words[:2] for words in log].count(["worker", "0"]) > 3
    assert sum(" finished; UF1 of " in words[2] for words in log) == SUBJECTS
    assert sum(words[2].startswith("ended: all requested folds are finished") for words in log) == 2
    own = sum(words[1] == "0" and " finished; UF1 of " in words[2] for words in log)
    shown = re.findall(r"^fold .*: finished; UF1 of \d of 8 folds .*; run: \d+ %", done.stderr, re.MULTILINE)
    assert len(shown) == own, "the main process alone shows how far the run is"


def test_torchrun_starts_the_workers_again_after_a_kill(people: Path, alone: Path, tmp_path: Path) -> None:
    """kill -9 of a worker half-way: the agent stops the other and starts both again; no fold is repeated."""
    arguments = words(people, tmp_path, "killed")
    agent = Forked(AGENT, arguments, environment=ONE_THREAD, imported=OF_AGENT)
    run = tmp_path / "killed"
    wait_for(run, SUBJECTS // 2, agent)
    before = finished(run)
    os.kill(children(agent.pid)[-1], signal.SIGKILL)
    assert agent.wait() == 0
    assert before.items() <= finished(run).items(), "a finished fold was trained again"
    same_outcome(run, alone)


def test_without_an_agent_the_other_worker_finishes_alone(people: Path, alone: Path, tmp_path: Path) -> None:
    """The other takes over the fold of the killed one, though that was the main process, with the store."""
    both = without_agent(2, *words(people, tmp_path, "orphan"))
    run = tmp_path / "orphan"
    wait_for(run, SUBJECTS // 2, both[0])
    os.kill(both[0].pid, signal.SIGKILL)
    assert both[1].wait() == 0
    same_outcome(run, alone)


def test_a_worker_without_a_fold_leaves_the_table_to_the_main_process(people: Path, tmp_path: Path) -> None:
    table = ["ablate", "--table", "2", "--rows", "a1", *words(people, tmp_path, "table")[1:], "--folds", "2"]
    table[table.index("loso")] = "kfold"
    for worker in without_agent(3, *table):
        _, err = worker.communicate()
        assert worker.returncode == 0, err
    assert pd.read_csv(tmp_path / "table" / "ablation.csv")["uf1"].notna().all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "environment variable RANK expected a number, got ''"),
        ({"RANK": "0", "LOCAL_RANK": "x"}, "variable LOCAL_RANK expected"),
    ],
)
def test_an_environment_that_names_no_worker(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], said: str
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", **more}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        workers.__wrapped__()


def test_the_workers_fail_together_where_the_run_exists(people: Path, alone: Path) -> None:
    errors = []
    for worker in without_agent(2, *words(people, alone.parent, alone.name)):
        errors.append(worker.communicate()[1])
        assert worker.returncode != 0
    assert f"{alone} exists: give --resume" in "".join(errors)
    assert "hsta_fast/cli.py" not in "".join(errors), "a traceback of ours"


def test_the_main_process_alone_overwrites(people: Path, alone: Path, tmp_path: Path) -> None:
    run = shutil.copytree(alone, tmp_path / "again")
    (run / "log.txt").write_text("mine")
    both = without_agent(2, *words(people, tmp_path, "again", "--overwrite"))
    said = [worker.communicate() for worker in both]
    assert [worker.returncode for worker in both] == [0, 0], said
    assert f"is deleted, {SUBJECTS} finished folds" in said[0][0] and "is deleted" not in said[1][0]
    assert (run / "log.txt").exists()
    same_outcome(run, alone)


def test_workers_share_their_run_and_keep_others_out(people: Path, tmp_path: Path) -> None:
    settings = {
        "data": people,
        "runs": tmp_path,
        "model": "hsta_tiny",
        "image_size": 32,
        "labels": "emotion3",
    }
    config = describe(set_up(recipe_config("paper", **settings)))
    main = RunFolder(tmp_path / "run", config, resume=False, shared=True)
    other = RunFolder(tmp_path / "run", config, resume=True, shared=True, is_main=False)
    with pytest.raises(ValueError, match="is in use"):
        RunFolder(tmp_path / "run", config, resume=True, shared=True)
    with pytest.raises(ValueError, match=r"cannot be continued: lr was 5e-05, is 1"):
        RunFolder(tmp_path / "run", {**config, "lr": 1}, resume=True, shared=True, is_main=False)
    with (
        main.fold(0).try_acquire() as mine,
        other.fold(0).try_acquire() as theirs,
        other.fold(1).try_acquire() as another,
    ):
        assert mine and not theirs and another
    with other.fold(0).try_acquire() as theirs:
        assert theirs


def test_processes_join_a_run_and_keep_others_out(tmp_path: Path) -> None:
    config = {"classes": [], "num_folds": 2}
    first, second = (RunFolder(tmp_path, config, resume=False, join=True) for _ in range(2))
    for joined in (first, second, first):
        joined.write_start({"of": id(joined)})
    starts = json.loads((tmp_path / "config.json").read_text())["provenance"]
    assert starts == [{"of": id(first)}, {"of": id(second)}]
    with first.fold(0).try_acquire() as mine, second.fold(0).try_acquire() as theirs:
        assert mine and not theirs
    for resume in (True, False):
        with pytest.raises(ValueError, match="is in use: another process is training this run$"):
            RunFolder(tmp_path, config, resume=resume, overwrite=not resume)
    with pytest.raises(ValueError, match="num_folds was 2, is 3"):
        RunFolder(tmp_path, {**config, "num_folds": 3}, resume=False, join=True)
    del first, second, joined
    alone = RunFolder(tmp_path, config, resume=True)
    with pytest.raises(ValueError, match="is training this run without --join"):
        RunFolder(tmp_path, config, resume=False, join=True)
    del alone


def test_each_worker_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    group = [object.__new__(Workers) for _ in range(3)]
    for rank, worker in enumerate(group):
        worker.size, worker.local_rank = 3, rank
    assert [worker.device("auto") for worker in group] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [worker.device("cpu") for worker in group] == ["cpu"] * 3
    assert Workers(0, 1, 0, 0).device("auto") == "auto"


def test_several_seeds(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"data": people, "model": "hsta_tiny", "num_layers": 1, "n_video": 1, "image_size": 32}
    settings |= {"num_frames": 2, "labels": "emotion3", "protocol": "kfold", "folds": 2, "warmup_epochs": 1}
    cfg = recipe_config("paper", runs=tmp_path, name="many", epochs=2, seed=5, seeds=2, lr=1e-3, **settings)
    folder = runner.main(cfg)
    table = pd.read_csv(folder / "seeds.csv", converters=dict.fromkeys(("uf1", "uar", "acc"), float))
    assert table["seed"].tolist() == [5, 6]
    own = [json.loads((folder / f"seed{seed}" / "summary.json").read_text())["pooled"] for seed in (5, 6)]
    assert table[["uf1", "uar", "acc"]].to_dict("records") == own
    out = capsys.readouterr().out
    for name, row in (("mean", table.mean()), ("standard deviation", table.std(ddof=1))):
        cells = [f"{row[key]:.3f}" for key in ("uf1", "uar", "acc")]
        assert " ".join([name, *cells]) in " ".join(out.split())
    with pytest.raises(ValueError, match="exists: give --resume"):
        runner.main(cfg)


# One round of two workers, in which rank {rank} raises {error}; what comes of it in each.
ROUND = """
import os
from hsta_fast.training.stopping import Stopped
from hsta_fast.training.workers import workers
def work(is_main):
    if is_main == {fails}: raise {error}("words")
try: workers().main_process_first(work)
except Exception as error: print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("fails", "error", "said"),
    [
        (True, "Stopped", ["Stopped words\n"] * 2),
        (True, "OSError", ["OSError words\n", "ValueError words\n"]),
        (False, "ValueError", ["", "OSError words\n"]),
    ],
)
def test_what_fails_in_one_worker_is_known_to_all(fails: bool, error: str, said: list[str]) -> None:
    code = ROUND.replace("{fails}", str(fails)).replace("{error}", error) + "\nimport sys; sys.exit(7)"
    both = without_agent(2, before=code)
    ended = [worker.communicate(60)[0] for worker in both]
    assert ended == said and [worker.returncode for worker in both] == [7, 7]


def test_a_fold_folder_knows_a_cut_line(tmp_path: Path) -> None:
    folder = FoldFolder(tmp_path)
    folder.append_metrics({"epoch": 1})
    folder.append_metrics({"epoch": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epo')
    assert [json.loads(line)["epoch"] for line in folder.metrics()] == [1, 2]
    folder.truncate_metrics(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


def test_a_fold_that_is_taken_holds_no_half_written_file(tmp_path: Path) -> None:
    folder = FoldFolder(tmp_path / "fold")
    folder.path.mkdir()
    (folder.path / ".state.pt.x.tmp").write_bytes(b"half")
    with folder.try_acquire() as mine:
        assert mine and not list(folder.path.glob("*.tmp"))
        (folder.path / ".state.pt.y.tmp").write_bytes(b"half")
        with FoldFolder(folder.path).try_acquire() as theirs:
            assert not theirs and list(folder.path.glob(".*.tmp"))
