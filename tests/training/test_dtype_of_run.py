"""--dtype auto: a run keeps the dtype that it was started with, whatever is measured later."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hsta_fast import cpu_speed
from hsta_fast.cpu_speed import CpuSpeed, Rates
from hsta_fast.training import runner
from hsta_fast.training.evaluate import evaluate
from hsta_fast.training.provenance import Start, dtype_of_run
from hsta_fast.training.run_log import RunLog
from hsta_fast.training.setup import AS_STARTED, Experiment, set_up
from tests.training.test_float16 import stopping
from tests.training.test_runner import MakeConfig, make_config, outcome

__all__ = ["make_config"]  # a fixture
AUTO = {"dtype": "auto", "device": "cpu", "epochs": 2, "save_every": 1, "only": ("1",)}


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """What this CPU is found to multiply in bfloat16, against 100 GFLOP/s in float32."""

    def found(bfloat16: float) -> None:
        rates = Rates(torch=100.0, panels=0.0, bfloat16=bfloat16)
        speed = CpuSpeed(narrow=rates, wide=rates, path=None)
        monkeypatch.setattr(cpu_speed, "_found", {torch.get_num_threads(): speed})

    return found


def dtypes(run: Path) -> list[str]:
    return [start["dtype"] for start in json.loads((run / "config.json").read_text())["provenance"]]


def test_a_run_goes_on_and_is_scored_in_its_dtype(
    make_config: MakeConfig, measure: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    measure(900.0)
    whole = runner.main(make_config(name="whole", **AUTO))
    with stopping(after=1), pytest.raises(KeyboardInterrupt):
        runner.main(make_config(name="run", **AUTO))
    capsys.readouterr()
    measure(10.0)
    run = runner.main(make_config(name="run", **AUTO, resume=True))
    assert f"torch.bfloat16: {AS_STARTED}" in capsys.readouterr().out
    assert dtypes(run) == ["bfloat16"] * 2 and outcome(run) == outcome(whole)
    assert "0 predictions differ from predictions.csv, probabilities by at most 0.0e+00" in evaluate(run)


def test_processes_that_begin_together_have_the_dtype_of_the_first(
    make_config: MakeConfig, measure: Callable[[float], None]
) -> None:
    """Both have made their plan before either has written; and a worker that does not write follows."""
    cfg = make_config(name="joined", **AUTO, join=True)

    def planned(bfloat16: float) -> tuple[Experiment, Start]:
        measure(bfloat16)
        exp = set_up(cfg)
        model = cfg.architecture(len(exp.labels.classes))
        return exp, Start(
            clock=time.monotonic(), device=exp.device, dtype=exp.dtype, architecture=model, workers=1
        )

    plans = [planned(bfloat16) for bfloat16 in (900.0, 10.0, 10.0)]
    assert [exp.dtype for exp, _ in plans] == [torch.bfloat16, torch.float32, torch.float32]
    opened = [
        runner.open_run(*plan, RunLog(), is_main)
        for plan, is_main in zip(plans, (True, True, False), strict=True)
    ]
    assert [exp.dtype for _, exp in opened] == [torch.bfloat16] * 3
    assert dtypes(opened[0][0].path) == ["bfloat16"] * 2


def test_each_kind_of_device_has_its_dtype() -> None:
    starts: list[dict[str, Any]] = [
        {"device": "cpu: some CPU, AVX512", "dtype": "bfloat16"},
        {"device": "cuda:1: some GPU", "dtype": "float16"},
        {"device": "cpu: another CPU", "dtype": "float32"},
    ]
    for device, dtype in (("cpu", "bfloat16"), ("cpu: a third", "bfloat16"), ("cuda:0", "float16")):
        assert dtype_of_run(starts, device) == dtype
    assert dtype_of_run(starts[:1], "cuda") is None and dtype_of_run([], "cpu") is None
