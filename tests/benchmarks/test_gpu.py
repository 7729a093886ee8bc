"""`make gpu` around its stages: order, budgets, restarts, results after a kill, the table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import hsta_fast
from benchmarks import entries as entry_file
from benchmarks import gpu
from benchmarks.entries import DEVICE_FAULT
from benchmarks.gpu import AHEAD, STAGES, Run, Stage, go, perform, selected, tables
from benchmarks.plan import TUNE_SECONDS, estimates, plan
from benchmarks.processes import ROOT, TAIL
from benchmarks.record import write
from benchmarks.table import GOALS, beside_the_best_peer, goal_line, table
from tests.compiler import WITH_CUDA, finish, needs_compiler, write_cudart, write_nvcc, write_sources
from tests.compiler import start as start_process

INFO_ANEW = gpu.info_anew
MAIN = "import sys; from benchmarks import gpu; sys.exit(gpu.main())"
PRELUDE = "import sys, time, os; from pathlib import Path; from benchmarks.entries import append, read\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(gpu, "build_extension", lambda run: None)  # no device to build for
    monkeypatch.setattr(gpu, "info_anew", dict)  # starts a process that imports torch; one test covers it
    return Run(folder=tmp_path, device="A Card 1")


def stage(name: str, code: str, budget: int = 60) -> Stage:
    """A stage that runs one Python script; its variable `path` is the file for entries."""

    def commands(run: Run, entries: Path) -> list[list[str]]:
        return [[sys.executable, "-c", f"{PRELUDE}path = Path({str(entries)!r})\n{code}"]]

    return Stage(name=name, budget=budget, commands=commands)


def stored(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.results.read_text())["stages"]
    return found


def ended(pid: int) -> bool:
    """Whether a process ends within seconds; a zombie counts as ended."""
    state = Path(f"/proc/{pid}/stat")
    for _ in range(50):
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_order_and_choice() -> None:
    names = ["smoke", "ops", "kernels", "bench", "tune"]
    assert [s.name for s in STAGES] == names
    assert selected(None) == [AHEAD, *STAGES]
    assert [[s.name for s in selected(name)] for name in names] == [
        ["ahead", "smoke"],
        ["ahead", "ops"],
        ["ahead", "kernels"],
        ["bench"],
        ["tune"],
    ]


def test_budgets_cover_the_estimates_and_total_less_than_ten_minutes() -> None:
    assert (
        sum(s.budget for s in selected(None)) < 580
    )  # seconds: the start of processes included, ten minutes
    for s in selected(None):
        assert estimates()[s.name][0] <= s.budget, s.name
    assert estimates()["smoke"][0] <= 60
    assert TUNE_SECONDS <= 180
    lines = plan({s.name: s.budget for s in selected(None)}).splitlines()
    assert [line.split()[0] for line in lines] == ["ahead", *(s.name for s in STAGES), "all"]


def test_the_results_are_written_after_each_stage_with_its_status(run: Run) -> None:
    seen = f"append(path, {{'case': 'before', 'note': str(Path({str(run.results)!r}).exists())}})"
    assert go(run, [stage("smoke", seen), stage("ops", f"{seen}; sys.exit(1)"), stage("bench", "")]) == 1
    found = stored(run)
    assert list(found) == ["smoke", "ops", "bench"]
    assert [found[name]["status"] for name in found] == ["passed", "failed", "passed"]
    assert [found[name]["entries"][0]["note"] for name in ("smoke", "ops")] == ["False", "True"]
    assert [path.name for path in run.folder.iterdir()] == ["a-card-1.json"]
    assert go(run, [stage("ops", "")]) == 0  # one stage again: the others stay
    assert list(stored(run)) == ["smoke", "ops", "bench"]
    assert stored(run)["ops"]["status"] == "passed"


def test_a_smoke_stage_without_a_pass_is_reported(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    go(run, [stage("smoke", "append(path, {'case': 'one', 'failed': 'it'})"), stage("ops", "")])
    said = capsys.readouterr().out
    assert "NOTHING WORKS on A Card 1" in said
    assert "== ops" in said
    go(run, [stage("smoke", "append(path, {'case': 'one'})")])
    assert "NOTHING WORKS" not in capsys.readouterr().out


def test_a_stage_is_stopped_at_its_budget_and_keeps_its_results(run: Run) -> None:
    """Processes that it has started end with it."""
    code = (
        "append(path, {'case': 'done'}); append(path, {'started': 'endless'})\n"
        "import subprocess; child = subprocess.Popen(['sleep', '600'])\n"
        "append(path, {'case': 'child', 'note': child.pid}); time.sleep(600)"
    )
    start = time.monotonic()
    found = perform(stage("bench", code, budget=6), run)
    assert time.monotonic() - start < 30
    assert found["status"] == "cut"
    assert [entry["case"] for entry in found["entries"]] == ["done", "child", "endless"]
    assert found["entries"][2]["failed"] == "the process ended within it"
    assert ended(found["entries"][1]["note"])


def test_a_new_process_continues_after_a_device_fault(run: Run) -> None:
    code = (
        "done = {entry['case'] for entry in read(path)}\n"
        "for case in ('a', 'b', 'c', 'd'):\n"
        "    if case in done: continue\n"
        "    append(path, {'started': case})\n"
        f"    if case == 'b': append(path, {{'case': case, 'failed': 'fault'}}); sys.exit({DEVICE_FAULT})\n"
        "    if case == 'c': os.abort()\n"
        "    append(path, {'case': case})\n"
    )
    found = perform(stage("bench", code), run)
    assert found["status"] == "failed"
    outcome = {entry["case"]: entry.get("failed") for entry in found["entries"]}
    assert outcome == {"a": None, "b": "fault", "d": None, "c": "the process ended within it"}


def test_restarts_are_limited(run: Run) -> None:
    code = f"append(path, {{'case': str(len(read(path))), 'failed': 'fault'}}); sys.exit({DEVICE_FAULT})"
    assert len(perform(stage("bench", code), run)["entries"]) == 1 + gpu.RESTARTS


def test_the_table_after_a_kill_in_the_middle_of_a_stage(tmp_path: Path) -> None:
    """The process of `go` is ended by SIGKILL, then another one by a signal that can be caught."""
    code = (
        "import sys; sys.argv = ['']\n"
        "from tests.benchmarks.test_gpu import *\n"
        "gpu.build_extension = lambda run: None\n"
        f"run = Run(folder=Path({str(tmp_path)!r}), device='A Card 1')\n"
        "timed = {'group': 'g', 'peer': False, 'ms': 2.0, 'L2 flushed': True, 'name': 'ours'}\n"
        "peer = timed | {'peer': True, 'ms': 3.0, 'name': 'theirs'}\n"
        "bench = f'append(path, {timed | dict(case=1)}); append(path, {peer | dict(case=2)})'\n"
        "bench += '; append(path, dict(case=3, pid=os.getpid())); time.sleep(600)'\n"
        "go(run, [stage('smoke', 'append(path, dict(case=0))'), stage('bench', bench)])"
    )
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start_process(code)
        partial = tmp_path / "a-card-1.bench.jsonl"
        for _ in range(600):
            if len(entry_file.read(partial)) == 3:
                break
            time.sleep(0.1)
        os.kill(process.pid, number)
        assert process.wait(30) != 0
        said = tables(tmp_path)
        assert "smoke: passed" in said
        assert "bench: unfinished" in said
        assert "* ours" in said and "1.50 x best peer" in said
        pid = entry_file.read(partial)[2]["pid"]
        assert ended(pid)  # a survivor would write into the file of the next run
        partial.unlink()


def test_the_output_of_a_process_that_dies_outside_a_case_is_kept(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit status and last lines are stored and shown."""
    code = "print('\\n'.join(map(str, range(100)))); raise ImportError('no such module')"
    found = perform(stage("bench", code), run)
    assert (found["status"], found["exit"], len(found["tail"])) == ("failed", 1, TAIL)
    assert found["tail"][-1] == "ImportError: no such module"
    assert "exit status 1, last line: ImportError: no such module" in table("card", {"bench": found})
    assert "\n0\n1\n" in "\n" + capsys.readouterr().out
    found = perform(stage("bench", "print('so far'); time.sleep(600)", budget=6), run)
    assert (found["status"], found["exit"], found["tail"]) == ("cut", None, ["so far"])
    assert "cut, last line: so far" in table("card", {"bench": found})
    assert "tail" not in perform(stage("bench", "print('fine')"), run)


def test_names_of_devices_with_dots(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, device="NVIDIA H100 MIG 1g.10gb")
    run.results.write_text(json.dumps({"stages": {"ops": perform(stage("ops", ""), run)}}))
    entry_file.append(run.partial("bench"), timed("g", "ours", 1.0))
    said = tables(tmp_path)
    assert said.count("goals") == 1
    assert said.startswith("nvidia-h100-mig-1g.10gb\n")
    assert "ops: passed" in said and "bench: unfinished" in said


def test_the_table_has_no_results_of_cpus(tmp_path: Path) -> None:
    write(tmp_path / "cpu.json", {"machine": {}, "versions": {}, "groups": []})
    assert tables(tmp_path) == f"no results in {tmp_path}"


@pytest.mark.parametrize("damaged", ['{"device": "A', "[]", '{"stages": {"ops": 3}}', "\x00"])
def test_a_damaged_results_file_is_renamed(
    run: Run, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    run.results.write_text(damaged)
    assert "expected the results of make gpu" in tables(run.folder)
    assert go(run, [stage("ops", "")]) == 0
    assert list(stored(run)) == ["ops"]
    assert (run.folder / "a-card-1.json.damaged").read_text() == damaged
    assert "renamed it to a-card-1.json.damaged" in capsys.readouterr().out


def test_an_unwritable_results_folder_is_reported_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = start_process(MAIN, "--stand-in", "--results", tmp_path / "file")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("--results expected a writable folder, got ") and err.count("\n") == 1


def test_tuned_files_go_to_the_results_folder(tmp_path: Path) -> None:
    [tune] = [s for s in STAGES if s.name == "tune"]
    entries = tmp_path / "entries.jsonl"
    [command] = tune.commands(Run(folder=tmp_path, device="card"), entries)
    assert command[-1] == f"--entries={entries}"
    [command] = tune.commands(Run(folder=tmp_path, device="card", tuned=tmp_path / "tuned"), entries)
    assert command[-2:] == [f"--entries={entries}", f"--folder={tmp_path / 'tuned'}"]


def test_the_final_info_comes_from_a_new_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has cached its answer; a build may have failed since."""
    before = hsta_fast.info()
    monkeypatch.setattr(gpu, "info_anew", INFO_ANEW)
    monkeypatch.setenv("CXX", "/nowhere")
    assert go(run, [stage("ops", "")]) == 0
    assert hsta_fast.info() == before
    found = json.loads(run.results.read_text())["info"]
    assert "no C++ compiler was found" in found["ops"]["cpu"]["tubelet_embed"]["reason"]


@needs_compiler
@pytest.mark.parametrize(("prelude", "parts"), [("", ["cpu"]), (WITH_CUDA, ["cpu", "cuda"])])
def test_the_extension_is_built_ahead(tmp_path: Path, prelude: str, parts: list[str]) -> None:
    """Each part whose tools are present: without nvcc only the CPU's."""
    sources = write_sources(tmp_path / "csrc")
    environment = {"HSTA_FAST_CACHE": str(tmp_path / "cache"), "CUDA_HOME": str(tmp_path / "cuda")}
    if prelude:
        cudart = write_cudart(tmp_path / "cuda" / "lib64" / "libcudart.so.99", 99)
        (cudart.parent / "libcudart.so").symlink_to(cudart)
        write_nvcc(tmp_path / "cuda" / "bin" / "nvcc", libraries=(cudart.parent,))
    where = f"import hsta_fast.extension as e; from pathlib import Path; e.SOURCES = Path({str(sources)!r})\n"
    finish(start_process(prelude + where + gpu.BUILD, **environment))
    built = sorted(path.name.split("-")[1] for path in (tmp_path / "cache").glob("*.so"))
    assert built == parts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], ".venv/bin/python benchmarks/gpu.py"),
        (["PYTHON=other"], "other benchmarks/gpu.py"),
        (
            ["STAGE=bench", "RESULTS=a folder"],
            '.venv/bin/python benchmarks/gpu.py --stage bench --results "a folder"',
        ),
    ],
)
def test_make_gpu(tmp_path: Path, given: list[str], said: str) -> None:
    """`make gpu` uses the environment of `make env`, unless PYTHON is given."""
    interpreter = tmp_path / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.touch()
    command = ["make", "-n", "-f", str(ROOT / "Makefile"), "gpu", *given]
    ran = subprocess.check_output(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, text=True)
    assert ran.split() == f"PYTHONPATH=. {said}".split()


def test_smoke_needs_no_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import benchmarks.gpu, tests.gpu.smoke, tests.gpu.shapes\n"
        "print(benchmarks.gpu.plan({'bench': 1}))"
    )
    assert "cases" in finish(start_process(code))[0]


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "entries.jsonl"
    assert entry_file.read(path) == []
    entry_file.append(path, {"case": "whole"})
    with path.open("a") as file:
        file.write('{"case": "to')
    assert entry_file.read(path) == [{"case": "whole"}]


def timed(group: str, name: str, ms: float, **more: Any) -> dict[str, Any]:
    found = {"case": f"{group}, {name}", "group": group, "name": name, "ms": ms, "L2 flushed": True}
    return found | {"peer": name not in ("triton", "extension", "ours")} | more


def test_the_ratio_to_the_best_peer() -> None:
    refused = {"case": "r", "group": "g", "name": "flash", "peer": True, "refuses": "No available kernel."}
    alone = timed("h", "triton", 1.0)
    found = beside_the_best_peer(
        [timed("g", "triton", 2.0), timed("g", "cudnn", 3.0), timed("g", "flex", 5.0), refused, alone]
    )
    assert [entry.get("x best peer") for entry in found] == [1.5, 1.0, 0.6, None, None]


def goal(text: str) -> Callable[[Sequence[dict[str, Any]]], str]:
    [found] = [goal for goal in GOALS if goal.text.startswith(text)]
    return lambda entries: goal_line(found, entries)


def attention(D: int, what: str, times: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    return [
        timed(f"attention D={D} N={N} B=32 {what}", name, ms)
        for N, peers in times.items()
        for name, ms in peers.items()
    ]


def test_goals_are_met_or_not_by_their_worst_group() -> None:
    line = goal("attention D=64, N >= 1569, forward")
    assert line([]).endswith("not measured")
    good = {"triton": 1.0, "cudnn": 1.1, "flex": 0.5}  # compared with cuDNN only
    entries = attention(64, "forward", {589: {"triton": 9.0, "cudnn": 1.0}, 1569: good, 3137: good})
    assert "so far met, 2 of 3 groups" in line(entries)
    assert "met  (" in line(entries + attention(64, "forward", {6273: good}))
    slow = attention(64, "forward", {6273: {"triton": 2.0, "cudnn": 1.0}})
    assert "0.50 x  NOT MET  (attention D=64 N=6273" in line(entries + slow)

    line = goal("attention D=32, N >= 1569, forward")
    fast = {"triton": 1.0, "cudnn": 1.5, "flex": 1.25}
    found = line(attention(32, "forward", {1569: fast, 3137: fast, 6273: fast}))
    assert "1.25 x  NOT MET" in found  # the best peer counts

    line = goal("CSTA forward,")
    assert "not measured" in line(
        [timed("csta C=1 forward + backward", name, 1.0) for name in ("triton", "flash")]
    )


def test_the_floor_of_the_tubelets_is_the_larger_of_two() -> None:
    line = goal("tubelets forward")
    ours = [
        timed(f"tubelets {n} forward", "extension", 1.0, **{"TFLOP/s": 200.0, "GB/s": 2000.0}) for n in "abc"
    ]
    ceilings = [timed("ceilings", "product", 1.0, **{"TFLOP/s": 800.0})]
    assert "not measured" in line(ours + ceilings)
    ceilings.append(timed("ceilings", "copy", 1.0, **{"GB/s": 3000.0}))
    for entry in ceilings:
        entry["peer"] = False
    assert "1.50 x  met" in line(ours + ceilings)
    ours[0]["GB/s"] = 400.0
    assert "4.00 x  NOT MET  (tubelets a forward)" in line(ours + ceilings)


def test_goals_in_operations_per_second() -> None:
    """The share of a product's rate, and how the time grows beside the operations."""
    ceiling = timed("ceilings", "product", 1.0, **{"TFLOP/s": 800.0}) | {"peer": False}
    at = {T: timed(f"hsta_base T={T} B=32 train step", "ours", 1.0, **{"TFLOP/s": 480.0}) for T in (16, 64)}
    share, grows = goal("step, 16 frames"), goal("step, time over FLOPs")
    assert "not measured" in share([at[16]]) and "not measured" in grows([at[64], ceiling])
    assert ">= 0.55 x    0.60 x  met" in share([at[16], ceiling])
    assert "<=  1.3 x    1.00 x  met" in grows(list(at.values()))
    at[64]["TFLOP/s"], at[16]["TFLOP/s"] = 300.0, 420.0
    assert "0.53 x  NOT MET" in share([at[16], ceiling])
    assert "1.40 x  NOT MET" in grows(list(at.values()))


def test_every_goal_finds_its_groups_among_the_cases() -> None:
    """Each goal finds the stated number of groups, with the peer that it names."""
    from benchmarks.gpu_bench import cases, drop_in_cases

    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    known = [*cases(), *drop_in_cases()]
    ceilings = {"TFLOP/s": 1.0, "GB/s": 1.0}
    entries = [timed(case.group, case.name, 1.0, **ceilings) | {"peer": case.peer} for case in known]
    for line in (goal_line(goal, entries) for goal in GOALS):
        assert " of " not in line and "not measured" not in line, line


def test_the_table_lists_failures_skips_and_refusals() -> None:
    stages = {
        "smoke": [
            {"case": "attention", "error": 1e-3, "bound": 1e-2, "seconds": 0.5},
            {"case": "pool", "error": 1.0, "bound": 1e-2, "seconds": 0.5, "failed": "1 is above 0.01"},
        ],
        "ops": [
            {"case": "t1"},
            {"case": "t2", "skipped": "no pandas"},
            {"case": "kernels", "note": "79 ahead"},
        ],
        "bench": [
            timed("g", "triton", 1.0),
            {"case": "r", "group": "g", "name": "cudnn", "peer": True, "refuses": "No available kernel."},
        ],
    }
    said = table(
        "card",
        {
            name: {"status": "failed", "seconds": 1, "budget": 2, "entries": entries}
            for name, entries in stages.items()
        },
    )
    for words in (
        "1 passed, 1 failed",
        "FAILED pool: 1 is above 0.01",
        "skipped t2: no pandas",
        "kernels: 79 ahead",
        "refuses: No available kernel.",
        "1.00e-03 of 1e-02",
    ):
        assert words in said, words


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_ends_with_one_line() -> None:
    ran = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("gpu.py expected a CUDA device, got none") and ran.stderr.count("\n") == 1
