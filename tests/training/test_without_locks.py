"""`hsta-fast` on a disk without locks: one process goes on, several do not start."""

import re
from pathlib import Path

import pandas as pd

from tests.compiler import needs_compiler
from tests.forked import Forked
from tests.no_locks import no_locks

from .commands import QUICK, start

pytestmark = needs_compiler
SAID = "/.lock cannot be locked on this file system: No locks available"


def finish(process: Forked, status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return out, err


def test_one_process_goes_on(faces: Path, tmp_path: Path) -> None:
    """It fills the cache and trains, with a warning for each folder."""
    words = ["--data", faces, "--runs", tmp_path, "--name", "alone", "--cache", tmp_path / "cache", *QUICK]
    out, err = finish(start("prepare", *words, preload=no_locks()))
    assert re.search(r"24 clips, .* checked", out) and err.count(f"{SAID}; continuing without a lock") == 1
    _, err = finish(start("train", *words, preload=no_locks()))
    run = tmp_path / "alone"
    assert err.count(f"{run}{SAID}; make sure that no other process trains this run\n") == 1
    assert err.count("cannot be locked") == 1 and (run / "report.html").exists()
    assert len(pd.read_csv(run / "predictions.csv")) == 24


def test_several_processes_do_not(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hsta_fast.training.run_folder import RunFolder\n"
        "from hsta_fast.files import check_locks\n"  # what is asked before any frame is decoded
        "try: check_locks(Path(sys.argv[1]), '--runs')\n"
        "except OSError as error: print(error)\n"
        "for main in (True, False):\n"
        "    try: RunFolder(Path(sys.argv[1]), {}, resume=False, shared=True, is_main=main)\n"
        "    except OSError as error: print(error)"
    )
    out, _ = finish(Forked(code, [tmp_path / "run"], imported=("hsta_fast.cli",), preload=no_locks()))
    expected = f"{tmp_path}/run{SAID}; --runs expected a disk with locks, for several processes"
    first = f"--runs expected a disk with locks, for several processes, got {tmp_path}/run"
    assert out.splitlines() == [first, *[expected] * 2] and not (tmp_path / "run/config.json").exists()
