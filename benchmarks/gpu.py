"""`make gpu`: tests and benchmarks with the interpreter at hand; a table, and a JSON file in results/.

The tests of ops and kernels run compiled there, in bfloat16 too, beside those that want a GPU; a few of them
once more under compute-sanitizer, where that is installed.

Installs nothing: run from the repository's root with PYTHONPATH=. where there is a CUDA build of torch.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import hsta_fast

RESULTS = Path(__file__).parent / "results"
TESTS = (
    "tests/gpu",
    "tests/ops",
    "tests/kernels",
    "tests/test_model_on_triton.py",
    "tests/test_crossmodal.py",
    "-m",
    "not full",
)
SANITIZED = ("tests/ops", "-m", "not full", "-k", "lengths or test_cases")


def pytest_run(*args: str) -> int:
    """Run pytest in its own process; returns its exit status."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *args], check=False).returncode


def sanitized() -> str:
    """Memory checks of the kernels at every length: "clean", "FAILED" or "not installed"."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return "not installed"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "1", sys.executable, "-m", "pytest", "-q"]
    # Each tensor an allocation of its own, so that the tool sees where it ends.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    ran = subprocess.run([*command, *SANITIZED], env=environment, check=False)
    return "FAILED" if ran.returncode else "clean"


def beside_the_best_peer(entries: list[dict[str, Any]]) -> None:
    """Give each entry of a group the ratio of the group's best foreign time to its own: above 1 is faster."""
    foreign = {
        entry["group"]: min(e["median_ms"] for e in entries if e["group"] == entry["group"] and e.get("peer"))
        for entry in entries
        if entry.get("peer")
    }
    for entry in entries:
        if entry["group"] in foreign:
            entry["x best peer"] = foreign[entry["group"]] / entry["median_ms"]


def benchmarks() -> tuple[int, list[dict[str, Any]]]:
    """Run every benchmark; returns pytest's exit status and one entry per case, times in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmark.json"
        status = pytest_run(
            "benchmarks", "--benchmark-only", f"--benchmark-json={report}", "--benchmark-quiet"
        )
        found = json.loads(report.read_text())["benchmarks"] if report.exists() else []
    return status, [
        {"case": entry["name"], "group": entry["group"], "median_ms": entry["stats"]["median"] * 1e3}
        | entry["extra_info"]
        for entry in found
    ]


def main() -> int:
    """Tests, then benchmarks; the results file is written even where a test failed, and says so."""
    if not torch.cuda.is_available():
        print(f"make gpu wants a CUDA device, torch {torch.__version__} finds none", file=sys.stderr)
        return 1
    tests = pytest_run(*TESTS)
    sanitizer = sanitized()
    status, entries = benchmarks()
    beside_the_best_peer(entries)
    properties = torch.cuda.get_device_properties(0)
    device = properties.name.lower().replace(" ", "-")
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": properties.name,
        "tests_passed": tests == 0,
        "compute_sanitizer": sanitizer,
        "info": hsta_fast.info(),
        "benchmarks": entries,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    width = max((len(entry["case"]) for entry in entries), default=0)
    for entry in entries:
        rest = {k: v for k, v in entry.items() if k not in ("case", "group", "median_ms")}
        extras = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())
        print(f"{entry['case']:<{width}}  {entry['median_ms']:10.3f} ms  {extras}")
    print(f"GPU tests {'passed' if tests == 0 else 'FAILED'}; compute-sanitizer: {sanitizer}; {path}")
    return tests or status


if __name__ == "__main__":
    sys.exit(main())
