"""`hsta-fast` on a disk without locks: claim files keep processes apart."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests import claims
from tests.compiler import needs_compiler
from tests.forked import Forked
from tests.no_locks import no_locks

from .commands import IMPORTED, QUICK, start

pytestmark = needs_compiler
SAID = "/.lock cannot be locked on this file system: No locks available"


def finish(process: Forked, status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out, err


def claim(function: str, folder: Path, *arguments: object) -> Forked:
    """A process that runs a function of tests/claims.py."""
    numbers = "".join(f", {argument!r}" for argument in arguments)
    code = f"import sys, pathlib\nfrom tests.claims import {function}"
    code += f"\n{function}(pathlib.Path(sys.argv[1]){numbers})"
    return Forked(code, [folder], imported=IMPORTED, preload=no_locks())


def test_claims_exclude_each_other(tmp_path: Path) -> None:
    finish(claim("exclude_each_other", tmp_path))


def test_a_claim_that_is_no_longer_renewed_is_taken_over(tmp_path: Path) -> None:
    out, _ = finish(claim("take_over", tmp_path))
    assert out == (
        f"{tmp_path}: another process took this one for dead and works on; "
        "a claim was not renewed for 120 seconds\n"
    )


def test_a_process_that_lost_its_lock_is_told_so_after_the_successor_is_gone(tmp_path: Path) -> None:
    assert finish(claim("lose", tmp_path))[0] == "lost\n"


@pytest.mark.parametrize("function", ["clean_up", "skip_a_hole", "reuse"])
def test_numbers_of_claims_only_grow(tmp_path: Path, function: str) -> None:
    finish(claim(function, tmp_path))


def test_many_processes_come_and_go_and_never_two_are_inside(tmp_path: Path) -> None:
    begin, seconds = time.time() + 0.5, 1.5
    crowd = [claim("crowd", tmp_path, begin, seconds) for _ in range(16)]
    said = [process.communicate(timeout=20) for process in crowd]
    assert all(process.returncode == 0 for process in crowd), said
    entered, met = zip(*(map(int, out.split()) for out, _ in said), strict=True)
    assert sum(entered) > 100 and sum(met) == 0
    assert claims.released(tmp_path) and len(list(tmp_path.iterdir())) <= 33


def test_two_processes_race_for_dead_claims(tmp_path: Path) -> None:
    rounds = 30
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
        claims.leave_claim(tmp_path / str(number) / ".lock", age=1000)
    begin = time.time() + 0.3
    both = [finish(process) for process in [claim("race", tmp_path, begin, rounds) for _ in range(2)]]
    won = [int(word) for out, _ in both for word in out.split()]
    assert sorted(won) == list(range(rounds))


def test_the_claim_of_a_killed_process_is_free_at_once_on_its_machine(tmp_path: Path) -> None:
    holder = claim("hold", tmp_path)
    while not (tmp_path / "held").exists():
        assert holder.poll() is None
        time.sleep(0.005)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    (tmp_path / "held").unlink()
    second = claim("hold", tmp_path)
    while not (tmp_path / "held").exists():
        assert second.poll() is None
        time.sleep(0.005)
    assert (tmp_path / ".lock.2").exists()
    os.kill(second.pid, signal.SIGKILL)


def test_processes_without_a_launcher_share_a_run(faces: Path, tmp_path: Path) -> None:
    """They fill the cache and train, each fold once."""
    words = ["--data", faces, "--runs", tmp_path, "--name", "run", "--cache", tmp_path / "cache", *QUICK]
    out, err = finish(start("prepare", *words, preload=no_locks()))
    assert re.search(r"24 clips, .* checked", out) and err.count(f"{SAID}; continuing without a lock") == 1
    both = [start("train", *words, "--join", preload=no_locks()) for _ in range(2)]
    said = "".join("".join(finish(process)) for process in both)
    run = tmp_path / "run"
    assert said.count(f"{run}: its disk has no locks, so claim files keep other processes out\n") == 1
    assert len(pd.read_csv(run / "predictions.csv")) == 24 and (run / "report.html").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sorted((line["fold"], line["epoch"]) for line in lines) == [("1", 1), ("2", 1)]
    starts = json.loads((run / "config.json").read_text())["provenance"]
    assert [entry["ended"] for entry in starts] == ["finished"] * 2
    assert claims.released(run)
