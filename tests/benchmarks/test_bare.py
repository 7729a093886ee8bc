"""`make gpu` with only torch, Triton, numpy, einops, safetensors and pytest installed."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu import OPS_TESTS, SANITIZED
from benchmarks.gpu_bench import cases, drop_in_cases
from benchmarks.plan import CASES, CHECKS, COMPILED_CASES, DRAWS, DROP_IN_CASES, DROP_IN_TESTS, TESTS
from benchmarks.processes import ROOT
from benchmarks.wheels import DATA
from hsta_fast import extension
from tests.benchmarks import bare
from tests.gpu import smoke
from tests.gpu.shapes import DRAWS as DRAWS_OF_A_SEED
from tests.gpu.shapes import SEEDS

LACKING = {*DATA, "ninja", "openpyxl", "tyro", "hypothesis", "pytest_benchmark", "scipy", "PIL"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare.make(tmp_path_factory.mktemp("bare"))


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", os.defpath)
    yield


def output(python: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    return ran.stdout


def test_the_environment_has_no_other_packages(python: Path) -> None:
    code = f"import importlib.util as u; print(*[m for m in {sorted(LACKING)!r} if u.find_spec(m)])"
    assert output(python, "-c", code).strip() == ""


def test_all_tests_of_the_stages_are_collected(python: Path) -> None:
    """As many as the estimate of their time counts, and no others."""
    command = ("-m", "pytest", "--collect-only", "-q", "-m", "gpu")
    found = [line for line in output(python, *command, "tests/gpu").splitlines() if "::" in line]
    kernels = [line for line in found if "test_random_shapes.py" in line]
    drop_in = [line for line in found if "test_drop_in_on_cuda.py" in line]
    assert {"ops": len(found) - len(kernels + drop_in), "kernels": len(kernels)} == TESTS
    others = {line.split("::")[0] for line in (kernels[0], drop_in[0])}
    assert {line.split("::")[0] for line in found} - others == set(OPS_TESTS)
    pytest.importorskip("timm")
    assert (len(drop_in), len(drop_in_cases())) == (DROP_IN_TESTS, DROP_IN_CASES)
    assert 2 * len(SEEDS) * DRAWS_OF_A_SEED == DRAWS
    assert 2 * len(SEEDS) == TESTS["kernels"]


def test_the_plan_and_the_wheels_are_printed(python: Path) -> None:
    assert f"{CASES} cases" in output(python, "benchmarks/gpu.py", "--plan")
    assert (len(cases()), sum(case.compiled for case in cases())) == (CASES, COMPILED_CASES)
    said = output(python, "benchmarks/gpu.py", "--wheels")
    assert said.count("pip download") == said.count("pip install --no-index --find-links wheels") == 1
    for package in DATA.values():
        assert package in said


def test_the_checks_of_the_smoke_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the estimate counts, including those that compute-sanitizer runs."""
    monkeypatch.setattr(smoke, "DTYPES", tuple(smoke.BOUNDS))  # as on a device
    names = [name for name, _ in smoke.checks()]
    assert len(set(names)) == len(names) == CHECKS
    assert set(SANITIZED) <= set(names)
    waits = [name.startswith("tubelets") or name == "model in float32" for name in names]
    assert waits == sorted(waits)  # checks that wait for the extension come last


def test_the_first_smoke_checks_load_no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(part: str) -> None:
        raise AssertionError(f"the {part} part was asked for")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(extension, "load", load)
    checks = dict(smoke.checks())
    found = checks["model in bfloat16"]()
    assert found["error"] <= found["bound"]
    assert checks["training step in bfloat16"]()["error"] == 0.0


@pytest.mark.full
def test_every_stage_runs_with_the_cpu_as_a_stand_in(python: Path, tmp_path: Path) -> None:
    """Smoke interpreted, tests only collected, benchmark cases tiny, compiled ones with an eager backend."""
    said = output(python, "benchmarks/gpu.py", "--stand-in", "--results", str(tmp_path))
    stages = json.loads((tmp_path / "stand-in.json").read_text())["stages"]
    assert list(stages) == ["ahead", "smoke", "ops", "kernels", "bench", "tune"]
    assert {stage["status"] for stage in stages.values()} == {"passed"}
    assert "kernel specialisations" in stages["ahead"]["entries"][0]["note"]
    assert [stages[name]["entries"][-1]["note"] for name in TESTS] == [
        f"{n} collected" for n in TESTS.values()
    ]
    assert {entry["case"] for entry in stages["bench"]["entries"]} == {str(case) for case in cases()}
    assert len(stages["smoke"]["entries"]) <= CHECKS
    assert said.index("== smoke") < said.index("== ops") < said.index("== bench") < said.index("== tune")
