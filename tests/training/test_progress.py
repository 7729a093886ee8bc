"""How far a run is, and the time left, over all folds, seeds and workers; on a terminal and without one."""

import io
import os
import re
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hsta_fast.training import progress as module
from hsta_fast.training.progress import RunProgress, duration
from hsta_fast.training.run_folder import RunFolder
from hsta_fast.training.run_log import NAME, RunLog

METRICS: dict[str, Any] = {
    "train_loss": 1.25,
    "train_acc": 0.5,
    "test_loss": 1.5,
    "test_acc": 0.25,
    "lr": 1e-3,
}
METRICS |= {"clips_per_second": 80.0}


def make_run(path: Path, *, finished: int = 0, recorded: int = 0) -> RunFolder:
    """A run with finished folds, and a next one with recorded epochs."""
    run = RunFolder(path, {"classes": [], "num_folds": 4}, resume=False)
    for number in range(finished + (recorded > 0)):
        run.fold(number).path.mkdir(parents=True)
    for number in range(finished):
        run.fold(number).finish(pd.DataFrame({"label": [0]}))
    for epoch in range(recorded):
        run.fold(finished).append_metrics({"epoch": epoch + 1})
    return run


def train(run: RunProgress, number: int, epochs: int, *, done: int = 0, **how: Any) -> None:
    """Train a fold in two batches per epoch."""
    with run.training(number, f"fold {number + 1}", epochs, **how) as training:
        training.start(done)
        for _ in range(done, epochs):
            list(training.batches("ab", 2))
            training.epoch(METRICS)


def shares(text: str) -> list[int]:
    """The percentages of the whole run in lines."""
    return [int(found) for found in re.findall(r"; (?:run|all \d seeds): (\d+) %", text)]


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINE_INTERVAL", 0.0)


@pytest.mark.usefixtures("every_line")
def test_the_whole_run_counts_all_requested_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four folds of two epochs, one of which another start has finished; it moves with each batch."""
    progress = RunProgress(shown=True)
    log = RunLog()
    log.open(tmp_path)
    progress.start_run(make_run(tmp_path, finished=1), [0, 1, 2, 3], 2, log)
    for number in (1, 2, 3):
        train(progress, number, 2)
        progress.say(f"fold {number + 1}: finished")
    progress.close()
    seen = shares(capsys.readouterr().err)
    assert seen == sorted(seen) and {31, 38, 50, 75} <= set(seen) and seen[-1] == 100
    assert (tmp_path / NAME).read_text().count(" of 2: train_loss 1.250, train_acc 0.500, ") == 6


@pytest.mark.usefixtures("every_line")
def test_seeds_and_inner_folds_are_part_of_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two seeds of one fold, with two inner folds of 4 epochs, and then as few epochs as these choose."""
    progress = RunProgress(2, shown=True)
    for seed in range(2):
        progress.start_run(make_run(tmp_path / str(seed)), [0], 12, RunLog())
        for inner in range(2):
            train(progress, 0, 4, before=4 * inner, last=False)
        progress.say("inner folds are done")
        train(progress, 0, 2, before=8)
        progress.say("seed is done")
    err = capsys.readouterr().err
    after = dict(
        zip(("inner", "seed"), (shares(line)[0] for line in err.splitlines() if "done" in line), strict=False)
    )
    assert after == {"inner": 33, "seed": 50}, "8 of 24 epochs; then 10 of 20"
    assert shares(err)[-1] == 100


def test_the_time_left_is_that_of_the_epochs_of_this_start(tmp_path: Path) -> None:
    """Of 4 folds of 10 epochs 2 are finished; 5 epochs of the third take 50 s: 15 more take 150 s."""
    progress = RunProgress()
    progress.start_run(make_run(tmp_path, finished=2), [0, 1, 2, 3], 10, RunLog())
    left = progress._time_left
    assert left is not None and left.seconds() is None and left.text() == "50 %"
    left.began = time.monotonic() - 50
    progress.move(2, 5.0)
    assert left.seconds() == pytest.approx(150, rel=0.01) and left.text() == "62 %, 02:30 left"
    assert (duration(59.6), duration(3725)) == ("01:00", "1:02:05")


def test_a_fold_that_is_resumed_does_not_spoil_the_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """38 epochs are on disk, 36 of them in the checkpoint; then 2 epochs take 20 s."""
    progress = RunProgress(shown=True)
    log = RunLog()
    log.open(tmp_path)
    progress.start_run(make_run(tmp_path, recorded=38), [0, 1], 50, log)
    left = progress._time_left
    assert left is not None and (left.done, left.initial) == (38, 38)
    with progress.training(0, "fold 03", 50) as training:
        training.start(36)
        assert (left.done, left.initial, left.seconds()) == (36, 36, None)
        left.began = time.monotonic() - 20
        progress.move(0, 38.0)
        assert left.seconds() == pytest.approx(620, rel=0.01)
    assert "fold 03: resumed at epoch 36 of 50; run: 36 %" in capsys.readouterr().err
    assert "Z fold 03: resumed at epoch 36 of 50\n" in (tmp_path / NAME).read_text()


def test_epochs_of_other_workers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DISK_INTERVAL", 0.0)
    run = make_run(tmp_path)
    progress = RunProgress(shown=True, shared=True)
    progress.start_run(run, [0, 1, 2, 3], 2, RunLog())
    left = progress._time_left
    run.fold(3).path.mkdir(parents=True)
    run.fold(3).append_metrics({"epoch": 1})
    progress.move(0, 0.5)
    assert left is not None and (left.done, left.initial, left.total) == (1.5, 0, 8)
    run.fold(3).finish(pd.DataFrame({"label": [0]}))
    progress.look_at_others()  # while it waits for them, having none to train
    assert left.done == 2.0 + 0.0, "nothing of the own fold is on disk"


def test_only_the_process_that_shows_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog("worker 1")
    log.open(tmp_path)
    progress = RunProgress(shared=True)
    progress.start_run(make_run(tmp_path), [0], 2, log)
    train(progress, 0, 2)
    progress.say("finished")
    assert capsys.readouterr() == ("", "")
    assert "worker 1 finished" in (tmp_path / NAME).read_text()


def test_without_a_terminal_a_line_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After the first epoch of all, then when a minute has passed; nothing that moves a cursor."""
    progress = RunProgress(shown=True)
    progress.start_run(make_run(tmp_path), [0, 1], 50, RunLog())
    train(progress, 0, 50)
    train(progress, 1, 25)
    said = r"fold 1, epoch 1 of 50, train_loss 1\.250, train_acc 0\.500, test_loss 1\.500, test_acc 0\.250"
    said += r": 2 %, \d\d:\d\d left; run: 1 %, \d\d:\d\d left\n"
    first = capsys.readouterr().err
    assert re.fullmatch(said, first), first
    with progress.training(1, "fold 2", 50) as training:
        training.start(25)
        assert capsys.readouterr().err.startswith("fold 2: resumed at epoch 25 of 50; run: 75 %")
        progress._last_line = time.monotonic() - 61
        list(training.batches("abcd", 4))
    assert re.fullmatch(
        r"fold 2, epoch 26 of 50: 50 %, 0\d:\d\d left; run: 75 %, .*\n", capsys.readouterr().err
    )
    progress.close()


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Standard error is a terminal inside; afterwards the list has what was written to it."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    written: list[str] = []
    got = io.BytesIO()

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                got.write(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        yield written
    reader.join()
    os.close(ours)
    written.append(got.getvalue().decode())


def test_bars_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bars, the whole run's and below it the fold's; both move within an epoch."""
    monkeypatch.setattr(module, "_BAR_INTERVAL", -1.0)
    progress = RunProgress(shown=True)
    with terminal(monkeypatch) as written:
        progress.start_run(make_run(tmp_path), [0, 1], 4, RunLog())
        train(progress, 0, 4)
        progress.say("fold 1: finished")
        progress.close()
    [text] = written
    whole = [int(found) for found in re.findall(r"run: +(\d+)%", text)]
    fold = [int(found) for found in re.findall(r"fold 1, epoch \d of 4: +(\d+)%", text)]
    assert {12, 25, 38} <= set(fold) and {6, 12, 19} <= set(whole) and whole == sorted(whole)
    assert re.search(r"run: +6%\|.*\d\d:\d\d<\d\d:\d\d", text), "with the time left"
    assert "fold 1: finished; run: 50 %" in text and "test_acc 0.250" in text
    assert not text.rsplit("\r", 1)[-1].strip("\x1b[A \n"), "the bars are gone at the end"
