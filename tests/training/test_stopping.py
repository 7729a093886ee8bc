"""SIGUSR1: the run is saved at once, ends with a status of its own, and goes on where it was."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hsta_fast.training import loop, runner, stopping
from hsta_fast.training.optim import learning_rate
from tests.training.commands import QUICK, start
from tests.training.test_runner import MakeConfig, make_config, outcome

__all__ = ["make_config"]  # a fixture
ROOT = Path(__file__).parents[2]


@pytest.fixture
def usr1(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The signal is heard, and forgotten with the test."""
    monkeypatch.setattr(stopping._Request, "asked", False)
    before = signal.getsignal(signal.SIGUSR1)
    stopping.listen()
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("step", [2, 4])  # in the middle of an epoch, and after its last step
def test_a_run_stopped_between_two_steps_has_the_numbers_of_an_uninterrupted_one(
    make_config: MakeConfig, usr1: None, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    settings = {"epochs": 2, "dropout": 0.2, "batch_size": 3, "save_every": 9, "only": ("2",)}
    whole = runner.main(make_config(name="whole", **settings))
    steps = 0

    def signalled(cfg: Any, epoch: float) -> float:
        nonlocal steps
        steps += epoch >= 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return learning_rate(cfg, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", signalled)
        with pytest.raises(stopping.Stopped, match=f"SIGUSR1 in fold 2, epoch 2, after step {step} of 4"):
            runner.main(make_config(name="stopped", **settings))
    monkeypatch.setattr(stopping._Request, "asked", False)
    stopped = runner.main(make_config(name="stopped", join=True, **settings))
    assert outcome(stopped) == outcome(whole)


def test_outside_of_training_it_ends_at_once(usr1: None) -> None:
    with pytest.raises(stopping.Stopped, match="^SIGUSR1; --resume or --join continues the run if it has"):
        os.kill(os.getpid(), signal.SIGUSR1)
    with stopping.deferred():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stopping.asked()


def test_the_command_ends_with_75_and_one_line(faces: Path, tmp_path: Path) -> None:
    process = start("train", "--data", faces, "--runs", tmp_path, *QUICK, "--epochs=900")
    while not list(tmp_path.glob("hsta/folds/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGUSR1)
    _, err = process.communicate(60)
    assert process.returncode == 75
    where = r"fold 1, epoch \d+, after step \d of 2"
    said = rf"stopped by SIGUSR1 in {where}; saved: --resume or --join continues the run"
    assert re.fullmatch(said, err.splitlines()[-1]), err
    assert list(tmp_path.glob("hsta/folds/*/state.pt"))


def test_the_array_script_of_the_docs_passes_the_signal_on_and_requeues(tmp_path: Path) -> None:
    """With stand-ins for the two commands, which are not on this machine, or slow."""
    [script] = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/distributed.md").read_text(), re.DOTALL)
    stand_in = (
        "#!/bin/bash\ntrap 'exit $STATUS' USR1\n"
        "sleep 0.2\n"  # until the script knows which process it has started
        "touch started\nfor i in {1..500}; do sleep 0.01; done\n"
    )
    for name, code in {"hsta-fast": stand_in, "scontrol": '#!/bin/bash\necho "$@"\n'}.items():
        (tmp_path / name).write_text(code)
        (tmp_path / name).chmod(0o755)
    of_slurm = {
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "3",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    for status, said in ((75, "requeue 7_3\n"), (138, "requeue 7_3\n"), (1, "")):
        task = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, **of_slurm, "STATUS": str(status)},
            stdout=subprocess.PIPE,
            text=True,
        )
        while not (tmp_path / "started").exists():
            time.sleep(0.005)
        (tmp_path / "started").unlink()
        task.send_signal(signal.SIGUSR1)
        out, _ = task.communicate(timeout=30)
        assert (task.returncode, out) == (status, said)
