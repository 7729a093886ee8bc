"""`make gpu`: tests, benchmarks and tuning on a CUDA device, in stages with time budgets; results as JSON.

    PYTHONPATH=. python benchmarks/gpu.py                  smoke, ops, kernels, bench, tune
    PYTHONPATH=. python benchmarks/gpu.py --stage bench    one stage; the file keeps the others' results
    PYTHONPATH=. python benchmarks/gpu.py --stage drop-in  models of transformers and timm, accelerated
    PYTHONPATH=. python benchmarks/gpu.py --table          the results so far, also after a kill
    PYTHONPATH=. python benchmarks/gpu.py --plan           what would run and for how long; needs no device
    PYTHONPATH=. python benchmarks/gpu.py --wheels         commands that fetch and install missing packages

Installs nothing. Needs torch, Triton, numpy, einops, safetensors and pytest; reports other missing packages.
"""

import argparse
import dataclasses
import datetime
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import hsta_fast
from benchmarks import entries as entry_file
from benchmarks import record
from benchmarks.entries import DEVICE_FAULT, Entry
from benchmarks.plan import TUNE_SECONDS, plan
from benchmarks.processes import ROOT, Command, end, execute, start
from benchmarks.table import Stages, last_line, table
from benchmarks.wheels import DATA, download, install, missing
from hsta_fast.files import write_text

RESULTS = Path(__file__).parent / "results"
RESTARTS = 3  # of a stage whose process lost its device
TUNE = Path(__file__).parent / "tune.py"

OPS = ("space_time_attention", "attention_pool", "cls_cross_attention", "model_on_cuda", "tubelet_embed")
ON_CUDA = ("loading", "training", "profile", "step", "graphs")
OPS_TESTS = [f"tests/gpu/test_{name}.py" for name in (*OPS, *(f"{name}_on_cuda" for name in ON_CUDA))]
KERNEL_TESTS = ["tests/gpu/test_random_shapes.py"]
SANITIZED = ("attention D=32, bfloat16", "attention pool, bfloat16")

# The CPU part first: checks on the CPU wait for it, and it needs no nvcc.
BUILD = """
import sys
from hsta_fast import extension
try:
    for part in extension.PARTS:
        if extension.missing(part) is None:
            extension.load(part)
except extension.BuildError as error:
    sys.exit(str(error))
"""

PYTHON = sys.executable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Where the stages run and where their results go.

    Attributes:
        folder: the folder of the results.
        device: the device's name; "stand-in" for the CPU instead, to show that every stage starts.
        tuned: the folder of tuned configurations; None for the package's own.
        stand_in: whether the CPU stands in for the device.
    """

    folder: Path
    device: str
    tuned: Path | None = None
    stand_in: bool = False

    @property
    def slug(self) -> str:
        return self.device.lower().replace(" ", "-").replace("/", "-")

    @property
    def results(self) -> Path:
        return self.folder / f"{self.slug}.json"

    def partial(self, stage: str) -> Path:
        """The entries of a stage that has not ended."""
        return self.folder / f"{self.slug}.{stage}.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage, stopped when its budget is used up.

    Attributes:
        name: its name in --stage.
        budget: seconds.
        commands: (run, entries file) -> the commands to run in order.
        after: called with the entries file and the seconds left, if time is left after the commands.
    """

    name: str
    budget: int
    commands: Callable[[Run, Path], list[Command]]
    after: Callable[[Path, float], None] | None = None


def _ahead(run: Run, entries: Path) -> list[Command]:
    stand_in = ["--stand-in"] if run.stand_in else []
    return [[PYTHON, "-m", "tests.gpu.compile_ahead", f"--entries={entries}", *stand_in]]


def _smoke(run: Run, entries: Path) -> list[Command]:
    return [[PYTHON, "-m", "tests.gpu.smoke", f"--entries={entries}"]]


def _pytest(tests: Sequence[str]) -> Callable[[Run, Path], list[Command]]:
    def commands(run: Run, entries: Path) -> list[Command]:
        collect = ["--collect-only"] if run.stand_in else []
        options = ["-q", "-m", "gpu", "-p", "tests.gpu.report", f"--entries={entries}", *collect]
        return [[PYTHON, "-m", "pytest", *options, *tests]]

    return commands


def _bench(run: Run, entries: Path) -> list[Command]:
    stand_in = ["--stand-in"] if run.stand_in else []
    return [[PYTHON, "benchmarks/gpu_bench.py", f"--entries={entries}", *stand_in]]


def _drop_in(run: Run, entries: Path) -> list[Command]:
    tests = _pytest(["tests/gpu/test_drop_in_on_cuda.py"])(run, entries)
    return [*tests, [*_bench(run, entries)[0], "--drop-in"]]


def _tune(run: Run, entries: Path) -> list[Command]:
    if run.stand_in:
        entry_file.append(entries, {"case": "tune", "skipped": "no device to tune for"})
        return []
    folder = [f"--folder={run.tuned}"] if run.tuned is not None else []
    return [[PYTHON, str(TUNE), f"--limit={TUNE_SECONDS}", f"--entries={entries}", *folder]]


def _sanitize(entries: Path, seconds: float) -> None:
    """Run two kernels under compute-sanitizer's memory check, if it is installed."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    entry: Entry = {"case": "compute-sanitizer"}
    if tool is None:
        entry_file.append(entries, entry | {"skipped": "compute-sanitizer is not installed"})
        return
    with tempfile.TemporaryDirectory() as folder:
        check = [PYTHON, "-m", "tests.gpu.smoke", f"--entries={folder}/entries.jsonl", "--only", *SANITIZED]
        # Allocate each tensor separately, so that the tool sees where it ends.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        status, tail = execute(
            [tool, "--tool", "memcheck", "--error-exitcode", "1", *check], seconds, environment
        )
    if status is None:
        entry["skipped"] = f"did not finish in the remaining {seconds:.0f} s"
    elif status:
        entry |= {"failed": f"exit status {status}: {last_line(tail)}", "tail": tail}
    entry_file.append(entries, entry)


# AHEAD runs before smoke, ops and kernels. All stages together take less than ten minutes.
AHEAD = Stage(name="ahead", budget=45, commands=_ahead)
STAGES = (
    Stage(name="smoke", budget=55, commands=_smoke),
    Stage(name="ops", budget=100, commands=_pytest(OPS_TESTS)),
    Stage(name="kernels", budget=57, commands=_pytest(KERNEL_TESTS), after=_sanitize),
    Stage(name="bench", budget=240, commands=_bench),
    Stage(name="tune", budget=65, commands=_tune),
)
# Needs transformers and timm, so it runs only when it is asked for.
DROP_IN = Stage(name="drop-in", budget=240, commands=_drop_in)
ALL = (AHEAD, *STAGES, DROP_IN)
AFTER_AHEAD = ("smoke", "ops", "kernels")


def perform(stage: Stage, run: Run) -> dict[str, Any]:
    """Run one stage within its budget; returns its status, seconds and entries."""
    began = time.monotonic()
    partial = run.partial(stage.name)
    partial.unlink(missing_ok=True)
    statuses: list[int | None] = []
    ends_badly: dict[str, Any] = {}

    def left() -> float:
        # Budgets are for a device; the CPU stand-in may take ten times as long.
        return stage.budget * (10 if run.stand_in else 1) - (time.monotonic() - began)

    interpreted = run.stand_in and stage.name in ("smoke", "bench", "drop-in")
    environment = {"TRITON_INTERPRET": "1"} if interpreted else None
    for given in stage.commands(run, partial):
        for _ in range(1 + RESTARTS):
            status, tail = execute(given, left(), environment)
            if status != 0:
                ends_badly = {"exit": status, "tail": tail}
            died = status is not None and (status == DEVICE_FAULT or status < 0)
            if not died or left() <= 0:
                break
        statuses.append(status)
        if status is None:
            break
    if stage.after is not None and not run.stand_in and None not in statuses:
        stage.after(partial, left())
    found = entry_file.read(partial)
    failed = any(statuses) or any("failed" in entry for entry in found)
    return {
        "status": "cut" if None in statuses else "failed" if failed else "passed",
        "seconds": round(time.monotonic() - began, 1),
        "budget": stage.budget,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "entries": found,
    } | ends_badly


def write(run: Run, stages: Stages, info: dict[str, Any]) -> None:
    """Write the whole results file, with the stages in order."""
    ordered = {stage.name: stages[stage.name] for stage in ALL if stage.name in stages}
    result = {"device": run.device, "info": info, "stages": ordered}
    write_text(run.results, json.dumps(result, indent=1) + "\n")


def info_anew() -> dict[str, Any]:
    """`hsta_fast.info()` from a new process: this one remembers the extension's state at its start."""
    code = "import json, hsta_fast; print(json.dumps(hsta_fast.info()))"
    with start([PYTHON, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            said, _ = process.communicate(timeout=60)
            found: dict[str, Any] = json.loads(said.splitlines()[-1])
        except (subprocess.TimeoutExpired, IndexError, ValueError):  # its error is on the terminal
            return {"failed": "hsta_fast.info() returned nothing in a new process"}
        finally:
            end(process)
    return found


def stored(path: Path) -> Stages:
    """The stages of a results file; empty if the file does not exist.

    Raises:
        ValueError: the file is not a results file.
    """
    if not path.exists():
        return {}
    try:
        stages: Stages = json.loads(path.read_text())["stages"]
        if all({"status", "seconds", "budget", "entries"} <= stages[name].keys() for name in stages):
            return stages
    except (KeyError, TypeError, AttributeError, ValueError):
        pass
    raise ValueError(f"{path}: expected the results of make gpu, got something else")


def stored_or_set_aside(path: Path) -> Stages:
    """The stages of a results file; a damaged file is renamed, with a message, and the run continues."""
    try:
        return stored(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        print(f"{error}; renamed it to {aside.name}", flush=True)
        return {}


def _of_a_cpu(path: Path) -> bool:
    """Whether `make bench` wrote the file."""
    try:
        return record.read(path) is not None
    except ValueError:  # `stored` says so
        return False


def tables(folder: Path) -> str:
    """One table per device, from its results file and the entries of unfinished stages."""
    slugs = {path.name.removesuffix(".json") for path in folder.glob("*.json") if not _of_a_cpu(path)}
    for stage in ALL:  # a device's name may contain dots
        suffix = f".{stage.name}.jsonl"
        slugs |= {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
    texts = []
    for slug in sorted(slugs):
        try:
            stages = stored(folder / f"{slug}.json")
        except ValueError as error:
            stages = {}
            texts.append(str(error))
        for stage in ALL:
            partial = folder / f"{slug}.{stage.name}.jsonl"
            if partial.exists():
                found = entry_file.read(partial)
                unfinished = {"status": "unfinished", "seconds": "?", "budget": stage.budget}
                stages[stage.name] = unfinished | {"entries": found}
        texts.append(table(slug, stages))
    return "\n\n".join(texts) or f"no results in {folder}"


def build_extension(run: Run) -> subprocess.Popen[Any] | None:
    """Start building the extension in the background of the first stages: it takes as long as they do."""
    if run.stand_in:
        return None
    return start([PYTHON, "-c", BUILD])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=[stage.name for stage in ALL[1:]], help="run this stage only")
    parser.add_argument(
        "--results",
        type=Path,
        help=f"folder for results and tuned files (default: {RESULTS.relative_to(ROOT)} and the package)",
    )
    parser.add_argument("--table", action="store_true", help="print the results so far and run nothing")
    parser.add_argument("--plan", action="store_true", help="print what would run and run nothing")
    parser.add_argument(
        "--wheels", action="store_true", help="print how to fetch and install packages that may be missing"
    )
    parser.add_argument("--python", default="3.12", help="Python version of the wheels")
    parser.add_argument(
        "--stand-in", action="store_true", help="tiny cases on the CPU; tests are only collected"
    )
    arguments = parser.parse_args()
    folder = (arguments.results or RESULTS).absolute()  # stages run in another working directory
    if arguments.table:
        print(tables(folder))
        return 0
    if arguments.wheels:
        absent = ", ".join(missing(DATA)) or "nothing"
        print(f"# not installed here: {absent}; on a machine with a network:\n{download(arguments.python)}")
        print(f"# then here:\n{install()}")
        return 0
    chosen = selected(arguments.stage)
    if arguments.plan:
        print(plan({stage.name: stage.budget for stage in chosen}))
        return 0
    if not (torch.cuda.is_available() or arguments.stand_in):
        print(f"gpu.py expected a CUDA device, got none (torch {torch.__version__})", file=sys.stderr)
        return 1
    device = "stand-in" if arguments.stand_in else torch.cuda.get_device_name(0)
    problem = unwritable(folder)
    if problem is not None:
        print(f"--results expected a writable folder, got {problem}", file=sys.stderr)
        return 1
    tuned = folder / "tuned" if arguments.results is not None else None
    run = Run(folder=folder, device=device, tuned=tuned, stand_in=arguments.stand_in)
    return go(run, chosen)


def unwritable(folder: Path) -> OSError | None:
    """Create the folder; returns the error if files cannot be written there, else None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error


def selected(name: str | None) -> list[Stage]:
    """The stages to run, one or all, preceded by the compilation stage if they need it."""
    chosen = [*STAGES] if name is None else [stage for stage in ALL if name == stage.name]
    return [AHEAD, *chosen] if chosen[0].name in AFTER_AHEAD else chosen


def go(run: Run, chosen: Sequence[Stage]) -> int:
    """Run the stages in order; returns exit status 0 if all passed, else 1."""

    def ended(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)  # unwinds the stack, which ends running processes

    before = signal.signal(signal.SIGTERM, ended)
    print(f"{run.device}\n{plan({stage.name: stage.budget for stage in chosen})}", flush=True)
    stages, info = stored_or_set_aside(run.results), hsta_fast.info()
    extension = build_extension(run)
    try:
        for stage in chosen:
            print(f"\n== {stage.name}", flush=True)
            stages[stage.name] = perform(stage, run)
            write(run, stages, info)
            found = stages[stage.name]
            print(f"{stage.name}: {found['status']}, {found['seconds']} s", flush=True)
            run.partial(stage.name).unlink(missing_ok=True)
            if stage.name == "smoke" and not any("failed" not in e for e in found["entries"]):
                print(f"NOTHING WORKS on {run.device}: no check of the smoke stage passed", flush=True)
    finally:
        if extension is not None:
            end(extension)
        signal.signal(signal.SIGTERM, before)
    write(run, stages, info_anew())
    print(f"\n{table(run.device, stages)}\n{run.results}")
    return int(any(stages[stage.name]["status"] != "passed" for stage in chosen))


if __name__ == "__main__":
    sys.exit(main())
