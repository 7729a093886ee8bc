"""Tuning, with interpreted kernels instead of a device: real launches, times and files."""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import tune
from benchmarks.tune import Case
from hsta_fast.kernels import attention_pool, launch, space_time_attention
from hsta_fast.kernels.attention_pool_configs import Config as PoolConfig
from hsta_fast.kernels.launch import SHARED, TRITON, Device, of_capability, tuned_key
from hsta_fast.kernels.space_time_attention_configs import Config, config_for

CARD = Device("NVIDIA Test Card", 90, 2, SHARED[90])
KEY = tuned_key("space_time_attention", "fwd", 16)
SLOW = Config(rows=16, cols=16, stages=1, warps=4)  # sixteen times the tiles of FAST, each interpreted
FAST = Config(rows=64, cols=64, stages=1, warps=4)


@pytest.fixture(autouse=True)
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (space_time_attention, attention_pool):
        monkeypatch.setattr(module, "device_of", lambda device: CARD)
    monkeypatch.setattr(launch, "TUNED", tmp_path)
    monkeypatch.setattr(tune, "HEADS", 2)
    launch.tuned_table.cache_clear()
    yield
    launch.tuned_table.cache_clear()


def compute(seconds: float) -> None:
    """Keep the processor busy: `tune` counts its time, not the clock's."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def attention_case(kernel: str = "fwd", *configs: Config) -> Case:
    key = tuned_key("space_time_attention", kernel, 16)
    return Case(key=key, configs=configs, make=lambda: tune._attention(kernel, 16, 1, 100, "cpu"))


@pytest.mark.parametrize("kernel", ["fwd", "dq", "dkv"])
def test_launchers_use_the_fastest_afterwards(kernel: str, tmp_path: Path) -> None:
    found = tune.tune(CARD.name, [attention_case(kernel, SLOW, FAST)], limit=600)
    assert found[tuned_key("space_time_attention", kernel, 16)]["rows"] == 64
    assert config_for(kernel, 16, torch.bfloat16, device=CARD) == FAST
    held = json.loads((tmp_path / "nvidia-test-card.json").read_text())
    assert held["device"] == CARD.name
    assert set(held["milliseconds"][TRITON][f"space_time_attention {kernel} 16"]) == {str(SLOW), str(FAST)}


def test_where_results_go(tmp_path: Path) -> None:
    """To the given folder, and into the entries of `make gpu`."""
    entries, elsewhere = tmp_path / "entries.jsonl", tmp_path / "elsewhere"
    case = attention_case("fwd", SLOW, FAST)
    tune.tune(CARD.name, [case], limit=600, folder=elsewhere, entries=entries)
    assert [path.name for path in elsewhere.iterdir()] == ["nvidia-test-card.json"]
    [entry] = [json.loads(line) for line in entries.read_text().splitlines()]
    assert entry["case"] == f"tune {KEY}" and entry["config"] == str(FAST)
    assert entry["ms"] < entry["shipped_ms"]


def test_entries_of_other_versions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "nvidia-test-card.json"
    path.write_text(
        json.dumps({"device": "x", "triton": {"3.0": {"a": 1}, TRITON: {"b": 2}}, "milliseconds": {}})
    )
    tune.tune(CARD.name, [attention_case("fwd", SLOW, FAST)], limit=600)
    held = json.loads(path.read_text())["triton"]
    assert held["3.0"] == {"a": 1} and held[TRITON]["b"] == 2 and held[TRITON][KEY]["rows"] == 64


def test_the_shipped_one_stays_unless_another_is_clearly_faster() -> None:
    found = tune.tune(CARD.name, [attention_case("fwd", FAST, SLOW)], limit=600)
    assert found[KEY]["rows"] == 64


@pytest.mark.parametrize("wrong", ["numbers", "does not run"])
def test_wrong_results_and_errors_are_rejected(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> Sequence[Tensor]:
        rows = launch.tuned_table(CARD.name)[KEY]["rows"]
        if rows == 16:
            compute(0.05)
        elif wrong == "does not run":
            raise RuntimeError("no")
        return [torch.full((3,), 1.0 if rows == 16 else 2.0)]

    found = tune.tune(CARD.name, [Case(key=KEY, configs=[SLOW, FAST], make=lambda: run)], limit=600)
    assert found[KEY]["rows"] == 16
    assert ("results differ" if wrong == "numbers" else "RuntimeError: no") in capsys.readouterr().out


def test_time_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.tune(CARD.name, [attention_case("fwd", SLOW, FAST)], limit=-1.0) == {}
    assert f"{KEY}: skipped not reached" in capsys.readouterr().out


def test_a_kernel_that_writes_nothing_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    """It reuses the freed memory of the correct one before it."""

    def run() -> Sequence[Tensor]:
        out = torch.empty(1 << 16)
        if launch.tuned_table(CARD.name)[KEY]["rows"] == 16:
            compute(0.05)
            out.fill_(1.0)
        return [out]

    found = tune.tune(CARD.name, [Case(key=KEY, configs=[SLOW, FAST], make=lambda: run)], limit=600)
    assert found[KEY]["rows"] == 16 and "results differ" in capsys.readouterr().out


def test_a_shipped_configuration_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """The launcher's warning points to tuning: the others are compared with the first that runs."""

    def run() -> Sequence[Tensor]:
        if launch.tuned_table(CARD.name).get(KEY, {"rows": 16})["rows"] == 16:
            warnings.warn("it does not fit", stacklevel=2)
        return [torch.ones(3)]

    given = [
        Case(key="a kernel", configs=[SLOW], make=lambda: run),  # none runs
        Case(key="another", configs=[SLOW], make=lambda: 1 // 0),  # type: ignore[arg-type, return-value]
        Case(key=KEY, configs=[SLOW, FAST], make=lambda: run),
    ]
    assert list(tune.tune(CARD.name, given, limit=600)) == [KEY]
    said = capsys.readouterr().out
    assert "UserWarning: it does not fit" in said
    assert "a kernel: failed RuntimeError: no configuration runs" in said
    assert "another: failed ZeroDivisionError" in said


@pytest.mark.parametrize("kernel", ["fwd", "bwd"])
def test_pooling_is_launched_as_it_is_tried(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = set()
    meta = attention_pool.meta

    def recorded(name: str, width: int, config: PoolConfig, **how: Any) -> dict[str, Any]:
        launched.add((name, config.tokens))
        return meta(name, width, config, **how)

    monkeypatch.setattr(attention_pool, "meta", recorded)
    shipped = PoolConfig(tokens=16, chunk=64, slices=4, stages=1, warps=4, residents=1)
    other = PoolConfig(tokens=32, chunk=64, slices=4, stages=1, warps=4, residents=1)
    key = tuned_key("attention_pool", kernel, 384)
    case = Case(key=key, configs=[shipped, other], make=lambda: tune._pool(kernel, 96, 1, 40, "cpu"))
    found = tune.tune(CARD.name, [case], limit=600)
    assert {(kernel, 16), (kernel, 32)} <= launched and found[key]["tokens"] in (16, 32)


@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_of_the_model_is_tried(capability: int) -> None:
    given = list(tune.cases(of_capability(capability)))
    assert len({case.key for case in given}) == 12
    assert all(len(case.configs) >= 5 and len(set(case.configs)) == len(case.configs) for case in given)
    assert sum(len(case.configs) for case in given) <= 150  # a second of 16 cores each to compile


def test_without_a_device() -> None:
    command = [sys.executable, "benchmarks/tune.py"]
    ran = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ".", "PATH": "/usr/bin"})
    if not torch.cuda.is_available():
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith("tune.py expected a CUDA device, got none (torch ")
